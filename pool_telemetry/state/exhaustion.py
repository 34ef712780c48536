"""When a pool is exhausted, for how long in all, and when a connection was last checked in.

Used by `PoolState` only, which holds its lock. Times are monotonic seconds.
"""

from dataclasses import dataclass, replace
from typing import Final

from pool_telemetry.standstill import STANDSTILL_SECONDS, later, unnoticed_seconds

_NEVER = float("inf")

NOTEWORTHY_SECONDS: Final = 0.1
"""An exhaustion shorter than this is not logged: any load has such moments."""
RECOVERED_SECONDS: Final = 1.0
"""Exhaustions less than this apart are one: the end of a queue flickers at every hand-over."""


@dataclass(frozen=True, slots=True)
class Episodes:
    """The exhaustions so far.

    Attributes:
        count: How many, the current one included. It rises when one begins, never later, so that
            no reader sees a count that falls when the next exhaustion turns out to be the same.
        seconds: For how long the pool was exhausted, without the current time and without the
            gaps in which no caller had to wait.
        until: When the pool was last exhausted; None if it never was.
    """

    count: int = 0
    seconds: float = 0.0
    until: float | None = None


class Exhaustion:
    """A pool is exhausted while its waiters and holders together exceed max_size.

    `in_use + opening >= max_size` would instead flicker at every hand-over, and be true of the
    caller that opens the last connection itself.

    Attributes:
        since: When the current exhaustion began; None if the pool is not exhausted.
        episodes: The exhaustions so far.
        check_above: Waiters and holders above this number are a reason to call `update()`.
        unserved_since: When a caller first found no connection free, since the last check-in; None
            if none did.
        last_stall_seconds: The time without a check-in that the last check-in ended.
        peak: The longest queue of this exhaustion, or of the last one.
    """

    def __init__(self) -> None:
        self.since: float | None = None
        self.episodes = Episodes()
        self.check_above = _NEVER
        self.unserved_since: float | None = None
        self.last_stall_seconds = 0.0
        self.peak = 0

    def record_queue(self, waiting: int) -> None:
        """Record the length of the queue; to do so before it shrinks is enough."""
        if self.since is not None and waiting > self.peak:
            self.peak = waiting

    def update(self, now: float, *, waiting: int, held: int, max_size: float) -> None:
        """Begin or end an exhaustion, by the numbers of waiters and holders."""
        demand, last = waiting + held, self.episodes
        if demand > max_size:
            if self.since is None:
                self.since = now
                self.last_stall_seconds = 0.0
                if last.until is None or now - last.until >= RECOVERED_SECONDS:
                    self.episodes = Episodes(last.count + 1, last.seconds, last.until)
                    self.peak = 0
                if self.unserved_since is None:
                    self.unserved_since = now
            self.record_queue(waiting)
            # An inspection whenever the queue doubles bounds the ended waits that it counts.
            self.check_above = 2 * demand + 64
        else:
            if self.since is not None:
                lasted = _without_standstill(max(0.0, now - self.since))
                self.episodes = Episodes(last.count, last.seconds + lasted, until=now)
                self.since = None
                if held < max_size:  # otherwise the waiters just gave up
                    self.unserved_since = None
            self.check_above = min(max_size, 2 * demand + 1024)

    def record_check_in(self, now: float) -> None:
        """End the time without a check-in; while the pool is exhausted the next one begins."""
        if self.unserved_since is not None:
            self.last_stall_seconds = _without_standstill(now - self.unserved_since)
            self.unserved_since = None if self.since is None else now

    def forget(self) -> None:
        """Forget the times without a check-in of a pool that was closed."""
        self.unserved_since = None
        self.last_stall_seconds = 0.0

    def leave_out(self, seconds: float, now: float) -> None:
        """Leave out of every age some seconds for which this process stood still until now."""
        if self.since is not None:
            self.since = later(self.since, seconds, now)
        if self.unserved_since is not None:
            self.unserved_since = later(self.unserved_since, seconds, now)
        if self.episodes.until is not None:
            until = later(self.episodes.until, seconds, now)
            self.episodes = replace(self.episodes, until=until)


def _without_standstill(seconds: float) -> float:
    """Return an age that ends now, without the time for which this process just stood still."""
    if seconds < STANDSTILL_SECONDS:
        return seconds
    return max(0.0, seconds - unnoticed_seconds())
