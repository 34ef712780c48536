"""Real Strands agents, offline, with sessions on a real server.

Each test runs in three modes: called (synchronous), awaited (over an AsyncMongoClient), and in
threads (awaited over a MongoClient).
"""

import asyncio
import json
import math
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import InvalidOperation, OperationFailure, PyMongoError
from pymongo.monitoring import CommandListener
from strands import Agent, ToolContext, tool
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.multiagent import GraphBuilder
from strands.types.exceptions import EventLoopException, SessionException
from strands.types.session import SessionAgent, SessionMessage

from pool_telemetry import (
    AsyncMongoDBConnectionPool,
    MongoDBConnectionPool,
    PoolConfigurationError,
    PoolNotInitializedError,
    PoolTelemetry,
    TelemetryOptions,
    prometheus,
)
from pool_telemetry.sessions import (
    AsyncMongoDBSessionManager,
    InvalidIdError,
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
    MongoDBSessionRepository,
    SessionConflictError,
    SessionOwnerError,
    close_global_factory,
    get_global_factory,
    initialize_global_factory,
)
from tests.proxy import Proxy
from tests.scripted import ScriptedModel, Step, agent_with, texts
from tests.support import UNMEASURED, rest_in_bulk, traced_to, until

# The commands that create a session: one asks if the collections were dropped, and the deletes
# remove leftovers of a session of the same name.
CREATE_SESSION = {
    "findAndModify sessions": 1,
    "listCollections ": 1,
    "delete messages": 1,
    "delete agents": 1,
    "insert sessions": 1,
}
T = TypeVar("T")
Client = MongoClient[dict[str, Any]]
Documents = list[dict[str, Any]]


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Chat:
    """Opens sessions and runs turns in one of the three modes."""

    def __init__(self, mode: str, uri: str, database: str, runner: asyncio.Runner) -> None:
        self.mode, self.uri, self.database = mode, uri, database
        self.telemetry = PoolTelemetry(f"chat {mode}")
        self._runner = runner
        self.clients: list[Any] = []
        self.client = self.connect(uri, self.telemetry)
        self.direct = Client(uri)[database]

    def connect(self, uri: str, telemetry: PoolTelemetry, **kwargs: Any) -> Any:
        kind: Any = AsyncMongoClient if self.mode == "awaited" else MongoClient
        client = self.run(_made(kind, uri, event_listeners=telemetry.listeners, **kwargs))
        self.clients.append(client)
        return client

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

    def open(self, session_id: str, client: Any = None, **kwargs: Any) -> Any:
        kwargs = {
            "client": client or self.client,
            "database_name": self.database,
            "prefix": "",
            **kwargs,
        }
        if self.mode == "called":
            return MongoDBSessionManager(session_id, **kwargs)
        return self.run(AsyncMongoDBSessionManager.open(session_id, **kwargs))

    def say(self, agent: Any, prompt: Any) -> Any:
        return agent(prompt) if self.mode == "called" else self.run(agent.invoke_async(prompt))

    def commands(self) -> dict[str, int]:
        """Return the number of each command so far, from our own counters."""
        return {
            f"{one.operation} {one.collection}": one.duration.count
            for one in self.telemetry.stats().operations
        }

    def spent(self, before: dict[str, int]) -> dict[str, int]:
        now = self.commands()
        return {key: n - before.get(key, 0) for key, n in now.items() if n > before.get(key, 0)}

    def stored(self, session_id: str) -> Documents:
        return list(self.direct["messages"].find({"session_id": session_id}).sort("message_id"))

    def close(self) -> None:
        for client in self.clients:
            closing = client.close()
            if closing is not None:
                self.run(closing)
        self.direct.client.drop_database(self.database)
        self.direct.client.close()


async def _made(kind: Any, *args: Any, **kwargs: Any) -> Any:
    return kind(*args, **kwargs)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


one_mode_in_make_test = pytest.mark.parametrize(
    "chat", rest_in_bulk(["awaited", "called", "in threads"]), indirect=True
)


@pytest.fixture(params=rest_in_bulk(["called", "awaited", "in threads"], keep=2))
def chat(request: pytest.FixtureRequest, server_uri: str, runner: asyncio.Runner) -> Iterator[Chat]:
    chat = Chat(request.param, server_uri, f"chat_{uuid.uuid4().hex[:12]}", runner)
    yield chat
    chat.close()


# Conversations


def test_a_conversation_is_restored(chat: Chat) -> None:
    agent = agent_with(
        chat.open("s"), "hi", {"tool": "add", "input": {"a": 1, "b": 2}}, "3", tools=[add]
    )
    chat.say(agent, "hello")
    chat.say(agent, "1 + 2?")
    agent.state.set("plan", "pro")
    chat.say(agent, "thanks")
    again = agent_with(chat.open("s"))
    assert again.messages == agent.messages
    assert len(again.messages) == 8
    assert again.state.get("plan") == "pro"
    chat.say(again, "still there?")
    assert chat.open("s").session.session_id == "s"
    assert texts(agent_with(chat.open("s")))[-2:] == [
        "user: still there?",
        "assistant: You said: still there?",
    ]


@one_mode_in_make_test
def test_a_conversation_of_another_process_is_restored(chat: Chat) -> None:
    code = f"""
import sys
from pymongo import MongoClient
from pool_telemetry import MongoDBSessionManager
from tests.scripted import agent_with
uri, database = {chat.uri!r}, {chat.database!r}
with MongoDBSessionManager("s", None, uri, database, prefix="") as manager:
    agent_with(manager, "noted")("my name is Ann")
"""
    command, folder = [sys.executable, "-c", code], Path(__file__).parent.parent
    subprocess.run(command, check=True, cwd=folder, env={**os.environ, **UNMEASURED})
    agent = agent_with(chat.open("s"), "Ann")
    chat.say(agent, "who am I?")
    assert texts(agent) == [
        "user: my name is Ann",
        "assistant: noted",
        "user: who am I?",
        "assistant: Ann",
    ]


def test_a_turn_sends_only_the_necessary_commands(chat: Chat) -> None:
    chat.open("other")  # creates the indexes
    before = chat.commands()
    agent = agent_with(
        chat.open("s"), "hi", {"tool": "add", "input": {"a": 1, "b": 2}}, "3", tools=[add]
    )
    if chat.mode == "called":
        assert chat.spent(before) == {
            **CREATE_SESSION,
            "insert agents": 1,
        }
        before = chat.commands()
        chat.say(agent, "hello")
        assert chat.spent(before) == {"insert messages": 2}
    else:
        chat.say(agent, "hello")  # stores the agent with its first message
        assert chat.spent(before) == {
            **CREATE_SESSION,
            "insert agents": 1,
            "insert messages": 2,
        }
    before = chat.commands()
    chat.say(agent, "1 + 2?")
    assert chat.spent(before) == {"insert messages": 4}
    agent.state.set("plan", "pro")
    before = chat.commands()
    chat.say(agent, "hello")
    assert chat.spent(before) == {"insert messages": 2, "findAndModify agents": 1}

    before = chat.commands()
    again = agent_with(chat.open("s"), "hi")
    assert chat.spent(before) == {
        "findAndModify sessions": 1,
        "find agents": 1,
        "find messages": 1,
    }
    before = chat.commands()
    chat.say(again, "hello")
    assert chat.spent(before) == {"insert messages": 2}
    agents = chat.telemetry.stats().agents
    assert (agents.turns, agents.conflicts) == (4, 0)
    unasked = ("createIndexes", "listCollections")
    operations = sum(count for key, count in chat.commands().items() if not key.startswith(unasked))
    assert agents.operations == operations


def test_a_redacted_message_is_not_stored(chat: Chat) -> None:
    agent = agent_with(chat.open("s"), {"redact": "[redacted]"})
    chat.say(agent, "my password is s3cr3t")
    assert texts(agent)[0] == "user: [redacted]"
    assert texts(agent_with(chat.open("s"))) == texts(agent)
    assert "s3cr3t" not in str(chat.stored("s"))


def test_an_interrupted_turn_continues_in_another_agent(chat: Chat) -> None:
    @tool(context=True)
    def delete(tool_context: ToolContext) -> str:
        """Delete everything."""
        answer = tool_context.interrupt("approval", reason="sure?")
        return f"deleted: {answer}"

    steps: list[Step] = [{"tool": "delete", "input": {}}, "done"]
    agent = agent_with(chat.open("s"), *steps[:1], tools=[delete])
    result = chat.say(agent, "delete all")
    assert result.stop_reason == "interrupt"
    (interrupt,) = result.interrupts
    again = agent_with(chat.open("s"), *steps[1:], tools=[delete])
    response = {"interruptResponse": {"interruptId": interrupt.id, "response": "yes"}}
    result = chat.say(again, [response])
    assert result.stop_reason == "end_turn"
    assert "deleted: yes" in str(again.messages)
    assert texts(agent_with(chat.open("s")))[-1] == "assistant: done"


def test_an_interrupted_graph_continues_at_its_node(chat: Chat) -> None:
    @tool(context=True)
    def publish(tool_context: ToolContext) -> str:
        """Publish it."""
        return f"published: {tool_context.interrupt('approval', reason='sure?')}"

    def graph(*steps: Step) -> Any:
        builder = GraphBuilder()
        writer, publisher = ScriptedModel(steps[:1]), ScriptedModel(steps[1:])
        builder.add_node(Agent(model=writer, callback_handler=None), "writer")
        node = Agent(model=publisher, tools=[publish], callback_handler=None)
        builder.add_node(node, "publisher")
        builder.add_edge("writer", "publisher")
        builder.set_entry_point("writer")
        builder.set_execution_timeout(60)
        builder.set_graph_id("newspaper")
        builder.set_session_manager(chat.open("s"))
        return builder.build()

    result = chat.say(graph("an article", {"tool": "publish", "input": {}}), "write")
    assert result.status.value == "interrupted"
    (stored,) = chat.direct["agents"].find({"session_id": "s"})
    assert (stored["kind"], stored["agent_id"]) == ("multi_agent", "newspaper")
    (interrupt,) = result.interrupts
    response = {"interruptResponse": {"interruptId": interrupt.id, "response": "yes"}}
    result = chat.say(graph(AssertionError("the article exists"), "done"), [response])
    assert result.status.value == "completed"
    assert "an article" in str(result.results["writer"])
    assert "done" in str(result.results["publisher"])
    assert chat.telemetry.stats().agents.turns == 2


def test_only_the_last_messages_are_restored(chat: Chat) -> None:
    agent = agent_with(chat.open("s"), "a", "b", "c", "d", "e")
    for number in range(5):
        chat.say(agent, str(number))
    before = chat.commands()
    again = agent_with(chat.open("s", restore_last=3), "f")
    assert texts(again) == ["user: 4", "assistant: e"]  # the messages begin with a prompt
    assert chat.spent(before)["aggregate messages"] == 1
    chat.say(again, "5")
    assert len(texts(agent_with(chat.open("s", restore_last=99)))) == 12
    # A window counts its removed messages from the first stored message.
    window = SlidingWindowConversationManager(window_size=2)
    small = agent_with(chat.open("s", restore_last=4), "g", conversation_manager=window)
    chat.say(small, "6")
    assert window.removed_message_count == 12
    for wrong in (0, True, "3"):
        with pytest.raises(ValueError, match=f"restore_last is {wrong!r}"):
            chat.open("s", restore_last=wrong)


def test_restored_messages_begin_with_a_prompt(chat: Chat) -> None:
    steps: list[Step] = ["hi", {"tool": "add", "input": {"a": 1, "b": 2}}, "3"]
    chat.say(agent := agent_with(chat.open("s"), *steps, tools=[add]), "hello")
    chat.say(agent, "1 + 2?")
    for last, number in ((1, 4), (3, 4), (4, 4), (5, 4), (6, 6), (7, 6)):
        again = agent_with(chat.open("s", restore_last=last))
        assert again.messages == agent.messages[-number:]
        assert again.conversation_manager.removed_message_count == 6 - number


def test_a_sliding_window_writes_the_agent_once_a_turn(chat: Chat) -> None:
    def window() -> SlidingWindowConversationManager:
        return SlidingWindowConversationManager(window_size=4)

    agent = agent_with(chat.open("s"), conversation_manager=window())
    before = chat.commands()
    for number in range(30):
        chat.say(agent, str(number))
    assert chat.spent(before)["insert messages"] == 60
    assert chat.spent(before)["findAndModify agents"] == 28
    assert agent.conversation_manager.removed_message_count == 56
    again = agent_with(chat.open("s"), conversation_manager=window())
    assert again.messages == agent.messages
    chat.say(again, "more")
    assert len(again.messages) == 4
    assert again.conversation_manager.removed_message_count == 58


def refuse_one_insert(chat: Chat) -> None:
    """Let the server answer the next insert with "not authorized", which no repeat can change."""
    data = {"failCommands": ["insert"], "errorCode": 13}
    control = chat.direct.client.admin
    control.command("configureFailPoint", "failCommand", mode={"times": 1}, data=data)


def test_a_message_that_could_not_be_stored_keeps_its_id(chat: Chat) -> None:
    window = SlidingWindowConversationManager(window_size=4)
    agent = agent_with(chat.open("s"), conversation_manager=window)
    chat.say(agent, "one")
    refuse_one_insert(chat)
    with pytest.raises(OperationFailure):
        chat.say(agent, "two")
    for number in range(15):
        chat.say(agent, str(number))
    again = agent_with(chat.open("s"))
    assert again.messages[-4:] == agent.messages
    assert again.messages[0]["role"] == "user"


# Concurrent writers


def test_50_concurrent_opens_create_one_session(chat: Chat) -> None:
    chat.open("other")
    barrier = threading.Barrier(50)
    new = list[bool]()

    def begin() -> None:
        barrier.wait()
        manager = MongoDBSessionManager("s", chat.client, None, chat.database, prefix="")
        new.append(manager._is_new_session)

    if chat.mode == "called":
        threads = [threading.Thread(target=begin) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:

        async def all_at_once() -> list[Any]:
            opening = (
                AsyncMongoDBSessionManager.open("s", chat.client, None, chat.database, prefix="")
                for _ in range(50)
            )
            return await asyncio.gather(*opening)

        new = [manager._is_new_session for manager in chat.run(all_at_once())]
    assert sorted(new) == [False] * 49 + [True]
    assert chat.direct["sessions"].count_documents({"_id": "s"}) == 1


def test_an_agent_created_after_the_open_is_restored_or_a_conflict(chat: Chat) -> None:
    late = chat.open("s")
    chat.say(agent_with(chat.open("s"), "hi"), "hello")
    agent = agent_with(late)
    if chat.mode == "called":
        assert texts(agent) == ["user: hello", "assistant: hi"]
    else:  # the manager read the session before the agent was created
        with pytest.raises(SessionConflictError):
            chat.say(agent, "me, too")


def test_the_second_writer_gets_a_conflict_and_stores_nothing(chat: Chat) -> None:
    agent_with(chat.open("s"))
    chat.say(agent_with(chat.open("s"), "hi"), "hello")
    first, second = agent_with(chat.open("s"), "one"), agent_with(chat.open("s"), "two")
    chat.say(first, "1")
    before = chat.stored("s")
    words = r"message 2 of agent 'default' of session 's' already exists: another writer was first"
    with pytest.raises(SessionConflictError, match=words):
        chat.say(second, "2")
    assert chat.telemetry.stats().agents.conflicts == 1
    with pytest.raises(SessionConflictError, match="open the session again"):
        chat.say(second, "3")
    assert chat.stored("s") == before
    again = agent_with(chat.open("s"), "two")
    chat.say(again, "2")
    assert texts(again)[-4:] == ["user: 1", "assistant: one", "user: 2", "assistant: two"]


@one_mode_in_make_test
def test_two_processes_lose_no_turn(chat: Chat) -> None:
    code = f"""
import asyncio, json, sys
from pymongo import AsyncMongoClient, MongoClient
from strands.types.exceptions import EventLoopException
from pool_telemetry.sessions import *
from tests.scripted import agent_with
name, mode = sys.argv[1:]
where = {{"database_name": {chat.database!r}, "prefix": ""}}
succeeded = []
async def main():
    client = (AsyncMongoClient if mode == "awaited" else MongoClient)({chat.uri!r})
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(8):
        while True:
            if mode == "called":
                manager = MongoDBSessionManager("s", client, **where)
            else:
                manager = await AsyncMongoDBSessionManager.open(
                    "s", client, **where)
            try:
                agent = agent_with(manager)
                prompt = f"{{name}} {{number}}"
                agent(prompt) if mode == "called" else await agent.invoke_async(prompt)
            except SessionConflictError:  # when the prompt was stored
                continue
            except EventLoopException as error:  # when the answer was stored
                assert isinstance(error.__cause__, SessionConflictError), error
                continue
            succeeded.append(prompt)
            break
    if (closing := client.close()) is not None:
        await closing
asyncio.run(main())
print(json.dumps(succeeded))
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    processes = [
        subprocess.Popen(
            [*command, name, chat.mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **UNMEASURED},
            text=True,
        )
        for name in ("ann", "bob")
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # so that they begin together
        assert process.stdin
        print(file=process.stdin, flush=True)
    succeeded = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    stored = chat.stored("s")
    assert [one["message_id"] for one in stored] == sorted({one["message_id"] for one in stored})
    prompts = [
        one["message"]["content"][0]["text"] for one in stored if one["message"]["role"] == "user"
    ]
    answered = [  # the last prompt, because an unanswered one before it is sent with it
        " ".join(one["message"]["content"][0]["text"].split()[-2:])
        for one in stored
        if one["message"]["role"] == "assistant"
    ]
    for mine in succeeded:
        assert len(mine) == 8
        # Each successful turn is stored once, with its answer, in the order of the prompts.
        assert [text for text in answered if text in mine] == mine
        assert [text for text in dict.fromkeys(prompts) if text in mine] == mine


def test_agents_in_threads_share_a_manager(chat: Chat) -> None:
    manager = chat.open("s")
    errors = list[Exception]()

    def work(number: int) -> None:
        try:
            agent = agent_with(manager, agent_id=f"agent-{number}")
            for turn in range(5):
                agent(f"{number} {turn}")
        except Exception as error:  # noqa: BLE001  # any error fails the test
            errors.append(error)

    async def await_them() -> None:
        agents = [agent_with(manager, agent_id=f"agent-{number}") for number in range(8)]
        for turn in range(5):
            prompts = [f"{number} {turn}" for number in range(8)]
            await asyncio.gather(*map(Agent.invoke_async, agents, prompts))

    if chat.mode == "awaited":  # an AsyncMongoClient is for one event loop
        chat.run(await_them())
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads if chat.mode != "awaited" else ():
        thread.start()
    for thread in threads if chat.mode != "awaited" else ():
        thread.join()
    assert errors == []
    again = chat.open("s")
    for number in range(8):
        conversation = texts(agent_with(again, agent_id=f"agent-{number}"))
        assert conversation[::2] == [f"user: {number} {turn}" for turn in range(5)]


def test_leftovers_of_a_deleted_session_are_not_restored(chat: Chat) -> None:
    agent = agent_with(chat.open("s"), "one", "two")
    chat.say(agent, "secret one")
    delete_elsewhere(chat, "s")
    chat.say(agent, "secret two")  # the deletion is noticed within a minute
    assert len(chat.stored("s")) == 2
    again = agent_with(chat.open("s"), "new", "newer")
    chat.say(again, "hello")
    chat.say(again, "hello again")
    assert "secret" not in str(chat.stored("s"))
    assert texts(agent_with(chat.open("s"))) == texts(again)


def test_uniqueness_needs_no_index(chat: Chat) -> None:
    chat.open("other")
    chat.direct.client.drop_database(chat.database)
    first, second = agent_with(chat.open("s"), "hi"), agent_with(chat.open("s"), "hi")
    chat.say(first, "one")
    with pytest.raises(SessionConflictError):
        chat.say(second, "two")
    assert len(chat.stored("s")) == 2


def test_documents_of_other_programs_stay_unchanged(chat: Chat) -> None:
    chat.direct["messages"].insert_many([{"text": "hello"}, {"text": "hello"}])
    chat.direct["sessions"].insert_one({"_id": "s", "token": "abc"})
    with pytest.raises(SessionException, match=r"'s' has no `schema`.*use another prefix="):
        chat.open("s")
    assert chat.direct["messages"].count_documents({"text": "hello"}) == 2
    assert texts(agent_with(chat.open("s", prefix="strands_"))) == []


# Failures


@one_mode_in_make_test
def test_a_server_lost_in_mid_turn_leaves_no_gap(chat: Chat) -> None:
    port = int(chat.uri.rpartition(":")[2].strip("/"))
    with Proxy(port) as proxy:
        telemetry = PoolTelemetry("proxied")
        client = chat.connect(
            proxy.uri, telemetry, serverSelectionTimeoutMS=2_000, heartbeatFrequencyMS=500
        )

        @tool
        def unplug() -> str:
            """Break the network."""
            proxy.refuse()
            proxy.cut()
            return "done"

        steps: list[Step] = ["hi", {"tool": "unplug", "input": {}}, "fine"]
        agent = agent_with(chat.open("s", client), *steps, tools=[unplug])
        chat.say(agent, "hello")
        with pytest.raises(EventLoopException) as caught:
            chat.say(agent, "unplug it")
        assert isinstance(caught.value.__cause__, PyMongoError)
        proxy.accept()
        chat.run(until(lambda: telemetry.pool_stats()[0].up))
        chat.say(agent, "are you there?")
        assert texts(agent)[-1] == "assistant: fine"
        again = agent_with(chat.open("s", client))
        assert again.messages == agent.messages
        assert [one["message_id"] for one in chat.stored("s")] == list(range(len(agent.messages)))
        chat.clients.remove(client)
        if (closing := client.close()) is not None:
            chat.run(closing)


class CancelsAt(CommandListener):
    """Cancels a task when the given number of commands of a kind were sent, before the replies."""

    def __init__(self, name: str, number: int) -> None:
        self.task: asyncio.Task[Any] | None = None
        self._name, self._left = name, number

    def started(self, event: Any) -> None:
        if self.task is not None and event.command_name == self._name:
            self._left -= 1
            if self._left == 0:
                self.task.get_loop().call_soon_threadsafe(self.task.cancel)

    def succeeded(self, event: Any) -> None: ...
    def failed(self, event: Any) -> None: ...


@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize("mode", ["awaited", "in threads"])
def test_a_cancelled_turn_leaves_no_gap(
    mode: str, number: int, server_uri: str, runner: asyncio.Runner
) -> None:
    """Cancel at each write: the agent, the prompt, the tool call, its result, the answer."""
    chat = Chat(mode, server_uri, f"chat_{uuid.uuid4().hex[:12]}", runner)
    canceller = CancelsAt("insert", number)

    async def converse() -> Agent:
        kind: Any = AsyncMongoClient if mode == "awaited" else MongoClient
        client = kind(server_uri, event_listeners=[canceller])
        manager = await AsyncMongoDBSessionManager.open(
            "s", client, database_name=chat.database, prefix=""
        )
        steps: list[Step] = [{"tool": "add", "input": {"a": 1, "b": 2}}, "3", "fine", "fine"]
        agent = agent_with(manager, *steps, tools=[add])
        canceller.task = asyncio.create_task(agent.invoke_async("1 + 2?"))
        with pytest.raises(asyncio.CancelledError):
            await canceller.task
        await agent.invoke_async("and now?")
        if (closing := client.close()) is not None:
            await closing
        return agent

    agent = chat.run(converse())
    again = agent_with(chat.open("s"))
    assert again.messages == agent.messages
    assert texts(again)[-1] in ("assistant: 3", "assistant: fine")
    assert [one["message_id"] for one in chat.stored("s")] == list(range(len(agent.messages)))
    assert chat.telemetry.stats().agents.conflicts == 0
    chat.close()


@pytest.mark.parametrize("error", [{"errorCode": 91}, {"closeConnection": True}])
def test_a_retried_write_is_stored_once(chat: Chat, error: dict[str, Any]) -> None:
    telemetry = PoolTelemetry("retried")
    client = chat.connect(chat.uri, telemetry, appName=chat.database, heartbeatFrequencyMS=500)
    agent = agent_with(chat.open("s", client), "hi")
    control = chat.direct.client.admin
    data = {"failCommands": ["insert"], "appName": chat.database, **error}
    if "errorCode" in error:
        data["errorLabels"] = ["RetryableWriteError"]
    control.command("configureFailPoint", "failCommand", mode={"times": 1}, data=data)
    try:
        chat.say(agent, "hello")
    finally:
        control.command("configureFailPoint", "failCommand", mode="off")
    failed = [one for one in telemetry.stats().operations if one.error_type]
    assert [one.duration.count for one in failed] == [1]
    assert [one["message_id"] for one in chat.stored("s")] == [0, 1]


def test_a_write_whose_reply_failed_is_stored_once(chat: Chat) -> None:
    agent = agent_with(chat.open("s"), "hi")
    control = chat.direct.client.admin
    concern = {"code": 64, "errmsg": "timed out", "errInfo": {"wtimeout": True}}
    data = {"failCommands": ["insert"], "writeConcernError": concern}
    control.command("configureFailPoint", "failCommand", mode={"times": 1}, data=data)
    try:
        with pytest.raises(PyMongoError):
            chat.say(agent, "hello")
    finally:
        control.command("configureFailPoint", "failCommand", mode="off")
    assert len(chat.stored("s")) == (1 if chat.mode == "called" else 0)
    chat.say(agent, "again")
    assert texts(agent_with(chat.open("s"))) == texts(agent)
    assert texts(agent) == ["user: hello", "user: again", "assistant: hi"]
    assert chat.telemetry.stats().agents.conflicts == 0


def test_a_write_that_can_never_succeed_does_not_stop_the_next(chat: Chat) -> None:
    agent = agent_with(chat.open("s"), "hi", "fine")
    chat.say(agent, "hello")
    agent._model_state["plan"] = {"s3cr3t"}
    with pytest.raises((SessionException, EventLoopException)) as caught:
        chat.say(agent, "hm")
    assert "BSON can't store" in repr((caught.value, caught.value.__cause__))
    assert "s3cr3t" not in repr((caught.value, caught.value.__cause__))
    agent.messages[:] = agent_with(chat.open("s")).messages
    agent._model_state["plan"] = "pro"
    chat.say(agent, "hm")
    assert agent_with(chat.open("s"))._model_state["plan"] == "pro"
    refuse_one_insert(chat)
    with pytest.raises(OperationFailure):  # not authorized
        chat.say(agent, "what?")
    agent.messages.pop()
    chat.say(agent, "how are you?")
    assert texts(agent_with(chat.open("s"))) == texts(agent)


@pytest.mark.parametrize("name", ["", "a/b", "a\0b", "$where", "x" * 10_000, "\ud800"])
def test_an_invalid_session_id_is_an_error(chat: Chat, name: str) -> None:
    with pytest.raises(InvalidIdError, match="session_id"):
        chat.open(name)
    with pytest.raises(SessionException):
        chat.open(name)


def test_an_agent_can_start_after_a_failed_start(chat: Chat) -> None:
    manager = chat.open("s")
    for _ in range(2):
        with pytest.raises((InvalidIdError, ValueError)):
            agent_with(manager, agent_id="a/b")
    agent = agent_with(manager, "hi", agent_id="a")
    chat.say(agent, "hello")
    with pytest.raises(SessionException, match="must be unique"):
        agent_with(manager, agent_id="a")
    assert len(chat.stored("s")) == 2


def test_a_deletion_by_another_process_is_noticed(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pool_telemetry.sessions.known.KNOWN_SECONDS", 0.0)
    agent = agent_with(chat.open("s"), "hi", "there")
    chat.say(agent, "hello")
    (before,) = chat.direct["sessions"].find()
    chat.say(agent, "still there?")
    (after,) = chat.direct["sessions"].find()
    assert after["updated_at"] > before["updated_at"]
    MongoDBSessionRepository(chat.direct.client, chat.database, prefix="").delete_session("s")
    with pytest.raises(SessionException, match="session 's' was deleted"):
        chat.say(agent, "and now?")
    assert chat.stored("s") == []


def delete_elsewhere(chat: Chat, session_id: str) -> None:
    """Delete a session as another process does, whose deletions this process can't know."""
    for name in ("messages", "agents", "sessions"):
        chat.direct[name].delete_many({"session_id": session_id})


def test_a_deletion_in_this_process_is_noticed_by_the_next_message(chat: Chat) -> None:
    agent = agent_with(chat.open("s", user="ann"), "hi", "there")
    chat.say(agent, "hello")
    unused = chat.open("s", user="ann")
    everyone = MongoDBSessionRepository(chat.direct.client, chat.database, prefix="")
    for later in (None, "mallory", "ann"):
        everyone.delete_session("s")
        if later:
            chat.open("s", user=later)
        with pytest.raises(SessionException, match="session 's' was deleted"):
            chat.say(agent, "still there?")
        with pytest.raises(SessionException, match="session 's' was deleted"):
            chat.say(agent_with(unused, agent_id=f"before {later}"), "hello")
        assert chat.stored("s") == [*chat.direct["agents"].find()] == []
        chat.open("s", user=later or "ann")


def test_a_later_session_of_the_same_id_shows_no_message_of_the_deleted_one(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = agent_with(chat.open("s", user="ann"), "one", "two")
    chat.say(ann, "secret one")
    delete_elsewhere(chat, "s")
    manager = chat.open("s", user="mallory")
    chat.say(ann, "secret two")  # messages 2 and 3, with no session
    mallory = agent_with(manager, "a", "b", "c")
    assert len(chat.stored("s")) == 2
    chat.say(mallory, "hello")
    plain = MongoDBSessionRepository(chat.direct.client, chat.database, prefix="", user="mallory")
    assert plain.count_messages("s", "default") == 2
    assert "secret" not in str(plain.list_messages("s", "default"))
    assert plain.usage("s").messages == 2
    assert texts(agent_with(chat.open("s", user="mallory"))) == texts(mallory)
    chat.say(mallory, "again")  # messages 2 and 3, whose ids have to be free
    assert "secret" not in str(chat.stored("s"))
    chat.say(ann, "secret three")
    assert len(chat.stored("s")) == 6
    monkeypatch.setattr("pool_telemetry.sessions.known.KNOWN_SECONDS", 0.0)
    with pytest.raises(SessionException, match="session 's' was deleted"):
        chat.say(ann, "secret four")
    assert texts(agent_with(chat.open("s", user="mallory"))) == texts(mallory)
    assert len(mallory.messages) == len(chat.stored("s")) == 4


def test_a_later_session_of_the_same_id_is_not_changed_by_a_manager_of_the_deleted_one(
    chat: Chat,
) -> None:
    def do(result: Any) -> Any:
        return chat.run(result) if chat.mode != "called" else result

    ann = chat.open("s", user="ann", ttl=timedelta(hours=1))
    chat.say(agent_with(ann, "one"), "hello")
    delete_elsewhere(chat, "s")
    mallory = agent_with(chat.open("s", user="mallory"), "a")
    chat.say(mallory, "hello")
    before = [list(chat.direct[name].find()) for name in ("sessions", "agents", "messages")]
    secret = SessionMessage({"role": "user", "content": [{"text": "secret"}]}, 0)
    agent, r = SessionAgent("default", {"a": "secret"}, {}), ann.repository
    calls: list[Callable[[], Any]] = [
        lambda: r.update_agent("s", agent),
        lambda: r.create_agent("s", agent),
        lambda: r.update_message("s", "default", secret),
        lambda: r.create_message("s", "default", secret),
        lambda: r.add_feedback("s", "default", 0, {"secret": 1}),
        lambda: r.delete_session("s"),
        lambda: ann.update_metadata({"secret": 1}),
        lambda: ann.delete_metadata("secret"),
        lambda: ann.add_feedback({"secret": 1}),
        ann.get_metadata,
    ]
    for call in calls:
        with pytest.raises(SessionException, match="session 's' was deleted"):
            do(call())
    assert do(r.read_session("s")) is None
    assert do(r.read_agent("s", "default")) is None
    assert do(r.read_message("s", "default", 0)) is None
    assert do(r.list_agents("s")) == do(r.list_messages("s", "default")) == []
    assert do(ann.usage()).messages == 0
    after = [list(chat.direct[name].find()) for name in ("sessions", "agents", "messages")]
    assert after == before


def test_a_deleted_sessions_time_to_live_does_not_end_a_later_session(chat: Chat) -> None:
    ann = agent_with(chat.open("s", user="ann", ttl=timedelta(milliseconds=1)), "one", "two")
    delete_elsewhere(chat, "s")
    chat.say(agent_with(chat.open("s", user="mallory"), "a"), "hello")
    with pytest.raises(SessionException, match="session 's' was deleted"):
        chat.say(ann, "secret")  # this agent's end is over, so it has to be moved
    assert chat.direct["sessions"].count_documents({"expires_at": {"$exists": True}}) == 0
    assert [message["message_id"] for message in chat.stored("s")] == [0, 1]
    assert "expires_at" not in str(chat.stored("s"))


def test_documents_of_older_releases_are_read_and_continued(chat: Chat) -> None:
    chat.say(agent_with(chat.open("s", user="ann"), "hi"), "hello")
    for name in ("agents", "messages"):
        done = chat.direct[name].update_many({}, {"$unset": {"session_created_at": ""}})
        assert done.modified_count == done.matched_count > 0
    agent = agent_with(chat.open("s", user="ann"), {"redact": "[removed]"}, state={"a": 1})
    assert len(agent.messages) == 2
    chat.say(agent, "secret")
    assert texts(agent_with(chat.open("s", user="ann"))) == texts(agent)
    assert "[removed]" in str(chat.stored("s"))
    (session,) = chat.direct["sessions"].find()
    assert [one.get("session_created_at") for one in chat.stored("s")] == [
        None,
        None,
        session["created_at"],
        session["created_at"],
    ]


# Time to live


def test_all_documents_of_a_session_expire_together(chat: Chat) -> None:
    hour = timedelta(hours=1)
    chat.say(agent_with(chat.open("s", ttl=hour), "hi"), "hello")

    def ends() -> set[datetime]:
        return {
            one["expires_at"]
            for name in ("sessions", "agents", "messages")
            for one in chat.direct[name].find()
        }

    (end,) = ends()
    assert 1.0 < (end.replace(tzinfo=UTC) - datetime.now(UTC)) / hour <= 1.2
    before = chat.commands()
    chat.say(agent_with(chat.open("s"), "hi"), "again")
    assert "update messages" not in chat.spent(before)  # not every open moves the end
    assert ends() == {end}
    for name in ("sessions", "agents", "messages"):
        chat.direct[name].update_many({}, {"$set": {"expires_at": end - hour / 5}})
    chat.say(agent_with(chat.open("s"), "hi"), "later")
    (moved,) = ends()
    assert moved > end
    keys = chat.direct["messages"].index_information()["expires_at_1"]
    assert keys["expireAfterSeconds"] == 0

    for name in ("sessions", "agents", "messages"):
        past = datetime.now(UTC) - hour
        chat.direct[name].update_many({}, {"$set": {"expires_at": past}})
    agent = agent_with(chat.open("s", ttl=hour), "new")
    assert agent.messages == []
    chat.say(agent, "hello?")
    assert texts(agent_with(chat.open("s"))) == ["user: hello?", "assistant: new"]
    with pytest.raises(ValueError, match=r"ttl is datetime.timedelta\(0\)"):
        chat.open("s", ttl=timedelta())


def test_an_agent_in_use_moves_the_sessions_end(chat: Chat) -> None:
    agent = agent_with(chat.open("s", ttl=timedelta(seconds=3)), "hi")
    chat.say(agent, "hello")
    (session,) = chat.direct["sessions"].find()
    first = session["expires_at"]

    def moved() -> bool:
        chat.say(agent, "hello")
        (session,) = chat.direct["sessions"].find()
        return bool(session["expires_at"] > first)

    for _ in range(1_000):
        if moved():
            break
    else:
        pytest.fail("the session's end never moved")


# Records beside the conversation


def test_metadata_and_feedback(chat: Chat) -> None:
    manager = chat.open("s", metadata={"customer.plan": "free"}, application="shop", user="ann")

    def do(result: Any) -> Any:
        return chat.run(result) if chat.mode != "called" else result

    do(manager.update_metadata({"customer.plan": "pro", "customer.name": "Ann", "score": 3}))
    do(manager.delete_metadata("customer.name", "nothing"))
    assert do(manager.get_metadata()) == {"customer": {"plan": "pro"}, "score": 3}
    chat.open("s", metadata={"other": 1}, user="ann")  # ignored, because the session exists
    with pytest.raises(SessionOwnerError):
        chat.open("s", user="bob")
    assert do(manager.get_metadata()) == {"customer": {"plan": "pro"}, "score": 3}
    for path in ("", "a..b", ".a", "$set", "a.$b", "a\0b"):
        with pytest.raises(SessionException, match="metadata path"):
            do(manager.update_metadata({path: 1}))
    with pytest.raises(SessionException, match="a path leads through a value") as caught:
        do(manager.update_metadata({"score.s3cr3t": "s3cr3t"}))
    assert "s3cr3t" not in repr(caught.value)

    agent = agent_with(manager, "hi")
    with pytest.raises(SessionException, match="session 's' has no messages"):
        do(manager.add_feedback({"rating": "up"}))
    chat.say(agent, "hello")
    do(manager.add_feedback({"rating": "up", "comment": "good"}))
    do(manager.add_feedback({"rating": "down"}, "default"))
    do(chat.open("s").add_feedback({"rating": "later"}))  # like a separate request
    found = do(manager.repository.list_feedback("s", "default"))
    ratings = [(one["message_id"], one["rating"]) for one in found]
    assert ratings == [(1, "up"), (1, "down"), (1, "later")]
    wrong: Any
    for wrong in ("s3cr3t", ["s3cr3t"], 7, None):
        with pytest.raises(TypeError, match=r"feedback is .*: use a dict"):
            do(manager.add_feedback(wrong))
        with pytest.raises(TypeError, match=r"metadata is .*: use a dict") as unusable:
            do(manager.update_metadata(wrong))
        assert "s3cr3t" not in repr(unusable.value)
    for session in ("s", "new"):
        for wrong in ("", "s3cr3t", ["s3cr3t"], 7):
            with pytest.raises(TypeError, match=r"metadata is .*: use a dict"):
                chat.open(session, metadata=wrong)
    for wrong in ({"$ne": 1}, 7, ""):
        with pytest.raises(InvalidIdError, match=r"user is"):
            chat.open("s", user=wrong)
        with pytest.raises(InvalidIdError, match=r"user is"):
            do(chat.open("s").repository.list_sessions(user=wrong))
    usage = do(manager.usage())
    assert (usage.messages, usage.input_tokens, usage.total_tokens, usage.latency_ms) == (
        (2, 10, 15, 7)
    )
    for odd in (math.nan, math.inf, "many", [1], {"a": 1}, None, 2**70 * 1.0):
        odd_report = {"message.metadata.usage.inputTokens": odd, "feedback.1": odd}
        chat.direct["messages"].update_one({"message_id": 1}, {"$set": odd_report})
        usage = do(manager.usage())
        assert (usage.input_tokens, usage.total_tokens) == (0, 15)
        assert len(do(manager.repository.list_feedback("s", "default"))) == 2 + (odd == {"a": 1})
    (one,) = do(manager.repository.list_sessions(application="shop", user="ann"))
    assert (one.session_id, one.metadata["score"]) == ("s", 3)
    assert do(chat.open("s").repository.list_sessions(user="bob")) == []


# Owned and shared clients


def test_a_given_client_stays_open(chat: Chat) -> None:
    manager = chat.open("s")
    closing = manager.close()
    if closing is not None:
        chat.run(closing)
    assert len(agent_with(chat.open("s")).messages) == 0


def test_a_managers_own_client_is_watched_and_closed(server_uri: str) -> None:
    database = f"owned_{uuid.uuid4().hex[:12]}"
    with MongoDBSessionManager(
        "s", connection_string=server_uri, database_name=database, maxPoolSize=3
    ) as manager:
        agent_with(manager, "hi")("hello")
        assert manager._owned is not None
        stats = manager._owned.telemetry.stats()
        assert stats.pools[0].max_size == 3
        assert stats.agents.turns == 1
    manager.close()
    with pytest.raises(InvalidOperation):
        manager.get_metadata()

    async def awaited() -> None:
        manager = await AsyncMongoDBSessionManager.open(
            "s", connection_string=server_uri, database_name=database
        )
        async with manager:
            assert len(agent_with(manager).messages) == 2
        await manager.close()
        with pytest.raises(InvalidOperation):
            await manager.get_metadata()

    asyncio.run(awaited())
    with Client(server_uri) as client:
        client.drop_database(database)


def test_a_manager_without_a_client_uses_the_singletons(server_uri: str) -> None:
    with pytest.raises(PoolNotInitializedError):
        MongoDBSessionManager("s")
    database = f"shared_{uuid.uuid4().hex[:12]}"
    client = MongoDBConnectionPool.initialize(server_uri)
    with MongoDBSessionManager("s", database_name=database) as manager:
        agent_with(manager, "hi")("hello")
    assert client.admin.command("ping")["ok"]
    assert MongoDBConnectionPool.get_pool_stats()["agents"]["turns"] == 1

    async def awaited() -> None:
        for _ in range(2):  # the synchronous singleton, then the asynchronous one
            manager = await AsyncMongoDBSessionManager.open("s", database_name=database)
            await agent_with(manager, "hi").invoke_async("hello")
            await AsyncMongoDBConnectionPool.initialize(server_uri)
        assert AsyncMongoDBConnectionPool.get_pool_stats()["agents"]["turns"] == 1
        await AsyncMongoDBConnectionPool.close()

    asyncio.run(awaited())
    client.drop_database(database)


def test_arguments_for_two_clients_are_an_error(server_uri: str) -> None:
    with Client(server_uri) as client:
        with pytest.raises(PoolConfigurationError, match="both given"):
            MongoDBSessionManager("s", client, server_uri)
        with pytest.raises(PoolConfigurationError, match="unknown option maxPoolSize: Mongo"):
            MongoDBSessionManager("s", client, maxPoolSize=3)
        with pytest.raises(PoolConfigurationError, match="both given"):
            MongoDBSessionManagerFactory(server_uri, client=client)


def test_errors_contain_no_secret() -> None:
    uri = "mongodb://ann:s3cr3t@127.0.0.1:1/?serverSelectionTimeoutMS=50"
    for make in (
        lambda: MongoDBSessionManager("s", connection_string=uri),
        lambda: asyncio.run(AsyncMongoDBSessionManager.open("s", connection_string=uri)),
        lambda: MongoDBSessionManagerFactory(connection_string=uri),
    ):
        with pytest.raises(PyMongoError) as caught:
            make()
        assert "s3cr3t" not in repr(caught.value) + str(caught.value)


def test_an_object_that_is_not_a_fitting_client_is_an_error(
    server_uri: str, runner: asyncio.Runner
) -> None:
    asynchronous = runner.run(_made(AsyncMongoClient, server_uri))
    with Client(server_uri) as client:
        wrong: Any
        for wrong in (server_uri, client["shop"], asynchronous):
            with pytest.raises(TypeError, match=r"client is (str|Database|Async.*): use Mongo"):
                MongoDBSessionManager("s", wrong)
        for wrong in (server_uri, client["shop"]):
            with pytest.raises(TypeError, match="use AsyncMongoClient or MongoClient"):
                runner.run(AsyncMongoDBSessionManager.open("s", wrong))
        with pytest.raises(TypeError, match=r"use `await AsyncMongoDBSessionManager.open"):
            AsyncMongoDBSessionManager("s", client=client)
    with pytest.raises(PoolNotInitializedError, match="neither AsyncMongoDBConnectionPool nor"):
        runner.run(AsyncMongoDBSessionManager.open("s"))
    runner.run(AsyncMongoDBConnectionPool.initialize(server_uri))
    with pytest.raises(TypeError, match="await open_session_manager"):
        MongoDBSessionManagerFactory().create_session_manager("s")
    runner.run(AsyncMongoDBConnectionPool.close())
    runner.run(asynchronous.close())


# The factory


def test_a_session_per_request_opens_no_connection_and_creates_no_index(server_uri: str) -> None:
    database = f"factory_{uuid.uuid4().hex[:12]}"
    client = MongoDBConnectionPool.initialize(server_uri, maxPoolSize=2, minPoolSize=0)
    telemetry = MongoDBConnectionPool.get_telemetry()
    assert telemetry is not None
    with pytest.raises(PoolNotInitializedError, match="initialize_global_factory"):
        get_global_factory()
    initialize_global_factory(database_name=database, application="shop")
    factory = get_global_factory()
    factory.create_session_manager("first")
    created = telemetry.stats().pools[0].created
    for number in range(20):
        manager = factory.create_session_manager(f"s{number}", user="ann")
        agent_with(manager, "hi")("hello")
    operations = {
        (one.operation, one.collection): one.duration.count
        for one in telemetry.stats().operations
        if one.namespace == database
    }
    assert operations["createIndexes", "strands_messages"] == 1
    assert operations["insert", "strands_messages"] == 40
    assert telemetry.stats().pools[0].created == created
    sessions = MongoDBSessionRepository(client, database).list_sessions(
        application="shop", user="ann"
    )
    assert len(sessions) == 20
    close_global_factory()
    close_global_factory()
    with pytest.raises(PoolNotInitializedError):
        get_global_factory()
    assert client.admin.command("ping")["ok"]  # the client belongs to the singleton
    client.drop_database(database)


def test_a_factory_closes_its_own_client(server_uri: str) -> None:
    database = f"factory_{uuid.uuid4().hex[:12]}"
    first = initialize_global_factory(server_uri, database)
    manager = first.create_session_manager("s")
    second = initialize_global_factory(server_uri, database)
    assert get_global_factory() is second
    with pytest.raises(InvalidOperation):
        manager.get_metadata()
    with second:

        async def awaited() -> None:
            opened = await second.open_session_manager("s")
            await agent_with(opened, "hi").invoke_async("hello")

        asyncio.run(awaited())
        second.create_session_manager("s").repository.delete_session("s")
    close_global_factory()

    async def asynchronous() -> None:
        async with AsyncMongoClient[dict[str, Any]](server_uri) as client:
            factory = MongoDBSessionManagerFactory(client=client, database_name=database)
            with pytest.raises(TypeError, match="await open_session_manager"):
                factory.create_session_manager("s")
            await factory.open_session_manager("s")
            await client.drop_database(database)

    asyncio.run(asynchronous())


# Spans and metrics


def test_spans_name_the_conversation_and_metrics_do_not(chat: Chat) -> None:
    exporter = InMemorySpanExporter()
    telemetry = PoolTelemetry("traced", options=TelemetryOptions(query_text=True))
    client = chat.connect(chat.uri, telemetry)
    with traced_to(SimpleSpanProcessor(exporter)):
        agent = agent_with(chat.open("s-42", client, user="ann"), "s3cr3t", name="Concierge")
        chat.say(agent, "my password is s3cr3t")
        chat.direct["other"].find_one()
    ours = [span.to_json() for span in exporter.get_finished_spans() if span.kind.name == "CLIENT"]
    assert not [text for text in ours if "s3cr3t" in text or "ann" in text]
    spans = [span for span in exporter.get_finished_spans() if span.kind.name == "CLIENT"]
    found = {
        span.name: {
            key: value
            for key, value in (span.attributes or {}).items()
            if key.startswith("gen_ai.")
        }
        for span in spans
    }
    assert found["findAndModify sessions"] == {"gen_ai.conversation.id": "s-42"}
    assert found["insert messages"] == {
        "gen_ai.conversation.id": "s-42",
        "gen_ai.agent.id": "default",
        "gen_ai.agent.name": "Concierge",
    }
    text = prometheus.generate()[0].decode()
    assert "s-42" not in text
    assert "Concierge" not in text


@pytest.mark.bulk
def test_1000_sessions_at_once_on_a_pool_of_20(
    server_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    database = f"crowd_{uuid.uuid4().hex[:12]}"

    async def all_at_once() -> None:
        telemetry = PoolTelemetry("crowd")
        client = AsyncMongoClient[dict[str, Any]](
            server_uri, maxPoolSize=20, event_listeners=telemetry.listeners
        )
        factory = MongoDBSessionManagerFactory(client=client, database_name=database)
        await factory.open_session_manager("first")
        most = 0

        async def converse(number: int) -> None:
            nonlocal most
            manager = await factory.open_session_manager(f"s{number}")
            agent = agent_with(manager, "hi")
            await agent.invoke_async("hello")
            if number % 50 == 0:
                most = max(most, telemetry.pool_stats()[0].waiting)

        await asyncio.gather(*map(converse, range(1_000)))
        pool = telemetry.stats().pools[0]
        agents = telemetry.stats().agents
        with capsys.disabled():
            print(
                f"\n1,000 sessions at once: {agents.turns} turns, {agents.operations} operations, "
                f"{pool.created} connections, up to {most} waiting seen, p95 wait "
                f"{(pool.wait_time.quantile(0.95) or 0) * 1e3:.1f} ms, "
                f"exhausted for {pool.exhausted_time:.2f} s"
            )
        assert (agents.turns, agents.conflicts) == (1_000, 0)
        assert pool.size <= 20
        assert {name for name, count in pool.checkouts.items() if count} == {"ok"}
        assert (pool.waiting, pool.in_use) == (0, 0)
        assert await client[database]["strands_messages"].count_documents({}) == 2_000
        await client.drop_database(database)
        await client.close()

    asyncio.run(all_at_once())
