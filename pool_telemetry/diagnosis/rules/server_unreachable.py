"""Server unreachable: the server can't be used, or could not lately.

Heartbeats fail; or none was answered for UNREACHABLE_SECONDS; or PyMongo kept the pool paused for
PAUSED_SECONDS; or MIN_UNSERVED callers left because no connection could be opened. An outage that
ended is reported for RECENT_SECONDS. Critical if no other server of the client answers.
"""

from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence
from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.rules.rule import Rule


def applies(evidence: Evidence) -> bool:
    """Return whether the server can't be used, or could not lately."""
    return evidence.server.down or evidence.server.recovered


def explain(evidence: Evidence) -> Finding:
    """Return the outage."""
    server, period, pool = evidence.server, evidence.period, evidence.period.pool
    failed = period.window.checkouts["connection_error"] if period.window and server.down else 0
    if server.failed_connects:
        cause = "cannot_connect"
        seconds = sum(one.seconds for one in period.last_seconds)
        because = (
            f"no connection to {pool.address} could be opened in {seconds:.0f} s, and "
            f"of {server.failed_connects} callers nobody was served"
        )
    elif server.down and pool.up:
        cause = "paused"
        because = (
            f"{pool.address} answers, but an error said that it is unfit: for "
            f"{server.paused_seconds:.0f} s PyMongo has let nobody in, until the next heartbeat"
        )
    elif server.down:
        cause, because = "down", pool.why_down
    else:
        cause = "recovered"
        lasted = f"for {pool.outage:.1f} s" if pool.outage >= 0.05 else "for a moment"
        because = f"{pool.address} was down {lasted}"
    return Finding(
        id=f"server_unreachable.{cause}",
        verdict="server unreachable",
        severity="critical" if server.only_server_up else "warning",
        pool=evidence.pool_name,
        because=because + (f"; {failed} checkouts failed" if failed else ""),
        advice="see whether the server runs, and the network and the address are right; "
        "PyMongo comes back by itself"
        if server.down
        else "see in the server's log and the network's why",
        evidence={
            "outage_seconds": pool.since_up_changed if pool.up is None else pool.outage,
            "failed_checkouts": failed,
        },
        ended=None if server.down else pool.since_up_changed,
    )


RULE: Final = Rule(
    verdict="server unreachable",
    title="Server unreachable",
    runbook="MongoDBServerDown",
    applies=applies,
    explain=explain,
)
