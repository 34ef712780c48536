"""Oversized: far more connections are open than are needed.

No caller waits and nothing is slow; MIN_IDLE_CONNECTIONS are not needed, and OVERSIZED_FACTOR times
the needed ones are open. MIN_USES are needed to tell. A notice.
"""

from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence
from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.rules.rule import SERVES_NOBODY, Rule
from pool_telemetry.diagnosis.thresholds import MIN_IDLE_CONNECTIONS, OVERSIZED_FACTOR


def applies(evidence: Evidence) -> bool:
    """Return whether far more connections are open than are needed."""
    pool, spare = evidence.period.pool, evidence.spare
    if spare is None or evidence.commands.is_slow or pool.waiting or pool.opening:
        return False
    many = pool.size - spare.needed >= MIN_IDLE_CONNECTIONS
    return many and pool.size >= OVERSIZED_FACTOR * spare.needed


def explain(evidence: Evidence) -> Finding:
    """Return the connections that are open, and those that are needed."""
    pool, window, spare = evidence.period.pool, evidence.period.window, evidence.spare
    assert window is not None
    assert spare is not None
    kept = pool.min_size > spare.needed
    return Finding(
        id=f"oversized.{'min_pool_size' if kept else 'past_peak'}",
        verdict="oversized",
        severity="notice",
        pool=evidence.pool_name,
        because=f"{pool.size} connections are open, and {spare.used:.1f} were in use on average "
        f"in {window.seconds:.0f} s: {spare.needed} would be enough.",
        advice=f"Lower minPoolSize from {pool.min_size} to {spare.needed}, unless a peak is "
        "expected."
        if kept
        else "Set maxIdleTimeMS so that connections left over from a peak are closed.",
        evidence={
            "size": pool.size,
            "connections_needed": spare.used,
            "enough": spare.needed,
        },
        change={"minPoolSize": spare.needed} if kept else {},
    )


RULE: Final = Rule(
    verdict="oversized",
    runbook="",
    applies=applies,
    explain=explain,
    suppressed_by=SERVES_NOBODY,
)
