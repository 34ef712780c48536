"""Phrases that several rules use."""

from pool_telemetry.diagnosis.intervals import Interval
from pool_telemetry.diagnosis.thresholds import ENDED_SECONDS, LOST_SHARE, TOP_OWNERS
from pool_telemetry.stats import PoolStats


def owners(pool: PoolStats) -> str:
    """Return the owners that hold most connections; empty if none is named."""
    most = sorted((one for one in pool.owners if one.in_use), key=lambda one: -one.in_use)
    named = ", ".join(f"{one.owner or 'no owner'} {one.in_use}" for one in most[:TOP_OWNERS])
    return f"; in use by owner: {named}" if any(one.owner for one in most) else ""


def exhaustion(pool: PoolStats) -> str:
    """Return how often, and for how long, a pool was exhausted."""
    times = "once" if pool.exhaustions == 1 else f"{pool.exhaustions} times"
    timeouts, cancelled = pool.checkouts["timeout"], pool.checkouts["cancelled"]
    gave_up = f", {cancelled} gave up" if cancelled else ""
    since = pool.since_exhausted or 0.0
    ago = f" {since:.0f} s ago" if since >= ENDED_SECONDS else ""
    return (
        f"ran dry{ago} (in all {times}, {pool.exhausted_time:.1f} s, {timeouts} timeouts{gave_up})"
    )


def limit(pool: PoolStats) -> str:
    """Return maxPoolSize."""
    return "none" if pool.max_size is None else str(pool.max_size)


def waits(part: Interval) -> dict[str, float]:
    """Return the p95 of the waits; nothing if many callers left, because theirs are unknown."""
    if part.share("timeout", "cancelled") > LOST_SHARE:
        return {}
    return {"wait_p95_seconds": part.wait_time.quantile(0.95) or 0.0}
