"""The state of a server by its heartbeats: whether it answers, since when, and how fast."""

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from pool_telemetry.standstill import later

STEADY_SECONDS: Final = 10.0
"""A server that fails within this time after its recovery was never well: it is one outage."""

SILENT_PERIODS: Final = 3
"""Periods without an event after which a server's monitor is silent; one may be late."""
MIN_SILENCE_SECONDS: Final = 5.0
"""A busy process may delay a monitor for this long, so a shorter pause is no silence."""


class MonitorTimes(NamedTuple):
    """The client's options that decide how often a server's monitor publishes an event."""

    period: float = 10.0  # seconds, heartbeatFrequencyMS
    connect_timeout: float = 20.0  # seconds, connectTimeoutMS; inf without a limit


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The latest heartbeat and what it continues; times are monotonic seconds.

    Attributes:
        changed_at: When `up` last changed.
        up: Whether the server answered; None while no heartbeat has an outcome.
        down_since: When the current outage began, or the last one; None if there was none.
        reason: The error's type if the server is down.
        rtt: The round-trip time, in seconds.
        server_type: The server's type by its last answer, as SDAM names it; None while unknown.
        last_at: When the monitor published its last event; None if it published none.
        in_flight: Whether a heartbeat has begun and has no outcome yet.
    """

    changed_at: float
    up: bool | None = None
    down_since: float | None = None
    reason: str | None = None
    rtt: float | None = None
    server_type: str | None = None
    last_at: float | None = None
    in_flight: bool = False

    def started(self, now: float) -> "Heartbeat":
        """Return the state with a heartbeat that has begun."""
        return replace(self, last_at=now, in_flight=True)

    def updated(
        self,
        now: float,
        *,
        up: bool,
        rtt: float | None,
        reason: str | None,
        server_type: str | None,
    ) -> "Heartbeat":
        """Return the next heartbeat; `rtt` None keeps the last one, except when it is down."""
        rtt = rtt if rtt is not None or not up else self.rtt
        following = replace(
            self,
            up=up,
            reason=reason,
            rtt=rtt,
            server_type=server_type,
            last_at=now,
            in_flight=False,
        )
        if not up and self.up is None:
            return replace(following, down_since=self.changed_at)  # it never answered
        if up is self.up:
            return following
        relapsed = self.down_since is not None and now - self.changed_at < STEADY_SECONDS
        down_since = self.down_since if up or relapsed else now
        return replace(following, changed_at=now, down_since=down_since)

    def silent_seconds(self, now: float, times: MonitorTimes) -> float:
        """Return how long the monitor has been silent; 0.0 if that is not too long.

        A heartbeat ends within a period and connectTimeoutMS, and the next one begins within a
        period.
        """
        if self.last_at is None:
            return 0.0
        most = max(SILENT_PERIODS * times.period, MIN_SILENCE_SECONDS)
        silent = now - self.last_at
        return silent if silent > most + (times.connect_timeout if self.in_flight else 0.0) else 0.0

    def without(self, seconds: float, now: float) -> "Heartbeat":
        """Return the state as if this process had not stood still for some seconds."""
        return replace(
            self,
            changed_at=later(self.changed_at, seconds, now),
            down_since=None if self.down_since is None else later(self.down_since, seconds, now),
            last_at=None if self.last_at is None else later(self.last_at, seconds, now),
        )
