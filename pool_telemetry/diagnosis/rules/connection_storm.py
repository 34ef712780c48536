"""Connection storm: callers wait for new connections, or connections are hardly used.

Slow opening: opening connections explains OPENING_SHARE of the waits, a connection takes
SLOW_OPENING_SECONDS, and less than OPENING_SHARE of the pool is in use; or callers time out in a
pool that is not full; or OPENING_SHARE of the new connections are given up. Critical if callers
time out. Idle churn: MIN_CHURN new connections, one for CHURN_CHECKOUT_SHARE of the checkouts, and
CHURN_IDLE_SHARE of them are closed because they are idle. A notice below CHURN_PER_SECOND.
"""

import math
from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence, IdleChurnEvidence
from pool_telemetry.diagnosis.intervals import Interval
from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.rules import wording
from pool_telemetry.diagnosis.rules.rule import SERVES_NOBODY, Rule
from pool_telemetry.diagnosis.thresholds import (
    CHURN_PER_SECOND,
    MAX_MIN_POOL_SIZE,
    MIN_IDLE_SECONDS,
    PAUSES_KEPT_OPEN,
)


def applies(evidence: Evidence) -> bool:
    """Return whether callers wait for new connections, or connections are hardly used."""
    return evidence.churn.slow_opening or evidence.idle_churn is not None


def explain(evidence: Evidence) -> Finding:
    """Return the storm."""
    if evidence.churn.slow_opening or evidence.idle_churn is None:
        return _slow_opening(evidence)
    return _idle_churn(evidence, evidence.idle_churn)


def _slow_opening(evidence: Evidence) -> Finding:
    pool, churn, window = evidence.period.pool, evidence.churn, evidence.period.window
    assert window is not None  # there is no storm without one
    each = window.create_time.mean or 0.0
    least = _min_pool_size(evidence, window)
    timeouts = window.checkouts["timeout"]
    opened = f"{churn.opened}"
    if churn.unopened:
        opened = f"{churn.opened} of {churn.opened + churn.unopened} that were begun"
    because = (
        f"Callers wait for new connections: {opened} in {window.seconds:.0f} s"
        f"{f', {each:.2f} s each' if window.create_time.count else ''}. {pool.in_use} are in use "
        f"(maxPoolSize {wording.limit(pool)}); callers waiting: {pool.waiting}."
    )
    if timeouts:
        because += f" {wording.plural(timeouts, 'checkout')} timed out."
    return Finding(
        id="connection_storm.slow_opening",
        verdict="connection storm",
        severity="critical" if timeouts else "warning",
        pool=evidence.pool_name,
        because=because,
        advice=f"Keep connections open (minPoolSize {least}) and open more at the same time "
        "(maxConnecting, 2 by default). Find what slows the handshake: TLS, DNS or "
        "authentication.",
        evidence={
            "connections_created": window.created,
            "opening": pool.opening,
            "create_seconds": each,
            "closed_idle": window.closed["idle"],
            "timeouts": timeouts,
            **wording.waits(window),
        },
        change={"minPoolSize": least},
    )


def _idle_churn(evidence: Evidence, churn: IdleChurnEvidence) -> Finding:
    pool, during, pause = evidence.period.pool, churn.during, churn.pause_seconds
    seconds = math.ceil(max(MIN_IDLE_SECONDS, PAUSES_KEPT_OPEN * pause))
    lasting = f"{pause:.1f} s" if pause >= 1.0 else wording.milliseconds(pause)
    because = (
        f"{during.created:,} connections were opened for "
        f"{wording.plural(during.checkouts['ok'], 'checkout')} in {during.seconds:.0f} s, and "
        f"{during.closed['idle']:,} were closed because they were idle."
    )
    if pool.min_size:
        because += f" maxIdleTimeMS closes the {pool.min_size} of minPoolSize, too."
    fast = during.created >= CHURN_PER_SECOND * during.seconds
    return Finding(
        id="connection_storm.idle_churn",
        verdict="connection storm",
        severity="warning" if fast else "notice",
        pool=evidence.pool_name,
        because=because,
        advice=f"Raise maxIdleTimeMS to {seconds * 1_000} or drop it, so that connections outlast "
        f"the pauses of your traffic ({lasting}). minPoolSize alone does not help.",
        evidence={
            "connections_created": during.created,
            "closed_idle": during.closed["idle"],
            "pause_seconds": pause,
            **wording.waits(during),
        },
        change={"maxIdleTimeMS": seconds * 1_000},
    )


def _min_pool_size(evidence: Evidence, window: Interval) -> int:
    """Return the connections to keep open: those in use on average, or for a peak of callers.

    Callers waited for new ones, so those that there are by now were all in use.
    """
    pool = evidence.period.pool
    busy = math.ceil(window.use_time.sum / window.seconds) if window.seconds else 1
    demand = pool.in_use + pool.waiting, evidence.churn.peak_demand, pool.size
    peak = max(pool.peak_waiting, *demand)
    least = max(1, pool.min_size, busy, min(peak, MAX_MIN_POOL_SIZE))
    return min(least, pool.max_size or least, evidence.connection_budget or least)


RULE: Final = Rule(
    verdict="connection storm",
    runbook="MongoDBPoolConnectionStorm",
    applies=applies,
    explain=explain,
    suppressed_by=SERVES_NOBODY | {"callers_hang_up"},
)
