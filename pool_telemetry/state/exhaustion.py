"""When a pool is exhausted, for how long in all, and whether it gives anything back.

Pure bookkeeping for `PoolState`, which holds the lock. Times are monotonic seconds.
"""

from dataclasses import dataclass
from typing import Final

_NEVER = float("inf")

NOTEWORTHY_SECONDS: Final = 0.1
"""An exhaustion shorter than this is not logged: any load has such moments."""
RECOVERED_SECONDS: Final = 1.0
"""Exhaustions less than this apart are one: the end of a queue flickers at every hand-over."""


@dataclass(frozen=True, slots=True)
class Episodes:
    """The exhaustions so far.

    Attributes:
        count: How many, the current one included. It rises when one begins, never later: so no
            reader sees a count that is taken back when the next one turns out to be the same.
        seconds: For how long the pool was exhausted, without the current time and without the
            gaps in which nobody had to wait.
        until: When the pool was last exhausted, monotonic seconds; None if it never was.
    """

    count: int = 0
    seconds: float = 0.0
    until: float | None = None


class Exhaustion:
    """Callers and holders together exceed max_size: someone stands in the queue for lack of one.

    `in_use + opening >= max_size` would instead flicker at every hand-over, and be true of the
    caller who opens the last connection himself.
    """

    def __init__(self) -> None:
        self.since: float | None = None
        self.episodes = Episodes()
        self.alarm = _NEVER  # demand above this is worth a look
        # When a caller first found nothing free, since the last check-in; and the silence before.
        self.unmet_since: float | None = None
        self.last_silence = 0.0
        self.peak = 0  # of the queue, in this exhaustion or the last one

    def noticed(self, waiting: int) -> None:
        """Note how long the queue is. Before it shrinks is enough."""
        if self.since is not None and waiting > self.peak:
            self.peak = waiting

    def settle(self, now: float, *, waiting: int, held: int, max_size: float) -> None:
        """Note that the pool is exhausted from now on, or no more."""
        demand, last = waiting + held, self.episodes
        if demand > max_size:
            if self.since is None:
                self.since = now
                self.last_silence = 0.0
                if last.until is None or now - last.until >= RECOVERED_SECONDS:
                    self.episodes = Episodes(last.count + 1, last.seconds, last.until)
                    self.peak = 0
                if self.unmet_since is None:
                    self.unmet_since = now
            self.noticed(waiting)
            self.alarm = 2 * demand + 64  # a look when the queue doubles keeps ghosts bounded
        else:
            if self.since is not None:
                lasted = max(0.0, now - self.since)
                self.episodes = Episodes(last.count, last.seconds + lasted, until=now)
                self.since = None
                if held < max_size:  # else the waiters just gave up
                    self.unmet_since = None
            self.alarm = min(max_size, 2 * demand + 1024)

    def came_back(self, now: float) -> None:
        """Note a check-in."""
        if self.unmet_since is not None:
            self.last_silence = now - self.unmet_since
            self.unmet_since = None if self.since is None else now

    def forget(self) -> None:
        """Forget the silence of a pool that is no more."""
        self.unmet_since = None
        self.last_silence = 0.0
