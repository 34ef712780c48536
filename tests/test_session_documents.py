"""Documents that this library did not write, or can't read, and the order of messages."""

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo import MongoClient
from strands.types.exceptions import SessionException
from strands.types.session import SessionAgent, SessionMessage

from pool_telemetry.sessions import (
    MongoDBSessionManager,
    MongoDBSessionRepository,
)

Client = MongoClient[dict[str, Any]]
S, A = "session-1", "agent-1"
HOUR = timedelta(hours=1)


@pytest.fixture
def client(server_uri: str) -> Iterator[Client]:
    with Client(server_uri) as client:
        yield client


@pytest.fixture
def database(client: Client) -> Iterator[str]:
    name = f"documents_{uuid.uuid4().hex[:12]}"
    yield name
    client.drop_database(name)


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


@pytest.mark.parametrize("key", ["schema", "session_type", "created_at", "updated_at"])
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
    ask, hours, raced = ahead.asynchronous._unexpired, [1], list[bool]()

    class Clock(datetime):
        """A clock that is some hours ahead."""

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + hours[0] * HOUR

    async def beaten(*args: Any) -> bool:
        found = await ask(*args)
        if not raced:
            raced.append(found)
            hours[0] = 0
            other.open_session(S)
            other.create_agent(S, SessionAgent(A, {}, {}))
            other.create_message(S, A, a_message(0))
        return found

    monkeypatch.setattr(ahead.asynchronous, "_unexpired", beaten)
    monkeypatch.setattr("strands.types.session.datetime", Clock)
    assert ahead.open_session(S)[1] is False
    assert raced == [False]
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
