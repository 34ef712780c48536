"""AsyncMongoDBConnectionPool: the same promises, on an event loop."""

import asyncio
import contextlib
import gc
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest
from pymongo.errors import PyMongoError, ServerSelectionTimeoutError

from pool_telemetry import (
    AsyncMongoDBConnectionPool as Pool,
)
from pool_telemetry import (
    PoolNotInitializedError,
    TelemetryOptions,
)
from pool_telemetry.base_pool import CLOSE_SECONDS
from pool_telemetry.demo.embedded import EmbeddedServer
from pool_telemetry.registry import active
from tests.support import aexhausted, drivers, free_port, logged, slow, until

pytestmark = pytest.mark.filterwarnings(  # some tests leave a client behind on purpose
    "ignore:.*AsyncMongoClient.__del__:pytest.PytestUnraisableExceptionWarning",
)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Find what a test left behind while it is still known whose it is."""
    yield
    gc.collect()


@contextlib.asynccontextmanager
async def closing() -> AsyncIterator[None]:
    try:
        yield
    finally:
        await Pool.close()


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def guarded() -> None:
        async with closing():
            await main()

    asyncio.run(guarded())


def test_a_client_that_is_replaced_is_logged_with_both_places(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def start(size: int) -> None:
        await Pool.initialize(server_uri, maxPoolSize=size)

    async def main() -> None:
        await start(7)
        await asyncio.create_task(start(5))

    run(main)
    (warning,) = logged(caplog, "replaced the client")
    place = rf"{__file__}:\d+ in \S+\.<locals>\.start"
    assert re.match(
        rf"initialize\(\) at {place} replaced the client of pool '{server_uri}', which was "
        rf"initialized at {place} with other settings: maxPoolSize 7 -> 5, minPoolSize 7 -> 5\. ",
        warning,
    )


def names() -> set[str]:
    return {telemetry.name for telemetry in active()}


def test_fifty_tasks_make_one_client(server_uri: str) -> None:
    async def main() -> None:
        clients = await asyncio.gather(*(Pool.initialize(server_uri) for _ in range(50)))
        assert all(client is Pool.get_client() for client in clients)
        assert (await clients[0].admin.command("ping"))["ok"] == 1.0
        stats = Pool.get_pool_stats()
        assert stats["status"] == "connected"
        assert stats["pool_config"]["minPoolSize"] == 10
        assert stats["server_version"] == (await clients[0].server_info())["version"]

    run(main)


def test_before_initialize_and_after_close() -> None:
    async def main() -> None:
        with pytest.raises(PoolNotInitializedError, match=r"AsyncMongoDBConnectionPool\.init"):
            Pool.get_client()
        assert Pool.get_pool_stats()["status"] == "not_initialized"
        await Pool.close()
        await Pool.close()

    run(main)


def test_without_an_address_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = f"mongodb://localhost:{free_port()}/"
    monkeypatch.setattr("pool_telemetry.base_pool.DEFAULT_URI", tried)

    async def main() -> None:
        words = f"no address was given and MONGODB_URI is not set, so {tried} was tried"
        with pytest.raises(ServerSelectionTimeoutError, match=words):
            await Pool.initialize(serverSelectionTimeoutMS=200)
        with pytest.raises(ServerSelectionTimeoutError, match="Topology Description"):
            await Pool.initialize(tried, serverSelectionTimeoutMS=200)

    run(main)


def test_a_wrong_address_leaves_nothing_behind(server_uri: str) -> None:
    async def main() -> None:
        with pytest.raises(ServerSelectionTimeoutError):
            await Pool.initialize(
                "mongodb://127.0.0.1:1/",
                serverSelectionTimeoutMS=200,
                telemetry=TelemetryOptions(name="awrong"),
            )
        assert "awrong" not in names()
        await until(lambda: len(asyncio.all_tasks()) == 1)
        await Pool.initialize(server_uri)

    run(main)


def test_cancelled_initialize_leaves_nothing_behind(server_uri: str) -> None:
    async def main() -> None:
        options = TelemetryOptions(name="given-up")
        with slow(server_uri, "given-up", 1_000, "buildInfo", "buildinfo"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):  # it was pinged, and asks for the version
                    await Pool.initialize(server_uri, appName="given-up", telemetry=options)
            assert "given-up" not in names()
            await until(lambda: len(asyncio.all_tasks()) == 1)
        assert Pool.get_pool_stats()["status"] == "not_initialized"

    run(main)


def test_close_returns_while_the_pool_is_exhausted(server_uri: str) -> None:
    async def main() -> None:
        client = await Pool.initialize(
            server_uri, maxPoolSize=2, waitQueueTimeoutMS=120_000, retryReads=False
        )
        collection = client["t"]["t"]
        await collection.find_one()
        async with aexhausted(client):
            tasks = [asyncio.create_task(collection.find_one()) for _ in range(3)]
            await until(lambda: drivers(client).waiting == 3)
            stats = Pool.get_pool_stats()
            assert (stats["pool"]["waiting"], drivers(client).waiting) == (3, 3)
            assert stats["pool"]["exhausted"]
            async with asyncio.timeout(10 * CLOSE_SECONDS):
                await Pool.close()
            assert Pool.get_pool_stats()["status"] == "not_initialized"
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(main)


def test_new_settings_swap_the_client_and_let_the_old_one_finish(server_uri: str) -> None:
    async def main() -> None:
        options = TelemetryOptions(name="aswap", drain_seconds=3.0)
        old = await Pool.initialize(server_uri, appName="aswap", telemetry=options)
        with slow(server_uri, "aswap", 500):
            task = asyncio.create_task(old["swap"]["empty"].find_one())
            await until(lambda: drivers(old).in_use == 1)
            new = await Pool.initialize(server_uri, maxPoolSize=5, telemetry=options)
            assert Pool.get_client() is new is not old
            telemetry = Pool.get_telemetry()
            assert telemetry is not None
            assert telemetry.name == "aswap"
            assert await task is None
        await until(lambda: "aswap#2" not in names())
        with pytest.raises(PyMongoError):
            await old["swap"]["empty"].find_one()
        assert await new["swap"]["empty"].find_one() is None

    run(main)


def test_close_also_ends_the_clients_that_still_drain(server_uri: str) -> None:
    async def main() -> None:
        old = await Pool.initialize(server_uri)
        await Pool.initialize(server_uri, maxPoolSize=9)
        await Pool.close()
        with pytest.raises(PyMongoError):
            await old["swap"]["empty"].find_one()
        await until(lambda: len(asyncio.all_tasks()) == 1)

    run(main)


def test_close_during_initialize_wins(server_uri: str) -> None:
    async def main() -> None:
        with slow(server_uri, "alate", 1_500, "ping"):
            starting = asyncio.create_task(Pool.initialize(server_uri, appName="alate"))
            await asyncio.sleep(0)
            await until(lambda: Pool._initializing.locked())
            await Pool.close()
            with pytest.raises(PoolNotInitializedError, match="was closed while it initialized"):
                await starting
        assert Pool.get_pool_stats()["status"] == "not_initialized"

    run(main)


def test_a_restarted_server_tells_its_version_again(own_server: EmbeddedServer) -> None:
    async def main() -> None:
        await Pool.initialize(own_server.uri, heartbeatFrequencyMS=500)
        version = Pool.get_pool_stats()["server_version"]
        assert version
        await asyncio.to_thread(own_server.stop, kill=True)
        await until(lambda: Pool.get_pool_stats()["status"] == "disconnected")
        assert Pool._current is not None
        Pool._current.telemetry.server_version = "of the old server"
        await asyncio.to_thread(own_server.start)
        await until(lambda: Pool.get_pool_stats()["server_version"] == version)
        assert Pool.get_pool_stats()["status"] == "connected"

    run(main)


def test_ended_loop_without_close_does_not_block_a_new_client(server_uri: str) -> None:
    async def forgets() -> None:
        await Pool.initialize(server_uri, telemetry=TelemetryOptions(name="forgotten"))
        assert names() >= {"forgotten"}

    asyncio.run(forgets())
    run(forgets)
    assert "forgotten#2" not in names()


def test_close_on_a_new_loop_releases_a_client_whose_loop_ended(server_uri: str) -> None:
    async def forgets() -> None:
        await Pool.initialize(server_uri, telemetry=TelemetryOptions(name="left"))

    asyncio.run(forgets())
    asyncio.run(Pool.close())
    assert "left" not in names()
    assert Pool.get_pool_stats()["status"] == "not_initialized"


@pytest.mark.parametrize("early", [True, False])
def test_a_client_of_a_running_loop_is_not_taken_from_it(server_uri: str, early: bool) -> None:
    """Neither while it is there, nor while it is being made."""

    async def main() -> None:
        with slow(server_uri, "loops", 500, "ping"):
            starting = asyncio.create_task(Pool.initialize(server_uri, appName="loops"))
            await until(lambda: Pool._initializing.locked() if early else starting.done())

            def elsewhere(what: Callable[[], Coroutine[Any, Any, object]]) -> None:
                with pytest.raises(PoolNotInitializedError, match="another event loop"):
                    asyncio.run(what())

            await asyncio.to_thread(elsewhere, lambda: Pool.initialize(server_uri))
            await asyncio.to_thread(elsewhere, Pool.close)
            client = await starting
        assert Pool.get_client() is client
        assert (await client.admin.command("ping"))["ok"] == 1.0

    run(main)
