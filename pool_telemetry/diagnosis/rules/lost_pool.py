"""Lost pool: callers wait although connections are allowed, and PyMongo opens none for them.

PyMongo counts slots for connections that nobody holds. Cancelled tasks on Python 3.11 and killed
greenlets do this to some versions. It does not end by itself. Critical.
"""

from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence
from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.rules import wording
from pool_telemetry.diagnosis.rules.rule import Rule


def applies(evidence: Evidence) -> bool:
    """Return whether PyMongo has lost the pool's slots."""
    return evidence.service.lost


def explain(evidence: Evidence) -> Finding:
    """Return the lost pool."""
    pool, service = evidence.period.pool, evidence.service
    return Finding(
        id="lost_pool.lost",
        verdict="lost pool",
        severity="critical",
        pool=evidence.pool_name,
        because=f"No caller was served for {service.unserved_seconds:.1f} s, although "
        f"{pool.in_use} of {wording.limit(pool)} connections are in use and none is being opened: "
        f"all other slots are taken, and nobody holds them. Callers waiting: {pool.waiting}.",
        advice="Restart the process: PyMongo has lost these slots, and a larger pool loses them, "
        "too. Then update PyMongo, and use Python 3.12 or later with asyncio.",
        evidence={
            "unserved_seconds": service.unserved_seconds,
            "waiting": pool.waiting,
            "in_use": pool.in_use,
        },
    )


RULE: Final = Rule(
    verdict="lost pool",
    runbook="MongoDBPoolNobodyServed",
    applies=applies,
    explain=explain,
    suppressed_by=frozenset({"server_unreachable", "driver_stands_still"}),
)
