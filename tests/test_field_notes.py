"""Where a naive listener goes wrong: each trap of PyMongo's events, on a real server over TCP.

A claim is checked on our numbers, where it holds, and on the control's, where it does not: so each
test shows that its trap is real. The control is `tests/naive.py`.
"""

import asyncio
import contextlib
import gc
import importlib.util
import io
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pymongo
import pytest
import trustme
from bson import ObjectId
from pymongo import AsyncMongoClient, CursorType, MongoClient
from pymongo.errors import PyMongoError, WaitQueueTimeoutError
from pymongo.monitoring import PoolClearedEvent, PoolCreatedEvent, PoolReadyEvent

from pool_telemetry import MongoDBConnectionPool, PoolTelemetry
from pool_telemetry.base_pool import CLOSE_SECONDS
from pool_telemetry.demo.embedded import EmbeddedServer
from pool_telemetry.state import commands
from tests.conftest import need_embedded_server
from tests.naive import Naive, Numbers, numbers_of
from tests.needs import lacks
from tests.proxy import Proxy
from tests.support import (
    PATIENCE_SECONDS,
    Noop,
    aexhausted,
    drivers,
    exhausted,
    logged,
    monitors,
    ours,
    pool_of,
    slow,
    the_pool,
    until,
    wait_for,
)

Client = MongoClient[dict[str, Any]]
AsyncClient = AsyncMongoClient[dict[str, Any]]
HAS_FORK = hasattr(os, "fork")


class Watched:
    """A client's two listeners: ours, and the control."""

    def __init__(self, naive: Naive | None = None) -> None:
        self.telemetry = PoolTelemetry()
        self.naive = Naive() if naive is None else naive
        self.listeners = [self.naive, *self.telemetry.listeners]
        self.peak_in_use = 0

    def look(self) -> Numbers:
        found = numbers_of(self.telemetry, self.peak_in_use)
        self.peak_in_use = max(self.peak_in_use, found.in_use)
        return found

    def proves(self, claim: Callable[[Numbers], bool], *, gone: bool = False) -> None:
        """Assert that a claim comes true of ours, and is not true of the control.

        It is of that, too, where PyMongo has mended what the control falls into: `gone`.
        """
        wait_for(lambda: claim(self.look()), f"ours: {self.look()}")
        stats = self.telemetry.stats()
        naive = self.naive.numbers(max(pool.longest_checkout for pool in stats.pools))
        assert claim(naive) == gone, f"whether this trap is gone: {not gone}, {naive}"
        assert stats.telemetry_errors == 0


async def swallow(work: Any, over: asyncio.Event) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await work
    await over.wait()


def test_01_cancelled_waits(server_uri: str) -> None:
    watched = Watched()

    async def main() -> None:
        client: AsyncClient = AsyncMongoClient(
            server_uri, maxPoolSize=2, event_listeners=watched.listeners
        )
        await client.admin.command("ping")
        collection, over = client["notes"]["t"], asyncio.Event()
        async with aexhausted(client):
            ended = [asyncio.create_task(collection.find_one()) for _ in range(10)]
            living = [asyncio.create_task(swallow(collection.find_one(), over)) for _ in range(5)]
            await until(lambda: drivers(client).waiting == 15)
            for task in (*ended, *living):
                task.cancel()
            await until(lambda: drivers(client).waiting == 0)
            assert not any(task.done() for task in living)
            await asyncio.to_thread(watched.proves, lambda n: n.waiting == 0)
        over.set()
        await asyncio.gather(*ended, *living, return_exceptions=True)
        assert the_pool(watched.telemetry).checkouts["cancelled"] == 15
        await client.close()

    asyncio.run(main())


def test_01_a_keyboard_interrupt_in_the_queue(server_uri: str) -> None:
    watched = Watched()
    with Client(server_uri, maxPoolSize=1, event_listeners=watched.listeners) as client:
        client.admin.command("ping")
        main_thread = threading.main_thread().ident
        assert main_thread is not None

        def interrupt() -> None:
            wait_for(lambda: drivers(client).waiting == 1)
            signal.pthread_kill(main_thread, signal.SIGINT)

        with exhausted(client):
            interrupting = threading.Thread(target=interrupt)
            interrupting.start()
            with pytest.raises(KeyboardInterrupt):
                client["notes"]["t"].find_one()
            interrupting.join()
            watched.proves(lambda n: n.waiting == 0)


GEVENT = """
from gevent import monkey
monkey.patch_all()
import gevent, gevent.event
from gevent import Timeout, joinall, sleep, spawn

def kill(greenlets, *error):
    gevent.killall(greenlets, *error, block=not error)

lives_on = gevent.event.Event()
let_go = lives_on.set
"""
EVENTLET = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # eventlet's own
import eventlet
eventlet.monkey_patch()
import eventlet.event
from eventlet import Timeout, sleep, spawn

def kill(greenlets, *error):
    for one in greenlets:
        one.kill(*error)

def joinall(greenlets):
    for one in greenlets:
        one.wait()

lives_on = eventlet.event.Event()
let_go = lives_on.send
"""
KILLED_IN_THE_QUEUE = """
import sys
from pymongo import MongoClient
from pool_telemetry import PoolTelemetry

telemetry = PoolTelemetry()
client = MongoClient(sys.argv[1], maxPoolSize=2, event_listeners=telemetry.listeners)
client.admin.command("ping")
(pool,) = client._topology._servers.values()
pool = pool.pool
held = [pool.checkout(), pool.checkout()]
for one in held:
    one.__enter__()
callers = [spawn(client.t.t.find_one) for _ in range(6)]

def swallows():
    try:
        client.t.t.find_one()
    except Timeout:
        lives_on.wait()

killed = [spawn(client.t.t.find_one) for _ in range(5)]
swallowing = [spawn(swallows) for _ in range(4)]
sleep(0.3)
everyone = telemetry.live_stats()["pool"]["waiting"]
kill(killed)
kill(swallowing, Timeout(None))
sleep(0.3)
stats = telemetry.live_stats()["pool"]
for one in held:
    one.__exit__(None, None, None)
joinall(callers)
let_go()
joinall(swallowing)
after = telemetry.live_stats()["checkouts"]
print(everyone, stats["waiting"], stats["exhausted"], after["cancelled"], after["ok"])
client.close()
"""


@pytest.mark.parametrize(("package", "greenlets"), [("gevent", GEVENT), ("eventlet", EVENTLET)])
def test_01_greenlets_killed_in_the_queue(server_uri: str, package: str, greenlets: str) -> None:
    if package == "eventlet" and importlib.util.find_spec(package) is None:
        lacks("no eventlet: pip install -e '.[dev]'")
    code = greenlets + KILLED_IN_THE_QUEUE
    done = subprocess.run(
        [sys.executable, "-c", code, server_uri], capture_output=True, text=True, timeout=180
    )
    assert done.stdout.split() == ["15", "6", "True", "9", "9"], done.stderr


CLOSED_LOOP = """
import asyncio, sys
from pymongo import AsyncMongoClient
from pool_telemetry import PoolTelemetry

telemetry = PoolTelemetry()
loop = asyncio.new_event_loop()
loop.set_exception_handler(lambda *_: None)

async def main():
    client = AsyncMongoClient(sys.argv[1], maxPoolSize=1, event_listeners=telemetry.listeners)
    await client.admin.command("ping")
    (server,) = client._topology._servers.values()
    held = server.pool.checkout()
    await held.__aenter__()
    waiting = [asyncio.create_task(client.t.t.find_one()) for _ in range(3)]
    while len(server.pool.size_cond._waiters) < 3:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    return client, held, waiting

kept = loop.run_until_complete(main())
before = telemetry.live_stats()["pool"]["waiting"]
loop.close()
live = telemetry.live_stats()
print(before, live["pool"]["waiting"], live["checkouts"]["cancelled"], live["pool"]["in_use"])
sys.stdout.flush()
import os
os._exit(0)  # nobody can close the client any more
"""


def test_01_waiters_of_a_closed_event_loop(server_uri: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLOSED_LOOP, server_uri], capture_output=True, text=True, timeout=180
    )
    assert done.stdout.split() == ["3", "0", "3", "1"], done.stderr


def test_02_commands_cancelled_in_flight(server_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_MAX_TRACKED", 5)
    watched = Watched()

    async def main() -> None:
        client: AsyncClient = AsyncMongoClient(
            server_uri, appName="inflight", event_listeners=watched.listeners
        )
        collection = client["notes"]["t"]
        with slow(server_uri, "inflight", 5_000):
            running = [asyncio.create_task(collection.find_one()) for _ in range(12)]
            await until(lambda: len(watched.naive.in_flight) == 12)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        await collection.find_one()
        told, kept = pymongo.version_tuple >= (4, 20, 1), 5
        left = 0 if told else kept
        await asyncio.to_thread(watched.proves, lambda n: n.commands_in_flight <= left, gone=told)
        ended = {one.error_type: one.duration.count for one in watched.telemetry.stats().operations}
        assert ended.get("cancelled", 0) == kept - left
        await client.close()

    asyncio.run(main())


class Slow(Noop):
    """A listener before ours that takes half a millisecond for each check-in."""

    def connection_checked_in(self, event: Any) -> None:
        time.sleep(0.0005)


@pytest.mark.skipif(pymongo.version_tuple < (4, 19), reason="the event came earlier before 4.19")
def test_03_check_ins_told_after_the_next_check_out(server_uri: str) -> None:
    watched = Watched()
    with Client(server_uri, maxPoolSize=2, event_listeners=[Slow(), *watched.listeners]) as client:
        collection, over = client["notes"]["t"], threading.Event()

        def watch() -> None:
            while not over.wait(0.0005):  # which lets greenlets have their turn, too
                watched.look()

        def work() -> None:
            for _ in range(200):
                collection.find_one()

        watching = threading.Thread(target=watch)
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in (watching, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        over.set()
        watching.join()
        assert watched.peak_in_use > 0
        watched.proves(lambda n: n.peak_in_use <= 2)
        assert ours(the_pool(watched.telemetry)) == drivers(client)


def test_04_the_time_to_open_includes_tls(tmp_path: Path) -> None:
    need_embedded_server()
    authority, watched = trustme.CA(), Watched()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for one in certificate.cert_chain_pems:
        one.write_to_path(tmp_path / "cert.pem", append=True)
    files = ("--tls-cert-file", str(tmp_path / "cert.pem"), "--tls-key-file")
    with (
        EmbeddedServer(0, *files, str(tmp_path / "key.pem")) as server,
        Proxy(server.port) as proxy,
        Client(
            proxy.uri,
            tls=True,
            tlsCAFile=str(tmp_path / "ca.pem"),
            event_listeners=watched.listeners,
        ) as client,
    ):
        client.admin.command("ping")
        wait_for(lambda: the_pool(watched.telemetry).idle == 1)
        with pool_of(client).checkout():
            proxy.delay(0.1)
            client.admin.command("ping")  # on a second connection
            proxy.delay(0.0)
        opening = the_pool(watched.telemetry).wait_time.max  # it includes the whole opening
        assert opening > 0.3
        watched.proves(lambda n: n.open_seconds > 0.9 * opening)


def test_05_re_authentication(tmp_path: Path) -> None:
    need_embedded_server()
    storage, watched = ("--storage-path", str(tmp_path / "data")), Watched()
    with EmbeddedServer(0, *storage) as server, Client(server.uri) as client:
        client.admin.command("createUser", "ann", pwd="s3cret", roles=["root"])
    with EmbeddedServer(0, *storage, "--auth") as server:
        uri = server.uri.replace("//", "//ann:s3cret@")
        with Client(uri, appName="again", event_listeners=watched.listeners) as client:
            client["notes"]["t"].find_one()
            fail_point = {"failCommands": ["find"], "errorCode": 391, "appName": "again"}
            client.admin.command(
                "configureFailPoint", "failCommand", mode={"times": 1}, data=fail_point
            )
            client["notes"]["t"].find_one()
            watched.proves(lambda n: n.opened == 1)
            assert ours(the_pool(watched.telemetry)) == drivers(client)


def test_06_two_clients_of_one_server(server_uri: str) -> None:
    one, two = Watched(), Watched()
    two.naive = one.naive  # one listener for all, keyed by address and connection id
    two.listeners[0] = one.naive
    with (
        Client(server_uri, event_listeners=one.listeners) as first,
        Client(server_uri, event_listeners=two.listeners) as second,
    ):
        for client in (first, second):
            client.admin.command("ping")
        assert ours(the_pool(one.telemetry)) == drivers(first)
        assert ours(the_pool(two.telemetry)) == drivers(second)
        both = numbers_of(one.telemetry).used + numbers_of(two.telemetry).used
        assert both == drivers(first).size + drivers(second).size == 2
        assert one.naive.numbers().used == 1, "the control saw both: this trap is gone"


def test_07_options_that_are_not_in_the_event(server_uri: str) -> None:
    watched = Watched()
    with Client(server_uri, event_listeners=watched.listeners) as client:
        client.admin.command("ping")
        watched.proves(lambda n: n.max_size == 100)


def test_08_events_after_the_pool_was_closed(server_uri: str) -> None:
    watched = Watched()
    client = Client(server_uri, maxPoolSize=3, event_listeners=watched.listeners)
    client.admin.command("ping")
    with pool_of(client).checkout():
        client.close()
        watched.proves(lambda n: n.in_use == 1)  # a connection out is out, closed pool or not
    watched.proves(lambda n: n.in_use == 0)
    (pool,) = watched.telemetry.stats().pools
    assert (pool.phase, pool.size) == ("closed", 0)
    assert pool.created == sum(pool.closed.values())


def test_08_the_order_of_a_clear(own_server: EmbeddedServer) -> None:
    """Waiters fail, idle connections close, and those in use close after their check-in."""
    watched = Watched()
    with (
        Proxy(own_server.port) as proxy,
        Client(
            proxy.uri,
            maxPoolSize=2,
            heartbeatFrequencyMS=500,
            serverSelectionTimeoutMS=2_000,
            retryReads=False,
            event_listeners=watched.listeners,
        ) as client,
    ):
        client.admin.command("ping")
        failed: list[Exception] = []

        def find() -> None:
            try:
                client["notes"]["t"].find_one()
            except PyMongoError as error:
                failed.append(error)

        with exhausted(client):
            waiting = [threading.Thread(target=find) for _ in range(3)]
            for thread in waiting:
                thread.start()
            wait_for(lambda: the_pool(watched.telemetry).waiting == 3)
            proxy.refuse()
            proxy.cut()
            for thread in waiting:
                thread.join()
            pool = the_pool(watched.telemetry)
            assert len(failed) == pool.checkouts["connection_error"] == 3
            assert (pool.in_use, pool.waiting, pool.phase) == (2, 0, "paused")
        pool = the_pool(watched.telemetry)
        assert (pool.size, pool.in_use, sum(pool.closed.values())) == (0, 0, 2)
        proxy.accept()
        wait_for(lambda: the_pool(watched.telemetry).phase == "ready")
        client.admin.command("ping")
        assert ours(the_pool(watched.telemetry)) == drivers(client)


def test_09_a_client_dropped_without_close(server_uri: str) -> None:
    watched = Watched()
    clients = [Client(server_uri, event_listeners=watched.listeners)]
    watched.listeners.clear()
    clients[0].admin.command("ping")

    def drop() -> None:
        clients.clear()
        wait_for(lambda: gc.collect() >= 0 and not watched.telemetry.stats().open_pools)

    with pytest.warns(ResourceWarning, match="Unclosed MongoClient"):
        drop()
    watched.proves(lambda n: n.size == 0)


def in_child(watched: Watched, client: Client, report: Any) -> None:
    client["notes"]["t"].find_one()
    naive, here = watched.naive.numbers().size, watched.look().size
    report.send((naive, here, drivers(client).size))
    client.close()


@pytest.mark.skipif(not HAS_FORK, reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*fork.*:UserWarning")
def test_09_a_fork(server_uri: str) -> None:
    watched = Watched()
    with Client(server_uri, event_listeners=watched.listeners) as client:
        client["notes"]["t"].find_one()
        fork = multiprocessing.get_context("fork")
        receive, send = fork.Pipe(duplex=False)
        child = fork.Process(target=in_child, args=(watched, client, send))
        child.start()
        assert receive.poll(PATIENCE_SECONDS), "the child said nothing"
        naive, here, driver = receive.recv()
        child.join(PATIENCE_SECONDS)
    assert here == driver == 1
    assert naive == 2, "the control is right, so this trap is gone"


def test_10_a_ready_pool_is_locked_while_it_says_so(server_uri: str) -> None:
    answers: list[tuple[bool, str]] = []
    watched = Watched()

    class Asks(Noop):
        """The control asks PyMongo's pool, and would wait for ever; ours reads the state."""

        def pool_ready(self, event: Any) -> None:
            free = pool_of(client).lock.acquire(blocking=False)
            answers.append((free, the_pool(watched.telemetry).phase))

    client = Client(server_uri, connect=False, event_listeners=[*watched.listeners, Asks()])
    client.admin.command("ping")
    client.close()
    assert answers == [(False, "ready")]


def test_11_closing_an_exhausted_client(server_uri: str) -> None:
    client = MongoDBConnectionPool.initialize(server_uri, maxPoolSize=2, minPoolSize=0)
    control = Client(server_uri, maxPoolSize=2)
    control.admin.command("ping")
    with exhausted(client), exhausted(control):
        plain = threading.Thread(target=control.close)
        plain.start()
        began = time.monotonic()
        MongoDBConnectionPool.close()
        assert time.monotonic() - began < 10 * CLOSE_SECONDS
        assert plain.is_alive(), "the control closed: this trap is gone"
    plain.join()


def test_12_a_time_limit_of_the_caller_goes_before_the_pools(server_uri: str) -> None:
    watched = Watched(Naive(wait_limit=0.1))
    with Client(
        server_uri, maxPoolSize=1, waitQueueTimeoutMS=100, event_listeners=watched.listeners
    ) as client:
        client.admin.command("ping")
        collection = client["notes"]["t"]

        def patient() -> None:
            with pymongo.timeout(20):
                collection.find_one()

        thread = threading.Thread(target=patient)
        with exhausted(client):
            thread.start()
            wait_for(lambda: the_pool(watched.telemetry).oldest_wait > 0.2)
            with pytest.raises(WaitQueueTimeoutError):
                client.admin.command("ping")
        thread.join()
        watched.proves(lambda n: n.timeouts == 1)
        assert the_pool(watched.telemetry).wait_time.max > 0.2


def test_13_a_retryable_read_fails_its_checkout_twice(server_uri: str) -> None:
    watched = Watched()
    with Client(
        server_uri, maxPoolSize=1, waitQueueTimeoutMS=50, event_listeners=watched.listeners
    ) as client:
        client.admin.command("ping")
        with exhausted(client), pytest.raises(PyMongoError):
            client["notes"]["t"].find_one()
        # Checkouts are counted as checkouts, and operations as the commands that were sent.
        assert the_pool(watched.telemetry).checkouts["timeout"] == 2
        assert ours(the_pool(watched.telemetry)) == drivers(client)  # and no connection 0
        watched.proves(lambda n: n.failed_operations < 2)


def test_14_a_listener_that_fails(
    server_uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Noop):
        def connection_checked_out(self, event: Any) -> None:
            raise ValueError("the control's bug")

    def errors_on_stderr(listeners: list[Any]) -> str:
        said = io.StringIO()
        monkeypatch.setattr(sys, "stderr", said)
        with Client(server_uri, event_listeners=listeners) as client:
            for _ in range(3):
                client.admin.command("ping")
        return said.getvalue()

    telemetry = PoolTelemetry("buggy")
    listeners = list(telemetry.listeners)
    listeners[0]._pools = {}  # every look-up fails
    with caplog.at_level(logging.ERROR):
        assert errors_on_stderr(listeners) == ""
    assert len(logged(caplog, "pool 'buggy'")) == 1
    assert telemetry.stats().telemetry_errors >= 3
    assert errors_on_stderr([Broken()]).count("the control's bug") >= 3


def test_14_the_base_class_refuses_what_is_not_defined() -> None:
    from pymongo.monitoring import ConnectionPoolListener

    bare: Any = ConnectionPoolListener()
    with pytest.raises(NotImplementedError):
        bare.pool_ready(None)


def test_15_connections_that_nobody_checked_out(server_uri: str) -> None:
    watched = Watched()
    with Client(server_uri, minPoolSize=4, event_listeners=watched.listeners) as client:
        client.admin.command("ping")
        wait_for(lambda: drivers(client).idle == 4)
        watched.proves(lambda n: n.used == 4)
        wait_for(lambda: monitors(client) >= 1)
        assert ours(the_pool(watched.telemetry)) == drivers(client)  # monitors are not among them


def test_16_an_exhaust_cursor_is_no_leak(server_uri: str) -> None:
    watched = Watched(Naive(leak_seconds=0.2))
    with Client(server_uri, maxPoolSize=3, event_listeners=watched.listeners) as client:
        collection = client["notes"]["exhaust"]
        collection.insert_many({} for _ in range(20))
        with collection.find(batch_size=2, cursor_type=CursorType.EXHAUST) as cursor:
            next(cursor)
            wait_for(lambda: the_pool(watched.telemetry).longest_checkout > 0.3)
            assert ours(the_pool(watched.telemetry)) == drivers(client)
            assert the_pool(watched.telemetry).in_use == 1
            watched.proves(lambda n: n.leaks == 0)


def test_16_a_clear_behind_a_load_balancer_pauses_nothing() -> None:
    watched = Watched()
    address = ("lb.example", 27017)
    for listener in (watched.naive, watched.listeners[1]):
        pool: Any = listener
        pool.pool_created(PoolCreatedEvent(address, {}))
        pool.pool_ready(PoolReadyEvent(address))
        pool.pool_cleared(PoolClearedEvent(address, service_id=ObjectId()))
    watched.proves(lambda n: not n.paused)


def test_17_callers_that_share_a_thread(server_uri: str) -> None:
    watched = Watched()

    async def main() -> None:
        client: AsyncClient = AsyncMongoClient(
            server_uri, maxPoolSize=1, event_listeners=watched.listeners
        )
        await client.admin.command("ping")
        async with aexhausted(client):
            tasks = [asyncio.create_task(client["notes"]["t"].find_one()) for _ in range(5)]
            await until(lambda: drivers(client).waiting == 5)
            watched.proves(lambda n: n.callers == 5)
        await asyncio.gather(*tasks)
        await client.close()

    asyncio.run(main())


@pytest.mark.skipif(pymongo.version_tuple < (4, 18), reason="each try had its own id before 4.18")
def test_18_a_retry_shares_its_operation_id(server_uri: str) -> None:
    watched = Watched()
    options: Any = {"appName": "retry", "heartbeatFrequencyMS": 500}  # the server is soon back
    with Client(server_uri, event_listeners=watched.listeners, **options) as client:
        fail_point = {"failCommands": ["find"], "errorCode": 11600, "appName": "retry"}
        control = Client(server_uri, appName="tests-control")
        control.admin.command(
            "configureFailPoint", "failCommand", mode={"times": 1}, data=fail_point
        )
        control.close()
        client["notes"]["t"].find_one()
        watched.proves(lambda n: n.commands == 2)
        errors = {one.error_type for one in watched.telemetry.stats().operations}
        assert errors == {"", "11600"}


def test_19_a_listener_that_comes_late(server_uri: str) -> None:
    watched = Watched()
    given = list(watched.telemetry.listeners)
    with Client(server_uri, event_listeners=given) as client:
        given.append(watched.naive)
        client.admin.command("ping")
        watched.proves(lambda n: n.size == 1)


def test_20_who_asks_the_server_waits_for_a_connection(server_uri: str) -> None:
    telemetry = PoolTelemetry()
    with Client(server_uri, maxPoolSize=2, event_listeners=telemetry.listeners) as client:
        client.admin.command("ping")
        with exhausted(client):
            asks = threading.Thread(target=client.server_info)
            asks.start()
            wait_for(lambda: the_pool(telemetry).waiting == 1)
            for _ in range(200):
                assert telemetry.stats().connected
            assert asks.is_alive(), "the control has its answer: this trap is gone"
        asks.join()


@pytest.mark.skipif(
    pymongo.version_tuple < (4, 20), reason="PyMongo itself loses such a connection before 4.20"
)
def test_22_a_check_in_that_is_cancelled(server_uri: str) -> None:
    """The 22nd trap, found by `make soak`: the connection is back, and no event says so."""
    watched = Watched()

    async def main() -> None:
        client: AsyncClient = AsyncMongoClient(
            server_uri, maxPoolSize=2, appName="lost", event_listeners=watched.listeners
        )
        collection, over = client["notes"]["t"], asyncio.Event()
        await collection.find_one()
        lock = pool_of(client).lock

        def ended() -> int:
            every = watched.telemetry.stats().operations
            return sum(one.duration.count for one in every if one.operation == "find")

        with slow(server_uri, "lost", 1_000):
            task = asyncio.create_task(swallow(collection.find_one(), over))
            await until(lambda: drivers(client).in_use == 1)
            async with lock:
                # It wants to check in. A waiter alone may be PyMongo's own task, which runs each
                # second.
                await until(lambda: ended() == 2 and lock._waiters)
                task.cancel()
                await asyncio.sleep(0)
        await until(lambda: drivers(client).in_use == 0)
        over.set()
        await task
        await asyncio.to_thread(watched.proves, lambda n: n.in_use == 0)
        assert ours(the_pool(watched.telemetry)) == drivers(client)
        await client.close()

    asyncio.run(main())
