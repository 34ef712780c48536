"""Every simulated and every recorded history has the diagnosis of the golden files.

An intended change of the rules changes the files: `python -m tests.histories` writes them again,
and the commit gives the reason. A line has the verdicts, a digest of their numbers and a digest of
their words, so that a diff shows whether only words changed.
"""

import difflib
from collections.abc import Iterable

import pytest

from tests.histories import RECORDED, SIMULATED, recorded, simulated
from tests.support import rest_in_bulk, unmeasured

SHOWN = 40
PARTS = 6  # so that several processes share the work


def compare(kept: list[str], found: Iterable[str]) -> None:
    changed = list(difflib.unified_diff(kept, [*found], "golden", "now", n=0, lineterm=""))
    assert not changed, "\n".join(changed[:SHOWN])


@pytest.mark.parametrize("part", rest_in_bulk(range(PARTS)))
@unmeasured()
def test_simulated_histories_have_the_golden_diagnoses(part: int) -> None:
    kept, number = list[str](), 0
    for line in SIMULATED.read_text().splitlines():
        number = number if line.startswith(" ") else int(line.partition(" ")[0])
        if number % PARTS == part:
            kept.append(line)
    compare(kept, simulated(part, PARTS))


@unmeasured()
def test_recorded_scenarios_have_the_golden_diagnoses() -> None:
    compare(RECORDED.read_text().splitlines(), recorded())
