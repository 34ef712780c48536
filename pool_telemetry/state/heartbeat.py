"""The state of a server by its heartbeats: whether it answers, since when, and how fast."""

from dataclasses import dataclass, replace
from typing import Final

STEADY_SECONDS: Final = 10.0
"""A server that fails within this time after its recovery was never well: it is one outage."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The latest heartbeat and what it continues; times are monotonic seconds.

    Attributes:
        changed_at: When `up` last changed.
        up: Whether the server answered; None while no heartbeat has an outcome.
        down_since: When the current outage began, or the last one; None if there was none.
        reason: The error's type if the server is down.
        rtt: The round-trip time, in seconds.
    """

    changed_at: float
    up: bool | None = None
    down_since: float | None = None
    reason: str | None = None
    rtt: float | None = None

    def updated(
        self, now: float, *, up: bool, rtt: float | None, reason: str | None
    ) -> "Heartbeat":
        """Return the next heartbeat; `rtt` None keeps the last one, except when it is down."""
        rtt = rtt if rtt is not None or not up else self.rtt
        following = replace(self, up=up, reason=reason, rtt=rtt)
        if not up and self.up is None:
            return replace(following, down_since=self.changed_at)  # it never answered
        if up is self.up:
            return following
        relapsed = self.down_since is not None and now - self.changed_at < STEADY_SECONDS
        down_since = self.down_since if up or relapsed else now
        return replace(following, changed_at=now, down_since=down_since)
