"""One opened session for RepositorySessionManager: its reads, and its writes in order.

Writes that failed because the server was down are repeated before the next write, so that the
stored conversation has no gap.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pymongo.errors import ConnectionFailure, PyMongoError, WriteConcernError
from strands.session.session_repository import SessionRepository
from strands.types.exceptions import SessionException
from strands.types.session import Session, SessionAgent, SessionMessage, encode_bytes_values

from pool_telemetry.sessions.async_repository import AsyncMongoDBSessionRepository, Conversation
from pool_telemetry.sessions.dispatch import run_now
from pool_telemetry.sessions.documents import (
    COUNTS,
    KEPT_FROM,
    KEPT_OF,
    LATEST,
    REMOVED,
    Document,
    SessionConflictError,
    agent_in,
    check_form,
)

if TYPE_CHECKING:
    from strands.multiagent.base import MultiAgentBase

_log = logging.getLogger("pool_telemetry.sessions")

Key = tuple[str, int]  # the kind of the write, and the message's id
Do = Callable[..., Coroutine[Any, Any, None]]

_CONVERSATION: Final = "conversation_manager_state"


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
        self.is_in_turn = False  # a changed count can wait for the next message or the turn's end
        self.carried: Document = {}  # the counts that its next message carries
        self.flushing = asyncio.Lock()
        self.incomplete: set[int] = set()  # ids of messages that a BidiAgent has only begun

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
        latest: The last message of each agent, also if it is not restored.
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
        self.latest: dict[str, SessionMessage] = {}
        # By agent: the messages to restore, the counts in its document, what an earlier open with
        # `restore_last` kept, and if this one left out messages, the count of removed messages to
        # store and the id of its first message.
        self._messages: dict[str, list[SessionMessage]] = {}
        self._counts: dict[str, Document] = {}
        self._kept: dict[str, Document] = {}
        self._skipped: dict[str, tuple[int, int]] = {}
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
        found = run_now(self._repository.read_agent(session_id, agent_id))
        if found is not None and not self.agents[agent_id].stored:
            run_now(self._restore({agent_id: found.conversation_manager_state}))
        return found

    def update_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """See SessionRepository."""
        agent = self.agents[session_agent.agent_id]
        conversation = self._to_store(
            session_agent.agent_id, session_agent.conversation_manager_state
        )
        session_agent.conversation_manager_state = conversation
        state = _state_of(session_agent)
        # The stored conversation is not a superseded agent's, so its counts are not stored.
        waits = agent.is_in_turn or agent.superseded
        if agent.is_restoring:
            counts = self._counts.get(session_agent.agent_id) or state[_CONVERSATION]
            agent.stored = {**state, _CONVERSATION: _with_counts(state[_CONVERSATION], counts)}
        elif (state != agent.stored or agent.carried) and not (
            waits and _only_counted(agent.stored, state)
        ):
            agent.stored = state
            agent.carried = {}
            if latest := self.latest.get(session_agent.agent_id):
                session_agent.conversation_manager_state[LATEST] = latest.message_id
            do = partial(
                self._repository.update_agent,
                session_id,
                session_agent,
                conversation=not agent.superseded,
            )
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

    def carry_counts(self, agent_id: str, conversation: Document) -> None:
        """Let the next message carry the counts that the agent's document lacks.

        Args:
            agent_id: The agent's id.
            conversation: The conversation manager's state. If more than its counts changed, the
                next message carries nothing, because the agent is written.
        """
        agent = self.agents[agent_id]
        before, after = agent.stored.get(_CONVERSATION, {}), self._to_store(agent_id, conversation)
        changed = before != after and _with_counts(before, after) == encode_bytes_values(after)
        agent.carried = {key: after[key] for key in COUNTS if key in after} if changed else {}

    def create_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any
    ) -> None:
        """See SessionRepository."""
        if self.agents[agent_id].superseded:
            raise SessionConflictError(
                f"another writer continued agent {agent_id!r} of session {session_id!r}: "
                "open the session again"
            )
        if _is_incomplete(session_message):
            self.agents[agent_id].incomplete.add(session_message.message_id)
            return  # a model would reject an empty message
        self.latest[agent_id] = session_message
        do = partial(
            self._repository.create_message,
            session_id,
            agent_id,
            session_message,
            counts=self.agents[agent_id].carried,
        )
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
        incomplete, message_id = self.agents[agent_id].incomplete, session_message.message_id
        if message_id in incomplete and not _is_incomplete(session_message):
            incomplete.remove(message_id)
            OpenedSession.create_message(self, session_id, agent_id, session_message)
            return
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
        """Return the messages to restore if the agent was just read, else all from the offset."""
        if agent_id in self._messages:
            return self._messages.pop(agent_id)
        return run_now(self._repository.messages_from(session_id, agent_id, offset))[:limit]

    async def _restore(self, states: Mapping[str, Document]) -> None:
        """Read the messages of agents, and correct the counts in their states.

        With `restore_last` the messages begin with a prompt, because models reject an answer
        without its question; an older prompt is read if needed. A message that couldn't be stored
        has an id but no document.

        Args:
            states: Each agent's `conversation_manager_state` as read, to be corrected in place.
        """
        name, read, last = self.session.session_id, self._repository, self._restore_last
        noted = {one: state.pop(LATEST, -1) for one, state in states.items()}
        found: dict[str, Conversation] = {}
        firsts: dict[str, int] = {}
        for one, state in states.items():
            self._counts[one] = {key: state[key] for key in COUNTS if key in state}
        # A repeat is needed only if the last message of a killed turn has a count that fell.
        while begin := {
            one: first
            for one, state in states.items()
            if (first := self._first(state)) < firsts.get(one, first + 1)
        }:
            firsts |= begin
            found |= await read.conversations(name, begin, last)
            for one in begin:
                messages, counts = found[one]
                if messages and messages[-1].message_id > noted[one]:
                    states[one] |= {key: counts[key] for key in COUNTS if key in counts}
        early: dict[str, int] = {}
        for one, state in states.items():
            firsts[one] = self._first(state)
            messages = found[one].messages
            kept = [each for each in messages if each.message_id >= firsts[one]]
            if len(messages) == last and kept and kept[0].message_id > firsts[one]:
                prompts = _from_first_prompt(kept)
                if prompts:
                    firsts[one] = prompts[0].message_id
                else:
                    early[one] = kept[0].message_id
                kept = prompts
            self._messages[one] = kept
            if messages:
                self.latest[one] = messages[-1]
        if early:
            prompt = await read.last_prompts(name, early)
            begin = {one: max(prompt.get(one, 0), firsts[one]) for one in early}
            found = await read.conversations(name, begin)
            self._messages.update({one: found[one].messages for one in early})
            firsts |= begin
        for one, state in states.items():
            self._kept[one] = {key: state.pop(key) for key in (KEPT_FROM, KEPT_OF) if key in state}
            self._skipped.pop(one, None)
            if firsts[one] > state.get(REMOVED, firsts[one]):
                self._skipped[one] = state[REMOVED], firsts[one]
                state[REMOVED] = firsts[one]

    def _first(self, state: Document) -> int:
        """Return the id of the first message that this open may restore."""
        last = self._restore_last
        applies = last is not None and last <= state.get(KEPT_OF, 0)
        first: int = max(state.get(REMOVED, 0), state.get(KEPT_FROM, 0) if applies else 0)
        return first

    def _to_store(self, agent_id: str, conversation: Document) -> Document:
        """Return a conversation manager's state as it is to be stored.

        The messages that `restore_last` left out were not removed from the conversation. So an
        agent that lacks them keeps the stored count, and a later open can restore them.
        """
        state = {**conversation, **self._kept.get(agent_id, {})}
        if agent_id in self._skipped:
            removed, first = self._skipped[agent_id]
            if (kept_from := state.get(REMOVED, 0)) > first:
                state |= {KEPT_FROM: kept_from, KEPT_OF: self._restore_last}
            state[REMOVED] = removed
        return state


# The tasks that finish the writes of turns, by the sessions' collection and the session's id.
_unfinished: Final[dict["asyncio.Task[None]", tuple[str, str]]] = {}


async def finish_writes(repository: AsyncMongoDBSessionRepository, session_id: str) -> None:
    """Wait until turns of a session that were cancelled on this loop have stored their messages."""
    name, loop = (repository.full_name, session_id), asyncio.get_running_loop()
    tasks = [task for task, one in _unfinished.copy().items() if one == name]
    if here := [task for task in tasks if task.get_loop() is loop]:
        await asyncio.wait(here)


def log_lost_writes(session_id: str, agents: Mapping[str, _Agent]) -> None:
    """Log which agents have messages or a state that no flush is known to have stored."""
    for name, agent in agents.items():
        if lost := sum(kind != "agent" for kind, _ in agent.pending):
            _log.error(
                "session %r: %d writes of agent %r may be lost, because its manager was dropped "
                "before they were stored: close the manager, or flush() it, at its end",
                session_id,
                lost,
                name,
            )


class PreloadedSession(OpenedSession):
    """Answers reads from memory, and keeps writes until `flush()` is awaited."""

    adopts = True  # its agent is created only by the first flush, when it is already in use
    _agents: list[Document]

    async def load(self, agent_ids: Collection[str] | None = None) -> None:
        """Read the session's agents and their messages, or those of these ids only."""
        self._named = agent_ids
        name = self.session.session_id
        self._faults: dict[tuple[str, str], str] = {}
        self._agents = (
            []
            if self._is_new
            else await self._repository.list_agents(name, agent_ids, faults=self._faults)
        )
        agents = [one for one in self._agents if one["kind"] == "agent"]
        if agents:
            await self._restore({one["agent_id"]: one[_CONVERSATION] for one in agents})

    async def flush(self, agent_id: str) -> None:
        """See OpenedSession; if the caller is cancelled, a task of its own finishes the writes.

        A user may have seen the messages, so the next open of the session waits for that task.
        """
        finishing = self._finish(agent_id) if self._repository.uses_threads else None
        try:
            if finishing is None:  # the caller's own task, whose stack shows the application
                await self._flush(agent_id)
            else:  # a cancelled caller would leave a thread in the middle of a write
                await asyncio.shield(finishing)
        except asyncio.CancelledError:
            (finishing or self._finish(agent_id)).add_done_callback(self._log_failure)
            raise

    async def _flush(self, agent_id: str) -> None:
        """Flush one at a time, because a graph runs nodes concurrently."""
        async with self.agents[agent_id].flushing:
            await super().flush(agent_id)

    def _finish(self, agent_id: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(self._flush(agent_id))
        _unfinished[task] = (self._repository.full_name, self.session.session_id)
        task.add_done_callback(_unfinished.pop)
        return task

    def _log_failure(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning(
                "session %r: a cancelled turn's messages are not stored yet: %s",
                self.session.session_id,
                type(error).__name__,
            )

    def write(self, agent_id: str, key: Key, do: Do) -> None:
        """Keep a write for `flush()`."""
        self.agents[agent_id].pending[key] = _Write(do)

    def create_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any
    ) -> None:
        """See OpenedSession."""
        super().create_message(session_id, agent_id, session_message)
        self._messages.setdefault(agent_id, []).append(session_message)

    def update_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """See OpenedSession."""
        # Those that the agent dropped would only use memory. The stored count may be lower.
        name, removed = (
            session_agent.agent_id,
            session_agent.conversation_manager_state.get(REMOVED, 0),
        )
        kept = [one for one in self._messages.get(name, ()) if one.message_id >= removed]
        self._messages[name] = kept
        super().update_agent(session_id, session_agent)

    def create_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """See SessionRepository."""
        self._check_named(session_agent.agent_id)
        super().create_agent(session_id, session_agent, **kwargs)

    def create_multi_agent(
        self, session_id: str, multi_agent: "MultiAgentBase", **kwargs: Any
    ) -> None:
        """See SessionRepository."""
        self._check_named(multi_agent.id)
        super().create_multi_agent(session_id, multi_agent, **kwargs)

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
        """Return the messages that `load()` read and those added since, from an id on."""
        messages = self._messages.get(agent_id, ())
        return [one for one in messages if one.message_id >= offset][:limit]

    def read_message(
        self, session_id: str, agent_id: str, message_id: int, **kwargs: Any
    ) -> SessionMessage | None:
        """Return a message that `list_messages()` would return; None for any other."""
        messages = self._messages.get(agent_id, ())
        return next((one for one in messages if one.message_id == message_id), None)

    def _check_named(self, agent_id: str) -> None:
        """Raise SessionException if the open was told not to read this agent, graph or swarm."""
        if self._named is not None and agent_id not in self._named:
            raise SessionException(
                f"agent {agent_id!r} of session {self.session.session_id!r} was not read: "
                "add it to the agent_id= of the open"
            )

    def _read(self, kind: str, name: str) -> Document | None:
        self._check_named(name)
        ids = {"session_id": self.session.session_id, "agent_id": name, "kind": kind}
        check_form(ids, self._faults.get((kind, name), ""))
        kinds = (one for one in self._agents if (one["kind"], one["agent_id"]) == (kind, name))
        return next(kinds, None)


def _is_incomplete(message: SessionMessage) -> bool:
    """Return whether a BidiAgent has only begun a message, to complete it later."""
    custom = message.message.get("metadata", {}).get("custom", {})
    return custom.get("bidi", {}).get("status") == "pending" and not message.message["content"]


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


def _only_counted(before: Document, after: Document) -> bool:
    """Return whether two states of an agent differ at most by the conversation manager's counts."""
    if not before:
        return False
    counted = _with_counts(before[_CONVERSATION], after[_CONVERSATION])
    return {**before, _CONVERSATION: counted} == after


def _with_counts(before: Document, after: Document) -> Document:
    """Return a conversation manager's state with the counts of a later state."""
    others = {key: value for key, value in before.items() if key not in COUNTS}
    return others | {key: after[key] for key in COUNTS if key in after}


def _from_first_prompt(messages: list[SessionMessage]) -> list[SessionMessage]:
    """Return the messages from the first user prompt on; an empty list without a prompt."""
    for index, one in enumerate(messages):
        message = one.to_message()
        results = any("toolResult" in block for block in message["content"])
        if message["role"] == "user" and not results:
            return messages[index:]
    return []
