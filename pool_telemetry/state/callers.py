"""Who has a server's connections, and who waits for one: the state's callers, in names.

Called by readers only. What a holder does is read off the commands that he sent.
"""

from typing import Final, NamedTuple

from pool_telemetry.state.actor import names_of
from pool_telemetry.state.commands import CommandState
from pool_telemetry.state.connections import Checkout
from pool_telemetry.state.pool_state import PoolState
from pool_telemetry.stats import IDLE_SECONDS, Activity, CallerStats, TraceLink, pool_name

READ_SECONDS: Final = 0.1
"""Who holds a connection for so long by a cursor reads it, and does not merely hand it back."""
NEWS_SECONDS: Final = 5.0
"""For so long a getMore may merely wait for news: of a change stream, or a capped collection."""

_CURSORS: Final = frozenset({"aggregate", "find", "getMore"})  # what may leave one open


class _Use(NamedTuple):
    """What is known of a hold."""

    doing: Activity
    operation: str
    collection: str
    link: TraceLink | None
    idle_seconds: float | None  # None: a command runs, or it is not known
    news: bool = False  # the command may merely wait for news


def waiting(state: PoolState, now: float) -> list[CallerStats]:
    """Return who waits for a connection."""
    waiters = state.waiters()
    names = names_of(waiters)
    return [
        CallerStats(
            address=pool_name("", state.address),
            seconds=max(0.0, now - since),
            actor=names[actor],
            owner=note.owner,
            doing="waiting",
            operation="",
            collection="",
            trace_id=_trace_id(note.link),
        )
        for actor, (since, note) in waiters.items()
    ]


def holding(
    state: PoolState, commands: CommandState, now: float
) -> tuple[dict[int, Checkout], dict[int, CallerStats]]:
    """Return who has which connection: as it stands there, and in names."""
    held, superseded = state.holders()
    names = names_of(actor for actor, _, _ in held.values())
    found = {}
    for conn_id, holder in held.items():
        actor, since, note = holder
        use = _use(state, commands, holder, superseded.get(conn_id), now)
        found[conn_id] = CallerStats(
            address=pool_name("", state.address),
            seconds=max(0.0, now - since),
            actor=names[actor],
            owner=note.owner,
            doing=use.doing,
            operation=use.operation,
            collection=use.collection,
            trace_id=_trace_id(use.link or note.link),
            idle_seconds=use.idle_seconds,
        )
    return held, found


def idle_and_read(state: PoolState, commands: CommandState, now: float) -> tuple[list[float], int]:
    """Return for how long connections have run no command, where that is for too long.

    And how many others have cursors that somebody reads.
    """
    idle, read = list[float](), 0
    held, superseded = state.holders()
    for conn_id, holder in held.items():
        use = _use(state, commands, holder, superseded.get(conn_id), now)
        if use.idle_seconds is not None and use.idle_seconds >= IDLE_SECONDS:
            idle.append(use.idle_seconds)
        elif now - holder[1] >= READ_SECONDS:
            read += use.news or use.doing.endswith("cursor")
    return idle, read


def _use(
    state: PoolState,
    commands: CommandState,
    holder: Checkout,
    superseded: float | None,
    now: float,
) -> _Use:
    actor, since, _ = holder
    # What he does since he took another he does over that one, but for a cursor's next batches.
    latest = commands.latest(actor) if superseded is None else commands.latest_get_more(actor)
    kept: Activity = "exhaust cursor" if state.has_heartbeats else "pinned cursor"
    if latest is None or latest.since < since:
        if superseded is not None:
            return _Use(kept if state.has_heartbeats else "", "", "", None, now - superseded)
        unknown = latest is None and commands.forgot
        return _Use("", "", "", None, None if unknown else max(0.0, now - since))
    operation, collection = latest.series[3], latest.series[2]
    link = None if latest.trace is None else latest.trace.link()
    if latest.seconds is None:
        news = operation == "getMore" and now - latest.since < NEWS_SECONDS
        return _Use("command", operation, collection, link, None, news)
    ended = max(latest.since + latest.seconds, superseded or 0.0)
    if latest.in_transaction:
        kept = "transaction"
    elif operation not in _CURSORS:
        kept = ""
    return _Use(kept, operation, collection, link, max(0.0, now - ended))


def _trace_id(link: TraceLink | None) -> str | None:
    return None if link is None else f"{link[0]:032x}"
