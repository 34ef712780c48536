"""Calls outside of a turn, cancelled turns, lost managers, BidiAgents, and a factory's client."""

import asyncio
import functools
import gc
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pymongo
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import PyMongoError
from strands import tool
from strands.bidi import BidiAgent
from strands.bidi.models import BidiModel
from strands.bidi.types.events import (
    BidiConnectionStartEvent,
    BidiResponseStartEvent,
    BidiResponseStopEvent,
    BidiTextDeltaEvent,
    BidiTextStartEvent,
    BidiTextStopEvent,
    BidiToolUseBlocksEvent,
)
from strands.types.content import Message, Messages
from strands.types.exceptions import EventLoopException, SessionException

from pool_telemetry import MongoDBConnectionPool, PoolNotInitializedError, PoolTelemetry
from pool_telemetry.fastapi import create_router
from pool_telemetry.sessions import (
    AsyncMongoDBSessionManager,
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
    close_global_factory,
    initialize_global_factory,
)
from tests.proxy import Proxy
from tests.scripted import ScriptedModel, agent_with, texts
from tests.support import aexhausted, exhausted, logged, rest_in_bulk, until

MODES = ("awaited", "in threads")


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@pytest.fixture
def database(server_uri: str) -> Iterator[str]:
    name = f"turns_{uuid.uuid4().hex[:12]}"
    yield name
    with MongoClient[Any](server_uri) as client:
        client.drop_database(name)


@asynccontextmanager
async def a_client(mode: str, uri: str, **kwargs: Any) -> AsyncIterator[Any]:
    client: Any = (AsyncMongoClient if mode == "awaited" else MongoClient)(uri, **kwargs)
    yield client
    if (closing := client.close()) is not None:
        await closing


@asynccontextmanager
async def a_proxied_client(mode: str, uri: str, **kwargs: Any) -> AsyncIterator[tuple[Any, Proxy]]:
    with Proxy(int(uri.rpartition(":")[2].strip("/"))) as proxy:
        async with a_client(mode, proxy.uri, heartbeatFrequencyMS=500, **kwargs) as client:
            yield client, proxy


def restored(uri: str, database: str) -> list[str]:
    """Return the texts that an agent of another manager begins with."""
    with MongoClient[Any](uri) as client:
        return texts(agent_with(MongoDBSessionManager("s", client, database_name=database)))


def a_message(text: str, role: Any = "user") -> Message:
    return {"role": role, "content": [{"text": text}]}


# Calls outside of a turn


@pytest.mark.parametrize("mode", rest_in_bulk(MODES))
@in_a_loop
async def test_calls_by_hand_are_stored_by_flush_and_by_the_end_of_the_manager(
    mode: str, server_uri: str, database: str
) -> None:
    async with a_client(mode, server_uri) as client:
        async with await AsyncMongoDBSessionManager.open(
            "s", client, database_name=database
        ) as manager:
            agent = agent_with(manager)
            manager.append_message(a_message("one"), agent)
            agent.state.set("plan", "pro")
            manager.sync_agent(agent)
            await manager.flush()
            assert restored(server_uri, database) == ["user: one"]
            manager.append_message(a_message("two"), agent)
            manager.redact_latest_message(a_message("redacted"), agent)
        assert restored(server_uri, database) == ["user: one", "user: redacted"]
        again = await AsyncMongoDBSessionManager.open("s", client, database_name=database)
        assert agent_with(again).state.get() == {"plan": "pro"}


@pytest.mark.parametrize("mode", rest_in_bulk(MODES))
@in_a_loop
async def test_messages_are_listed_again_and_with_later_ones(
    mode: str, server_uri: str, database: str
) -> None:
    async with a_client(mode, server_uri) as client:
        for prompt in ("first", "second"):
            manager = await AsyncMongoDBSessionManager.open("s", client, database_name=database)
            await agent_with(manager, "fine").invoke_async(prompt)
        stored = manager.session_repository
        for _ in range(2):
            assert [one.message_id for one in stored.list_messages("s", "default")] == [0, 1, 2, 3]
        assert len(stored.list_messages("s", "default", limit=2, offset=1)) == 2
        third = stored.read_message("s", "default", 2)
        assert third is not None
        assert third.message["content"] == [{"text": "second"}]
        assert stored.read_message("s", "default", 4) is None


@in_a_loop
async def test_a_lost_manager_with_unwritten_messages_is_logged(
    server_uri: str, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_client("awaited", server_uri) as client:
        manager = await AsyncMongoDBSessionManager.open("s", client, database_name=database)
        agent = agent_with(manager)
        gc.collect()
        assert not logged(caplog, "may be lost")
        manager.append_message(a_message("s3cr3t"), agent)
        del manager, agent
        gc.collect()
        (line,) = logged(caplog, "may be lost")
        assert "session 's': 1 writes of agent 'default' may be lost" in line
        assert "flush()" in line
        assert "s3cr3t" not in line
        unused = await AsyncMongoDBSessionManager.open("s", client, database_name=database)
        agent_with(unused)
        del unused
        gc.collect()
        assert len(logged(caplog, "may be lost")) == 1


@pytest.mark.parametrize("mode", rest_in_bulk(MODES))
@in_a_loop
async def test_leaving_a_manager_whose_server_is_gone_raises(
    mode: str, server_uri: str, database: str
) -> None:
    async with a_proxied_client(mode, server_uri) as (client, proxy):
        manager = await AsyncMongoDBSessionManager.open("s", client, database_name=database)
        agent = agent_with(manager)
        manager.append_message(a_message("one"), agent)
        proxy.refuse()
        proxy.cut()
        with pymongo.timeout(0.5), pytest.raises(PyMongoError):
            async with manager:
                pass
        proxy.accept()
        await manager.flush()
        assert restored(server_uri, database) == ["user: one"]


# A cancelled turn


class AnswersLater(ScriptedModel):
    """Answers when `go` is set."""

    def __init__(self, *steps: Any) -> None:
        super().__init__(steps)
        self.go = asyncio.Event()

    async def stream(
        self, messages: Messages, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        async for chunk in super().stream(messages, *args, **kwargs):
            yield chunk
            await self.go.wait()


@pytest.mark.parametrize("mode", MODES)
@in_a_loop
async def test_an_answer_that_was_shown_survives_the_end_of_its_request(
    mode: str, server_uri: str, database: str
) -> None:
    telemetry = PoolTelemetry(f"cancelled {mode}")
    async with a_client(
        mode, server_uri, maxPoolSize=1, event_listeners=telemetry.listeners
    ) as client:

        async def opened() -> AsyncMongoDBSessionManager:
            return await AsyncMongoDBSessionManager.open("s", client, database_name=database)

        model = AnswersLater("42")
        agent = agent_with(await opened(), model=model)
        request = asyncio.create_task(agent.invoke_async("the answer?"))
        await until(lambda: model.asked)
        one_waits = lambda: telemetry.occupancy().waiting == 1  # noqa: E731
        if mode == "awaited":
            async with aexhausted(client):
                model.go.set()
                await until(one_waits)
                next_open = await _end(request, opened)
        else:
            with exhausted(client):
                model.go.set()
                await until(one_waits)
                next_open = await _end(request, opened)
        assert texts(agent_with(await next_open)) == ["user: the answer?", "assistant: 42"]
        # The agent itself can go on, and each message is stored once.
        await agent.invoke_async("really?")
        assert len(restored(server_uri, database)) == 4


async def _end(request: "asyncio.Task[Any]", opened: Any) -> "asyncio.Task[Any]":
    """Cancel a request and begin the next one."""
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    following = asyncio.create_task(opened())
    await asyncio.sleep(0)
    assert not following.done()
    return following


@pytest.mark.parametrize("mode", rest_in_bulk(MODES))
@in_a_loop
async def test_a_cancelled_turn_whose_server_is_gone_is_logged(
    mode: str, server_uri: str, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    short = {"serverSelectionTimeoutMS": 2_000}
    async with a_proxied_client(mode, server_uri, **short) as (client, proxy):
        manager = await AsyncMongoDBSessionManager.open("s", client, database_name=database)
        agent = agent_with(manager)
        manager.append_message(a_message("s3cr3t"), agent)
        proxy.refuse()
        proxy.cut()
        flushing = asyncio.create_task(manager.flush())
        await asyncio.sleep(0)
        flushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flushing
        await until(lambda: logged(caplog, "not stored yet"))
        assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize("mode", [*MODES, "called"])
@in_a_loop
async def test_a_model_gets_messages_of_the_user_that_follow_each_other_as_one(
    mode: str, server_uri: str, database: str
) -> None:
    """A turn failed before its answer, and after its tool: some models reject two prompts then."""
    async with a_client(mode, server_uri) as client:

        async def agent_of(*steps: Any) -> Any:
            if mode == "called":
                manager: Any = MongoDBSessionManager("s", client, database_name=database)
            else:
                manager = await AsyncMongoDBSessionManager.open("s", client, database_name=database)
            return agent_with(manager, *steps, tools=[note])

        failing: list[tuple[Any, ...]] = [
            (RuntimeError("out of order"),),
            ({"tool": "note", "input": {"text": "tea"}}, RuntimeError("out of order")),
        ]
        for number, steps in enumerate(failing):
            agent = await agent_of(*steps)
            with pytest.raises((EventLoopException, RuntimeError), match="out of order"):
                await agent.invoke_async(f"try {number}")
        agent = await agent_of("fine")
        await agent.invoke_async("again")
        (asked,) = agent.model.asked
        assert [one["role"] for one in asked] == ["user", "assistant", "user"]
        assert [block.get("text") for block in asked[0]["content"]] == ["try 0", "try 1"]
        assert ["toolResult" in block for block in asked[2]["content"]] == [True, False]
        stored = (await agent_of()).messages
        assert stored == agent.messages
        assert len(stored) == 6


@in_a_loop
async def test_a_turn_on_another_event_loop_says_what_to_do(server_uri: str, database: str) -> None:
    async with a_client("awaited", server_uri) as client:
        manager = await AsyncMongoDBSessionManager.open("s", client, database_name=database)
        agent = agent_with(manager, "fine")
        with pytest.raises((EventLoopException, SessionException), match="invoke_async"):
            await asyncio.to_thread(agent, "hello")
        with pytest.raises(TypeError, match="agent_id is no text"):
            await AsyncMongoDBSessionManager.open(
                "s",
                client,
                database_name=database,
                agent_id=[5],  # type: ignore[list-item]
            )


# A BidiAgent


class Speaks(BidiModel):
    """Answers each message with the next step; after a part of "half" it never goes on."""

    def __init__(self, *steps: Any) -> None:
        self.started_with: Messages = []
        self._steps = iter(steps)
        self._events: asyncio.Queue[Any] = asyncio.Queue()

    def update_config(self, **config: Any) -> None: ...

    def get_config(self) -> dict[str, Any]:
        return {"model_id": "scripted"}

    async def start(
        self, system_prompt: Any = None, tools: Any = None, messages: Any = None, **kwargs: Any
    ) -> None:
        self.started_with = [*(messages or [])]
        self._events.put_nowait(BidiConnectionStartEvent("c", "scripted"))

    async def stop(self) -> None: ...

    async def receive(self) -> AsyncGenerator[Any, None]:
        while True:
            yield await self._events.get()

    async def send(self, content: Any) -> None:
        step = next(self._steps)
        put = self._events.put_nowait
        put(BidiResponseStartEvent("r"))
        if isinstance(step, dict):
            put(BidiToolUseBlocksEvent([{"toolUseId": "t", "name": "note", "input": step}]))
            put(BidiResponseStopEvent("r"))
            return
        put(BidiTextStartEvent("b"))
        put(BidiTextDeltaEvent(step, "b"))
        if step != "half":
            put(BidiTextStopEvent("b"))
            put(BidiResponseStopEvent("r"))


@tool
def note(text: str) -> str:
    """Note a text."""
    return f"noted {text}"


def bidi(manager: Any, *steps: Any, model: Any = None) -> BidiAgent:
    return BidiAgent(model or Speaks(*steps), tools=[note], session_manager=manager)


@asynccontextmanager
async def talking(agent: BidiAgent) -> AsyncIterator[list[Any]]:
    """Start an agent, yield the types of the events that it sends, and stop it."""
    heard: list[Any] = []

    async def hear() -> None:
        async for event in agent.receive():
            heard.append(event.get("type"))  # noqa: PERF401  # others read it meanwhile

    await agent.start()
    hearing = asyncio.create_task(hear())
    yield heard
    await agent.stop()
    hearing.cancel()
    await asyncio.gather(hearing, return_exceptions=True)


@pytest.mark.parametrize("mode", rest_in_bulk(["awaited", "called", "in threads"], keep=2))
@in_a_loop
async def test_a_bidi_agents_conversation_is_restored_as_it_was(
    mode: str, server_uri: str, database: str
) -> None:
    telemetry = PoolTelemetry(f"bidi {mode}")
    async with a_client(mode, server_uri, event_listeners=telemetry.listeners) as client:

        async def opened(**kwargs: Any) -> Any:
            if mode == "called":
                return MongoDBSessionManager("s", client, database_name=database, **kwargs)
            return await AsyncMongoDBSessionManager.open(
                "s", client, database_name=database, **kwargs
            )

        first = bidi(await opened(), "hello there", {"text": "tea"}, "it is noted")
        async with talking(first) as heard:
            await first.send("hi")
            await until(lambda: heard.count("bidi_response_stop") == 1)
            await first.send("note tea")
            await until(lambda: heard.count("bidi_response_stop") == 3)
            first.state.set("mood", "good")
        assert telemetry.stats().agents.turns == 3

        model = Speaks()
        again = bidi(await opened(), model=model)
        assert again.messages == first.messages
        assert again.state.get() == {"mood": "good"}
        assert all(one["content"] for one in again.messages)
        async with talking(again):
            assert model.started_with == first.messages
        few = bidi(await opened(restore_last=2))
        assert 0 < len(few.messages) < len(first.messages)
        async with talking(few):
            few.state.set("mood", "better")
        assert bidi(await opened()).messages == first.messages


@pytest.mark.parametrize("mode", rest_in_bulk(MODES))
@in_a_loop
async def test_a_bidi_message_that_never_ended_is_not_stored_empty(
    mode: str, server_uri: str, database: str
) -> None:
    async with a_client(mode, server_uri) as client:
        manager = await AsyncMongoDBSessionManager.open("s", client, database_name=database)
        agent = bidi(manager, "half")
        async with talking(agent) as heard:
            await agent.send("hi")
            await until(lambda: "bidi_text_delta" in heard)
            assert len(agent.messages) == 2
            began = bidi(await AsyncMongoDBSessionManager.open("s", client, database_name=database))
            assert began.messages == agent.messages[:1]  # as another process would see it
        ended = bidi(await AsyncMongoDBSessionManager.open("s", client, database_name=database))
        assert ended.messages == agent.messages
        assert ended.messages[1]["content"] == [{"text": "half"}]


# A factory's client is the process's pool


def test_a_factorys_client_is_the_one_that_health_and_stats_show(
    server_uri: str, database: str
) -> None:
    app = FastAPI()
    app.include_router(create_router(registry=CollectorRegistry()))
    with TestClient(app) as http:
        assert http.get("/health/ready").status_code == 503
        factory = initialize_global_factory(server_uri, database)
        assert http.get("/health/ready").status_code == 200
        agent_with(factory.create_session_manager("s"), "fine")("hello")
        stats = MongoDBConnectionPool.get_pool_stats()
        assert stats["status"] == "connected"
        assert stats["checkouts"]["ok"] > 5
        agent_with(MongoDBSessionManager("s", database_name=database), "fine")("again")
        close_global_factory()
        assert http.get("/health/ready").status_code == 503
    with pytest.raises(PoolNotInitializedError):
        MongoDBConnectionPool.get_client()


def test_the_singletons_own_client_goes_before_a_factorys(server_uri: str, database: str) -> None:
    with MongoDBSessionManagerFactory(server_uri, database) as factory:
        theirs = MongoDBConnectionPool.get_client()
        other = MongoDBConnectionPool.initialize(server_uri, maxPoolSize=3)
        assert MongoDBConnectionPool.get_client() is other is not theirs
        MongoDBConnectionPool.close()
        assert MongoDBConnectionPool.get_client() is theirs
        factory.create_session_manager("s")  # its client was neither replaced nor closed
        # With the same settings it becomes the singleton's own, and outlives the factory.
        assert MongoDBConnectionPool.initialize(server_uri) is theirs
    assert theirs.admin.command("ping")["ok"]
    MongoDBConnectionPool.close()
    assert MongoDBConnectionPool.get_pool_stats()["status"] == "not_initialized"


# The blocking manager on an event loop


@in_a_loop
async def test_a_blocking_manager_on_an_event_loop_is_logged_once_for_a_place(
    server_uri: str, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    with MongoClient[Any](server_uri) as client:
        await asyncio.to_thread(MongoDBSessionManager, "s", client, database_name=database)
        assert not logged(caplog, "event loop")
        factory = MongoDBSessionManagerFactory(client=client, database_name=database)
        for _ in range(3):
            factory.create_session_manager("s")
        (line,) = logged(caplog, "event loop")
        assert "test_session_turns.py" in line
        assert "AsyncMongoDBSessionManager.open" in line
        MongoDBSessionManager("s", client, database_name=database)
        assert len(logged(caplog, "event loop")) == 2
        assert {one.levelno for one in caplog.records if "event loop" in one.message} == {
            logging.WARNING
        }
