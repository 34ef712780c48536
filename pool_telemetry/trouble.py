"""Which part of a pool's life is a trouble: by how callers waited there, and what failed.

Pure; made for `case.py` of the differences that `window.py` makes.
"""

import math
from typing import Final

from pool_telemetry.stats import CANCELLED, HistogramStats, merge
from pool_telemetry.window import Series, Window

RECENT_SECONDS: Final = 300.0
"""A trouble younger than this still asks for a change."""
WAIT_SECONDS: Final = 0.05
"""Waits of 5 % of the callers below this are no trouble."""
EXHAUSTED_SHARE: Final = 0.2
DRY_SECONDS: Final = 0.1
"""An exhaustion has to be as long as both, or comes and goes with any load."""
SLOWER: Final = 3.0
"""So many times their usual duration makes operations slow."""
SLOW_SECONDS: Final = 0.1
"""Commands of this length are slow where it is not known what is usual."""
FAILED_SHARE: Final = 0.2
"""Of all attempts; less is no storm."""
FEW: Final = 20
"""Uses, commands or checkouts; fewer tell nothing of a rate or a mean."""

USES: Final[Series] = ("", "", "operations", "")
"""Stands for all commands where none was timed."""

_GAP_SECONDS: Final = 10.0  # between two troubles; what is closer is one
# Errors after which PyMongo, or its caller, tries again (MongoDB's retryable reads and writes).
_RETRYABLE: Final = frozenset(
    map(str, (6, 7, 89, 91, 134, 189, 262, 317, 358, 384, 9001, 10107, 11600, 11602, 13435, 13436))
)


def command_times(part: Window) -> dict[Series, HistogramStats]:
    """Return the commands' durations; where they are not timed, the connections' use as one.

    A getMore waits for news, if it is of a change stream: its time tells nothing. That of one that
    was cancelled does: it would have taken longer still.
    """
    if not part.operations and part.use_time is not None:
        return {USES: part.use_time}
    found: dict[Series, list[HistogramStats]] = {}
    for series, duration in part.operations.items():
        if series[2] != "getMore" and series[3] in ("", CANCELLED):
            found.setdefault((*series[:3], ""), []).append(duration)
    return {series: summed for series, every in found.items() if (summed := merge(every))}


def failures(part: Window) -> tuple[int, int]:
    """Return how many attempts failed so that one tries again, and how many there were."""
    failed = sum(
        duration.count
        for series, duration in part.operations.items()
        if series[3] not in ("", CANCELLED)
        and (series[3] in _RETRYABLE or not series[3].isdecimal())
    )
    errors = part.checkouts["connection_error"]
    every = sum(duration.count for duration in part.operations.values())
    return failed + errors, every + errors


def cancelled_share(part: Window) -> float:
    """Return the share of the commands whose callers did not wait for the answer."""
    every = sum(duration.count for duration in part.operations.values())
    cancelled = (d.count for series, d in part.operations.items() if series[3] == CANCELLED)
    return sum(cancelled) / every if every else 0.0


def fails(part: Window) -> bool:
    """Return whether too many of the attempts failed."""
    failed, attempts = failures(part)
    return failed > 0 and failed >= FAILED_SHARE * attempts


def is_dry(part: Window) -> bool:
    """Return whether callers waited for too long."""
    last = part.last
    if part.whole and part.seconds > RECENT_SECONDS:  # too long for shares
        long = last.exhausted_time >= DRY_SECONDS
        dry = last.exhausted or (long and _recent(last.since_exhausted))
        return dry or _recent(last.since_timeout)
    return (
        (part.exhausted_share >= EXHAUSTED_SHARE and part.exhausted_time >= DRY_SECONDS)
        or part.checkouts["timeout"] > 0
        or quantile(part.wait_time, 0.95) >= WAIT_SECONDS
        or (last.waiting > 0 and last.oldest_wait >= WAIT_SECONDS)
    )


def is_crowded(waited: float, predicted: float) -> bool:
    """Return whether callers wait for longer (p95) than if they came at random, as predicted."""
    return waited > WAIT_SECONDS + 3.0 * predicted


def last_run(dry: list[Window]) -> list[Window]:
    """Return those that hang together with the last one."""
    run = dry[-1:]
    for one in reversed(dry[:-1]):
        if run[0].until - run[0].seconds - one.until > _GAP_SECONDS:
            break
        run.insert(0, one)
    return run


def before_it_got_worse(dry: list[Window]) -> list[Window]:
    """Return the time before connections came to be held for much longer; nothing if they did not.

    For who has no other time to compare with.
    """
    uses = [(one.used, one.use_time.count if one.use_time else 0) for one in dry]
    every, count = (sum(each) for each in zip(*uses, strict=True)) if uses else (0.0, 0)
    best, until, spent, ended = SLOWER, 0, 0.0, 0
    for i, (seconds, uses_now) in enumerate(uses[:-1], 1):
        spent, ended = spent + seconds, ended + uses_now
        if ended < FEW or count == ended:
            continue
        mean = (every - spent) / (count - ended)
        if mean >= max(best * spent / ended, SLOW_SECONDS / 5):
            best, until = mean * ended / spent if spent else math.inf, i
    return dry[:until]


def _recent(age: float | None) -> bool:
    return age is not None and age < RECENT_SECONDS


def mean_of(histogram: HistogramStats | None) -> float:
    """Return the mean in seconds; 0.0 where nothing was seen."""
    return (histogram.mean if histogram else None) or 0.0


def quantile(histogram: HistogramStats | None, q: float) -> float:
    """Return a quantile in seconds; 0.0 where nothing was seen."""
    return (histogram.quantile(q) if histogram else None) or 0.0


def count_above(histogram: HistogramStats, seconds: float) -> int:
    """Return how many may have taken longer."""
    bounds = (*histogram.bounds, math.inf)
    return sum(n for most, n in zip(bounds, histogram.counts, strict=True) if most > seconds)
