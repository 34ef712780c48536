"""Every simulated history has the diagnosis of the golden file.

An intended change of the rules changes the file: `python -m tests.histories` writes it again, and
the commit gives the reason. A line has the verdicts, a digest of their numbers and a digest of
their words, so that a diff shows whether only words changed.
"""

import difflib

import pytest

from tests.histories import GOLDEN, golden

SHOWN = 40


@pytest.mark.heavy
def test_the_diagnoses_are_the_golden_ones() -> None:
    want, got = GOLDEN.read_text().splitlines(), golden().splitlines()
    changed = list(difflib.unified_diff(want, got, "golden", "now", n=0, lineterm=""))
    assert not changed, "\n".join(changed[:SHOWN])
