"""No server fits: callers wait in server selection although servers answer, or none is left.

The set has no primary, every server has another replica-set name, or no server has what a read
preference or a selector asks for. It concerns the client, not one of its pools. Critical if callers
have failed or wait; a set without a primary that nobody needs is a warning.
"""

from typing import Final

from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.thresholds import ENDED_SECONDS, RECENT_SECONDS
from pool_telemetry.stats import SELECTION_SECONDS, ClientStats


def findings(client: ClientStats) -> list[Finding]:
    """Return the finding, if callers lack a server that fits; an outage is another verdict."""
    selection = client.server_selection
    waits = selection.oldest_wait >= SELECTION_SECONDS
    since = selection.since_failure
    failed = since is not None and since < RECENT_SECONDS
    answers = any(pool.up for pool in client.open_pools) or client.has_no_server
    if not answers or not (waits or failed or client.lacks_primary):
        return []
    lasts = waits or client.lacks_primary or (since or 0.0) < ENDED_SECONDS
    return [
        Finding(
            id=f"no_server_fits.{_cause(client)}",
            verdict="no server fits",
            severity="critical" if waits or failed else "warning",
            pool=client.name or "the client",
            because=f"{client.selection_text[0].upper()}{client.selection_text[1:]}.",
            advice=_ADVICE[_cause(client)],
            evidence={
                "waiting": selection.waiting,
                "oldest_wait_seconds": selection.oldest_wait,
                "failures": selection.failures,
            },
            ended=None if lasts else since,
            runbook="MongoDBNoServerFits",
        )
    ]


def _cause(client: ClientStats) -> str:
    if client.has_no_server:
        return "no_server"
    return "no_primary" if client.lacks_primary else "selector"


_ADVICE: Final = {
    "no_server": "Compare replicaSet= in the connection string with the name of the set, and its "
    "hosts with the addresses of the members: PyMongo removed every server that differs.",
    "no_primary": "Find out why the set elects no primary: rs.status() shows which members can "
    "vote. Reads that may be stale can go on with readPreference=secondaryPreferred.",
    "selector": "Compare the read preference, its tags and maxStalenessSeconds, and the "
    "server_selector of these operations with the servers: none of them matches.",
}
