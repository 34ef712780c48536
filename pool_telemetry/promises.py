"""The promises of the numbers, the test that keeps each, and the limits of the numbers.

The tests are under `tests/`. Each runs on a real server unless "replay" is written beside it.

At every quiet moment
    size, in_use, idle, opening and waiting equal PyMongo's own counters: test_agreement.py (storms
    of threads and of tasks). They equal the server's counters, too, behind a network that breaks:
    test_chaos.py, and `make soak` with 100,000 operations and more.
In any order of events
    0 <= in_use + opening <= size. No number is negative; no counter and no total time ever falls.
    Each checkout ends once, with its own outcome. Each histogram counts what its counter
    counts. Kept by test_machine.py (Hypothesis against a model of PyMongo's pool) and
    test_state.py.
Where PyMongo publishes nothing
    A wait that was cancelled, interrupted or killed ends: test_field_notes.py, 01. So does a
    checkout whose check-in was never published (22), and a connection that was lost while it
    opened: test_machine.py, test_chaos.py.
Where PyMongo's events mislead
    Each trap is shown with a listener that falls into it: test_field_notes.py, 01 to 22. A
    heartbeat that PyMongo breaks off itself is no outage: test_clients.py.
Exhausted
    is true if callers and holders together exceed maxPoolSize, and only then: test_machine.py.
    Its episodes (those less than a second apart are one) and its seconds count no cancelled wait:
    test_state.py.
Never healthy while nobody is served, and no alarm while all is well
    Callers that no server fits, handshakes that hang, a lost pool, a driver that stands still and
    an overloaded server are unhealthy. A time for which the process was stopped is in no age:
    test_nobody_served.py.
Under the driver's own tests
    PyMongo's tests run with this telemetry in every client, and after each the counts equal the
    driver's counters and a naive count of the recorded events: `make test-driver`.
Each client has its own numbers
    Several clients on one server, a failover, a load balancer (replay), and a client that is
    dropped, closed while exhausted, or replaced under load. No running operation fails when its
    client is replaced (a cursor has 5 s between two batches): test_clients.py, test_telemetry.py,
    test_pool.py.
    So has the inner client of automatic encryption: test_encryption.py. The counts of ended
    clients stay in those of their name, which never fall: test_totals.py. Unused series
    leave the exporters, and go on from their counts if they return: test_aging.py.
Each process has its own numbers
    os.fork; fork, forkserver and spawn of multiprocessing; and forks in C, which Python does not
    notice: test_fork.py. Workers of uWSGI, with threads and without: test_uwsgi.py. So it is over
    OTLP, cumulative and delta, whoever made the provider: test_otlp_forks.py. The last numbers of a
    process arrive, also if atexit does not run in it: test_process_end.py.
Several processes are one service
    Each answers for all. At a quiet moment the sums are exact under every server: test_servers.py,
    test_recipes.py. The end of a process loses no count, except by SIGKILL. The process that takes
    its number over goes on from its counters, so none falls, and jobs that each run in a new
    process lose none. A process that hangs or died delays no answer by more than 0.2 s:
    test_workers.py.
The telemetry never hurts the application
    A failure inside a listener reaches no caller, is logged once, and is counted:
    test_listeners.py, test_field_notes.py (14). Inspecting callers stops no thread: test_actor.py.
    A read never waits for PyMongo's pool or for the network: test_field_notes.py (10, 11, 20).
    With 1,000 callers waiting and 500 connections in use a read takes milliseconds and delays no
    event: test_cost.py, `make bench`. Memory is bounded: test_cost.py. No answer over HTTP is made
    on an event loop or on a thread of a framework, and no route waits for another: test_routes.py.
    Probes answer while every thread of the web server waits: test_framework_examples.py.
No secret is shown
    in stats, metrics, spans, health, logs, errors or reprs: test_secrets.py, test_uri.py,
    test_pool.py.
The same in every exporter
    OTLP and the Prometheus text have the same values at the same moment, and all of them:
    test_otel_metrics.py. A foreign collector passes them on unchanged: test_rotel.py. Each failed
    checkout has its span: test_chaos.py. Spans are asserted as a receiver got them: test_spans.py.
Holders and waiters, and the cause of an exhaustion
    Holders and waiters by name, and what a holder does: test_holders.py. Exhaustion and long
    checkouts are logged once, and again when they end: test_watch.py. Each verdict is made to
    happen on a real server (`make scenarios`), and its recorded history has that verdict at every
    sampling: test_recordings.py. Predicted waits are compared with a simulation and with real
    pools: test_sizing.py. The recommended size ends the exhaustion: test_diagnosis.py.
Sessions of agents
    No message is lost, doubled or moved without an error, between threads, tasks and processes,
    and when the server stops in the middle of a turn. The commands of a turn are counted:
    test_session_manager.py. A reader of a blob sees all of it: test_session_storage.py. Strands'
    own tests pass over these sessions: `make test-strands`.
On every supported version
    `make test-matrix`: four PyMongos, the oldest to the newest, on every Python here, and gevent.

Limits: facts that the numbers can't know
    A cancelled wait is noticed at the next read, or when the pool is next exhausted. It is not
    noticed while its task awaits something in a compiled library, which can't be inspected.
    A cancelled check-in is noticed when the task has ended, or when its connection is next used or
    closed. If the cancelled task also closed the connection, it counts as idle until a caller finds
    no idle connection, or until the pool is cleared or closed.
    An exhaust cursor that a task left open when it ended counts as idle until callers queue though
    connections seem to be free.
    Before PyMongo 4.20.1 a cancelled command has no duration.
    If a signal handler uses the client while its thread waits in the queue, that wait counts as
    cancelled.
    A caller in server selection is seen at most twice a second, so shorter waits and failures may
    not be counted; a greenlet is never seen there. A selection whose time is up counts as failed,
    even if the caller was served in that moment.
    A process that stood still for less than two seconds counts that time. So does one without the
    watching thread, or with gevent or Eventlet: there another greenlet may have blocked the thread.
    A process that is killed, or that ends by os._exit() outside of multiprocessing and Celery,
    loses what it counted after the last scrape.
    A client keeps the last 50 pools of servers that left it. Its totals lose older pools' counts.
    If a caller holds several connections, its activity is shown for the latest one.
    Without a baseline the usual duration of a command is unknown: 0.1 s and more then counts as
    slow.
    A thread of a thread pool that takes its next request right after one timed out looks like a
    caller that retries. A queue that neither grows nor shrinks before a full pool looks like a
    fixed number of callers.
    After a fork in C (uWSGI without `--py-call-osafterfork`) the frames of threads can't be
    inspected. A thread that leaves the queue without an event counts as waiting until its next
    checkout or its end. PyMongo sends no heartbeats there, so `up` and the round-trip time are
    unknown.
    A wait that is cancelled in the queue has no span. Neither has a command or a new connection
    whose end PyMongo does not publish, nor anything done within a garbage collection. Background
    work of an AsyncMongoClient is in the trace in which the client was opened.
"""
