"""The jobs of the rules are regular expressions as Prometheus reads them."""

import json
import random
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from pool_telemetry.monitoring import re2
from tests.needs import needs

KNOWN = (
    *(r"\Qa.b\E+", r"\pL", r"\PN+", r"\p{Greek}", r"a\z", r"[]a]", r"[^]a]", r"[[:alpha:]]"),
    *(r"[\d-z]", r"[a-b-c]", r"\12", r"\x41", r"\x{41}", r"\-", "é+", r"(?i)a", r"(?i-s:a)"),
    *(r"a{,5}", r"a{01}", r"x{", r"}", r"(?P<n>a)", "()*", "(|a)*", r"\b\B\A", "a{2}?", "(?U)a+"),
    *(r"(a{10}){100}", r"a{1000}", r"a=(?i)*", "^*", "[[:^alpha:]]", "[a-]", r"[\]]", ""),
)
UNKNOWN = (
    *(r"\Qa", r"\E", r"\Z", "(?#x)a", "(?=a)", "(?!a)", "(?<=a)", "(?<!a)", r"(a)\1", r"\8"),
    *(r"(?P<n>a)(?P=n)", "a++", "a*+", "a?+", "a{2}+", "(?>a)", "(?(1)a|b)", "a{2,1}", "a{1001}"),
    *("(a{10}){101}", "[a", "[[:foo:]]", "[z-a]", r"[a-\d]", r"[\b]", r"\x4", r"\x{110000}"),
    *(r"\u0041", r"\N{DASH}", r"\C", r"\é", "(", ")", "a|*", "*a", "(?i)*", "(?x)b", "a\\", "a**"),
    *("(?P<1a", "(?P<é>a)", r"\pl", r"\p{Klingon}", "a" * 1001, "(" * 501 + ")" * 501),
)


@pytest.mark.parametrize("expression", KNOWN)
def test_known_syntax_is_accepted(expression: str) -> None:
    assert re2.problem(expression) == ""


@pytest.mark.parametrize("expression", UNKNOWN)
def test_unknown_syntax_is_refused(expression: str) -> None:
    assert re2.problem(expression)


def refused_by_promtool(expressions: Sequence[str], folder: Path) -> set[str]:
    needs("promtool", package="prometheus")
    rules = [
        f"  - alert: A{number}\n    expr: {json.dumps(f'up{{job=~{json.dumps(one)}}}')}\n"
        for number, one in enumerate(expressions)
    ]
    path = folder / "rules.yml"
    path.write_text("groups:\n- name: g\n  rules:\n" + "".join(rules))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
    return {expressions[int(n)] for n in re.findall(r'"A(\d+)"', done.stdout + done.stderr)}


@pytest.mark.parametrize("seed", [1, 2])
def test_the_check_is_that_of_prometheus(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    parts = [*"ab()[]{}|*+?.^$-,\\12:<>=!#PQEpLzZdbwx", r"\Q", r"\E", "{2}", "{2,3}", "{400}"]
    parts += ["(?:", "(?i)", "(?P<a>", "[:alpha:]", r"\d", r"\pL", "[^"]
    mixed = ["".join(chance.choices(parts, k=chance.randrange(1, 9))) for _ in range(3000)]
    # A name twice, and more than 1000 characters, are refused here, but not by every version.
    mixed = [one for one in mixed if one.count("(?P<a>") < 2]
    expressions = [*KNOWN, *UNKNOWN[:-2], *mixed]
    refused = refused_by_promtool(expressions, tmp_path)
    assert {one for one in expressions if re2.problem(one)} == refused
    assert len(refused) < len(expressions) - 500
