"""What the five events of one `find_one` cost: real PyMongo events, delivered in a loop.

Variants run in turn within one process; each cell is the minimum and the median over the rounds.
"""

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from pymongo import monitoring
from pymongo.monitoring import (
    CommandStartedEvent,
    CommandSucceededEvent,
    ConnectionCheckedInEvent,
    ConnectionCheckedOutEvent,
    ConnectionCheckOutStartedEvent,
    ConnectionCreatedEvent,
    ConnectionReadyEvent,
    PoolCreatedEvent,
    PoolReadyEvent,
)
import datetime

from pool_telemetry import PoolTelemetry, TelemetryOptions

ADDRESS = ("localhost", 27017)
LOOPS = 20_000


def noop_listeners() -> list[Any]:
    """Listeners that define every method and do nothing."""

    def silent(base: type[Any]) -> Any:
        names = [n for n in vars(base) if not n.startswith("_")]
        return type("Noop", (base,), {n: lambda self, event: None for n in names})()

    return [silent(monitoring.ConnectionPoolListener), silent(monitoring.CommandListener)]


def deliver(listeners: list[Any], *, commands: bool) -> float:
    """Return µs for one operation's events."""
    pool = next(one for one in listeners if isinstance(one, monitoring.ConnectionPoolListener))
    for event, method in (
        (PoolCreatedEvent(ADDRESS, {}), pool.pool_created),
        (PoolReadyEvent(ADDRESS), pool.pool_ready),
        (ConnectionCreatedEvent(ADDRESS, 1), pool.connection_created),
        (ConnectionReadyEvent(ADDRESS, 1, 0.001), pool.connection_ready),
    ):
        method(event)
    started = ConnectionCheckOutStartedEvent(ADDRESS)
    out = ConnectionCheckedOutEvent(ADDRESS, 1, 0.00005)
    back = ConnectionCheckedInEvent(ADDRESS, 1)
    if commands:
        command = next(one for one in listeners if isinstance(one, monitoring.CommandListener))
        body = {"find": "messages", "filter": {"_id": 1}, "$db": "chat"}
        begins = CommandStartedEvent(body, "chat", 1, ADDRESS, 1)
        ends = CommandSucceededEvent(
            datetime.timedelta(microseconds=150),
            {"ok": 1},
            "find",
            1,
            ADDRESS,
            1,
            database_name="chat",
        )
        before = time.perf_counter()
        for _ in range(LOOPS):
            pool.connection_check_out_started(started)
            pool.connection_checked_out(out)
            command.started(begins)
            command.succeeded(ends)
            pool.connection_checked_in(back)
    else:
        before = time.perf_counter()
        for _ in range(LOOPS):
            pool.connection_check_out_started(started)
            pool.connection_checked_out(out)
            pool.connection_checked_in(back)
    return (time.perf_counter() - before) / LOOPS * 1e6


def main(rounds: int = 15) -> None:
    for commands in (True, False):
        ours = PoolTelemetry(options=TelemetryOptions(operations=commands)).listeners
        noop = noop_listeners()
        costs: dict[str, list[float]] = {"no-op": [], "ours": []}
        for _ in range(rounds):
            costs["no-op"].append(deliver(noop, commands=commands))
            costs["ours"].append(deliver(list(ours), commands=commands))
        label = "pool and command events (5)" if commands else "pool events alone (3)"
        print(label)
        for name, values in costs.items():
            print(
                f"  {name:6} min {min(values):6.2f} µs  median {statistics.median(values):6.2f} µs"
            )
        extra = [b - a for a, b in zip(costs["no-op"], costs["ours"], strict=True)]
        print(
            f"  dearer min {min(costs['ours']) - min(costs['no-op']):6.2f} µs  median {statistics.median(extra):6.2f} µs"
        )


if __name__ == "__main__":
    main()
