"""The rules, one file for each verdict; a new verdict is one file and one line in the table here.

Rules read the evidence, the thresholds and the wording, and nothing else. `no_server_fits`
and `client_per_request` are no rows of the table: they judge a client, which may have no pool.
"""

from dataclasses import replace
from typing import Final

from pool_telemetry.diagnosis.evidence import Evidence
from pool_telemetry.diagnosis.model import Finding
from pool_telemetry.diagnosis.rules import (
    callers_hang_up,
    connection_storm,
    deadlock,
    driver_stands_still,
    handshakes_stall,
    leak,
    lost_pool,
    oversized,
    retry_storm,
    server_unreachable,
    slow_operations,
    undersized,
)
from pool_telemetry.diagnosis.rules.rule import Rule

RULES: Final[tuple[Rule, ...]] = (
    server_unreachable.RULE,
    driver_stands_still.RULE,
    lost_pool.RULE,
    handshakes_stall.RULE,
    deadlock.RULE,
    leak.RULE,
    callers_hang_up.RULE,
    connection_storm.RULE,
    slow_operations.RULE,
    retry_storm.RULE,  # after the causes that make callers retry
    undersized.RULE,
    oversized.RULE,
)
"""In order of precedence: of equally severe findings the earlier rule's comes first."""


def judge(evidence: Evidence) -> list[Finding]:
    """Return the findings of one period."""
    found = list[Finding]()
    for rule in RULES:
        if rule.applies(evidence) and not any(map(rule.is_suppressed_by, found)):
            found.append(replace(rule.explain(evidence), runbook=rule.runbook))
    return found
