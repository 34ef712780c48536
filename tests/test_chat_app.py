"""The example of a chat service, over HTTP."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

import pytest
from pymongo import MongoClient

from examples import chat_app
from pool_telemetry import AsyncMongoDBConnectionPool
from pool_telemetry.sessions import MongoDBSessionRepository
from tests.proxy import Proxy
from tests.web import Web, serving

DATABASE = "chat_db"


def say(web: Web, session: str | None, message: str, user: str = "ann") -> tuple[int, Any]:
    query = {"message": message} if session is None else {"message": message, "session_id": session}
    answer = web.get(f"/chat?{urlencode(query)}", method="POST", **{"X-User": user})
    return answer.status, answer.json()


def begin(web: Web, user: str = "ann") -> str:
    status, answer = say(web, None, "hello", user)
    assert (status, answer["response"]) == (200, "You said: hello")
    session: str = answer["session"]
    return session


@pytest.fixture
def client(server_uri: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MONGODB_URI", server_uri)
    with MongoClient[dict[str, Any]](server_uri) as client:
        client.drop_database(DATABASE)
        yield client
        client.drop_database(DATABASE)


@pytest.mark.bulk
def test_200_sessions_at_once(
    client: MongoClient[dict[str, Any]], server_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 200 requests at once on two busy cores wait longer than the default time limit.
    monkeypatch.setenv("MONGODB_URI", server_uri + "?waitQueueTimeoutMS=120000")

    def converse(number: int) -> tuple[str, tuple[int, Any]]:
        session = begin(web, f"user-{number}")
        return session, say(web, session, f"what is {number} + 1", f"user-{number}")

    with serving(chat_app.app) as web, ThreadPoolExecutor(200) as threads:
        answers = list(threads.map(converse, range(200)))
        for number, (session, answer) in enumerate(answers):
            assert answer == (200, {"session": session, "response": f"That is {number + 1}."})
        seventh = answers[7][0]
        conversation = web.get(f"/chat/{seventh}", **{"X-User": "user-7"}).json()
        assert conversation["messages"] == [
            {"role": "user", "text": "hello"},
            {"role": "assistant", "text": "You said: hello"},
            {"role": "user", "text": "what is 7 + 1"},
            {"role": "assistant", "text": "That is 8."},
        ]
        assert conversation["total_tokens"] == (1 + 1) + (3 + 1) + (5 + 1)
        health = web.get("/health").json()
        assert health["mongodb"]["agents"]["turns"] == 400
        assert health["mongodb"]["pool"]["max_size"] == 20
        assert health["mongodb"]["checkouts"]["timeout"] == 0
        metrics = web.get("/metrics").text
        assert 'mongodb_client_agent_turns_total{db_client_connection_pool_name="chat"' in metrics
        assert seventh not in metrics
    assert client[DATABASE]["strands_sessions"].count_documents({}) == 200
    assert client[DATABASE]["strands_messages"].count_documents({}) == 200 * 6


def test_a_session_continues_after_a_restart(client: MongoClient[dict[str, Any]]) -> None:
    session: str | None = None
    for number in range(2):
        with serving(chat_app.app) as web:
            status, answer = say(web, session, f"hello {number}")
            assert status == 200
            session = answer["session"]
            assert web.get("/health/ready").status == 200
        assert AsyncMongoDBConnectionPool.get_pool_stats()["status"] == "not_initialized"
    assert session is not None
    messages = MongoDBSessionRepository(client, DATABASE).list_messages(session, "default")
    assert len(messages) == 4


def test_a_user_neither_opens_nor_reads_anothers_session(
    client: MongoClient[dict[str, Any]],
) -> None:
    with serving(chat_app.app) as web:
        session = begin(web)
        assert begin(web) != session
        for user, missing in (("mallory", session), ("ann", "unknown")):
            refused = (404, {"detail": "Not Found"})
            assert say(web, missing, "hello", user) == refused
            read = web.get(f"/chat/{missing}", **{"X-User": user})
            assert (read.status, read.json()) == refused
        messages = web.get(f"/chat/{session}", **{"X-User": "ann"}).json()["messages"]
        assert len(messages) == 2
    assert client[DATABASE]["strands_sessions"].count_documents({}) == 2


def test_each_error_has_its_http_status(
    client: MongoClient[dict[str, Any]], server_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(int(server_uri.rpartition(":")[2].strip("/"))) as proxy:
        uri = f"{proxy.uri}&serverSelectionTimeoutMS=2000"
        monkeypatch.setenv("MONGODB_URI", uri)
        with serving(chat_app.app) as web:
            session = begin(web)
            assert say(web, "a/b", "hello") == (422, {"error": "session_id 'a/b' contains '/'"})
            with ThreadPoolExecutor(20) as threads:
                found = list(threads.map(lambda n: say(web, session, f"hello {n}")[0], range(20)))
            assert 200 in found
            assert set(found) <= {200, 409}
            stored = MongoDBSessionRepository(client, DATABASE).list_messages(session, "default")
            assert [one.message_id for one in stored] == list(range(len(stored)))
            proxy.refuse()
            proxy.cut()
            assert say(web, session, "hello")[0] == 503
