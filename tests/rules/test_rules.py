"""Properties of every rule."""

import re
from pathlib import Path
from typing import get_args

from pool_telemetry.diagnosis import Verdict, rules
from pool_telemetry.diagnosis.rules import RULES, judge
from tests.rules.evidence import WELL

ROOT = Path(__file__).parents[2]


OF_NO_POOL = {"no server fits", "client per request", "silent worker"}
"""Verdicts on a client or a process, which may have no pool."""


def test_every_verdict_has_one_rule_in_a_file_of_its_name() -> None:
    verdicts = {one.verdict for one in RULES} | OF_NO_POOL
    assert verdicts | {"healthy"} == {*get_args(Verdict)}
    files = {path.stem for path in Path(rules.__file__).parent.glob("*.py")}
    assert files - {"__init__", "rule", "wording"} == {
        verdict.replace(" ", "_") for verdict in verdicts
    }


def test_every_runbook_is_a_section_of_the_runbooks() -> None:
    text = (ROOT / "dashboards/runbooks.md").read_text()
    sections = set(re.findall(r"^## (\w+)$", text, re.MULTILINE))
    assert {one.runbook for one in RULES if one.runbook} <= sections


def test_a_rule_is_suppressed_by_earlier_rules_only() -> None:
    known = set[str]()
    for rule in RULES:
        assert {one.partition(".")[0] for one in rule.suppressed_by} <= known
        known.add(rule.verdict.replace(" ", "_"))


def test_a_pool_that_is_well_has_no_finding() -> None:
    assert judge(WELL) == []
