"""Deadlock: every connection is in use by a caller that waits for another one itself.

No connection is returned before a caller gives up. Critical.
"""

from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence
from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.rules import wording
from pool_telemetry.diagnosis.rules.rule import Rule


def applies(evidence: Evidence) -> bool:
    """Return whether the callers that wait are those that hold the connections."""
    return evidence.deadlock is not None


def explain(evidence: Evidence) -> Finding:
    """Return the deadlock, with one of its callers."""
    pool = evidence.deadlock
    assert pool is not None
    named = f" One of them is {pool.self_blocked_by}." if pool.self_blocked_by else ""
    return Finding(
        id="deadlock.self_blocked",
        verdict="deadlock",
        severity="critical",
        pool=evidence.pool_name,
        because=f"All {wording.plural(pool.self_blocked, 'connection')} are in use by callers that "
        f"wait for another connection themselves.{named} None will be returned before a caller "
        f"gives up; callers waiting: {pool.waiting}.",
        advice="Let a caller hold one connection at a time: read a cursor to its end, or close it, "
        "before the next operation. Or give the inner operations a client of their own.",
        evidence={
            "self_blocked": pool.self_blocked,
            "in_use": pool.in_use,
            "waiting": pool.waiting,
            "oldest_wait_seconds": pool.oldest_wait,
        },
    )


RULE: Final = Rule(
    verdict="deadlock",
    runbook="MongoDBPoolCheckoutHeld",
    applies=applies,
    explain=explain,
    suppressed_by=frozenset({"server_unreachable"}),
)
