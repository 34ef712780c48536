"""A diagnosis as the guide's endpoint tells it: two answers, and the sentences behind them."""

from typing import TypedDict

from pool_telemetry.diagnosis.model import Diagnosis, Finding


class Recommendations(TypedDict):
    """The guide's two answers, and the sentences that led to them."""

    increase_pool: bool
    check_connection: bool
    reasons: list[str]


def recommend(diagnosis: Diagnosis) -> Recommendations:
    """Return the recommendations that follow from a diagnosis."""
    return {
        "increase_pool": any(map(_asks_for_connections, diagnosis.findings)),
        "check_connection": any(
            one.id.startswith("server_unreachable.") and one.severity == "critical"
            for one in diagnosis.current
        ),
        "reasons": [f"{one.pool}: {one.because} {one.advice}" for one in diagnosis.findings],
    }


def _asks_for_connections(finding: Finding) -> bool:
    if finding.id.startswith("undersized."):
        return bool(finding.change) or not finding.evidence["connections_needed"]
    # If it is unknown whether operations are slower than usual, they may just be many.
    return finding.id.startswith("slow_operations.") and not finding.evidence.get("usual_seconds")
