"""Measure the memory in use after a million operations, each on a collection of its own."""

import gc
import random
import tracemalloc
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
    ConnectionCheckedInEvent,
    ConnectionCheckedOutEvent,
    ConnectionCheckOutStartedEvent,
    ConnectionPoolListener,
)

from pool_telemetry import PoolTelemetry
from tests.benchmarks.events import ADDRESS, find, open_pool
from tests.benchmarks.measure import Effort, Goal, show_heading

# The operations that never end are kept up to a bound of 10,000, which these reach.
WARM_UP = 50_000
TRACED = 50_000

RSS_MEBIBYTES = 4.0
TRACED_KIBIBYTES = 64.0

_STATM = Path("/proc/self/statm")


class RandomOperations:
    """Delivers operations, each on a random collection. Of four, one fails, one never ends."""

    def __init__(self, given: Sequence[Any]) -> None:
        self._pool = find(ConnectionPoolListener, list(given))
        self._command = find(CommandListener, list(given))
        self._random = random.Random(1)
        self._request_id = 0
        open_pool(self._pool)

    def run(self, operations: int) -> None:
        pool, command, chance = self._pool, self._command, self._random
        took = timedelta(microseconds=150)
        for _ in range(operations):
            self._request_id = request = self._request_id + 1
            body = {"find": f"messages-{chance.getrandbits(64):x}", "$db": "chat"}
            pool.connection_check_out_started(ConnectionCheckOutStartedEvent(ADDRESS))
            pool.connection_checked_out(ConnectionCheckedOutEvent(ADDRESS, 1, 0.00005))
            command.started(CommandStartedEvent(body, "chat", request, ADDRESS, request))
            if request % 4 == 0:
                failure = {"ok": 0.0, "code": chance.randrange(100_000)}
                command.failed(CommandFailedEvent(took, failure, "find", request, ADDRESS, request))
            elif request % 4 != 2:
                command.succeeded(
                    CommandSucceededEvent(took, {"ok": 1.0}, "find", request, ADDRESS, request)
                )
            pool.connection_checked_in(ConnectionCheckedInEvent(ADDRESS, 1))


def run_memory(effort: Effort) -> list[Goal]:
    """Measure (e). Tracing makes everything slow, so it sees a part of the operations only."""
    show_heading(
        "e",
        f"{effort.operations:,} operations, each on a new collection: what stays in memory",
        f"at most {RSS_MEBIBYTES:g} MiB, and max_operation_series + 2 series",
    )
    telemetry = PoolTelemetry()
    operations = RandomOperations(telemetry.listeners)
    begin = _resident()
    operations.run(WARM_UP)
    before = _resident()
    operations.run(effort.operations)
    after = _resident()

    tracemalloc.start()
    operations.run(WARM_UP)  # what was allocated untraced goes
    gc.collect()
    traced_before, _ = tracemalloc.get_traced_memory()
    operations.run(TRACED)
    gc.collect()
    traced_after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    series = len(telemetry.stats().operations)
    limit = telemetry.options.max_operation_series + 2
    telemetry.close()
    traced = (traced_after - traced_before) / 1024
    print(f"    {'':42}{'before':>11}{'after':>11}{'grown by':>19}")
    for what, earlier, later, unit in (
        (f"RSS, first {WARM_UP:,} operations", begin, before, "MiB"),
        (f"RSS, next {effort.operations:,}", before, after, "MiB"),
        (f"tracemalloc, next {TRACED:,}", traced_before / 1024, traced_after / 1024, "KiB"),
    ):
        print(f"    {what:42}{earlier:11,.1f}{later:11,.1f}{later - earlier:+19,.1f} {unit}")
    print(f"    {'series of operations':42}{'':11}{series:11}")
    return [
        Goal("e", f"RSS, {effort.operations:,} operations", RSS_MEBIBYTES, after - before, "MiB"),
        Goal("e", f"traced, {TRACED:,} operations", TRACED_KIBIBYTES, traced, "KiB"),
        Goal("e", "series of operations", limit, series, "", 0),
    ]


def _resident() -> float:
    """Return the process's resident memory in MiB; 0.0 where there is no /proc."""
    gc.collect()
    if not _STATM.exists():
        return 0.0
    pages = int(_STATM.read_text().split()[1])
    return pages * 4096 / 2**20
