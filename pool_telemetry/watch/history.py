"""Samples of a client from the last five minutes, which a diagnosis compares with the present.

The watching thread adds them. The latest samples are the closest together, so that a diagnosis can
tell a problem that began a moment ago from the time before it.
"""

import threading
from collections import deque
from dataclasses import replace
from typing import Final

from pool_telemetry.stats import ClientStats

FRESH_SECONDS: Final = 10.0
"""Samples younger than this are a second apart, older ones five."""
HISTORY_SECONDS: Final = 300.0

_FRESH_APART: Final = 1.0
_APART: Final = 5.0
_MAX_SAMPLES: Final = 121  # if a pool is exhausted again and again, these span fewer minutes


class History:
    """One client's samples."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: deque[ClientStats] = deque(maxlen=_MAX_SAMPLES)

    def samples(self) -> list[ClientStats]:
        """Return the samples, the oldest first."""
        with self._lock:
            return list(self._samples)

    def is_due(self, now: float) -> bool:
        """Return whether the next sample is due, at a Unix time as in `ClientStats.at`."""
        return not self._samples or now - self._samples[-1].at >= _FRESH_APART

    def add(self, sample: ClientStats) -> None:
        """Add a sample, and drop those that are now too old or too close together."""
        with self._lock:
            if self._samples:
                sample = _sharing(sample, self._samples[-1])
            self._samples.append(sample)
            kept = deque[ClientStats](maxlen=_MAX_SAMPLES)
            known = set[tuple[str, int]]()
            for one in self._samples:
                age = sample.at - one.at
                close = age > FRESH_SECONDS and kept and one.at - kept[-1].at < _APART
                # Keep the first sample of each exhaustion: findings about a past one use it.
                begun = _exhaustions(one) - known
                known |= begun
                if age <= HISTORY_SECONDS + 1.0 and (begun or not close):
                    kept.append(one)
            self._samples = kept


def _sharing(sample: ClientStats, last: ClientStats) -> ClientStats:
    """Return the sample with the last one's objects for all series of commands that did not change.

    A client has hundreds of series, and most of them are the same in two samples.
    """
    known = {one.series: one for one in last.operations}
    operations = ((one, known.get(one.series)) for one in sample.operations)
    return replace(sample, operations=tuple(old if old == one else one for one, old in operations))


def _exhaustions(sample: ClientStats) -> set[tuple[str, int]]:
    """Return the exhaustions that go on in a sample, each as its pool and its number there."""
    return {(pool.address, pool.exhaustions) for pool in sample.pools if pool.exhausted}
