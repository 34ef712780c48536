"""The interface that users see is unchanged; see `tests/interface.py`."""

import importlib
from pathlib import Path

from tests.interface import gone

RECORDED = Path(__file__).parent / "golden" / "interface.txt"
RENAMED = {
    "async_pool.ManagedAsyncPool": "async_pool.ManagedAsyncMongoClient",
    "catalog.CROWD_ATTRIBUTES": "catalog.OCCUPANCY_ATTRIBUTES",
    "diagnosis.APART_SECONDS": "diagnosis.thresholds.SAMPLE_SECONDS",
    "pool.ManagedPool": "pool.ManagedMongoClient",
    "stats.Crowd": "stats.Occupancy",
    "stats.NO_NOTE": "stats.NO_ORIGIN",
    "stats.Note": "stats.Origin",
    "stats.checked": "stats.validate_address",
    "stats.one_line": "stats.printable",
}
"""Names that only the library itself used, which say more now."""


def test_nothing_that_users_see_is_gone() -> None:
    facts = gone(RECORDED.read_text(encoding="utf-8").splitlines())
    assert set(facts) == {f"import pool_telemetry.{old}" for old in RENAMED}
    for new in RENAMED.values():
        module, _, name = f"pool_telemetry.{new}".rpartition(".")
        assert hasattr(importlib.import_module(module), name), new
