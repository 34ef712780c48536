"""A rule: when a verdict applies, and what to say then."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence
from pool_telemetry.diagnosis.model import Finding, Verdict

SERVES_NOBODY: Final = frozenset(
    {"server_unreachable", "driver_stands_still", "lost_pool", "handshakes_stall", "deadlock"}
)
"""Findings that explain all waits and failures of a pool, whatever its size and its operations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One verdict.

    Attributes:
        verdict: The verdict of its findings.
        runbook: The section of `dashboards/runbooks.md` that explains more.
        applies: Whether the evidence has the problem. It reads the evidence alone.
        explain: The finding, if it applies.
        suppressed_by: Findings that explain this one, by the beginning of their ids; of problems
            that last. One of an earlier rule makes this rule silent.
    """

    verdict: Verdict
    runbook: str
    applies: Callable[[Evidence], bool]
    explain: Callable[[Evidence], Finding]
    suppressed_by: frozenset[str] = field(default_factory=frozenset)

    def is_suppressed_by(self, finding: Finding) -> bool:
        """Return whether a finding explains this rule's."""
        parts = finding.id.partition(".")
        return finding.ended is None and not self.suppressed_by.isdisjoint({parts[0], finding.id})
