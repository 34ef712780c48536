"""PoolTelemetry on clients that the application makes."""

import asyncio
import contextlib
import gc
import json
import threading
import time
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import PyMongoError

from pool_telemetry import (
    PoolTelemetry,
    TelemetryOptions,
)
from pool_telemetry.demo.embedded import EmbeddedServer
from pool_telemetry.registry import active
from pool_telemetry.state.pool_state import GRACE_SECONDS
from tests.support import drivers, exhausted, fastest, ours, the_pool, wait_for


def test_client_of_the_application_is_observed(server_uri: str) -> None:
    telemetry = PoolTelemetry("theirs")
    with MongoClient[dict[str, Any]](
        server_uri, maxPoolSize=3, minPoolSize=1, event_listeners=telemetry.listeners
    ) as client:
        client["t"]["t"].insert_one({})
        pool = the_pool(telemetry)
        assert ours(pool) == drivers(client)
        assert (pool.max_size, pool.min_size, pool.phase, pool.up) == (3, 1, "ready", True)
        assert pool.rtt is not None
        stats = telemetry.stats()
        assert stats.pool_name(pool) == f"theirs@{pool.address}"
        assert {one.operation for one in stats.operations} >= {"insert"}
    assert telemetry.stats().open_pools == []
    assert telemetry.stats().telemetry_errors == 0


def test_asynchronous_client_is_observed(server_uri: str) -> None:
    telemetry = PoolTelemetry()

    async def main() -> None:
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            server_uri, event_listeners=telemetry.listeners
        )
        await client["t"]["t"].insert_one({})
        pool = the_pool(telemetry)
        assert ours(pool) == drivers(client)
        assert telemetry.stats().pool_name(pool) == pool.address
        await client.close()

    asyncio.run(main())


def test_round_trip_time_of_an_attached_client_is_the_clients_own(server_uri: str) -> None:
    telemetry = PoolTelemetry()
    with MongoClient[dict[str, Any]](server_uri, event_listeners=telemetry.listeners) as client:
        client.admin.command("ping")
        telemetry.attach(client)

        def agrees() -> bool:  # unless a heartbeat came between the two readings
            (server,) = client.topology_description.server_descriptions().values()
            return the_pool(telemetry).rtt == pytest.approx(server.round_trip_time, rel=0.5)

        wait_for(agrees)


def test_stats_are_json(server_uri: str) -> None:
    telemetry = PoolTelemetry()
    with MongoClient[dict[str, Any]](server_uri, event_listeners=telemetry.listeners) as client:
        client.admin.command("ping")
        live_stats = telemetry.live_stats()
        assert json.loads(json.dumps(live_stats)) == live_stats


def test_seed_pool_under_another_host_name_is_not_shown(server_uri: str) -> None:
    """The replica set's own host names replace the seed, whose pool is closed unused."""
    telemetry = PoolTelemetry()
    seed = server_uri.replace("127.0.0.1", "localhost")
    with MongoClient[dict[str, Any]](seed, event_listeners=telemetry.listeners) as client:
        client.admin.command("ping")
        wait_for(lambda: len(telemetry._pools) == 2 and len(telemetry.stats().open_pools) == 1)
        assert [pool.address for pool in telemetry.stats().pools] == [
            server_uri.removeprefix("mongodb://").rstrip("/")
        ]


def test_client_dropped_without_close_leaves_no_open_pool(server_uri: str) -> None:
    telemetry = PoolTelemetry("dropped")
    client: MongoClient[dict[str, Any]] | None = MongoClient(
        server_uri, event_listeners=telemetry.listeners
    )
    assert client is not None
    client.admin.command("ping")
    assert the_pool(telemetry).size == 1

    def drop(telemetry: PoolTelemetry) -> None:
        nonlocal client
        client = None
        wait_for(lambda: gc.collect() >= 0 and not telemetry.stats().open_pools, "the finalizer")

    with pytest.warns(ResourceWarning, match="Unclosed MongoClient"):
        drop(telemetry)
    (pool,) = telemetry.stats().pools
    assert (pool.size, pool.closed["pool_closed"]) == (0, 1)
    assert telemetry not in active()


def test_reading_the_listeners_does_not_close_the_pools_of_their_client(server_uri: str) -> None:
    telemetry = PoolTelemetry()
    with MongoClient[dict[str, Any]](server_uri, event_listeners=telemetry.listeners) as client:
        client.admin.command("ping")
        assert len(telemetry.listeners) == 3
        gc.collect()
        assert the_pool(telemetry).size == 1


def test_telemetry_lives_as_long_as_its_client(server_uri: str) -> None:
    client: MongoClient[dict[str, Any]] = MongoClient(
        server_uri, event_listeners=PoolTelemetry("kept").listeners
    )
    client.admin.command("ping")
    gc.collect()
    assert "kept" in {telemetry.name for telemetry in active()}
    client.close()
    assert "kept" not in {telemetry.name for telemetry in active()}


def test_second_client_of_the_same_name_gets_a_number(server_uri: str) -> None:
    first, second = PoolTelemetry("twin"), PoolTelemetry("twin")
    assert (first.name, second.name) == ("twin", "twin#2")
    with MongoClient[dict[str, Any]](server_uri, event_listeners=first.listeners) as client:
        client.admin.command("ping")
    third = PoolTelemetry("twin")
    assert third.name == "twin"  # the first is closed, so its name is free
    second.close()
    assert PoolTelemetry("twin").name == "twin#2"


def test_server_restart_is_observed(own_server: EmbeddedServer) -> None:
    telemetry = PoolTelemetry()
    reconnected = threading.Event()
    telemetry.on_reconnected = reconnected.set
    with MongoClient[dict[str, Any]](
        own_server.uri,
        directConnection=True,  # otherwise a stopped member may leave the topology first
        heartbeatFrequencyMS=500,
        serverSelectionTimeoutMS=2_000,
        event_listeners=telemetry.listeners,
    ) as client:
        client.admin.command("ping")
        own_server.stop()
        # PyMongo publishes the failed heartbeat before it pauses the pool.
        wait_for(lambda: the_pool(telemetry).up is False and the_pool(telemetry).phase == "paused")
        pool = the_pool(telemetry)
        assert (pool.phase, pool.down_reason, pool.rtt) == ("paused", "AutoReconnect", None)
        assert not telemetry.stats().connected
        with contextlib.suppress(PyMongoError):
            client.admin.command("ping")
        assert not reconnected.is_set()
        own_server.start()
        wait_for(lambda: the_pool(telemetry).up)
        wait_for(reconnected.is_set)
        client.admin.command("ping")
        pool = the_pool(telemetry)
        assert (pool.phase, pool.closed["stale"], pool.cleared) == ("ready", 1, 1)
        assert ours(pool) == drivers(client)


def test_closed_pools_are_kept_up_to_a_limit() -> None:
    telemetry = PoolTelemetry()
    listener: Any = telemetry.listeners[0]
    for number in range(200):
        address = (f"host-{number}", 27017)
        state = telemetry._pools.get(address)
        assert state is None
        telemetry._on_created(None, address, 100, 0)
        telemetry._pools[address].connection_created(1, 1)
        telemetry._pools[address].connection_closed(1, "idle")
        telemetry._pools[address].closed()
    assert 50 <= len(telemetry._pools) <= 52
    assert listener is not None


def test_operations_can_be_switched_off(server_uri: str) -> None:
    telemetry = PoolTelemetry(options=TelemetryOptions(operations=False))
    with MongoClient[dict[str, Any]](server_uri, event_listeners=telemetry.listeners) as client:
        client.admin.command("ping")
        assert telemetry.stats().operations == ()
        assert the_pool(telemetry).checkouts["ok"] == 1


def test_stats_of_an_exhausted_pool_do_not_wait(server_uri: str) -> None:
    telemetry = PoolTelemetry("dry")
    client: MongoClient[dict[str, Any]] = MongoClient(
        server_uri, maxPoolSize=10, event_listeners=telemetry.listeners
    )
    collection = client["t"]["t"]
    collection.find_one()
    with exhausted(client):
        threads = [threading.Thread(target=collection.find_one) for _ in range(40)]
        for thread in threads:
            thread.start()
        wait_for(lambda: the_pool(telemetry).waiting == drivers(client).waiting == 40)
        youngest = time.monotonic() + GRACE_SECONDS
        wait_for(lambda: time.monotonic() > youngest, "every wait to be old enough to be inspected")
        best = fastest(telemetry.live_stats)
        assert the_pool(telemetry).waiting == 40
    for thread in threads:
        thread.join()
    client.close()
    assert best < 1.0  # seconds; it takes some milliseconds, and the 40 callers wait much longer
