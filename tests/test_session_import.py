"""Sessions of mongodb-session-manager, written as its release 0.9 writes them, become ours."""

import copy
import io
import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import ANY

import pytest
from bson import Int64
from pymongo import MongoClient, monitoring
from pymongo.errors import PyMongoError
from strands.types.exceptions import SessionException
from strands.types.session import Session, SessionType

from pool_telemetry import PoolConfigurationError, cli
from pool_telemetry.cli import import_sessions as command
from pool_telemetry.sessions import (
    ImportReport,
    MongoDBSessionManager,
    MongoDBSessionRepository,
    SessionOwnerError,
    import_sessions,
    importer,
)
from tests.scripted import agent_with, texts
from tests.support import failing, rest_in_bulk

Document = dict[str, Any]
Client = MongoClient[Document]
S, A, B = "user-alice-chat", "support-agent", "translator"
BEGIN = datetime(2024, 1, 15, 9, 0, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return BEGIN + timedelta(minutes=minutes)


def a_message(number: int, role: str, *content: Any, minutes: float, **more: Any) -> Document:
    """Return a message as that library's `create_message` stores it."""
    return {
        "message": {"role": role, "content": list(content)},
        "message_id": number,
        "redact_message": None,
        "created_at": at(minutes),
        "updated_at": at(minutes),
        **more,
    }


METRICS = {
    "accumulated_metrics": {"latencyMs": 245, "timeToFirstByteMs": 90},
    "accumulated_usage": {
        "inputTokens": 28,
        "outputTokens": 24,
        "totalTokens": 52,
        "cacheReadInputTokens": 3,
        "cacheWriteInputTokens": 0,
    },
    "cycle_metrics": {"cycle_count": 1, "total_duration": 0.4, "average_cycle_time": 0.4},
    "tool_usage": {"search": {"call_count": 1, "success_count": 1, "error_count": 0}},
}


def an_agent(name: str, *messages: Document, **more: Any) -> Document:
    """Return an agent as that library's `create_agent` and `sync_agent` store it."""
    return {
        "agent_data": {
            "agent_id": name,
            "state": {"plan": "pro", "seen": Int64(3)},
            "conversation_manager_state": {
                "__name__": "SlidingWindowConversationManager",
                "removed_message_count": 0,
                "model_call_count": 2,
            },
            "_internal_state": {
                "interrupt_state": {"interrupts": {}, "context": {}, "activated": False},
                "model_state": {},
            },
            "created_at": at(0),
            "updated_at": at(9),
            "model": "claude-3-sonnet",
            "system_prompt": "You are helpful.",
            **more,
        },
        "messages": list(messages),
        "created_at": at(0),
        "updated_at": at(9),
    }


def a_session(name: str = S, **more: Any) -> Document:
    """Return a session as that library's `create_session` stores it, with two agents."""
    call = {"toolUse": {"toolUseId": "1", "name": "search", "input": {"a.b": 1}}}
    result = {"toolResult": {"toolUseId": "1", "status": "success", "content": [{"text": "ok"}]}}
    blocked = {"role": "user", "content": [{"text": "[redacted]"}]}
    support = an_agent(
        A,
        a_message(0, "user", {"text": "I have a question"}, minutes=1),
        a_message(1, "assistant", call, minutes=2),
        a_message(2, "user", result, minutes=3),
        a_message(3, "assistant", {"text": "Here it is"}, minutes=4, event_loop_metrics=METRICS),
        a_message(
            4,
            "user",
            {"text": "my password is s3cr3t"},
            {"image": {"format": "png", "source": {"bytes": b"\x89PNG\xff"}}},
            minutes=5,
            redact_message=blocked,
            guardrail_event={"action": "BLOCKED", "timestamp": at(5)},
        ),
        a_message(5, "assistant", {"text": "I can't help with that."}, minutes=6),
    )
    other = an_agent(B, a_message(0, "user", {"text": "Translate"}, minutes=4.5))
    return {
        "_id": name,
        "session_id": name,
        "application_name": "shop",
        "session_type": "AGENT",
        "session_viewer_password": "v13w3r",
        "created_at": at(0),
        "updated_at": at(9),
        "agents": {A: support, B: other},
        "metadata": {"user_id": "ann", "tags": ["new"], "customer": {"plan": "pro"}},
        "feedbacks": [
            {"rating": "up", "comment": "helpful", "created_at": at(4.2)},
            {"rating": "down", "comment": "why?", "created_at": at(60)},
            {"rating": None, "comment": "early", "created_at": at(-5)},
            {"rating": "up", "message_id": 1, "agent_id": A, "created_at": at(60)},
        ],
        "guardrail_events": [{"message_id": 4, "agent_id": A, "action": "BLOCKED"}],
        **more,
    }


@pytest.fixture
def client(server_uri: str) -> Iterator[Client]:
    with Client(server_uri, appName="import") as client:
        yield client


@pytest.fixture
def names(client: Client) -> Iterator[tuple[str, str]]:
    pair = (f"theirs_{uuid.uuid4().hex[:12]}", f"ours_{uuid.uuid4().hex[:12]}")
    yield pair
    for name in pair:
        client.drop_database(name)


@pytest.fixture
def source(client: Client, names: tuple[str, str]) -> Any:
    return client[names[0]]["chat_sessions"]


@pytest.fixture
def repository(client: Client, names: tuple[str, str]) -> MongoDBSessionRepository:
    return MongoDBSessionRepository(client, names[1], prefix="")


def everything(client: Client, database: str) -> Document:
    return {
        name: sorted(client[database][name].find(), key=repr)
        for name in sorted(client[database].list_collection_names())
    }


def test_a_session_is_imported_with_all_that_it_has(
    client: Client, names: tuple[str, str], source: Any, repository: MongoDBSessionRepository
) -> None:
    source.insert_one(a_session())
    before = everything(client, names[0])
    report = import_sessions(source, repository, user_key="user_id")
    assert report == ImportReport(total=1, imported=1, messages=7)
    assert everything(client, names[0]) == before
    (info,) = repository.list_sessions(application="shop", user="ann")
    assert (info.created_at, info.updated_at) == (at(0).isoformat(), at(9).isoformat())
    assert info.metadata == a_session()["metadata"]
    with pytest.raises(SessionOwnerError):
        repository.read_session(S, user="eve")
    agent = repository.read_agent(S, A)
    assert agent is not None
    stored = a_session()["agents"][A]["agent_data"]
    assert agent.state == stored["state"]
    assert agent.conversation_manager_state == stored["conversation_manager_state"]
    assert agent._internal_state == stored["_internal_state"]
    assert (agent.created_at, agent.updated_at) == (at(0).isoformat(), at(9).isoformat())
    messages = repository.list_messages(S, A)
    theirs = a_session()["agents"][A]["messages"]
    assert [one.message_id for one in messages] == [0, 1, 2, 3, 4, 5]
    assert [one.message["content"] for one in messages] == [
        one["message"]["content"] for one in theirs
    ]
    assert messages[4].to_message()["content"] == [{"text": "[redacted]"}]
    assert messages[4].created_at == at(5).isoformat()
    assert messages[3].message["metadata"] == {
        "usage": METRICS["accumulated_usage"],
        "metrics": METRICS["accumulated_metrics"],
        "custom": {"event_loop_metrics": METRICS},
    }
    usage = repository.usage(S)
    assert (usage.messages, usage.input_tokens, usage.latency_ms) == (7, 28, 245)
    assert "v13w3r" not in repr(everything(client, names[1]))


def test_feedback_is_on_the_message_that_it_names_or_the_latest_before_it(
    source: Any, repository: MongoDBSessionRepository
) -> None:
    source.insert_one(a_session())
    import_sessions(source, repository)
    found = repository.list_feedback(S, A)
    assert [(one["message_id"], one["rating"], one.get("comment")) for one in found] == [
        (0, None, "early"),
        (1, "up", None),
        (3, "up", "helpful"),
        (5, "down", "why?"),
    ]
    assert found[3]["created_at"] == at(60).isoformat()


def test_an_agent_goes_on_with_an_imported_session(
    client: Client, names: tuple[str, str], source: Any, repository: MongoDBSessionRepository
) -> None:
    source.insert_one(a_session())
    import_sessions(source, repository, user_key="user_id")
    manager = MongoDBSessionManager(
        S, client, database_name=names[1], prefix="", application="shop", user="ann"
    )
    agent = agent_with(manager, "Good bye.", agent_id=A)
    assert agent.state.get("plan") == "pro"
    agent("That is all")
    assert texts(agent)[-2:] == ["user: That is all", "assistant: Good bye."]
    assert [one.message_id for one in repository.list_messages(S, A)] == [*range(8)]
    # A later run leaves the session as it is now.
    assert import_sessions(source, repository) == ImportReport(total=1, present=1)
    assert repository.count_messages(S, A) == 8


def old_form(document: Document) -> None:
    """Store messages as that project's documentation shows them."""
    agent = document["agents"][A]
    agent["messages"] = [
        {"message_id": 1, "role": "user", "content": "Hi", "created_at": at(1)},
        {
            "message_id": 2,
            "role": "assistant",
            "content": "Hello!",
            "created_at": at(2),
            "latency_ms": 312,
            "input_tokens": 89,
            "output_tokens": 18,
        },
    ]
    agent["agent_data"]["conversation_manager_state"] = {}
    agent["agent_data"]["created_at"] = "2024-01-15T09:00:00.000Z"


def test_messages_of_the_documented_form_are_imported(
    client: Client, names: tuple[str, str], source: Any, repository: MongoDBSessionRepository
) -> None:
    source.insert_one(document := a_session())
    old_form(document)
    source.replace_one({"_id": S}, document)
    assert import_sessions(source, repository).imported == 1
    manager = MongoDBSessionManager(S, client, database_name=names[1], prefix="")
    agent = agent_with(manager, agent_id=A)
    assert texts(agent) == ["user: Hi", "assistant: Hello!"]
    assert repository.usage(S).input_tokens == 89


def test_two_messages_with_one_number_are_both_imported_in_their_order(
    source: Any, repository: MongoDBSessionRepository
) -> None:
    document = a_session()
    document["agents"][A]["messages"][3]["message_id"] = 2
    # A host's clock was behind when it stored the last message.
    document["agents"][A]["messages"][5]["created_at"] = at(0.5)
    source.insert_one(document)
    import_sessions(source, repository)
    contents = [one.message["content"] for one in repository.list_messages(S, A)]
    assert contents == [one["message"]["content"] for one in document["agents"][A]["messages"]]


# It is stored as a report of the model and as that library's own record.
HUGE = {"accumulated_usage": {"note": "x" * 9_000_000}}
UNREADABLE = {"role": "user", "content": [], "tracking_id": 7}
MANAGER = {"__name__": "SlidingWindowConversationManager"}
ODD: dict[str, tuple[Document, str]] = {
    "no agents": ({"agents": None}, "no agents"),
    "id": ({"session_id": "other"}, "session_id is not its _id"),
    "slash": ({"_id": "a/b", "session_id": "a/b"}, "contains '/'"),
    "agent": ({"agents": {"a": {"b": {"agent_data": {}}}}}, "agent 'a' has no agent_data"),
    "text": ({"agents": {"a": "x"}}, "agent 'a' is str"),
    "created": ({"created_at": None}, "created_at is missing"),
    "time": ({"created_at": "yesterday s3cr3t"}, "created_at is no time"),
    "metadata": ({"metadata": [1]}, "metadata is list"),
    "feedback": ({"feedbacks": ["good"]}, "feedback 0 is str"),
    "name": ({"application_name": "a/b"}, "application 'a/b' contains '/'"),
    "role": (
        {"agents": {A: an_agent(A, a_message(0, "system", {"text": "x"}, minutes=0))}},
        "role is neither user nor assistant",
    ),
    "content": (
        {"agents": {A: an_agent(A, a_message(0, "user", 3, minutes=0))}},
        "message 0 of agent 'support-agent': content is no list of blocks",
    ),
    "message": (
        {"agents": {A: an_agent(A, a_message(0, "user", minutes=0, message=UNREADABLE))}},
        "message 0 of agent 'support-agent' has `message.tracking_id` of type int",
    ),
    "tool": (
        {"agents": {A: an_agent(A, a_message(0, "assistant", {"toolUse": {}}, minutes=0))}},
        "message 0 of agent 'support-agent': a toolUse has no valid toolUseId",
    ),
    "result": (
        {
            "agents": {
                A: an_agent(A, a_message(0, "user", {"toolResult": {"toolUseId": "1"}}, minutes=0))
            }
        },
        "message 0 of agent 'support-agent': a toolResult has no valid content",
    ),
    "count": (
        {
            "agents": {
                A: an_agent(
                    A, conversation_manager_state={**MANAGER, "removed_message_count": "s3cr3t"}
                )
            }
        },
        "agent 'support-agent' has a wrong `conversation_manager_state.removed_message_count`",
    ),
    "large": (
        {"agents": {A: an_agent(A, a_message(0, "user", {}, minutes=0, event_loop_metrics=HUGE))}},
        "larger than MongoDB's limit",
    ),
}


@pytest.mark.parametrize(
    ("counts", "count"),
    [
        ({"removed_message_count": 4.0}, 4),
        ({"removed_message_count": -1}, 0),
        ({"removed_message_count": None, "model_call_count": 3.0}, 0),
        ({}, 0),
    ],
)
def test_a_count_of_removed_messages_is_a_whole_number(
    counts: Document,
    count: int,
    client: Client,
    names: tuple[str, str],
    source: Any,
    repository: MongoDBSessionRepository,
) -> None:
    source.insert_one(document := a_session())
    state = {**MANAGER, **counts}
    change = {f"agents.{A}.agent_data.conversation_manager_state": state}
    source.update_one({"_id": S}, {"$set": change})
    assert import_sessions(source, repository).reasons == {}
    agent = agent_with(
        MongoDBSessionManager(S, client, database_name=names[1], prefix=""), agent_id=A
    )
    assert agent.conversation_manager.removed_message_count == count
    assert len(agent.messages) == len(document["agents"][A]["messages"]) - count


def test_a_user_is_a_text_or_an_integer(source: Any, repository: MongoDBSessionRepository) -> None:
    users = {"a": "ann", "b": 0, "c": Int64(7), "d": "", "e": 1.5, "f": True, "g": {"id": "s3cr3t"}}
    source.insert_many(a_session(name, metadata={"uid": user}) for name, user in users.items())
    source.insert_one(a_session("h", metadata={}))
    report = import_sessions(source, repository, user_key="uid")
    stored = {one.session_id: one.user for one in repository.list_sessions()}
    assert stored == {"a": "ann", "b": "0", "c": "7", "d": None, "h": None}
    assert (report.imported, report.without_user) == (5, 2)
    assert report.reasons == {
        name: f"its metadata has no user in 'uid': user is {kind}, not str"
        for name, kind in {"e": "float", "f": "bool", "g": "dict"}.items()
    }


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_document_is_refused_alone(
    odd: str,
    client: Client,
    names: tuple[str, str],
    source: Any,
    repository: MongoDBSessionRepository,
) -> None:
    change, reason = ODD[odd]
    document = a_session("odd", **change)
    if change.get("agents", "") is None:
        del document["agents"]
    source.insert_many([a_session("first"), document, a_session("zzz")])
    dry = import_sessions(source, repository, dry_run=True)
    assert (report := import_sessions(source, repository)) == dry
    assert (report.imported, report.refused) == (2, 1)
    assert reason in report.reasons[document["_id"]]
    assert "s3cr3t" not in repr(report)
    assert {one["session_id"] for one in client[names[1]]["messages"].find()} == {"first", "zzz"}


def test_an_id_that_is_no_text_is_refused(
    source: Any, repository: MongoDBSessionRepository
) -> None:
    source.insert_many([{**a_session(), "_id": 7}, a_session()])
    report = import_sessions(source, repository)
    assert (report.imported, report.reasons) == (1, {"7": "its _id is no text"})


def test_a_session_that_was_not_imported_is_left_as_it_is(
    client: Client, names: tuple[str, str], source: Any, repository: MongoDBSessionRepository
) -> None:
    repository.create_session(Session(S, SessionType.AGENT))
    client[names[1]]["sessions"].insert_one(theirs := a_session("theirs"))
    source.insert_many([a_session(), theirs])
    before = everything(client, names[1])
    report = import_sessions(source, repository)
    assert everything(client, names[1]) == before
    assert (report.imported, report.refused) == (0, 2)
    assert "its own" in report.reasons[S]
    assert "use another prefix" in report.reasons["theirs"]


def test_a_collection_is_not_imported_into_itself(
    client: Client, names: tuple[str, str], repository: MongoDBSessionRepository
) -> None:
    with pytest.raises(PoolConfigurationError, match="another prefix="):
        import_sessions(client[names[1]]["sessions"], repository)


def test_another_sessions_collection_of_the_same_database_is_a_source(
    client: Client, names: tuple[str, str], repository: MongoDBSessionRepository
) -> None:
    """The prefix keeps them apart."""
    client[names[1]]["chats"].insert_one(a_session())
    assert import_sessions(client[names[1]]["chats"], repository).imported == 1


COMMANDS = ["insert", "update", "delete", "aggregate", "find"]


def run_killed_at(failed: int, server_uri: str, names: tuple[str, str]) -> None:
    """Import until a command fails, and write nothing after it, as a killed run."""
    control = MongoClient[Document](server_uri)
    point = {"failCommands": COMMANDS, "appName": "killed", "closeConnection": True}
    with Client(server_uri, appName="killed", retryWrites=False, retryReads=False) as broken:
        mode = {"skip": failed - 1}
        killed = MongoDBSessionRepository(broken, names[1], prefix="")
        control.admin.command("configureFailPoint", "failCommand", mode=mode, data=point)
        try:
            with pytest.raises(PyMongoError):
                import_sessions(broken[names[0]]["chat_sessions"], killed)
        finally:
            control.admin.command("configureFailPoint", "failCommand", mode="off")
            control.close()


class Pause(monitoring.CommandListener):
    """Calls a function when a client sends its Nth command."""

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        self._left, self._act = number, act

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self._left -= event.command_name in COMMANDS
        if self._left == 0:
            self._left = -1
            self._act()

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass

    @property
    def is_over(self) -> bool:
        return self._left < 0


@pytest.mark.parametrize(("killed", "source_changes"), [(None, False), (None, True), (7, True)])
@pytest.mark.parametrize("pause", rest_in_bulk([7, 3, 4, 5, 6, 8]))
def test_two_runs_at_once_leave_a_whole_session(
    pause: int,
    killed: int | None,
    source_changes: bool,
    server_uri: str,
    client: Client,
    names: tuple[str, str],
    source: Any,
    repository: MongoDBSessionRepository,
) -> None:
    """The second run is at work, or is killed, between any two commands of the first run."""
    source.insert_one(a_session())
    said = []

    def run() -> None:
        if source_changes:
            more = a_message(6, "assistant", {"text": "Are you there?"}, minutes=7)
            source.update_one({"_id": S}, {"$push": {f"agents.{A}.messages": more}})
        if killed:
            run_killed_at(killed, server_uri, names)
            return
        assert import_sessions(source, repository) == ImportReport(
            total=1, imported=1, messages=ANY
        )
        manager = MongoDBSessionManager(
            S, client, database_name=names[1], prefix="", application="shop", user=None
        )
        agent_with(manager, "Good bye.", agent_id=A)("That is all")
        said.extend(["user: That is all", "assistant: Good bye."])

    listener = Pause(pause, run)
    with Client(server_uri, event_listeners=[listener]) as first:
        slow = MongoDBSessionRepository(first, names[1], prefix="")
        report = import_sessions(first[names[0]]["chat_sessions"], slow)
    assert listener.is_over
    assert (report.imported + report.present, report.refused) == (1, 0)
    numbers = [one.message_id for one in repository.list_messages(S, A)]
    assert len(numbers) in (6 + len(said), 6 + len(said) + source_changes)
    assert numbers == [*range(len(numbers))]
    assert repository.count_messages(S, B) == 1
    stored = everything(client, names[1])
    runs = {one["imported"]["run"] for many in stored.values() for one in many if "imported" in one}
    assert len(runs) == 1
    agent = agent_with(
        MongoDBSessionManager(S, client, database_name=names[1], prefix=""), agent_id=A
    )
    assert texts(agent)[len(texts(agent)) - len(said) :] == said


def test_a_session_that_other_runs_keep_at_is_left_to_the_next_run(
    server_uri: str,
    names: tuple[str, str],
    source: Any,
    repository: MongoDBSessionRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importer, "_TRIES", 1)
    source.insert_one(a_session())

    def run() -> None:
        source.update_one({"_id": S}, {"$set": {"metadata.changed": True}})
        run_killed_at(9, server_uri, names)

    with Client(server_uri, event_listeners=[Pause(6, run)]) as first:
        slow = MongoDBSessionRepository(first, names[1], prefix="")
        report = import_sessions(first[names[0]]["chat_sessions"], slow)
    assert "run the import again" in report.reasons[S]
    assert import_sessions(source, repository).imported == 1
    assert repository.get_metadata(S)["changed"] is True
    assert repository.count_messages(S, A) == 6


@pytest.mark.parametrize("cause", ["leftover", "validator"])
def test_a_refused_session_leaves_nothing(
    cause: str,
    client: Client,
    names: tuple[str, str],
    source: Any,
    repository: MongoDBSessionRepository,
) -> None:
    source.insert_one(a_session())
    messages = client[names[1]]["messages"]
    leftover = {"_id": {"session_id": S, "agent_id": A, "message_id": 5}, "session_id": S}
    if cause == "leftover":
        messages.insert_one(leftover)
    else:
        client[names[1]].command({"collMod": "messages", "validator": {"message_id": {"$lt": 5}}})
    before = everything(client, names[1])
    reason = {"leftover": "of a deleted session", "validator": "refused a document (code 121)"}
    assert reason[cause] in import_sessions(source, repository).reasons[S]
    assert everything(client, names[1]) == before


def test_no_session_is_opened_before_it_is_whole(
    server_uri: str,
    client: Client,
    names: tuple[str, str],
    source: Any,
    repository: MongoDBSessionRepository,
) -> None:
    source.insert_one(a_session())
    run_killed_at(7, server_uri, names)
    assert client[names[1]]["agents"].count_documents({}) == 2
    for use in (repository.open_session, repository.read_session, repository.delete_session):
        with pytest.raises(SessionException, match="not wholly imported yet: run"):
            use(S)
    assert repository.list_sessions() == []
    assert import_sessions(source, repository).imported == 1
    assert repository.open_session(S)[1] is False


@pytest.mark.parametrize(
    "failed", rest_in_bulk([7, 10, *range(1, 7), 8, 9, *range(11, 14)], keep=2)
)
def test_a_run_that_ends_at_any_command_is_finished_by_the_next(
    failed: int,
    server_uri: str,
    client: Client,
    names: tuple[str, str],
    source: Any,
    repository: MongoDBSessionRepository,
) -> None:
    every = [a_session(f"s{number}") for number in range(2)]
    source.insert_many(copy.deepcopy(every))
    run_killed_at(failed, server_uri, names)
    # No session looks complete unless it is.
    for info in repository.list_sessions():
        assert repository.count_messages(info.session_id, A) == 6
    report = import_sessions(source, repository)
    assert (report.imported + report.present, report.refused) == (2, 0)
    for document in every:
        assert [one.message_id for one in repository.list_messages(document["_id"], A)] == [
            *range(6)
        ]
        assert repository.count_messages(document["_id"], B) == 1
    before = everything(client, names[1])
    assert import_sessions(source, repository) == ImportReport(total=2, present=2)
    assert everything(client, names[1]) == before


def test_a_session_that_another_program_creates_meanwhile_is_left(
    client: Client,
    names: tuple[str, str],
    source: Any,
    repository: MongoDBSessionRepository,
) -> None:
    source.insert_many([a_session("a"), a_session("b")])

    def open_b(report: ImportReport) -> None:
        if report.done == 1:
            repository.open_session("b")

    report = import_sessions(source, repository, on_progress=open_b)
    assert (report.imported, report.reasons) == (
        1,
        {"b": "the target has a session of this id that is its own"},
    )
    assert repository.count_messages("b", A) == 0
    assert client[names[1]]["agents"].count_documents({"session_id": "b"}) == 0


def test_many_sessions_are_imported_in_batches(
    source: Any, repository: MongoDBSessionRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "_BATCH", 4)
    source.insert_many({**a_session(f"s{number}"), "agents": {}} for number in range(9))
    seen: list[int] = []
    report = import_sessions(
        source, repository, on_progress=lambda report: seen.append(report.done)
    )
    assert (report.imported, report.present) == (9, 0)
    assert seen == [*range(1, 10)]
    assert import_sessions(source, repository).present == 9


def test_feedback_of_a_session_without_messages_is_kept(
    client: Client, names: tuple[str, str], source: Any, repository: MongoDBSessionRepository
) -> None:
    source.insert_one({**a_session(), "agents": {}})
    import_sessions(source, repository)
    stored = client[names[1]]["sessions"].find_one({"_id": S})
    assert stored is not None
    assert [one["comment"] for one in stored["imported"]["rest"]["feedbacks"][:2]] == [
        "helpful",
        "why?",
    ]


def test_a_dry_run_writes_nothing_and_reports_all(
    client: Client, names: tuple[str, str], source: Any, repository: MongoDBSessionRepository
) -> None:
    source.insert_many([a_session(), a_session("odd", metadata=3)])
    report = import_sessions(source, repository, dry_run=True)
    assert (report.imported, report.refused) == (1, 1)
    assert repository.list_sessions() == []
    assert client[names[1]]["messages"].count_documents({}) == 0


# The command


def arguments(uri: str, names: tuple[str, str], *more: str) -> list[str]:
    options = ["--database", names[0], "--collection", "chat_sessions", "--target-database"]
    return ["import-sessions", uri, *options, names[1], *more]


def test_the_command_imports_and_says_what_it_did(
    server_uri: str,
    names: tuple[str, str],
    source: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source.insert_many([a_session(), a_session("odd", metadata=3)])
    monkeypatch.setattr(command, "LINE_SECONDS", 0.0)
    assert cli.main(arguments(server_uri, names, "--dry-run")) == 1
    assert "1 sessions would be imported (7 messages)" in capsys.readouterr().out
    assert cli.main(arguments(server_uri, names, "--user-key", "user_id")) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "1 sessions imported (7 messages), 0 already there, 1 refused",
        "1 refused, metadata is int: 'odd'",
    ]
    assert shown.err.splitlines()[-1] == "2 of 2 sessions, 1 refused"
    source.delete_one({"_id": "odd"})
    assert cli.main(arguments(server_uri, names, "--json")) == 0
    assert json.loads(capsys.readouterr().out) == {
        "total": 1,
        "imported": 0,
        "messages": 0,
        "present": 1,
        "refused": 0,
        "without_user": 0,
        "reasons": {},
        "dry_run": False,
    }


def test_the_command_groups_the_reasons_and_counts_sessions_without_a_user(
    server_uri: str, names: tuple[str, str], source: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    source.insert_many([a_session(f"odd-{number}", metadata=3) for number in range(5)])
    source.insert_many([a_session(), a_session("x" * 600)])
    assert cli.main(arguments(server_uri, names, "--user-key", "uid")) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "1 sessions imported (7 messages), 0 already there, 6 refused",
        "1 of them have no user: any caller that knows the id opens them",
        "5 refused, metadata is int: 'odd-0', 'odd-1', 'odd-2' and 2 more",
    ]
    assert len(lines) == 4
    assert "more than 512 bytes: 'xxx" in lines[3]
    assert len(lines[3]) < 200


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_the_command_refuses_a_source_without_documents(
    more: list[str],
    server_uri: str,
    client: Client,
    names: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(arguments(server_uri, names, *more)) == 1
    words = f"has no documents in {names[0]}.chat_sessions: check --database and --collection"
    assert words in capsys.readouterr().err
    assert not {*names} & {*client.list_database_names()}


@pytest.mark.parametrize(
    ("uri", "database"), [("mongo://127.0.0.1/", "d"), ("", "a b"), ("", "a$b"), ("", "")]
)
def test_the_command_promises_no_repeat_after_a_wrong_argument(
    uri: str,
    database: str,
    server_uri: str,
    names: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = arguments(uri or server_uri, names, "--database", database)
    assert cli.main(words) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "goes on" not in shown


def test_the_command_draws_a_bar_on_a_terminal(
    server_uri: str, names: tuple[str, str], source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    source.insert_many([a_session("a"), a_session("b")])
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    assert cli.main(arguments(server_uri, names)) == 0
    last = terminal.getvalue().split("\r")[-1]
    assert last == f"[{'#' * 30}] 2 of 2 sessions, 0 refused \n"


@pytest.mark.parametrize("place", ["argument", "environment", "input"])
def test_the_command_never_shows_a_password(
    place: str,
    dead_port: int,
    names: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = f"mongodb://ann:s3cr3t@127.0.0.1:{dead_port}/?serverSelectionTimeoutMS=10"
    monkeypatch.setattr(command, "_REACH_MS", 10)
    monkeypatch.setenv("MONGODB_URI", uri)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{uri}\n"))
    chosen = {"argument": [uri], "environment": [], "input": ["-"]}[place]
    words = arguments("", names)
    assert cli.main([words[0], *chosen, *words[2:]]) == 1
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert "can't be used" in shown.err
    assert "s3cr3t" not in shown.out + shown.err


def test_the_command_without_a_server_says_how_to_name_one(
    names: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MONGODB_URI", raising=False)
    words = arguments("", names)
    assert cli.main([words[0], *words[2:]]) == 1
    assert "set MONGODB_URI" in capsys.readouterr().err


def test_an_interrupted_command_says_that_a_repeat_goes_on(
    server_uri: str,
    names: tuple[str, str],
    source: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    source.insert_one(a_session())
    with monkeypatch.context() as patch:
        patch.setattr(command._Progress, "show", interrupt)
        assert cli.main(arguments(server_uri, names)) == 130
    assert "run it again to go on" in capsys.readouterr().err
    assert cli.main(arguments(server_uri, names)) == 0


def test_a_server_that_fails_meanwhile_is_one_line(
    server_uri: str,
    names: tuple[str, str],
    source: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source.insert_one(a_session())
    with failing(server_uri, "pool-telemetry", "insert", errorCode=13):
        assert cli.main(arguments(server_uri, names)) == 1
    assert "refuses the import (code 13)" in capsys.readouterr().err
    assert cli.main(arguments(server_uri, names)) == 0
