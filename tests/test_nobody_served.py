"""A client that serves nobody is unhealthy and says why; one that stood still is not."""

import asyncio
import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pymongo
import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_preferences import Nearest, Secondary
from pymongo.uri_parser import parse_uri

from pool_telemetry import HealthLimits, PoolTelemetry, assess
from pool_telemetry.diagnosis import diagnose
from pool_telemetry.state.heartbeat import MonitorTimes
from pool_telemetry.state.histogram import OPERATION_BOUNDS
from pool_telemetry.state.loop_pulse import LoopPulse
from pool_telemetry.state.pool_state import PoolState
from pool_telemetry.stats import ClientStats, HistogramStats, OperationStats
from tests.demoted import SET_NAME, Demoted
from tests.proxy import Proxy
from tests.support import failing, logged, monitors, pool_of, slow, the_pool, until, wait_for
from tests.test_health import EXHAUSTED, a_client, a_pool

Client = MongoClient[dict[str, Any]]
FAST: dict[str, Any] = {
    "heartbeatFrequencyMS": 500,
    "serverSelectionTimeoutMS": 2_500,
    "connectTimeoutMS": 1_000,
}


@contextlib.contextmanager
def callers(count: int, call: Callable[[], object]) -> Iterator[list[threading.Thread]]:
    """So many threads call once; they are waited for at the end."""

    def run() -> None:
        with contextlib.suppress(PyMongoError):
            call()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread.join()


def port_of(uri: str) -> int:
    return int(parse_uri(uri)["nodelist"][0][1])


def waiting(telemetry: PoolTelemetry) -> int:
    return telemetry.stats().server_selection.waiting


def never(_: Any) -> list[Any]:
    return []


KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "another set's name": ({"replicaSet": "another"}, None),
    "a selector": ({"server_selector": never}, None),
    "a read preference": ({}, Secondary()),
    "tags": ({}, Nearest(tag_sets=[{"dc": "s3cr3t"}])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_callers_that_no_server_fits_are_counted_and_reported(
    server_uri: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    options, preference = KINDS[kind]
    telemetry = PoolTelemetry(kind)
    with Client(server_uri, event_listeners=telemetry.listeners, **FAST, **options) as client:
        orders = client["shop"].get_collection("orders", read_preference=preference)
        with callers(8, orders.find_one):
            wait_for(lambda: waiting(telemetry) == 8)
            wait_for(lambda: logged(caplog, "callers in server selection: 8 waiting"))
            assert assess(telemetry).status != "healthy"
            assert diagnose(telemetry).verdict == "no server fits"
        wait_for(lambda: waiting(telemetry) == 0)
        stats = telemetry.stats()
        assert stats.server_selection.failures == 8
        assert telemetry.live_stats()["server_selection"]["failures"] == 8
        assert telemetry.active
        health, found = assess(stats), diagnose(stats)
        assert health.status == "unhealthy"
        assert found.verdict == "no server fits"
        assert found.severity == "critical"
        assert stats.connected == (kind != "another set's name")
        wait_for(lambda: logged(caplog, "no caller waits in server selection any more"))
    assert "s3cr3t" not in caplog.text + str(health) + str(found) + repr(telemetry.stats())


def test_closed_client_has_no_callers(server_uri: str) -> None:
    telemetry = PoolTelemetry()
    client = Client(server_uri, event_listeners=telemetry.listeners, server_selector=never, **FAST)
    with callers(2, client["shop"]["orders"].find_one):
        wait_for(lambda: waiting(telemetry) == 2)
        client.close()
        assert not telemetry.active
        assert waiting(telemetry) == 0


def test_tasks_that_no_server_fits_are_counted(server_uri: str) -> None:
    telemetry = PoolTelemetry()

    async def play() -> None:
        async with AsyncMongoClient[dict[str, Any]](
            server_uri, event_listeners=telemetry.listeners, server_selector=never, **FAST
        ) as client:
            finds = [asyncio.create_task(client["shop"]["orders"].find_one()) for _ in range(8)]
            await until(lambda: waiting(telemetry) == 8)
            finds[0].cancel()
            await until(lambda: waiting(telemetry) == 7)
            await asyncio.gather(*finds, return_exceptions=True)
            await until(lambda: waiting(telemetry) == 0)

    asyncio.run(play())
    assert telemetry.stats().server_selection.failures == 7  # one was cancelled


def test_two_clients_are_told_apart(server_uri: str) -> None:
    one, other = PoolTelemetry("one"), PoolTelemetry("other")
    with (
        Client(server_uri, event_listeners=one.listeners, server_selector=never, **FAST) as first,
        Client(server_uri, event_listeners=other.listeners, **FAST) as second,
    ):
        second["shop"]["orders"].find_one()
        with callers(3, first["shop"]["orders"].find_one):
            wait_for(lambda: waiting(one) == 3)
            assert waiting(other) == 0
            assert assess(other).status == "healthy"


def test_set_without_a_primary_is_degraded_and_unhealthy_if_writers_fail(
    server_uri: str,
) -> None:
    telemetry = PoolTelemetry()
    with Demoted(port_of(server_uri)) as proxy:
        with Client(proxy.uri, event_listeners=telemetry.listeners, **FAST) as client:
            telemetry.attach(client)
            orders = client["shop"]["orders"]
            orders.find_one()
            assert the_pool(telemetry).server_type == "RSPrimary"
            assert assess(telemetry).status == "healthy"
            proxy.demoted = True
            wait_for(lambda: the_pool(telemetry).server_type == "RSSecondary")
            assert assess(telemetry).status == "degraded"
            assert telemetry.stats().connected  # the secondary answers
            found = diagnose(telemetry)
            assert (found.verdict, found.severity) == ("no server fits", "warning")
            secondary = client["shop"].get_collection("orders", read_preference=Secondary())
            secondary.find_one()
            with callers(4, lambda: orders.insert_one({})):
                wait_for(lambda: waiting(telemetry) == 4)
                assert assess(telemetry).status == "degraded"  # none has failed yet
            wait_for(lambda: telemetry.stats().server_selection.failures == 4)
            assert assess(telemetry).status == "unhealthy"
            assert "no server is the primary" in assess(telemetry).reasons[0]
            proxy.demoted = False
            wait_for(lambda: the_pool(telemetry).server_type == "RSPrimary")
            orders.insert_one({})
        assert SET_NAME in proxy.uri


def test_callers_that_a_new_primary_serves_have_not_failed(server_uri: str) -> None:
    telemetry = PoolTelemetry()
    options = {**FAST, "serverSelectionTimeoutMS": 60_000}
    with (
        Demoted(port_of(server_uri)) as proxy,
        Client(proxy.uri, event_listeners=telemetry.listeners, **options) as client,
    ):
        client["shop"]["orders"].find_one()
        proxy.demoted = True
        wait_for(lambda: telemetry.stats().lacks_primary)
        with callers(4, lambda: client["shop"]["orders"].insert_one({})):
            wait_for(lambda: waiting(telemetry) == 4)
            # As if their time were up just when the primary is back.
            selection = telemetry.server_selection
            selection._waiting = {
                key: one._replace(deadline=0.0) for key, one in selection._waiting.items()
            }
            proxy.demoted = False
        wait_for(lambda: waiting(telemetry) == 0)
        assert telemetry.stats().server_selection.failures == 0


def test_client_of_a_single_secondary_lacks_no_primary(server_uri: str) -> None:
    telemetry = PoolTelemetry()
    with Demoted(port_of(server_uri)) as proxy:
        proxy.demoted = True
        uri = f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true"
        with Client(uri, event_listeners=telemetry.listeners, **FAST) as client:
            client["shop"]["orders"].find_one()
            assert the_pool(telemetry).server_type == "RSSecondary"
            assert assess(telemetry).status == "healthy"
            assert diagnose(telemetry).findings == ()
            assert not telemetry.may_lack_a_server


def test_periods_are_those_of_the_client_without_attach(server_uri: str) -> None:
    """A heartbeat a minute is no silence."""
    telemetry = PoolTelemetry()
    options: dict[str, Any] = {"heartbeatFrequencyMS": 60_000, "connectTimeoutMS": 7_000}
    with Client(server_uri, event_listeners=telemetry.listeners, **options) as client:
        client.admin.command("ping")
        (state,) = telemetry.states()
        assert state.monitor_times == MonitorTimes(60.0, 7.0)


def test_tasks_of_a_blocked_loop_are_not_lost(server_uri: str) -> None:
    telemetry = PoolTelemetry()
    seen = list[tuple[bool, list[Any]]]()

    def look() -> None:
        wait_for(lambda: the_pool(telemetry).unserved_time > 4.0)
        verdicts = [one.verdict for one in diagnose(telemetry).current]
        seen.append((the_pool(telemetry).lost, verdicts))
        looked.set()

    async def play() -> None:
        async with AsyncMongoClient[dict[str, Any]](
            server_uri, event_listeners=telemetry.listeners, maxPoolSize=1
        ) as client:
            orders = client["shop"]["orders"]
            await orders.find_one()
            finds = [asyncio.create_task(orders.find_one()) for _ in range(3)]
            await asyncio.wait(finds, return_when=asyncio.FIRST_COMPLETED)
            thread = threading.Thread(target=look)
            thread.start()
            looked.wait(30.0)  # without await
            thread.join()
            await asyncio.gather(*finds)
            assert not the_pool(telemetry).lost

    looked = threading.Event()
    asyncio.run(play())
    ((lost, verdicts),) = seen
    assert not lost
    assert "lost pool" not in verdicts


def test_callers_that_are_served_wait_in_no_server_selection(server_uri: str) -> None:
    telemetry = PoolTelemetry()
    with Client(server_uri, event_listeners=telemetry.listeners, **FAST) as client:
        over = threading.Event()

        def find() -> None:
            while not over.is_set():
                client["shop"]["orders"].find_one()

        with callers(4, find):
            seen = {waiting(telemetry) for _ in range(100)}
            over.set()
        assert seen == {0}
        assert telemetry.stats().server_selection.failures == 0


def test_stalled_handshakes_are_unhealthy_though_heartbeats_go_on(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = PoolTelemetry()
    with (
        Proxy(port_of(server_uri)) as proxy,
        Client(
            proxy.uri,
            event_listeners=telemetry.listeners,
            maxIdleTimeMS=1,
            waitQueueTimeoutMS=60_000,
            **{**FAST, "connectTimeoutMS": 60_000},
        ) as client,
    ):
        client["shop"]["orders"].find_one()
        wait_for(lambda: monitors(client) == 2)  # new ones would hesitate, too
        wait_for(lambda: the_pool(telemetry).size == 0)
        proxy.hesitate(60.0)
        with callers(5, client["shop"]["orders"].find_one):
            wait_for(lambda: the_pool(telemetry).waiting == 5)
            wait_for(lambda: the_pool(telemetry).unserved_time > 3.5)
            stats = telemetry.stats()
            (pool,) = stats.pools
            assert (pool.up, pool.waiting, pool.opening, pool.exhausted) == (True, 5, 2, False)
            assert 0.0 < pool.oldest_opening <= pool.oldest_wait
            assert diagnose(telemetry).verdict == "handshakes stall"
            health = assess(stats, HealthLimits(stalled_seconds=3.0))
            assert assess(stats).status == "degraded"  # the default limit is 30 s
            assert health.status == "unhealthy"
            assert "5 waiting, 0 of 100 in use, 2 opening, the oldest for" in health.reasons[0]
            wait_for(lambda: logged(caplog, "serves nobody"))
            proxy.hesitate(0.0)
            proxy.cut()
        wait_for(lambda: the_pool(telemetry).unserved_time == 0.0)
        wait_for(lambda: logged(caplog, "serves callers again"))


def test_driver_that_stands_still_is_unhealthy(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = PoolTelemetry()
    seen = list[tuple[ClientStats, str]]()

    def look() -> None:
        wait_for(lambda: the_pool(telemetry).silent_time > 0.0)
        wait_for(lambda: logged(caplog, "the driver stands still"))
        seen.append((telemetry.stats(), diagnose(telemetry).verdict))
        looked.set()

    async def play() -> None:
        async with AsyncMongoClient[dict[str, Any]](
            server_uri, event_listeners=telemetry.listeners, **FAST
        ) as client:
            telemetry.attach(client)
            await client["shop"]["orders"].find_one()
            await until(lambda: the_pool(telemetry).up)
            assert telemetry.stats().connected
            (state,) = telemetry.states()
            assert state.pulse
            assert state.pulse.loop is asyncio.get_running_loop()
            thread = threading.Thread(target=look)
            thread.start()
            looked.wait(30.0)  # without await: the loop stands still
            await until(lambda: the_pool(telemetry).silent_time == 0.0)
            await until(lambda: logged(caplog, "is back"))
            thread.join()

    looked = threading.Event()
    asyncio.run(play())
    ((stats, verdict),) = seen
    assert verdict == "driver stands still"
    assert assess(stats).status == "unhealthy"
    assert "silent for" in assess(stats).reasons[0]
    assert not stats.connected


def test_monitor_is_silent_after_three_periods_and_the_time_to_connect() -> None:
    now = 0.0
    state = PoolState(("db", 27017), clock=lambda: now)
    state.created(10, 0)
    state.monitor_times = MonitorTimes(period=10.0, connect_timeout=20.0)
    state.heartbeat_started()
    state.heartbeat(up=True, server_type="RSPrimary")
    now = 30.0
    assert state.stats().silent_time == 0.0
    now = 30.5
    assert state.stats().silent_time == 30.5
    state.heartbeat_started()  # its answer may take 20 s longer
    now = 80.0
    assert state.stats().silent_time == 0.0
    now = 81.0
    assert state.stats().silent_time == 50.5
    state.monitor_times = MonitorTimes(period=10.0, connect_timeout=math.inf)
    assert state.stats().silent_time == 0.0


def test_client_that_ended_with_its_event_loop_is_not_silent() -> None:
    now = 0.0
    state = PoolState(("db", 27017), clock=lambda: now)
    state.created(10, 0)
    state.heartbeat(up=True)
    state.pulse = LoopPulse(asyncio.new_event_loop())
    now = 100.0
    assert state.stats().silent_time == 100.0
    state.pulse.loop.close()
    assert state.stats().silent_time == 0.0


def test_server_that_left_is_not_silent() -> None:
    now = 0.0
    state = PoolState(("db", 27017), clock=lambda: now)
    state.created(10, 0)
    state.heartbeat(up=True)
    now = 100.0
    assert state.stats().silent_time == 100.0
    state.closed()
    assert state.stats().silent_time == 0.0


def test_lost_pool_is_named_and_has_not_recovered(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = PoolTelemetry()
    with Client(
        server_uri, event_listeners=telemetry.listeners, maxPoolSize=4, waitQueueTimeoutMS=700
    ) as client:
        client["shop"]["orders"].find_one()
        pool = pool_of(client)
        with pool.lock:  # PyMongo 4.18.3 leaves a pool so, after greenlets were killed
            pool.requests += 4
        over = threading.Event()

        def find() -> None:
            while not over.is_set():
                with contextlib.suppress(PyMongoError):
                    client["shop"]["orders"].find_one()

        with callers(8, find):
            wait_for(lambda: the_pool(telemetry).lost)
            wait_for(lambda: logged(caplog, "PyMongo has lost them: restart the process"))
            for _ in range(20):  # also between two timeouts
                stats = telemetry.stats()
                assert "nobody holds them" in assess(stats).reasons[0]
                (finding,) = diagnose(telemetry).current
                assert finding.id == "lost_pool.lost"
            limits = HealthLimits(stalled_seconds=2.0)
            assert assess(stats, limits).status == "unhealthy"
            over.set()
        wait_for(lambda: the_pool(telemetry).waiting == 0)
        assert logged(caplog, "has recovered") == []
        with pool.lock:
            pool.requests -= 4
        client["shop"]["orders"].find_one()
        assert not the_pool(telemetry).lost


def test_overloaded_server_is_reported_by_health(server_uri: str) -> None:
    telemetry = PoolTelemetry("overload")
    limits = HealthLimits(stalled_seconds=0.5, settle_seconds=1.0)
    how = {"errorCode": 462, "errorLabels": ["SystemOverloadedError", "RetryableError"]}
    with Client(
        server_uri, event_listeners=telemetry.listeners, appName="refused", retryReads=False
    ) as client:
        orders = client["shop"]["orders"]
        orders.find_one()
        assert assess(telemetry).status == "healthy"
        with failing(server_uri, "refused", **how):

            def refused() -> str:
                with pytest.raises(OperationFailure):
                    orders.find_one()
                return assess(telemetry, limits).status

            assert refused() == "degraded"
            wait_for(lambda: refused() == "unhealthy")
            assert "has refused every command for" in assess(telemetry, limits).reasons[0]
        orders.find_one()
        assert assess(telemetry).status == "degraded"
        wait_for(lambda: assess(telemetry, limits).status == "healthy")


def test_timeouts_without_exhaustion_are_logged(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = PoolTelemetry()
    with (
        Proxy(port_of(server_uri)) as proxy,
        Client(proxy.uri, event_listeners=telemetry.listeners, maxPoolSize=50, **FAST) as client,
    ):
        client["shop"]["orders"].find_one()
        wait_for(lambda: monitors(client) == 2)
        proxy.hesitate(0.4)
        over = threading.Event()

        def find() -> None:
            while not over.is_set():
                with contextlib.suppress(PyMongoError), pymongo.timeout(0.25):
                    client["shop"]["orders"].find_one()

        with callers(8, find):
            wait_for(lambda: logged(caplog, "was not exhausted, and"))
            over.set()
    (line,) = logged(caplog, "was not exhausted, and")
    assert "of 50 in use, " in line


STOPPED = """
import json, sys, threading, time
from pymongo import MongoClient
from pool_telemetry import PoolTelemetry, TelemetryOptions, assess, standstill
from pool_telemetry.diagnosis.intervals import intervals

options = TelemetryOptions(name="stopped", long_checkout_seconds=5.0)
telemetry = PoolTelemetry(options=options)
client = MongoClient(
    sys.argv[1], event_listeners=telemetry.listeners, maxPoolSize=2, appname=sys.argv[2]
)
client.admin.command("ping")


def find():
    while True:
        client["shop"]["orders"].find_one()


for _ in range(4):
    threading.Thread(target=find, daemon=True).start()
for line in sys.stdin:
    stats = telemetry.stats()
    (pool,) = stats.pools
    print(json.dumps({
        "stood_still": stats.stood_still,
        "exhausted_time": pool.exhausted_time,
        "stalled_time": pool.stalled_time,
        "oldest_wait": pool.oldest_wait,
        "longest_checkout": pool.longest_checkout,
        "unserved_time": pool.unserved_time,
        "silent_time": pool.silent_time,
        "long_checkouts": pool.long_checkouts,
        "age": stats.at - stats.since,
        "beyond_5_s": sum(
            sum(duration.counts[duration.bounds.index(5.0) + 1:])
            for one in intervals([*telemetry.history(), stats], (pool.host, pool.port))[1:]
            for duration in one.commands.values()
        ),
        "health": assess(stats).status,
        "asleep_for": standstill._asleep[0] - time.monotonic() if standstill._asleep else 0.0,
    }), flush=True)
"""


def test_process_that_stood_still_leaves_the_time_out(server_uri: str, tmp_path: Any) -> None:
    log = (tmp_path / "log").open("w+")
    with (
        slow(server_uri, "stopped-finder", 30),
        subprocess.Popen(
            [sys.executable, "-c", STOPPED, server_uri, "stopped-finder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):

        def ask() -> dict[str, Any]:
            assert process.stdin
            assert process.stdout
            print("now", file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())  # type: ignore[no-any-return]

        try:
            before = ask()
            wait_for(lambda: ask()["exhausted_time"] > 0.5)
            # While its watching thread is awake, a standstill is not noticed.
            wait_for(lambda: ask()["asleep_for"] > 0.3)
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(6.0)  # that is what is measured
            os.kill(process.pid, signal.SIGCONT)
            after = ask()
            assert 4.0 < after["stood_still"] < after["age"]
            # The process can't have waited for longer than it ran, however slow the machine is.
            lived = after["age"] - after["stood_still"]
            ages = ("stalled_time", "longest_checkout", "unserved_time", "silent_time")
            for age in ("exhausted_time", *ages):
                assert after[age] <= lived, age
            assert after["health"] in ("healthy", "degraded")
            assert after["long_checkouts"] == 0
            wait_for(lambda: ask()["age"] > after["age"] + 2.0)
            last = ask()
            assert last["beyond_5_s"] == 0, last  # the two finds that were running
            assert last["stood_still"] == after["stood_still"]
            assert before["stood_still"] == 0.0
        finally:
            process.kill()
    log.seek(0)
    (line,) = (one for one in log.read().splitlines() if "stood still" in one)
    assert line.startswith("this process stood still for ")
    log.close()


def test_commands_of_a_standstill_are_not_slow() -> None:
    usual, long = (0, 0, 100, 0, 0, 0, 0, 0, 0, 0), (0, 0, 100, 0, 0, 0, 0, 0, 4, 0)

    def sample(at: float, counts: tuple[int, ...], seconds: float, still: float) -> ClientStats:
        duration = HistogramStats(OPERATION_BOUNDS, counts, seconds, 6.0)
        find = OperationStats(
            host="db",
            port=27017,
            namespace="shop",
            collection="orders",
            operation="find",
            error_type="",
            status_code="",
            duration=duration,
        )
        pool = a_pool(**EXHAUSTED, exhausted_time=at / 100.0, peak_waiting=4)
        return dataclasses.replace(
            a_client(pool), at=at, operations=(find,), stood_still=still, since=0.0
        )

    before = sample(100.0, usual, 1.0, 0.0)
    for still, is_slow in ((0.0, True), (6.0, False)):
        found = diagnose(sample(109.0, long, 25.0, still), [before])
        assert ("slow operations" in {one.verdict for one in found.findings}) is is_slow


def test_paused_pool_met_in_a_cleanup_is_no_cancelled_checkout(server_uri: str) -> None:
    """The application handles its own cancellation, and PyMongo fails meanwhile."""
    telemetry = PoolTelemetry()

    async def clean_up(pool: Any) -> None:
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            await pool.reset()  # as when another caller's connection has failed
            with contextlib.suppress(PyMongoError):
                async with pool.checkout():
                    pass

    async def play() -> None:
        async with AsyncMongoClient[dict[str, Any]](
            server_uri, event_listeners=telemetry.listeners, **FAST
        ) as client:
            await client.admin.command("ping")
            task = asyncio.create_task(clean_up(pool_of(client)))
            await asyncio.sleep(0)
            task.cancel()
            await task
            checkouts = the_pool(telemetry).checkouts
            assert (checkouts["cancelled"], checkouts["connection_error"]) == (0, 1)

    asyncio.run(play())
