"""Measure reading: while callers wait for an exhausted pool, and with many series."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from pymongo.monitoring import CommandListener, CommandStartedEvent, CommandSucceededEvent

from pool_telemetry import PoolTelemetry, prometheus
from pool_telemetry.state.pool_state import GRACE_SECONDS
from tests.benchmarks.events import find
from tests.benchmarks.measure import Costs, Effort, Goal, Turn, show, show_heading, take_turns
from tests.benchmarks.traffic import Client, connected, pool_of
from tests.support import wait_for

CONNECTIONS = 100
SERIES = 500
READS = 5

STATS_MILLISECONDS = 1.0
FULL_STATS_MILLISECONDS = 2.0
SCRAPE_MILLISECONDS = 5.0
FULL_SCRAPE_MILLISECONDS = 20.0

_BUSY = f"{CONNECTIONS} used, {CONNECTIONS} waiting"
_FULL = f"{_BUSY}, {SERIES} series"


def run_reading(effort: Effort, uri: str) -> list[Goal]:
    """Measure (f)."""
    show_heading(
        "f",
        "One read of one client's pool: time until it answers",
        f"at best stats() {STATS_MILLISECONDS:g} ms, a scrape {SCRAPE_MILLISECONDS:g} ms; with "
        f"{SERIES} series {FULL_STATS_MILLISECONDS:g} and {FULL_SCRAPE_MILLISECONDS:g} ms",
    )
    telemetry = PoolTelemetry()
    registry = CollectorRegistry()
    prometheus.register(registry)
    reads: dict[str, Callable[[], object]] = {
        "stats()": telemetry.stats,
        "prometheus_client's text": lambda: generate_latest(registry),
        "scrape": lambda: prometheus.generate("", registry),
    }
    ours = list(telemetry.listeners)
    costs: Costs = {}

    def measure(condition: str) -> None:
        variants = {f"{name}, {condition}": _turn(read) for name, read in reads.items()}
        costs.update(take_turns(variants, effort.read_rounds, clock=time.perf_counter))

    with connected(uri, ours, maxPoolSize=CONNECTIONS) as client:
        measure("quiet pool")
        with _exhausted(client, telemetry):
            measure(_BUSY)
            fill(find(CommandListener, ours), client.address)
            measure(_FULL)
        kibibytes = len(prometheus.generate("", registry)[0]) / 1024
    prometheus.unregister(registry)
    telemetry.close()
    show(costs)
    print(f"    a scrape with {SERIES} series has {kibibytes:,.0f} KiB")
    return [
        Goal("f", name, limit, min(costs[name]) / 1000, "ms")
        for name, limit in (
            (f"stats(), {_BUSY}", STATS_MILLISECONDS),
            (f"stats(), {_FULL}", FULL_STATS_MILLISECONDS),
            (f"scrape, {_BUSY}", SCRAPE_MILLISECONDS),
            (f"scrape, {_FULL}", FULL_SCRAPE_MILLISECONDS),
        )
    ]


def _turn(read: Callable[[], object]) -> Turn:
    def turn() -> int:
        for _ in range(READS):
            read()
        return READS

    return turn


@contextlib.contextmanager
def _exhausted(client: Client, telemetry: PoolTelemetry) -> Iterator[None]:
    """Hold all connections, with as many threads in the queue behind them."""
    pool = pool_of(client)

    def wait_in_queue() -> None:
        with pool.checkout():
            pass

    waiters = [threading.Thread(target=wait_in_queue) for _ in range(CONNECTIONS)]
    with contextlib.ExitStack() as held:
        for _ in range(CONNECTIONS):
            held.enter_context(pool.checkout())
        for thread in waiters:
            thread.start()
        wait_for(lambda: _waiting(telemetry) == CONNECTIONS, "the queue")
        time.sleep(2 * GRACE_SECONDS)  # a younger wait is not looked at, and costs less
        yield
    for thread in waiters:
        thread.join()


def _waiting(telemetry: PoolTelemetry) -> int:
    return sum(pool.waiting for pool in telemetry.stats().pools)


def fill(command: CommandListener, address: Any) -> None:
    """Deliver commands on as many collections as there may be series."""
    for number in range(SERIES):
        body = {"find": f"messages-{number}", "$db": "chat"}
        took = timedelta(microseconds=150)
        command.started(CommandStartedEvent(body, "chat", number, address, number))
        command.succeeded(CommandSucceededEvent(took, {"ok": 1.0}, "find", number, address, number))
