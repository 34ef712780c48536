"""Measure reading while many callers wait: its time, and how long it delays the events."""

import asyncio
import contextlib
import time
import timeit
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

from pymongo import AsyncMongoClient

from pool_telemetry import PoolTelemetry
from pool_telemetry.state.pool_state import GRACE_SECONDS, PoolState
from tests.benchmarks.measure import Effort, Goal, show_heading
from tests.support import until

CONNECTIONS = 500
WAITING = 1_000
STATS_MILLISECONDS = 20.0
LOCK_MICROSECONDS = 100.0

SHED_CONNECTIONS = 10
SHED_WAITING = (0, 500, 5_000)
OCCUPANCY_MICROSECONDS = 10.0


class TimedLock:
    """A pool's own lock, and the longest that it was held."""

    def __init__(self, state: PoolState) -> None:
        self._lock: Any = state._lock
        self.longest = 0.0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._since = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        held = time.perf_counter() - self._since
        self._lock.release()
        self.longest = max(self.longest, held)


@contextlib.asynccontextmanager
async def waiting_tasks(uri: str, connections: int, waiting: int) -> AsyncIterator[PoolTelemetry]:
    """Hold all connections of a client, and let so many tasks wait for one."""
    telemetry = PoolTelemetry()
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
        uri, maxPoolSize=connections, maxConnecting=20, event_listeners=telemetry.listeners
    )
    await client.admin.command("ping")
    (server,) = client._topology._servers.values()

    async def wait_in_queue() -> None:
        async with server.pool.checkout():
            pass

    async with contextlib.AsyncExitStack() as held:
        for _ in range(connections):
            await held.enter_async_context(server.pool.checkout())
        queue = [asyncio.create_task(wait_in_queue()) for _ in range(waiting)]
        await until(lambda: telemetry.occupancy().waiting == waiting)
        await asyncio.sleep(2 * GRACE_SECONDS)  # a younger wait is not looked at, and costs less
        yield telemetry
    await asyncio.gather(*queue)
    await client.close()
    await asyncio.sleep(0.2)  # till the loop has closed every socket


async def read_in_a_crowd(uri: str, rounds: int) -> tuple[float, float]:
    """Return the seconds of the best of so many reads, and of the best round's longest hold."""
    async with waiting_tasks(uri, CONNECTIONS, WAITING) as telemetry:
        (state,) = (one for one in telemetry._pools.values() if one.phase == "ready")
        reads, holds = [], []
        for _ in range(rounds):
            lock: Any = TimedLock(state)
            state._lock = lock
            before = time.perf_counter()
            pool = telemetry.stats().pools[-1]
            reads.append(time.perf_counter() - before)
            holds.append(lock.longest)
            state._lock = lock._lock
            assert (pool.waiting, pool.in_use) == (WAITING, CONNECTIONS)
            await asyncio.sleep(0)
    return min(reads), min(holds)


async def read_occupancy(uri: str, waiting: int, rounds: int) -> float:
    """Return the seconds of one read of the occupancy, in the best of so many rounds."""
    async with waiting_tasks(uri, SHED_CONNECTIONS, waiting) as telemetry:
        found = telemetry.occupancy()
        assert (found.waiting, found.in_use) == (waiting, SHED_CONNECTIONS)
        return min(timeit.repeat(telemetry.occupancy, number=100, repeat=rounds)) / 100


def run_crowd(effort: Effort, uri: str) -> list[Goal]:
    """Measure (g)."""
    show_heading(
        "g",
        f"One read while {WAITING:,} wait and {CONNECTIONS} are in use",
        f"{STATS_MILLISECONDS:g} ms, and the events' lock held for {LOCK_MICROSECONDS:g} µs; "
        f"occupancy() {OCCUPANCY_MICROSECONDS:g} µs however many wait",
    )
    read, hold = asyncio.run(read_in_a_crowd(uri, effort.read_rounds))
    print(f"    stats() {read * 1e3:.2f} ms, its longest hold of the lock {hold * 1e6:.0f} µs")
    shed = {
        waiting: asyncio.run(read_occupancy(uri, waiting, effort.read_rounds)) * 1e6
        for waiting in SHED_WAITING
    }
    texts = (f"{cost:.1f} µs with {waiting:,} waiting" for waiting, cost in shed.items())
    print(f"    occupancy() {', '.join(texts)}")
    return [
        Goal(
            "g",
            f"stats(), {CONNECTIONS} used, {WAITING:,} waiting",
            STATS_MILLISECONDS,
            read * 1e3,
            "ms",
        ),
        Goal("g", "its longest hold of the lock", LOCK_MICROSECONDS, hold * 1e6),
        *(
            Goal("g", f"occupancy(), {waiting:,} waiting", OCCUPANCY_MICROSECONDS, cost)
            for waiting, cost in shed.items()
        ),
    ]
