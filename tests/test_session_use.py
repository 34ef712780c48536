"""Applications ask sessions for usage, names and feedback; hooks are called after a change."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import astuple
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from strands import tool

from pool_telemetry.sessions import (
    AsyncMongoDBSessionManager,
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
    MongoDBSessionRepository,
)
from tests.scripted import agent_with
from tests.support import rest_in_bulk

Client = MongoClient[dict[str, Any]]


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_usage_is_counted_by_session_agent_and_message(client: Client, database: str) -> None:
    manager = MongoDBSessionManager("s", client, database_name=database)
    call = {"tool": "add", "input": {"a": 1, "b": 2}}
    agent_with(manager, call, "3", "hello", tools=[add], agent_id="adder")("1 + 2?")
    agent_with(manager, "hi", agent_id="other")("hello")
    first_byte = {"message.metadata.metrics.timeToFirstByteMs": 40}
    client[database]["strands_messages"].update_one(
        {"agent_id": "adder", "message_id": 1}, {"$set": first_byte}
    )
    client[database]["strands_messages"].update_one(
        {"agent_id": "adder", "message_id": 3},
        {"$set": {"message.metadata.metrics.timeToFirstByteMs": 20}},
    )
    repository = manager.repository
    # messages, tokens in, out, total, read from and written to a cache, ms, cycles, tool calls
    adder = (4, 20, 10, 30, 0, 0, 14, 2, 1, 30.0)
    by_agent = repository.usage_by_agent("s")
    assert [*by_agent] == ["adder", "other"]
    assert astuple(by_agent["adder"]) == astuple(manager.usage("adder")) == adder
    assert astuple(manager.usage())[:9] == (6, 30, 15, 45, 0, 0, 21, 3, 1)
    by_message = repository.usage_by_message("s", "adder")
    assert [*by_message] == [0, 1, 2, 3]
    assert astuple(by_message[0]) == (1, 0, 0, 0, 0, 0, 0, 0, 0, None)
    assert astuple(by_message[1]) == (1, 10, 5, 15, 0, 0, 7, 1, 1, 40.0)
    assert astuple(by_message[3]) == (1, 10, 5, 15, 0, 0, 7, 1, 0, 20.0)
    assert repository.usage_by_agent("missing") == {}
    assert astuple(repository.usage("missing")) == (0,) * 9 + (None,)


@pytest.mark.parametrize("way", ["called", "awaited"])
def test_a_manager_returns_names_and_feedback(
    way: str, server_uri: str, client: Client, database: str
) -> None:
    how: dict[str, Any] = {"database_name": database, "application": "shop", "user": "ann"}
    with_names = MongoDBSessionManager("s", client, **how)
    for name in ("b", "a"):
        agent_with(with_names, agent_id=name)("hello")
        with_names.add_feedback({"rating": name}, name)

    async def awaited() -> tuple[Any, ...]:
        async with AsyncMongoClient[dict[str, Any]](server_uri) as other:
            manager = await AsyncMongoDBSessionManager.open("s", other, database_name=database)
            return (
                await manager.get_application_name(),
                await manager.get_user(),
                await manager.get_feedbacks(),
            )

    if way == "awaited":
        application, user, feedback = asyncio.run(awaited())
    else:
        application, user, feedback = (
            with_names.get_application_name(),
            with_names.get_user(),
            with_names.get_feedbacks(),
        )
    assert (application, user) == ("shop", "ann")
    assert [(one["agent_id"], one["message_id"], one["rating"]) for one in feedback] == [
        ("a", 1, "a"),
        ("b", 1, "b"),
    ]


def test_a_missing_session_has_no_names(client: Client, database: str) -> None:
    repository = MongoDBSessionRepository(client, database)
    assert repository.get_application_name("s") is None
    assert repository.get_user("s") is None


Calls = list[tuple[str, str, dict[str, Any]]]
EXPECTED: Calls = [
    ("metadata", "s", {"plan.name": "pro", "old": 1}),
    ("metadata", "s", {"old": None}),
    ("feedback", "s", {"rating": "up"}),
]


def recording(calls: Calls, kind: str) -> Callable[[str, Mapping[str, Any]], None]:
    def hook(session_id: str, values: Mapping[str, Any]) -> None:
        calls.append((kind, session_id, dict(values)))

    return hook


def recording_async(calls: Calls, kind: str) -> Callable[[str, Mapping[str, Any]], Awaitable[None]]:
    async def hook(session_id: str, values: Mapping[str, Any]) -> None:
        await asyncio.sleep(0)
        calls.append((kind, session_id, dict(values)))

    return hook


def change(manager: MongoDBSessionManager) -> None:
    agent_with(manager)("hello")
    manager.update_metadata({"plan.name": "pro", "old": 1})
    manager.delete_metadata("old")
    manager.add_feedback({"rating": "up"})
    assert manager.get_metadata() == {"plan": {"name": "pro"}}
    assert manager.get_feedbacks()[0]["rating"] == "up"


async def change_async(manager: AsyncMongoDBSessionManager) -> None:
    await agent_with(manager).invoke_async("hello")
    await manager.update_metadata({"plan.name": "pro", "old": 1})
    await manager.delete_metadata("old")
    await manager.add_feedback({"rating": "up"})
    assert await manager.get_metadata() == {"plan": {"name": "pro"}}


def test_hooks_are_called_after_each_change(client: Client, database: str) -> None:
    calls: Calls = []
    hooks: dict[str, Any] = {
        f"{kind}_hook": recording(calls, kind) for kind in ("metadata", "feedback")
    }
    change(MongoDBSessionManager("s", client, database_name=database, **hooks))
    assert calls == EXPECTED
    calls.clear()
    factory = MongoDBSessionManagerFactory(client=client, database_name=database, **hooks)
    change(factory.create_session_manager("s"))
    assert calls == EXPECTED


@pytest.mark.parametrize("kind_of", rest_in_bulk([recording_async, recording]))
def test_an_asynchronous_manager_awaits_its_hooks(
    kind_of: Callable[[Calls, str], Any], server_uri: str, database: str
) -> None:
    calls: Calls = []
    hooks: dict[str, Any] = {
        f"{kind}_hook": kind_of(calls, kind) for kind in ("metadata", "feedback")
    }

    async def run() -> None:
        async with AsyncMongoClient[dict[str, Any]](server_uri) as client:
            factory = MongoDBSessionManagerFactory(client=client, database_name=database, **hooks)
            await change_async(await factory.open_session_manager("s"))

    asyncio.run(run())
    assert calls == EXPECTED


def failing_hook(session_id: str, values: Mapping[str, Any]) -> None:
    raise RuntimeError("the queue is down")


async def failing_async_hook(session_id: str, values: Mapping[str, Any]) -> None:
    raise RuntimeError("the queue is down")


@pytest.mark.parametrize("hook", rest_in_bulk([failing_async_hook, failing_hook]))
def test_a_hook_that_fails_is_logged_and_the_values_are_stored(
    hook: Any, client: Client, server_uri: str, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    hooks: dict[str, Any] = {"metadata_hook": hook, "feedback_hook": hook}

    async def run() -> None:
        async with AsyncMongoClient[dict[str, Any]](server_uri) as other:
            manager = await AsyncMongoDBSessionManager.open(
                "s", other, database_name=database, **hooks
            )
            await change_async(manager)

    with caplog.at_level(logging.ERROR, "pool_telemetry.sessions"):
        if hook is failing_hook:
            change(MongoDBSessionManager("s", client, database_name=database, **hooks))
        else:
            asyncio.run(run())
    assert [one.getMessage() for one in caplog.records] == [
        "metadata_hook failed; the values are stored",
        "metadata_hook failed; the values are stored",
        "feedback_hook failed; the values are stored",
    ]


@pytest.mark.parametrize("hook", [failing_async_hook, "print"])
def test_a_blocking_manager_refuses_a_hook_that_it_cannot_call(
    hook: Any, client: Client, database: str
) -> None:
    with pytest.raises(TypeError, match="metadata_hook is "):
        MongoDBSessionManager("s", client, database_name=database, metadata_hook=hook)
