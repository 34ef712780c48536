"""Slow operations: connections are held for too long, rather than by too many callers.

A command that takes SLOW_COMMAND_SHARE of all commands' time takes SLOWDOWN times its baseline, or
SLOW_SECONDS if no baseline is known and the pool is exhausted; or no connection was returned for
STALLED_SECONDS. Critical if callers time out or give up, or after HANGING_SECONDS.
"""

from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence, SlowCommand
from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.rules import wording
from pool_telemetry.diagnosis.rules.rule import Rule
from pool_telemetry.diagnosis.thresholds import HANGING_SECONDS


def applies(evidence: Evidence) -> bool:
    """Return whether operations take too long."""
    return evidence.period.steady is not None and evidence.commands.is_slow


def explain(evidence: Evidence) -> Finding:
    """Return the slow command, or the stall."""
    period, commands = evidence.period, evidence.commands
    pool, steady, command = period.pool, period.steady, commands.slow_command
    assert steady is not None  # nothing is slow without one
    timeouts = steady.checkouts["timeout"] if period.contention else 0
    hanging = commands.stalled_seconds >= HANGING_SECONDS
    change: dict[str, int] = {}
    if command is None:
        cause = "stalled"
        because = (
            f"No connection was returned for {commands.stalled_seconds:.1f} s; "
            f"{pool.in_use} are in use."
        )
        advice = (
            "The server or the network hangs, or these commands take that long. /pool/holders and "
            "get_pool_stats(detail=True) name the commands."
        )
    else:
        cause = "slow_command" if command.usual_seconds is None else "slower_than_usual"
        because = _command(command)
        advice = (
            "Examine this command: its indexes, explain(), the server's slow query log and load. "
            "If it is fast on the server, the process is blocked: its CPU, or its event loop."
        )
        if evidence.queue.exhausted and evidence.too_small and command.usual_seconds is None:
            words, change = _workaround(evidence)
            advice += words
    if evidence.queue.exhausted:
        because += f" {wording.exhaustion(period.latest)}"
    usual = commands.usual_use_seconds if command is None else command.usual_seconds
    return Finding(
        id=f"slow_operations.{cause}",
        verdict="slow operations",
        severity="critical" if timeouts or hanging or evidence.queue.callers_give_up else "warning",
        pool=evidence.pool_name,
        because=because,
        advice=advice,
        evidence={
            "use_seconds": commands.use_seconds,
            "rate_per_second": steady.rate,
            "waiting": pool.waiting,
            "timeouts": timeouts,
            "stuck_seconds": commands.stalled_seconds,
            "command_seconds": command.seconds if command else 0.0,
            "usual_seconds": usual or 0.0,
        },
        change=change,
    )


def _command(command: SlowCommand) -> str:
    known = command.usual_seconds
    usual = "" if known is None else f", usually {wording.milliseconds(known)}"
    return (
        f"{command.name} took {wording.milliseconds(command.seconds)} on average{usual}: "
        f"{wording.plural(command.runs, 'run')} in {command.over:.0f} s, {command.share:.0%} of "
        "all commands' time."
    )


def _workaround(evidence: Evidence) -> tuple[str, dict[str, int]]:
    """Return in words, and as a change, the size that would bear the slow command."""
    assert evidence.sizing is not None  # it is known to be too small
    budget, size = evidence.connection_budget, evidence.sizing.required_size
    most = size if budget is None else min(size, budget)
    words = f" Until then, maxPoolSize {size} is a workaround: it bears the command as it is."
    if most < size:
        words += f" The server has {most} connections for this process."
    return words, {"maxPoolSize": most} if most > (evidence.period.pool.max_size or 0) else {}


RULE: Final = Rule(
    verdict="slow operations",
    runbook="MongoDBPoolExhausted",
    applies=applies,
    explain=explain,
    suppressed_by=frozenset({"server_unreachable", "deadlock"}),
)
