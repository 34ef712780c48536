"""The answer of a diagnosis: findings, the worst first."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Verdict = Literal[
    "healthy",
    "undersized",
    "deadlock",
    "slow operations",
    "leak",
    "client per request",
    "callers hang up",
    "connection storm",
    "server unreachable",
    "oversized",
    "retry storm",
    "no server fits",
    "handshakes stall",
    "lost pool",
    "driver stands still",
    "silent worker",
]
Severity = Literal["healthy", "notice", "warning", "critical"]

_RANK: Final = {"critical": 0, "warning": 1, "notice": 2, "healthy": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One problem of one pool.

    Attributes:
        verdict: The kind of problem.
        severity: critical if callers fail or will soon, warning if they wait, else notice.
        pool: `NAME@host:port`.
        because: A sentence with the numbers.
        advice: A sentence that says what to do.
        evidence: The numbers by name: seconds, shares and counts.
        change: Options of MongoClient and the values to give them.
        ended: Seconds since the problem ended; None while it lasts.
        id: The verdict and its cause, such as `undersized.closed_workload`. It never changes its
            meaning, so that programs can rely on it.
        runbook: The section of `dashboards/runbooks.md` that explains more; empty without one.
        worker: The number of the process that has the pool, among those of its service; None if it
            is the only one.
        pid: That process's id; None if only one process was asked.
    """

    verdict: Verdict
    severity: Severity
    pool: str
    because: str
    advice: str
    evidence: Mapping[str, float] = field(default_factory=dict)
    change: Mapping[str, int] = field(default_factory=dict)
    ended: float | None = None
    id: str = ""
    runbook: str = ""
    worker: int | None = None
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All problems, the worst first, and at the end those that are over."""

    findings: tuple[Finding, ...] = ()

    @property
    def current(self) -> tuple[Finding, ...]:
        """Return the findings that are not over."""
        return tuple(one for one in self.findings if one.ended is None)

    @property
    def verdict(self) -> Verdict:
        """Return the verdict of the worst current finding; healthy without any."""
        return self.current[0].verdict if self.current else "healthy"

    @property
    def severity(self) -> Severity:
        """Return the severity of the worst current finding; healthy without any."""
        return self.current[0].severity if self.current else "healthy"

    def as_dict(self) -> dict[str, Any]:
        """Return the diagnosis as JSON's values."""
        found = [dataclasses.asdict(one) for one in self.findings]
        return {"verdict": self.verdict, "severity": self.severity, "findings": found}


def worst_first(findings: Iterable[Finding]) -> Diagnosis:
    """Return findings as a diagnosis; findings of equal severity keep their order.

    Each of many clients of one name has the finding that they are many. The first one stays.
    """

    def key(one: Finding) -> tuple[bool, int]:
        return one.ended is not None, _RANK[one.severity]

    found, said = list[Finding](), set[str]()
    for one in findings:
        if one.verdict != "client per request" or one.because not in said:
            found.append(one)
            said.add(one.because)
    return Diagnosis(tuple(sorted(found, key=key)))
