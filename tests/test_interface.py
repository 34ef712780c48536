"""What users reach the library by is what it was; see `tests/interface.py`."""

from pathlib import Path

from tests.interface import gone

RECORDED = Path(__file__).parent / "golden" / "interface.txt"


def test_nothing_that_users_see_is_gone() -> None:
    assert gone(RECORDED.read_text(encoding="utf-8").splitlines()) == []
