"""Each process reports its own connections only, also after a fork in Python or in C."""

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
from pymongo import CursorType, MongoClient

from pool_telemetry import (
    AsyncMongoDBConnectionPool,
    MongoDBConnectionPool,
    PoolTelemetry,
    assess,
)
from tests.forked_in_c import CALLERS, FINDS, SIZE
from tests.prefork import OPERATIONS, OPTIONS, WORKERS
from tests.support import PATIENCE_SECONDS, UNMEASURED, Counts, drivers, ours, the_pool

METHODS = {"os.fork", *multiprocessing.get_all_start_methods()}


@pytest.mark.parametrize("method", ["os.fork", "fork", "forkserver", "spawn"])
def test_every_worker_of_a_busy_server_reports_its_own_numbers(
    server_uri: str, method: str
) -> None:
    if method not in METHODS or (method == "os.fork" and not hasattr(os, "fork")):
        pytest.skip(f"this system has no {method}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.prefork", method, server_uri],
        env={**os.environ, **(UNMEASURED if method in ("forkserver", "spawn") else {})},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    everything = OPTIONS["maxPoolSize"]
    assert said["before"] == said["after"] == [everything, everything, 0, 0, 3]
    assert len(said["workers"]) == WORKERS
    own = method in ("forkserver", "spawn")  # these workers make a client and ping with it
    for number, worker in enumerate(said["workers"]):
        assert worker["inherited"] == own
        assert worker["ours"] == worker["drivers"]
        assert worker["checkouts"] == OPERATIONS * (number + 1)
        assert (worker["finds"], worker["errors"]) == (worker["checkouts"], 0)
        assert worker["exported"] == worker["ours"][0] > 0


def child_of_singletons(uri: str, report: Any) -> None:
    """Send status and health of a pre-fork worker before and after its first operation."""
    health = []
    for used in (False, True):
        if used:
            MongoDBConnectionPool.get_client()["t"]["t"].find_one()
        telemetry = MongoDBConnectionPool.get_telemetry()
        assert telemetry is not None
        status = MongoDBConnectionPool.get_pool_stats()["status"]
        health.append((status, assess(telemetry.stats()).status))

    async def own() -> bool:
        await AsyncMongoDBConnectionPool.initialize(uri)
        up = AsyncMongoDBConnectionPool.get_pool_stats()["status"] == "connected"
        await AsyncMongoDBConnectionPool.close()
        return up

    report.send((health, asyncio.run(own())))
    MongoDBConnectionPool.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*fork.*:UserWarning")
def test_worker_of_a_pre_fork_server_is_connected_and_then_healthy(server_uri: str) -> None:
    async def main() -> None:
        MongoDBConnectionPool.initialize(server_uri)
        await AsyncMongoDBConnectionPool.initialize(server_uri)
        fork = multiprocessing.get_context("fork")
        receive, send = fork.Pipe(duplex=False)
        child = fork.Process(target=in_a_thread, args=(child_of_singletons, server_uri, send))
        child.start()
        assert await asyncio.to_thread(receive.poll, PATIENCE_SECONDS), "the child said nothing"
        assert receive.recv() == ([("connected", "degraded"), ("connected", "healthy")], True)
        await asyncio.to_thread(child.join, PATIENCE_SECONDS)
        assert child.exitcode == 0
        await AsyncMongoDBConnectionPool.close()

    asyncio.run(main())


def forked_in_c(scenario: str, uri: str) -> Any:
    """Return the output of a process that was forked in C, which Python does not notice."""
    if sys.platform != "linux":
        pytest.skip("the scenario reads threads from /proc")
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("without the GIL a fork in C may interrupt another thread anywhere")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.forked_in_c", scenario, uri],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_worker_forked_in_c_reports_its_own_numbers(server_uri: str) -> None:
    (unused, used, (unused_child, child, known)), parent = forked_in_c("own_numbers", server_uri)
    for before in (unused, unused_child):
        assert (before["health"], before["status"], before["pools"]) == ("degraded", "connected", 0)
        assert (before["watched"], before["errors"], before["exported"]) == (0, 0, {})
    for after, finds in ((used, 1), (child, 2)):
        assert (after["health"], after["status"], after["phases"]) == (
            "healthy",
            "connected",
            ["ready"],
        )
        assert (after["checkouts"], after["finds"]) == (finds, finds)
        assert list(after["exported"].values()) == [finds]
        assert (after["closed"], after["cleared"], after["errors"]) == (0, 0, 0)
        assert (after["watched"], after["max_sizes"]) == (1, [SIZE])
    assert known  # of the child that Python forked
    assert (parent["finds"], parent["errors"], parent["watched"]) == (FINDS, 1, 1)


def test_queue_in_a_worker_forked_in_c_is_counted_without_reading_dead_frames(
    server_uri: str,
) -> None:
    said = forked_in_c("queue", server_uri)
    waiting = CALLERS - SIZE
    assert said["queue"] == [SIZE, waiting, True, SIZE, waiting]
    assert said["after"][:2] == [0, 0]
    ok, cancelled = said["after"][2]["ok"], said["after"][2]["cancelled"]
    assert (ok, cancelled) == (CALLERS, 0)
    assert said["agreed"]
    assert said["stacks"]
    assert said["looked"] == []


def test_threads_that_notice_a_fork_at_once_lose_no_count(server_uri: str) -> None:
    said = forked_in_c("all_at_once", server_uri)
    assert said["checkouts"] == said["finds"] == CALLERS * FINDS


def test_pools_that_pymongo_clears_after_a_fork_are_no_failure(server_uri: str) -> None:
    assert forked_in_c("clears", server_uri) == [[0, ["ready"]], [1, ["paused"]]]


def test_lock_held_by_a_dead_thread_blocks_no_caller(server_uri: str) -> None:
    first, again, collects = forked_in_c("locks", server_uri)
    assert (first["checkouts"], again["phases"], collects) == (1, ["ready"], True)


def test_worker_forked_in_c_closes_a_client_that_it_never_used(server_uri: str) -> None:
    ((phase, size, _),) = forked_in_c("unused", server_uri)
    assert (phase, size) == ("closed", 0)


def test_worker_forked_in_c_makes_its_own_asynchronous_client(server_uri: str) -> None:
    status, checkouts = forked_in_c("asynchronous", server_uri)
    assert status == "connected"
    assert checkouts > 0


def test_process_id_reveals_a_fork_if_memory_can_not(server_uri: str) -> None:
    assert forked_in_c("by_number", server_uri) == [True, [False, True], [False, True]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*fork.*:UserWarning")
def test_worker_that_closes_an_inherited_exhaust_cursor_keeps_its_own_connection(
    server_uri: str,
) -> None:
    telemetry = PoolTelemetry("inherited")
    client: MongoClient[Any] = MongoClient(server_uri, event_listeners=telemetry.listeners)
    collection = client["fork"]["inherited"]
    collection.drop()
    collection.insert_many({} for _ in range(10))
    cursor = collection.find(cursor_type=CursorType.EXHAUST, batch_size=2)
    next(cursor)
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)

    def worker() -> None:
        collection.find_one()
        cursor.close()
        before = drivers(client), ours(the_pool(telemetry))
        collection.find_one()
        pool = the_pool(telemetry)
        send.send((before, (drivers(client), ours(pool)), pool.created, sum(pool.closed.values())))

    child = fork.Process(target=worker)
    child.start()
    assert receive.poll(PATIENCE_SECONDS), "the child said nothing"
    before, after, created, closed = receive.recv()
    child.join(PATIENCE_SECONDS)
    own = Counts(size=1, in_use=0, idle=1, opening=0, waiting=0)
    assert (before, after, created, closed) == ((own, own), (own, own), 1, 0)
    assert ours(the_pool(telemetry)) == drivers(client)
    cursor.close()
    assert ours(the_pool(telemetry)) == drivers(client)
    client.close()


def in_a_thread(call: Any, *args: Any) -> None:
    """Call in a new thread, because the forked thread still has the parent's event loop."""
    thread = threading.Thread(target=call, args=args)
    thread.start()
    thread.join()
