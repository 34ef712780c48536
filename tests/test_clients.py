"""Several clients, and what happens to them: failover, a load balancer, a swap under load."""

import asyncio
import contextlib
import gc
import threading
import time
from functools import partial
from typing import Any

import pytest
from bson import ObjectId
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import AutoReconnect, PyMongoError
from pymongo.monitoring import (
    ConnectionCheckedInEvent,
    ConnectionCheckedOutEvent,
    ConnectionCheckOutFailedEvent,
    ConnectionCheckOutStartedEvent,
    ConnectionClosedEvent,
    ConnectionCreatedEvent,
    ConnectionReadyEvent,
    PoolClearedEvent,
    PoolClosedEvent,
    PoolCreatedEvent,
    PoolReadyEvent,
    ServerHeartbeatFailedEvent,
    ServerHeartbeatListener,
    ServerHeartbeatStartedEvent,
    ServerHeartbeatSucceededEvent,
)

from pool_telemetry import (
    AsyncMongoDBConnectionPool,
    MongoDBConnectionPool,
    PoolTelemetry,
    base_pool,
    prometheus,
)
from pool_telemetry.demo.embedded import EmbeddedServer
from pool_telemetry.registry import active
from pool_telemetry.state.pool_state import GRACE_SECONDS
from tests.support import (
    Counts,
    drivers,
    exhausted,
    failing,
    logged,
    ours,
    the_pool,
    until,
    wait_for,
)

Client = MongoClient[dict[str, Any]]
AsyncClient = AsyncMongoClient[dict[str, Any]]


def test_several_clients_of_one_server_are_distinguished(server_uri: str) -> None:
    sizes = [1, 2, 3]
    telemetries = [PoolTelemetry("several") for _ in (*sizes, "async")]
    clients = [
        Client(server_uri, maxPoolSize=size, event_listeners=telemetry.listeners)
        for size, telemetry in zip(sizes, telemetries, strict=False)
    ]
    registry = CollectorRegistry()
    prometheus.register(registry)

    def work(client: Client) -> None:
        for _ in range(50):
            client["clients"]["t"].find_one()

    async def work_too(telemetry: PoolTelemetry) -> None:
        client: AsyncClient = AsyncMongoClient(
            server_uri, maxPoolSize=4, event_listeners=telemetry.listeners
        )
        await asyncio.gather(*(client["clients"]["t"].find_one() for _ in range(50)))
        assert ours(the_pool(telemetry)) == drivers(client)
        assert the_pool(telemetry).checkouts["ok"] == 50
        await client.close()

    threads = [
        threading.Thread(target=work, args=(client,)) for client in clients for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    asyncio.run(work_too(telemetries[-1]))
    for thread in threads:
        thread.join()
    for client, telemetry, size in zip(clients, telemetries, sizes, strict=False):
        pool = the_pool(telemetry)
        assert ours(pool) == drivers(client)
        assert (pool.checkouts["ok"], pool.max_size) == (200, size)
        assert 1 <= pool.size <= size  # a greenlet may be done before the next one asks
    text = prometheus.generate(registry=registry)[0].decode()
    series = [line.rsplit(" ", 1)[0] for line in text.splitlines() if line[0] != "#"]
    assert len(series) == len(set(series))
    for number in ("", "#2", "#3"):
        assert f'db_client_connection_pool_name="several{number}@' in text
    for client in clients:
        client.close()


class Heartbeats(ServerHeartbeatListener):
    """What failed, by the names of the errors."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def started(self, event: ServerHeartbeatStartedEvent) -> None:
        pass

    def succeeded(self, event: ServerHeartbeatSucceededEvent) -> None:
        pass

    def failed(self, event: ServerHeartbeatFailedEvent) -> None:
        self.failures.append(type(event.reply).__name__)


def test_a_connection_that_breaks_is_no_outage(server_uri: str) -> None:
    """PyMongo breaks its heartbeat off then, and says that it failed."""
    telemetry, heartbeats = PoolTelemetry(), Heartbeats()
    listeners = [*telemetry.listeners, heartbeats]
    with Client(server_uri, appName="breaks", event_listeners=listeners) as client:
        wait_for(lambda: the_pool(telemetry).rtt)
        with failing(server_uri, "breaks", closeConnection=True):
            while len(heartbeats.failures) < 3:
                with pytest.raises(AutoReconnect):
                    client["clients"]["t"].find_one({})
                assert the_pool(telemetry).up
        pool = the_pool(telemetry)
        assert set(heartbeats.failures) == {"_OperationCancelled"}
        assert (pool.up, pool.outage) == (True, 0.0)
        assert pool.cleared >= 3


def test_a_primary_that_steps_down_and_one_that_is_killed(own_server: EmbeddedServer) -> None:
    telemetry = PoolTelemetry()
    with Client(
        own_server.uri,
        maxPoolSize=4,
        heartbeatFrequencyMS=500,
        serverSelectionTimeoutMS=2_000,
        appName="failover",
        event_listeners=telemetry.listeners,
    ) as client:
        collection, over = client["clients"]["t"], threading.Event()
        failures: list[str] = []

        def work() -> None:
            while not over.is_set():
                try:
                    collection.insert_one({})
                except PyMongoError as error:
                    failures.append(type(error).__name__)

        def goes_on() -> None:
            before = the_pool(telemetry).checkouts["ok"]
            wait_for(lambda: the_pool(telemetry).checkouts["ok"] > before + 100, str(failures[-3:]))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            goes_on()
            with Client(own_server.uri) as control:  # no place in the queue of the other
                control.admin.command("replSetStepDown", 2, force=True)
            wait_for(lambda: failures or the_pool(telemetry).outage, "the secondary")
            goes_on()
            own_server.stop(kill=True)
            wait_for(lambda: the_pool(telemetry).up is False)
            assert the_pool(telemetry).phase == "paused"
            own_server.start()
            wait_for(lambda: the_pool(telemetry).up)
            goes_on()
        finally:
            over.set()
            for thread in threads:
                thread.join()
        pool = the_pool(telemetry)
        assert ours(pool) == drivers(client)
        assert (pool.in_use, pool.waiting) == (0, 0)
        assert pool.created - sum(pool.closed.values()) == pool.size
        assert pool.cleared >= 1
        assert pool.outage > 0.0


class Replay:
    """Real event objects for the listeners of one client."""

    def __init__(self) -> None:
        self.telemetry = PoolTelemetry("replay")
        self.pool, self.heartbeat, _ = self.telemetry.listeners

    def server(self, address: tuple[str, int]) -> None:
        self.pool.pool_created(PoolCreatedEvent(address, {"maxPoolSize": 2}))
        self.pool.pool_ready(PoolReadyEvent(address))
        reply: Any = None
        self.heartbeat.succeeded(ServerHeartbeatSucceededEvent(0.001, reply, address))

    def open(self, address: tuple[str, int], conn_id: int) -> None:
        self.pool.connection_created(ConnectionCreatedEvent(address, conn_id))
        self.pool.connection_ready(ConnectionReadyEvent(address, conn_id, 0.001))

    def out(self, address: tuple[str, int], conn_id: int) -> None:
        self.pool.connection_check_out_started(ConnectionCheckOutStartedEvent(address))
        self.pool.connection_checked_out(ConnectionCheckedOutEvent(address, conn_id, 0.001))

    def back(self, address: tuple[str, int], conn_id: int) -> None:
        self.pool.connection_checked_in(ConnectionCheckedInEvent(address, conn_id))

    def close(self, address: tuple[str, int], conn_id: int, reason: str) -> None:
        self.pool.connection_closed(ConnectionClosedEvent(address, conn_id, reason))


def test_a_failover_from_one_server_to_the_other_by_replay() -> None:
    replay = Replay()
    one, two = ("one.example", 1), ("two.example", 2)
    for address in (one, two):
        replay.server(address)
    for conn_id in (1, 2):
        replay.open(one, conn_id)
    replay.out(one, 1)
    error = ConnectionError("gone")
    replay.pool.pool_cleared(PoolClearedEvent(one))
    replay.pool.connection_check_out_started(ConnectionCheckOutStartedEvent(one))
    replay.pool.connection_check_out_failed(
        ConnectionCheckOutFailedEvent(one, "connectionError", 0.1)
    )
    replay.close(one, 2, "stale")
    replay.heartbeat.failed(ServerHeartbeatFailedEvent(0.1, error, one))
    replay.back(one, 1)
    replay.close(one, 1, "stale")
    replay.open(two, 1)
    replay.out(two, 1)
    live = replay.telemetry.live_stats()
    assert live["servers"]["one.example:1"]["state"] == "paused"
    assert live["servers"]["one.example:1"]["up"] is False
    assert live["servers"]["two.example:2"]["pool"]["in_use"] == 1
    assert (live["pool"]["size"], live["pool"]["in_use"], live["pool"]["max_size"]) == (1, 1, 4)
    assert replay.telemetry.stats().connected
    # The old primary leaves the set and joins again: its ids begin anew.
    replay.pool.pool_closed(PoolClosedEvent(one))
    assert replay.telemetry.live_stats()["pool"]["max_size"] == 2
    replay.server(one)
    replay.open(one, 1)
    live = replay.telemetry.live_stats()
    assert live["servers"]["one.example:1"]["pool"]["size"] == 1
    assert live["servers"]["one.example:1"]["connections"]["created"] == 3
    assert live["connections"]["closed"]["stale"] == 2
    assert replay.telemetry.stats().telemetry_errors == 0


def test_connection_pinned_behind_a_load_balancer_stays_checked_out() -> None:
    """It has no heartbeats; its cursors and transactions keep their connection."""
    replay = Replay()
    address, service = ("lb.example", 27017), ObjectId()
    replay.pool.pool_created(PoolCreatedEvent(address, {"maxPoolSize": 2}))
    replay.pool.pool_ready(PoolReadyEvent(address))

    async def pins() -> None:
        for conn_id in (1, 2):
            replay.open(address, conn_id)
        replay.out(address, 1)  # and goes on without it

    asyncio.run(pins())
    began = time.monotonic()
    wait_for(lambda: time.monotonic() - began > 2 * GRACE_SECONDS)
    assert the_pool(replay.telemetry).in_use == 1
    replay.pool.pool_cleared(PoolClearedEvent(address, service_id=service))
    replay.close(address, 2, "stale")  # of that service
    pool = the_pool(replay.telemetry)
    assert (pool.phase, pool.size, pool.in_use, pool.cleared) == ("ready", 1, 1, 1)
    assert pool.up is None
    replay.back(address, 1)
    assert ours(the_pool(replay.telemetry)).idle == 1


def test_closing_while_the_pool_is_exhausted_ends_every_wait(server_uri: str) -> None:
    client = MongoDBConnectionPool.initialize(
        server_uri, maxPoolSize=2, minPoolSize=0, waitQueueTimeoutMS=120_000
    )
    telemetry = MongoDBConnectionPool.get_telemetry()
    assert telemetry is not None
    errors: list[Exception] = []

    def find() -> None:
        try:
            client["clients"]["t"].find_one()
        except PyMongoError as error:
            errors.append(error)

    with exhausted(client):
        threads = [threading.Thread(target=find) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: the_pool(telemetry).waiting == drivers(client).waiting == 4)
        MongoDBConnectionPool.close()
        wait_for(lambda: telemetry.stats().pools[0].waiting == 0)
        for thread in threads:
            thread.join()
    (pool,) = telemetry.stats().pools
    assert len(errors) == 4
    assert ours(pool) == Counts(0, 0, 0, 0, 0)
    assert (pool.phase, pool.exhausted) == ("closed", False)
    assert pool.created == sum(pool.closed.values())
    assert MongoDBConnectionPool.get_pool_stats()["status"] == "not_initialized"


def reached(done: list[int], count: int) -> bool:
    return sum(done) >= count


def closed(telemetry: PoolTelemetry) -> bool:
    return not telemetry.stats().open_pools


def test_no_operation_fails_while_the_client_is_replaced(
    server_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_pool, "QUIET_SECONDS", 2.0)  # no thread pauses for so long
    MongoDBConnectionPool.initialize(server_uri, maxPoolSize=4, minPoolSize=0)
    database = MongoDBConnectionPool.get_client()["clients"]
    database["many"].insert_many({} for _ in range(30))
    database["swap"].insert_one({})  # two transactions that make it would be in conflict
    over, failures, done = threading.Event(), [], [0] * 8

    def work(number: int) -> None:
        while not over.is_set():
            client = MongoDBConnectionPool.get_client()
            try:
                with client["clients"]["many"].find(batch_size=4) as cursor:
                    assert sum(1 for _ in cursor) >= 30
                with client.start_session() as session, session.start_transaction():
                    client["clients"]["swap"].insert_one({}, session=session)
                done[number] += 1
            except Exception as error:  # noqa: BLE001  # whatever it is
                failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(done))]
    for thread in threads:
        thread.start()
    seen = []
    for size in (8, 2, 6, 3, 5):
        before = sum(done)
        seen.append(MongoDBConnectionPool.get_telemetry())
        MongoDBConnectionPool.initialize(server_uri, maxPoolSize=size, minPoolSize=0)
        wait_for(partial(reached, done, before + 50))
    over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert all(done)
    for telemetry in seen:
        assert telemetry is not None
        wait_for(partial(closed, telemetry), "the old client")
        (pool,) = telemetry.stats().pools
        assert pool.created == sum(pool.closed.values())
        assert pool.checkouts["pool_closed"] == 0


def test_no_operation_of_a_task_fails_while_the_client_is_replaced(
    server_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_pool, "QUIET_SECONDS", 2.0)  # no thread pauses for so long

    async def main() -> None:
        pool = AsyncMongoDBConnectionPool
        await pool.initialize(server_uri, maxPoolSize=4, minPoolSize=0)
        over, done = asyncio.Event(), [0] * 8

        async def work(number: int) -> None:
            while not over.is_set():
                collection = pool.get_client()["clients"]["many"]
                await collection.insert_one({})
                await collection.find(batch_size=4).to_list(20)
                done[number] += 1

        tasks = [asyncio.create_task(work(number)) for number in range(len(done))]
        for size in (8, 2, 6):
            before = sum(done)
            await pool.initialize(server_uri, maxPoolSize=size, minPoolSize=0)
            await until(partial(reached, done, before + 50))
        over.set()
        await asyncio.gather(*tasks)
        assert all(done)
        await pool.close()

    asyncio.run(main())


@pytest.mark.parametrize("same", [True, False])
def test_two_clients_on_one_telemetry_have_two_books(
    server_uri: str, same: bool, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = PoolTelemetry("shared")
    listeners = telemetry.listeners
    others = listeners if same else telemetry.listeners
    with (
        Client(server_uri, maxPoolSize=2, event_listeners=listeners) as one,
        Client(server_uri, maxPoolSize=3, event_listeners=others) as two,
    ):
        for client, times in ((one, 3), (two, 5)):
            for _ in range(times):
                client["t"]["t"].find_one()
        for client, name, times in ((one, "shared", 3), (two, "shared#2", 5)):
            book = next(one for one in active() if one.name == name)
            assert ours(the_pool(book)) == drivers(client)
            assert the_pool(book).checkouts["ok"] == times
            assert the_pool(book).max_size == client.options.pool_options.max_pool_size
    assert not telemetry.active
    assert not logged(caplog, "shared")


def test_telemetry_of_a_closed_client_goes_on_with_the_next(server_uri: str) -> None:
    telemetry = PoolTelemetry("in_turn")
    listeners = telemetry.listeners
    for times in (1, 2, 3):
        with Client(server_uri, event_listeners=listeners) as client:
            client["t"]["t"].find_one()
            assert ours(the_pool(telemetry)) == drivers(client)
            assert the_pool(telemetry).checkouts["ok"] >= times
        assert {one.name for one in active() if "in_turn" in one.name} == set()


@pytest.mark.filterwarnings("ignore:unclosed <socket")  # PyMongo 4.11
def test_one_of_two_clients_on_one_telemetry_is_dropped(server_uri: str) -> None:
    telemetry = PoolTelemetry("one_dropped")
    listeners = telemetry.listeners

    def use() -> PoolTelemetry:
        client = Client(server_uri, event_listeners=listeners)
        client["t"]["t"].find_one()
        return next(one for one in active() if one.name == "one_dropped#2")

    def drop() -> PoolTelemetry:
        book = use()
        wait_for(lambda: gc.collect() >= 0 and not book.active, "the finalizer")
        return book

    with Client(server_uri, event_listeners=listeners) as kept:
        kept["t"]["t"].find_one()
        with pytest.warns(ResourceWarning, match="Unclosed MongoClient"):
            book = drop()
        assert book.stats().pools[0].size == 0
        assert ours(the_pool(telemetry)) == drivers(kept)


@pytest.mark.parametrize("first", [0, 1])
def test_unnamed_clients_have_the_same_names_in_any_order(
    server_uri: str, own_server: EmbeddedServer, first: int
) -> None:
    uris = [server_uri, own_server.uri]
    order = [first, 1 - first]
    telemetries = [PoolTelemetry(), PoolTelemetry()]
    named = [PoolTelemetry(), PoolTelemetry()]
    with contextlib.ExitStack() as opened:
        for number in order:
            listeners = telemetries[number].listeners
            opened.enter_context(Client(uris[number], event_listeners=listeners)).admin.command(
                "ping"
            )
        for number in order:
            listeners, app = named[number].listeners, f"app-{number}"
            opened.enter_context(
                Client(server_uri, appName=app, event_listeners=listeners)
            ).admin.command("ping")
        registry = CollectorRegistry()
        prometheus.register(registry)
        text = prometheus.generate(registry=registry)[0].decode()
    for uri, telemetry in zip(uris, telemetries, strict=True):
        stats = telemetry.stats()
        address = uri.removeprefix("mongodb://").rstrip("/")
        assert {stats.pool_name(pool) for pool in stats.pools} == {address}
    assert [one.name for one in named] == ["app-0", "app-1"]
    series = [line.rsplit(" ", 1)[0] for line in text.splitlines() if line[0] != "#"]
    assert len(series) == len(set(series))


def test_name_from_an_app_name_is_safe(server_uri: str) -> None:
    telemetry = PoolTelemetry()
    with Client(server_uri, appName="a@b\nc", event_listeners=telemetry.listeners) as client:
        client.admin.command("ping")
        assert telemetry.name == "a b c"
        second = PoolTelemetry()
        with Client(server_uri, appName="a@b\nc", event_listeners=second.listeners) as other:
            other.admin.command("ping")
            assert second.name == "a b c#2"


def test_listeners_are_short_in_a_client(server_uri: str) -> None:
    with Client(server_uri, connect=False, event_listeners=PoolTelemetry().listeners) as client:
        assert "[PoolListener(), HeartbeatListener(), OperationListener()]" in repr(client)
