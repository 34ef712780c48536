"""Client per request: the process makes clients again and again, instead of one that is shared.

MANY_CLIENTS were made in a minute under one name, or at this rate between the samples. Each has a
pool, monitors and handshakes of its own. It concerns the process, which may have no open pool.
"""

from collections.abc import Sequence

from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.thresholds import MADE_SECONDS, MANY_CLIENTS, MIN_MADE
from pool_telemetry.stats import ClientStats


def findings(samples: Sequence[ClientStats]) -> list[Finding]:
    """Return the finding, if the process makes many clients; the last sample is the present."""
    client = samples[-1]
    made, seconds = client.clients_made_lately, MADE_SECONDS
    if not made:  # metrics have the number of all clients only
        made, seconds = _made_between(samples)
    if made < MIN_MADE or made * MADE_SECONDS < MANY_CLIENTS * seconds:
        return []
    named = f" named {client.name.partition('#')[0]!r}" if client.name else ""
    return [
        Finding(
            id="client_per_request.many_made",
            verdict="client per request",
            severity="warning",
            pool=client.name or "the process",
            because=f"This process made {made:,} clients{named} in {seconds:.0f} s; open now: "
            f"{client.clients_open:,}. Each opens connections and monitors of its own and shares "
            "none.",
            advice="Make one client when the process starts, and share it: it is a pool for all "
            "threads or tasks. Close it when the process ends.",
            evidence={
                "clients_made_lately": made,
                "clients_made": client.clients_made,
                "clients_open": client.clients_open,
            },
            runbook="MongoDBPoolConnectionStorm",
        )
    ]


def _made_between(samples: Sequence[ClientStats]) -> tuple[int, float]:
    """Return the clients made between the first sample of the last minute and the last one."""
    last = samples[-1]
    first = next(one for one in samples if last.at - one.at <= MADE_SECONDS)
    if first is last or first.since != last.since:
        return 0, MADE_SECONDS
    return last.clients_made - first.clients_made, max(last.at - first.at, 1.0)
