"""Odd values and large messages on a real server: read back equal, with the same types."""

import asyncio
import base64
import enum
import itertools
import math
import uuid
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from itertools import count
from pathlib import Path
from typing import Any

import bson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo import MongoClient
from pymongo.errors import OperationFailure
from strands import Agent, tool
from strands.multiagent import GraphBuilder
from strands.session.file_session_manager import FileSessionManager
from strands.types.exceptions import SessionException
from strands.types.session import SessionAgent, SessionMessage

from pool_telemetry.sessions import (
    AsyncMongoDBSessionManager,
    MongoDBSessionManager,
    MongoDBSessionRepository,
    SessionConflictError,
    large_messages,
)
from pool_telemetry.sessions.dispatch import run_now
from pool_telemetry.sessions.values import BASE64, MARK, decode, encode
from tests.scripted import ScriptedModel, Step, agent_with
from tests.support import chain, logged, rest_in_bulk

Client = MongoClient[dict[str, Any]]
S, A = "session-1", "agent-1"


@pytest.fixture
def begun(client: Client, database: str) -> MongoDBSessionRepository:
    repository = MongoDBSessionRepository(client, database, prefix="")
    repository.open_session(S)
    repository.create_agent(S, SessionAgent(A, {}, {}))
    return repository


def a_message(number: int, *content: Any) -> SessionMessage:
    return SessionMessage({"role": "user", "content": list(content)}, number)


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal and have the same types, NaN included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        keys = [(type(key), key) for key in one]
        return sorted(map(repr, keys)) == sorted(repr((type(key), key)) for key in other) and all(
            same(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    if isinstance(one, datetime):
        return str(one) == str(other)
    return bool(one == other)


TEXTS = st.text(st.characters(exclude_categories=()), max_size=5)
ODD_KEYS = st.sampled_from(
    ["", "a.b", "$ref", "$id", "$set", "\0", "\ud800", MARK, BASE64, "data", "__proto__"]
)
KEYS = TEXTS | ODD_KEYS | st.integers() | st.booleans() | st.none()
ZONES = st.integers(-86_399, 86_399).map(lambda s: timezone(timedelta(seconds=s)))
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**4000, -0.0])
    | st.floats()
    | TEXTS
    | st.binary(max_size=5)
    | st.datetimes(timezones=st.none() | st.just(UTC) | ZONES, allow_imaginary=False)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def deep(levels: int, kind: str) -> Any:
    value: Any = 2**64
    for _ in range(levels):
        value = {"dict": {"a": value}, "list": [value], "odd": {1: value}}[kind]
    return value


def read_back(begun: MongoDBSessionRepository, number: int, value: Any) -> dict[str, Any]:
    """Store a value in each kind of document, and return what is read back."""
    tool = {"toolUse": {"toolUseId": "1", "name": "t", "input": value}}
    message = a_message(number, tool)
    redacted: Any = [{"text": "", "odd": value}]
    message.redact_message = {"role": "user", "content": redacted}
    begun.create_message(S, A, message)
    begun.update_agent(S, SessionAgent(A, {"x": value}, {"x": value}, {"x": value}))
    begun.update_metadata(S, {"a.b": value})
    begun.add_feedback(S, A, number, {"x": value})
    (listed,) = begun.list_messages(S, A, offset=number)
    read = begun.read_message(S, A, number)
    assert repr(read) == repr(listed)  # NaN is not equal to itself
    agent = begun.read_agent(S, A)
    assert read is not None
    assert read.redact_message is not None
    assert agent is not None
    block: Any = read.message["content"][0]
    (redacted,) = read.redact_message["content"]
    return {
        "message": block["toolUse"]["input"],
        "redaction": redacted["odd"],
        "state": agent.state["x"],
        "conversation manager": agent.conversation_manager_state["x"],
        "internal state": agent._internal_state["x"],
        "list of agents": begun.list_agents(S)[0]["state"]["x"],
        "metadata": begun.get_metadata(S)["a"]["b"],
        "list of sessions": begun.list_sessions()[0].metadata["a"]["b"],
        "feedback": begun.list_feedback(S, A)[-1]["x"],
    }


@pytest.mark.parametrize("examples", rest_in_bulk([15, 100]))
def test_any_value_is_read_back_equal_and_with_its_types(
    examples: int, begun: MongoDBSessionRepository
) -> None:
    numbers = count()

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(VALUES)
    def check(value: Any) -> None:
        for where, found in read_back(begun, next(numbers), value).items():
            assert same(found, value), where

    check()


@settings(max_examples=50)
@given(VALUES)
def test_a_stored_form_is_decoded_to_its_value(value: Any) -> None:
    assert same(decode(encode(value)), value)
    assert same(decode(encode(encode(value))), encode(value))


@pytest.mark.parametrize("kind", rest_in_bulk(["odd", "dict", "list"]))
def test_values_deeper_than_the_servers_limit_are_read_back(
    kind: str, begun: MongoDBSessionRepository, client: Client, database: str
) -> None:
    def levels_of(value: Any) -> int:
        if not isinstance(value, dict | list):
            return 0
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(levels_of, inner), default=0)

    for number, levels in enumerate((70, 79, 80, 81, 200, 400)):
        value = deep(levels, kind)
        for where, found in read_back(begun, number, value).items():
            assert found == value, (where, levels)
        for name in ("sessions", "agents", "messages"):
            assert max(map(levels_of, client[database][name].find())) <= 95


class Colour(enum.Enum):
    RED = "red"


class Word(enum.StrEnum):
    A = "a"


class Number(enum.IntEnum):
    ONE = 1


@dataclass
class Point:
    x: int
    where: Any


Pair = namedtuple("Pair", "a b")
JSON_ABLE: dict[str, Any] = {
    "huge": [2**63, -(2**200), 10**400],
    "numbers as keys": {1: "a", 2.5: "b", None: "c", False: "d"},
    "not finite": [math.nan, math.inf, -math.inf],
    "dots and dollars": {"a.b": 1, "$set": {"$ref": "x", "$id": 2}, "": 3},
    "null bytes": {"\0": "\0"},
    "tuples": (1, (2, [3])),
    "named tuple": Pair(1, 2),
    "dataclass": Point(1, {"deeper": Point(2**70, None)}),
    "subclasses": [Word.A, Number.ONE, OrderedDict(a=1)],
    "bytes": {"a": b"\0\xff", "b": [b""]},
    "deep": deep(250, "dict"),
}


def test_what_a_file_session_manager_stores_is_stored(
    begun: MongoDBSessionRepository, tmp_path: Path
) -> None:
    files = FileSessionManager(S, storage_dir=str(tmp_path))
    for number, (name, value) in enumerate(JSON_ABLE.items()):
        files.create_agent(S, SessionAgent(A, {"x": value}, {}))
        files.create_message(S, A, message := a_message(number, {"text": "", "x": value}))
        begun.create_message(S, A, message)
        begun.update_agent(S, SessionAgent(A, {"x": value}, {}))
        in_files, ours = (each.read_message(S, A, number) for each in (files, begun))
        agent = begun.read_agent(S, A)
        assert in_files is not None
        assert ours is not None
        assert agent is not None
        content: list[Any] = [one.message["content"][0] for one in (in_files, ours)]
        if name == "numbers as keys":  # JSON makes texts of them
            assert content[0]["x"] == {"1": "a", "2.5": "b", "null": "c", "false": "d"}
            assert same(content[1]["x"], value)
        else:
            assert same(*(one["x"] for one in content)), name
        assert same(agent.state["x"], content[1]["x"]), name


def test_ordinary_values_are_stored_as_they_are(
    begun: MongoDBSessionRepository, client: Client, database: str
) -> None:
    """Queries and older releases depend on it."""
    plain: Any = {"a.b": [1, 2**40, 0.5, None, True, "é😀", {"": {}}], "bytes": b"\0"}
    read_back(begun, 0, plain)
    (message,) = client[database]["messages"].find()
    (agent,) = client[database]["agents"].find()
    (session,) = client[database]["sessions"].find()
    assert message["message"]["content"][0]["toolUse"]["input"] == plain
    assert agent["state"] == {"x": plain}
    assert session["metadata"] == {"a": {"b": plain}}
    assert message["feedback"][0]["x"] == plain


def test_documents_of_older_releases_have_bytes_as_base64(
    begun: MongoDBSessionRepository, client: Client, database: str
) -> None:
    old = {"__bytes_encoded__": True, "data": base64.b64encode(b"\0\xff").decode()}
    begun.create_message(S, A, a_message(0, {"text": ""}))
    store = client[database]
    content = [{"image": {"source": {"bytes": old}}}]
    entry = {"created_at": "2026", "x": old}
    store["messages"].update_one({}, {"$set": {"message.content": content, "feedback": [entry]}})
    store["agents"].update_one({}, {"$set": {"state": {"x": old}}})
    store["sessions"].update_one({}, {"$set": {"metadata": {"x": old}}})
    (message,), agent = begun.list_messages(S, A), begun.read_agent(S, A)
    assert message.message["content"] == [{"image": {"source": {"bytes": b"\0\xff"}}}]
    assert agent is not None
    assert agent.state == {"x": b"\0\xff"}
    assert begun.get_metadata(S) == {"x": b"\0\xff"}
    assert begun.list_feedback(S, A)[0]["x"] == b"\0\xff"


def test_metadata_paths_do_not_lead_through_a_value_in_our_own_form(
    begun: MongoDBSessionRepository,
) -> None:
    begun.update_metadata(S, {"a": 2**70, "b": {"c": datetime(2026, 1, 1)}, "d": {1: 2}})
    for path in ("a.x", "a.x.y", "b.c.x"):
        with pytest.raises(SessionException, match="leads through a value"):
            begun.update_metadata(S, {path: 1})
    for path in (MARK, f"a.{MARK}.int", f"x.{BASE64}"):
        with pytest.raises(SessionException, match="metadata path"):
            begun.update_metadata(S, {path: 1})
    begun.update_metadata(S, {"d.x": 3, "a": 1})
    assert begun.get_metadata(S) == {"a": 1, "b": {"c": datetime(2026, 1, 1)}, "d": {1: 2, "x": 3}}


def cyclic() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


UNSTORABLE: list[Callable[[], Any]] = [
    lambda: {"s3cr3t"},
    lambda: lambda: "s3cr3t",
    lambda: {("s3cr3t",): 1},
    lambda: object,
    lambda: uuid.uuid4(),
    cyclic,
]
WRITES: list[Callable[[MongoDBSessionRepository, Any], object]] = [
    lambda begun, value: begun.update_agent(S, SessionAgent(A, {"x": value}, {})),
    lambda begun, value: begun.update_metadata(S, {"x": value}),
    lambda begun, value: begun.add_feedback(S, A, 0, {"x": value}),
    lambda begun, value: begun.open_session("new", metadata={"x": value}),
]


def test_a_value_that_cant_be_stored_is_an_error_that_hides_it(
    begun: MongoDBSessionRepository,
) -> None:
    begun.create_message(S, A, a_message(0, {"text": ""}))
    for make, write in itertools.product(UNSTORABLE, WRITES):
        bad = ["s3cr3t", make()]
        with pytest.raises(SessionException, match="has a value that BSON can't store") as caught:
            write(begun, bad)
        assert "s3cr3t" not in chain(caught.value)
    for write in WRITES:
        write(begun, 1)


MALFORMED: dict[str, Any] = {
    "`message` of type str": "s3cr3t",
    "no `message.content`": {"role": "user"},
    "`message.content` of type object": {"role": "user", "content": object()},
    "`message.content` of type str": {"role": "user", "content": "s3cr3t"},
    "no `message.role`": {"content": [], "s3cr3t": {1}},
    "`message.role` of type set": {"role": {"s3cr3t"}, "content": []},
    "a block of type str in": {"role": "user", "content": ["s3cr3t"]},
    "`message.content.toolUse` of type set": {"role": "user", "content": [{"toolUse": {1}}]},
}


def test_no_document_is_written_that_no_read_accepts(begun: MongoDBSessionRepository) -> None:
    begun.create_message(S, A, first := a_message(0, {"text": "hi"}))
    for words, message in MALFORMED.items():
        for number, write in ((0, begun.update_message), (1, begun.create_message)):
            with pytest.raises(SessionException, match=rf"has {words}[^:]*$") as caught:
                write(S, A, SessionMessage(message, number))
            assert "s3cr3t" not in chain(caught.value)
    odd: Any = "s3cr3t"
    for agent, words in (
        (SessionAgent(A, odd, {}), "`state` of type str"),
        (SessionAgent(A, {}, {"removed_message_count": odd}), "a wrong `conversation_manager_"),
    ):
        for save in (begun.create_agent, begun.update_agent):
            with pytest.raises(SessionException, match=f"has {words}[^:]*$") as caught:
                save(S, agent)
            assert "s3cr3t" not in chain(caught.value)
    assert begun.list_messages(S, A) == [first]
    assert begun.read_agent(S, A) is not None


def test_no_error_has_a_value_in_the_errors_behind_it(
    begun: MongoDBSessionRepository, client: Client, database: str
) -> None:
    """A traceback shows the errors behind an error, and so does a log."""
    begun.create_message(S, A, a_message(0, {"text": ""}))
    agents, state = client[database]["agents"], SessionAgent(A, {"x": "s3cr3t"}, {})

    def restore(**stored: Any) -> None:
        begun.update_agent(S, SessionAgent(A, {}, {}))
        agents.update_one({}, {"$set": stored})
        manager = MongoDBSessionManager(S, client, database_name=database, prefix="")
        agent_with(manager, agent_id=A)

    def validated() -> None:
        only = {"$jsonSchema": {"properties": {"state": {"maxProperties": 0}}}}
        client[database].command("collMod", "agents", validator=only)
        try:
            begun.update_agent(S, state)
        finally:
            client[database].command("collMod", "agents", validator={})

    calls: dict[str, Callable[[], object]] = {
        "too large": lambda: begun.update_metadata(S, {"x": "s3cr3t" * 3_000_000}),
        "exists": lambda: begun.create_agent(S, state),
        "two paths": lambda: begun.update_metadata(S, {"x": 1, "x.s3cr3t": 2}),
        "validator": validated,
        "key": lambda: restore(_internal_state={"interrupt_state": {"s3cr3t": 1}}),
        "name": lambda: restore(conversation_manager_state={"__name__": "s3cr3t"}),
        "value": lambda: restore(state={"x": {MARK: {"s3cr3t": "s3cr3t"}}}),
    }
    for name, call in calls.items():
        with pytest.raises(SessionException) as caught:
            call()
        assert "s3cr3t" not in chain(caught.value), name


# Large messages

IN_PARTS = {"text": "This content is stored in parts."}


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a message large from 10 kB on, too large from 100 kB on, and keep blocks of 1 kB."""
    for name, size in {"INLINE_BYTES": 10_000, "MAX_BYTES": 100_000, "_KEPT_BYTES": 1_000}.items():
        monkeypatch.setattr(large_messages, name, size)


def image(size: int, number: int = 0) -> Any:
    data = number.to_bytes(4, "big") * (size // 4)
    return {"image": {"format": "png", "source": {"bytes": data}}}


def stored(client: Client, database: str, **which: Any) -> list[dict[str, Any]]:
    return list(client[database]["messages"].find(which))


@pytest.mark.parametrize("size", rest_in_bulk([17_000_000, 13_000_000]))
def test_a_13_mb_image_is_one_document_and_a_17_mb_message_has_parts(
    size: int, begun: MongoDBSessionRepository, client: Client, database: str
) -> None:
    message = a_message(0, image(size), {"text": "hi"})
    begun.create_message(S, A, message)
    assert client[database]["messages"].count_documents({}) == (3 if size > 16_000_000 else 1)
    assert begun.list_messages(S, A) == [message]


@pytest.mark.usefixtures("small_limits")
def test_parts_of_messages_are_in_no_list_and_no_sum(
    begun: MongoDBSessionRepository, client: Client, database: str
) -> None:
    messages = [a_message(0, {"text": "hi"})]
    messages += [a_message(n, image(25_000, n), {"text": str(n)}) for n in (1, 2)]
    messages += [a_message(3, {"text": "bye"})]
    usage: Any = {"usage": {"inputTokens": 3}}
    for one in messages:
        one.message["metadata"] = usage
        begun.create_message(S, A, one)
    assert len(stored(client, database)) == 10
    assert begun.list_messages(S, A) == messages
    assert begun.list_messages(S, A, limit=2, offset=1) == messages[1:3]
    assert begun.last_messages(S, A, 3) == messages[1:]
    assert [begun.read_message(S, A, n) for n in range(4)] == messages
    assert run_now(begun.asynchronous.messages_from(S, A, 2)) == messages[2:]
    assert run_now(begun.asynchronous.last_prompts(S, {A: 3})) == {A: 2}
    assert begun.count_messages(S, A) == begun.usage(S).messages == 4
    assert begun.usage(S).input_tokens == 12
    assert begun.latest_message(S) == (A, 3)
    begun.add_feedback(S, A, 2, {"rating": "up"})
    assert [one["message_id"] for one in begun.list_feedback(S, A)] == [2]
    # An older release shows a placeholder: it knows no parts, and filters by these keys.
    (old,) = stored(client, database, session_id=S, agent_id=A, message_id=1)
    assert old["message"]["content"] == [IN_PARTS, {"text": "1"}]
    begun.delete_session(S)
    assert stored(client, database) == []


@pytest.mark.usefixtures("small_limits")
def test_parts_expire_with_their_session(
    client: Client, database: str, begun: MongoDBSessionRepository
) -> None:
    begun.open_session(S, ttl=timedelta(hours=1))
    fresh = MongoDBSessionRepository(client, database, prefix="")  # knows the end
    fresh.create_message(S, A, a_message(0, image(25_000)))
    (session,) = client[database]["sessions"].find()
    assert {one["expires_at"] for one in stored(client, database)} == {session["expires_at"]}
    fresh.open_session(S, ttl=timedelta(hours=9))
    (session,) = client[database]["sessions"].find()
    assert {one["expires_at"] for one in stored(client, database)} == {session["expires_at"]}
    later = a_message(0, image(30_000))
    fresh.update_message(S, A, later)
    assert {one["expires_at"] for one in stored(client, database)} == {session["expires_at"]}
    assert fresh.read_message(S, A, 0) == later


@pytest.mark.usefixtures("small_limits")
def test_parts_of_a_deleted_session_are_not_shown_by_the_next_and_deleted(
    client: Client, database: str, begun: MongoDBSessionRepository
) -> None:
    begun.create_message(S, A, a_message(0, image(25_000)))
    client[database]["sessions"].delete_one({})
    begun.open_session(S)
    assert stored(client, database) == []


@pytest.mark.usefixtures("small_limits")
def test_a_redaction_leaves_no_part_behind(
    begun: MongoDBSessionRepository, client: Client, database: str
) -> None:
    begun.create_message(S, A, a_message(0, image(25_000, 7)))
    begun.create_message(S, A, a_message(1, image(25_000, 8)))
    small = a_message(1, {"text": "redacted"})
    begun.update_message(S, A, small)
    assert begun.read_message(S, A, 1) == small
    assert image(25_000, 8)["image"]["source"]["bytes"][:100] not in b"".join(
        one.get("data", b"") for one in stored(client, database)
    )
    assert begun.read_message(S, A, 0) == a_message_like(begun, 0, image(25_000, 7))
    large = a_message(1, image(30_000, 9))
    begun.update_message(S, A, large)
    assert begun.read_message(S, A, 1) == large
    begun.update_message(S, A, large)
    assert begun.read_message(S, A, 1) == large
    assert len(stored(client, database)) == 2 + 3 + 4


def a_message_like(begun: MongoDBSessionRepository, number: int, *content: Any) -> SessionMessage:
    other, message = begun.read_message(S, A, number), a_message(number, *content)
    assert other is not None
    message.created_at, message.updated_at = other.created_at, other.updated_at
    return message


@pytest.mark.usefixtures("small_limits")
def test_a_message_is_whole_or_absent_after_a_crash_between_its_parts(
    begun: MongoDBSessionRepository, client: Client, database: str, server_uri: str
) -> None:
    message = a_message(0, image(25_000))
    writer = Client(server_uri, appName="crashes", retryWrites=False)
    other = MongoDBSessionRepository(writer, database, prefix="")
    other.read_agent(S, A)
    control = client.admin
    for fails_at in (1, 2, 3):  # the third is the message itself
        data = {"failCommands": ["insert"], "errorCode": 8, "appName": "crashes"}
        control.command("configureFailPoint", "failCommand", mode={"skip": fails_at}, data=data)
        try:
            with pytest.raises(OperationFailure):
                other.create_message(S, A, message)
        finally:
            control.command("configureFailPoint", "failCommand", mode="off")
        assert len(stored(client, database)) == fails_at
        assert begun.list_messages(S, A) == []
        assert begun.count_messages(S, A) == begun.usage(S).messages == 0
    run_now(other.asynchronous.create_message(S, A, message, again=True))
    run_now(other.asynchronous.create_message(S, A, message, again=True))
    assert begun.list_messages(S, A) == [message]
    assert len(stored(client, database)) == 4
    writer.close()


@pytest.mark.usefixtures("small_limits")
def test_a_writer_that_came_second_leaves_no_parts_and_keeps_the_firsts(
    begun: MongoDBSessionRepository, client: Client, database: str
) -> None:
    first, second = a_message(0, image(25_000, 1)), a_message(0, image(25_000, 2))
    begun.create_message(S, A, first)
    for message in (second, first):
        with pytest.raises(SessionConflictError):
            begun.create_message(S, A, message)
        assert len(stored(client, database)) == 4
        assert begun.list_messages(S, A) == [first]


@pytest.mark.usefixtures("small_limits")
def test_a_message_that_lost_its_parts_is_read_as_a_placeholder(
    begun: MongoDBSessionRepository,
    client: Client,
    database: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun.create_message(S, A, a_message(0, image(25_000), {"text": "hi"}))
    client[database]["messages"].delete_one({"_id.part": 1})
    (found,) = begun.list_messages(S, A)
    assert found.message["content"] == [IN_PARTS, {"text": "hi"}]
    assert logged(caplog, f"message 0 of agent {A!r} of session {S!r} has lost its parts")
    begun.update_message(S, A, a_message(0, image(25_000)))
    client[database]["messages"].update_one({"_id.part": 1}, {"$set": {"data": b"other"}})
    with pytest.raises(SessionException, match=r"message 0 of .* has damaged parts"):
        begun.list_messages(S, A)


# Large agents, graphs and swarms


class Chart:
    """A graph or swarm, of which only the state is stored."""

    id = "chart"

    def __init__(self, size: int, fill: str = "x") -> None:
        self.state = {"type": "graph", "node_results": {"a": fill * size}}

    def serialize_state(self) -> dict[str, Any]:
        return self.state


def an_agent(size: int, fill: str = "x") -> SessionAgent:
    agent = SessionAgent(A, {"x": fill * size}, {"removed_message_count": 3})
    agent._internal_state = {"interrupt_state": {"context": fill * size}}
    return agent


@pytest.mark.usefixtures("small_limits")
def test_a_large_agent_and_a_large_graph_have_parts_that_no_query_for_agents_finds(
    begun: MongoDBSessionRepository, client: Client, database: str
) -> None:
    agents, agent, chart = client[database]["agents"], an_agent(15_000), Chart(25_000)
    begun.open_session(S, ttl=timedelta(hours=1))
    begun.update_agent(S, agent)
    begun.create_multi_agent(S, chart)  # type: ignore[arg-type]
    assert begun.read_agent(S, A) == agent
    assert begun.read_multi_agent(S, "chart") == chart.state
    listed = {one["agent_id"]: one for one in begun.list_agents(S)}
    assert listed[A]["_internal_state"] == agent._internal_state
    assert [listed[A]["state"], listed["chart"]["state"]] == [agent.state, chart.state]
    assert [one["state"] for one in agents.find({"kind": {"$exists": True}})] == [{}, {}]
    assert agents.count_documents({"data": {"$exists": True}}) == 4 + 3
    assert agents.count_documents({"agent_id": A}) == 1
    run_now(begun.asynchronous.update_agent(S, an_agent(11_000), conversation=False))
    begun.open_session(S, ttl=timedelta(hours=9))
    (session,) = client[database]["sessions"].find()
    assert {one["expires_at"] for one in agents.find()} == {session["expires_at"]}
    begun.update_multi_agent(S, smaller := Chart(1))  # type: ignore[arg-type]
    assert agents.count_documents({"data": {"$exists": True}}) == 3
    assert begun.read_multi_agent(S, "chart") == smaller.state
    begun.delete_session(S)
    assert agents.count_documents({}) == 0


@pytest.mark.usefixtures("small_limits")
def test_an_agent_is_the_earlier_or_the_later_after_a_crash_between_its_parts(
    begun: MongoDBSessionRepository, client: Client, database: str, server_uri: str
) -> None:
    before, after, agents = an_agent(6_000), an_agent(6_000, "y"), client[database]["agents"]
    begun.update_agent(S, before)
    with Client(server_uri, appName="agent-crashes", retryWrites=False) as writer:
        other = MongoDBSessionRepository(writer, database, prefix="")
        for command, skip, found in (
            ("insert", 0, before),
            ("insert", 1, before),
            ("findAndModify", 0, before),
            ("delete", 0, after),
        ):
            data = {"failCommands": [command], "errorCode": 8, "appName": "agent-crashes"}
            client.admin.command(
                "configureFailPoint", "failCommand", mode={"skip": skip}, data=data
            )
            try:
                with pytest.raises(OperationFailure):
                    other.update_agent(S, after)
            finally:
                client.admin.command("configureFailPoint", "failCommand", mode="off")
            assert (read := begun.read_agent(S, A)) is not None
            assert read.state == found.state
        other.update_agent(S, before)
    assert begun.read_agent(S, A) == before
    # The other parts are those of the crashes, which are deleted with the session.
    begun.delete_session(S)
    assert agents.count_documents({}) == 0


@pytest.mark.usefixtures("small_limits")
def test_an_agent_that_lost_its_parts_is_an_error_and_no_empty_agent(
    begun: MongoDBSessionRepository, client: Client, database: str
) -> None:
    begun.update_agent(S, an_agent(15_000))
    client[database]["agents"].delete_one({"_id.part": 1})
    for read in (lambda: begun.read_agent(S, A), lambda: begun.list_agents(S)):
        with pytest.raises(SessionException, match=r"agent 'agent-1' of .* has lost its parts"):
            read()
    begun.update_agent(S, later := an_agent(12_000))
    assert begun.read_agent(S, A) == later


@pytest.mark.usefixtures("small_limits")
def test_of_two_writers_of_a_large_agent_the_second_leaves_no_parts(
    begun: MongoDBSessionRepository, client: Client, database: str
) -> None:
    begun.create_multi_agent(S, first := Chart(25_000))  # type: ignore[arg-type]
    with pytest.raises(SessionConflictError):
        begun.create_multi_agent(S, Chart(25_000))  # type: ignore[arg-type]
    assert client[database]["agents"].count_documents({"data": {"$exists": True}}) == 3
    assert begun.read_multi_agent(S, "chart") == first.state


@tool
def fetch() -> str:
    """Return a large text."""
    return "x" * 25_000


@tool(context=True)
def ask(tool_context: Any) -> str:
    """Ask the user."""
    return str(tool_context.interrupt("sure?"))


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("awaited", rest_in_bulk([True, False]))
def test_no_large_state_ends_a_turn(awaited: bool, client: Client, database: str) -> None:
    """Neither an interrupt beside a large result, nor an agent's state, nor a graph's."""
    names: dict[str, Any] = {"client": client, "database_name": database, "prefix": ""}

    async def manager(name: str) -> Any:
        if awaited:
            return await AsyncMongoDBSessionManager.open(name, **names)
        return MongoDBSessionManager(name, **names)

    def check_sizes() -> None:
        sizes = [len(bson.encode(one)) for one in client[database]["agents"].find()]
        assert 10_000 < max(sizes) < 12_000

    async def turn(prompt: Any, *steps: Step, large: bool = False) -> Any:
        agent = agent_with(await manager("chat"), *steps, tools=[fetch, ask])
        if large:
            agent.state.set("large", "y" * 25_000)
        result = await agent.invoke_async(prompt)
        check_sizes()
        return agent, result

    async def talk() -> None:
        _, paused = await turn("go", {"tools": ["fetch", "ask"]}, large=True)
        assert paused.stop_reason == "interrupt"
        answer = {"interruptId": paused.interrupts[0].id, "response": "yes"}
        agent, result = await turn([{"interruptResponse": answer}], "done")
        assert result.stop_reason == "end_turn"
        assert agent.state.get("large") == "y" * 25_000
        results = [block["toolResult"]["content"] for block in agent.messages[2]["content"]]
        assert sorted(one[0]["text"][:3] for one in results) == ["xxx", "yes"]
        builder = GraphBuilder().set_max_node_executions(1)
        builder.add_node(Agent(model=ScriptedModel(["z" * 25_000]), callback_handler=None), "a")
        builder.set_session_manager(await manager("graph"))
        assert (await builder.build().invoke_async("go")).status.value == "completed"
        check_sizes()

    asyncio.run(talk())


# A message that can't be stored


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("large", [True, False])
def test_a_message_that_cant_be_stored_is_a_placeholder_with_its_tool_calls(
    large: bool, begun: MongoDBSessionRepository, caplog: pytest.LogCaptureFixture
) -> None:
    bad: Any = "s3cr3t" * 50_000 if large else {"s3cr3t"}
    content = [
        {"text": "kept"},
        {"text": bad},
        {"toolUse": {"toolUseId": "1", "name": "t", "input": {"a": bad}}},
        {"toolUse": {"toolUseId": "2", "name": "t", "input": {"a": 1}}},
        {"toolResult": {"toolUseId": "3", "status": "error", "content": [{"json": bad}]}},
    ]
    message = a_message(0, *content)
    begun.create_message(S, A, message)
    assert message.message["content"] == content  # the agent keeps it
    (found,) = begun.list_messages(S, A)
    reason = "was too large to store" if large else "has a value that can't be stored"
    words = f"This content {reason}."
    assert found.message == {
        "role": "user",
        "content": [
            content[0],
            {"text": words},
            {"toolUse": {"toolUseId": "1", "name": "t", "input": {}}},
            content[3],
            {"toolResult": {"toolUseId": "3", "status": "error", "content": [{"text": words}]}},
        ],
    }
    assert logged(caplog, f"message 0 of agent {A!r} of session {S!r} {reason}")
    assert "s3cr3t" not in caplog.text
    begun.update_message(S, A, message)
    assert begun.list_messages(S, A)[0].message == found.message


@tool
def load(what: str) -> dict[str, Any]:
    """Load something."""
    values: dict[str, Any] = {
        "large": {"text": "x" * 50_000},
        "too large": {"text": "x" * 200_000},
        "unstorable": {"json": {"x": {1, 2}}},
        "odd": {"json": {"x": 2**70, "y": {1: 2}}},
    }
    return {"status": "success", "content": [values[what]]}


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("what", ["large", "too large", "unstorable", "odd"])
@pytest.mark.parametrize("awaited", rest_in_bulk([True, False]))
def test_no_result_of_a_tool_ends_the_turn(
    awaited: bool, what: str, begun: MongoDBSessionRepository, client: Client, database: str
) -> None:
    def conversation(*steps: Step, prompt: str) -> Any:
        kwargs: Any = {"client": client, "database_name": database, "prefix": ""}
        if not awaited:
            agent = agent_with(MongoDBSessionManager("chat", **kwargs), *steps, tools=[load])
            agent(prompt)
            return agent.messages

        async def talk() -> Any:
            manager = await AsyncMongoDBSessionManager.open("chat", **kwargs)
            agent = agent_with(manager, *steps, tools=[load])
            await agent.invoke_async(prompt)
            return agent.messages

        return asyncio.run(talk())

    before = conversation({"tool": "load", "input": {"what": what}}, "fine", prompt="load it")
    after = conversation("again", prompt="go on")
    assert [one["role"] for one in after] == ["user", "assistant"] * 3
    ids = [
        block[kind]["toolUseId"]
        for message, kind in ((after[1], "toolUse"), (after[2], "toolResult"))
        for block in message["content"]
    ]
    assert ids == ["call-1", "call-1"]
    if what in ("large", "odd"):
        assert after[:4] == before
