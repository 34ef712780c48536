"""Which findings of the past are reported beside those of the present.

Decided at the end, from the findings and the evidence of all periods of one pool.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence
from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.periods import PeriodKind
from pool_telemetry.diagnosis.thresholds import MOSTLY_SHARE

Judged = tuple[Evidence, list[Finding]]
"""The evidence of a period, and its findings."""

_BY_STATE: Final = frozenset(
    {"server unreachable", "leak", "driver stands still", "lost pool", "handshakes stall"}
)
"""Verdicts that follow from the pool's present state, and not from how long callers waited."""


def reconcile(judged: Mapping[PeriodKind, Judged], now: float) -> list[Finding]:
    """Return one pool's findings, current and past.

    Args:
        judged: The pool's periods; `current` is among them.
        now: Unix time of the last sample.
    """
    evidence, found = judged["current"]
    period = evidence.period
    found = [*found]
    if period.slowed_at is not None and not evidence.server.down:
        # The pool was too small before the slowdown only if the numbers of that time say so.
        past = [one for one in _past(judged, "before_slowdown", now) if one.change]
        if not _was_exhausted(judged):
            past = [one for one in past if one.verdict != "undersized"]
        found += _without(past, found)
    if evidence.leak.recent and not evidence.leak.held_idle:
        found += _last_leak(judged, now)
    if period.ended_at is None:
        return found
    past = _past(judged, "ended", now)
    if period.contended:  # a single interval shows the present and the past
        past = [one for one in found if one.verdict not in _BY_STATE]
        found = [one for one in found if one.verdict in _BY_STATE]
    ended = now - period.ended_at
    return found + [
        replace(one, ended=ended if one.ended is None else one.ended)
        for one in _without(past, found)
        if one.verdict != "oversized"
    ]


def _was_exhausted(judged: Mapping[PeriodKind, Judged]) -> bool:
    """Return whether the pool was exhausted for most of the time before a slowdown."""
    before = judged.get("before_slowdown")
    contention = before and before[0].period.contention
    return bool(contention and contention.exhausted_share >= MOSTLY_SHARE)


def _past(judged: Mapping[PeriodKind, Judged], kind: PeriodKind, now: float) -> list[Finding]:
    """Return the findings of a period that is over."""
    if kind not in judged:
        return []
    evidence, found = judged[kind]
    leak = _last_leak(judged, now, since=None if evidence.leak.recent else evidence.period.at)
    if not leak:
        return found
    # Without the leaked connections the pool need not have been too small.
    return [*leak, *(one for one in found if one.verdict not in ("leak", "undersized"))]


def _last_leak(
    judged: Mapping[PeriodKind, Judged], now: float, *, since: float | None = None
) -> list[Finding]:
    """Return a leak as it was at last: it may last longer than the contention that it caused."""
    if "last_leak" not in judged:
        return []
    evidence, found = judged["last_leak"]
    at = evidence.period.at
    if since is not None and at < since:
        return []
    return [replace(one, ended=now - at) for one in found if one.verdict == "leak"]


def _without(findings: list[Finding], known: list[Finding]) -> list[Finding]:
    """Return the findings of verdicts that are not known."""
    verdicts = {one.verdict for one in known}
    return [one for one in findings if one.verdict not in verdicts]
