"""Retry storm: most attempts fail, and their callers try again.

MIN_FAILURES attempts, and FAILED_SHARE of all, fail with an error that is retried, OVERLOAD_SHARE
of them perhaps because the server is overloaded; or TIMEOUT_SHARE of the checkouts time out, and
RETRY_SHARE of them are retried at once. The latter is a warning only if the pool is too small: a
thread that takes the next request after a timeout looks like a retry, so a larger pool may be
enough.
"""

from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence
from pool_telemetry.diagnosis.intervals import Interval
from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.rules import wording
from pool_telemetry.diagnosis.rules.rule import SERVES_NOBODY, Rule
from pool_telemetry.diagnosis.thresholds import MIN_FAILURES, OVERLOAD_SHARE


def applies(evidence: Evidence) -> bool:
    """Return whether most attempts fail and are repeated."""
    return _during(evidence) is not None


def explain(evidence: Evidence) -> Finding:
    """Return the storm."""
    during = _during(evidence)
    assert during is not None
    failed, attempts = evidence.churn.failed, evidence.churn.attempts
    small = evidence.too_small or evidence.queue.held_by_cursors
    errors, cause = _has_errors(evidence), "errors"
    if errors and during.overloads() >= OVERLOAD_SHARE * failed:
        cause = "overload"
        because = (
            f"{failed:,} of {attempts:,} attempts in {during.seconds:.0f} s failed. The server "
            f"refused {during.overloads():,} of them because it is overloaded."
        )
        advice = (
            "Send fewer requests: let callers retry after growing pauses, and not forever. A "
            "smaller maxPoolSize bounds what all processes send at once. Then find what overloads "
            "the server."
        )
    elif errors:
        because = (
            f"{failed:,} of {attempts:,} attempts in {during.seconds:.0f} s failed with errors "
            f"that are retried. The pool was cleared {during.cleared:,} times and opened "
            f"{wording.plural(during.created, 'connection')}."
        )
        advice = (
            "Find out why the server or the network fails them. Until then, retry after growing "
            "pauses, and not forever."
        )
    else:
        cause = "timeouts"
        failed, attempts = during.checkouts["timeout"], during.ended_checkouts
        because = (
            f"{failed:,} of {attempts:,} checkouts timed out in {during.seconds:.0f} s. "
            f"{during.retries:,} were retries by callers that had just timed out."
        )
        advice = "Let callers wait before they retry, longer each time, and give up in the end."
    return Finding(
        id=f"retry_storm.{cause}",
        verdict="retry storm",
        severity="warning" if small and not errors else "critical",
        pool=evidence.pool_name,
        because=because,
        advice=advice,
        evidence={
            "failed": failed,
            "attempts": attempts,
            "retries": during.retries,
            "cleared": during.cleared,
            "connections_created": during.created,
        },
    )


def _has_errors(evidence: Evidence) -> bool:
    failed, failing = evidence.churn.failed, evidence.period.failing
    if evidence.churn.slow_opening and failing is not None:  # it explains these
        failed -= failing.checkouts["connection_error"]
    return failed >= MIN_FAILURES


def _during(evidence: Evidence) -> Interval | None:
    """Return the time of the storm; None without one."""
    if _has_errors(evidence):
        return evidence.period.failing
    return evidence.period.contention if evidence.queue.retry_storm else None


RULE: Final = Rule(
    verdict="retry storm",
    runbook="MongoDBPoolCheckoutTimeouts",
    applies=applies,
    explain=explain,
    suppressed_by=SERVES_NOBODY,
)
