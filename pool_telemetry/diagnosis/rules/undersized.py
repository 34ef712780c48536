"""Undersized: callers find all connections in use, and nothing else explains it.

If operations are slow, connections leak or callers retry, the pool is undersized only if it would
be too small without that, too. The size is the smallest with which TARGET_WAIT_PROBABILITY of the
callers wait; that of the peak, if a fixed number of callers return as soon as they are served.
Critical if callers time out or give up.
"""

from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence, SizingEvidence
from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.rules import wording
from pool_telemetry.diagnosis.rules.rule import SERVES_NOBODY, Rule


def applies(evidence: Evidence) -> bool:
    """Return whether the pool is too small, as far as is known."""
    if not evidence.queue.exhausted or evidence.period.pool.max_size is None:
        return False
    command = evidence.commands.slow_command
    if command is not None and command.usual_seconds is None:
        return False
    retried = evidence.queue.retry_storm and not evidence.queue.held_by_cursors
    other = evidence.commands.is_slow or evidence.leak.recent or retried or evidence.period.failing
    return evidence.too_small or not (other or evidence.hang_ups)


def explain(evidence: Evidence) -> Finding:
    """Return the size that is needed, and the numbers that it follows from."""
    period, queue, sizing = evidence.period, evidence.queue, evidence.sizing
    pool, contention, limit = period.pool, period.contention, period.pool.max_size
    assert contention is not None
    assert limit is not None
    cause = _cause(evidence)
    size = max(sizing.required_size if sizing else 0, limit + 1)
    budget = evidence.connection_budget
    most = size if budget is None else min(size, budget)
    enough = sizing is not None and not sizing.too_small
    # Callers that hang up in the middle of an operation do not do so because of the pool.
    lost = contention.checkouts["timeout"] or (queue.callers_give_up and not evidence.hang_ups)
    known = sizing is not None and not enough and not queue.held_by_cursors
    return Finding(
        id=f"undersized.{cause}",
        verdict="undersized",
        severity="critical" if lost and not enough and not evidence.leak.recent else "warning",
        pool=evidence.pool_name,
        because=_because(evidence, limit),
        advice=_advice(evidence, cause, limit, size, most),
        evidence={
            "rate_per_second": sizing.load.rate if sizing else contention.rate,
            "use_seconds": evidence.commands.use_seconds,
            "connections_needed": sizing.load.connections if sizing else 0.0,
            "exhausted_share": contention.exhausted_share,
            "peak_waiting": period.latest.peak_waiting,
            "held_by_cursors": pool.held_by_cursors,
            "timeouts": contention.checkouts["timeout"],
            **wording.waits(contention),
        },
        change={"maxPoolSize": most} if known and most > limit else {},
    )


def _cause(evidence: Evidence) -> str:
    if evidence.queue.held_by_cursors:
        return "held_by_cursors"
    if evidence.sizing is None:
        return "unknown_load"
    if not evidence.sizing.too_small:
        return "enough_on_average"
    if evidence.queue.closed_workload:
        return "closed_workload"
    return "bursty_arrivals" if evidence.queue.bursty_arrivals else "random_arrivals"


def _because(evidence: Evidence, limit: int) -> str:
    pool, latest, queue = evidence.period.pool, evidence.period.latest, evidence.queue
    parts = [wording.exhaustion(latest)]
    if evidence.sizing is not None:
        parts.append(_need(evidence.sizing, limit))
    queued = f"Up to {wording.plural(latest.peak_waiting, 'caller')} queued"
    if queue.closed_workload:
        queued += "; each returns as soon as it is served"
    elif queue.bursty_arrivals:
        queued += "; they arrived together"
    parts.append(f"{queued}.")
    if queue.held_by_cursors:
        parts.append(
            f"Cursors that are being read hold {pool.held_by_cursors} of {limit} connections."
        )
    return " ".join(parts)


def _need(sizing: SizingEvidence, limit: int) -> str:
    load = sizing.load
    rate = f"{load.rate:,.{0 if load.rate >= 9.95 else 1}f}"
    requests = f"{rate} requests/s at {wording.milliseconds(load.use_seconds)} each"
    if load.connections > limit:
        return f"{requests} need {load.connections:,.1f} connections; maxPoolSize is {limit}."
    return f"{requests} keep {load.connections:.1f} of {limit} connections busy."


def _advice(evidence: Evidence, cause: str, limit: int, size: int, most: int) -> str:
    queue, sizing = evidence.queue, evidence.sizing
    if cause == "held_by_cursors":
        return (
            "Read exhaust cursors to their end at once, and give cursors that wait for news a "
            f"client of their own. Or raise maxPoolSize from {limit} by the number of cursors "
            "that are read at the same time."
        )
    if sizing is None:
        return f"Raise maxPoolSize above {limit}, or shorten what holds a connection."
    if cause == "enough_on_average":
        return (
            f"{limit} connections are enough for this load on average. The log of the exhaustion "
            "and /pool/holders show which callers held them."
        )
    if most <= limit:
        return (
            f"Shorten what holds a connection: {size} would be needed, but the server has no "
            "more for this process."
        )
    shorten = "shorten what holds a connection"
    instead = "spread the callers over time" if queue.bursty_arrivals else shorten
    advice = f"Raise maxPoolSize from {limit} to {most}, or {instead}."
    if most < size:
        return f"{advice} The server has no more for this process; {size} would be needed."
    if queue.closed_workload and sizing.size_for_random < size:
        least = max(limit + 1, sizing.size_for_random)
        return f"{advice} {least} may be enough if callers pause between their operations."
    return advice


RULE: Final = Rule(
    verdict="undersized",
    runbook="MongoDBPoolExhausted",
    applies=applies,
    explain=explain,
    suppressed_by=SERVES_NOBODY | {"connection_storm.slow_opening"},
)
