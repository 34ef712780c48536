"""Measure the events of one `find_one`: real PyMongo events, delivered in a loop."""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from pymongo.monitoring import (
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
    ConnectionCheckedInEvent,
    ConnectionCheckedOutEvent,
    ConnectionCheckOutStartedEvent,
    ConnectionCreatedEvent,
    ConnectionPoolListener,
    ConnectionReadyEvent,
    PoolCreatedEvent,
    PoolReadyEvent,
)

from pool_telemetry import PoolTelemetry, TelemetryOptions, owner
from tests.benchmarks import listeners
from tests.benchmarks.measure import Costs, Effort, Goal, Turn, over, show, show_heading, take_turns

ADDRESS = ("localhost", 27017)
LOOPS = 5_000

FIVE_EVENTS_MICROSECONDS = 6.0
POOL_EVENTS_MICROSECONDS = 4.0


def find(kind: type[Any], among: list[Any]) -> Any:
    """Return the listener of this kind."""
    return next(listener for listener in among if isinstance(listener, kind))


def open_pool(pool: ConnectionPoolListener) -> None:
    """Deliver a pool with one connection, once per PoolTelemetry as from a client."""
    pool.pool_created(PoolCreatedEvent(ADDRESS, {}))
    pool.pool_ready(PoolReadyEvent(ADDRESS))
    pool.connection_created(ConnectionCreatedEvent(ADDRESS, 1))
    pool.connection_ready(ConnectionReadyEvent(ADDRESS, 1, 0.001))


def five_events(given: list[Any], loops: int = LOOPS) -> Turn:
    """Return a turn that delivers the two command events amid the pool's three."""
    pool, command = find(ConnectionPoolListener, given), find(CommandListener, given)
    body = {"find": "messages", "filter": {"_id": 1}, "limit": 1, "$db": "chat"}
    start, out, back = _pool_events()
    begun = CommandStartedEvent(body, "chat", 1, ADDRESS, 1)
    done = CommandSucceededEvent(
        timedelta(microseconds=150), {"ok": 1}, "find", 1, ADDRESS, 1, database_name="chat"
    )
    open_pool(pool)

    def turn() -> int:
        for _ in range(loops):
            pool.connection_check_out_started(start)
            pool.connection_checked_out(out)
            command.started(begun)
            command.succeeded(done)
            pool.connection_checked_in(back)
        return loops

    return turn


def pool_events(given: list[Any], loops: int = LOOPS) -> Turn:
    """Return a turn that delivers the pool's three events alone."""
    pool = find(ConnectionPoolListener, given)
    start, out, back = _pool_events()
    open_pool(pool)

    def turn() -> int:
        for _ in range(loops):
            pool.connection_check_out_started(start)
            pool.connection_checked_out(out)
            pool.connection_checked_in(back)
        return loops

    return turn


def _pool_events() -> tuple[Any, Any, Any]:
    return (
        ConnectionCheckOutStartedEvent(ADDRESS),
        ConnectionCheckedOutEvent(ADDRESS, 1, 0.00005),
        ConnectionCheckedInEvent(ADDRESS, 1),
    )


def run_events(effort: Effort) -> list[Goal]:
    """Measure (a), (b), (g) and (h); the watching thread runs beside all of them."""
    rounds = effort.event_rounds
    return [
        _compare("a", "five events, on a thread", five_events, rounds),
        _compare("g", "five events, in an asyncio task", five_events, rounds, in_task=True),
        _compare("h", "five events, for an owner", five_events, rounds, owned=True),
        _compare("b", "three events, operations=False", pool_events, rounds, operations=False),
        Goal("b", "CommandListeners, operations=False", 0, _command_listeners(), "", 0),
    ]


def _compare(
    section: str,
    what: str,
    deliver: Callable[[list[Any]], Turn],
    rounds: int,
    *,
    in_task: bool = False,
    operations: bool = True,
    owned: bool = False,
) -> Goal:
    limit = FIVE_EVENTS_MICROSECONDS if operations else POOL_EVENTS_MICROSECONDS
    show_heading(
        section,
        f"The events of a find_one, delivered in a loop: CPU of the {what}",
        f"ours at most {limit:g} µs over no-op listeners",
    )
    telemetry = PoolTelemetry(options=TelemetryOptions(operations=operations))
    variants = {"no-op": deliver(listeners.noop()), "ours": deliver(list(telemetry.listeners))}

    async def take_turns_in_a_task() -> Costs:
        return take_turns(variants, rounds)

    with owner("benchmark") if owned else contextlib.nullcontext():
        costs = asyncio.run(take_turns_in_a_task()) if in_task else take_turns(variants, rounds)
    telemetry.close()
    show(costs, "no-op")
    return Goal(section, f"{what}: over no-op", limit, over(costs, "ours", "no-op"))


def _command_listeners() -> int:
    telemetry = PoolTelemetry(options=TelemetryOptions(operations=False))
    found = [one for one in telemetry.listeners if isinstance(one, CommandListener)]
    telemetry.close()
    return len(found)
