"""A pre-fork server in small: a busy master, and workers that each report on themselves.

`python -m tests.prefork METHOD URI` prints what every process said of its own pool, as JSON. METHOD
is os.fork, or fork, forkserver or spawn of multiprocessing.
"""

import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

from prometheus_client import CollectorRegistry

from pool_telemetry import MongoDBConnectionPool, PoolTelemetry, prometheus
from tests.support import PATIENCE_SECONDS, drivers, ours, the_pool, wait_for

WORKERS = 3
OPERATIONS = 40
OPTIONS: dict[str, Any] = {
    "maxPoolSize": 4,
    "minPoolSize": 0,
    "retryReads": False,
    "waitQueueTimeoutMS": 120_000,  # the queue has to outlast every worker's start
}


def main() -> None:
    method, uri = sys.argv[1:]
    client = MongoDBConnectionPool.initialize(uri, **OPTIONS)
    (server,) = client._topology._servers.values()
    find(2)
    broken: Any = None
    telemetry().listeners[0].pool_created(broken)
    queue = [threading.Thread(target=find, args=(1,)) for _ in range(3)]
    held = [server.pool.checkout() for _ in range(OPTIONS["maxPoolSize"])]
    for one in held:
        one.__enter__()
    for thread in queue:
        thread.start()
    wait_for(lambda: the_pool(telemetry()).waiting == len(queue))
    before = astuple(ours(the_pool(telemetry())))
    reports = [run(method, number, uri) for number in range(WORKERS)]
    after = astuple(ours(the_pool(telemetry())))
    for one in held:
        one.__exit__(None, None, None)
    for thread in queue:
        thread.join()
    print(json.dumps({"before": before, "after": after, "workers": reports}))
    MongoDBConnectionPool.close()


def telemetry() -> PoolTelemetry:
    found = MongoDBConnectionPool.get_telemetry()
    assert found is not None
    return found


def find(times: int) -> None:
    for _ in range(times):
        MongoDBConnectionPool.get_client()["fork"]["t"].find_one()


def run(method: str, number: int, uri: str) -> Any:
    """Let a worker work, and return what it says."""
    if method == "os.fork":
        return in_child(lambda: work(number))
    context: Any = multiprocessing.get_context(method)
    receive, send = context.Pipe(duplex=False)
    inherits = method == "fork"
    worker = context.Process(target=report, args=(number, None if inherits else uri, send))
    worker.start()
    assert receive.poll(PATIENCE_SECONDS), "the worker said nothing"
    said = receive.recv()
    worker.join()
    return said


def in_child(call: Callable[[], Any], fork: Callable[[], int] | None = None) -> Any:
    """Return what a call returns in a child; None if the child died."""
    readable, writable = os.pipe()
    pid = (fork or os.fork)()
    if pid == 0:
        try:
            os.write(writable, json.dumps(call()).encode())
        finally:
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as said:
        text = said.read()
    os.waitpid(pid, 0)
    return json.loads(text) if text else None


def report(number: int, uri: str | None, to: Any) -> None:
    if uri is not None:  # a process that began anew
        MongoDBConnectionPool.initialize(uri, **OPTIONS)
    to.send(work(number))
    MongoDBConnectionPool.close()


def work(number: int) -> dict[str, Any]:
    inherited = sum(pool.size + pool.waiting for pool in telemetry().stats().pools)
    before = sum(pool.checkouts["ok"] for pool in telemetry().stats().pools)
    threads = [threading.Thread(target=find, args=(OPERATIONS,)) for _ in range(number + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client = MongoDBConnectionPool.get_client()
    pool = wait_for(lambda: the_pool(telemetry()))
    registry = CollectorRegistry()
    prometheus.register(registry)
    exported = sum(
        sample.value
        for family in registry.collect()
        if family.name == "db_client_connection_count"
        for sample in family.samples
    )
    return {
        "inherited": inherited,
        "ours": astuple(ours(pool)),
        "drivers": astuple(drivers(client)),
        "checkouts": pool.checkouts["ok"] - before,
        "finds": sum(
            one.duration.count for one in telemetry().stats().operations if one.operation == "find"
        ),
        "errors": telemetry().stats().telemetry_errors,
        "exported": exported,
    }


if __name__ == "__main__":
    main()
