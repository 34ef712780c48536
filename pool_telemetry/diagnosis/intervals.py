"""Samples become intervals: the differences of one pool's counters between two samples.

Pure, and made once, in one direction. Numbers that derive from an interval are its methods.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from pool_telemetry import stats
from pool_telemetry.diagnosis.thresholds import (
    BLINK_SECONDS,
    SAMPLE_SECONDS,
    STANDSTILL_SETTLE_SECONDS,
)
from pool_telemetry.stats import (
    CANCELLED,
    CLOSE_REASONS,
    OUTCOMES,
    Address,
    ClientStats,
    HistogramStats,
    PoolStats,
)


class CommandKey(NamedTuple):
    """A series of commands; empty strings without a value."""

    database: str
    collection: str
    command: str
    error_type: str


ALL_COMMANDS: Final = CommandKey("", "", "operations", "")
"""Stands for all commands if they were not timed: then their connections' use is their time."""

EMPTY: Final = HistogramStats((), (0,), 0.0, 0.0)
"""Durations of an interval in which none was observed."""

# Errors after which PyMongo, or its caller, retries (MongoDB's retryable reads and writes).
_RETRYABLE: Final = frozenset(
    map(str, (6, 7, 89, 91, 134, 189, 262, 317, 358, 384, 9001, 10107, 11600, 11602, 13435, 13436))
)

_OVERLOADED: Final = "overloaded"
"""Stands for every error of an overloaded server, which PyMongo retries whatever its code is."""
_REFUSED: Final = "462"
"""IngressRequestRateLimitExceeded: metrics have an error's code, and not its labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The changes of one pool between two samples, or in several intervals together.

    Attributes:
        start, end: Unix times.
        seconds: The length; 0.0 if it is too short for rates. Several intervals may have gaps.
        whole_life: The interval, or a part of it, is all that is known before the first sample.
        pool: The pool at the end.
        checkouts: Checkouts that ended, by OUTCOMES.
        retries: Checkouts of callers that had just timed out.
        queue_growth: Callers by which the queue is longer at the end.
        wait_time, use_time, create_time: Durations that were observed; EMPTY without any.
        commands: Durations of the commands that ended.
    """

    start: float
    end: float
    seconds: float
    whole_life: bool
    pool: PoolStats
    checkouts: dict[str, int]
    retries: int
    created: int
    closed: dict[str, int]
    cleared: int
    queue_growth: int
    exhaustions: int
    exhausted_seconds: float
    wait_time: HistogramStats
    use_time: HistogramStats
    create_time: HistogramStats
    commands: dict[CommandKey, HistogramStats]

    @property
    def ended_checkouts(self) -> int:
        """Return the checkouts that ended, whatever their outcome."""
        return sum(self.checkouts.values())

    @property
    def rate(self) -> float:
        """Return the requests per second; retries do not count again."""
        arrived = self.ended_checkouts + self.queue_growth - self.retries
        return max(0.0, arrived / self.seconds) if self.seconds > 0.0 else 0.0

    @property
    def exhausted_share(self) -> float:
        """Return the share of the time in which the pool was exhausted, 0.0 to 1.0."""
        return min(1.0, self.exhausted_seconds / self.seconds) if self.seconds > 0.0 else 0.0

    def share(self, *outcomes: str) -> float:
        """Return the share of checkouts with these outcomes, 0.0 to 1.0; 0.0 without checkouts."""
        ended = self.ended_checkouts
        return sum(self.checkouts[one] for one in outcomes) / ended if ended else 0.0

    def command_times(self) -> dict[CommandKey, HistogramStats]:
        """Return the commands' durations, or the connections' use if no command was timed.

        A getMore is left out: on a change stream it waits for news. A cancelled command counts,
        because it would have taken even longer.
        """
        if not self.commands and self.use_time.count:
            return {ALL_COMMANDS: self.use_time}
        found: dict[CommandKey, list[HistogramStats]] = {}
        for key, duration in self.commands.items():
            if key.command != "getMore" and key.error_type in ("", CANCELLED):
                found.setdefault(key._replace(error_type=""), []).append(duration)
        return {key: _sum(every) for key, every in found.items()}

    def failures(self) -> tuple[int, int]:
        """Return the attempts that failed with an error that is retried, and all attempts."""
        failed = sum(
            duration.count
            for key, duration in self.commands.items()
            if key.error_type not in ("", CANCELLED)
            and (key.error_type in _RETRYABLE or not key.error_type.isdecimal())
        )
        errors = self.checkouts["connection_error"]
        return failed + errors, self._ended_commands + errors

    def overloads(self) -> int:
        """Return the attempts that failed because the server was overloaded."""
        return sum(d.count for key, d in self.commands.items() if key.error_type == _OVERLOADED)

    def cancelled_share(self) -> float:
        """Return the share of commands whose callers did not wait for the reply, 0.0 to 1.0."""
        every = self._ended_commands
        return self._cancelled_commands / every if every else 0.0

    def hang_ups(self) -> int:
        """Return the callers that were cancelled in the middle of an operation.

        A cancelled command has no end before PyMongo 4.20.1, so that there are more uses of
        connections than commands.
        """
        unended = self.use_time.count - self._ended_commands if self.commands else 0
        unopened = max(0, self.created - self.create_time.count)
        opening = min(self.checkouts["cancelled"], unopened)
        return max(self._cancelled_commands, unended) + opening

    @property
    def _cancelled_commands(self) -> int:
        return sum(d.count for key, d in self.commands.items() if key.error_type == CANCELLED)

    @property
    def _ended_commands(self) -> int:
        return sum(duration.count for duration in self.commands.values())


Known = dict[tuple[int, int], Interval]
"""Intervals by the identities of their samples, for callers that ask about the same samples."""


def thin(samples: Sequence[ClientStats]) -> list[ClientStats]:
    """Return samples that are at least SAMPLE_SECONDS apart, the last one among them."""
    kept = [*samples[-1:]]
    for one in reversed(samples[:-1]):
        if kept[-1].at - one.at >= SAMPLE_SECONDS:
            kept.append(one)
    return kept[::-1]


def intervals(
    samples: Sequence[ClientStats], address: Address, known: Known | None = None
) -> list[Interval]:
    """Return a pool's intervals, the oldest first.

    The first one is the pool's life before the first sample. So is one after a restart, and of a
    pool that is new.
    """
    known = {} if known is None else known
    found = list[Interval]()
    before: ClientStats | None = None
    settled_at = 0.0
    for after in samples:
        if before is not None and after.stood_still > before.stood_still:
            settled_at = after.at + STANDSTILL_SETTLE_SECONDS
        if (pool := _pool(after, address)) is not None:
            if before is not None and before.since != after.since:  # the process was restarted
                before = None
            earlier = None if before is None else _pool(before, address)
            if earlier is None:
                before = None
            key = id(before), id(after)
            if key not in known:
                known[key] = _between(before, earlier, after, pool)
            is_settled = before is None or before.at >= settled_at
            found.append(known[key] if is_settled else _without_durations(known[key]))
        before = after
    return found


def merge(parts: Sequence[Interval]) -> Interval | None:
    """Return several intervals as one; None without any."""
    if len(parts) < 2:
        return parts[0] if parts else None
    commands: dict[CommandKey, list[HistogramStats]] = {}
    for part in parts:
        for key, duration in part.commands.items():
            commands.setdefault(key, []).append(duration)
    return Interval(
        start=parts[0].start,
        end=parts[-1].end,
        seconds=sum(one.seconds for one in parts),
        whole_life=any(one.whole_life for one in parts),
        pool=parts[-1].pool,
        checkouts={key: sum(one.checkouts[key] for one in parts) for key in OUTCOMES},
        retries=sum(one.retries for one in parts),
        created=sum(one.created for one in parts),
        closed={key: sum(one.closed[key] for one in parts) for key in CLOSE_REASONS},
        cleared=sum(one.cleared for one in parts),
        queue_growth=sum(one.queue_growth for one in parts),
        exhaustions=sum(one.exhaustions for one in parts),
        exhausted_seconds=sum(one.exhausted_seconds for one in parts),
        wait_time=_sum(one.wait_time for one in parts),
        use_time=_sum(one.use_time for one in parts),
        create_time=_sum(one.create_time for one in parts),
        commands={key: _sum(every) for key, every in commands.items()},
    )


def _sum(histograms: Iterable[HistogramStats]) -> HistogramStats:
    every = [one for one in histograms if one.count]
    return (every[0] if len(every) == 1 else stats.merge(every)) or EMPTY


def _without_durations(interval: Interval) -> Interval:
    """Return an interval in which this process stood still: it shows nothing of the load."""
    return replace(
        interval,
        checkouts=dict.fromkeys(OUTCOMES, 0),
        retries=0,
        wait_time=EMPTY,
        use_time=EMPTY,
        create_time=EMPTY,
        commands={},
    )


def _pool(sample: ClientStats, address: Address) -> PoolStats | None:
    return next((pool for pool in sample.pools if (pool.host, pool.port) == address), None)


def _between(
    before: ClientStats | None, was: PoolStats | None, after: ClientStats, now: PoolStats
) -> Interval:
    seconds = after.at - (after.since if before is None else before.at)
    seconds = seconds if seconds > BLINK_SECONDS else 0.0
    return Interval(
        start=after.at - seconds,
        end=after.at,
        seconds=seconds,
        whole_life=before is None,
        pool=now,
        checkouts={k: _more(now.checkouts[k], was.checkouts[k] if was else 0) for k in OUTCOMES},
        retries=_more(now.retries, was.retries if was else 0),
        created=_more(now.created, was.created if was else 0),
        closed={k: _more(now.closed[k], was.closed[k] if was else 0) for k in CLOSE_REASONS},
        cleared=_more(now.cleared, was.cleared if was else 0),
        queue_growth=now.waiting - (was.waiting if was else 0),
        exhaustions=_more(now.exhaustions, was.exhaustions if was else 0),
        exhausted_seconds=max(0.0, now.exhausted_time - (was.exhausted_time if was else 0.0)),
        wait_time=_new(now.wait_time, was.wait_time if was else None),
        use_time=_new(now.use_time, was.use_time if was else None),
        create_time=_new(now.create_time, was.create_time if was else None),
        commands=_commands(before, after, (now.host, now.port)),
    )


def _more(now: int, before: int) -> int:
    return now - before if now >= before else now  # a counter that fell was restarted


def _new(now: HistogramStats, before: HistogramStats | None) -> HistogramStats:
    if now is before:
        return EMPTY
    new = now.since(before)
    return new if new.count else EMPTY


def _commands(
    before: ClientStats | None, after: ClientStats, address: Address
) -> dict[CommandKey, HistogramStats]:
    # Series that did not change are the same objects in both samples (see history.py).
    old = {id(one) for one in before.operations} if before else ()
    changed = [
        one
        for one in after.operations
        if id(one) not in old and one.host == address[0] and one.port == address[1]
    ]
    known = {one.series: one.duration for one in before.operations} if before and changed else {}
    found: dict[CommandKey, list[HistogramStats]] = {}
    for one in changed:
        new = _new(one.duration, known.get(one.series))
        if new.count:
            overloaded = one.overloaded or one.error_type == _REFUSED
            error_type = _OVERLOADED if overloaded else one.error_type
            key = CommandKey(one.namespace, one.collection, one.operation, error_type)
            found.setdefault(key, []).append(new)
    return {key: _sum(every) for key, every in found.items()}
