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


def say(web: Web, session: str, message: str) -> tuple[int, Any]:
    query = urlencode({"session_id": session, "message": message})
    answer = web.get(f"/chat?{query}", method="POST")
    return answer.status, answer.json()


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

    def converse(number: int) -> list[tuple[int, Any]]:
        return [
            say(web, f"s{number}", "hello"),
            say(web, f"s{number}", f"what is {number} + 1"),
        ]

    with serving(chat_app.app) as web, ThreadPoolExecutor(200) as threads:
        answers = list(threads.map(converse, range(200)))
        for number, (first, second) in enumerate(answers):
            assert first == (200, {"session": f"s{number}", "response": "You said: hello"})
            assert second == (
                200,
                {"session": f"s{number}", "response": f"That is {number + 1}."},
            )
        conversation = web.get("/chat/s7").json()
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
        assert "s7" not in metrics
    assert client[DATABASE]["strands_sessions"].count_documents({}) == 200
    assert client[DATABASE]["strands_messages"].count_documents({}) == 200 * 6


def test_a_session_continues_after_a_restart(client: MongoClient[dict[str, Any]]) -> None:
    for number in range(2):
        with serving(chat_app.app) as web:
            assert say(web, "ann", f"hello {number}")[0] == 200
            assert web.get("/health/ready").status == 200
        assert AsyncMongoDBConnectionPool.get_pool_stats()["status"] == "not_initialized"
    messages = MongoDBSessionRepository(client, DATABASE).list_messages("ann", "default")
    assert len(messages) == 4


def test_each_error_has_its_http_status(
    client: MongoClient[dict[str, Any]], server_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(int(server_uri.rpartition(":")[2].strip("/"))) as proxy:
        uri = f"{proxy.uri}&serverSelectionTimeoutMS=2000"
        monkeypatch.setenv("MONGODB_URI", uri)
        with serving(chat_app.app) as web:
            assert say(web, "a/b", "hello") == (422, {"error": "session_id 'a/b' contains '/'"})
            with ThreadPoolExecutor(20) as threads:
                found = list(threads.map(lambda n: say(web, "ann", f"hello {n}")[0], range(20)))
            assert 200 in found
            assert set(found) <= {200, 409}
            stored = MongoDBSessionRepository(client, DATABASE).list_messages("ann", "default")
            assert [one.message_id for one in stored] == list(range(len(stored)))
            proxy.refuse()
            proxy.cut()
            assert say(web, "ann", "hello")[0] == 503
