"""One opened session, as RepositorySessionManager sees it: its reads, and its writes in order.

What could not be written because the server was gone is written before what comes next, so that
the stored conversation has no hole where the agent's has none.
"""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from pymongo.errors import ConnectionFailure, PyMongoError, WriteConcernError
from strands.session.session_repository import SessionRepository
from strands.types.session import Session, SessionAgent, SessionMessage

from pool_telemetry.sessions.async_repository import AsyncMongoDBSessionRepository
from pool_telemetry.sessions.calls import finish
from pool_telemetry.sessions.documents import Document, SessionConflictError

if TYPE_CHECKING:
    from strands.multiagent.base import MultiAgentBase

Key = tuple[str, str, int]  # what is written, of which agent, which message


class _Write:
    """One that is to be done."""

    def __init__(self, do: Callable[..., Coroutine[Any, Any, None]]) -> None:
        self.do = do
        self.tried = False


class OpenedSession(SessionRepository):
    """Reads through, and writes in order.

    Args:
        repository: Where it is.
        session: What was opened.
        is_new: Nobody had it before.
        restore_last: How many messages to read at most; None for all.

    Attributes:
        skipped: By agent, how many messages that were not read come before those that were.
        quiet: While true agents are not written, for they are what was just read.
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
        if restore_last is not None and restore_last < 1:
            raise ValueError(f"restore_last is {restore_last}: use 1 or more, None for all")
        self.session = session
        self.skipped: dict[str, int] = {}
        self.quiet = False
        self._repository = repository
        self._is_new = is_new
        self._restore_last = restore_last
        self._pending: dict[Key, _Write] = {}
        self._outrun: set[str] = set()  # agents whose conversation somebody else continued

    async def flush(self) -> None:
        """Write what is pending, in order.

        Raises:
            PyMongoError: The server is gone; what is left is written next time.
            Exception: Any other: one can't be written, and is dropped.
        """
        while self._pending:
            key, write = next(iter(self._pending.items()))
            again, write.tried = write.tried, True
            try:
                if again and key[0] == "message":
                    await write.do(again=True)
                else:
                    await write.do()
            except SessionConflictError:
                if key[0] == "message":
                    self._outrun.add(key[1])
                    self.drop(key[1])
                    raise
                del self._pending[key]
                if not (again or self.adopts):
                    raise
            except Exception as error:
                if not _may_pass(error):
                    del self._pending[key]
                raise
            else:
                if self._pending[key] is write:  # else there is news meanwhile
                    del self._pending[key]

    def drop(self, agent_id: str) -> None:
        """Forget what is pending of an agent."""
        for key in [key for key in self._pending if key[1] == agent_id]:
            del self._pending[key]

    @property
    def is_behind(self) -> bool:
        """Return whether something could not be written, and is to be tried with what comes."""
        return any(write.tried for write in self._pending.values())

    def write(self, key: Key, do: Callable[..., Coroutine[Any, Any, None]]) -> None:
        """Do it now, after what could not be done before.

        While the server is gone, an agent's state waits for the next message: a turn that failed
        shall not wait for the server once more to say so.
        """
        waits = key[0] == "state" and self.is_behind
        self._pending[key] = _Write(do)
        if not waits:
            finish(self.flush())

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
        self.write(("agent", session_agent.agent_id, -1), do)

    def read_agent(self, session_id: str, agent_id: str, **kwargs: Any) -> SessionAgent | None:
        """See SessionRepository."""
        return finish(self._repository.read_agent(session_id, agent_id))

    def update_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """See SessionRepository."""
        if not self.quiet:
            do = partial(self._repository.update_agent, session_id, session_agent)
            self.write(("state", session_agent.agent_id, -1), do)

    # Graphs and swarms

    def create_multi_agent(
        self, session_id: str, multi_agent: "MultiAgentBase", **kwargs: Any
    ) -> None:
        """See SessionRepository."""
        do = partial(self._repository.create_multi_agent, session_id, multi_agent)
        self.write(("agent", multi_agent.id, -2), do)

    def read_multi_agent(
        self, session_id: str, multi_agent_id: str, **kwargs: Any
    ) -> Document | None:
        """See SessionRepository."""
        return finish(self._repository.read_multi_agent(session_id, multi_agent_id))

    def update_multi_agent(
        self, session_id: str, multi_agent: "MultiAgentBase", **kwargs: Any
    ) -> None:
        """See SessionRepository."""
        do = partial(self._repository.update_multi_agent, session_id, multi_agent)
        self.write(("state", multi_agent.id, -2), do)

    # Messages

    def create_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any
    ) -> None:
        """See SessionRepository."""
        if agent_id in self._outrun:
            raise SessionConflictError(
                f"agent {agent_id!r} of session {session_id!r} was continued by somebody else: "
                "open the session again"
            )
        do = partial(self._repository.create_message, session_id, agent_id, session_message)
        self.write(("message", agent_id, session_message.message_id), do)

    def read_message(
        self, session_id: str, agent_id: str, message_id: int, **kwargs: Any
    ) -> SessionMessage | None:
        """See SessionRepository."""
        return finish(self._repository.read_message(session_id, agent_id, message_id))

    def update_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any
    ) -> None:
        """See SessionRepository."""
        do = partial(self._repository.update_message, session_id, agent_id, session_message)
        self.write(("redaction", agent_id, session_message.message_id), do)

    def list_messages(
        self,
        session_id: str,
        agent_id: str,
        limit: int | None = None,
        offset: int = 0,
        **kwargs: Any,
    ) -> list[SessionMessage]:
        """Return them all, or as many as are to be restored."""
        return finish(self.restored(session_id, agent_id, offset))

    async def restored(self, session_id: str, agent_id: str, offset: int) -> list[SessionMessage]:
        """Return an agent's messages, from an offset, but the last `restore_last` at most."""
        read = self._repository
        if self._restore_last is None:
            return await read.list_messages(session_id, agent_id, offset=offset)
        left = await read.count_messages(session_id, agent_id) - offset
        if left <= 0:
            return []
        last = min(self._restore_last, left)
        messages = await read.last_messages(session_id, agent_id, last)
        if len(messages) < left:
            messages = _from_a_prompt(messages)
            self.skipped[agent_id] = left - len(messages)
        return messages


class PreloadedSession(OpenedSession):
    """Answers from what was read beforehand, and keeps writes until `flush()` is awaited."""

    adopts = True  # when it is created, the agent is in use
    _agents: list[Document]
    _messages: dict[str, list[SessionMessage]]
    _flushing: asyncio.Lock

    async def load(self) -> None:
        """Read the session's agents and their messages."""
        self._flushing = asyncio.Lock()
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

    async def flush(self) -> None:
        """See OpenedSession; one at a time."""
        async with self._flushing:
            await super().flush()

    def write(self, key: Key, do: Callable[..., Coroutine[Any, Any, None]]) -> None:
        """Keep it for `flush()`."""
        self._pending[key] = _Write(do)

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


def _from_a_prompt(messages: list[SessionMessage]) -> list[SessionMessage]:
    """Return them from the first that a user said: models want no answer without its question."""
    for index, one in enumerate(messages):
        message = one.to_message()
        results = any("toolResult" in block for block in message["content"])
        if message["role"] == "user" and not results:
            return messages[index:]
    return messages
