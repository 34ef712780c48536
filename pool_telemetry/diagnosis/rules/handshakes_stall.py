"""Handshakes stall: connections are being opened, none becomes ready, and no caller is served.

Heartbeats may be answered meanwhile, because they have connections of their own. Critical.
"""

from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence
from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.rules import wording
from pool_telemetry.diagnosis.rules.rule import Rule


def applies(evidence: Evidence) -> bool:
    """Return whether handshakes stall."""
    return evidence.service.stalled_handshakes > 0


def explain(evidence: Evidence) -> Finding:
    """Return the connections that are being opened, and their age."""
    pool, service = evidence.period.pool, evidence.service
    return Finding(
        id="handshakes_stall.opening",
        verdict="handshakes stall",
        severity="critical",
        pool=evidence.pool_name,
        because=f"{wording.plural(service.stalled_handshakes, 'connection')} to {pool.address} "
        f"have been opening for up to {service.oldest_opening_seconds:.1f} s and none is ready; no "
        f"caller was served for {service.unserved_seconds:.1f} s. Callers waiting: {pool.waiting}.",
        advice="Look for what delays new connections: TLS, authentication (LDAP, Kerberos), a full "
        "accept queue or a firewall in between. Open connections still work. A shorter "
        "connectTimeoutMS lets callers fail sooner; a larger pool does not help.",
        evidence={
            "opening": service.stalled_handshakes,
            "oldest_opening_seconds": service.oldest_opening_seconds,
            "unserved_seconds": service.unserved_seconds,
            "waiting": pool.waiting,
        },
    )


RULE: Final = Rule(
    verdict="handshakes stall",
    runbook="MongoDBPoolNobodyServed",
    applies=applies,
    explain=explain,
    suppressed_by=frozenset({"server_unreachable", "driver_stands_still"}),
)
