"""An agent is restored with the messages that it had: removed messages, last messages, many agents.

Strands' FileSessionManager runs the same conversations and says what is right.
"""

import asyncio
import contextlib
import functools
import itertools
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo.errors import PyMongoError
from strands import Agent, tool
from strands.agent.conversation_manager import (
    ConversationManager,
    NullConversationManager,
    SlidingWindowConversationManager,
    SummarizingConversationManager,
)
from strands.session.file_session_manager import FileSessionManager
from strands.types.exceptions import EventLoopException, SessionException
from strands.types.session import SessionAgent, SessionMessage

from pool_telemetry.sessions import (
    InvalidIdError,
    MongoDBSessionManager,
    MongoDBSessionManagerFactory,
    MongoDBSessionRepository,
)
from pool_telemetry.sessions.documents import message_document, message_ids
from tests.benchmarks.sessions import (
    COMMANDS_BEFORE,
    FILES,
    REQUESTS,
    WINDOWS,
    SmallModel,
    add,
    compare,
)
from tests.scripted import Step, agent_with, texts
from tests.support import rest_in_bulk
from tests.test_session_manager import Chat

Made = Callable[[], ConversationManager]


class Clearing(NullConversationManager):
    """Removes all messages after each turn."""

    def apply_management(self, agent: Any, **kwargs: Any) -> None:
        self.removed_message_count += len(agent.messages)
        agent.messages.clear()


ROLES = ("user", "assistant")
PROMPTS = ("0", "1", "add", "3", "4")
MANAGERS: dict[str, tuple[Made, int]] = {  # with the number of messages that the model holds
    "window of 4": (lambda: SlidingWindowConversationManager(4), 60),
    "window of 40, small model": (lambda: SlidingWindowConversationManager(40), 5),
    "window in each turn": (lambda: SlidingWindowConversationManager(3, per_turn=True), 60),
    "window of some turns": (lambda: SlidingWindowConversationManager(4, per_turn=2), 5),
    "summary": (lambda: SummarizingConversationManager(0.5, 2), 5),
    "none": (NullConversationManager, 60),
    "window of 0": (lambda: SlidingWindowConversationManager(0), 60),
    "clearing": (Clearing, 60),
}


@contextlib.contextmanager
def chatting(mode: str, uri: str) -> Iterator[Chat]:
    database = f"chat_{uuid.uuid4().hex[:12]}"
    with asyncio.Runner() as runner, contextlib.closing(Chat(mode, uri, database, runner)) as chat:
        yield chat


@pytest.fixture(params=rest_in_bulk(["awaited", "called"]))
def chat(request: pytest.FixtureRequest, server_uri: str) -> Iterator[Chat]:
    with chatting(request.param, server_uri) as chat:
        yield chat


@pytest.fixture
def awaited(server_uri: str) -> Iterator[Chat]:
    with chatting("awaited", server_uri) as chat:
        yield chat


def plain(agent: Agent) -> list[Any]:
    """Return an agent's messages without their random ids."""
    return [(one["role"], one["content"]) for one in agent.messages]


def window(size: int = 4) -> SlidingWindowConversationManager:
    return SlidingWindowConversationManager(size)


@functools.cache
def with_files(name: str) -> tuple[list[Any], SmallModel]:
    """Return the messages before and after each request, and the model."""
    made, holds = MANAGERS[name]
    model, messages = SmallModel(holds), []
    with tempfile.TemporaryDirectory() as folder:
        for prompt in PROMPTS:
            manager = FileSessionManager("s", storage_dir=folder)
            agent = agent_with(manager, model=model, tools=[add], conversation_manager=made())
            messages.append(plain(agent))
            agent(prompt)
            messages.append(plain(agent))
    return messages, model


AWAITED = ("window of 40, small model", "window in each turn", "summary", "window of 0", "clearing")


@pytest.mark.parametrize(
    ("mode", "name"),
    [*(("called", name) for name in MANAGERS), *(("awaited", name) for name in AWAITED)],
)
def test_an_agent_per_request_has_the_messages_that_files_restore(
    mode: str, name: str, server_uri: str
) -> None:
    made, holds = MANAGERS[name]
    model, messages = SmallModel(holds), []
    with chatting(mode, server_uri) as chat:
        for prompt in PROMPTS:
            manager = chat.open("s")
            agent = agent_with(manager, model=model, tools=[add], conversation_manager=made())
            messages.append(plain(agent))
            chat.say(agent, prompt)
            messages.append(plain(agent))
    right, asked = with_files(name)
    assert messages == right
    assert model.refused == asked.refused
    assert [*map(len, model.asked)] == [*map(len, asked.asked)]


@pytest.mark.parametrize(
    ("size", "requests"),
    [(10, 9), *(pytest.param(size, REQUESTS, marks=pytest.mark.bulk) for size in WINDOWS)],
)
def test_a_conversation_costs_no_more_model_calls_than_with_files(
    size: int, requests: int, server_uri: str
) -> None:
    costs = compare(server_uri, size, requests)
    files = costs.pop(FILES)
    assert files.sent > 0
    for ours in costs.values():
        assert (ours.refused, ours.sent) == (files.refused, files.sent)
        assert 5 < ours.commands <= COMMANDS_BEFORE[size] + 1


def test_a_long_lived_agent_is_restored_as_it_is(chat: Chat) -> None:
    made, holds = MANAGERS["window of some turns" if chat.mode == "called" else "summary"]
    model = SmallModel(holds)
    agent = agent_with(chat.open("s"), model=model, tools=[add], conversation_manager=made())
    for prompt in PROMPTS:
        chat.say(agent, prompt)
        again = agent_with(chat.open("s"), conversation_manager=made())
        assert again.messages == agent.messages
        assert again.conversation_manager.get_state() == agent.conversation_manager.get_state()


@pytest.mark.parametrize(
    "made",
    [
        lambda: SlidingWindowConversationManager(40),  # trimmed because the model refuses a call
        lambda: SlidingWindowConversationManager(3, per_turn=True),
    ],
)
def test_a_turn_that_never_ends_is_restored_without_its_removed_messages(
    chat: Chat, made: Made
) -> None:
    """Open the session while a tool runs, as another process does after the first was killed."""
    seen: list[Any] = []

    @tool
    def look() -> str:
        """Open the session."""
        manager = MongoDBSessionManager("s", chat.direct.client, None, chat.database, prefix="")
        seen.append(agent_with(manager, conversation_manager=made()).messages)
        seen.append([*agent.messages])
        seen.append(chat.direct["agents"].find_one())
        return "done"

    steps: list[Step] = ["a", "b", "c", {"tool": "look", "input": {}}, "d"]
    model = SmallModel(6, steps)
    agent = agent_with(chat.open("s"), model=model, tools=[look], conversation_manager=made())
    for prompt in ("1", "2", "3"):
        chat.say(agent, prompt)
    before = chat.commands()
    chat.say(agent, "look")
    assert seen[0] == seen[1]
    assert 0 < len(seen[0]) < 7
    written = chat.spent(before)
    assert written.get("findAndModify agents", 0) <= 1
    assert written["insert messages"] == 4

    # Its process was killed before it could write the agent.
    chat.direct["agents"].replace_one({"_id": seen[2]["_id"]}, seen[2])
    again = agent_with(chat.open("s"), conversation_manager=made())
    assert len(again.messages) <= len(seen[0]) + 2  # the tool's result and the answer
    chat.say(again, "go on")
    assert agent_with(chat.open("s"), conversation_manager=made()).messages == again.messages


@pytest.mark.parametrize("holds", [60, 6])
def test_a_failed_turn_is_restored_without_its_removed_messages(chat: Chat, holds: int) -> None:
    size = 40 if holds == 6 else 4
    steps: list[Step] = ["a", "b", "c", RuntimeError("the model failed")]
    model = SmallModel(holds, steps)
    agent = agent_with(chat.open("s"), model=model, conversation_manager=window(size))
    for prompt in ("1", "2", "3"):
        chat.say(agent, prompt)
    with pytest.raises((RuntimeError, EventLoopException), match="the model failed"):
        chat.say(agent, "4")
    again = agent_with(chat.open("s"), conversation_manager=window(size))
    assert again.messages == agent.messages
    assert again.conversation_manager.removed_message_count > 0


@pytest.mark.parametrize("command", ["insert", "findAndModify"])
def test_a_count_whose_write_failed_is_written_by_the_next_turn(chat: Chat, command: str) -> None:
    agent = agent_with(
        chat.open("s"), conversation_manager=SlidingWindowConversationManager(4, per_turn=True)
    )
    for prompt in ("1", "2", "3"):
        chat.say(agent, prompt)
    control = chat.direct.client.admin
    data = {
        "failCommands": [command],
        "writeConcernError": {"code": 64, "errmsg": "timed out", "errInfo": {"wtimeout": True}},
    }
    control.command("configureFailPoint", "failCommand", mode={"times": 1}, data=data)
    try:
        with pytest.raises((PyMongoError, EventLoopException)):
            chat.say(agent, "4")
    finally:
        control.command("configureFailPoint", "failCommand", mode="off")
    chat.say(agent, "5")
    again = agent_with(
        chat.open("s"), conversation_manager=SlidingWindowConversationManager(4, per_turn=True)
    )
    assert again.messages == agent.messages
    assert again.conversation_manager.get_state() == agent.conversation_manager.get_state()


@pytest.mark.parametrize("restore_last", [None, 3])
def test_an_agent_without_restored_messages_goes_on_after_the_last(
    chat: Chat, restore_last: int | None
) -> None:
    def agent_of(*steps: Step) -> tuple[Any, Agent]:
        manager = chat.open("s", restore_last=restore_last)
        agent = agent_with(manager, *steps, conversation_manager=window(0))
        assert agent.messages == []
        return manager, agent

    _, agent = agent_of()
    chat.say(agent, "first")
    manager, agent = agent_of()
    manager.redact_latest_message({"role": "assistant", "content": [{"text": "..."}]}, agent)
    chat.say(agent, "second")
    chat.say(agent_of({"redact": "hidden"})[1], "third")
    stored = chat.stored("s")
    assert [one["message_id"] for one in stored] == [0, 1, 2, 3, 4, 5]
    redacted = {one["message_id"] for one in stored if one.get("redact_message")}
    assert redacted == {1, 4}
    chat.direct["messages"].delete_one({"message_id": 5})  # as if that turn was interrupted
    agent = agent_of()[1]
    chat.say(agent, "fourth")
    assert [one["message"]["role"] for one in chat.stored("s")[4:]] == ["user", "user", "assistant"]


class Undoing(NullConversationManager):
    """Counts no message as removed after a turn."""

    def apply_management(self, agent: Any, **kwargs: Any) -> None:
        self.removed_message_count = 0


def counting(count: int) -> Any:
    @tool(context=True)
    def remove(tool_context: Any) -> str:
        """Set the count."""
        tool_context.agent.conversation_manager.removed_message_count = count
        return "done"

    return remove


REMOVE: Step = {"tool": "remove", "input": {}}


def test_a_count_that_fell_at_the_end_of_a_turn_holds(chat: Chat) -> None:
    manager = chat.open("s")
    tools = [counting(2)]
    agent = agent_with(manager, "a", REMOVE, "b", tools=tools, conversation_manager=Undoing())
    chat.say(agent, "1")
    chat.say(agent, "2")
    counts = [one.get("conversation_manager_state") for one in chat.stored("s")]
    assert counts[-1] == {"removed_message_count": 2}
    again = agent_with(chat.open("s"), conversation_manager=Undoing())
    assert again.messages == agent.messages
    assert again.conversation_manager.removed_message_count == 0


@pytest.mark.parametrize("restore_last", [None, 40])
def test_a_count_that_fell_in_a_turn_that_never_ended_holds(
    chat: Chat, restore_last: int | None
) -> None:
    made = NullConversationManager
    agent = agent_with(chat.open("s"), REMOVE, tools=[counting(4)], conversation_manager=made())
    chat.say(agent, "1")
    agent = agent_with(chat.open("s"), REMOVE, tools=[counting(0)], conversation_manager=made())
    before = chat.direct["agents"].find_one()
    assert before is not None
    assert before["conversation_manager_state"]["removed_message_count"] == 4
    chat.say(agent, "2")
    chat.direct["agents"].replace_one({"_id": before["_id"]}, before)  # its process was killed
    again = agent_with(chat.open("s", restore_last=restore_last), conversation_manager=made())
    assert len(again.messages) == len(chat.stored("s")) == 8
    assert again.conversation_manager.removed_message_count == 0


@pytest.mark.parametrize("state", [{}, {"plan": "pro"}])
def test_a_superseded_agent_does_not_change_the_stored_count(
    chat: Chat, state: dict[str, str]
) -> None:
    agent_with(chat.open("s"), conversation_manager=window())
    late = agent_with(chat.open("s"), conversation_manager=window())
    agent = agent_with(chat.open("s"), conversation_manager=window())
    for number in range(5):
        chat.say(agent, str(number))
    late.messages += 5 * agent.messages  # so that it removes more
    with pytest.raises(SessionException):
        chat.say(late, "too late")
    for key, value in state.items():
        late.state.set(key, value)
    with pytest.raises(SessionException):
        chat.say(late, "again")
    again = agent_with(chat.open("s"), conversation_manager=window())
    assert again.messages == agent.messages
    assert again.state.get() == state


# The last messages


@pytest.mark.parametrize("made", [MANAGERS["window of 4"][0], MANAGERS["summary"][0]])
def test_restoring_the_last_messages_leaves_all_others_for_a_later_open(
    chat: Chat, made: Made
) -> None:
    agent = agent_with(chat.open("s"), conversation_manager=NullConversationManager())
    for number in range(4):
        chat.say(agent, str(number))
    chat.direct["agents"].update_one(
        {"agent_id": "default"},
        {"$set": {"conversation_manager_state": made().get_state()}},
    )
    model = SmallModel(6)
    for number in range(4, 7):
        few = agent_with(chat.open("s", restore_last=4), model=model, conversation_manager=made())
        assert 4 <= len(few.messages) <= 5  # a summary comes before them
        few.state.set("number", number)
        chat.say(few, str(number))
    again = agent_with(chat.open("s"), conversation_manager=made())
    prompts = [text for text in texts(again) if text.startswith("user: ")]
    assert prompts[-7:] == [f"user: {number}" for number in range(7)]
    assert again.state.get("number") == 6


def test_an_open_that_restores_all_messages_counts_the_removed_ones(chat: Chat) -> None:
    for number in range(5):
        window = SlidingWindowConversationManager(4)
        agent = agent_with(chat.open("s", restore_last=9), conversation_manager=window)
        chat.say(agent, str(number))
    again = agent_with(chat.open("s"), conversation_manager=SlidingWindowConversationManager(4))
    assert again.messages == agent.messages
    assert len(again.messages) == 4


def test_what_a_restored_agent_removed_is_not_restored_by_the_next_of_its_kind(chat: Chat) -> None:
    def agent_of(restore_last: int | None, model: SmallModel) -> Agent:
        manager = chat.open("s", restore_last=restore_last)
        return agent_with(manager, model=model, conversation_manager=window(40))

    large, small = SmallModel(60), SmallModel(6)
    agent = agent_of(None, large)
    for number in range(12):
        chat.say(agent, str(number))
    for number in range(3):
        agent = agent_of(16, small)
        assert len(agent.messages) == (6 if number else 16)
        chat.say(agent, f"small {number}")
        assert len(agent.messages) == 6
    assert plain(agent_of(16, small)) == plain(agent)
    assert plain(agent_of(4, small)) == plain(agent)[-4:]
    assert len(agent_of(17, large).messages) == 16  # it asked for more than 16
    chat.say(agent_of(18, large), "more")
    chat.say(agent_of(None, large), "all")
    assert len(agent_of(16, small).messages) == 10  # the larger opens have removed none
    agent = agent_of(None, small)
    assert len(agent.messages) == 34
    assert "user: 0" in texts(agent)
    assert set(agent.conversation_manager.get_state()) == set(window().get_state())


def test_a_restored_agent_whose_turn_never_ended_keeps_its_removed_messages_out(
    chat: Chat,
) -> None:
    agent = agent_with(chat.open("s"), conversation_manager=window(40))
    for number in range(6):
        chat.say(agent, str(number))
    before = chat.direct["agents"].find_one()
    assert before is not None
    few = agent_with(
        chat.open("s", restore_last=8), model=SmallModel(4), conversation_manager=window(40)
    )
    chat.say(few, "few")
    chat.direct["agents"].replace_one({"_id": before["_id"]}, before)  # its process was killed
    again = agent_with(chat.open("s", restore_last=8), conversation_manager=window(40))
    assert plain(again) == plain(few)
    chat.say(again, "on")
    last = agent_with(chat.open("s", restore_last=8), conversation_manager=window(40))
    assert plain(last) == plain(again)
    assert len(last.messages) == 6
    assert len(agent_with(chat.open("s"), conversation_manager=window(40)).messages) == 16


# Many agents in a session


def fill(chat: Chat, agents: int) -> None:
    """Create a session of agents with four messages each; the first two have removed two."""
    repository = MongoDBSessionRepository(chat.direct.client, chat.database, prefix="")
    session, _ = repository.open_session("s")
    state = window().get_state()
    for number in range(agents):
        removed = {"removed_message_count": 2 if number < 2 else 0}
        repository.create_agent("s", SessionAgent(f"a{number}", {}, {**state, **removed}))
    documents = []
    for number, index in itertools.product(range(agents), range(4)):
        message: Any = {"role": ROLES[index % 2], "content": [{"text": f"{number}-{index}"}]}
        ids = message_ids("s", f"a{number}", index)
        document = message_document(ids, SessionMessage(message, index))
        created = {"session_created_at": session.created_at}
        documents.append({"_id": ids, **document, **created})
    chat.direct["messages"].insert_many(documents)


def read(chat: Chat, session_manager: Any, number: int) -> list[str]:
    agent = agent_with(session_manager, agent_id=f"a{number}", conversation_manager=window())
    return texts(agent)


OPEN = {"findAndModify sessions": 1, "find agents": 1, "find messages": 1}


def test_opening_takes_three_commands_one_by_one_for_any_number_of_agents(awaited: Chat) -> None:
    fill(awaited, 50)
    awaited.open("other")  # creates the indexes
    before = awaited.commands()
    manager = awaited.open("s")
    assert awaited.spent(before) == OPEN
    assert awaited.telemetry.pool_stats()[0].size == 1
    assert read(awaited, manager, 0) == ["user: 0-2", "assistant: 0-3"]
    assert read(awaited, manager, 49) == of(49)


def test_an_open_reads_only_the_agents_that_it_names(awaited: Chat) -> None:
    fill(awaited, 4)
    factory = MongoDBSessionManagerFactory(
        client=awaited.client, database_name=awaited.database, prefix=""
    )
    awaited.open("other")  # creates the indexes
    for names in ("a2", ["a2"], {"a1", "a2"}):
        before = awaited.commands()
        for manager in (
            awaited.open("s", agent_id=names),
            awaited.run(factory.open_session_manager("s", agent_id=names)),
        ):
            assert read(awaited, manager, 2) == of(2)
            words = "agent 'a3' of session 's' was not read: add it to the agent_id= of the open"
            with pytest.raises(SessionException, match=words):
                read(awaited, manager, 3)
            with pytest.raises(SessionException, match="'new' of session 's' was not read"):
                agent_with(manager, agent_id="new")
        assert awaited.spent(before) == dict.fromkeys(OPEN, 2)
    new = awaited.open("new", agent_id="a0")
    with pytest.raises(SessionException, match="agent 'a3' of session 'new' was not read"):
        agent_with(new, agent_id="a3")
    awaited.say(agent_with(new, agent_id="a0"), "hello")
    assert len(awaited.stored("new")) == 2
    with pytest.raises(InvalidIdError, match="agent_id is empty"):
        awaited.open("s", agent_id="")


def test_the_last_messages_of_many_agents_are_read_with_few_commands(
    awaited: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pool_telemetry.sessions.async_repository._AT_ONCE", 3)
    fill(awaited, 8)
    awaited.open("other")
    before = awaited.commands()
    manager = awaited.open("s", restore_last=2)
    spent = awaited.spent(before)
    assert spent == {"findAndModify sessions": 1, "find agents": 1, "aggregate messages": 3}
    assert awaited.telemetry.pool_stats()[0].size == 1
    for number in (0, 1, 7):
        assert read(awaited, manager, number) == of(number)[2:]
    before = awaited.commands()
    manager = awaited.open("s", restore_last=1)  # each agent's last message is an answer
    spent = awaited.spent(before)
    assert spent == {**OPEN, "aggregate messages": 6}
    for number in (0, 1, 7):
        assert read(awaited, manager, number) == of(number)[2:]


def test_an_open_reads_any_number_of_messages_with_one_command(chat: Chat) -> None:
    fill(chat, 1)
    (last,) = chat.direct["messages"].find({"session_id": "s", "message_id": 3})
    chat.direct["messages"].insert_many(
        {**last, "_id": {**last["_id"], "message_id": index}, "message_id": index}
        for index in range(4, 150)
    )
    chat.open("other")
    before = chat.commands()
    assert len(read(chat, chat.open("s"), 0)) == 148
    assert chat.spent(before) == OPEN
    before = chat.commands()
    assert len(read(chat, chat.open("s", restore_last=120), 0)) == 148  # from the only prompt on
    assert "getMore messages" not in chat.spent(before)


def test_the_parts_of_all_large_messages_are_read_with_one_command(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pool_telemetry.sessions.large_messages.INLINE_BYTES", 1_000)
    agent = agent_with(chat.open("s"))
    for number in range(3):
        chat.say(agent, f"{number} {3_000 * 'x'}")
    for kwargs in ({}, {"restore_last": 4}):
        before = chat.commands()
        again = agent_with(chat.open("s", **kwargs))
        spent = chat.spent(before)
        assert again.messages == agent.messages[-kwargs.get("restore_last", 6) :]
        reads = spent.get("find messages", 0) + spent.get("aggregate messages", 0)
        assert (reads, spent.get("getMore messages", 0)) == (2, 0)


@pytest.mark.parametrize("restore_last", [None, 2])
@pytest.mark.parametrize("message_id", [3.0, "3", 7])
def test_a_message_with_a_damaged_id_is_named(
    chat: Chat, message_id: object, restore_last: int | None
) -> None:
    fill(chat, 1)
    chat.direct["messages"].update_one({"message_id": 3}, {"$set": {"message_id": message_id}})
    with pytest.raises(SessionException, match="message 3 of agent 'a0' of session 's' has "):
        read(chat, chat.open("s", restore_last=restore_last), 0)


def of(number: int) -> list[str]:
    """Return the texts of an agent of `fill` without removed messages."""
    return [f"{ROLES[index % 2]}: {number}-{index}" for index in range(4)]
