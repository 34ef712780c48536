"""The sessions' indexes exist wherever sessions are stored, and all documents expire together."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from pool_telemetry import PoolConfigurationError, PoolTelemetry
from pool_telemetry.demo.embedded import EmbeddedServer
from pool_telemetry.sessions import (
    AsyncMongoDBSessionManager,
    AsyncMongoDBSessionRepository,
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
    MongoDBSessionRepository,
    close_global_factory,
    indexes,
    initialize_global_factory,
    known,
)
from tests.scripted import agent_with
from tests.support import failing, rest_in_bulk

Client = MongoClient[dict[str, Any]]
COLLECTIONS = ("sessions", "agents", "messages")
HOUR = timedelta(hours=1)


@pytest.fixture
def telemetry() -> PoolTelemetry:
    return PoolTelemetry("indexes")


@pytest.fixture
def client(server_uri: str, telemetry: PoolTelemetry) -> Iterator[Client]:
    listeners = telemetry.listeners
    with Client(server_uri, appName="indexes", event_listeners=listeners) as client:
        yield client


def indexed(client: Client, database: str) -> dict[str, int]:
    """Return the number of indexes of each collection."""
    return {name: len(client[database][name].index_information()) for name in COLLECTIONS}


ALL = {"sessions": 5, "agents": 3, "messages": 3}


def commands(telemetry: PoolTelemetry, *names: str) -> dict[str, int]:
    found = dict.fromkeys(names, 0)
    for one in telemetry.stats().operations:
        if one.operation in found:
            found[one.operation] += one.duration.count
    return found


def test_a_new_server_at_the_same_address_gets_the_indexes() -> None:
    with EmbeddedServer() as first, Client(first.uri) as client:
        for name in ("chat", "other"):
            MongoDBSessionRepository(client, name, prefix="").open_session("s")
            assert indexed(client, name) == ALL
        first.stop()
        with EmbeddedServer(first.port) as second, Client(second.uri) as another:
            for name, used in {"chat": client, "other": another}.items():
                used.admin.command("ping")
                MongoDBSessionRepository(used, name, prefix="").open_session("s")
                assert indexed(another, name) == ALL
            client.close()  # while a server answers, so that it waits for none


@pytest.mark.parametrize("is_connected", [True, False])
def test_another_client_of_a_server_creates_no_index_again(
    is_connected: bool, server_uri: str, client: Client, database: str
) -> None:
    MongoDBSessionRepository(client, database, prefix="").open_session("s")
    telemetry = PoolTelemetry("other")
    address = server_uri.replace("127.0.0.1", "localhost")
    listeners = telemetry.listeners
    with Client(address, event_listeners=listeners, connect=is_connected) as other:
        if is_connected:
            other.admin.command("ping")
        MongoDBSessionRepository(other, database, prefix="").open_session("s")
    assert commands(telemetry, "createIndexes", "listCollections", "findAndModify") == {
        "createIndexes": 0,
        "listCollections": 0 if is_connected else 1,
        "findAndModify": 1,
    }


def drop_database(client: Client, database: str) -> None:
    client.drop_database(database)


def drop_messages(client: Client, database: str) -> None:
    client[database].drop_collection("messages")


def drop_and_create(client: Client, database: str) -> None:
    """Another program wrote a document before the next session."""
    client.drop_database(database)
    for name in COLLECTIONS:
        client[database][name].insert_one({"_id": "other"})


@pytest.mark.parametrize("drop", [drop_database, drop_messages, drop_and_create])
@pytest.mark.parametrize("way", rest_in_bulk(["called", "awaited"]))
def test_a_new_session_in_a_dropped_database_gets_the_indexes(
    drop: Callable[[Client, str], None],
    way: str,
    server_uri: str,
    client: Client,
    database: str,
) -> None:
    async def awaited() -> None:
        async with AsyncMongoClient[dict[str, Any]](server_uri) as other:
            repository = AsyncMongoDBSessionRepository(other, database, prefix="")
            await repository.open_session("first")
            drop(client, database)
            await repository.open_session("second")

    if way == "awaited":
        asyncio.run(awaited())
    else:
        repository = MongoDBSessionRepository(client, database, prefix="")
        repository.open_session("first")
        drop(client, database)
        repository.create_session(Session("second", SessionType.AGENT))
    assert indexed(client, database) == ALL


def test_only_new_sessions_ask_for_dropped_collections(
    telemetry: PoolTelemetry, client: Client, database: str
) -> None:
    client.admin.command("ping")
    repository = MongoDBSessionRepository(client, database, prefix="")
    names = ("createIndexes", "listCollections")
    assert commands(telemetry, *names) == {"createIndexes": 3, "listCollections": 1}
    repository.open_session("a")
    assert commands(telemetry, *names) == {"createIndexes": 3, "listCollections": 2}
    repository.open_session("a")  # it exists
    assert commands(telemetry, *names) == {"createIndexes": 3, "listCollections": 2}


def test_an_account_that_may_not_list_collections_stores_sessions(
    server_uri: str, client: Client, database: str
) -> None:
    with failing(server_uri, "indexes", "listCollections", errorCode=13):
        repository = MongoDBSessionRepository(client, database, prefix="")
        assert repository.open_session("a")[1]
        assert repository.open_session("b")[1]


OPENINGS: dict[str, Callable[..., Any]] = {
    "repository": lambda client, name, **how: MongoDBSessionRepository(
        client, name, **how
    ).open_session("s"),
    "manager": lambda client, name, **how: MongoDBSessionManager(
        "s", client, database_name=name, **how
    ),
    "awaited": lambda client, name, **how: asyncio.run(
        AsyncMongoDBSessionManager.open("s", client, database_name=name, **how)
    ),
    "factory": lambda client, name, **how: MongoDBSessionManagerFactory(
        client=client, database_name=name, **how
    ).create_session_manager("s"),
    "global": lambda client, name, **how: initialize_global_factory(
        client=client, database_name=name, **how
    ).create_session_manager("s"),
}


@pytest.mark.parametrize("opening", OPENINGS)
def test_an_account_that_may_not_create_indexes_is_told_the_option(
    opening: str, server_uri: str, telemetry: PoolTelemetry, client: Client, database: str
) -> None:
    try:
        with failing(server_uri, "indexes", "createIndexes", errorCode=13):
            with pytest.raises(PoolConfigurationError, match="use create_indexes=False") as raised:
                OPENINGS[opening](client, database)
            assert "indexes()" in str(raised.value)
            before = commands(telemetry, "createIndexes", "listCollections")
            OPENINGS[opening](client, database, create_indexes=False)
            assert commands(telemetry, "createIndexes", "listCollections") == before
    finally:
        close_global_factory()


def test_the_listed_indexes_are_those_that_are_created(client: Client, database: str) -> None:
    MongoDBSessionRepository(client, database, prefix="chat_")
    created = {
        name: client[database][name].index_information()
        for name in sorted(client[database].list_collection_names())
    }
    client.drop_database(database)
    for name, models in indexes("chat_").items():
        client[database][name].create_indexes(models)
    assert created == {name: client[database][name].index_information() for name in created}
    assert [*created] == ["chat_agents", "chat_messages", "chat_sessions"]


# The time to live


def a_message(number: int) -> SessionMessage:
    return SessionMessage({"role": "user", "content": [{"text": str(number)}]}, number)


def unexpiring(client: Client, database: str) -> list[Any]:
    """Return the ids of the documents that do not expire with the session."""
    session = client[database]["sessions"].find_one({"_id": "s"})
    assert session is not None
    return [
        one["_id"]
        for name in COLLECTIONS
        for one in client[database][name].find()
        if abs(one.get("expires_at", datetime.min) - session["expires_at"]) > HOUR
    ]


@pytest.mark.parametrize("before", rest_in_bulk([None, 2000 * HOUR]))
def test_an_agent_that_was_opened_before_the_ttl_was_set_expires_with_its_session(
    before: timedelta | None, client: Client, database: str
) -> None:
    how: dict[str, Any] = {"database_name": database, "prefix": ""}
    agent = agent_with(MongoDBSessionManager("s", client, ttl=before, **how), agent_id="a")
    agent("hello")
    with_ttl = MongoDBSessionManager("s", client, ttl=24 * HOUR, **how)
    agent("still there?")  # its manager does not know of the time to live
    assert unexpiring(client, database) == []
    agent_with(with_ttl, agent_id="b")("hi")
    assert unexpiring(client, database) == []


@pytest.mark.parametrize("before", rest_in_bulk([None, 2000 * HOUR]))
def test_a_ttl_that_another_process_set_holds_within_a_minute(
    before: timedelta | None,
    client: Client,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository = MongoDBSessionRepository(client, database, prefix="")
    repository.open_session("s", ttl=before)
    repository.create_agent("s", SessionAgent("a", {}, {}))
    repository.create_message("s", "a", a_message(0))
    end = datetime.now(UTC) + 24 * HOUR
    for name in COLLECTIONS:  # as another process sets it
        fields = {"ttl_seconds": (20 * HOUR).total_seconds(), "expires_at": end}
        client[database][name].update_many({}, {"$set": fields})
    repository.create_message("s", "a", a_message(1))
    assert len(unexpiring(client, database)) == 1  # it asks once a minute
    monkeypatch.setattr(known, "KNOWN_SECONDS", -1.0)
    repository.create_message("s", "a", a_message(2))
    assert unexpiring(client, database) == []


def test_an_agent_that_was_stored_without_its_sessions_ttl_gets_it(
    client: Client, database: str
) -> None:
    repository = MongoDBSessionRepository(client, database, prefix="")
    repository.open_session("s", ttl=24 * HOUR)
    repository.create_agent("s", SessionAgent("a", {}, {}))
    lost = {"$unset": {"expires_at": "", "ttl_seconds": ""}}
    client[database]["agents"].update_many({}, lost)
    again = MongoDBSessionRepository(client, database, prefix="")
    again.open_session("s", ttl=24 * HOUR)
    again.create_message("s", "a", a_message(0))
    assert unexpiring(client, database) == []
