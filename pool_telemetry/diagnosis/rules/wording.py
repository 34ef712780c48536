"""Phrases of several rules. The reader of a finding is on call, and sees it for the first time."""

from pool_telemetry.diagnosis.intervals import Interval
from pool_telemetry.diagnosis.thresholds import ENDED_SECONDS, LOST_SHARE, TOP_OWNERS
from pool_telemetry.stats import PoolStats


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `no timeouts`, `1 caller`, `2,098 callers`."""
    return (
        f"{count or 'no'} {noun}{'' if count == 1 else 's'}" if count < 2 else f"{count:,} {noun}s"
    )


def milliseconds(seconds: float) -> str:
    """Return a duration in milliseconds: `1.8 ms`, `345 ms`."""
    return f"{seconds * 1e3:,.{0 if seconds >= 0.00995 else 1}f} ms"


def owners(pool: PoolStats) -> str:
    """Return the owners that hold most connections; empty if none is named."""
    most = sorted((one for one in pool.owners if one.in_use), key=lambda one: -one.in_use)
    named = ", ".join(f"{one.owner or 'no owner'} {one.in_use}" for one in most[:TOP_OWNERS])
    return f" In use by owner: {named}." if any(one.owner for one in most) else ""


def exhaustion(pool: PoolStats) -> str:
    """Return for how long a pool was exhausted since the client was made, and how often."""
    cancelled, since = pool.checkouts["cancelled"], pool.since_exhausted or 0.0
    counts = [plural(pool.exhaustions, "episode"), plural(pool.checkouts["timeout"], "timeout")]
    counts += [f"{plural(cancelled, 'caller')} gave up"] if cancelled else []
    ago = f", most recently {since:.0f} s ago" if since >= ENDED_SECONDS else ""
    return f"Exhausted for {pool.exhausted_time:,.1f} s ({', '.join(counts)}){ago}."


def limit(pool: PoolStats) -> str:
    """Return maxPoolSize."""
    return "unlimited" if pool.max_size is None else str(pool.max_size)


def waits(part: Interval) -> dict[str, float]:
    """Return the p95 of the waits; nothing if many callers left, because theirs are unknown."""
    if part.share("timeout", "cancelled") > LOST_SHARE:
        return {}
    return {"wait_p95_seconds": part.wait_time.quantile(0.95) or 0.0}
