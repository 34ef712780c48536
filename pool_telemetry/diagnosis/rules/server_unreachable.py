"""Server unreachable: the server can't be used, or could not lately.

Heartbeats fail; or none was answered for UNREACHABLE_SECONDS; or PyMongo kept the pool paused for
PAUSED_SECONDS; or MIN_UNSERVED callers left because no connection could be opened. An outage that
ended is reported for RECENT_SECONDS. Critical if no other server of the client answers.
"""

from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence, ServerEvidence
from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.periods import Period
from pool_telemetry.diagnosis.rules import wording
from pool_telemetry.diagnosis.rules.rule import Rule


def applies(evidence: Evidence) -> bool:
    """Return whether the server can't be used, or could not lately."""
    return evidence.server.down or evidence.server.recovered


def explain(evidence: Evidence) -> Finding:
    """Return the outage."""
    server, period, pool = evidence.server, evidence.period, evidence.period.pool
    failed = period.window.checkouts["connection_error"] if period.window and server.down else 0
    cause, because, advice = _cause(server, period)
    if failed:
        because += f" {wording.plural(failed, 'checkout')} failed."
    return Finding(
        id=f"server_unreachable.{cause}",
        verdict="server unreachable",
        severity="critical" if server.only_server_up else "warning",
        pool=evidence.pool_name,
        because=because,
        advice=advice,
        evidence={
            "outage_seconds": pool.since_up_changed if pool.up is None else pool.outage,
            "failed_checkouts": failed,
        },
        ended=None if server.down else pool.since_up_changed,
    )


def _cause(server: ServerEvidence, period: Period) -> tuple[str, str, str]:
    """Return the cause's name, the sentence that describes it, and the advice."""
    pool, address = period.pool, period.pool.address
    check = (
        "Check that the server runs and that the network and the address are right. "
        "PyMongo reconnects by itself."
    )
    if server.failed_connects:
        seconds = sum(one.seconds for one in period.last_seconds)
        return (
            "cannot_connect",
            f"No connection to {address} could be opened in {seconds:.0f} s: "
            f"{server.failed_connects:,} callers left without one.",
            check,
        )
    if server.down and pool.up:
        return (
            "paused",
            f"{address} answers heartbeats, but PyMongo has kept its pool paused for "
            f"{server.paused_seconds:.0f} s after an error. No caller gets a connection meanwhile.",
            "Find the error in the logs of the application and the server. PyMongo resumes the "
            "pool by itself when the server is usable.",
        )
    if server.down and pool.up is None:
        seconds = pool.since_up_changed
        return "down", f"{address} has not answered for {seconds:.1f} s, nor ever before.", check
    if server.down:
        known = pool.down_reason is not None  # metrics do not say it
        lasting = f" for {pool.outage:.1f} s ({pool.down_reason})" if known else ""
        return "down", f"{address} has not answered heartbeats{lasting}.", check
    lasted = f"for {pool.outage:.1f} s" if pool.outage >= 0.05 else "for a moment"
    advice = "Find the reason in the logs of the server and the network."
    return "recovered", f"{address} was down {lasted}.", advice


RULE: Final = Rule(
    verdict="server unreachable",
    runbook="MongoDBServerDown",
    applies=applies,
    explain=explain,
)
