"""What happened to one pool between two looks at it: differences of counters, summed over time.

Pure; made for `diagnosis.py` of whatever history there is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pool_telemetry.stats import (
    CLOSE_REASONS,
    OUTCOMES,
    Address,
    ClientStats,
    HistogramStats,
    PoolStats,
    merge,
)

Series = tuple[str, str, str, str]
"""Database, collection, command, error type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One pool over some seconds, which need not be in one piece.

    Attributes:
        seconds: How long.
        until: Unix time of its end.
        whole: It is all of a client's life up to the first look.
        last: The pool at its end.
        checkouts: That ended, by OUTCOMES.
        queue_growth: By how much the queue is longer at the end.
        retries: Checkouts of those who had just timed out.
        wait_time, use_time, create_time: What was observed meanwhile; None where nothing was.
        operations: The commands that ended meanwhile.
    """

    seconds: float
    until: float
    whole: bool
    last: PoolStats
    checkouts: dict[str, int]
    queue_growth: int
    retries: int
    created: int
    closed: dict[str, int]
    cleared: int
    exhaustions: int
    exhausted_time: float
    wait_time: HistogramStats | None
    use_time: HistogramStats | None
    create_time: HistogramStats | None
    operations: dict[Series, HistogramStats]

    @property
    def rate(self) -> float:
        """Return how many callers came per second, who tried again counted once."""
        came = sum(self.checkouts.values()) + self.queue_growth - self.retries
        return max(0.0, came / self.seconds) if self.seconds > 0.0 else 0.0

    @property
    def exhausted_share(self) -> float:
        """Return the share of the time in which the pool was exhausted."""
        return min(1.0, self.exhausted_time / self.seconds) if self.seconds > 0.0 else 0.0

    def share(self, *outcomes: str) -> float:
        """Return the share of the checkouts that ended so."""
        ended = sum(self.checkouts.values())
        return sum(self.checkouts[one] for one in outcomes) / ended if ended else 0.0

    @property
    def waited(self) -> float:
        """Return the seconds that all callers together waited, those who still wait left out."""
        return self.wait_time.sum if self.wait_time else 0.0

    @property
    def used(self) -> float:
        """Return the seconds that connections were held, those that still are left out."""
        return self.use_time.sum if self.use_time else 0.0


def windows(history: Sequence[ClientStats], address: Address) -> list[Window]:
    """Return a pool's life from sample to sample; first what was before the first one."""
    found: list[Window] = []
    before: ClientStats | None = None
    for after in history:
        pool = _pool(after, address)
        if pool is not None:
            if before is not None and before.since != after.since:  # the process began anew
                before = None
            was = None if before is None else _pool(before, address)
            if was is None:  # all of the pool's life
                before = None
            seconds = after.at - (after.since if before is None else before.at)
            # Of next to no time there are no rates.
            found.append(_between(before, was, after, pool, seconds if seconds > 0.001 else 0.0))
        before = after
    return found


def total(parts: Iterable[Window]) -> Window | None:
    """Return several windows as one; None when there are none."""
    every = list(parts)
    if not every:
        return None
    operations: dict[Series, list[HistogramStats]] = {}
    for part in every:
        for series, duration in part.operations.items():
            operations.setdefault(series, []).append(duration)
    return Window(
        seconds=sum(one.seconds for one in every),
        until=every[-1].until,
        whole=any(one.whole for one in every),
        last=every[-1].last,
        checkouts={key: sum(one.checkouts[key] for one in every) for key in OUTCOMES},
        queue_growth=sum(one.queue_growth for one in every),
        retries=sum(one.retries for one in every),
        created=sum(one.created for one in every),
        closed={key: sum(one.closed[key] for one in every) for key in CLOSE_REASONS},
        cleared=sum(one.cleared for one in every),
        exhaustions=sum(one.exhaustions for one in every),
        exhausted_time=sum(one.exhausted_time for one in every),
        wait_time=merge(one.wait_time for one in every if one.wait_time),
        use_time=merge(one.use_time for one in every if one.use_time),
        create_time=merge(one.create_time for one in every if one.create_time),
        operations={s: m for s, every_one in operations.items() if (m := merge(every_one))},
    )


def _pool(stats: ClientStats, address: Address) -> PoolStats | None:
    return next((pool for pool in stats.pools if (pool.host, pool.port) == address), None)


def _between(
    before: ClientStats | None,
    was: PoolStats | None,
    after: ClientStats,
    now: PoolStats,
    seconds: float,
) -> Window:
    return Window(
        seconds=seconds,
        until=after.at,
        whole=before is None,
        last=now,
        checkouts={
            key: _more(now.checkouts[key], was.checkouts[key] if was else 0) for key in OUTCOMES
        },
        queue_growth=now.waiting - (was.waiting if was else 0),
        retries=_more(now.retries, was.retries if was else 0),
        created=_more(now.created, was.created if was else 0),
        closed={
            key: _more(now.closed[key], was.closed[key] if was else 0) for key in CLOSE_REASONS
        },
        cleared=_more(now.cleared, was.cleared if was else 0),
        exhaustions=_more(now.exhaustions, was.exhaustions if was else 0),
        exhausted_time=max(0.0, now.exhausted_time - (was.exhausted_time if was else 0.0)),
        wait_time=_new(now.wait_time, was.wait_time if was else None),
        use_time=_new(now.use_time, was.use_time if was else None),
        create_time=_new(now.create_time, was.create_time if was else None),
        operations=_operations(before, after, (now.host, now.port)),
    )


def _more(now: int, before: int) -> int:
    return now - before if now >= before else now  # it began anew


def _new(now: HistogramStats, before: HistogramStats | None) -> HistogramStats | None:
    new = now.since(before)
    return new if new.count else None


def _operations(
    before: ClientStats | None, after: ClientStats, address: Address
) -> dict[Series, HistogramStats]:
    known = {one.series: one.duration for one in before.operations} if before else {}
    found: dict[Series, list[HistogramStats]] = {}
    for one in after.operations:
        if (one.host, one.port) == address:
            new = _new(one.duration, known.get(one.series))
            if new is not None:
                series = (one.namespace, one.collection, one.operation, one.error_type)
                found.setdefault(series, []).append(new)
    return {series: summed for series, every in found.items() if (summed := merge(every))}
