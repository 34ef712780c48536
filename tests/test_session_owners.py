"""A session's owner, where a caller names one, and documents that another program wrote."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient
from strands.types.exceptions import SessionException, StorageError
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from pool_telemetry.errors import PoolTelemetryError, SessionOwnerError
from pool_telemetry.sessions import (
    AsyncMongoDBSessionManager,
    AsyncMongoDBSessionRepository,
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
    MongoDBSessionRepository,
    MongoDBStorage,
)

Client = MongoClient[dict[str, Any]]
S, A = "0f9c2d7e", "default"
OWNERS = ("alice", "mallory", "shop")


@pytest.fixture
def alices(client: Client, database: str) -> MongoDBSessionRepository:
    """A session of alice's with an agent, a message, metadata and feedback."""
    repository = MongoDBSessionRepository(client, database, application="shop", user="alice")
    repository.open_session(S, metadata={"plan": "s3cr3t"})
    repository.create_agent(S, SessionAgent(A, {}, {"removed_message_count": 0}))
    repository.create_message(S, A, a_message(0))
    repository.add_feedback(S, A, 0, {"rating": "s3cr3t"})
    return repository


def a_message(number: int) -> SessionMessage:
    return SessionMessage({"role": "user", "content": [{"text": "s3cr3t"}]}, number)


def stored(client: Client, database: str) -> dict[str, list[dict[str, Any]]]:
    """Return every document, to see that nothing has changed."""
    names = sorted(client[database].list_collection_names())
    return {name: list(client[database][name].find().sort("_id")) for name in names}


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(SessionOwnerError) as caught:
        call()
    assert isinstance(caught.value, PoolTelemetryError)
    for word in ("s3cr3t", *OWNERS):
        assert word not in repr(caught.value)


class Graph:
    """As much of a graph as a repository reads."""

    id = A

    def serialize_state(self) -> dict[str, Any]:
        return {"node": 1}


# Each method of a repository that names a session.
METHODS: dict[str, Callable[[Any], Any]] = {
    "open_session": lambda r: r.open_session(S),
    "read_session": lambda r: r.read_session(S),
    "delete_session": lambda r: r.delete_session(S),
    "create_agent": lambda r: r.create_agent(S, SessionAgent("b", {}, {})),
    "read_agent": lambda r: r.read_agent(S, A),
    "update_agent": lambda r: r.update_agent(S, SessionAgent(A, {"x": 1}, {})),
    "list_agents": lambda r: r.list_agents(S),
    "create_multi_agent": lambda r: r.create_multi_agent(S, Graph()),
    "read_multi_agent": lambda r: r.read_multi_agent(S, A),
    "update_multi_agent": lambda r: r.update_multi_agent(S, Graph()),
    "create_message": lambda r: r.create_message(S, A, a_message(1)),
    "read_message": lambda r: r.read_message(S, A, 0),
    "update_message": lambda r: r.update_message(S, A, a_message(0)),
    "list_messages": lambda r: r.list_messages(S, A),
    "last_messages": lambda r: r.last_messages(S, A, 5),
    "count_messages": lambda r: r.count_messages(S, A),
    "get_metadata": lambda r: r.get_metadata(S),
    "update_metadata": lambda r: r.update_metadata(S, {"plan": "free"}),
    "delete_metadata": lambda r: r.delete_metadata(S, "plan"),
    "add_feedback": lambda r: r.add_feedback(S, A, 0, {"rating": 1}),
    "latest_message": lambda r: r.latest_message(S),
    "list_feedback": lambda r: r.list_feedback(S, A),
    "usage": lambda r: r.usage(S),
    "usage_by_agent": lambda r: r.usage_by_agent(S),
    "usage_by_message": lambda r: r.usage_by_message(S, A),
    "get_application_name": lambda r: r.get_application_name(S),
    "get_user": lambda r: r.get_user(S),
}
ONLY_ASYNC: dict[str, Callable[[Any], Any]] = {
    "messages_from": lambda r: r.messages_from(S, A, 0),
    "conversations": lambda r: r.conversations(S, {A: 0}, 5),
    "last_prompts": lambda r: r.last_prompts(S, {A: 9}),
}


def test_every_method_that_names_a_session_is_listed_here() -> None:
    for kind, listed in (
        (MongoDBSessionRepository, METHODS),
        (AsyncMongoDBSessionRepository, METHODS | ONLY_ASYNC),
    ):
        own = {
            name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))
        }
        assert own - {"create_session", "list_sessions"} == set(listed)


@pytest.mark.parametrize("other", [{"user": "mallory"}, {"application": "mallory"}])
def test_another_owners_session_is_refused_and_stays_as_it_is(
    alices: MongoDBSessionRepository, client: Client, database: str, other: Any
) -> None:
    before = stored(client, database)
    for method in METHODS.values():
        # A new repository, so that no cached answer helps.
        refused(lambda method=method: method(MongoDBSessionRepository(client, database, **other)))  # type: ignore[misc]
    everyone = MongoDBSessionRepository(client, database)
    for call in (everyone.open_session, everyone.read_session, everyone.delete_session):
        refused(lambda call=call: call(S, **other))  # type: ignore[misc]
    refused(lambda: alices.list_sessions(**other))
    refused(lambda: alices.open_session(S, **other))
    assert MongoDBSessionRepository(client, database, **other).list_sessions() == []
    assert alices.open_session(S)[1] is False
    refused(lambda: MongoDBSessionManager(S, client, database_name=database, **other))
    application = other.get("application")
    with MongoDBSessionManagerFactory(
        client=client, database_name=database, application=application
    ) as factory:
        refused(lambda: factory.create_session_manager(S, user=other.get("user")))
    after = stored(client, database)
    after["strands_sessions"][0]["updated_at"] = before["strands_sessions"][0]["updated_at"]
    assert after == before  # except that alice opened her own


def test_another_owners_session_is_refused_by_the_asynchronous_classes(
    alices: MongoDBSessionRepository, server_uri: str, client: Client, database: str
) -> None:
    async def use(client: Any) -> None:
        for method in (METHODS | ONLY_ASYNC).values():
            repository = AsyncMongoDBSessionRepository(client, database, user="mallory")
            with pytest.raises(SessionOwnerError):
                await method(repository)
        with pytest.raises(SessionOwnerError):
            await AsyncMongoDBSessionManager.open(S, client, database_name=database, user="mallory")
        factory = MongoDBSessionManagerFactory(client=client, database_name=database)
        with pytest.raises(SessionOwnerError):
            await factory.open_session_manager(S, user="mallory")
        own = await factory.open_session_manager(S, user="alice")
        assert (await own.get_metadata()) == {"plan": "s3cr3t"}

    async def use_both() -> None:
        async with AsyncMongoClient[dict[str, Any]](server_uri) as asynchronous:
            await use(asynchronous)
        await use(client)

    asyncio.run(use_both())
    assert alices.count_messages(S, A) == 1


def test_a_caller_without_an_owner_uses_any_session(
    alices: MongoDBSessionRepository, client: Client, database: str
) -> None:
    everyone = MongoDBSessionRepository(client, database)
    assert everyone.open_session(S)[1] is False
    assert len(everyone.list_messages(S, A)) == 1
    everyone.update_metadata(S, {"plan": "pro"})
    (document,) = client[database]["strands_sessions"].find()
    assert (document["application"], document["user"]) == ("shop", "alice")
    everyone.delete_session(S)
    assert alices.read_session(S) is None
    ignored: Any
    for ignored in ({"user": "mallory"}, {"application": "shop"}):
        with pytest.raises(TypeError, match="give them to the repository"):
            everyone.list_messages(S, A, **ignored)


def test_a_session_without_an_owner_is_opened_by_its_id_and_stays_without(
    client: Client, database: str
) -> None:
    everyone = MongoDBSessionRepository(client, database)
    everyone.create_session(Session(S, SessionType.AGENT))
    client[database]["strands_sessions"].insert_one(
        {**client[database]["strands_sessions"].find_one({}), "_id": "null", "session_id": "null"}  # type: ignore[dict-item]
        | {"user": None}
    )
    for name in ("alice", "bob"):
        for session in (S, "null"):
            repository = MongoDBSessionRepository(client, database, application="shop", user=name)
            assert repository.open_session(session)[1] is False
            repository.update_metadata(session, {name: 1})
            assert repository.list_sessions() == []  # it is in no owner's list
    assert everyone.get_metadata(S) == {"alice": 1, "bob": 1}
    MongoDBSessionRepository(client, database, user="carol").delete_session(S)


def test_a_session_of_an_application_without_a_user_is_open_to_its_users(
    client: Client, database: str
) -> None:
    MongoDBSessionRepository(client, database, application="shop").open_session(S)
    same = MongoDBSessionRepository(client, database, application="shop", user="ann")
    assert same.open_session(S)[1] is False
    other = MongoDBSessionRepository(client, database, application="help", user="ann")
    refused(lambda: other.open_session(S))


def test_a_cached_answer_does_not_outlive_the_owner(
    client: Client, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = MongoDBSessionRepository(client, database, user="alice")
    alice.open_session(S)
    alice.create_agent(S, SessionAgent(A, {}, {}))
    everyone = MongoDBSessionRepository(client, database)
    everyone.delete_session(S)
    mallory = MongoDBSessionRepository(client, database, user="mallory")
    mallory.open_session(S)
    mallory.create_agent(S, SessionAgent(A, {}, {}))
    monkeypatch.setattr("pool_telemetry.sessions.known.KNOWN_SECONDS", -1.0)
    refused(lambda: alice.create_message(S, A, a_message(0)))
    refused(lambda: alice.list_messages(S, A))
    refused(lambda: alice.delete_session(S))
    assert mallory.count_messages(S, A) == 0


def test_an_expired_session_frees_its_id(client: Client, database: str) -> None:
    alice = MongoDBSessionRepository(client, database, user="alice")
    alice.open_session(S, ttl=timedelta(hours=1))
    alice.create_agent(S, SessionAgent(A, {}, {}))
    alice.create_message(S, A, a_message(0))
    over = {"$set": {"expires_at": datetime.now(UTC) - timedelta(seconds=1)}}
    for name in ("sessions", "agents", "messages"):
        client[database][f"strands_{name}"].update_many({}, over)
    bob = MongoDBSessionRepository(client, database, user="bob")
    assert bob.open_session(S)[1] is True
    assert bob.list_messages(S, A) == []
    refused(lambda: MongoDBSessionRepository(client, database, user="alice").open_session(S))


# Documents of other programs

FOREIGN: dict[str, list[dict[str, Any]]] = {
    "strands_sessions": [
        {"_id": ObjectId(), "user": "s3cr3t"},
        {"_id": 7, "session_id": 7, "created_at": "2026", "updated_at": "9999"},
        {"_id": "no fields", "updated_at": "9999-s3cr3t"},
        {"_id": "wrong times", "session_id": "wrong times", "created_at": 1, "updated_at": 2},
        {"_id": {"a": 1}, "updated_at": datetime(2026, 1, 1)},
        {"_id": "two ids", "session_id": "x", "created_at": "2026", "updated_at": "2026"},
    ],
    "strands_agents": [
        {"_id": ObjectId(), "session_id": S, "agent_id": "z", "kind": "agent"},
        {"_id": "z", "session_id": S},
        {
            "_id": {"session_id": S, "agent_id": "w", "kind": "agent"},
            "session_id": S,
            "kind": "agent",
            "agent_id": "w",
            "state": "s3cr3t",
        },
    ],
    "strands_messages": [
        {"_id": ObjectId(), "session_id": S, "agent_id": A, "message_id": 0, "body": "s3cr3t"},
        {"_id": 7, "session_id": S, "agent_id": A, "message_id": "s3cr3t"},
        {"_id": "z", "session_id": S, "agent_id": A},
    ],
    "strands_blobs": [
        {"_id": ObjectId(), "s3cr3t": 1},
        {"_id": 7, "schema": 1, "size": 1, "data": b"x"},
        {"_id": "theirs", "text": "s3cr3t"},
    ],
}


def test_foreign_documents_are_skipped_and_never_changed(
    alices: MongoDBSessionRepository,
    client: Client,
    database: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, documents in FOREIGN.items():
        client[database][name].insert_many(documents)
    everyone = MongoDBSessionRepository(client, database)
    with caplog.at_level(logging.WARNING, "pool_telemetry.sessions"):
        for _ in range(2):
            assert [one.session_id for one in everyone.list_sessions(limit=1)] == [S]
            assert [one["agent_id"] for one in everyone.list_agents(S)] == [A]
            assert [one.message_id for one in everyone.list_messages(S, A, limit=1)] == [0]
            assert [one.message_id for one in everyone.last_messages(S, A, 2)] == [0]
    assert sorted(caplog.messages) == [
        f"{database}.strands_{name} has documents that pool_telemetry can't read; lists skip them"
        for name in ("agents", "messages", "sessions")
    ]
    assert everyone.count_messages(S, A) == everyone.usage(S).messages == 1
    assert everyone.latest_message(S) == (A, 0)
    assert len(everyone.list_feedback(S, A)) == 1
    with pytest.raises(SessionException, match="did not write the document"):
        everyone.read_agent(S, "w")
    for session in ("no fields", "wrong times", "two ids"):
        for method in ("open_session", "read_session", "get_metadata", "delete_session"):
            with pytest.raises(SessionException, match="did not write the document") as caught:
                getattr(everyone, method)(session)
            assert "s3cr3t" not in repr(caught.value)
    with MongoDBSessionManager(S, client, database_name=database, ttl=timedelta(hours=1)) as open_:
        open_.update_metadata({"plan": "pro"})
    everyone.delete_session(S)
    everyone.open_session(S)  # deletes what an expired session left
    for name, documents in FOREIGN.items():
        ids = [one["_id"] for one in documents]
        left = list(client[database][name].find({"_id": {"$in": ids}}))
        assert sorted(left, key=repr) == sorted(documents, key=repr)


# Storage


def test_another_owners_blob_is_refused(client: Client, database: str) -> None:
    async def use() -> None:
        for size in (15_000, 100):  # as a document, and as a file
            alice, mallory, everyone = (
                MongoDBStorage(client, database, inline_bytes=size, user=user)
                for user in ("alice", "mallory", None)
            )
            scoped = mallory.namespace("a")
            await alice.write("a/b", b"s3cr3t" * 100)
            before = stored(client, database)
            for storage, key in ((mallory, "a/b"), (scoped, "b")):
                for call in (storage.read(key), storage.write(key, b"x"), storage.delete(key)):
                    with pytest.raises(SessionOwnerError) as caught:
                        await call
                    for word in ("s3cr3t", *OWNERS):
                        assert word not in repr(caught.value)
                with pytest.raises(SessionOwnerError):
                    await storage.write(key, b"x" * 10_000)
                assert await storage.list() == []
            assert stored(client, database) == before
            await everyone.write("a/b", b"2" * 600)  # keeps its owner
            with pytest.raises(SessionOwnerError):
                await mallory.read("a/b")
            assert await alice.read("a/b") == b"2" * 600
            assert await alice.list() == await everyone.list() == ["a/b"]
            await alice.delete("a/b")
            assert await everyone.list() == []

    asyncio.run(use())


def test_foreign_blobs_are_skipped_and_never_changed(
    client: Client, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    documents = FOREIGN["strands_blobs"]
    client[database]["strands_blobs"].insert_many(documents)

    async def use() -> None:
        storage = MongoDBStorage(client, database, user="alice")
        await storage.write("mine", b"1")
        for _ in range(2):
            assert await storage.list() == ["mine"]
        for call in (storage.read, storage.delete, lambda key: storage.write(key, b"x")):
            with pytest.raises(StorageError, match="another program wrote") as caught:
                await call("theirs")
            assert "s3cr3t" not in repr(caught.value)

    with caplog.at_level(logging.WARNING, "pool_telemetry.sessions"):
        asyncio.run(use())
    assert len(caplog.messages) == 1
    left = list(client[database]["strands_blobs"].find({"_id": {"$ne": "mine"}}))
    assert sorted(left, key=repr) == sorted(documents, key=repr)
