"""At every quiet moment our counts are PyMongo's own, whatever storm went before."""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pymongo
import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import PyMongoError

from pool_telemetry import PoolTelemetry
from pool_telemetry.state.pool_state import GRACE_SECONDS
from pool_telemetry.stats import PoolStats
from tests.support import (
    Counts,
    Started,
    aexhausted,
    drivers,
    exhausted,
    ours,
    the_pool,
    until,
    wait_for,
)

MAX_SIZE = 4
CALLERS = 12


def agrees(telemetry: PoolTelemetry, expected: Counts) -> bool:
    return ours(the_pool(telemetry)) == expected


def assert_agreement(
    telemetry: PoolTelemetry, client: Any, reached: Callable[[Counts], bool]
) -> Counts:
    """Wait for a moment of the driver in which nothing changes, compare, and return its counts."""
    theirs = mine = drivers(client)

    def agreed() -> bool:
        nonlocal theirs, mine
        theirs, mine = drivers(client), ours(the_pool(telemetry))
        return reached(theirs) and mine == theirs == drivers(client)

    try:
        wait_for(agreed)
    except AssertionError:
        raise AssertionError(f"the driver has {theirs}, we {mine}") from None
    return theirs


def is_quiet(counts: Counts) -> bool:
    return counts.in_use == counts.opening == counts.waiting == 0


def assert_balanced(pool: PoolStats, started: int) -> None:
    assert sum(pool.checkouts.values()) + pool.waiting == started
    assert pool.wait_time.count == pool.checkouts["ok"]
    assert pool.created - sum(pool.closed.values()) == pool.size


def test_counts_of_many_threads_equal_the_drivers_at_every_quiet_moment(server_uri: str) -> None:
    telemetry, started = PoolTelemetry("threads"), Started()
    client: MongoClient[dict[str, Any]] = MongoClient(
        server_uri,
        maxPoolSize=MAX_SIZE,
        waitQueueTimeoutMS=10_000,
        retryReads=False,
        event_listeners=[started, *telemetry.listeners],
    )
    collection = client["storm"]["messages"]
    timeouts = 0

    def busy(seed: int) -> None:
        nonlocal timeouts
        chance = random.Random(seed)
        for _ in range(60):
            limit = chance.choice([None, None, 0.001, 0.01])
            try:
                with pymongo.timeout(limit) if limit else contextlib.nullcontext():
                    if chance.random() < 0.1:
                        list(collection.find({}, batch_size=2).limit(5))
                    collection.find_one({"_id": chance.randrange(10)})
            except PyMongoError:
                timeouts += 1

    try:
        collection.insert_many({"_id": i} for i in range(10))
        for round_ in range(3):
            run_threads([partial(busy, s + 100 * round_) for s in range(CALLERS)])
            assert_agreement(telemetry, client, is_quiet)
            with exhausted(client):
                queue = [threading.Thread(target=collection.find_one) for _ in range(CALLERS)]
                for thread in queue:
                    thread.start()
                # PyMongo's own thread, which kills cursors, may stand in the queue with them.
                full = assert_agreement(telemetry, client, lambda c: c.waiting >= CALLERS)
                assert (full.size, full.in_use) == (MAX_SIZE, MAX_SIZE)
                assert the_pool(telemetry).exhausted
            for thread in queue:
                thread.join()
            assert assert_agreement(telemetry, client, is_quiet).size == MAX_SIZE
            assert not the_pool(telemetry).exhausted
            assert_balanced(the_pool(telemetry), started.count)
        assert timeouts, "the storm was too gentle to time anyone out"
        assert the_pool(telemetry).exhaustions >= 1
    finally:
        client.close()


def run_threads(targets: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_counts_of_many_tasks_equal_the_drivers_at_every_quiet_moment(server_uri: str) -> None:
    telemetry, started = PoolTelemetry("tasks"), Started()

    async def storm() -> None:
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            server_uri,
            maxPoolSize=MAX_SIZE,
            retryReads=False,
            event_listeners=[started, *telemetry.listeners],
        )
        collection = client["storm"]["async"]
        over = asyncio.Event()

        async def plain() -> None:
            await collection.find_one()

        async def timed_out() -> None:
            with (
                contextlib.suppress(PyMongoError),
                pymongo.timeout(0.5),
            ):  # its checkout begins by then
                await collection.find_one()

        async def swallows() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await collection.find_one()
            await over.wait()

        try:
            await plain()
            for _ in range(3):
                async with aexhausted(client):
                    waiting = [asyncio.create_task(plain()) for _ in range(3)]
                    cancelled = [asyncio.create_task(plain()) for _ in range(5)]
                    living_on = [asyncio.create_task(swallows()) for _ in range(4)]
                    await until(lambda: drivers(client).waiting == 12)
                    late = [asyncio.create_task(timed_out()) for _ in range(2)]
                    for task in (*cancelled, *living_on):
                        task.cancel()
                    await asyncio.gather(*late, *cancelled, return_exceptions=True)
                    await until(lambda: drivers(client).waiting == 3)
                    assert not any(task.done() for task in living_on)
                    expected = Counts(MAX_SIZE, MAX_SIZE, 0, 0, 3)
                    await until(partial(agrees, telemetry, expected))
                    assert ours(the_pool(telemetry)) == drivers(client) == expected
                await asyncio.gather(*waiting)
                over.set()
                await asyncio.gather(*living_on)
                over.clear()
                assert ours(the_pool(telemetry)) == drivers(client)
                assert drivers(client) == Counts(MAX_SIZE, 0, MAX_SIZE, 0, 0)
                assert_balanced(the_pool(telemetry), started.count)
            checkouts = the_pool(telemetry).checkouts
            assert checkouts["cancelled"] == 3 * (5 + 4)
            assert checkouts["timeout"] == 3 * 2
        finally:
            await client.close()

    asyncio.run(storm())


@pytest.mark.parametrize("count", [15])
def test_cancelled_waiters_are_dropped_without_a_reader(server_uri: str, count: int) -> None:
    """Ghosts must not grow without a reader: the hot path drops them by itself."""
    telemetry = PoolTelemetry("unread")

    async def main() -> None:
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            server_uri, maxPoolSize=1, event_listeners=telemetry.listeners
        )
        collection = client["storm"]["unread"]
        await collection.find_one()
        async with aexhausted(client):
            ghosts = [asyncio.create_task(collection.find_one()) for _ in range(count)]
            await until(lambda: drivers(client).waiting == count)
            for task in ghosts:
                task.cancel()
            await asyncio.gather(*ghosts, return_exceptions=True)
            old_enough = time.monotonic() + 2 * GRACE_SECONDS
            await until(lambda: time.monotonic() > old_enough)
        await collection.find_one()
        (state,) = (pool for pool in telemetry._pools.values() if pool.phase == "ready")
        assert len(state._waiters) == 0
        await client.close()

    asyncio.run(main())
