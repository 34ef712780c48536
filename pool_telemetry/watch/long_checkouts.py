"""Reports the long checkouts of one pool: each once, with its holder's stack, and again at its end.

The watching thread calls `check()` twice a second. Holders at the same place share a log line. A
getMore that waits for news is not long before its cursor's `max_await_time_ms` has passed.
"""

import time
from typing import Final

from pool_telemetry.log_lines import ProcessLog
from pool_telemetry.standstill import later
from pool_telemetry.state.connections import Checkout
from pool_telemetry.state.frames import stack_of
from pool_telemetry.state.pool_state import PoolState
from pool_telemetry.stats import CallerStats, PoolStats, pool_name
from pool_telemetry.watch.watched import TOP_HOLDERS, Watched

MAX_STACKS: Final = 100
"""Stacks that one check reads: each takes about 0.1 ms, and thousands may be in use."""

_log: Final = ProcessLog("pool_telemetry.watch")


class LongCheckouts:
    """The checkouts of one pool that were reported and are still open."""

    def __init__(self) -> None:
        # By connection id: the checkout, and its holder's name.
        self._open: dict[int, tuple[Checkout, str]] = {}

    def check(self, watched: Watched, state: PoolState, stats: PoolStats) -> None:
        """Report the checkouts that have become long, and the reported ones that have ended."""
        limit = watched.options.long_checkout_seconds
        if not limit or (stats.longest_checkout < limit and not self._open):
            return
        held, holders = watched.holders_by_connection(state)
        pool = pool_name(watched.name, state.address)
        self._log_ended(pool, held, watched.now(), closed=stats.phase != "ready")
        new = [
            i
            for i, one in holders.items()
            if one.seconds >= limit and i not in self._open and one.doing != "awaiting data"
        ]
        for conn_id in new:
            self._open[conn_id] = held[conn_id], holders[conn_id].label
            state.count_long_checkout()
        if not new:
            return
        new.sort(key=lambda i: holders[i].seconds, reverse=True)
        waiters, superseded = state.waiters(), state.holders()[1]
        at_place: dict[tuple[bool, tuple[str, ...]], list[CallerStats]] = {}
        for conn_id in new[:MAX_STACKS]:
            actor = held[conn_id][0]
            is_elsewhere = actor in waiters or conn_id in superseded
            place = (is_elsewhere, tuple(stack_of(actor)))
            at_place.setdefault(place, []).append(holders[conn_id])
        named = list(at_place.items())[:TOP_HOLDERS]
        for (is_elsewhere, stack), callers in named:
            _log_long(pool, callers, stack, is_elsewhere=is_elsewhere)
        if others := len(new) - sum(len(callers) for _, callers in named):
            _log.warning(
                "%d more connections of pool %r have been held for %g s or more",
                others,
                pool,
                limit,
            )

    def leave_out(self, seconds: float) -> None:
        """Leave out of every age some seconds for which this process stood still until now."""
        for conn_id, ((actor, since, origin), holder) in self._open.items():
            self._open[conn_id] = (actor, later(since, seconds, time.monotonic()), origin), holder

    def _log_ended(self, pool: str, held: dict[int, Checkout], now: float, *, closed: bool) -> None:
        ended = [(i, *one) for i, one in self._open.items() if held.get(i) != one[0]]
        how = "closed" if closed else "returned"
        for number, (conn_id, checkout, holder) in enumerate(ended):
            del self._open[conn_id]
            if number < TOP_HOLDERS:
                _log.warning(
                    "the connection of pool %r that %s held was %s after %.2f s",
                    pool,
                    holder,
                    how,
                    now - checkout[1],
                )
        if (others := len(ended) - TOP_HOLDERS) > 0:
            _log.warning("%d more long-held connections of pool %r were %s", others, pool, how)


def _log_long(
    pool: str, callers: list[CallerStats], stack: tuple[str, ...], *, is_elsewhere: bool
) -> None:
    _log.warning(
        "%s of pool %r %s held by %s; now%s at\n  %s",
        "a connection" if len(callers) == 1 else f"{len(callers)} connections",
        pool,
        "is" if len(callers) == 1 else "are",
        _describe(callers),
        ", with another connection in use or waited for," if is_elsewhere else "",
        "\n  ".join(stack) or "(no stack: the thread or task has ended)",
    )


def _describe(callers: list[CallerStats]) -> str:
    """Return the first callers in words, and the number of the others."""
    words = [one.describe() for one in callers[:TOP_HOLDERS]]
    if others := len(callers) - len(words):
        words.append(f"{others} more")
    return "; ".join(words)
