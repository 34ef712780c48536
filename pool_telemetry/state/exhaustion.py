"""When a pool is exhausted, for how long in all, and whether it gives anything back.

Pure bookkeeping for `PoolState`, which holds the lock. Times are monotonic seconds.
"""

from dataclasses import dataclass
from typing import Final

_NEVER = float("inf")

NOTEWORTHY_SECONDS: Final = 0.1
"""What is shorter comes and goes with any load."""
RECOVERED_SECONDS: Final = 1.0
"""After so long without an episode of note the next one is another exhaustion."""


@dataclass(frozen=True, slots=True)
class Episodes:
    """The episodes that are over; `count` has the current one, too."""

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
        self.peak = 0  # of the queue, in this episode or the last of note
        self._peak_until = -_NEVER

    def noticed(self, waiting: int) -> None:
        """Note how long the queue is. Before it shrinks is enough."""
        if self.since is not None and waiting > self.peak:
            self.peak = waiting

    def settle(self, now: float, *, waiting: int, held: int, max_size: float) -> None:
        """Begin or end an episode."""
        demand, last = waiting + held, self.episodes
        if demand > max_size:
            if self.since is None:
                self.since = now
                self.episodes = Episodes(last.count + 1, last.seconds, last.until)
                self.last_silence = 0.0
                if now - self._peak_until >= RECOVERED_SECONDS:
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
                if lasted >= NOTEWORTHY_SECONDS:  # a queue's end flickers
                    self._peak_until = now
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
