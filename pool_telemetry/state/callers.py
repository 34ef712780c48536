"""The holders and waiters of a server's connections, by names, with what each holder does.

Readers call this. A holder's activity follows from the commands that it sent.
"""

from typing import Final, NamedTuple

from pool_telemetry.state.actor import names_of
from pool_telemetry.state.commands import CommandState
from pool_telemetry.state.connections import Checkout
from pool_telemetry.state.frames import in_an_operation
from pool_telemetry.state.pool_state import PoolState
from pool_telemetry.stats import (
    IDLE_SECONDS,
    Activity,
    CallerStats,
    Origin,
    TraceLink,
    bounded,
    pool_name,
)

READ_SECONDS: Final = 0.1
"""A cursor that has held a connection for so long is being read, not merely checked in."""
AWAIT_DATA_SECONDS: Final = 5.0
"""A getMore may wait so long for new data of a change stream or a capped collection, or so much
longer than the application allows: the server waits 1 s by default, and its answer takes a while.
"""

_CURSORS: Final = frozenset({"aggregate", "find", "getMore"})  # these may leave a cursor open


class _Use(NamedTuple):
    """The activity of a connection's holder."""

    doing: Activity
    operation: str
    collection: str
    link: TraceLink | None
    idle_seconds: float | None  # None: a command runs, or the holder's commands are not known
    may_await_data: bool = False  # the command may merely wait for new data


def waiters_of(state: PoolState, now: float) -> list[CallerStats]:
    """Return the callers that wait for a connection."""
    waiters = state.waiters()
    names = names_of(waiters)
    return [
        CallerStats(
            address=pool_name("", state.address),
            seconds=max(0.0, now - since),
            actor=names[actor],
            owner=origin.owner,
            doing="waiting",
            operation="",
            collection="",
            trace_id=_trace_id(_link_of(origin)),
        )
        for actor, (since, origin) in waiters.items()
    ]


def holders_of(
    state: PoolState, commands: CommandState, now: float
) -> tuple[dict[int, Checkout], dict[int, CallerStats]]:
    """Return the checkout of each connection, and the same in names, by connection id."""
    held, uses = _uses(state, commands, now)
    names = names_of(actor for actor, _, _ in held.values())
    found = {}
    for conn_id, use in uses.items():
        actor, since, origin = held[conn_id]
        found[conn_id] = CallerStats(
            address=pool_name("", state.address),
            seconds=max(0.0, now - since),
            actor=names[actor],
            owner=origin.owner,
            doing=use.doing,
            operation=use.operation,
            collection=use.collection,
            trace_id=_trace_id(use.link or _link_of(origin)),
            idle_seconds=use.idle_seconds,
        )
    return held, found


class Held(NamedTuple):
    """The purposes of the open checkouts of a pool.

    Attributes:
        idle: Idle seconds of the connections whose holder has run no command for IDLE_SECONDS.
        read: How many others are held by an open cursor that is being read.
        longest: The age of the longest checkout that does not await data; 0.0 without one.
    """

    idle: list[float]
    read: int
    longest: float


def held_for(state: PoolState, commands: CommandState, now: float) -> Held:
    """Return the purposes of the open checkouts of a pool."""
    idle, read, longest = list[float](), 0, 0.0
    held, uses = _uses(state, commands, now)
    for conn_id, use in uses.items():
        _, since, _ = held[conn_id]
        if use.doing != "awaiting data":
            longest = max(longest, now - since)
        if use.idle_seconds is not None and use.idle_seconds >= IDLE_SECONDS:
            idle.append(use.idle_seconds)
        elif now - since >= READ_SECONDS:
            read += use.may_await_data or use.doing.endswith("cursor")
    return Held(idle, read, longest)


def _uses(
    state: PoolState, commands: CommandState, now: float
) -> tuple[dict[int, Checkout], dict[int, _Use]]:
    """Return the checkout of each connection, and the activity of its holder."""
    held, superseded = state.holders()
    uses = {
        conn_id: _use(state, commands, checkout, superseded.get(conn_id), now)
        for conn_id, checkout in held.items()
    }
    # A holder that is still inside the operation whose command was answered has no open cursor: it
    # returns the connection in a moment.
    answered = {
        conn_id
        for conn_id, use in uses.items()
        if use.doing.endswith("cursor")
        and (use.idle_seconds or 0.0) < IDLE_SECONDS
        and conn_id not in superseded
    }
    inside = in_an_operation(held[conn_id][0] for conn_id in answered)
    for conn_id in answered:
        if held[conn_id][0] in inside:
            uses[conn_id] = uses[conn_id]._replace(doing="command", idle_seconds=None)
    return held, uses


def _use(
    state: PoolState,
    commands: CommandState,
    checkout: Checkout,
    superseded: float | None,
    now: float,
) -> _Use:
    actor, since, _ = checkout
    # Once the holder has checked out another connection, its commands run there, except getMore
    # of a cursor opened on this one.
    latest = commands.latest(actor) if superseded is None else commands.latest_get_more(actor)
    kept: Activity = "exhaust cursor" if state.has_heartbeats else "pinned cursor"
    if latest is None or latest.started_at < since:
        if superseded is not None:
            return _Use(kept if state.has_heartbeats else "", "", "", None, now - superseded)
        unknown = latest is None and commands.evicted
        return _Use("", "", "", None, None if unknown else max(0.0, now - since))
    operation, collection = bounded(latest.key[3]), bounded(latest.key[2])
    link = None if latest.trace is None else latest.trace.link()
    if latest.seconds is None:
        if operation != "getMore":
            return _Use("command", operation, collection, link, None)
        allowed = latest.await_milliseconds
        awaits = isinstance(allowed, int)  # an application can send a command with anything
        most = AWAIT_DATA_SECONDS + (allowed / 1e3 if awaits else 0.0)
        may_await = now - latest.started_at < most
        doing: Activity = "awaiting data" if may_await and awaits else "command"
        return _Use(doing, operation, collection, link, None, may_await)
    ended = max(latest.started_at + latest.seconds, superseded or 0.0)
    if latest.in_transaction:
        kept = "transaction"
    elif operation not in _CURSORS:
        kept = ""
    return _Use(kept, operation, collection, link, max(0.0, now - ended))


def _link_of(origin: Origin) -> TraceLink | None:
    return None if origin.find_link is None else origin.find_link()


def _trace_id(link: TraceLink | None) -> str | None:
    return None if link is None else f"{link[0]:032x}"
