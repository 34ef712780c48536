"""Connection storm: callers wait for new connections, or connections are hardly used.

Slow opening: opening connections explains OPENING_SHARE of the waits, a connection takes
SLOW_OPENING_SECONDS, and less than OPENING_SHARE of the pool is in use. Idle churn: MIN_CHURN new
connections, CHURN_PER_SECOND, for CHURN_CHECKOUT_SHARE of the checkouts, and CHURN_IDLE_SHARE of
them are closed because they are idle.
"""

import math
from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence
from pool_telemetry.diagnosis.intervals import Interval
from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.rules import wording
from pool_telemetry.diagnosis.rules.rule import SERVES_NOBODY, Rule
from pool_telemetry.diagnosis.thresholds import MAX_MIN_POOL_SIZE


def applies(evidence: Evidence) -> bool:
    """Return whether callers wait for new connections, or connections are hardly used."""
    return evidence.churn.slow_opening or evidence.churn.idle_churn


def explain(evidence: Evidence) -> Finding:
    """Return the storm."""
    pool, churn, window = evidence.period.pool, evidence.churn, evidence.period.window
    assert window is not None  # there is no storm without one
    each = window.create_time.mean or 0.0
    least = _min_pool_size(evidence, window)
    if churn.slow_opening:
        because = (
            f"Callers wait for new connections: {churn.opened} in {window.seconds:.0f} s, "
            f"{each:.2f} s each. {pool.in_use} are in use (maxPoolSize {wording.limit(pool)}); "
            f"callers waiting: {pool.waiting}."
        )
        advice = (
            f"Keep connections open (minPoolSize {least}) and open more at the same time "
            "(maxConnecting, 2 by default). Find what slows the handshake: TLS, DNS or "
            "authentication."
        )
    else:
        because = (
            f"{window.created:,} connections were opened for {window.checkouts['ok']:,} checkouts "
            f"in {window.seconds:.0f} s, and {window.closed['idle']:,} were closed because they "
            "were idle."
        )
        advice = (
            "Raise maxIdleTimeMS above the pauses of your traffic, or keep connections open "
            f"(minPoolSize {least})."
        )
    return Finding(
        id=f"connection_storm.{'slow_opening' if churn.slow_opening else 'idle_churn'}",
        verdict="connection storm",
        severity="warning",
        pool=evidence.pool_name,
        because=because,
        advice=advice,
        evidence={
            "connections_created": window.created,
            "opening": pool.opening,
            "create_seconds": each,
            "closed_idle": window.closed["idle"],
            **wording.waits(window),
        },
        change={"minPoolSize": least},
    )


def _min_pool_size(evidence: Evidence, window: Interval) -> int:
    """Return the connections to keep open: those in use on average, or for a peak of callers."""
    pool = evidence.period.pool
    busy = math.ceil(window.use_time.sum / window.seconds) if window.seconds else 1
    peak = max(pool.peak_waiting, pool.in_use + pool.waiting)
    least = max(1, pool.min_size, busy, min(peak, MAX_MIN_POOL_SIZE))
    return min(least, pool.max_size or least, evidence.connection_budget or least)


RULE: Final = Rule(
    verdict="connection storm",
    runbook="MongoDBPoolConnectionStorm",
    applies=applies,
    explain=explain,
    suppressed_by=SERVES_NOBODY,
)
