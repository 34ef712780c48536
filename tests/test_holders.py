"""Holders, waiters and owners by name, on a real server."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient, MongoClient
from pymongo.cursor import CursorType
from pymongo.errors import PyMongoError

from pool_telemetry import (
    MongoDBConnectionPool,
    PoolTelemetry,
    TelemetryOptions,
    owner,
    prometheus,
)
from pool_telemetry.catalog import OWNER_CHECKOUTS
from pool_telemetry.demo.embedded import EmbeddedServer
from pool_telemetry.fastapi import OwnerMiddleware, create_router
from pool_telemetry.prometheus import prometheus_name
from pool_telemetry.state.callers import READ_SECONDS
from pool_telemetry.state.commands import CommandState
from pool_telemetry.stats import CallerStats
from tests.balancer import Balancer
from tests.support import Gate, slow, the_pool, traced_to, until, wait_for
from tests.web import serving

Client = MongoClient[dict[str, Any]]
OWNERS = TelemetryOptions(owner_metrics=True)
APP = "held"  # the appName by which `slow` finds the commands to delay


@pytest.fixture
def telemetry() -> PoolTelemetry:
    return PoolTelemetry("held")


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def client(server_uri: str, telemetry: PoolTelemetry, gate: Gate) -> Iterator[Client]:
    client = Client(server_uri, maxPoolSize=2, event_listeners=[*telemetry.listeners, gate])
    client["shop"]["orders"].insert_many([{"number": number} for number in range(100)])
    yield client
    client.drop_database("shop")
    client.close()


def holders(telemetry: PoolTelemetry) -> list[CallerStats]:
    return telemetry.callers()[0]


def waiters(telemetry: PoolTelemetry) -> list[CallerStats]:
    return telemetry.callers()[1]


def test_threads_are_named_with_their_commands(
    client: Client, telemetry: PoolTelemetry, gate: Gate
) -> None:
    def report(number: int) -> None:
        with owner("report"):
            client["shop"]["orders"].find_one({"secret": "s3cr3t"})

    threads = [
        threading.Thread(target=report, args=(number,), name=f"worker-{number}")
        for number in range(4)
    ]
    with gate.shut():
        for thread in threads:
            thread.start()
        wait_for(lambda: len(waiters(telemetry)) == 2 and len(holders(telemetry)) == 2)
        wait_for(lambda: all(one.operation for one in holders(telemetry)))
        held, waiting = telemetry.callers()
        assert {(one.owner, one.doing, one.operation, one.collection) for one in held} == {
            ("report", "command", "find", "orders")
        }
        assert {(one.owner, one.doing, one.operation) for one in waiting} == {
            ("report", "waiting", "")
        }
        names = sorted(one.actor for one in held + waiting)
        assert names == [f"worker-{number}" for number in range(4)]
        assert held[0].seconds >= held[1].seconds > 0.0
        assert "s3cr3t" not in str(telemetry.callers())
    for thread in threads:
        thread.join()
    assert telemetry.callers() == ([], [])


def test_tasks_are_named_with_their_commands(server_uri: str, telemetry: PoolTelemetry) -> None:
    async def use() -> None:
        client = AsyncMongoClient[dict[str, Any]](
            server_uri, maxPoolSize=1, appName=APP, event_listeners=telemetry.listeners
        )
        await client.admin.command("ping")

        async def find() -> None:
            with owner("page"):
                await client["shop"]["orders"].find_one()

        with slow(server_uri, APP, 1_000):
            tasks = [asyncio.create_task(find(), name=f"task-{number}") for number in range(2)]
            await until(lambda: waiters(telemetry) and holders(telemetry))
            await until(lambda: holders(telemetry)[0].operation)
            ((held,), (waiting,)) = telemetry.callers()
            assert (held.actor, held.owner, held.doing, held.operation) == (
                ("task-0", "page", "command", "find")
            )
            assert (waiting.actor, waiting.owner, waiting.doing) == ("task-1", "page", "waiting")
            await asyncio.gather(*tasks)
        await client.close()

    asyncio.run(use())


def test_exhaust_cursor_is_reported_as_the_holder(client: Client, telemetry: PoolTelemetry) -> None:
    orders = client["shop"]["orders"]
    with contextlib.closing(orders.find(cursor_type=CursorType.EXHAUST, batch_size=10)) as cursor:
        next(cursor)
        (held,) = holders(telemetry)
        assert (held.doing, held.operation, held.collection) == ("exhaust cursor", "find", "orders")
        orders.find_one()  # over another connection, so it is not the cursor's command
        (held,) = holders(telemetry)
        assert held.actor == threading.current_thread().name
    assert holders(telemetry) == []


def test_cursor_of_an_ended_thread_is_not_attributed_to_the_next_thread(
    server_uri: str, telemetry: PoolTelemetry, client: Client
) -> None:
    orders, left, idents = client["shop"]["orders"], list[Any](), set[int | None]()
    orders.insert_many({"n": n} for n in range(50))

    def leave() -> None:
        cursor = orders.find(cursor_type=CursorType.EXHAUST, batch_size=10)
        next(cursor)
        left.append(cursor)

    def count() -> None:
        orders.count_documents({})

    for name, run in (("export", leave), *(("page", count),) * 20):
        thread = threading.Thread(target=run, name=name)
        thread.start()
        idents.add(thread.ident)
        thread.join()
    assert len(idents) < 21  # some threads had the identifier of an ended one
    (held,) = holders(telemetry)
    assert (held.actor, held.doing, held.operation) == ("export (ended)", "exhaust cursor", "find")
    left[0].close()
    assert holders(telemetry) == []


def test_cursor_of_an_ended_task_is_found_when_a_caller_waits(
    server_uri: str, telemetry: PoolTelemetry, client: Client
) -> None:
    """In PyMongo a task that leaves its cursor to another task looks like a cancelled one."""

    async def leave(orders: Any) -> None:
        for _ in range(2):
            cursor = orders.find(cursor_type=CursorType.EXHAUST, batch_size=10)
            await cursor.next()
            left.append(cursor)

    async def use() -> None:
        aio: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            server_uri, maxPoolSize=2, event_listeners=asynchronous.listeners
        )
        orders = aio["shop"]["orders"]
        with owner("export"):
            await asyncio.create_task(leave(orders))
        await until(lambda: not asynchronous.stats().pools[0].in_use)
        waits = [asyncio.create_task(orders.find_one()) for _ in range(3)]
        await until(lambda: asynchronous.stats().pools[0].in_use == 2)
        pool = asynchronous.stats().pools[0]
        assert (pool.size, pool.waiting, pool.exhausted, pool.created) == (2, 3, True, 2)
        assert {one.owner for one in holders(asynchronous)} == {"export"}
        assert {one.doing for one in holders(asynchronous)} == {"exhaust cursor"}
        for cursor in left:
            await cursor.close()
        await asyncio.gather(*waits)
        pool = asynchronous.stats().pools[0]
        assert (pool.in_use, pool.waiting, pool.exhausted) == (0, 0, False)
        assert pool.use_time.count == pool.checkouts["ok"]
        assert pool.owners[0].checkouts == 2
        await aio.close()

    left = list[Any]()
    asynchronous = PoolTelemetry("asynchronous")
    asyncio.run(use())


def test_connection_pinned_behind_a_load_balancer_is_reported(
    own_server: EmbeddedServer, telemetry: PoolTelemetry
) -> None:
    with (
        Balancer(own_server.port) as balancer,
        Client(balancer.uri, event_listeners=telemetry.listeners) as client,
    ):
        orders = client["shop"]["orders"]
        orders.insert_many([{"number": number} for number in range(100)])
        with orders.find(batch_size=10) as cursor:
            next(cursor)
            (held,) = holders(telemetry)
            assert (held.doing, held.operation) == ("pinned cursor", "find")
        assert holders(telemetry) == []
        with client.start_session() as session, session.start_transaction():
            orders.find_one({}, session=session)
            (held,) = holders(telemetry)
            assert (held.doing, held.operation) == ("transaction", "find")
        assert holders(telemetry) == []


def test_get_more_that_waits_for_news_awaits_data(
    own_server: EmbeddedServer, telemetry: PoolTelemetry
) -> None:
    def tail() -> None:
        with (
            contextlib.suppress(PyMongoError),
            news.find(cursor_type=CursorType.TAILABLE_AWAIT).max_await_time_ms(60_000) as cursor,
        ):
            list(cursor)

    with Client(own_server.uri, event_listeners=telemetry.listeners) as client:
        news = client["shop"].create_collection("news", capped=True, size=100_000)
        news.insert_one({"secret": "s3cr3t"})
        thread = threading.Thread(target=tail)
        thread.start()
        held = wait_for(lambda: [one for one in holders(telemetry) if one.operation == "getMore"])
        assert [(one.doing, one.collection) for one in held] == [("awaiting data", "news")]
        assert held[0].describe().endswith(" s: getMore news, which awaits data")
        client["shop"].drop_collection("news")  # ends the wait
        thread.join()


def test_running_command_is_not_evicted_for_finished_ones() -> None:
    commands = CommandState(10)
    series = (("db", 27017), "shop", "orders", "aggregate", "", "")
    commands.started(1, series, None, 1)
    for number in range(2, 10_200):
        commands.started(number, series, None, number)
        commands.ended(number, 0.001)
    running = commands.latest(1)
    assert running is not None
    assert running.seconds is None
    assert commands.latest(2) is None
    assert commands.evicted
    assert len(commands._latest) <= 10_001


def test_holders_and_waiters_have_their_trace(
    client: Client, telemetry: PoolTelemetry, gate: Gate
) -> None:
    with traced_to(SimpleSpanProcessor(InMemorySpanExporter())) as provider:
        tracer = provider.get_tracer("test")
        traces = list[str]()

        def work() -> None:
            with tracer.start_as_current_span("request") as span:
                traces.append(f"{span.get_span_context().trace_id:032x}")
                client["shop"]["orders"].find_one()

        threads = [threading.Thread(target=work) for _ in range(3)]
        with gate.shut():
            for thread in threads:
                thread.start()
            wait_for(lambda: len(waiters(telemetry)) == 1 and len(holders(telemetry)) == 2)
            held, waiting = telemetry.callers()
            assert sorted(str(one.trace_id) for one in held + waiting) == sorted(traces)
        for thread in threads:
            thread.join()


def test_owners_are_summed(client: Client, telemetry: PoolTelemetry) -> None:
    orders = client["shop"]["orders"]
    for name, count in (("page", 3), ("report", 2)):
        for _ in range(count):
            with owner(name):
                orders.find_one()
    orders.find_one()  # without an owner
    with (
        owner("report"),
        contextlib.closing(orders.find(cursor_type=CursorType.EXHAUST, batch_size=10)) as cursor,
    ):
        next(cursor)
        with owner("page"):  # the innermost owner counts
            orders.find_one()
        (owners,) = (pool.owners for pool in telemetry.stats().pools if pool.size)
        assert {one.owner: (one.checkouts, one.in_use) for one in owners} == {
            "page": (4, 0),
            "report": (2, 1),
        }
    for number in range(200):
        with owner(f"owner-{number}"):
            orders.find_one()
    (owners,) = (pool.owners for pool in telemetry.stats().pools if pool.size)
    assert len(owners) == 101
    assert sum(one.checkouts for one in owners) == 207
    top = telemetry.live_stats()["top_owners"]
    assert len(top) == 10
    seconds = [one["held_seconds"] for one in top.values()]
    assert seconds == sorted(seconds, reverse=True)


def test_invalid_owner_is_refused() -> None:
    for wrong in ("", "x" * 201, "two\nlines", None):
        with pytest.raises(ValueError, match="1 to 200 printable"), owner(wrong):  # type: ignore[arg-type]  # None is the point
            pass


def test_names_never_break_a_log_line() -> None:
    who = CallerStats(
        address="db:27017",
        seconds=1.0,
        actor="worker\n0",
        owner="\x1b[2J",
        doing="command",
        operation="find",
        collection="orders\r",
        trace_id=None,
    )
    assert who.describe() == "worker 0 ( [2J) for 1.00 s: find orders "


def test_stats_and_endpoint_list_the_holders(server_uri: str, gate: Gate) -> None:
    assert MongoDBConnectionPool.get_pool_stats(detail=True)["holders"] == []
    client = MongoDBConnectionPool.initialize(server_uri, event_listeners=[gate])
    app = FastAPI()
    app.include_router(create_router(holders=True))
    with serving(app) as web, gate.shut():
        thread = threading.Thread(target=lambda: client["shop"]["orders"].find_one(), name="worker")
        thread.start()
        wait_for(lambda: web.get("/pool/holders").json()["holders"])
        stats = MongoDBConnectionPool.get_pool_stats(detail=True)
        assert [one["actor"] for one in stats["holders"]] == ["worker"]
        assert json.loads(json.dumps(stats["waiters"])) == []
        assert "holders" not in MongoDBConnectionPool.get_pool_stats()
    thread.join()
    plain = FastAPI()
    plain.include_router(create_router())
    with serving(plain) as web:
        assert web.get("/pool/holders").status == 404


def test_route_of_a_request_is_the_owner(server_uri: str) -> None:
    app = FastAPI()
    app.add_middleware(OwnerMiddleware)
    inner = FastAPI()
    client = MongoDBConnectionPool.initialize(server_uri, telemetry=OWNERS)

    @app.get("/orders/{number}")
    def order(number: int) -> None:
        client["shop"]["orders"].find_one({"number": number})

    @inner.get("/{year}")
    async def report(year: int) -> None:
        await asyncio.to_thread(client["shop"]["orders"].find_one, {"year": year})

    router = APIRouter()

    @router.get("/{item}")
    def stock(item: str) -> None:
        client["shop"]["orders"].find_one({"item": item})

    app.mount("/reports", inner)
    app.include_router(router, prefix="/stock")
    with serving(app) as web:
        for number in range(3):
            assert web.get(f"/orders/{number}").status == 200
        assert web.get("/reports/2026").status == 200
        assert web.get("/stock/lamp").status == 200
        assert web.get("/nowhere/s3cr3t").status == 404
        assert web.get("/orders/1", method="POST").status == 405
    owners = MongoDBConnectionPool.get_pool_stats()["top_owners"]
    assert {name: one["checkouts"] for name, one in owners.items()} == {
        "/orders/{number}": 3,
        "/reports/{year}": 1,
        "/stock/{item}": 1,
    }
    # With `owner_metrics` the owner is a label of metrics, too.
    registry = CollectorRegistry()
    prometheus.register(registry)
    text = prometheus.generate(registry=registry)[0].decode()
    (line,) = [
        one
        for one in text.splitlines()
        if one.startswith(prometheus_name(OWNER_CHECKOUTS)) and "/orders/" in one
    ]
    assert line.endswith(" 3.0")
    assert 'mongodb_client_owner="/orders/{number}"' in line


def test_owners_are_no_label_by_default(client: Client, telemetry: PoolTelemetry) -> None:
    with owner("page"):
        client["shop"]["orders"].find_one()
    assert telemetry.stats().pools[0].owners
    assert list(OWNER_CHECKOUTS.read(telemetry.stats())) == []


def test_answered_find_that_is_not_returned_yet_is_no_cursor(server_uri: str) -> None:
    """PyMongo publishes the answer before it returns the connection."""

    class Late(Gate):
        def started(self, event: Any) -> None: ...

        def succeeded(self, event: Any) -> None:
            if event.command_name == "find":
                answered.set()
                self._open.wait()

    answered, late, telemetry = threading.Event(), Late(), PoolTelemetry()
    listeners = [*telemetry.listeners, late]
    with MongoClient[dict[str, Any]](server_uri, event_listeners=listeners) as client:
        find = threading.Thread(target=client["shop"]["orders"].find_one)
        with late.shut():
            find.start()
            assert answered.wait(30.0)
            ((holder,), _) = telemetry.callers()
            assert (holder.doing, holder.operation) == ("command", "find")
            wait_for(lambda: the_pool(telemetry).longest_checkout > READ_SECONDS)
            assert the_pool(telemetry).held_by_cursors == 0
        find.join()
