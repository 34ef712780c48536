"""The health of a client, judged from one snapshot, with the reasons in words and numbers.

An exhausted pool is degraded. A client is unhealthy when it serves nobody: no connection is
returned or can be opened, no server answers or fits, or the driver itself stands still. The status
does not flap, because a problem that just ended still counts for a while.
"""

from dataclasses import dataclass
from typing import Final, Literal

from pool_telemetry.ranges import Range, check_number
from pool_telemetry.stats import (
    SELECTION_SECONDS,
    ClientStats,
    HasStats,
    PoolStats,
    stats_of,
)

Status = Literal["healthy", "degraded", "unhealthy"]
Reason = tuple[Status, str]

LIMIT_SECONDS: Final = Range("a number of seconds, above 0.0 and finite", 5e-324)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLimits:
    """The limits that decide the status. Seconds, all above 0.0 and finite.

    Attributes:
        stalled_seconds: A pool is unhealthy when it is exhausted and no connection was returned for
            longer than this, or when callers waited for longer and none was served.
        outage_seconds: The client is unhealthy when no server has answered for this long, and
            degraded when callers have waited for this long and none was served.
        settle_seconds: A problem that ended less than this ago still counts.

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
    """The status and its reasons, worst first; no reasons when healthy."""

    status: Status
    reasons: tuple[str, ...] = ()


_RANK = {"unhealthy": 0, "degraded": 1, "healthy": 2}


def worst(status: Status) -> int:
    """Return a key that sorts the worst status first."""
    return _RANK[status]


def assess(
    stats: ClientStats | HasStats,
    limits: HealthLimits = HealthLimits(),  # frozen
) -> Health:
    """Return the health of a client at one snapshot.

    Args:
        stats: The snapshot; or a `PoolTelemetry`, whose `stats()` are taken.
        limits: How long a problem may last.

    Returns:
        unhealthy: No server has answered for `outage_seconds`, until a server has answered for
            `settle_seconds`. Or a pool was stalled for `stalled_seconds`, until its exhaustion ends
            or two check-ins are closer together than that. Or callers have waited for a connection
            for `stalled_seconds`, and none was served; or the server refused every command for so
            long, because it is overloaded. Or a server's monitor is silent for several
            periods. Or a caller failed in server selection less than `settle_seconds` ago, because
            no server is left or none is the primary, or while no other caller was served.
        degraded: A pool is exhausted or paused, a checkout timed out, a server is down, or an
            overloaded server refused commands, now or less than `settle_seconds` ago. Or no member
            of a replica set is the primary, or callers wait in server selection. Or this process
            has not used the client yet.
        healthy: None of these.
    """
    stats = stats_of(stats)
    if not stats.pools and not stats.has_no_server:
        reason = "no server is known yet, because this process has not used the client"
        return Health("degraded", (reason,))
    reasons = _selection_reasons(stats, limits) + _refusal_reasons(stats, limits)
    reachable = [pool for pool in stats.open_pools if _reachable(pool, limits)]
    if not reachable and not stats.has_no_server:
        lost = ", ".join(pool.outage_text for pool in stats.open_pools) or "the client is closed"
        reasons.append(("unhealthy", f"no server can be reached: {lost}"))
    for pool in stats.open_pools:
        reasons += _reasons(pool, limits)
        if reachable and pool.up is False:
            reasons.append(("degraded", pool.outage_text))
    reasons.sort(key=lambda reason: worst(reason[0]))
    status = reasons[0][0] if reasons else "healthy"
    return Health(status, tuple(text for _, text in reasons))


def _selection_reasons(stats: ClientStats, limits: HealthLimits) -> list[Reason]:
    selection = stats.server_selection
    failing = _is_recent(selection.since_failure, limits) or stats.has_no_server
    if not failing and selection.oldest_wait < SELECTION_SECONDS:
        return [("degraded", stats.selection_text)] if stats.lacks_primary else []
    served = any(_is_recent(pool.since_served, limits) for pool in stats.open_pools)
    fits_nobody = stats.lacks_primary or stats.has_no_server or not served
    return [("unhealthy" if failing and fits_nobody else "degraded", stats.selection_text)]


def _refusal_reasons(stats: ClientStats, limits: HealthLimits) -> list[Reason]:
    refusals = stats.refusals
    if not _is_recent(refusals.since, limits):
        return []
    if refusals.lasting > limits.stalled_seconds:
        text = f"an overloaded server has refused every command for {refusals.lasting:.1f} s"
        return [("unhealthy", text)]
    return [("degraded", f"an overloaded server refused commands {refusals.since:.1f} s ago")]


def _reachable(pool: PoolStats, limits: HealthLimits) -> bool:
    """Return whether a server counts as reachable.

    A server counts as lost only after `outage_seconds`, and as recovered only after
    `settle_seconds`, so that the status can't flap.
    """
    if pool.up is None:
        return pool.phase == "ready" or pool.since_up_changed < limits.outage_seconds
    settled = bool(pool.up) and pool.since_up_changed >= limits.settle_seconds
    return settled or pool.outage < limits.outage_seconds


def _reasons(pool: PoolStats, limits: HealthLimits) -> list[Reason]:
    found: list[Reason] = []
    if pool.silent_time:
        found.append(("unhealthy", pool.silence_text))
    if pool.unserved_time > limits.stalled_seconds and not pool.stalled_time:
        found.append(("unhealthy", pool.unserved_text))
    elif pool.lost:
        found.append(("degraded", pool.unserved_text))
    elif pool.stalled_time > limits.stalled_seconds:
        found.append(
            (
                "unhealthy",
                f"{pool.address} is stalled, no connection was returned for "
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
    elif _is_recent(pool.since_exhausted, limits):
        found.append(("degraded", f"{pool.address} was exhausted {pool.since_exhausted:.1f} s ago"))
    elif pool.unserved_time >= limits.outage_seconds:
        found.append(("degraded", pool.unserved_text))
    if _is_recent(pool.since_timeout, limits):
        found.append(
            ("degraded", f"a checkout from {pool.address} timed out {pool.since_timeout:.1f} s ago")
        )
    if pool.up and pool.phase == "paused":
        found.append(("degraded", f"{pool.address} is paused because its last connection failed"))
    elif pool.up and pool.outage and pool.since_up_changed < limits.settle_seconds:
        found.append(
            (
                "degraded",
                f"{pool.address} recovered {pool.since_up_changed:.1f} s ago "
                f"after a {pool.outage:.1f} s outage",
            )
        )
    return found


def _is_recent(age: float | None, limits: HealthLimits) -> bool:
    return age is not None and age < limits.settle_seconds
