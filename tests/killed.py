"""Conversations of processes that each end themselves by SIGKILL at one of their writes.

`python -m tests.killed URI DATABASE MODE:WHEN:NUMBER...` forks a process for each of the last, and
prints those whose process was killed, as JSON. A process ends at the write of its number: `started`
is before the server gets the write, `succeeded` after. MODE is called or awaited.
"""

import asyncio
import json
import os
import signal
import sys
import threading
import traceback
from typing import Any

from pymongo import AsyncMongoClient, MongoClient
from pymongo.monitoring import CommandListener
from strands import tool
from strands.agent.conversation_manager import SlidingWindowConversationManager

from pool_telemetry.sessions import AsyncMongoDBSessionManager, MongoDBSessionManager
from tests.scripted import Step, agent_with

WRITES = ("insert", "update", "delete", "findAndModify")
SUM: Step = {"tool": "add", "input": {"a": 1, "b": 2}}
STEPS: tuple[Step, ...] = ("hi", SUM, SUM, "6")
PROMPTS = ("hello", "1 + 2, twice?")


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class KillsAt(CommandListener):
    """Ends this process at a write."""

    def __init__(self, when: str, number: int) -> None:
        self._when, self._number, self._writes = when, number, 0

    def started(self, event: Any) -> None:
        self._writes += event.command_name in WRITES
        self._kill("started", event)

    def succeeded(self, event: Any) -> None:
        self._kill("succeeded", event)

    def failed(self, event: Any) -> None: ...

    def _kill(self, when: str, event: Any) -> None:
        if (when, self._writes) == (self._when, self._number) and event.command_name in WRITES:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    uri, database, *kills = sys.argv[1:]
    assert threading.active_count() == 1  # a fork would leave the others out
    killed = []
    for kill in kills:
        mode, when, number = kill.split(":")
        child = os.fork()
        if not child:
            try:
                converse(uri, database, mode, kill, KillsAt(when, int(number)))
            except BaseException:  # noqa: BLE001 (a child must not go on as its parent)
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), status
        if status:
            killed.append(kill)
    print(json.dumps(killed))


def converse(uri: str, database: str, mode: str, session_id: str, listener: KillsAt) -> None:
    if mode == "awaited":
        asyncio.run(converse_async(uri, database, session_id, listener))
        return
    client = MongoClient[Any](uri, event_listeners=[listener])
    agent = agent_of(MongoDBSessionManager(session_id, client, None, database, prefix=""))
    for prompt in PROMPTS:
        agent(prompt)


async def converse_async(uri: str, database: str, session_id: str, listener: KillsAt) -> None:
    client = AsyncMongoClient[Any](uri, event_listeners=[listener])
    manager = await AsyncMongoDBSessionManager.open(session_id, client, None, database, prefix="")
    agent = agent_of(manager)
    for prompt in PROMPTS:
        await agent.invoke_async(prompt)


def agent_of(manager: Any, *steps: Step) -> Any:
    """Return an agent that trims its messages within the second turn."""
    window = SlidingWindowConversationManager(6, per_turn=True)
    return agent_with(manager, *(steps or STEPS), tools=[add], conversation_manager=window)


if __name__ == "__main__":
    main()
