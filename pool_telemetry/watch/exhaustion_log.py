"""Reports the exhaustions of one pool: log lines at the beginning and the end, and callbacks.

The watching thread calls `check()` twice a second. Exhaustions that are short, or that follow the
last report too soon, are counted only; a later line has their number.
"""

from typing import Final

from pool_telemetry.log_lines import ProcessLog
from pool_telemetry.state.exhaustion import NOTEWORTHY_SECONDS, RECOVERED_SECONDS
from pool_telemetry.state.pool_state import PoolState
from pool_telemetry.stats import CallerStats, Episode, PoolStats, pool_name
from pool_telemetry.watch.watched import TOP_HOLDERS, Watched

_log: Final = ProcessLog("pool_telemetry.watch")


class ExhaustionLog:
    """The exhaustion of one pool, and the reports of it.

    Attributes:
        exhausted: Whether an exhaustion goes on that is long enough for a report.
    """

    def __init__(self) -> None:
        self.exhausted = False
        # The pool's name when its exhaustion began: another client may take the name over.
        self._pool = ""
        self._time_before = 0.0  # exhausted_time and timeouts before the exhaustion
        self._timeouts_before = 0
        self._peak_waiting = 0
        self._holders: tuple[CallerStats, ...] = ()
        self._reported = False
        self._next_report_at = 0.0  # monotonic seconds: no report before
        self._unreported = 0  # exhaustions that ended without a report, and their total seconds
        self._unreported_seconds = 0.0

    def check(self, watched: Watched, state: PoolState, stats: PoolStats) -> None:
        """Compare the pool with the check before, and report what has changed."""
        now = watched.now()
        may_report = now >= self._next_report_at
        if not self.exhausted and not self._begins(stats):
            if self._unreported and may_report:
                self._next_report_at = now + watched.options.notice_seconds
                self._log_unreported(watched, stats)
            if not stats.exhausted:
                self._reset(stats)
            return
        if not self.exhausted:
            self.exhausted, self._peak_waiting, self._holders = True, 0, ()
            self._pool = pool_name(watched.name, state.address)
        self._peak_waiting = max(self._peak_waiting, stats.peak_waiting)
        if stats.exhausted or not self._holders:
            self._holders = _top_holders(watched, state)
        if not self._reported and may_report:
            self._reported = True
            self._next_report_at = now + watched.options.notice_seconds
            self._log_exhausted(watched, stats)
        if stats.phase == "closed" or _has_recovered(stats):
            if self._reported:
                self._log_recovered(watched, stats)
            else:
                self._unreported += 1
                self._unreported_seconds += stats.exhausted_time - self._time_before
            self.exhausted = self._reported = False
            self._reset(stats)

    def _begins(self, stats: PoolStats) -> bool:
        if stats.phase == "closed":
            return False
        new = stats.exhausted_time - self._time_before
        timed_out = stats.checkouts["timeout"] > self._timeouts_before
        return new >= NOTEWORTHY_SECONDS or (new > 0.0 and timed_out)

    def _reset(self, stats: PoolStats) -> None:
        self._time_before = stats.exhausted_time
        self._timeouts_before = stats.checkouts["timeout"]

    def _episode(self, stats: PoolStats) -> Episode:
        return Episode(
            pool=self._pool,
            max_size=stats.max_size,
            in_use=stats.in_use,
            waiting=stats.waiting,
            seconds=stats.exhausted_time - self._time_before,
            peak_waiting=self._peak_waiting,
            timeouts=stats.checkouts["timeout"] - self._timeouts_before,
            holders=self._holders,
        )

    def _log_exhausted(self, watched: Watched, stats: PoolStats) -> None:
        episode = self._episode(stats)
        _log.warning(
            "pool %r %s%s; %s%s",
            episode.pool,
            f"is exhausted: {_in_use(stats)}, {stats.waiting} waiting, "
            f"the oldest for {stats.oldest_wait:.2f} s"
            # While the waiters are given the connections that were just returned, fewer are in use.
            if stats.exhausted and stats.in_use + stats.opening >= (stats.max_size or 0)
            else f"was exhausted for {episode.seconds:.2f} s: at most {episode.peak_waiting} "
            f"waited for one of {stats.max_size} connections",
            f", {episode.timeouts} timeouts" if episode.timeouts else "",
            f"held by {_describe(episode)}" if episode.holders else "no connection is held now",
            f" (exhausted {_more_times(self._unreported)} since the last report)"
            if self._unreported
            else "",
        )
        self._unreported, self._unreported_seconds = 0, 0.0
        watched.callbacks.call(watched.options.on_exhausted, episode)

    def _log_recovered(self, watched: Watched, stats: PoolStats) -> None:
        episode = self._episode(stats)
        # Both lines have the same level, so that a filter shows both or neither.
        _log.warning(
            "pool %r %s after %.2f s of exhaustion: at most %d waited, %d checkouts timed out; %s",
            episode.pool,
            "was closed" if stats.phase == "closed" else "has recovered",
            episode.seconds,
            episode.peak_waiting,
            episode.timeouts,
            f"it was held by {_describe(episode)}" if episode.holders else "no holder was seen",
        )
        watched.callbacks.call(watched.options.on_recovered, episode)

    def _log_unreported(self, watched: Watched, stats: PoolStats) -> None:
        _log.warning(
            "pool %r was exhausted %s since the last report, for %.2f s in total",
            pool_name(watched.name, (stats.host, stats.port)),
            _more_times(self._unreported),
            self._unreported_seconds,
        )
        self._unreported, self._unreported_seconds = 0, 0.0


def _has_recovered(stats: PoolStats) -> bool:
    # A pool has not recovered if its waiters only timed out and no connection was returned since:
    # the next caller would wait, too. Nor has it if its server is down, or no caller was served.
    quiet = not stats.exhausted and not stats.stalled_time
    usable = stats.up is not False and stats.phase == "ready" and not stats.unserved_time
    return quiet and usable and (stats.since_exhausted or 0.0) >= RECOVERED_SECONDS


def _top_holders(watched: Watched, state: PoolState) -> tuple[CallerStats, ...]:
    every = watched.holders_by_connection(state)[1].values()
    return tuple(sorted(every, key=lambda one: one.seconds, reverse=True)[:TOP_HOLDERS])


def _in_use(stats: PoolStats) -> str:
    opening = f", {stats.opening} opening" if stats.opening else ""
    return f"{stats.in_use} of {stats.max_size} in use{opening}"


def _describe(episode: Episode) -> str:
    return "; ".join(one.describe() for one in episode.holders)


def _more_times(count: int) -> str:
    return "once more" if count == 1 else f"{count} more times"
