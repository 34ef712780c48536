"""The short version of `make soak`."""

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest
from opentelemetry.sdk.trace import SpanProcessor

from tests.chaos import Chaos
from tests.conftest import need_embedded_server
from tests.support import traced_to

OPERATIONS, STORM = 6_000, 1_500


class Tally(SpanProcessor):
    """Counts the spans that begin and end; keeps none."""

    def __init__(self) -> None:
        self.begun = self.ended = 0
        self.failed_checkouts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        with self._lock:
            self.begun += 1

    def on_end(self, span: Any) -> None:
        with self._lock:
            self.ended += 1
            if span.name == "checkout" and (reason := span.attributes.get("error.type")):
                self.failed_checkouts[reason] += 1


@pytest.fixture
def tally() -> Iterator[Tally]:
    """Tracing is on."""
    with traced_to(tally := Tally()):
        yield tally


@pytest.mark.bulk
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="it counts descriptors in /proc")
@pytest.mark.skipif(
    pymongo.version_tuple < (4, 20), reason="PyMongo loses count of cancelled tasks before 4.20"
)
def test_a_storm_behind_a_broken_network_leaves_no_count_wrong_and_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tally: Tally
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
    # Each failed checkout is in the trace. Few spans have no end: those of cancelled callers of
    # which PyMongo publishes no more events.
    failed = {one: report.checkouts[one] for one in ("timeout", "connection_error")}
    # PyMongo reports a cancelled caller if it was opening a connection, not if it was queueing.
    cancelled = tally.failed_checkouts.pop("cancelled")
    assert 0 < cancelled <= report.checkouts["cancelled"]
    assert tally.failed_checkouts == failed
    assert tally.begun - tally.ended < 0.01 * tally.begun
