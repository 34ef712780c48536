"""Count the costs of a conversation over each session manager: messages and commands.

Each request opens the session and makes an agent, as a web service does. The model refuses a call
with more messages than it can hold, so that an agent restored with more messages than it had shows
in the counts. Nothing here depends on the machine's speed.
"""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pymongo import AsyncMongoClient, MongoClient
from pymongo.monitoring import CommandListener
from strands import Agent, tool
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.session.file_session_manager import FileSessionManager
from strands.types.content import Messages
from strands.types.exceptions import ContextWindowOverflowException

from pool_telemetry.sessions import AsyncMongoDBSessionManager, MongoDBSessionManager
from tests.scripted import ScriptedModel, Step, agent_with, chunks

DATABASE: Final = "benchmark_sessions"
PROMPTS: Final = tuple(f"{'add' if n % 5 == 4 else 'prompt'} {n}" for n in range(30))
FILES, CALLED, AWAITED = "FileSessionManager", "MongoDBSessionManager", "AsyncMongoDBSessionManager"

# The number of messages that the model holds, by the conversation's window: many more than the
# window, just enough for it, and far fewer.
WINDOWS: Final = {4: 60, 10: 13, 40: 8}


class Costs(NamedTuple):
    """The costs of a conversation."""

    refused: int  # model calls
    sent: int  # messages in all calls of the model
    commands: float  # a request, except the first


@dataclass
class Commands(CommandListener):
    """Counts the commands of a client."""

    count: int = 0

    def started(self, event: Any) -> None:
        self.count += 1

    def succeeded(self, event: Any) -> None: ...

    def failed(self, event: Any) -> None: ...


class SmallModel(ScriptedModel):
    """Refuses a call with too many messages; without a step it answers, or adds if asked to."""

    def __init__(self, holds: int, steps: Iterable[Step] = ()) -> None:
        super().__init__(steps)
        self.refused = 0
        self._holds = holds

    async def stream(
        self, messages: Messages, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        self.asked.append([*messages])
        if len(messages) > self._holds:
            self.refused += 1
            raise ContextWindowOverflowException(f"more than {self._holds} messages")
        asks = any("add" in block.get("text", "") for block in messages[-1]["content"])
        usual: Step = {"tool": "add", "input": {"a": 1, "b": 2}} if asks else "an answer"
        step = next(self._steps, usual)
        if isinstance(step, Exception):
            raise step
        for chunk in chunks(step, len(self.asked)):
            yield chunk

    def costs(self, commands: Commands) -> Costs:
        """Return the costs of the conversation so far."""
        sent = sum(map(len, self.asked))
        return Costs(self.refused, sent, round(commands.count / (len(PROMPTS) - 1), 2))


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def compare(uri: str, windows: Iterable[int] = tuple(WINDOWS)) -> dict[int, dict[str, Costs]]:
    """Return the costs of a conversation over each manager, by its window."""
    return {
        window: {
            FILES: _over_files(window),
            CALLED: _called(window, uri),
            AWAITED: asyncio.run(_awaited(window, uri)),
        }
        for window in windows
    }


def _over_files(window: int) -> Costs:
    model = SmallModel(WINDOWS[window])
    with tempfile.TemporaryDirectory() as folder:
        for prompt in PROMPTS:
            _agent(FileSessionManager("s", storage_dir=folder), model, window)(prompt)
    return model.costs(Commands())


def _called(window: int, uri: str) -> Costs:
    commands, model = Commands(), SmallModel(WINDOWS[window])
    with MongoClient[Any](uri, event_listeners=[commands]) as client:
        for prompt in PROMPTS:
            if prompt == PROMPTS[1]:  # the first request has made the indexes and the session
                commands.count = 0
            _agent(MongoDBSessionManager("s", client, None, DATABASE), model, window)(prompt)
        costs = model.costs(commands)
        client.drop_database(DATABASE)
    return costs


async def _awaited(window: int, uri: str) -> Costs:
    commands, model = Commands(), SmallModel(WINDOWS[window])
    async with AsyncMongoClient[Any](uri, event_listeners=[commands]) as client:
        for prompt in PROMPTS:
            if prompt == PROMPTS[1]:
                commands.count = 0
            manager = await AsyncMongoDBSessionManager.open("s", client, None, DATABASE)
            await _agent(manager, model, window).invoke_async(prompt)
        costs = model.costs(commands)
        await client.drop_database(DATABASE)
    return costs


def _agent(manager: Any, model: SmallModel, window: int) -> Agent:
    size = SlidingWindowConversationManager(window_size=window)
    return agent_with(manager, model=model, tools=[add], conversation_manager=size)
