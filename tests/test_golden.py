"""Every simulated and every recorded history has the diagnosis of the golden files.

An intended change of the rules changes the files: `python -m tests.histories` writes them again,
and the commit gives the reason. A line has the verdicts, a digest of their numbers and a digest of
their words, so that a diff shows whether only words changed.
"""

import difflib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.histories import RECORDED, SIMULATED, recorded, simulated

SHOWN = 40


@pytest.mark.load
@pytest.mark.parametrize(("file", "lines"), [(SIMULATED, simulated), (RECORDED, recorded)])
def test_the_diagnoses_are_the_golden_ones(file: Path, lines: Callable[[], list[str]]) -> None:
    kept = file.read_text().splitlines()
    changed = list(difflib.unified_diff(kept, lines(), "golden", "now", n=0, lineterm=""))
    assert not changed, "\n".join(changed[:SHOWN])
