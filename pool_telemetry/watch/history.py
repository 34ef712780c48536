"""How a client was: samples of the last five minutes, which a diagnosis compares with now.

The watching thread adds them; the latest are the closest together, for a trouble that began a
moment ago has to be told from what was before it.
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
_MOST: Final = 121  # where pools run dry again and again, fewer minutes have to do


class History:
    """One client's samples."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: deque[ClientStats] = deque(maxlen=_MOST)

    def samples(self) -> list[ClientStats]:
        """Return them, the oldest first."""
        with self._lock:
            return list(self._samples)

    def is_due(self, now: float) -> bool:
        """Return whether it is time for the next one, at a Unix time as in `ClientStats.at`."""
        return not self._samples or now - self._samples[-1].at >= _FRESH_APART

    def add(self, sample: ClientStats) -> None:
        """Take one, and drop what it makes too old or too close."""
        with self._lock:
            if self._samples:
                sample = _sharing(sample, self._samples[-1])
            self._samples.append(sample)
            kept = deque[ClientStats](maxlen=_MOST)
            known = set[tuple[str, int]]()
            for one in self._samples:
                age = sample.at - one.at
                close = age > FRESH_SECONDS and kept and one.at - kept[-1].at < _APART
                # A diagnosis of an exhaustion that is over reads the first sample of it.
                begun = _exhaustions(one) - known
                known |= begun
                if age <= HISTORY_SECONDS + 1.0 and (begun or not close):
                    kept.append(one)
            self._samples = kept


def _sharing(sample: ClientStats, last: ClientStats) -> ClientStats:
    """Return it with the objects of the last one: of hundreds of series of commands most rest."""
    known = {one.series: one for one in last.operations}
    operations = ((one, known.get(one.series)) for one in sample.operations)
    return replace(sample, operations=tuple(old if old == one else one for one, old in operations))


def _exhaustions(sample: ClientStats) -> set[tuple[str, int]]:
    """Return the exhaustions that a sample shows, each by its pool and its number there."""
    return {(pool.address, pool.exhaustions) for pool in sample.pools if pool.exhausted}
