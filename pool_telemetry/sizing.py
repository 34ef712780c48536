"""How large a pool has to be: Little's law, and a queue over what was measured.

A pool is an M/G/c queue: callers come at random (Poisson), each holds one of c connections for a
time of any distribution, and who finds none waits in line. Pure arithmetic; nobody is asked.

The share who wait is Erlang's C. Their wait is the time until the first of c connections comes back
and then a geometric number of turns, as by Pollaczek and Khinchine: exact for c = 1 and for
exponential times, and otherwise close (tests/test_sizing.py holds it against a simulation).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from pool_telemetry.stats import HistogramStats

WAITERS: Final = 0.05
"""The share of callers that may find no connection free: so p95 of the wait is none."""
LARGEST: Final = 100_000

_STEPS: Final = 400  # of the grid on which waits are computed; 10 ms of time

Piece = tuple[float, float, float]
"""Evenly between two durations in seconds: a share."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a pool.

    Attributes:
        rate: Callers per second.
        use: How long one holds a connection; shares that sum up to 1.
    """

    rate: float
    use: tuple[Piece, ...]

    @staticmethod
    def of(rate: float, use_time: HistogramStats) -> "Load":
        """Return the load of so many callers per second, who hold connections for such times.

        The times keep their mean exactly. Within each bucket they lie evenly about a point, the
        same share of the way through all buckets: as far from even as the mean asks for.
        """
        lows = (0.0, *use_time.bounds)
        highs = (*use_time.bounds, max(use_time.max, lows[-1]))
        seen = [
            (low, min(high, max(use_time.max, low)), count / use_time.count)
            for low, high, count in zip(lows, highs, use_time.counts, strict=True)
            if count
        ]
        least = sum(low * share for low, _, share in seen)
        most = sum(high * share for _, high, share in seen)
        mean = use_time.mean or 0.0
        way = min(1.0, max(0.0, (mean - least) / (most - least))) if most > least else 1.0
        half = min(way, 1.0 - way)
        return Load(
            rate,
            tuple(
                (low + (high - low) * (way - half), low + (high - low) * (way + half), share)
                for low, high, share in seen
            ),
        )

    @staticmethod
    def evenly(rate: float, use_seconds: float) -> "Load":
        """Return the load of callers who hold connections for about such a time (exponential).

        Raises:
            ValueError: The rate or the time is not above 0.0 and finite.
        """
        if not (0.0 < rate < math.inf and 0.0 < use_seconds < math.inf):
            raise ValueError("a rate and a time are above 0.0, and finite")
        steps = [-math.log(1.0 - (i + 0.5) / 50) for i in range(50)]
        scale = use_seconds * (50 / sum(steps))
        return Load(rate, tuple((step * scale, step * scale, 1 / 50) for step in steps))

    @property
    def use_seconds(self) -> float:
        """Return the mean time for which a connection is held."""
        return sum((low / 2 + high / 2) * share for low, high, share in self.use)

    @property
    def weighted_use_seconds(self) -> float:
        """Return the mean length of a use by the time that it takes, E[S²] / E[S]."""
        if not (mean := self.use_seconds):
            return 0.0
        unit = ((a / mean, b / mean, share) for a, b, share in self.use)  # no square overflows
        return mean * sum(share * (a * a + a * b + b * b) / 3 for a, b, share in unit)

    @property
    def connections(self) -> float:
        """Return how many connections are in use on average, by Little's law."""
        return self.rate * self.use_seconds


@dataclass(frozen=True, slots=True)
class Wait:
    """How long callers of a pool of some size wait. Infinite where more come than it can serve."""

    size: int
    utilization: float  # 1.0 and more: the queue grows until callers time out or give up
    waiting_share: float  # who find no connection free
    mean: float  # seconds, of all callers
    p95: float


def predict(load: Load, size: int) -> Wait:
    """Return how long callers would wait.

    Raises:
        ValueError: The size is not 1 to LARGEST.
    """
    if not 1 <= size <= LARGEST:
        raise ValueError(f"a pool has 1 to {LARGEST} connections, not {size}")
    offered = load.connections
    busy = offered / size
    if busy > 1.0 - 1e-9:  # as 200 a second with 0.02 s each come to
        return Wait(size, busy, 1.0, math.inf, math.inf)
    share = erlang_c(size, offered)
    if share == 0.0:  # a large pool's share underflows
        return Wait(size, busy, 0.0, 0.0, 0.0)
    mean = load.use_seconds
    # In units of the mean use no square over- or underflows.
    load = Load(offered, tuple((low / mean, high / mean, part) for low, high, part in load.use))
    waiters = _mean_of_who_wait(load, size, busy)
    p95 = 0.0
    if share > WAITERS:
        p95 = _quantile(*_waits(load, size, busy), WAITERS / share, waiters)
    return Wait(size, busy, share, mean * share * waiters, mean * p95)


def recommend_size(load: Load, *, at_least: int = 1) -> int:
    """Return the smallest size at which no more than WAITERS of the callers wait, or LARGEST."""
    if load.connections >= LARGEST:
        return LARGEST
    for size, share in _erlang_c(load.connections):
        if size >= at_least and share <= WAITERS:
            return size
    return LARGEST


def erlang_c(size: int, offered: float) -> float:
    """Return the share of callers that find all connections taken, where on average `offered` are.

    A. K. Erlang, 1917; by the recursion over B, which neither over- nor underflows.
    """
    return next(share for n, share in _erlang_c(offered) if n == size)


def _erlang_c(offered: float) -> Iterator[tuple[int, float]]:
    blocked = 1.0
    for n in range(1, LARGEST + 1):
        blocked = offered * blocked / (n + offered * blocked)
        yield n, 1.0 if offered >= n else blocked / (1.0 - offered / n * (1.0 - blocked))


def sizes_around(load: Load, size: int | None) -> list[int]:
    """Return sizes worth a comparison: the recommended one, the present one, less and more."""
    best = recommend_size(load)
    every = {best, math.floor(min(load.connections, LARGEST)) + 1}
    every |= {max(1, round(best * factor)) for factor in (0.7, 0.85, 1.25, 1.5, 2.0)}
    return sorted({min(one, LARGEST) for one in every | ({size} if size else set())})


# How long who waits has to


def _residual(load: Load, seconds: float) -> float:
    """Return the share of uses in progress that go on for longer than this."""
    beyond = 0.0
    for low, high, share in load.use:
        if seconds <= low:
            beyond += share * ((low + high) / 2 - seconds)
        elif seconds < high:
            beyond += share * (high - seconds) ** 2 / (2 * (high - low))
    return beyond / load.use_seconds


def _longest(load: Load) -> float:
    return max(high for _, high, _ in load.use)


def _mean_of_who_wait(load: Load, size: int, busy: float) -> float:
    longest, steps = _longest(load), 200
    ahead = sum(_residual(load, (i + 0.5) * longest / steps) ** size for i in range(steps))
    turn = load.weighted_use_seconds / 2 / size
    return ahead * longest / steps + busy / (1 - busy) * turn


def _waits(load: Load, size: int, busy: float) -> tuple[list[float], float]:
    """Return the share of who wait that still do after each step of so many seconds."""
    longest = _longest(load)
    span = min(longest, 4 * _mean_of_who_wait(load, size, busy)) if size > 1 else longest
    step = max(span, longest / size) / (_STEPS / 2)
    # Until the first comes back; and one turn of a queue that is served size times as fast.
    first = list(_masses(_residual(load, i * step) ** size for i in range(_STEPS + 1)))
    turn = list(_masses(_residual(load, i * step * size) for i in range(_STEPS + 1)))
    # The sum of N turns, P(N = n) = (1 - busy) busy^n, step by step.
    turns = [0.0] * _STEPS
    scale = 1 / (1 - busy * turn[0])
    for k in range(_STEPS):
        before = sum(turn[j] * turns[k - j] for j in range(1, k + 1) if turn[j])
        turns[k] = scale * (busy * before + (1 - busy if k == 0 else 0.0))
    waits = [sum(first[j] * turns[k - j] for j in range(k + 1) if first[j]) for k in range(_STEPS)]
    return [max(0.0, 1.0 - below) for below in accumulate(waits)], step


def _masses(survival: Iterator[float]) -> Iterator[float]:
    before = next(survival)
    for after in survival:
        yield before - after
        before = after


def _quantile(survival: list[float], step: float, beyond: float, mean: float) -> float:
    """Return after how many seconds a share still waits; what lies past the grid falls evenly."""
    before = 1.0
    for k, now in enumerate(survival):
        if now <= beyond:
            within = (before - beyond) / (before - now) if before > now else 1.0
            return (k + within) * step
        before = now
    half = len(survival) // 2
    decay = math.log(survival[half] / survival[-1]) / (len(survival) - 1 - half)
    if decay < 1e-9:  # the grid has nothing of its end: a nearly full queue's is exponential
        return mean * math.log(1.0 / beyond)
    return step * (len(survival) + math.log(survival[-1] / beyond) / decay)
