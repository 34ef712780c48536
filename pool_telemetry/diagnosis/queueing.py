"""How large a pool has to be: Little's law, and a queue over what was measured.

A pool is an M/G/c queue: callers arrive at random (Poisson), each holds one of c connections for a
time of any distribution, and a caller that finds no idle connection queues. Pure arithmetic.

The share of callers that wait is Erlang's C. Their wait is the time until the first of c
connections is returned and then a geometric number of turns, as by Pollaczek and Khinchine: exact
for c = 1 and for exponential times, and otherwise close (tests/test_sizing.py compares it with a
simulation).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from pool_telemetry.diagnosis.thresholds import (
    CROWDED_FACTOR,
    MAX_POOL_SIZE,
    TARGET_WAIT_PROBABILITY,
    WAIT_SECONDS,
)
from pool_telemetry.stats import HistogramStats

_STEPS: Final = 400  # of the grid on which waits are computed; it costs 10 ms

Piece = tuple[float, float, float]
"""A share of the uses, and the two durations in seconds between which they are spread evenly: the
lower one, the higher one, the share.
"""


@dataclass(frozen=True, slots=True)
class Load:
    """The demand on a pool.

    Attributes:
        rate: Requests per second.
        use: How long a request holds its connection; the shares sum up to 1.
    """

    rate: float
    use: tuple[Piece, ...]

    @staticmethod
    def from_histogram(rate: float, use_time: HistogramStats) -> "Load":
        """Return the load of requests that hold connections for measured times.

        The times keep their mean exactly. Within each bucket they are spread evenly about a point,
        which is at the same share of the width of every bucket, as widely as the mean permits.
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
    def exponential(rate: float, use_seconds: float) -> "Load":
        """Return the load of requests that hold connections for exponentially distributed times.

        Raises:
            ValueError: The rate or the mean time is not above 0.0 and finite.
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
        """Return the mean length of a use, weighted by its length: E[S²] / E[S]."""
        if not (mean := self.use_seconds):
            return 0.0
        unit = ((a / mean, b / mean, share) for a, b, share in self.use)  # no square overflows
        return mean * sum(share * (a * a + a * b + b * b) / 3 for a, b, share in unit)

    @property
    def typical_use_seconds(self) -> float:
        """Return `weighted_use_seconds` as if all uses within a bucket were of equal length.

        For uses in one bucket it is their mean.
        """
        if not (mean := self.use_seconds):
            return 0.0
        return mean * sum(share * ((a / mean + b / mean) / 2) ** 2 for a, b, share in self.use)

    @property
    def connections(self) -> float:
        """Return the mean number of connections in use, by Little's law."""
        return self.rate * self.use_seconds


@dataclass(frozen=True, slots=True)
class WaitPrediction:
    """How long callers of a pool of some size wait; infinite if the pool can't serve the load."""

    size: int
    utilization: float  # 1.0 and more: the queue grows until callers time out or give up
    waiting_share: float  # callers that find no idle connection, 0.0 to 1.0
    mean: float  # seconds, of all callers
    p95: float


def predict(load: Load, size: int) -> WaitPrediction:
    """Return how long callers would wait.

    Raises:
        ValueError: The size is not 1 to MAX_POOL_SIZE.
    """
    if not 1 <= size <= MAX_POOL_SIZE:
        raise ValueError(f"a pool has 1 to {MAX_POOL_SIZE} connections, not {size}")
    offered = load.connections
    busy = offered / size
    if busy > 1.0 - 1e-9:  # 200/s of 0.02 s sum up to a little less than 4
        return WaitPrediction(size, busy, 1.0, math.inf, math.inf)
    share = erlang_c(size, offered)
    if share == 0.0:  # a large pool's share underflows
        return WaitPrediction(size, busy, 0.0, 0.0, 0.0)
    mean = load.use_seconds
    # In units of the mean use no square over- or underflows.
    load = Load(offered, tuple((low / mean, high / mean, part) for low, high, part in load.use))
    waiters = _mean_of_waiters(load, size, busy)
    p95 = 0.0
    if share > TARGET_WAIT_PROBABILITY:
        p95 = _quantile(*_waits(load, size, busy), TARGET_WAIT_PROBABILITY / share, waiters)
    return WaitPrediction(size, busy, share, mean * share * waiters, mean * p95)


def is_crowded(waited: float, predicted: float) -> bool:
    """Return whether callers wait longer (p95) than if they arrived at random, as predicted."""
    return waited > WAIT_SECONDS + CROWDED_FACTOR * predicted


def recommend_size(load: Load, *, at_least: int = 1) -> int:
    """Return the smallest size that meets TARGET_WAIT_PROBABILITY, or MAX_POOL_SIZE."""
    if load.connections >= MAX_POOL_SIZE:
        return MAX_POOL_SIZE
    for size, share in _erlang_c(load.connections):
        if size >= at_least and share <= TARGET_WAIT_PROBABILITY:
            return size
    return MAX_POOL_SIZE


def erlang_c(size: int, offered: float) -> float:
    """Return the share of callers that find all connections in use, if `offered` are on average.

    A. K. Erlang, 1917; by the recursion over B, which neither over- nor underflows.
    """
    return next(share for n, share in _erlang_c(offered) if n == size)


def _erlang_c(offered: float) -> Iterator[tuple[int, float]]:
    blocked = 1.0
    for n in range(1, MAX_POOL_SIZE + 1):
        blocked = offered * blocked / (n + offered * blocked)
        yield n, 1.0 if offered >= n else blocked / (1.0 - offered / n * (1.0 - blocked))


def candidate_sizes(load: Load, size: int | None) -> list[int]:
    """Return sizes worth comparing: the recommended one, the present one, smaller and larger."""
    best = recommend_size(load)
    every = {best, math.floor(min(load.connections, MAX_POOL_SIZE)) + 1}
    every |= {max(1, round(best * factor)) for factor in (0.7, 0.85, 1.25, 1.5, 2.0)}
    return sorted({min(one, MAX_POOL_SIZE) for one in every | ({size} if size else set())})


# How long a waiting caller waits


def _residual(load: Load, seconds: float) -> float:
    """Return the share of uses in progress that last for longer than this."""
    beyond = 0.0
    for low, high, share in load.use:
        if seconds <= low:
            beyond += share * ((low + high) / 2 - seconds)
        elif seconds < high:
            beyond += share * (high - seconds) ** 2 / (2 * (high - low))
    return beyond / load.use_seconds


def _longest(load: Load) -> float:
    return max(high for _, high, _ in load.use)


def _mean_of_waiters(load: Load, size: int, busy: float) -> float:
    longest, steps = _longest(load), 200
    ahead = sum(_residual(load, (i + 0.5) * longest / steps) ** size for i in range(steps))
    turn = load.weighted_use_seconds / 2 / size
    return ahead * longest / steps + busy / (1 - busy) * turn


def _waits(load: Load, size: int, busy: float) -> tuple[list[float], float]:
    """Return the share of waiters that still wait after each step, and a step's seconds."""
    longest = _longest(load)
    span = min(longest, 4 * _mean_of_waiters(load, size, busy)) if size > 1 else longest
    step = max(span, longest / size) / (_STEPS / 2)
    # Until the first is returned; and one turn of a queue that is served size times as fast.
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
    """Return after how many seconds a share still waits; beyond the grid it falls evenly."""
    before = 1.0
    for k, now in enumerate(survival):
        if now <= beyond:
            within = (before - beyond) / (before - now) if before > now else 1.0
            return (k + within) * step
        before = now
    half = len(survival) // 2
    decay = math.log(survival[half] / survival[-1]) / (len(survival) - 1 - half)
    if decay < 1e-9:  # the grid shows no end: the wait in a nearly full pool is exponential
        return mean * math.log(1.0 / beyond)
    return step * (len(survival) + math.log(survival[-1] / beyond) / decay)
