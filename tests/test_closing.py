"""AsyncMongoDBConnectionPool.close() ends within 5 s, whatever state PyMongo's pool is in."""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from pymongo.errors import InvalidOperation

from pool_telemetry import AsyncMongoDBConnectionPool as Pool
from pool_telemetry import TelemetryOptions, async_pool
from pool_telemetry.base_pool import CLOSE_SECONDS
from pool_telemetry.registry import active
from tests.support import PATIENCE_SECONDS, drivers, logged, slow, until
from tests.test_wait_limits import AsyncClient, broken_only, hang_up, pool_of

pytestmark = pytest.mark.filterwarnings(  # a client that is left behind has open connections
    "ignore:.*AsyncMongoClient.__del__:pytest.PytestUnraisableExceptionWarning",
)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Find what a test left behind while it is still known whose it is."""
    yield
    gc.collect()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the limits short: a close that can't succeed is to be left soon."""
    monkeypatch.setattr(async_pool, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(async_pool, "LEAVE_SECONDS", 0.3)


def test_all_limits_together_are_below_5_seconds() -> None:
    assert CLOSE_SECONDS < async_pool.LEAVE_SECONDS
    assert async_pool.LEAVE_SECONDS + async_pool.DRAIN_SECONDS < 5


async def ends(closing: Coroutine[Any, Any, None]) -> None:
    """Await it; fail if that takes too long, even if it ignores a cancellation."""
    task = asyncio.create_task(closing)
    await asyncio.wait([task], timeout=PATIENCE_SECONDS)
    assert task.done(), "close() hangs"
    await task


def left_behind(caplog: pytest.LogCaptureFixture) -> int:
    return len(logged(caplog, "is left behind"))


@broken_only
@pytest.mark.usefixtures("hasty")
def test_close_ends_after_clients_that_hung_up_broke_the_pool(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        client = await Pool.initialize(
            server_uri, maxPoolSize=1, appName="broken", waitQueueTimeoutMS=60_000
        )
        await hang_up(client, server_uri)
        assert pool_of(client).lock.locked()
        await ends(Pool.close())
        assert Pool.get_pool_stats()["status"] == "not_initialized"

    asyncio.run(main())
    assert left_behind(caplog) == 1


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("lock_of", [lambda c: pool_of(c).lock, lambda c: c._topology._lock])
def test_close_ends_when_the_lock_is_lost(
    server_uri: str,
    caplog: pytest.LogCaptureFixture,
    lock_of: Callable[[Any], asyncio.Lock],
    replaced: bool,
) -> None:
    async def main() -> None:
        telemetry = TelemetryOptions(name="lockless", drain_seconds=60.0)
        client = await Pool.initialize(server_uri, telemetry=telemetry)
        await lock_of(client).acquire()
        if replaced:
            await Pool.initialize(server_uri, appName="next", telemetry=telemetry)
        await ends(Pool.close())

    asyncio.run(main())
    assert left_behind(caplog) == 1
    assert not [one for one in active() if one.name.startswith("lockless")]


@pytest.mark.usefixtures("hasty")
def test_a_replaced_client_without_a_lock_is_left_behind(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        telemetry = TelemetryOptions(name="lockless", drain_seconds=0.0)
        client = await Pool.initialize(server_uri, telemetry=telemetry)
        await pool_of(client).lock.acquire()
        new = await Pool.initialize(server_uri, appName="next", telemetry=telemetry)
        await until(lambda: left_behind(caplog) == 1)
        assert (await new.admin.command("ping"))["ok"] == 1.0
        await ends(Pool.close())

    asyncio.run(main())


def test_close_ends_when_the_lock_is_lost_while_it_waits_for_a_connection(
    server_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyMongo ignores a cancellation then, because its condition wants the lock back first."""
    monkeypatch.setattr(async_pool, "CLOSE_SECONDS", PATIENCE_SECONDS)

    async def main() -> None:
        client = await Pool.initialize(server_uri, maxPoolSize=1, appName="late")
        find = client["t"]["t"].find_one
        async with client.start_session() as one, client.start_session() as another:
            await find(session=one)
            await find(session=another)
        with slow(server_uri, "late", 5_000):
            holder = asyncio.create_task(find())  # it has one session, and close() ends the other
            await until(lambda: drivers(client).in_use == 1)
            closing = asyncio.create_task(Pool.close())
            await until(lambda: drivers(client).waiting == 1)
            lock = pool_of(client).lock
            await lock.acquire()
            await asyncio.wait([closing], timeout=PATIENCE_SECONDS)
            assert closing.done(), "close() hangs"
            lock.release()  # so that what waits for it can end
            holder.cancel()
            await asyncio.wait([holder])

    asyncio.run(main())


def test_close_ends_while_the_server_does_not_answer_endsessions(
    server_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(async_pool, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(async_pool, "LEAVE_SECONDS", PATIENCE_SECONDS)

    async def main() -> None:
        client = await Pool.initialize(server_uri, appName="endless")
        with slow(server_uri, "endless", 5_000, "endSessions"):
            await ends(Pool.close())
        assert await is_closed(client)

    asyncio.run(main())
    assert left_behind(caplog) == 0


async def is_closed(client: AsyncClient) -> bool:
    try:
        await client["t"]["t"].find_one()
    except InvalidOperation:
        return True
    return False


def test_a_client_whose_close_is_cancelled_is_closed_all_the_same(server_uri: str) -> None:
    async def main() -> None:
        client = await Pool.initialize(server_uri, appName="cancelled")
        with slow(server_uri, "cancelled", 1_000, "endSessions"):
            closing = asyncio.create_task(Pool.close())
            await until(lambda: drivers(client).in_use == 1)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            await until(lambda: len(asyncio.all_tasks()) == 1)
        assert await is_closed(client)
        await Pool.close()

    asyncio.run(main())
