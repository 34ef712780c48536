"""Each process tells its own truth: of its own connections, and of nobody else's."""

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from pool_telemetry import AsyncMongoDBConnectionPool, MongoDBConnectionPool, assess
from tests.prefork import OPERATIONS, OPTIONS, WORKERS

METHODS = {"os.fork", *multiprocessing.get_all_start_methods()}


@pytest.mark.parametrize("method", ["os.fork", "fork", "forkserver", "spawn"])
def test_every_worker_of_a_busy_server_reports_on_itself(server_uri: str, method: str) -> None:
    if method not in METHODS or (method == "os.fork" and not hasattr(os, "fork")):
        pytest.skip(f"this system has no {method}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.prefork", method, server_uri],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    everything = OPTIONS["maxPoolSize"]
    assert said["before"] == said["after"] == [everything, everything, 0, 0, 3]
    assert len(said["workers"]) == WORKERS
    own = method in ("forkserver", "spawn")  # which have made a client, and pinged by it
    for number, worker in enumerate(said["workers"]):
        assert worker["inherited"] == own
        assert worker["ours"] == worker["drivers"]
        assert worker["checkouts"] == OPERATIONS * (number + 1)
        assert (worker["finds"], worker["errors"]) == (worker["checkouts"], 0)
        assert worker["exported"] == worker["ours"][0] > 0


def child_of_singletons(uri: str, report: Any) -> None:
    """What a worker of a pre-fork server sees before and after its first operation."""
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
def test_a_worker_of_a_pre_fork_server_is_ready_and_then_healthy(server_uri: str) -> None:
    async def main() -> None:
        MongoDBConnectionPool.initialize(server_uri)
        await AsyncMongoDBConnectionPool.initialize(server_uri)
        fork = multiprocessing.get_context("fork")
        receive, send = fork.Pipe(duplex=False)
        child = fork.Process(target=in_a_thread, args=(child_of_singletons, server_uri, send))
        child.start()
        assert await asyncio.to_thread(receive.poll, 20), "the child said nothing"
        assert receive.recv() == ([("connected", "degraded"), ("connected", "healthy")], True)
        await asyncio.to_thread(child.join, 20)
        assert child.exitcode == 0
        await AsyncMongoDBConnectionPool.close()

    asyncio.run(main())


def in_a_thread(call: Any, *args: Any) -> None:
    """The fork happened on an event loop, which this thread does not have."""
    thread = threading.Thread(target=call, args=args)
    thread.start()
    thread.join()
