"""Helpers of several tests: conditions to await, slow operations, the driver's own counts."""

import asyncio
import contextlib
import io
import logging
import random
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Sampler
from prometheus_client import parser as parser_of_text
from prometheus_client.openmetrics import parser as openmetrics
from pymongo import AsyncMongoClient, MongoClient
from pymongo.monitoring import CommandListener, ConnectionPoolListener

from pool_telemetry import PoolTelemetry, prometheus
from pool_telemetry.otel import collection, start_tracing, stop_tracing
from pool_telemetry.registry import Collected
from pool_telemetry.stats import PoolStats

PATIENCE_SECONDS = 60.0
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": ""}
"""Environment of a program that coverage does not slow down: other tests measure its lines."""


def wait_for(
    condition: Callable[[], Any],
    what: str = "",
    seconds: float = PATIENCE_SECONDS,
    pause: float = 0.005,
) -> Any:
    """Return the condition's value as soon as it is true; fail when it takes too long."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what or condition}"
        time.sleep(pause)
    return value


def rest_in_bulk(values: Iterable[Any], keep: int = 1) -> list[Any]:
    """Return parameters of which `make test` takes the first, and `make test-bulk` the others."""
    return [
        one if number < keep else pytest.param(one, marks=pytest.mark.bulk)
        for number, one in enumerate(values)
    ]


def chain(error: BaseException | None) -> str:
    """Return an error's texts and attributes, with those of all errors behind it."""
    if error is None:
        return ""
    behind = {id(one): one for one in (error.__cause__, error.__context__)}
    return f"{error!r} {vars(error)}" + "".join(map(chain, behind.values()))


@contextlib.contextmanager
def unmeasured() -> Iterator[None]:
    """Stop coverage in this thread, because it makes pure computing six times slower.

    Other tests measure the same lines.
    """
    tracing = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracing)


@contextlib.contextmanager
def traced_to(processor: SpanProcessor, sampler: Sampler | None = None) -> Iterator[TracerProvider]:
    """Tracing is on while the block runs, by a provider of its own."""
    provider = TracerProvider(sampler, shutdown_on_exit=False)
    provider.add_span_processor(processor)
    start_tracing(provider)
    try:
        yield provider
    finally:
        stop_tracing()
        provider.shutdown()


async def until(condition: Callable[[], Any]) -> None:
    """Wait on the event loop as `wait_for` does on a thread."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


def fastest(call: Callable[[], object]) -> float:
    """Return the seconds of the fastest of several calls: the machine is shared, and noisy."""
    times = []
    for _ in range(10):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return min(times)


def free_port() -> int:
    """Return a port on which nobody listens.

    It is below those that Linux gives to outgoing connections, so that none of these takes it
    before it is used.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def failing(uri: str, app_name: str, *commands: str, **how: Any) -> Iterator[None]:
    """Make the server fail these commands, or finds, of the clients with this appName."""
    control: MongoClient[dict[str, Any]] = MongoClient(uri, appName="tests-control")
    fail_point = {"failCommands": list(commands or ("find",)), "appName": app_name, **how}
    try:
        control.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=fail_point)
        yield
    finally:
        control.admin.command("configureFailPoint", "failCommand", mode="off")
        control.close()


def slow(
    uri: str, app_name: str, milliseconds: int, *commands: str
) -> contextlib.AbstractContextManager[None]:
    """Make the server take its time for these commands of the clients with this appName."""
    return failing(uri, app_name, *commands, blockConnection=True, blockTimeMS=milliseconds)


def pool_of(client: "MongoClient[Any] | AsyncMongoClient[Any]") -> Any:
    """Return PyMongo's own pool of a client's only server."""
    topology: Any = client._topology
    (server,) = topology._servers.values()
    return server.pool


@contextlib.contextmanager
def exhausted(client: MongoClient[Any]) -> Iterator[None]:
    """Hold every connection of a client: whatever callers wait, wait until the block ends."""
    pool = pool_of(client)
    with contextlib.ExitStack() as held:
        for _ in range(pool.max_pool_size):
            held.enter_context(pool.checkout())
        yield


@contextlib.asynccontextmanager
async def aexhausted(client: AsyncMongoClient[Any]) -> AsyncIterator[None]:
    """Hold every connection of an asynchronous client."""
    pool = pool_of(client)
    async with contextlib.AsyncExitStack() as held:
        for _ in range(pool.max_pool_size):
            await held.enter_async_context(pool.checkout())
        yield


class Gate(CommandListener):
    """Holds finds up in their callers' threads, with their connections, while it is shut."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()

    @contextlib.contextmanager
    def shut(self) -> Iterator[None]:
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    def started(self, event: Any) -> None:
        if event.command_name == "find":
            self._open.wait()

    def succeeded(self, event: Any) -> None: ...
    def failed(self, event: Any) -> None: ...


class Noop(ConnectionPoolListener):
    """Hears nothing, unless a subclass says what."""

    def connection_check_out_started(self, event: Any) -> None: ...
    def connection_check_out_failed(self, event: Any) -> None: ...
    def connection_checked_out(self, event: Any) -> None: ...
    def connection_checked_in(self, event: Any) -> None: ...
    def connection_created(self, event: Any) -> None: ...
    def connection_ready(self, event: Any) -> None: ...
    def connection_closed(self, event: Any) -> None: ...
    def pool_created(self, event: Any) -> None: ...
    def pool_ready(self, event: Any) -> None: ...
    def pool_cleared(self, event: Any) -> None: ...
    def pool_closed(self, event: Any) -> None: ...


class Started(Noop):
    """Counts what PyMongo says began; a counter of its own, next to ours."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def connection_check_out_started(self, event: Any) -> None:
        with self._lock:
            self.count += 1


def prometheus_families(text: str) -> list[Any]:
    """Parse an exposition, in whichever of the two formats it is."""
    parser: Any = openmetrics if text.endswith("# EOF\n") else parser_of_text
    return list(parser.text_string_to_metric_families(text))


@dataclass(frozen=True)
class Counts:
    """The five numbers on which the driver and we have to agree."""

    size: int
    in_use: int
    idle: int
    opening: int
    waiting: int


def hide_other_clients(telemetry: PoolTelemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the exporters see one client alone, whatever else lives or was closed in this process."""
    monkeypatch.setattr(prometheus, "clients_to_report", lambda _: [telemetry.stats()])
    monkeypatch.setattr(collection, "collect", lambda _: Collected(*2 * [[telemetry.stats()]]))


@contextlib.contextmanager
def captured_log() -> Iterator[io.StringIO]:
    """Yield all that this library logs meanwhile."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    log = logging.getLogger("pool_telemetry")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield text
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def logged(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    """Return our log messages with these words; other tests' pools may log at the same time."""
    ours = [one for one in caplog.records if one.name.startswith("pool_telemetry")]
    return [message for one in ours if words in (message := one.getMessage())]


def the_pool(telemetry: PoolTelemetry) -> PoolStats:
    """Return the stats of a client's only pool."""
    (pool,) = wait_for(lambda: telemetry.stats().open_pools)
    assert isinstance(pool, PoolStats)
    return pool


def ours(stats: PoolStats) -> Counts:
    """Return our counts."""
    return Counts(stats.size, stats.in_use, stats.idle, stats.opening, stats.waiting)


def drivers(client: "MongoClient[Any] | AsyncMongoClient[Any]") -> Counts:
    """Return PyMongo's own, from its private counters. At a quiet moment they are exact.

    Its operation_count would tell who waits, too, but before 4.19 a failed checkout leaves
    it too high for good; the queues of its conditions are always right.
    """
    pool = pool_of(client)
    idle, active, opening = len(pool.conns), pool.active_sockets, pool._pending
    return Counts(
        size=idle + active + opening,
        in_use=active,
        idle=idle,
        opening=opening,
        waiting=len(pool.size_cond._waiters) + len(pool._max_connecting_cond._waiters),
    )


def monitors(client: "MongoClient[Any] | AsyncMongoClient[Any]") -> int:
    """Return the connections that PyMongo has beside its only pool, to watch the server."""
    topology: Any = client._topology
    (server,) = topology._servers.values()
    watching = [server._monitor._pool, server._monitor._rtt_monitor._pool]
    return sum(len(pool.conns) + pool.active_sockets for pool in watching)
