"""How full a pool is, in microseconds: for load shedding."""

import asyncio
import contextlib
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import APIRouter, Depends
from pymongo import AsyncMongoClient, MongoClient
from pymongo.monitoring import PoolClosedEvent, PoolCreatedEvent

from pool_telemetry import (
    AsyncMongoDBConnectionPool,
    MongoDBConnectionPool,
    Occupancy,
    PoolTelemetry,
    TelemetryOptions,
    prometheus,
)
from pool_telemetry.state.actor import Actor
from pool_telemetry.state.pool_state import PoolState
from tests.support import aexhausted, drivers, exhausted, until, wait_for
from tests.test_docs import ROOT
from tests.web import serving

UNWATCHED = TelemetryOptions(watch=False)


def test_occupancy_is_that_of_the_driver(server_uri: str) -> None:
    assert MongoDBConnectionPool.get_occupancy() == Occupancy(0, 0, 0, 0)
    client = MongoDBConnectionPool.initialize(server_uri, maxPoolSize=3, minPoolSize=0)
    assert MongoDBConnectionPool.get_occupancy()[1:] == (0, 0, 3)
    with ThreadPoolExecutor(5) as threads:
        with exhausted(client):
            finds = [threads.submit(client["shed"]["t"].find_one) for _ in range(5)]
            wait_for(lambda: MongoDBConnectionPool.get_occupancy().waiting == 5)
            found = MongoDBConnectionPool.get_occupancy()
            assert found == Occupancy(size=3, in_use=3, waiting=5, max_size=3)
            theirs = drivers(client)
            assert (found.size, found.in_use, found.waiting) == (3, theirs.in_use, theirs.waiting)
        for find in finds:
            find.result()
    assert MongoDBConnectionPool.get_occupancy()[1:] == (0, 0, 3)
    MongoDBConnectionPool.close()
    assert MongoDBConnectionPool.get_occupancy() == Occupancy(0, 0, 0, 0)


@pytest.mark.parametrize("watch", [False, True])
def test_cancelled_caller_counts_until_the_next_inspection(server_uri: str, watch: bool) -> None:
    async def run() -> None:
        assert AsyncMongoDBConnectionPool.get_occupancy() == Occupancy(0, 0, 0, 0)
        options = TelemetryOptions(watch=watch)
        client: AsyncMongoClient[dict[str, Any]] = await AsyncMongoDBConnectionPool.initialize(
            server_uri, telemetry=options, maxPoolSize=2
        )
        async with aexhausted(client):
            finds = [asyncio.create_task(client["shed"]["t"].find_one()) for _ in range(3)]
            await until(lambda: AsyncMongoDBConnectionPool.get_occupancy().waiting == 3)
            finds[0].cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await finds[0]
            if watch:
                await until(lambda: AsyncMongoDBConnectionPool.get_occupancy().waiting == 2)
            else:
                assert AsyncMongoDBConnectionPool.get_occupancy().waiting == 3
                await until(
                    lambda: AsyncMongoDBConnectionPool.get_pool_stats()["pool"]["waiting"] == 2
                )
                assert AsyncMongoDBConnectionPool.get_occupancy().waiting == 2
        await asyncio.gather(*finds[1:])
        await AsyncMongoDBConnectionPool.close()

    asyncio.run(run())


def test_occupancy_takes_no_lock_and_inspects_no_caller() -> None:
    def fail(_: Iterable[Actor]) -> set[Actor]:
        raise AssertionError("it inspected callers")

    now = 0.0
    state = PoolState(("db", 27017), clock=lambda: now, still_waiting=fail, may_hold=fail)
    state.created(None, 0)
    state.checkout_started(1)
    now = 10.0
    found: list[Occupancy] = []
    reader = threading.Thread(target=lambda: found.append(state.occupancy()), daemon=True)
    with state._lock:
        reader.start()
        reader.join(60.0)
        assert found == [Occupancy(0, 0, 1, None)]


@pytest.mark.parametrize(("sizes", "limit"), [((2, 3), 5), ((2, 0), None), ((0, 2), None), ((), 0)])
def test_occupancy_is_the_sum_over_the_open_servers(
    sizes: tuple[int, ...], limit: int | None
) -> None:
    telemetry = PoolTelemetry(options=UNWATCHED)
    listeners = telemetry.listeners
    for number, size in enumerate((*sizes, 7)):
        listeners[0].pool_created(PoolCreatedEvent(("db", number), {"maxPoolSize": size}))
    listeners[0].pool_closed(PoolClosedEvent(("db", len(sizes))))
    assert telemetry.occupancy() == Occupancy(0, 0, 0, limit)
    assert telemetry.live_stats()["pool"]["max_size"] == limit


def test_service_of_the_example_sheds_load(
    server_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONGODB_URI", server_uri)
    code = (ROOT / "examples" / "fastapi_app.py").read_text().replace("> 100", "> 1")
    names: dict[str, Any] = {}
    exec(code, names)

    def find() -> None:
        MongoDBConnectionPool.get_client()["shed"]["t"].find_one()

    api = APIRouter(dependencies=[Depends(names["shed_load"])])
    api.add_api_route("/find", find)
    names["app"].include_router(api)
    with serving(names["app"]) as web, ThreadPoolExecutor(2) as threads:
        assert web.get("/find").status == 200
        with exhausted(MongoDBConnectionPool.get_client()):
            requests = [threads.submit(web.get, "/find") for _ in range(2)]
            wait_for(lambda: MongoDBConnectionPool.get_occupancy().waiting == 2)
            assert web.get("/find").status == 503
            assert web.get("/health/ready").status == 200
        assert [request.result().status for request in requests] == [200, 200]
        assert web.get("/find").status == 200
    prometheus.unregister()


def test_any_client_has_an_occupancy(server_uri: str) -> None:
    telemetry = PoolTelemetry(options=UNWATCHED)
    with MongoClient[dict[str, Any]](
        server_uri, maxPoolSize=4, event_listeners=telemetry.listeners
    ) as client:
        client.admin.command("ping")
        with exhausted(client):
            assert telemetry.occupancy() == Occupancy(4, 4, 0, 4)
        assert telemetry.occupancy() == Occupancy(4, 0, 0, 4)
