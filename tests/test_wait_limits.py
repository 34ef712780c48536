"""Limits of the wait for a connection: on CPython 3.11 they break an AsyncMongoClient for good.

anyio cancels a task again at each turn of the loop until it ends. Starlette's requests end so when
their clients hang up. No chance is involved: the order of the turns is always the same.
"""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import anyio
import pymongo
import pytest
from fastapi import FastAPI
from pymongo import AsyncMongoClient, MongoClient

from pool_telemetry import AsyncMongoDBConnectionPool as Pool
from pool_telemetry import MongoDBConnectionPool, PoolTelemetry, TelemetryOptions, presets
from pool_telemetry.client_options import ASYNC_DEFAULTS, DEFAULTS
from pool_telemetry.fastapi import pool_lifespan
from pool_telemetry.sessions import AsyncMongoDBSessionManager
from tests.support import drivers, logged, slow, until

AsyncClient = AsyncMongoClient[dict[str, Any]]
Limit = Callable[[], contextlib.AbstractAsyncContextManager[Any]]
BROKEN = sys.version_info < (3, 12)
broken_only = pytest.mark.skipif(
    not BROKEN, reason="asyncio.wait_for is sound on Python 3.12 and later"
)


def pool_of(client: AsyncClient) -> Any:
    """Return PyMongo's own pool."""
    topology: Any = client._topology
    (server,) = topology._servers.values()
    return server.pool


@contextlib.asynccontextmanager
async def no_limit() -> AsyncIterator[None]:
    yield


@contextlib.asynccontextmanager
async def pymongo_timeout() -> AsyncIterator[None]:
    with pymongo.timeout(60):
        yield


async def hang_up(client: AsyncClient, uri: str, limit: Limit = no_limit) -> None:
    """Let clients hang up while one task holds the only connection, and two wait for it."""

    async def find() -> None:
        async with limit():
            await client["t"]["t"].find_one()

    await client["t"]["t"].find_one()
    with slow(uri, str(client.options.pool_options.appname), 2_000):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(find)
            await until(lambda: drivers(client).waiting == 2)
            group.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("options", "limit", "sound"),
    [
        ({"waitQueueTimeoutMS": 60_000}, no_limit, not BROKEN),
        ({"timeoutMS": 60_000}, no_limit, not BROKEN),
        ({}, pymongo_timeout, not BROKEN),
        ({}, partial(asyncio.timeout, 60), True),
        ({}, no_limit, True),
    ],
)
def test_which_limits_lose_a_connection_and_the_lock(
    server_uri: str, options: dict[str, Any], limit: Limit, sound: bool
) -> None:
    async def main() -> None:
        client = AsyncClient(server_uri, maxPoolSize=1, appName="limits", **options)
        await hang_up(client, server_uri, limit)
        pool = pool_of(client)
        assert (pool.lock.locked(), pool.requests) == ((False, 0) if sound else (True, 1))
        if sound:
            assert await client["wait_limits"]["nothing"].find_one() is None
        else:
            pool.lock.release()  # or close() would wait for ever
        with pymongo.timeout(1):  # for a connection that is lost
            await client.close()

    asyncio.run(main())


@broken_only
def test_callers_that_wait_for_a_server_lose_the_lock_of_its_topology() -> None:
    """Server selection always waits by asyncio.wait_for(): no option avoids that on Python 3.11."""

    async def main(silent: socket.socket) -> None:
        uri = "mongodb://{}:{}/".format(*silent.getsockname())
        client = AsyncClient(uri, serverSelectionTimeoutMS=60_000, connectTimeoutMS=1_000)
        topology: Any = client._topology

        async def find() -> None:
            with contextlib.suppress(RuntimeError):  # Lock is not acquired
                await client["t"]["t"].find_one()

        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(find)
            await until(lambda: len(topology._condition._waiters) == 2)
            group.cancel_scope.cancel()
        assert topology._lock.locked()
        topology._lock.release()  # or close() would wait for ever
        await client.close()

    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, no more
        asyncio.run(main(silent))


def test_the_default_outlives_clients_that_hang_up(server_uri: str) -> None:
    async def main() -> None:
        client = await Pool.initialize(server_uri, maxPoolSize=1, appName="default")
        await hang_up(client, server_uri)
        assert not pool_of(client).lock.locked()
        assert await client["wait_limits"]["nothing"].find_one() is None
        await Pool.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None if BROKEN else 5_000),
        ({"waitQueueTimeoutMS": 1_234}, 1_234),
        ({"waitQueueTimeoutMS": None}, None),
        (presets.LOW_TRAFFIC, None if BROKEN else 5_000),
        (presets.CONSTRAINED, 3_000),
        ({**presets.CONSTRAINED, "waitQueueTimeoutMS": None}, None),
    ],
)
def test_pool_config_says_what_the_client_has(
    server_uri: str, given: dict[str, Any], expected: int | None
) -> None:
    async def main() -> None:
        client = await Pool.initialize(server_uri, **given)
        assert Pool.get_pool_stats()["pool_config"]["waitQueueTimeoutMS"] == expected
        seconds = client.options.pool_options.wait_queue_timeout
        assert seconds == (None if expected is None else expected / 1_000)
        assert await Pool.initialize(server_uri, **given) is client
        await Pool.close()

    asyncio.run(main())


def test_the_other_defaults_are_those_of_the_synchronous_pool(server_uri: str) -> None:
    absent = {"waitQueueTimeoutMS"} if BROKEN else set()
    assert {k: v for k, v in DEFAULTS.items() if k not in absent} == ASYNC_DEFAULTS
    MongoDBConnectionPool.initialize(server_uri)
    config = MongoDBConnectionPool.get_pool_stats()["pool_config"]
    assert {key: config[key] for key in DEFAULTS} == DEFAULTS


@contextlib.contextmanager
def warnings_of(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Collect what is logged of limits while the block runs."""
    found: list[str] = []
    with caplog.at_level(logging.WARNING, "pool_telemetry.telemetry"):
        caplog.clear()
        yield found
        found += logged(caplog, "TimeoutMS")


async def initialize(uri: str, **kwargs: Any) -> None:
    await Pool.initialize(uri, telemetry=TelemetryOptions(name="limited"), **kwargs)
    await Pool.get_client()["t"]["t"].find_one()
    await Pool.initialize(uri, **kwargs)
    await Pool.close()


async def lifespan(uri: str, **kwargs: Any) -> None:
    options = TelemetryOptions(name="limited")
    async with pool_lifespan(uri, pool=Pool, telemetry=options, **kwargs)(FastAPI()):
        pass


async def session(uri: str, **kwargs: Any) -> None:
    manager = await AsyncMongoDBSessionManager.open("limits", connection_string=uri, **kwargs)
    await manager.close()


async def own_client(uri: str, **kwargs: Any) -> None:
    telemetry = PoolTelemetry("limited")
    async with AsyncClient(uri, event_listeners=telemetry.listeners, **kwargs) as client:
        await client["t"]["t"].find_one()


async def own_synchronous_client(uri: str, **kwargs: Any) -> None:
    telemetry = PoolTelemetry("limited")
    with MongoClient[dict[str, Any]](uri, event_listeners=telemetry.listeners, **kwargs) as client:
        client["t"]["t"].find_one()


async def synchronous_pool(uri: str, **kwargs: Any) -> None:
    MongoDBConnectionPool.initialize(uri, **kwargs)


MAKERS = [initialize, lifespan, session, own_client]


@broken_only
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("query", "kwargs", "told"),
    [
        ("", {"waitqueuetimeoutms": 1_234}, ("waitQueueTimeoutMS=1234", "keyword argument")),
        ("", {**presets.CONSTRAINED}, ("waitQueueTimeoutMS=3000", "keyword argument or preset")),
        ("?waitQueueTimeoutMS=99", {}, ("waitQueueTimeoutMS=99", "connection string")),
    ],
)
def test_a_limit_is_warned_of_once(
    server_uri: str,
    caplog: pytest.LogCaptureFixture,
    make: Callable[..., Awaitable[None]],
    query: str,
    kwargs: dict[str, Any],
    told: tuple[str, str],
) -> None:
    with warnings_of(caplog) as found:
        asyncio.run(make(server_uri + query, **kwargs))  # type: ignore[arg-type]  # a coroutine
    (text,) = found
    option, source = told
    assert option in text
    assert make is own_client or source in text
    assert make is session or "pool 'limited'" in text
    assert "Python 3.12" in text
    assert "asyncio.timeout" in text


@broken_only
def test_a_limit_of_whole_operations_is_warned_of(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    with warnings_of(caplog) as found:
        asyncio.run(initialize(server_uri + "?timeoutMS=9000", waitQueueTimeoutMS=70))
    (text,) = found
    assert "waitQueueTimeoutMS=70 (keyword argument or preset)" in text
    assert "timeoutMS=9000 (connection string)" in text


@pytest.mark.parametrize(
    ("make", "query", "kwargs"),
    [
        *((make, "", {}) for make in MAKERS),
        (initialize, "?waitQueueTimeoutMS=99", {"waitQueueTimeoutMS": None, "timeoutMS": 0}),
        (own_synchronous_client, "", {"waitQueueTimeoutMS": 99}),
        (synchronous_pool, "?waitQueueTimeoutMS=99", {"timeoutMS": 99_000}),
    ],
)
def test_what_is_sound_is_not_warned_of(
    server_uri: str,
    caplog: pytest.LogCaptureFixture,
    make: Callable[..., Awaitable[None]],
    query: str,
    kwargs: dict[str, Any],
) -> None:
    with warnings_of(caplog) as found:
        asyncio.run(make(server_uri + query, **kwargs))  # type: ignore[arg-type]  # a coroutine
    assert found == []
