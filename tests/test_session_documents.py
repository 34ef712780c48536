"""Documents that this library did not write, or can't read, and the order of messages."""

import asyncio
import math
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from bson import Decimal128, ObjectId
from bson.codec_options import TypeDecoder, TypeRegistry
from bson.errors import InvalidBSON
from pymongo import MongoClient
from strands.types.exceptions import SessionException
from strands.types.session import SessionAgent, SessionMessage

from pool_telemetry.sessions import (
    AsyncMongoDBSessionManager,
    MongoDBSessionManager,
    MongoDBSessionRepository,
)
from pool_telemetry.sessions.dispatch import run_now
from pool_telemetry.sessions.values import BASE64, MARK
from tests.scripted import agent_with
from tests.support import rest_in_bulk

Client = MongoClient[dict[str, Any]]
S, A = "session-1", "agent-1"
HOUR = timedelta(hours=1)


@pytest.fixture
def repository(client: Client, database: str) -> MongoDBSessionRepository:
    return MongoDBSessionRepository(client, database, prefix="")


def a_message(number: int, text: str = "hello", role: Any = "user") -> SessionMessage:
    return SessionMessage({"role": role, "content": [{"text": text}]}, number)


def documents_of(client: Client, database: str) -> dict[str, list[dict[str, Any]]]:
    names = ("sessions", "agents", "messages")
    return {name: list(client[database][name].find().sort("_id")) for name in names}


# Sessions of another program


def upstream_session(created_at: Any) -> dict[str, Any]:
    """Return a session as mongodb-session-manager stores it: one document with its agents."""
    agent = {"agent_id": A, "state": {}, "conversation_manager_state": {}}
    message = {"message_id": 0, "message": {"role": "user", "content": [{"text": "s3cr3t"}]}}
    times = {"created_at": created_at, "updated_at": created_at}
    return {
        "_id": S,
        "session_id": S,
        "session_type": "AGENT",
        "application_name": "shop",
        **times,
        "agents": {A: {"agent_data": agent, "messages": [message], **times}},
        "metadata": {"plan": "s3cr3t"},
        "feedbacks": [],
    }


USES: dict[str, Callable[[MongoDBSessionRepository], Any]] = {
    "open_session": lambda r: r.open_session(S),
    "open_session with ttl": lambda r: r.open_session(S, ttl=HOUR),
    "read_session": lambda r: r.read_session(S),
    "delete_session": lambda r: r.delete_session(S),
    "create_agent": lambda r: r.create_agent(S, SessionAgent(A, {}, {})),
    "get_metadata": lambda r: r.get_metadata(S),
    "update_metadata": lambda r: r.update_metadata(S, {"plan": "free"}),
    "delete_metadata": lambda r: r.delete_metadata(S, "plan"),
}


@pytest.mark.parametrize("created_at", ["2026-01-01T00:00:00+00:00", datetime(2026, 1, 1)])
def test_a_session_of_the_upstream_project_is_refused_and_kept(
    created_at: Any, repository: MongoDBSessionRepository, client: Client, database: str
) -> None:
    client[database]["sessions"].insert_one(upstream_session(created_at))
    before = documents_of(client, database)
    uses: dict[str, Callable[[MongoDBSessionRepository], Any]] = {
        **USES,
        "manager": lambda _: MongoDBSessionManager(
            S, client, database_name=database, prefix="", ttl=HOUR
        ),
    }
    words = r"session 'session-1' is a session of mongodb-session-manager.*import-sessions"
    for use in uses.values():
        with pytest.raises(SessionException, match=words) as caught:
            use(repository)
        assert "s3cr3t" not in repr(caught.value)
    assert repository.list_sessions() == []
    assert documents_of(client, database) == before


@pytest.mark.parametrize(
    "key", rest_in_bulk(["schema", "session_type", "created_at", "updated_at"])
)
def test_a_session_without_a_key_is_refused_with_its_name(
    key: str, repository: MongoDBSessionRepository, client: Client, database: str
) -> None:
    repository.open_session(S)
    repository.create_agent(S, SessionAgent(A, {}, {}))
    repository.create_message(S, A, a_message(0))
    client[database]["sessions"].update_one({}, {"$unset": {key: ""}})
    before = documents_of(client, database)
    fresh = MongoDBSessionRepository(client, database, prefix="")  # with an empty cache
    for name in ("read_session", "delete_session", "get_metadata"):
        with pytest.raises(SessionException, match=f"session 'session-1' has no `{key}`"):
            USES[name](fresh)
    assert fresh.list_sessions() == []
    assert documents_of(client, database) == before


# Order and leftovers, with hosts whose clocks differ


def test_the_latest_message_has_the_highest_id_whatever_the_clocks_say(
    repository: MongoDBSessionRepository,
) -> None:
    repository.open_session(S)
    for agent, numbers in (("b", 3), ("a", 3), ("c", 1)):
        repository.create_agent(S, SessionAgent(agent, {}, {}))
        for number in range(numbers):
            message = a_message(number)
            message.created_at = f"20{50 - number}-01-01T00:00:00+00:00"  # each clock is behind
            repository.create_message(S, agent, message)
    assert repository.latest_message(S, "b") == ("b", 2)
    assert repository.latest_message(S, "c") == ("c", 0)
    assert repository.latest_message(S) == ("a", 2)


def test_feedback_goes_to_the_answer_of_a_host_whose_clock_is_behind(
    client: Client, database: str, repository: MongoDBSessionRepository
) -> None:
    repository.open_session(S)
    repository.create_agent(S, SessionAgent(A, {}, {}))
    repository.create_message(S, A, a_message(0))
    answer = a_message(1, "answer", "assistant")
    answer.created_at = "2001-01-01T00:00:00+00:00"
    repository.create_message(S, A, answer)
    with MongoDBSessionManager(S, client, database_name=database, prefix="") as manager:
        manager.add_feedback({"rating": "up"})
    assert [one["message_id"] for one in repository.list_feedback(S, A)] == [1]


def test_a_host_whose_clock_is_ahead_deletes_no_first_turn(
    client: Client, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both hosts find no session, and the host whose clock is ahead creates it second."""
    ahead, other = (MongoDBSessionRepository(client, database, prefix="") for _ in range(2))
    store = ahead.asynchronous._store
    ask, hours, raced = store.check_indexes, [1], list[bool]()

    class Clock(datetime):
        """A clock that is some hours ahead."""

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + hours[0] * HOUR

    async def beaten() -> None:
        await ask()
        if not raced:
            raced.append(True)
            hours[0] = 0
            other.open_session(S)
            other.create_agent(S, SessionAgent(A, {}, {}))
            other.create_message(S, A, a_message(0))

    monkeypatch.setattr(store, "check_indexes", beaten)
    monkeypatch.setattr("strands.types.session.datetime", Clock)
    assert ahead.open_session(S)[1] is False
    assert raced
    assert ahead.count_messages(S, A) == 1
    assert ahead.read_agent(S, A) is not None


@pytest.mark.parametrize("has_field", [True, False])
def test_a_new_session_shows_nothing_of_a_host_whose_clock_was_ahead(
    has_field: bool, repository: MongoDBSessionRepository, client: Client, database: str
) -> None:
    repository.open_session(S)
    repository.create_agent(S, SessionAgent(A, {}, {}))
    message = a_message(0)
    message.created_at = (datetime.now(UTC) + HOUR).isoformat()
    repository.create_message(S, A, message)
    client[database]["sessions"].delete_one({})
    for name in ("agents", "messages"):
        later = (datetime.now(UTC) + HOUR).isoformat()
        change: dict[str, Any] = {"$set": {"created_at": later}}
        if not has_field:  # as the release 0.2.0 stored it
            change["$unset"] = {"session_created_at": ""}
        client[database][name].update_many({}, change)
    with MongoDBSessionManager(S, client, database_name=database, prefix="") as manager:
        assert manager.repository.list_messages(S, A) == []
        assert manager.repository.list_agents(S) == []
    assert {name: len(found) for name, found in documents_of(client, database).items()} == {
        "sessions": 1,
        "agents": 0,
        "messages": 0,
    }


# Damaged documents

HEALTHY = "healthy"


@pytest.fixture
def conversation(client: Client, database: str) -> MongoDBSessionRepository:
    """Two sessions, each with metadata, a graph, and an agent with two messages and feedback."""
    for name in (S, HEALTHY):
        kwargs: Any = {"client": client, "database_name": database, "prefix": ""}
        manager = MongoDBSessionManager(name, **kwargs, metadata={"a": {"b": "s3cr3t"}}, ttl=HOUR)
        agent_with(manager, "s3cr3t", agent_id=A, state={"x": "s3cr3t"})("s3cr3t")
        manager.add_feedback({"x": {"y": "s3cr3t"}})
        manager.repository.create_multi_agent(name, GRAPH)
        manager.repository.create_agent(name, SessionAgent(HEALTHY, {}, {}))
        manager.repository.create_message(name, HEALTHY, a_message(0))
        manager.repository.add_feedback(name, HEALTHY, 0, {"x": 1})
    return MongoDBSessionRepository(client, database, prefix="")


class Graph:
    """The part of a graph that is stored."""

    id = "graph"

    def serialize_state(self) -> dict[str, Any]:
        return {"type": "graph", "nodes": {"a": "s3cr3t"}}


GRAPH: Any = Graph()
READS: dict[str, Callable[[MongoDBSessionRepository], Any]] = {
    "open_session": lambda r: r.open_session(S),
    "read_session": lambda r: r.read_session(S),
    "get_metadata": lambda r: r.get_metadata(S),
    "update_metadata": lambda r: r.update_metadata(S, {"a.c": 1}),
    "read_agent": lambda r: r.read_agent(S, A),
    "read_multi_agent": lambda r: r.read_multi_agent(S, "graph"),
    "read_message": lambda r: r.read_message(S, A, 0),
    "list_messages": lambda r: r.list_messages(S, A),
    "last_messages": lambda r: r.last_messages(S, A, 1),
    "messages_from": lambda r: run_now(r.asynchronous.messages_from(S, A, 1)),
    "last_prompt": lambda r: run_now(r.asynchronous.last_prompts(S, {A: 9})),
    "latest_message": lambda r: r.latest_message(S, A),
    "add_feedback": lambda r: r.add_feedback(S, A, 1, {"x": 1}),
    "create_agent": lambda r: r.create_agent(S, SessionAgent(A, {}, {})),
}
LISTS: dict[str, Callable[[MongoDBSessionRepository], Any]] = {
    "list_sessions": lambda r: [one.session_id for one in r.list_sessions()],
    "list_sessions, page by page": lambda r: [
        one.session_id for page in (1, 2) for one in r.list_sessions(limit=page)
    ],
    "list_agents": lambda r: [one["agent_id"] for one in r.list_agents(S)],
    "list_feedback": lambda r: [r.list_feedback(S, HEALTHY), r.list_feedback(S, A)] and [HEALTHY],
    "usage": lambda r: r.usage(S) and [HEALTHY],
    "count_messages": lambda r: r.count_messages(S, A) is not None and [HEALTHY],
}
ODD: list[Any] = [
    *(None, True, 0, -1, 7, 2**62, 1.5, math.nan, math.inf, "x", "s3cr3t", b"\0", [], {}),
    *([1], [None], [[]], {"a": 1}, datetime(2001, 1, 1), ObjectId(), Decimal128("1")),
    *({MARK: "x"}, {MARK: [1]}, {MARK: [[[], 1]]}, {MARK: {"int": "z"}}, {MARK: {"deep": b"x"}}),
    *({BASE64: True, "data": "s3cr3t"}, {BASE64: True, "data": 1}, {MARK: {"new": 1}}),
]
GONE: Any = object()


def paths(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of each value in a document, except below `_id`, which can't change."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in pairs:
        if key == "_id":
            continue
        yield f"{path}{key}"
        if isinstance(one, dict | list):
            yield from paths(one, f"{path}{key}.")


def use_managers(client: Client, database: str) -> dict[str, Callable[[], Any]]:
    kwargs: Any = {"client": client, "database_name": database, "prefix": ""}

    def called() -> None:
        agent_with(MongoDBSessionManager(S, **kwargs), agent_id=A)

    async def awaited() -> None:
        manager = await AsyncMongoDBSessionManager.open(S, **kwargs)
        agent_with(manager, agent_id=A)

    return {"manager": called, "async manager": lambda: asyncio.run(awaited())}


def refusal(use: Callable[[], Any]) -> str:
    """Return the text of the SessionException that a method raises; empty if it works."""
    try:
        use()
    except SessionException as error:
        return repr(error)
    return ""


@pytest.mark.parametrize("examples", rest_in_bulk([8, 80]))
def test_a_damaged_document_is_an_error_that_hides_its_values_and_breaks_no_list(
    examples: int, conversation: MongoDBSessionRepository, client: Client, database: str
) -> None:
    store = client[database]
    names = ("sessions", "agents", "messages")
    kept = {name: list(store[name].find()) for name in names}
    which = {"agent_id": {"$ne": HEALTHY}, "session_id": S}
    cases = [
        (name, document, path)
        for name in names
        for document in store[name].find(which)
        for path in paths(document)
    ]
    refused = set()
    chance = random.Random(examples)
    for number in range(examples):
        name, document, path = chance.choice(cases)
        value = chance.choice([GONE, *ODD])
        change = {"$unset": {path: ""}} if value is GONE else {"$set": {path: value}}
        store[name].update_one({"_id": document["_id"]}, change)
        where = (name, path, value)
        fresh = MongoDBSessionRepository(client, database, prefix="")
        uses: dict[str, Callable[[], Any]] = {
            key: partial(use, fresh) for key, use in READS.items()
        }
        if number % 8 == 0:
            uses |= use_managers(client, database)
        for key, use in uses.items():
            if words := refusal(use):
                refused.add(key)
                assert repr(S) in words, (where, key, words)
                assert "s3cr3t" not in words, (where, key)
        for key, listed in LISTS.items():
            assert HEALTHY in listed(fresh), (where, key)
        for each in names:
            store[each].delete_many({})
            store[each].insert_many(kept[each])
    assert len(refused) > 4


@pytest.mark.parametrize("name", ["sessions", "agents", "messages"])
def test_a_newer_schema_is_refused_and_skipped_by_lists(
    name: str, conversation: MongoDBSessionRepository, client: Client, database: str
) -> None:
    for schema in (2, 2**40):
        client[database][name].update_many({"session_id": S}, {"$set": {"schema": schema}})
        reads = {
            "sessions": ("open_session", "read_session", "get_metadata", "update_metadata"),
            "agents": ("read_agent", "read_multi_agent"),
            "messages": ("read_message", "list_messages", "last_messages"),
        }
        words = f"session {S!r} has schema {schema}, but .* upgrade pool_telemetry"
        for key in reads[name]:
            with pytest.raises(SessionException, match=words):
                READS[key](conversation)
        for manager in use_managers(client, database).values():
            with pytest.raises(SessionException, match=words):
                manager()
    listed = [one.session_id for one in conversation.list_sessions()]
    assert sorted(listed) == ([HEALTHY] if name == "sessions" else [HEALTHY, S])
    assert len(conversation.list_agents(HEALTHY)) == 3
    assert len(conversation.list_agents(S)) == (0 if name == "agents" else 3)


class Undecodable(TypeDecoder):
    """Fails as PyMongo does for a text that is no UTF-8, which the embedded server refuses."""

    bson_type = Decimal128

    def transform_bson(self, value: Any) -> Any:
        raise InvalidBSON("s3cr3t")


def test_a_value_that_is_no_valid_bson_is_an_error_and_breaks_no_list(
    conversation: MongoDBSessionRepository, client: Client, database: str, server_uri: str
) -> None:
    bad = Decimal128("1")
    for name, field in (("sessions", "metadata"), ("agents", "state"), ("messages", "feedback.0")):
        which = {"session_id": S, "agent_id": {"$ne": HEALTHY}}
        client[database][name].update_many(which, {"$set": {f"{field}.bad": bad}})
    with Client(server_uri, type_registry=TypeRegistry([Undecodable()])) as strict:
        repository = MongoDBSessionRepository(strict, database, prefix="")
        for key in ("open_session", "read_session", "get_metadata", "read_agent", "list_messages"):
            words = refusal(partial(READS[key], repository))
            assert "'session-1' has a value that isn't valid BSON" in words, key
            assert "s3cr3t" not in words
        assert [one.session_id for one in repository.list_sessions()] == [HEALTHY]
        assert [one["agent_id"] for one in repository.list_agents(S)] == [HEALTHY]
        assert len(repository.list_feedback(S, HEALTHY)) == 1
        assert repository.list_feedback(S, A) == []
        assert repository.usage(S).messages == 3
