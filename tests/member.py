"""One process of a service, which does what a test writes to it: an expression a line.

Its answers are JSON. `children()` lets it make processes of its own, by `multiprocessing`.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from prometheus_client import Counter
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from pool_telemetry import (
    MongoDBConnectionPool,
    PoolTelemetry,
    TelemetryOptions,
    endpoints,
    process_end,
    prometheus,
    registry,
    workers,
)
from pool_telemetry.health import HealthLimits
from pool_telemetry.log_lines import ProcessLog
from tests.support import prometheus_families, wait_for

_clients: list[MongoClient[Any]] = []
_children: list[tuple[Any, Connection]] = []


def use(uri: str, finds: int = 0, name: str = "shop", **options: Any) -> int:
    """Make a client, which runs an operation at least; return this process's id."""
    telemetry = PoolTelemetry(name, options=TelemetryOptions(**options))
    client: MongoClient[Any] = MongoClient(uri, event_listeners=telemetry.listeners)
    client.admin.command("ping")
    for _ in range(finds):
        client["shop"]["orders"].find_one()
    _clients.append(client)
    return os.getpid()


def find(count: int) -> None:
    for _ in range(count):
        _clients[-1]["shop"]["orders"].find_one()


def joined() -> int:
    """Wait until this process has a number, and return it."""
    wait_for(workers.is_member, "a number")
    number = workers.own_identity().worker
    assert number is not None
    return number


def scrape() -> dict[str, Any]:
    """Return the finds of each worker, its state, and its instance, as a scrape shows them."""
    prometheus.register()
    began = time.monotonic()
    text = prometheus.generate()[0].decode()
    found: dict[str, Any] = {"finds": {}, "up": {}, "instances": {}, "text": text}
    found["seconds"] = time.monotonic() - began
    for family in prometheus_families(text):
        for sample in family.samples:
            worker = sample.labels.get("worker", "")
            if sample.name == "db_client_operation_duration_seconds_count":
                if sample.labels["db_operation_name"] == "find":
                    before = found["finds"].get(worker, 0)
                    found["finds"][worker] = before + int(sample.value)
            elif sample.name == "mongodb_client_process_up":
                found["up"][worker] = int(sample.value)
                found["instances"][worker] = sample.labels["service_instance_id"]
    return found


def health() -> Any:
    return endpoints.health(None, HealthLimits())


def checks() -> int:
    """Return how many samples the watching thread has taken."""
    return sum(len(one.history()) for one in registry.active())


def log_something() -> None:
    ProcessLog("pool_telemetry.watch").warning("something")


def count_orders(number: int) -> None:
    """Count orders in a metric of the application."""
    Counter("orders", "Orders.").inc(number)


def try_to_use(uri: str) -> None:
    """Fail to use a client whose address has credentials."""
    with contextlib.suppress(PyMongoError):
        use(uri)


def children(method: str, count: int, uri: str) -> list[int]:
    """Make processes, each with a client of its own; return their numbers."""
    context: Any = multiprocessing.get_context(method)
    for _ in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve_parent, args=(theirs, uri))
        process.start()
        _children.append((process, ours))
    return [ours.recv() for _, ours in _children]


def end_children() -> None:
    for process, ours in _children:
        ours.send(None)
        process.join()


def jobs(count: int, uri: str) -> None:
    """Run jobs as RQ does: each in a forked process, which ends by `os._exit()`."""
    for number in range(count):
        if (pid := os.fork()) == 0:
            MongoDBConnectionPool.initialize(uri, minPoolSize=0)
            find_by_singleton(number)
            MongoDBConnectionPool.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0


def find_by_singleton(count: int) -> None:
    for _ in range(count):
        MongoDBConnectionPool.get_client()["shop"]["orders"].find_one()


def find_in_workers(method: str, counts: list[int], uri: str) -> None:
    """Find in the two workers of a pool of processes, which close no client at their end."""
    context: Any = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, context) as executor:
        list(executor.map(partial(use, uri), counts))
    with context.Pool(2) as pool:
        pool.map(partial(use, uri), counts)
        pool.close()
        pool.join()


def fill_disk() -> None:
    """Let all writes to files fail from now on."""
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def fork_idly() -> None:
    """Fork a process that uses no client and ends in good order."""
    if (pid := os.fork()) == 0:
        process_end.end()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def _serve_parent(control: Connection, uri: str) -> None:
    use(uri, 3)
    control.send(joined())
    control.recv()


class Member:
    """The process, as a test sees it."""

    def __init__(self, environ: dict[str, str]) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("POOL_TELEMETRY_")}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.member"],
            env=inherited | environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def __call__(self, expression: str) -> Any:
        """Return the value of an expression in the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{expression}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self.log()
        return json.loads(line)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def log(self) -> str:
        """End the process in good order, and return what it logged."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
        return self._process.communicate(timeout=60)[1]


@contextlib.contextmanager
def members(folder: Path | None = None, **environ: str) -> Iterator[Any]:
    """Yield a function that starts a process; all of them are ended in the end."""
    started = list[Member]()

    def start(**more: str) -> Member:
        named = {} if folder is None else {workers.VARIABLE: str(folder)}
        started.append(Member(named | environ | more))
        return started[-1]

    try:
        yield start
    finally:
        for one in started:
            one.kill()
            for pipe in (one._process.stdin, one._process.stdout, one._process.stderr):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def main() -> None:
    logging.basicConfig(format="%(name)s %(message)s")
    for line in sys.stdin:
        print(json.dumps(eval(line)), flush=True)  # a test's
    for client in _clients:
        client.close()


if __name__ == "__main__":
    main()
