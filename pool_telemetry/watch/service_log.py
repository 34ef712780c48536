"""Reports that one pool serves nobody, or that PyMongo's monitor of its server stands still.

The watching thread calls `check()` twice a second. An exhaustion has a report of its own, which
names the holders.
"""

from typing import Final

from pool_telemetry.log_lines import ProcessLog
from pool_telemetry.stats import LOST_SECONDS, SELECTION_SECONDS, PoolStats, pool_name
from pool_telemetry.watch.watched import Watched

UNSERVED_SECONDS: Final = 5.0
"""Callers that were not served for this long are reported; opening a connection takes less."""

_log: Final = ProcessLog("pool_telemetry.watch")


class ServiceLog:
    """The reports of one pool that are not over."""

    def __init__(self) -> None:
        self._unserved = self._silent = False
        # Timeouts and exhausted time at the check before.
        self._before: tuple[int, float] | None = None
        self._timeouts = 0  # of callers that found the pool not exhausted, not reported yet
        self._next_report_at = 0.0  # of these; monotonic seconds

    def check(self, watched: Watched, stats: PoolStats) -> None:
        """Report what has begun and what is over since the check before."""
        pool = pool_name(watched.name, (stats.host, stats.port))
        self._check_timeouts(watched, pool, stats)
        stalled = stats.exhausted and not stats.lost  # the exhaustion's report says so
        unserved = stats.unserved_time >= (LOST_SECONDS if stats.lost else UNSERVED_SECONDS)
        if unserved and not stalled and not self._unserved:
            self._unserved = True
            _log.warning("pool %r serves nobody: %s", pool, stats.unserved_text)
        elif self._unserved and not stats.unserved_time:
            self._unserved = False
            _log.warning("pool %r serves callers again, or nobody asks any more", pool)
        if stats.silent_time and not self._silent:
            self._silent = True
            _log.warning("pool %r: %s", pool, stats.silence_text)
        elif self._silent and not stats.silent_time:
            self._silent = False
            _log.warning("pool %r: PyMongo's monitor of %s is back", pool, stats.address)

    def _check_timeouts(self, watched: Watched, pool: str, stats: PoolStats) -> None:
        """Report timeouts without exhaustion, as by a deadline while connections open slowly."""
        timeouts, exhausted_time = stats.checkouts["timeout"], stats.exhausted_time
        before, self._before = self._before, (timeouts, exhausted_time)
        if before is not None and exhausted_time == before[1]:
            self._timeouts += timeouts - before[0]
        if not self._timeouts or watched.now() < self._next_report_at:
            return
        self._next_report_at = watched.now() + watched.options.notice_seconds
        _log.warning(
            "pool %r was not exhausted, and %s timed out: %d of %s in use, %d opening, the oldest "
            "for %.2f s; a connection takes %s to open",
            pool,
            "a checkout" if self._timeouts == 1 else f"{self._timeouts} checkouts",
            stats.in_use,
            "any number" if stats.max_size is None else stats.max_size,
            stats.opening,
            stats.oldest_opening,
            "an unknown time" if (mean := stats.create_time.mean) is None else f"{mean:.2f} s",
        )
        self._timeouts = 0


class SelectionLog:
    """Reports that callers of one client wait in server selection, and the end of that."""

    def __init__(self) -> None:
        self._reported = False
        self._next_report_at = 0.0  # monotonic seconds

    def check(self, watched: Watched) -> None:
        """Report what has begun or is over since the check before."""
        if not self._reported and not watched.server_selection.is_waited_for:
            return
        stats = watched.stats()
        selection = stats.server_selection
        may_report = not self._reported and watched.now() >= self._next_report_at
        if selection.oldest_wait >= SELECTION_SECONDS and may_report:
            self._reported = True
            self._next_report_at = watched.now() + watched.options.notice_seconds
            _log.warning("client %r: %s", watched.name, stats.selection_text)
        elif self._reported and not selection.waiting:
            self._reported = False
            _log.warning(
                "client %r: no caller waits in server selection any more, %d have failed there",
                watched.name,
                selection.failures,
            )
