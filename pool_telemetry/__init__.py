"""Tells the truth about a PyMongo connection pool while it runs.

What the numbers promise
========================
Each promise, and the test that keeps it (under `tests/`, on a real server unless it says replay).

At every quiet moment
    size, in_use, idle, opening and waiting are PyMongo's own: test_agreement.py (storms of threads
    and of tasks). They are the server's, too, behind a network that breaks: test_chaos.py, and
    `make soak` for 100,000 operations and more.
In any order of events
    0 <= in_use + opening <= size, nothing is negative, no counter and no time ever falls, each
    checkout ends once, by the outcome that it had, each histogram counts what its counter counts:
    test_machine.py (Hypothesis against a model of PyMongo's pool), test_state.py.
Where PyMongo says nothing
    A wait that is cancelled, interrupted or killed ends: test_field_notes.py, 01. So does a
    check-in (22), and a connection lost while it opens: test_machine.py, test_chaos.py.
Where PyMongo's events mislead
    Each trap is shown with a listener that falls into it: test_field_notes.py, 01 to 22. A
    heartbeat that PyMongo breaks off itself is no outage: test_clients.py.
Exhausted
    is true when callers and holders exceed maxPoolSize, and only then: test_machine.py. Its
    episodes and seconds count no ghost: test_state.py.
Every client for itself
    Several on one server, failover, a load balancer (replay), a client that is dropped, closed
    while exhausted or replaced under load, of which no running operation fails (a cursor has 5 s
    from batch to batch): test_clients.py, test_telemetry.py, test_pool.py.
Every process for itself
    os.fork, and fork, forkserver and spawn of multiprocessing: test_fork.py.
It never hurts
    A failure of ours reaches nobody, is logged once and counted: test_listeners.py,
    test_field_notes.py (14). A look at who waits stops no thread: test_actor.py. It never waits
    for the pool or the network: test_field_notes.py (10, 11, 20). With 1,000 waiting and 500 in
    use a read takes milliseconds and holds no event up: test_cost.py, `make bench`. Memory is
    bounded: test_cost.py.
It tells no secret
    in stats, metrics, spans, health, logs, errors or reprs: test_secrets.py, test_uri.py,
    test_pool.py.
In every exporter
    OTLP and the Prometheus text say the same at the same moment, whole: test_otel_metrics.py; a
    collector of others hands it on as it came: test_rotel.py. Each checkout that failed has its
    span: test_chaos.py. What one tells is asserted as a receiver got it: test_spans.py.
Who, and why
    Holders and waiters by name, and what a holder does: test_holders.py. Exhaustion and connections
    that are kept are told once, and when they are over: test_watch.py. Each verdict is made to
    happen on a real server: test_diagnosis.py (with a confusion matrix); any numbers have one:
    test_findings.py. Predicted waits are held against a simulation and real pools: test_sizing.py;
    the recommended size ends the exhaustion: test_diagnosis.py.
In sessions of agents
    No message is lost, doubled or moved silently, between threads, tasks and processes, and where
    the server goes in the middle of a turn; what a turn costs is counted: test_session_manager.py.
    A reader of a blob sees it whole: test_session_storage.py. Strands' own tests pass over them:
    `make test-strands`.
On every supported version
    `make test-matrix`: four PyMongos, the oldest to the newest, on every Python here, and gevent.

What it can't know
    A cancelled wait is noticed by the next read, or when the pool next runs dry; not while its task
    stands in an awaitable of a compiled library, which can't be looked into. A check-in that is
    cancelled is noticed when the task has ended, or the connection is next used or closed; where it
    also closed the connection, that counts as idle until a caller finds none idle, a clear or the
    end of the pool. An exhaust cursor that a task left open when it ended counts as idle until
    callers queue though not all is taken. Before PyMongo 4.20.1 a cancelled command has no
    duration. Where a signal handler uses the client while its thread waits in the queue, that wait
    counts as cancelled. A client forgets the oldest of more than 50 pools of servers that left it,
    and its totals lose their counts.
    What a holder of several connections does is told of the one that he took last. Without a
    time when all was well it is not known what is unusual: slow is what takes 0.1 s. A thread of a
    pool of threads that takes the next request, after one that timed out, looks like a caller who
    tries again. A queue that neither grows nor shrinks before a full pool is taken for a fixed
    number of callers.
    A wait that is cancelled in the queue has no span, nor a command or a new connection of which
    PyMongo says nothing more, nor what is done within a garbage collection. What an
    AsyncMongoClient does in the background is in the trace in which the client was opened.
"""

from typing import TYPE_CHECKING, Any

from pool_telemetry import presets
from pool_telemetry.async_pool import AsyncMongoDBConnectionPool
from pool_telemetry.diagnosis import Diagnosis, Finding, diagnose
from pool_telemetry.errors import (
    PoolConfigurationError,
    PoolNotInitializedError,
    PoolTelemetryError,
)
from pool_telemetry.health import Health, HealthLimits, assess
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.owner import owner
from pool_telemetry.pool import MongoDBConnectionPool
from pool_telemetry.report import PoolReport
from pool_telemetry.stats import ClientStats, Episode, PoolStats
from pool_telemetry.telemetry import PoolTelemetry
from pool_telemetry.version import __version__ as __version__

if TYPE_CHECKING:
    from pool_telemetry.sessions import (
        AsyncMongoDBSessionManager,
        MongoDBSessionManager,
        MongoDBSessionManagerFactory,
        MongoDBStorage,
        close_global_factory,
        get_global_factory,
        initialize_global_factory,
    )

__all__ = [
    "AsyncMongoDBConnectionPool",
    "AsyncMongoDBSessionManager",
    "ClientStats",
    "Diagnosis",
    "Episode",
    "Finding",
    "Health",
    "HealthLimits",
    "MongoDBConnectionPool",
    "MongoDBSessionManager",
    "MongoDBSessionManagerFactory",
    "MongoDBStorage",
    "PoolConfigurationError",
    "PoolNotInitializedError",
    "PoolReport",
    "PoolStats",
    "PoolTelemetry",
    "PoolTelemetryError",
    "TelemetryOptions",
    "assess",
    "close_global_factory",
    "diagnose",
    "get_global_factory",
    "initialize_global_factory",
    "owner",
    "presets",
]

# Those of sessions need the extra `strands`, and are imported when they are first asked for.
_OF_SESSIONS = frozenset(name for name in __all__ if name not in globals())


def __getattr__(name: str) -> Any:
    if name not in _OF_SESSIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pool_telemetry import sessions

    return getattr(sessions, name)
