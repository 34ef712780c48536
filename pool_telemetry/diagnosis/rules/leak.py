"""Leak: connections are held without a command.

Callers find all connections in use while some are held idle, or one has been for LEAKED_SECONDS. If
commands are not observed, a checkout of OLD_CHECKOUT_SECONDS and OLD_CHECKOUT_FACTOR times the p95
of use is a leak. Critical if callers time out, or LEAKED_SHARE of the pool leaks.
"""

import math
from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence
from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.rules import wording
from pool_telemetry.diagnosis.rules.rule import Rule
from pool_telemetry.diagnosis.thresholds import (
    LEAKED_SECONDS,
    LEAKED_SHARE,
    OLD_CHECKOUT_FACTOR,
    OLD_CHECKOUT_SECONDS,
)
from pool_telemetry.stats import PoolStats


def applies(evidence: Evidence) -> bool:
    """Return whether connections are held without a command, and are missed or held for long."""
    pool, held = evidence.period.pool, evidence.leak.held_idle
    missed = evidence.queue.exhausted or pool.longest_idle >= LEAKED_SECONDS
    return _is_old_checkout(pool) or (held > 0 and missed)


def explain(evidence: Evidence) -> Finding:
    """Return the leak."""
    pool, held, contention = (
        evidence.period.pool,
        evidence.leak.held_idle,
        evidence.period.contention,
    )
    timeouts = contention.checkouts["timeout"] if contention else 0
    old = _is_old_checkout(pool)
    what = (
        f"A connection has been checked out for {pool.longest_checkout:.0f} s."
        if old
        else f"{held} of {pool.in_use} connections in use run no command, "
        f"for up to {pool.longest_idle:.1f} s."
    )
    much = timeouts or held >= LEAKED_SHARE * (pool.max_size or math.inf)
    return Finding(
        id="leak.old_checkout" if old else "leak.held_idle",
        verdict="leak",
        severity="critical" if much else "warning",
        pool=evidence.pool_name,
        because=f"{what} maxPoolSize is {wording.limit(pool)}; callers waiting: {pool.waiting}."
        f"{wording.owners(pool)}",
        advice="Close cursors and end transactions where they are used (`with`). /pool/holders, "
        "get_pool_stats(detail=True) and the log of long checkouts name the holders.",
        evidence={
            "held_idle": held,
            "longest_idle_seconds": pool.longest_idle,
            "longest_checkout_seconds": pool.longest_checkout,
            "in_use": pool.in_use,
            "waiting": pool.waiting,
        },
    )


def _is_old_checkout(pool: PoolStats) -> bool:
    """Return whether a checkout is older than any operation, if commands are not observed."""
    typical = pool.use_time.quantile(0.95) or 0.0
    return pool.held_idle is None and pool.longest_checkout >= max(
        OLD_CHECKOUT_SECONDS, OLD_CHECKOUT_FACTOR * typical
    )


RULE: Final = Rule(
    verdict="leak",
    runbook="MongoDBPoolCheckoutHeld",
    applies=applies,
    explain=explain,
    suppressed_by=frozenset({"deadlock"}),
)
