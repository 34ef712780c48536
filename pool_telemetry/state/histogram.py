"""Durations counted into fixed buckets. The caller holds the lock; nothing here grows."""

import time
from bisect import bisect_left
from typing import Final

from pool_telemetry.stats import Exemplar, FindTraceLink, HistogramStats

OPERATION_BOUNDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Seconds, as OpenTelemetry's conventions advise for database operations."""

POOL_BOUNDS: Final = tuple(
    sorted((*OPERATION_BOUNDS, 0.0001, 0.00025, 0.0005, 0.0025, 0.025, 0.25, 2.5))
)
"""Seconds: a wait for an idle connection takes some 50 µs, so the pool looks closer."""

EXEMPLAR_SECONDS: Final = 1.0
"""A bucket's exemplar stays at least so long."""

_FOREVER: Final = float("inf")


class Histogram:
    """Counts per bucket, sum and maximum of what it saw, since it was made."""

    __slots__ = ("_bounds", "_counts", "_due", "_exemplars", "_max", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._max = 0.0
        self._exemplars: dict[int, Exemplar] = {}
        self._due = [0.0] * len(self._counts)  # monotonic: from when on a bucket takes another

    def observe(self, seconds: float, link: FindTraceLink | None = None) -> None:
        """Count one duration; a bucket's upper bound belongs to the bucket.

        With a link it becomes the bucket's exemplar, unless that is less than a second old.
        """
        if not 0.0 <= seconds <= self._max:
            seconds = self._rare(seconds)
        bucket = bisect_left(self._bounds, seconds)
        self._counts[bucket] += 1
        self._sum += seconds
        if link is not None and (now := time.monotonic()) >= self._due[bucket]:
            found = link()
            if found is not None:
                self._exemplars[bucket] = Exemplar(found, seconds, time.time())
                self._due[bucket] = now + EXEMPLAR_SECONDS

    def _rare(self, seconds: float) -> float:
        """Note a new maximum. A clock that jumped back, or no number at all, counts as nothing."""
        if not 0.0 <= seconds < _FOREVER:  # a sum never falls
            return 0.0
        self._max = seconds
        return seconds

    def stats(self) -> HistogramStats:
        """Return a frozen copy."""
        exemplars = self._exemplars.copy()
        return HistogramStats(self._bounds, tuple(self._counts), self._sum, self._max, exemplars)
