"""Client per request: the process makes clients again and again, instead of one that is shared.

MANY_CLIENTS were made in a minute under one name. Each has a pool, monitors and handshakes of its
own.
"""

from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence
from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.rules.rule import Rule
from pool_telemetry.diagnosis.thresholds import MANY_CLIENTS


def applies(evidence: Evidence) -> bool:
    """Return whether the process made many clients lately."""
    return evidence.period.client.clients_made_lately >= MANY_CLIENTS


def explain(evidence: Evidence) -> Finding:
    """Return the number of clients."""
    client = evidence.period.client
    named = f" named {client.name.partition('#')[0]!r}" if client.name else ""
    return Finding(
        id="client_per_request.many_made",
        verdict="client per request",
        severity="warning",
        pool=evidence.pool_name,
        because=f"This process made {client.clients_made_lately:,} clients{named} in the last "
        f"minute; {client.clients_open:,} are open. Each opens connections and monitors of its "
        "own and shares none.",
        advice="Make one client when the process starts, and share it: it is a pool for all "
        "threads or tasks. Close it when the process ends.",
        evidence={
            "clients_made_lately": client.clients_made_lately,
            "clients_made": client.clients_made,
            "clients_open": client.clients_open,
        },
    )


RULE: Final = Rule(
    verdict="client per request",
    runbook="MongoDBPoolConnectionStorm",
    applies=applies,
    explain=explain,
)
