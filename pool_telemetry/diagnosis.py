"""What is wrong with a client's pools, by which numbers, and what to change.

Pure: the same stats and history give the same diagnosis. The rules are in `findings.py`.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypedDict

from pool_telemetry.case import Case
from pool_telemetry.findings import RULES, Finding, Severity, Verdict, find_leak
from pool_telemetry.stats import ClientStats, PoolStats
from pool_telemetry.window import windows

APART_SECONDS: Final = 1.0

# Told by how a pool is, and not by how long callers waited.
_OF_NOW: Final = frozenset({"server unreachable", "leak"})
_RANK: Final = {"critical": 0, "warning": 1, "notice": 2, "healthy": 3}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that is wrong, the worst first, and at last what was and is over."""

    findings: tuple[Finding, ...] = ()

    @property
    def current(self) -> tuple[Finding, ...]:
        """Return what goes on."""
        return tuple(one for one in self.findings if one.ended is None)

    @property
    def verdict(self) -> Verdict:
        """Return the worst of what goes on; healthy where that is nothing."""
        return self.current[0].verdict if self.current else "healthy"

    @property
    def severity(self) -> Severity:
        """Return the same finding's."""
        return self.current[0].severity if self.current else "healthy"

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        found = [dataclasses.asdict(one) for one in self.findings]
        return {"verdict": self.verdict, "severity": self.severity, "findings": found}


class Recommendations(TypedDict):
    """The guide's two answers, and the sentences that led to them."""

    increase_pool: bool
    check_connection: bool
    reasons: list[str]


def diagnose(
    stats: ClientStats, history: Sequence[ClientStats] = (), *, most: int | None = None
) -> Diagnosis:
    """Say what is wrong with a client's pools, and what to do.

    Args:
        stats: How it is now.
        history: How it was, the oldest first: `PoolTelemetry.history()`, or any samples some
            seconds apart. What happened over five minutes ago is only what was usual. Without a
            history the client's whole life is looked at as one.
        most: The connections that the server has for one process; no advice goes beyond.
    """
    every = [*(one for one in history if one.at < stats.at), stats]
    samples = _apart(every)
    findings = list[Finding]()
    for pool in stats.open_pools:
        address = pool.host, pool.port
        case = Case(pool, windows(samples, address), stats, most)
        found = _findings(case)
        if case.worse_at is not None and not case.down:
            # Too small it was before only if its numbers of then say so.
            past = _past(every, pool, case.worse_at, most)
            found += _new([one for one in past if one.change], found)
        if case.leaks and not case.leaked and (leak := _past_leak(every, pool, most)):
            found.append(leak)
        if case.ended_at is not None:
            if case.trouble:  # one look has to do
                past = [one for one in found if one.verdict not in _OF_NOW]
                found = [one for one in found if one.verdict in _OF_NOW]
            else:
                past = _past(every, pool, case.ended_at, most)
            ended = stats.at - case.ended_at
            found += [
                replace(one, ended=ended if one.ended is None else one.ended)
                for one in _new(past, found)
                if one.verdict != "oversized"
            ]
        findings += found
    return worst_first(findings)


def _findings(case: Case) -> list[Finding]:
    return [one for one in (rule(case) for rule in RULES) if one is not None]


def _new(findings: list[Finding], known: list[Finding]) -> list[Finding]:
    verdicts = {one.verdict for one in known}
    return [one for one in findings if one.verdict not in verdicts]


Look = tuple[int, PoolStats]
"""The number of a sample, and a pool in it."""


def _looks(samples: Sequence[ClientStats], now: PoolStats) -> list[Look]:
    return [(i, p) for i, s in enumerate(samples) for p in s.pools if p.address == now.address]


def _case_then(
    samples: Sequence[ClientStats], look: Look, now: PoolStats, most: int | None
) -> Case:
    number, pool = look
    then = _apart([*samples[: number + 1]])
    return Case(pool, windows(then, (now.host, now.port)), then[-1], most, now)


def _past(
    samples: Sequence[ClientStats], now: PoolStats, until: float, most: int | None
) -> list[Finding]:
    """Return what was found while the trouble lasted: at the last look at an exhausted pool."""
    looks = [look for look in _looks(samples, now) if samples[look[0]].at <= until]
    if not looks:
        return []
    last = next((look for look in reversed(looks) if look[1].exhausted), looks[-1])
    case = _case_then(samples, last, now, most)
    found = _findings(case)
    leak = _past_leak(samples, now, most, since=0 if case.leaks else last[0])
    if leak is None:
        return found
    # Without those connections it need not have been too small.
    return [leak, *(one for one in found if one.verdict not in ("leak", "undersized"))]


def _past_leak(
    samples: Sequence[ClientStats], now: PoolStats, most: int | None, *, since: int = 0
) -> Finding | None:
    """Return a leak as it was at last: it goes on when those who missed it have gone."""
    leaking = [look for look in _looks(samples, now) if look[0] >= since and look[1].held_idle]
    leak = find_leak(_case_then(samples, leaking[-1], now, most)) if leaking else None
    return leak and replace(leak, ended=samples[-1].at - samples[leaking[-1][0]].at)


def _apart(samples: list[ClientStats]) -> list[ClientStats]:
    """Return the samples that are a second apart, the last ones among them: less tells no rates."""
    kept = samples[-1:]
    for one in reversed(samples[:-1]):
        if kept[0].at - one.at >= APART_SECONDS:
            kept.insert(0, one)
    return kept


def worst_first(findings: Iterable[Finding]) -> Diagnosis:
    """Return findings as a diagnosis; of what is equally grave, what came first stays first."""

    def key(one: Finding) -> tuple[bool, int]:
        return one.ended is not None, _RANK[one.severity]

    return Diagnosis(tuple(sorted(findings, key=key)))


def recommend(diagnosis: Diagnosis) -> Recommendations:
    """Return a diagnosis as the guide's endpoint tells it."""
    return {
        # Where it is not known that operations are slower than usual, they may just be many.
        "increase_pool": any(
            (one.verdict == "undersized" and (one.change or not one.evidence["connections_needed"]))
            or (one.verdict == "slow operations" and not one.evidence["usual_seconds"])
            for one in diagnosis.findings
        ),
        "check_connection": any(
            one.verdict == "server unreachable" and one.severity == "critical"
            for one in diagnosis.current
        ),
        "reasons": [f"{one.because}: {one.advice}" for one in diagnosis.findings],
    }
