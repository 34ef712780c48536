"""One opened session for RepositorySessionManager: its reads, and its writes in order.

Writes that failed because the server was down are repeated before the next write, so that the
stored conversation has no gap.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pymongo.errors import ConnectionFailure, PyMongoError, WriteConcernError
from strands.session.session_repository import SessionRepository
from strands.types.session import Session, SessionAgent, SessionMessage

from pool_telemetry.sessions.async_repository import AsyncMongoDBSessionRepository
from pool_telemetry.sessions.dispatch import run_now
from pool_telemetry.sessions.documents import Document, SessionConflictError, agent_in

if TYPE_CHECKING:
    from strands.multiagent.base import MultiAgentBase

Key = tuple[str, int]  # the kind of the write, and the message's id
Do = Callable[..., Coroutine[Any, Any, None]]

# The number of removed messages after which an agent is written, if nothing else changed. A sliding
# window changes that count in every turn; an agent restored with a few more removes them again.
REMOVED_BY: Final = 20


class _Write:
    """A pending write."""

    def __init__(self, do: Do) -> None:
        self.do = do
        self.was_tried = False


class _Agent:
    """The pending writes of an agent, graph or swarm, and its state as last stored."""

    def __init__(self) -> None:
        self.pending: dict[Key, _Write] = {}
        self.superseded = False  # another writer continued its conversation
        self.stored: Document = {}  # its state as last written or read
        self.is_restoring = False  # its state was just read, so it is not written
        self.flushing = asyncio.Lock()

    @property
    def is_behind(self) -> bool:
        """Return whether a write has failed and has to be repeated before the next write."""
        return any(write.was_tried for write in self.pending.values())


class OpenedSession(SessionRepository):
    """Reads directly and writes in order; each agent may run in its own thread.

    Args:
        repository: The repository of the session.
        session: The opened session.
        is_new: Whether this open created the session.
        restore_last: The number of messages to read at most; None for all.

    Attributes:
        agents: The pending writes of each agent.
        skipped: By agent, the number of messages before the restored messages.
        adopts: Whether an agent that another writer created meanwhile counts as this one.
    """

    adopts = False

    def __init__(
        self,
        repository: AsyncMongoDBSessionRepository,
        session: Session,
        is_new: bool,
        restore_last: int | None,
    ) -> None:
        check_restore_last(restore_last)
        repository._bind(session)
        self.session = session
        self.agents: defaultdict[str, _Agent] = defaultdict(_Agent)
        self.skipped: dict[str, int] = {}
        self._repository = repository
        self._is_new = is_new
        self._restore_last = restore_last

    async def flush(self, agent_id: str) -> None:
        """Do the pending writes of an agent, in order.

        Raises:
            PyMongoError: The server is down; the next flush does the remaining writes.
            Exception: Any other error drops its write, because that can never succeed.
        """
        agent = self.agents[agent_id]
        pending = agent.pending
        while pending:
            key, write = next(iter(pending.items()))
            again, write.was_tried = write.was_tried, True
            try:
                if again and key[0] == "message":
                    await write.do(again=True)
                else:
                    await write.do()
            except SessionConflictError:
                if key[0] == "message":
                    agent.superseded = True
                    pending.clear()
                    raise
                del pending[key]
                if not (again or self.adopts):
                    raise
            except Exception as error:
                if not _may_succeed_later(error):
                    del pending[key]
                    agent.stored = {}  # unknown now, because the write may have been the state
                raise
            else:
                if pending.get(key) is write:  # otherwise a newer write replaced it meanwhile
                    del pending[key]

    def write(self, agent_id: str, key: Key, do: Do) -> None:
        """Do a write now, after the writes that failed before.

        While the server is down, an agent's state waits for the next message, so that a failed turn
        does not wait for the server a second time.
        """
        agent = self.agents[agent_id]
        waits = key[0] == "state" and agent.is_behind
        agent.pending[key] = _Write(do)
        if not waits:
            run_now(self.flush(agent_id))

    # Sessions

    def create_session(self, session: Session, **kwargs: Any) -> Session:
        """Return the session, because opening it has created it."""
        return self.session

    def read_session(self, session_id: str, **kwargs: Any) -> Session | None:
        """Return the opened session; None if it is new."""
        return None if self._is_new else self.session

    # Agents

    def create_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """See SessionRepository."""
        do = partial(self._repository.create_agent, session_id, session_agent)
        self.write(session_agent.agent_id, ("agent", -1), do)

    def read_agent(self, session_id: str, agent_id: str, **kwargs: Any) -> SessionAgent | None:
        """See SessionRepository."""
        return run_now(self._repository.read_agent(session_id, agent_id))

    def update_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """See SessionRepository."""
        agent, state = self.agents[session_agent.agent_id], _state_of(session_agent)
        if agent.is_restoring:
            agent.stored = state
        elif not _only_removed_a_few(agent.stored, state):
            agent.stored = state
            do = partial(self._repository.update_agent, session_id, session_agent)
            self.write(session_agent.agent_id, ("state", -1), do)

    # Graphs and swarms

    def create_multi_agent(
        self, session_id: str, multi_agent: "MultiAgentBase", **kwargs: Any
    ) -> None:
        """See SessionRepository."""
        do = partial(self._repository.create_multi_agent, session_id, multi_agent)
        self.write(multi_agent.id, ("agent", -2), do)

    def read_multi_agent(
        self, session_id: str, multi_agent_id: str, **kwargs: Any
    ) -> Document | None:
        """See SessionRepository."""
        return run_now(self._repository.read_multi_agent(session_id, multi_agent_id))

    def update_multi_agent(
        self, session_id: str, multi_agent: "MultiAgentBase", **kwargs: Any
    ) -> None:
        """See SessionRepository."""
        do = partial(self._repository.update_multi_agent, session_id, multi_agent)
        self.write(multi_agent.id, ("state", -2), do)

    # Messages

    def create_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any
    ) -> None:
        """See SessionRepository."""
        if self.agents[agent_id].superseded:
            raise SessionConflictError(
                f"another writer continued agent {agent_id!r} of session {session_id!r}: "
                "open the session again"
            )
        do = partial(self._repository.create_message, session_id, agent_id, session_message)
        self.write(agent_id, ("message", session_message.message_id), do)

    def read_message(
        self, session_id: str, agent_id: str, message_id: int, **kwargs: Any
    ) -> SessionMessage | None:
        """See SessionRepository."""
        return run_now(self._repository.read_message(session_id, agent_id, message_id))

    def update_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any
    ) -> None:
        """See SessionRepository."""
        do = partial(self._repository.update_message, session_id, agent_id, session_message)
        self.write(agent_id, ("redaction", session_message.message_id), do)

    def list_messages(
        self,
        session_id: str,
        agent_id: str,
        limit: int | None = None,
        offset: int = 0,
        **kwargs: Any,
    ) -> list[SessionMessage]:
        """Return all messages of an agent, or the messages to restore."""
        return run_now(self.restored(session_id, agent_id, offset))

    async def restored(self, session_id: str, agent_id: str, removed: int) -> list[SessionMessage]:
        """Return an agent's messages without the `removed` first, or the last `restore_last`.

        The messages begin with a prompt, because models reject an answer without its question; an
        older prompt is read if needed. A message that couldn't be stored has an id but no document.
        """
        read = self._repository
        if self._restore_last is None:
            return await read.messages_from(session_id, agent_id, removed)
        last = await read.last_messages(session_id, agent_id, self._restore_last)
        messages = [one for one in last if one.message_id >= removed]
        if len(messages) < len(last) or not messages or messages[0].message_id <= removed:
            return messages  # these are all messages
        restored = _from_first_prompt(messages)
        if not restored:
            first = messages[0].message_id
            prompt = await read.last_prompt(session_id, agent_id, first)
            restored = await read.messages_from(session_id, agent_id, max(prompt or 0, removed))
        self.skipped[agent_id] = restored[0].message_id - removed
        return restored


class PreloadedSession(OpenedSession):
    """Answers reads from memory, and keeps writes until `flush()` is awaited."""

    adopts = True  # its agent is created only by the first flush, when it is already in use
    _agents: list[Document]
    _messages: dict[str, list[SessionMessage]]

    async def load(self) -> None:
        """Read the session's agents and their messages."""
        name = self.session.session_id
        self._agents = [] if self._is_new else await self._repository.list_agents(name)
        agents = [one for one in self._agents if one["kind"] == "agent"]
        found = await asyncio.gather(
            *(
                self.restored(
                    name,
                    one["agent_id"],
                    one["conversation_manager_state"].get("removed_message_count", 0),
                )
                for one in agents
            )
        )
        self._messages = {one["agent_id"]: m for one, m in zip(agents, found, strict=True)}

    async def flush(self, agent_id: str) -> None:
        """See OpenedSession; flushes run one at a time, because a graph runs nodes concurrently."""
        async with self.agents[agent_id].flushing:
            await super().flush(agent_id)

    def write(self, agent_id: str, key: Key, do: Do) -> None:
        """Keep a write for `flush()`."""
        self.agents[agent_id].pending[key] = _Write(do)

    def read_agent(self, session_id: str, agent_id: str, **kwargs: Any) -> SessionAgent | None:
        """Return the agent that `load()` read; None if there was none."""
        found = self._read("agent", agent_id)
        return None if found is None else agent_in(found)

    def read_multi_agent(
        self, session_id: str, multi_agent_id: str, **kwargs: Any
    ) -> Document | None:
        """Return the graph's or swarm's state that `load()` read; None if there was none."""
        found = self._read("multi_agent", multi_agent_id)
        state: Document | None = None if found is None else found["state"]
        return state

    def list_messages(
        self,
        session_id: str,
        agent_id: str,
        limit: int | None = None,
        offset: int = 0,
        **kwargs: Any,
    ) -> list[SessionMessage]:
        """Return the messages that `load()` read, from the offset in the agent's document."""
        return self._messages.pop(agent_id, [])

    def _read(self, kind: str, name: str) -> Document | None:
        kinds = (one for one in self._agents if (one["kind"], one["agent_id"]) == (kind, name))
        return next(kinds, None)


def _may_succeed_later(error: Exception) -> bool:
    """Return whether a repeat of the failed write may succeed, or the write may be stored."""
    return isinstance(error, PyMongoError) and (
        isinstance(error, ConnectionFailure | WriteConcernError)
        or error.timeout
        or error.has_error_label("RetryableWriteError")
    )


def check_restore_last(number: object) -> None:
    """Raise ValueError if the value is neither None nor a whole number above 0."""
    if number is not None and (type(number) is not int or number < 1):
        raise ValueError(f"restore_last is {number!r}: use a whole number above 0, None for all")


def _state_of(agent: SessionAgent) -> Document:
    """Return an agent's document without its times, to see if it changed."""
    state = agent.to_dict()
    del state["created_at"], state["updated_at"]
    return state


def _only_removed_a_few(before: Document, after: Document) -> bool:
    """Return whether two states differ only by fewer than REMOVED_BY more removed messages."""
    if not before:
        return False
    key, count = "conversation_manager_state", "removed_message_count"
    was, removed = (state[key].get(count, 0) for state in (before, after))
    as_before = {**after, key: {**after[key], count: was}}
    return 0 <= removed - was < REMOVED_BY and as_before == before


def _from_first_prompt(messages: list[SessionMessage]) -> list[SessionMessage]:
    """Return the messages from the first user prompt on; an empty list without a prompt."""
    for index, one in enumerate(messages):
        message = one.to_message()
        results = any("toolResult" in block for block in message["content"])
        if message["role"] == "user" and not results:
            return messages[index:]
    return []
