"""Strands' sessions as documents on a real server; `make test-strands` adds Strands' own tests."""

import asyncio
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from strands.types.exceptions import SessionException
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from pool_telemetry import PoolTelemetry
from pool_telemetry.sessions import (
    AsyncMongoDBSessionRepository,
    InvalidIdError,
    MongoDBSessionRepository,
    SessionConflictError,
    SessionInfo,
    large_messages,
)

Client = MongoClient[dict[str, Any]]
S, A = "session-1", "agent.with.dots"


@pytest.fixture
def telemetry() -> PoolTelemetry:
    return PoolTelemetry("sessions")


@pytest.fixture
def client(server_uri: str, telemetry: PoolTelemetry) -> Iterator[Client]:
    with Client(server_uri, event_listeners=telemetry.listeners) as client:
        yield client


@pytest.fixture
def repository(client: Client, database: str) -> MongoDBSessionRepository:
    return MongoDBSessionRepository(client, database, prefix="")


@pytest.fixture
def begun(repository: MongoDBSessionRepository) -> MongoDBSessionRepository:
    repository.create_session(Session(S, SessionType.AGENT))
    repository.create_agent(S, an_agent())
    return repository


def an_agent(**state: Any) -> SessionAgent:
    return SessionAgent(A, state, {"removed_message_count": 0})


def a_message(number: int, *content: Any) -> SessionMessage:
    blocks = content or ({"text": f"message {number}"},)
    return SessionMessage({"role": "user", "content": list(blocks)}, number)


def commands(telemetry: PoolTelemetry) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in telemetry.stats().operations:
        found[one.operation] = found.get(one.operation, 0) + one.duration.count
    return found


def test_a_stored_session_agent_and_message_are_read_back(begun: MongoDBSessionRepository) -> None:
    odd = {"$ref": 1, "a.b": {"$x": [None, 0.5]}, "": "é😀", "bytes": b"\0\xff"}
    message = a_message(0, {"toolUse": {"toolUseId": "1", "name": "t", "input": odd}})
    begun.create_message(S, A, message)
    assert begun.read_message(S, A, 0) == message
    assert begun.list_messages(S, A) == [message]
    agent = begun.read_agent(S, A)
    assert agent == an_agent_like(agent)
    session = begun.read_session(S)
    assert session is not None
    assert (session.session_id, session.session_type) == (S, SessionType.AGENT)


def an_agent_like(other: SessionAgent | None) -> SessionAgent:
    assert other is not None
    agent = an_agent()
    agent.created_at, agent.updated_at = other.created_at, other.updated_at
    return agent


def test_missing_documents_read_as_none_or_an_empty_list(
    repository: MongoDBSessionRepository,
) -> None:
    assert repository.read_session(S) is None
    assert repository.read_agent(S, A) is None
    assert repository.read_message(S, A, 0) is None
    assert repository.read_multi_agent(S, A) is None
    assert repository.list_messages(S, A) == []


def test_an_update_replaces_all_fields_except_created_at(begun: MongoDBSessionRepository) -> None:
    begun.create_message(S, A, first := a_message(0, {"text": "s3cr3t"}))
    later = SessionMessage(first.message, 0, {"role": "user", "content": [{"text": "redacted"}]})
    begun.update_message(S, A, later)
    found = begun.read_message(S, A, 0)
    assert found is not None
    assert found.to_message()["content"] == [{"text": "redacted"}]
    assert found.created_at == later.created_at == first.created_at
    assert found.updated_at > first.updated_at
    before = begun.read_agent(S, A)
    begun.update_agent(S, an_agent(**{"$set": {"a.b": 1}}))
    after = begun.read_agent(S, A)
    assert before is not None
    assert after is not None
    assert after.state == {"$set": {"a.b": 1}}
    assert (after.created_at, after.updated_at > before.updated_at) == (before.created_at, True)


def test_a_write_of_an_existing_id_or_without_its_parent_is_an_error(
    repository: MongoDBSessionRepository,
) -> None:
    with pytest.raises(SessionException, match="session 'session-1' does not exist"):
        repository.create_agent(S, an_agent())
    repository.create_session(Session(S, SessionType.AGENT))
    with pytest.raises(SessionException, match="session 'session-1' already exists"):
        repository.create_session(Session(S, SessionType.AGENT))
    with pytest.raises(SessionException, match=r"agent 'agent.with.dots' of .* is missing"):
        repository.create_message(S, A, a_message(0))
    with pytest.raises(SessionException, match=r"^agent 'agent.with.dots' .* does not exist"):
        repository.update_agent(S, an_agent())
    with pytest.raises(SessionException, match=r"^message 0 of agent .* does not exist"):
        repository.update_message(S, A, a_message(0))
    repository.create_agent(S, an_agent())
    with pytest.raises(SessionException, match=r"agent 'agent.with.dots' of .* already exists"):
        repository.create_agent(S, an_agent())
    with pytest.raises(SessionException, match="does not exist"):
        repository.delete_session("another")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "is empty"),
        ("a/b", "contains '/'"),
        ("a\\b", "contains"),
        ("a\0b", "contains '\\\\x00'"),
        ("$where", "begins with '\\$'"),
        ("x" * 10_000, "has more than 512 bytes"),
        ({"$ne": ""}, "is dict, not str"),
        (None, "is NoneType, not str"),
    ],
)
def test_an_invalid_id_is_an_error_without_a_command(
    value: Any, reason: str, begun: MongoDBSessionRepository, telemetry: PoolTelemetry
) -> None:
    before = commands(telemetry)
    for call in (
        lambda: begun.create_session(Session(value, SessionType.AGENT)),
        lambda: begun.read_session(value),
        lambda: begun.delete_session(value),
        lambda: begun.read_agent(value, A),
        lambda: begun.read_agent(S, value),
        lambda: begun.create_message(value, A, a_message(0)),
        lambda: begun.list_messages(S, value),
    ):
        with pytest.raises(SessionException, match=reason) as caught:
            call()
        assert isinstance(caught.value, InvalidIdError)
        assert len(str(caught.value)) < 100
    assert commands(telemetry) == before


def test_an_agents_state_beyond_the_limit_is_an_error_and_the_next_is_stored(
    begun: MongoDBSessionRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_messages, "MAX_BYTES", 2**24)
    with pytest.raises(SessionException, match=r"agent .* is larger than 16 MB"):
        begun.update_agent(S, an_agent(x="x" * 17_000_000))
    begun.update_agent(S, an_agent(x=1))
    agent = begun.read_agent(S, A)
    assert agent is not None
    assert agent.state == {"x": 1}


def test_only_one_of_eight_writers_stores_a_message(begun: MongoDBSessionRepository) -> None:
    barrier, refused = threading.Barrier(8), list[str]()

    def write() -> None:
        barrier.wait()
        try:
            begun.create_message(S, A, a_message(0))
        except SessionException as error:
            refused.append(str(error))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    words = f"message 0 of agent {A!r} of session {S!r} already exists: another writer was first"
    assert refused == [words] * 7
    assert begun.count_messages(S, A) == 1


def test_messages_are_listed_in_the_order_of_their_ids(begun: MongoDBSessionRepository) -> None:
    for number in (10, 2, 0, 1, 9):
        begun.create_message(S, A, a_message(number))

    def ids(found: list[SessionMessage]) -> list[int]:
        return [one.message_id for one in found]

    assert ids(begun.list_messages(S, A)) == [0, 1, 2, 9, 10]
    assert ids(begun.list_messages(S, A, limit=2, offset=1)) == [1, 2]
    assert ids(begun.list_messages(S, A, limit=0)) == []
    assert ids(begun.list_messages(S, A, offset=9)) == []
    assert ids(begun.last_messages(S, A, 2)) == [9, 10]
    assert ids(begun.last_messages(S, A, 99)) == [0, 1, 2, 9, 10]
    with pytest.raises(ValueError, match="limit is 0"):
        begun.last_messages(S, A, 0)


def test_a_deleted_session_leaves_no_documents(
    begun: MongoDBSessionRepository, client: Client, database: str
) -> None:
    begun.create_message(S, A, a_message(0))
    begun.create_session(Session("kept", SessionType.AGENT))
    begun.delete_session(S)
    left = {name: client[database][name].count_documents({}) for name in ("agents", "messages")}
    assert left == {"agents": 0, "messages": 0}
    assert begun.read_session("kept") is not None
    with pytest.raises(SessionException, match="is missing"):  # the cache forgot the agent
        begun.create_message(S, A, a_message(0))


def test_a_message_costs_one_command_and_indexes_are_made_once(
    begun: MongoDBSessionRepository, client: Client, database: str, telemetry: PoolTelemetry
) -> None:
    before = commands(telemetry)
    for number in range(5):
        begun.create_message(S, A, a_message(number))
    begun.list_messages(S, A)
    threads = [
        threading.Thread(
            target=MongoDBSessionRepository, args=(client, database), kwargs={"prefix": ""}
        )
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = {key: count - before.get(key, 0) for key, count in commands(telemetry).items()}
    assert {key: count for key, count in spent.items() if count} == {"insert": 5, "find": 1}


def test_sessions_are_listed_page_by_page(repository: MongoDBSessionRepository) -> None:
    for number in range(25):
        repository.open_session(
            f"s{number:02}",
            application=("shop", "help")[number % 2],
            user=f"user-{number % 5}",
            metadata={"number": number},
        )
    every = repository.list_sessions()
    assert [one.metadata["number"] for one in every] == list(range(24, -1, -1))
    pages, last = list[SessionInfo](), None
    while page := repository.list_sessions(limit=7, after=last):
        pages += page
        last = page[-1]
    assert pages == every
    shop = repository.list_sessions(application="shop", user="user-0")
    assert [one.session_id for one in shop] == ["s20", "s10", "s00"]
    middle = datetime.fromisoformat(every[10].updated_at)
    assert repository.list_sessions(since=middle) == every[:11]
    assert repository.list_sessions(until=middle) == every[11:]
    assert (
        repository.list_sessions(since=middle.astimezone(timezone(timedelta(hours=5))))
        == (every[:11])
    )
    repository.open_session("s00")  # the last opened session is first
    assert repository.list_sessions(limit=1)[0].session_id == "s00"
    assert repository.list_sessions(user="nobody") == []
    for wrong in ({"limit": 0}, {"limit": 1_001}, {"since": datetime(2026, 1, 1)}):
        with pytest.raises(ValueError, match=r"limit is|no time zone"):
            repository.list_sessions(**wrong)


def test_pages_are_complete_when_times_are_equal(
    repository: MongoDBSessionRepository, client: Client, database: str
) -> None:
    for number in range(10):
        repository.open_session(f"s{number}")
    client[database]["sessions"].update_many({}, {"$set": {"updated_at": "2026-01-01T00:00:00"}})
    first = repository.list_sessions(limit=4)
    second = repository.list_sessions(limit=99, after=first[-1])
    assert [one.session_id for one in first + second] == [f"s{n}" for n in range(10)]


def test_opening_a_session_changes_only_updated_at(repository: MongoDBSessionRepository) -> None:
    first, is_new = repository.open_session(S)
    again, was_new = repository.open_session(S)
    read = repository.read_session(S)
    assert read is not None
    assert (is_new, was_new) == (True, False)
    assert first.created_at == again.created_at == read.created_at
    assert read.updated_at > first.updated_at


def test_both_kinds_of_client_have_the_same_results(
    begun: MongoDBSessionRepository, server_uri: str, database: str
) -> None:
    begun.create_message(S, A, a_message(0))

    async def use() -> None:
        async with AsyncMongoClient[dict[str, Any]](server_uri) as client:
            same = AsyncMongoDBSessionRepository(client, database, prefix="")
            assert await same.list_messages(S, A) == begun.list_messages(S, A)
            await same.create_message(S, A, a_message(1))
            with pytest.raises(SessionConflictError):
                await same.create_message(S, A, a_message(1))
            assert await same.read_message(S, A, 1) == begun.read_message(S, A, 1)
            assert await same.count_messages(S, A) == 2
            assert await same.usage(S) == begun.usage(S)
            await same.update_metadata(S, {"a.b": b"\0"})
            assert await same.get_metadata(S) == begun.get_metadata(S) == {"a": {"b": b"\0"}}
            await same.add_feedback(S, A, 1, {"$odd": b"\0"})
            assert await same.list_feedback(S, A) == begun.list_feedback(S, A)
            with pytest.raises(SessionException, match=r"message 9 of .* does not exist"):
                await same.add_feedback(S, A, 9, {})
            await same.delete_session(S)

    asyncio.run(use())
    assert begun.read_session(S) is None
    for call in (
        lambda: begun.get_metadata(S),
        lambda: begun.update_metadata(S, {"a": 1}),
        lambda: begun.delete_metadata(S, "a"),
    ):
        with pytest.raises(SessionException, match="session 'session-1' does not exist"):
            call()


def test_every_document_has_its_schema(
    begun: MongoDBSessionRepository, client: Client, database: str
) -> None:
    begun.create_message(S, A, a_message(0))
    for name in ("sessions", "agents", "messages"):
        (document,) = client[database][name].find()
        assert document["schema"] == 1
    client[database]["sessions"].update_one({}, {"$set": {"schema": 2}})
    for call in (begun.read_session, begun.open_session, begun.get_metadata):
        with pytest.raises(SessionException, match="has schema 2, but this pool_telemetry reads"):
            call(S)
