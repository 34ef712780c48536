"""For how long one server's pool has served no caller, and a client's server refused its commands.

The states ask at each of their readings, so nothing of this is on the hot path. Times are monotonic
seconds.
"""

from collections.abc import Sequence
from typing import Final

from pool_telemetry.standstill import later
from pool_telemetry.stats import LOST_SECONDS, RefusalStats

QUIET_SECONDS: Final = 10.0
"""Without a caller that waits or fails for this long, nobody is known to be unserved.

Long enough that callers which fail one after another, with pauses, count together.
"""


class Service:
    """The facts about one pool's service that its readings show.

    Attributes:
        served_at: When a reading last found that a caller had been served; None if none did.
    """

    def __init__(self) -> None:
        self._served = self._failures = 0
        self.served_at: float | None = None
        self._unserved_since: float | None = None
        self._asked_at = 0.0  # when a reading last found a caller that waited or had failed
        self._created, self._created_at = 0, 0.0  # connections, and when a reading last found more

    def unserved_seconds(
        self, now: float, served: int, failures: int, waits: Sequence[float]
    ) -> float:
        """Return for how long callers have waited or failed while none was served.

        It does not grow while no caller asks.

        Args:
            now: The time of the reading.
            served: Checkouts so far that ended with a connection, and connections returned so far.
            failures: Checkouts so far that ended without one.
            waits: When each caller that waits now began.
        """
        if served != self._served:
            self._served, self.served_at, self._unserved_since = served, now, None
            self._failures = failures
        elif waits or failures != self._failures:
            self._failures, self._asked_at = failures, now
            if self._unserved_since is None:
                self._unserved_since = max(min(waits, default=now), self.served_at or 0.0)
        elif now - self._asked_at > QUIET_SECONDS:
            self._unserved_since = None
        since = self._unserved_since
        return 0.0 if since is None else max(0.0, self._asked_at - since)

    def is_lost(self, now: float, unserved: float, *, created: int, may_open: bool) -> bool:
        """Return whether callers wait although PyMongo may open connections, and it opens none.

        Args:
            now: The time of the reading.
            unserved: Its `unserved_seconds`.
            created: Connections created so far.
            may_open: Whether the pool is ready, not full, and no connection is being opened.
        """
        if created != self._created or not may_open:
            self._created, self._created_at = created, now
        return min(unserved, now - self._created_at) >= LOST_SECONDS

    def leave_out(self, seconds: float, now: float) -> None:
        """Leave out of every age some seconds for which this process stood still until now."""
        if self.served_at is not None:
            self.served_at = later(self.served_at, seconds, now)
        self._asked_at = later(self._asked_at, seconds, now)
        self._created_at = later(self._created_at, seconds, now)
        if self._unserved_since is not None:
            self._unserved_since = later(self._unserved_since, seconds, now)


class Refusals:
    """The refusals by an overloaded server that readings of one client's commands show."""

    def __init__(self) -> None:
        self._answered = self._refused = 0
        self._since = 0.0  # when a reading first found new refusals, since the last answer
        self._at: float | None = None  # when a reading last found new refusals

    def record(self, now: float, *, answered: int, refused: int) -> None:
        """Record the commands so far that succeeded, and that the server refused."""
        pause = now - (self._at or 0.0)
        if answered != self._answered or self._at is None or pause > QUIET_SECONDS:
            self._answered, self._since = answered, now
        if refused != self._refused:
            self._refused, self._at = refused, now

    def stats(self, now: float) -> RefusalStats:
        """Return when commands were refused, and for how long none succeeded meanwhile."""
        if self._at is None:
            return RefusalStats()
        return RefusalStats(max(0.0, now - self._at), max(0.0, self._at - self._since))

    def leave_out(self, seconds: float, now: float) -> None:
        """Leave out of every age some seconds for which this process stood still until now."""
        self._since = later(self._since, seconds, now)
        if self._at is not None:
            self._at = later(self._at, seconds, now)
