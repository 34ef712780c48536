"""What a server's heartbeats say: whether it is there, since when, and how far."""

from dataclasses import dataclass, replace
from typing import Final

# A server that fails again so soon after it came back was never well: it is one outage.
STEADY_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last one, with what it followed."""

    changed: float  # when `up` last changed
    up: bool | None = None
    down_since: float | None = None  # where the outage began that is the last, or lasts
    reason: str | None = None
    rtt: float | None = None

    def then(self, now: float, *, up: bool, rtt: float | None, reason: str | None) -> "Heartbeat":
        """Return the next; `rtt` None leaves the last one, except when it is down."""
        rtt = rtt if rtt is not None or not up else self.rtt
        following = replace(self, up=up, reason=reason, rtt=rtt)
        if not up and self.up is None:
            return replace(following, down_since=self.changed)  # it never answered
        if up is self.up:
            return following
        again = self.down_since is not None and now - self.changed < STEADY_SECONDS
        down_since = self.down_since if up or again else now
        return replace(following, changed=now, down_since=down_since)
