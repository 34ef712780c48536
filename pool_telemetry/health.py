"""Is the pool well? A judgement over one snapshot, with its reasons in words and numbers.

Busy is not broken: a pool that is exhausted for a moment is degraded; one that is exhausted and
gives nothing back is unhealthy. Nothing flaps, because what ended a moment ago still counts.
"""

from dataclasses import dataclass
from typing import Literal

from pool_telemetry.options import LIMIT_SECONDS, check_number
from pool_telemetry.stats import ClientStats, HasStats, PoolStats, stats_of

Verdict = Literal["healthy", "degraded", "unhealthy"]
Finding = tuple[Verdict, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLimits:
    """When to worry. Seconds, all above 0.0 and finite.

    Attributes:
        stalled_seconds: A caller finds all connections taken, and for this long none comes back:
            that is unhealthy.
        outage_seconds: No server answers for this long: that is unhealthy.
        settle_seconds: What ended less than this ago still counts.

    Raises:
        PoolConfigurationError: A limit is out of range.
    """

    stalled_seconds: float = 30.0
    outage_seconds: float = 3.0
    settle_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("stalled_seconds", "outage_seconds", "settle_seconds"):
            check_number(name, getattr(self, name), LIMIT_SECONDS)


@dataclass(frozen=True, slots=True)
class Health:
    """A judgement and its reasons, worst first; no reasons when healthy."""

    status: Verdict
    reasons: tuple[str, ...] = ()


_RANK = {"unhealthy": 0, "degraded": 1, "healthy": 2}


def assess(
    stats: ClientStats | HasStats,
    limits: HealthLimits = HealthLimits(),  # frozen
) -> Health:
    """Judge one snapshot.

    Args:
        stats: The snapshot; or a `PoolTelemetry`, whose `stats()` are taken.
        limits: When to worry.

    Returns:
        unhealthy: no server answers for `outage_seconds`, until one does for `settle_seconds`; or
            a pool is stalled for `stalled_seconds`, until two check-ins come closer together than
            that or the exhaustion ends.
        degraded: a pool is exhausted or timed callers out, a server is gone or its pool paused,
            now or less than `settle_seconds` ago; or the client was not used yet.
        healthy: none of these.
    """
    stats = stats_of(stats)
    if not stats.pools:
        return Health("degraded", ("no server is known yet: this process did not use the client",))
    findings: list[Finding] = []
    reachable = [pool for pool in stats.open_pools if _reachable(pool, limits)]
    if not reachable:
        lost = ", ".join(pool.why_down for pool in stats.open_pools) or "the client is closed"
        findings.append(("unhealthy", f"no server can be reached: {lost}"))
    for pool in stats.open_pools:
        findings += _findings(pool, limits)
        if reachable and pool.up is False:
            findings.append(("degraded", pool.why_down))
    findings.sort(key=lambda finding: _RANK[finding[0]])
    status = findings[0][0] if findings else "healthy"
    return Health(status, tuple(reason for _, reason in findings))


def _reachable(pool: PoolStats, limits: HealthLimits) -> bool:
    """Return whether to count on a server; both ways only after a time, so that it can't flap."""
    if pool.up is None:
        return pool.phase == "ready" or pool.since_up_changed < limits.outage_seconds
    settled = bool(pool.up) and pool.since_up_changed >= limits.settle_seconds
    return settled or pool.outage < limits.outage_seconds


def _findings(pool: PoolStats, limits: HealthLimits) -> list[Finding]:
    found: list[Finding] = []
    if pool.stalled_time > limits.stalled_seconds:
        found.append(
            (
                "unhealthy",
                f"{pool.address} has all connections taken and none came back for "
                f"{pool.stalled_time:.1f} s: {pool.in_use} of {pool.max_size} in use, "
                f"{pool.waiting} waiting, the longest checkout {pool.longest_checkout:.1f} s old",
            )
        )
    elif pool.exhausted:
        found.append(
            (
                "degraded",
                f"{pool.address} is exhausted: {pool.in_use} of {pool.max_size} in use, "
                f"{pool.waiting} waiting, the oldest for {pool.oldest_wait:.2f} s",
            )
        )
    elif _lately(pool.since_exhausted, limits):
        found.append(("degraded", f"{pool.address} was exhausted {pool.since_exhausted:.1f} s ago"))
    if _lately(pool.since_timeout, limits):
        found.append(
            ("degraded", f"{pool.address} timed a caller out {pool.since_timeout:.1f} s ago")
        )
    if pool.up and pool.phase == "paused":
        found.append(("degraded", f"{pool.address} is paused: its last connection failed"))
    elif pool.up and pool.outage and pool.since_up_changed < limits.settle_seconds:
        found.append(
            (
                "degraded",
                f"{pool.address} is back since {pool.since_up_changed:.1f} s, "
                f"after {pool.outage:.1f} s",
            )
        )
    return found


def _lately(age: float | None, limits: HealthLimits) -> bool:
    return age is not None and age < limits.settle_seconds
