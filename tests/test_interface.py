"""The interface that users see is unchanged; see `tests/interface.py`."""

import importlib
from pathlib import Path

from tests.interface import gone

RECORDED = Path(__file__).parent / "golden" / "interface.txt"
RENAMED = {
    "async_pool.ManagedAsyncPool": "async_pool.ManagedAsyncMongoClient",
    "catalog.CROWD_ATTRIBUTES": "catalog.OCCUPANCY_ATTRIBUTES",
    "diagnosis.APART_SECONDS": "diagnosis.thresholds.SAMPLE_SECONDS",
    "options.DEFAULT_URI": "client_options.DEFAULT_URI",
    "options.LIMIT_SECONDS": "health.LIMIT_SECONDS",
    "options.client_kwargs": "client_options.client_kwargs",
    "options.pool_config": "client_options.pool_config",
    "pool.ManagedPool": "pool.ManagedMongoClient",
    "state.LOOK_SECONDS_PER_WAITER": "state.INSPECTION_SECONDS_PER_WAITER",
    "state.MOMENT": "state.GRACE_SECONDS",
    "state.QUEUE_SECONDS": "state.NO_IDLE_PROOF_SECONDS",
    "stats.Crowd": "stats.Occupancy",
    "stats.NO_NOTE": "stats.NO_ORIGIN",
    "stats.Note": "stats.Origin",
    "stats.checked": "stats.validate_address",
    "stats.one_line": "stats.printable",
    "watch.LOOK_SECONDS": "watch.CHECK_SECONDS",
    "watch.add": "watch.watch",
    "watch.look_at": "watch.check",
    "watch.look_at_all": "watch.check_all",
}
"""Names that only the library itself used, with the names that they have now."""


def test_everything_that_users_see_still_exists() -> None:
    facts = gone(RECORDED.read_text(encoding="utf-8").splitlines())
    assert set(facts) == {f"import pool_telemetry.{old}" for old in RENAMED}
    for new in RENAMED.values():
        module, _, name = f"pool_telemetry.{new}".rpartition(".")
        assert hasattr(importlib.import_module(module), name), new
