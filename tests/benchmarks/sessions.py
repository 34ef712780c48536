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
from tests.benchmarks.measure import Goal, show_heading
from tests.scripted import ScriptedModel, Step, agent_with, chunks

DATABASE: Final = "benchmark_sessions"
REQUESTS: Final = 20
FILES, CALLED, AWAITED = "FileSessionManager", "MongoDBSessionManager", "AsyncMongoDBSessionManager"

# The number of messages that the model holds, by the conversation's window: many more than the
# window, just enough for it, and far fewer.
WINDOWS: Final = {4: 60, 10: 13, 40: 8}


# The commands of a request before the count of removed messages was written in each turn, by the
# window; both managers of this library had the same, and FileSessionManager has none.
COMMANDS_BEFORE: Final = {4: 5.53, 10: 5.47, 40: 5.53}


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

    def costs(self, commands: Commands, requests: int) -> Costs:
        """Return the costs of the conversation so far."""
        sent = sum(map(len, self.asked))
        return Costs(self.refused, sent, round(commands.count / requests, 2))


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def run_sessions(uri: str) -> list[Goal]:
    """Measure (k)."""
    show_heading(
        "k",
        f"{REQUESTS} requests of a conversation, each with an agent of its own",
        f"no more than {FILES} in model calls and messages; one more command than before",
    )
    head = ("model calls refused", "messages sent", "commands a request", "before")
    print(f"    {'window':8}{'session manager':30}" + "".join(f"{one:>21}" for one in head))
    over = []  # by how much more than files refuse and send, and than the commands before
    for window in WINDOWS:
        rows = compare(uri, window)
        for name, costs in rows.items():
            before = 0.0 if name == FILES else COMMANDS_BEFORE[window]
            over.append([*(a - b for a, b in zip(costs, (*rows[FILES][:2], before), strict=True))])
            cells = (costs.refused, costs.sent, f"{costs.commands:.2f}", f"{before:.2f}")
            print(f"    {window:<8}{name:30}" + "".join(f"{one:>21}" for one in cells))
    refused, sent, commands = map(max, zip(*over, strict=True))
    return [
        Goal("k", "model calls refused, over files", 0, refused, "", 0),
        Goal("k", "messages sent, over files", 0, sent, "", 0),
        Goal("k", "commands a request, over before", 1, commands, ""),
    ]


def compare(uri: str, window: int, requests: int = REQUESTS) -> dict[str, Costs]:
    """Return the costs of a conversation over each manager."""
    prompts = [f"{'add' if n % 5 == 4 else 'prompt'} {n}" for n in range(requests)]
    return {
        FILES: _over_files(window, prompts),
        CALLED: _called(window, prompts, uri),
        AWAITED: asyncio.run(_awaited(window, prompts, uri)),
    }


def _over_files(window: int, prompts: list[str]) -> Costs:
    model = SmallModel(WINDOWS[window])
    with tempfile.TemporaryDirectory() as folder:
        for prompt in prompts:
            _agent(FileSessionManager("s", storage_dir=folder), model, window)(prompt)
    return model.costs(Commands(), len(prompts))


def _called(window: int, prompts: list[str], uri: str) -> Costs:
    commands, model = Commands(), SmallModel(WINDOWS[window])
    with MongoClient[Any](uri, event_listeners=[commands]) as client:
        for prompt in prompts:
            if prompt == prompts[1]:  # the first request has made the indexes and the session
                commands.count = 0
            _agent(MongoDBSessionManager("s", client, None, DATABASE), model, window)(prompt)
        costs = model.costs(commands, len(prompts) - 1)
        client.drop_database(DATABASE)
    return costs


async def _awaited(window: int, prompts: list[str], uri: str) -> Costs:
    commands, model = Commands(), SmallModel(WINDOWS[window])
    async with AsyncMongoClient[Any](uri, event_listeners=[commands]) as client:
        for prompt in prompts:
            if prompt == prompts[1]:
                commands.count = 0
            manager = await AsyncMongoDBSessionManager.open("s", client, None, DATABASE)
            await _agent(manager, model, window).invoke_async(prompt)
        costs = model.costs(commands, len(prompts) - 1)
        await client.drop_database(DATABASE)
    return costs


def _agent(manager: Any, model: SmallModel, window: int) -> Agent:
    size = SlidingWindowConversationManager(window_size=window)
    return agent_with(manager, model=model, tools=[add], conversation_manager=size)
