"""Callers hang up: they are cancelled in the middle of an operation, which costs a connection.

PyMongo can't use a connection again whose reply was not read, so it closes it, and the next caller
opens a new one. FAILED_SHARE of the callers cost a connection, at least MIN_CHURN are opened, and
cancelled callers explain HANG_UP_SHARE of those that an error closed. If operations are slow, the
callers hang up because of that.
"""

from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence
from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.rules import wording
from pool_telemetry.diagnosis.rules.rule import Rule


def applies(evidence: Evidence) -> bool:
    """Return whether callers are cancelled in the middle of an operation, for no known reason."""
    return evidence.hang_ups is not None and not evidence.commands.is_slow


def explain(evidence: Evidence) -> Finding:
    """Return the callers that hang up, and the connections that they cost."""
    hang_ups = evidence.hang_ups
    assert hang_ups is not None
    during = hang_ups.during
    return Finding(
        id="callers_hang_up.cancelled",
        verdict="callers hang up",
        severity="warning",
        pool=evidence.pool_name,
        because=f"{hang_ups.cancelled:,} of {wording.plural(hang_ups.callers, 'caller')} were "
        f"cancelled in the middle of an operation in {during.seconds:.0f} s. Each cancellation "
        f"closes a connection: {during.closed['error']:,} were closed, and {during.created:,} "
        "handshakes begun.",
        advice="Let operations end although their callers hang up: wrap them in "
        "asyncio.shield(). Raise the timeouts that cancel them above the duration of an operation, "
        "such as those of the proxy, the web framework and the clients.",
        evidence={
            "cancelled": hang_ups.cancelled,
            "callers": hang_ups.callers,
            "closed_error": during.closed["error"],
            "connections_created": during.created,
        },
    )


RULE: Final = Rule(
    verdict="callers hang up",
    runbook="MongoDBPoolConnectionStorm",
    applies=applies,
    explain=explain,
    suppressed_by=frozenset({"server_unreachable"}),
)
