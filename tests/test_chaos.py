"""The short version of `make soak`."""

import logging
from pathlib import Path

import pymongo
import pytest

from tests.chaos import Chaos
from tests.conftest import need_embedded_server

OPERATIONS, STORM = 6_000, 1_500


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="it counts descriptors in /proc")
@pytest.mark.skipif(
    pymongo.version_tuple < (4, 20), reason="PyMongo loses count of cancelled tasks before 4.20"
)
def test_a_storm_behind_a_broken_network_leaves_no_count_wrong_and_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need_embedded_server()
    # pytest keeps log records, and with their tracebacks PyMongo's sockets.
    monkeypatch.setattr(logging.getLogger("pymongo.client"), "disabled", True)
    said: list[str] = []
    report = Chaos(OPERATIONS, STORM, seed=20, say=said.append).run()
    assert report.operations >= OPERATIONS
    assert report.quiet_points >= 4
    assert len(report.faults) >= 3
    for end in ("ok", "cancelled", "TimeoutError", "WaitQueueTimeoutError"):
        assert report.ends[end], report
    assert report.checkouts["cancelled"]
