"""One opened session, as RepositorySessionManager sees it: its reads, and its writes in order.

What could not be written because the server was gone is written before what comes next, so that
the stored conversation has no hole where the agent's has none.
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
from pool_telemetry.sessions.documents import Document, SessionConflictError

if TYPE_CHECKING:
    from strands.multiagent.base import MultiAgentBase

Key = tuple[str, int]  # what is written, of which message
Do = Callable[..., Coroutine[Any, Any, None]]

# While nothing but the count of removed messages changes, an agent is written once in so many: a
# sliding window changes it in each turn, and who begins with a few more removes them again.
REMOVED_BY: Final = 20


class _Write:
    """One that is to be done."""

    def __init__(self, do: Do) -> None:
        self.do = do
        self.tried = False


class _Agent:
    """What is to be written of an agent, graph or swarm, and what is known of it."""

    def __init__(self) -> None:
        self.pending: dict[Key, _Write] = {}
        self.superseded = False  # somebody else continued its conversation
        self.stored: Document = {}  # its state, as it was written last
        self.quiet = False  # it is not written, for it is what was just read
        self.flushing = asyncio.Lock()

    @property
    def is_behind(self) -> bool:
        """Return whether something could not be written, and is to be tried with what comes."""
        return any(write.tried for write in self.pending.values())


class OpenedSession(SessionRepository):
    """Reads through, and writes in order. Agents may run in threads of their own.

    Args:
        repository: Where it is.
        session: What was opened.
        is_new: Nobody had it before.
        restore_last: How many messages to read at most; None for all.

    Attributes:
        agents: What is to be written of each.
        skipped: By agent, how many messages that were not read come before those that were.
        adopts: An agent that somebody else creates meanwhile is taken for this one.
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
        self.session = session
        self.agents: defaultdict[str, _Agent] = defaultdict(_Agent)
        self.skipped: dict[str, int] = {}
        self._repository = repository
        self._is_new = is_new
        self._restore_last = restore_last

    async def flush(self, agent_id: str) -> None:
        """Write what is pending of an agent, in order.

        Raises:
            PyMongoError: The server is gone; what is left is written next time.
            Exception: Any other: one can't be written, and is dropped.
        """
        agent = self.agents[agent_id]
        pending = agent.pending
        while pending:
            key, write = next(iter(pending.items()))
            again, write.tried = write.tried, True
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
                if not _may_pass(error):
                    del pending[key]
                    agent.stored = {}  # if it was a state, it is not what is stored
                raise
            else:
                if pending.get(key) is write:  # else there is news meanwhile
                    del pending[key]

    def write(self, agent_id: str, key: Key, do: Do) -> None:
        """Do it now, after what could not be done before.

        While the server is gone, an agent's state waits for the next message: a turn that failed
        shall not wait for the server once more to say so.
        """
        agent = self.agents[agent_id]
        waits = key[0] == "state" and agent.is_behind
        agent.pending[key] = _Write(do)
        if not waits:
            run_now(self.flush(agent_id))

    # Sessions

    def create_session(self, session: Session, **kwargs: Any) -> Session:
        """Do nothing: it was created when it was opened."""
        return self.session

    def read_session(self, session_id: str, **kwargs: Any) -> Session | None:
        """Return what was opened; None if it is new."""
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
        if agent.quiet:
            agent.stored = state
        elif not _hardly_differ(agent.stored, state):
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
                f"agent {agent_id!r} of session {session_id!r} was continued by somebody else: "
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
        """Return them all, or as many as are to be restored."""
        return run_now(self.restored(session_id, agent_id, offset))

    async def restored(self, session_id: str, agent_id: str, removed: int) -> list[SessionMessage]:
        """Return an agent's messages but the first ones, or the last `restore_last` of them.

        They begin with a prompt, for models want no answer without its question: it is looked for
        further back, if it has to be. A message that was refused has no document, but its number.
        """
        read = self._repository
        if self._restore_last is None:
            return await read.messages_from(session_id, agent_id, removed)
        last = await read.last_messages(session_id, agent_id, self._restore_last)
        messages = [one for one in last if one.message_id >= removed]
        if len(messages) < len(last) or not messages or messages[0].message_id <= removed:
            return messages  # that is all there is
        begun = _from_a_prompt(messages)
        if not begun:
            first = messages[0].message_id
            prompt = await read.last_prompt(session_id, agent_id, first)
            begun = await read.messages_from(session_id, agent_id, max(prompt or 0, removed))
        self.skipped[agent_id] = begun[0].message_id - removed
        return begun


class PreloadedSession(OpenedSession):
    """Answers from what was read beforehand, and keeps writes until `flush()` is awaited."""

    adopts = True  # when it is created, the agent is in use
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
        """See OpenedSession; one at a time, for a graph's nodes run side by side."""
        async with self.agents[agent_id].flushing:
            await super().flush(agent_id)

    def write(self, agent_id: str, key: Key, do: Do) -> None:
        """Keep it for `flush()`."""
        self.agents[agent_id].pending[key] = _Write(do)

    def read_agent(self, session_id: str, agent_id: str, **kwargs: Any) -> SessionAgent | None:
        """Return what was read."""
        found = self._read("agent", agent_id)
        return None if found is None else SessionAgent.from_dict(found)

    def read_multi_agent(
        self, session_id: str, multi_agent_id: str, **kwargs: Any
    ) -> Document | None:
        """Return what was read."""
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
        """Return what was read, from the offset that the agent's document has."""
        return self._messages.pop(agent_id, [])

    def _read(self, kind: str, name: str) -> Document | None:
        kinds = (one for one in self._agents if (one["kind"], one["agent_id"]) == (kind, name))
        return next(kinds, None)


def _may_pass(error: Exception) -> bool:
    """Return whether the same write may succeed later, or has arrived."""
    return isinstance(error, PyMongoError) and (
        isinstance(error, ConnectionFailure | WriteConcernError)
        or error.timeout
        or error.has_error_label("RetryableWriteError")
    )


def check_restore_last(number: object) -> None:
    """Raise ValueError where it is no whole number above 0, nor None."""
    if number is not None and (type(number) is not int or number < 1):
        raise ValueError(f"restore_last is {number!r}: use a whole number above 0, None for all")


def _state_of(agent: SessionAgent) -> Document:
    """Return what of an agent is worth writing: all but its times."""
    state = agent.to_dict()
    del state["created_at"], state["updated_at"]
    return state


def _hardly_differ(before: Document, after: Document) -> bool:
    """Return whether a few more messages were removed, and nothing else happened."""
    if not before:
        return False
    key, count = "conversation_manager_state", "removed_message_count"
    was, removed = (state[key].get(count, 0) for state in (before, after))
    as_before = {**after, key: {**after[key], count: was}}
    return 0 <= removed - was < REMOVED_BY and as_before == before


def _from_a_prompt(messages: list[SessionMessage]) -> list[SessionMessage]:
    """Return them from the first that a user said; none without one."""
    for index, one in enumerate(messages):
        message = one.to_message()
        results = any("toolResult" in block for block in message["content"])
        if message["role"] == "user" and not results:
            return messages[index:]
    return []
