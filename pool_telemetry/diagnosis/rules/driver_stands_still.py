"""Driver stands still: PyMongo's monitor of a server has published nothing for several periods.

The monitor runs on the client's event loop, or needs the lock of its pool. So callers are not
served, either. Critical.
"""

from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence
from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.rules.rule import Rule


def applies(evidence: Evidence) -> bool:
    """Return whether the monitor is silent."""
    return evidence.service.silent_seconds > 0.0


def explain(evidence: Evidence) -> Finding:
    """Return the silence."""
    pool = evidence.period.pool
    return Finding(
        id="driver_stands_still.silent",
        verdict="driver stands still",
        severity="critical",
        pool=evidence.pool_name,
        because=f"PyMongo's monitor of {pool.address} has published nothing for "
        f"{evidence.service.silent_seconds:.1f} s. Callers waiting: {pool.waiting}.",
        advice="Find what blocks the event loop of the client (a call without await, CPU work), or "
        "a deadlock of its threads: `py-spy dump` shows their stacks. Restart the process if it "
        "does not recover.",
        evidence={
            "silent_seconds": evidence.service.silent_seconds,
            "waiting": pool.waiting,
        },
    )


RULE: Final = Rule(
    verdict="driver stands still",
    runbook="MongoDBDriverSilent",
    applies=applies,
    explain=explain,
)
