"""Is the pool well? A judgement over one snapshot, with its reasons in words and numbers.

Busy is not broken: a pool that is exhausted for a moment is degraded; one that is exhausted and
gives nothing back is unhealthy. Nothing flaps, because what ended a moment ago still counts.
"""

from dataclasses import dataclass
from typing import Literal

from pool_telemetry.errors import PoolConfigurationError
from pool_telemetry.stats import ClientStats, PoolStats

Verdict = Literal["healthy", "degraded", "unhealthy"]
Finding = tuple[Verdict, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLimits:
    """When to worry. Seconds, all above 0.0.

    Attributes:
        stalled_seconds: Exhausted this long without a check-in is unhealthy.
        settle_seconds: A trouble that ended less than this ago is still degraded.

    Raises:
        PoolConfigurationError: A limit is not above 0.0.
    """

    stalled_seconds: float = 30.0
    settle_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("stalled_seconds", "settle_seconds"):
            if not getattr(self, name) > 0.0:
                raise PoolConfigurationError(f"{name} is {getattr(self, name)}: use above 0.0")


@dataclass(frozen=True, slots=True)
class Health:
    """A judgement and its reasons, worst first; no reasons when healthy."""

    status: Verdict
    reasons: tuple[str, ...] = ()


_RANK = {"unhealthy": 0, "degraded": 1, "healthy": 2}


def assess(stats: ClientStats, limits: HealthLimits = HealthLimits()) -> Health:  # frozen
    """Judge one snapshot.

    Returns:
        unhealthy: no server answers, or a pool is stalled: exhausted with no check-in for
            `stalled_seconds`. It stays so until two check-ins come closer together than that,
            or the exhaustion ends.
        degraded: a pool is exhausted or timed callers out, a server is gone or its pool paused,
            now or less than `settle_seconds` ago.
        healthy: none of these.
    """
    findings: list[Finding] = []
    if not stats.connected:
        down = ", ".join(_down(pool) for pool in stats.open_pools) or "no server is known yet"
        findings.append(("unhealthy", f"no server can be reached: {down}"))
    for pool in stats.open_pools:
        findings += _findings(pool, limits)
    findings.sort(key=lambda finding: _RANK[finding[0]])
    status = findings[0][0] if findings else "healthy"
    return Health(status, tuple(reason for _, reason in findings))


def _down(pool: PoolStats) -> str:
    if pool.up is None:
        return f"{pool.address} has not answered yet"
    return f"{pool.address} down for {pool.since_up_changed:.1f} s ({pool.down_reason})"


def _findings(pool: PoolStats, limits: HealthLimits) -> list[Finding]:
    found: list[Finding] = []
    if pool.stalled_time > limits.stalled_seconds:
        found.append(
            (
                "unhealthy",
                f"{pool.address} is exhausted and no connection came back for "
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
    if pool.up is False:
        found.append(("degraded", _down(pool)))
    elif pool.phase == "paused":
        found.append(("degraded", f"{pool.address} is paused: its last connection failed"))
    elif pool.was_down and pool.since_up_changed < limits.settle_seconds:
        found.append(
            ("degraded", f"{pool.address} is back since {pool.since_up_changed:.1f} s only")
        )
    return found


def _lately(age: float | None, limits: HealthLimits) -> bool:
    return age is not None and age < limits.settle_seconds
