"""Intervals become periods: the stretches of a pool's life to judge, each with its yardstick.

Time in which no caller waited is the baseline; the contention is compared with it. A problem that
is over is not judged by the present, but by a period that ends while it lasted. Facts of the
intervals alone decide which periods there are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pool_telemetry.diagnosis.intervals import Interval, Known, intervals, merge, thin
from pool_telemetry.diagnosis.thresholds import (
    BEGAN_FAILING_SHARE,
    CALM_SECONDS,
    CALM_SHARE,
    ENDED_SECONDS,
    EXHAUSTED_SHARE,
    FAILED_SHARE,
    GAP_SECONDS,
    LAST_SECONDS,
    MIN_EXHAUSTED_SECONDS,
    MIN_SAMPLES,
    RECENT_SECONDS,
    SLOWDOWN,
    SLOWER_EXHAUSTED_SECONDS,
    STALLED_SECONDS,
    WAIT_SECONDS,
)
from pool_telemetry.stats import ClientStats, PoolStats

PeriodKind = Literal["current", "before_slowdown", "ended", "last_leak"]
"""Which stretch it is: up to the last sample; the part of a contention before operations became
slow; a contention that is over; up to the last sample in which connections were held idle.
"""

Look = tuple[int, PoolStats]
"""The position of a sample, and a pool in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """One stretch of a pool's life, judged as of its last sample.

    Attributes:
        kind: Which stretch it is.
        client: The sample at its end.
        pool: The pool in that sample.
        latest: The pool in the last sample of all.
        recent: The intervals of the last five minutes.
        contended: Of these, the intervals in which callers waited; empty if the contention is over.
        last_seconds: Of these, the intervals of the last seconds.
        contention: The contended intervals as one; None without any.
        settled: The contention without the interval in which it began, if there are more.
        steady: The settled contention, or else the last seconds.
        window: The contention, or else a calm stretch of at most half a minute; None if the known
            time is too short.
        failing: The intervals in which attempts failed, if they still do.
        baseline: All other time that is known; None without any.
        ended_at: Unix time at which the contention ended; None while it lasts, or without any.
        slowed_at: Unix time at which operations became slow in the middle of a contention that is
            all there is. The contention begins there; the part before it is the baseline.
    """

    kind: PeriodKind
    client: ClientStats
    pool: PoolStats
    latest: PoolStats
    recent: tuple[Interval, ...]
    contended: tuple[Interval, ...]
    last_seconds: tuple[Interval, ...]
    contention: Interval | None
    settled: Interval | None
    steady: Interval | None
    window: Interval | None
    failing: Interval | None
    baseline: Interval | None
    ended_at: float | None
    slowed_at: float | None

    @property
    def at(self) -> float:
        """Return the Unix time as of which the period is judged."""
        return self.client.at

    @property
    def known_seconds(self) -> float:
        """Return the length of the recent intervals together."""
        return sum(one.seconds for one in self.recent)


def periods(samples: Sequence[ClientStats], pool: PoolStats) -> list[Period]:
    """Return the periods of one pool, `current` first.

    Args:
        samples: The client, the oldest sample first; the last one has the pool.
        pool: The pool in the last sample.
    """
    known: Known = {}
    looks = [
        (number, one)
        for number, sample in enumerate(samples)
        for one in sample.pools
        if (one.host, one.port) == (pool.host, pool.port)
    ]

    def until(kind: PeriodKind, look: Look) -> Period:
        return _period(kind, samples[: look[0] + 1], look[1], pool, known)

    current = until("current", (len(samples) - 1, pool))
    found = [current]
    if current.slowed_at is not None:
        before = current
        while before.slowed_at is not None and before.slowed_at < before.at:
            look = _last_exhausted(samples, looks, before.slowed_at)
            if look is None:
                break
            before = until("before_slowdown", look)
        found += [before] if before is not current else []
    if current.ended_at is not None and not current.contended:
        look = _last_exhausted(samples, looks, current.ended_at)
        found += [until("ended", look)] if look else []
    leaking = [look for look in looks if look[1].held_idle]
    if leaking and leaking[-1][0] == len(samples) - 1:
        found.append(replace(current, kind="last_leak"))
    elif leaking:
        found.append(until("last_leak", leaking[-1]))
    return found


def is_contended(interval: Interval) -> bool:
    """Return whether callers waited for too long in an interval."""
    pool = interval.pool
    if interval.whole_life and interval.seconds > RECENT_SECONDS:  # too long for shares
        long = pool.exhausted_time >= MIN_EXHAUSTED_SECONDS
        exhausted = pool.exhausted or (long and _is_recent(pool.since_exhausted))
        return exhausted or _is_recent(pool.since_timeout)
    long = interval.exhausted_seconds >= MIN_EXHAUSTED_SECONDS
    return (
        (long and interval.exhausted_share >= EXHAUSTED_SHARE)
        or interval.checkouts["timeout"] > 0
        or (interval.wait_time.quantile(0.95) or 0.0) >= WAIT_SECONDS
        or (pool.waiting > 0 and pool.oldest_wait >= WAIT_SECONDS)
    )


def is_failing(interval: Interval) -> bool:
    """Return whether too many attempts failed in an interval."""
    failed, attempts = interval.failures()
    return failed > 0 and failed >= FAILED_SHARE * attempts


def _is_recent(age: float | None) -> bool:
    return age is not None and age < RECENT_SECONDS


def _last_exhausted(
    samples: Sequence[ClientStats], looks: Sequence[Look], at: float
) -> Look | None:
    """Return the last sample up to a time in which the pool is exhausted, or else the last one."""
    earlier = [look for look in looks if samples[look[0]].at <= at]
    exhausted = (look for look in reversed(earlier) if look[1].exhausted)
    return next(exhausted, earlier[-1] if earlier else None)


def _period(
    kind: PeriodKind,
    samples: Sequence[ClientStats],
    pool: PoolStats,
    latest: PoolStats,
    known: Known,
) -> Period:
    client = samples[-1]
    every = intervals(thin(samples), (pool.host, pool.port), known)
    first, *later = every
    # The time before the first sample is of use if it was short and contended.
    if first.seconds < RECENT_SECONDS and is_contended(first):
        later = every
    recent = [one for one in later or [first] if client.at - one.end < RECENT_SECONDS]
    waited = [one for one in recent if is_contended(one)]
    ended_at = _ended_at(waited, pool, client.at)
    # A single interval, of all that is known, has to do for a contention that is over, too.
    alone = len(waited) == 1 and waited[0] is first
    contended = _last_run(waited) if ended_at is None or alone else []
    before = _before_slowdown(contended) if len(contended) == len(recent) else []
    contended = contended[len(before) :]
    contention = merge(contended)
    settled = merge(contended[1:]) or contention
    last_seconds = [one for one in recent if client.at - one.end < LAST_SECONDS]
    failing = _failing(recent)
    window = contended or _calm(recent, client.at)
    judged = {id(one) for one in (*waited, *failing, *window)}
    rest = [one for one in every if id(one) not in judged and not is_contended(one)]
    return Period(
        kind=kind,
        client=client,
        pool=pool,
        latest=latest,
        recent=tuple(recent),
        contended=tuple(contended),
        last_seconds=tuple(last_seconds),
        contention=contention,
        settled=settled,
        steady=settled or merge(last_seconds),
        window=contention or merge(window),
        failing=merge(failing) if failing and failing[-1].end == client.at else None,
        baseline=merge(before or rest),
        ended_at=ended_at,
        slowed_at=_slowed_at(before, contention) if before and contention else None,
    )


def _ended_at(waited: Sequence[Interval], pool: PoolStats, now: float) -> float | None:
    """Return the Unix time at which a contention ended; None while it lasts, or without any."""
    if not waited:
        return None
    ago = now - waited[-1].end
    if waited[-1].exhausted_seconds and not pool.exhausted and not pool.waiting:
        # It need not have lasted until the end of that interval.
        ago = max(ago, min(pool.since_exhausted or 0.0, pool.since_timeout or math.inf))
    return now - ago if ago >= ENDED_SECONDS else None


def _last_run(waited: Sequence[Interval]) -> list[Interval]:
    """Return the contended intervals that belong to the last one: no long pause is between them."""
    run = [*waited[-1:]]
    for one in reversed(waited[:-1]):
        if run[0].start - one.end > GAP_SECONDS:
            break
        run.insert(0, one)
    return run


def _before_slowdown(contended: Sequence[Interval]) -> list[Interval]:
    """Return the intervals before uses became much longer; none if they did not.

    This is the baseline of a pool that was contended in all the time that is known.
    """
    if not contended:
        return []
    used = max((i for i, one in enumerate(contended, 1) if one.use_time.count), default=0)
    stalled = contended[used:]
    leaked = any(one.pool.held_idle for one in stalled)
    enough = sum(one.use_time.count for one in contended) >= MIN_SAMPLES
    if enough and not leaked and sum(one.seconds for one in stalled) >= STALLED_SECONDS:
        return [*contended[:used]]
    uses = [(one.use_time.sum, one.use_time.count) for one in contended]
    every, count = (sum(each) for each in zip(*uses, strict=True))
    slowdown, until, spent, ended = SLOWDOWN, 0, 0.0, 0
    for i, (seconds, number) in enumerate(uses[:-1], 1):
        spent, ended = spent + seconds, ended + number
        if ended < MIN_SAMPLES or count == ended:
            continue
        mean = (every - spent) / (count - ended)
        if mean >= max(slowdown * spent / ended, SLOWER_EXHAUSTED_SECONDS):
            slowdown, until = mean * ended / spent if spent else math.inf, i
    return [*contended[:until]]


def _slowed_at(before: Sequence[Interval], slow: Interval) -> float:
    """Return the Unix time at which operations became slow, at the latest.

    They did so within the last interval before, if some of its uses were as long as those since.
    """
    if len(before) == 1:
        return before[0].end
    last, mean = before[-1], slow.use_time.mean or 0.0
    bounds = (*last.use_time.bounds, math.inf)
    long = (n for bound, n in zip(bounds, last.use_time.counts, strict=True) if bound >= mean)
    return last.start if mean and any(long) else last.end


def _failing(recent: Sequence[Interval]) -> list[Interval]:
    """Return the intervals in which too many attempts failed.

    The failures began in the interval before, if some of its attempts failed. It counts, too,
    unless its good attempts outweigh the failures.
    """
    first = next((i for i, one in enumerate(recent) if is_failing(one)), None)
    if first is None:
        return []
    failing = [one for one in recent[first:] if is_failing(one)]
    if first and recent[first - 1].failures()[0]:
        longer = [recent[first - 1], *failing]
        failures = [one.failures() for one in longer]
        failed, attempts = (sum(each) for each in zip(*failures, strict=True))
        if failed >= BEGAN_FAILING_SHARE * attempts:
            return longer
    return failing


def _calm(recent: Sequence[Interval], now: float) -> list[Interval]:
    """Return the last intervals, but not all of them: the others are the baseline."""
    longest = min(CALM_SECONDS, CALM_SHARE * sum(one.seconds for one in recent))
    return [one for one in recent if now - one.end < longest]
