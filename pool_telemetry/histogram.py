"""Durations counted into fixed buckets. The caller holds the lock; nothing here allocates."""

from bisect import bisect_left
from typing import Final

from pool_telemetry.stats import HistogramStats

OPERATION_BOUNDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Seconds, as OpenTelemetry's conventions advise for database operations."""

POOL_BOUNDS: Final = tuple(
    sorted((*OPERATION_BOUNDS, 0.0001, 0.00025, 0.0005, 0.0025, 0.025, 0.25, 2.5))
)
"""Seconds: a wait for an idle connection takes some 50 µs, so the pool looks closer."""

_FOREVER: Final = float("inf")


class Histogram:
    """Counts per bucket, sum and maximum of what it saw, since it was made."""

    __slots__ = ("_bounds", "_counts", "_max", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._max = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration; a bucket's upper bound belongs to the bucket."""
        # A clock that jumped back, or no number at all: a sum never falls.
        if not 0.0 <= seconds < _FOREVER:
            seconds = 0.0
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds
        if seconds > self._max:
            self._max = seconds

    def stats(self) -> HistogramStats:
        """Return a frozen copy."""
        return HistogramStats(self._bounds, tuple(self._counts), self._sum, self._max)
