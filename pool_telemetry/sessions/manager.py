"""Strands' session managers over MongoDB, for synchronous and for asynchronous agents.

A turn writes its messages with one command each, and the agent only if its state changed.
"""

import asyncio
import logging
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, Self

from pymongo import MongoClient
from strands.agent import Agent
from strands.bidi.hooks import BidiAgentStopEvent, BidiResponseStopEvent
from strands.hooks.events import (
    AfterInvocationEvent,
    AfterMultiAgentInvocationEvent,
    AfterNodeCallEvent,
    AgentInitializedEvent,
    BeforeInvocationEvent,
    MessageAddedEvent,
    MessageUpdatedEvent,
    MultiAgentInitializedEvent,
)
from strands.hooks.registry import HookRegistry
from strands.middleware import InvokeModelContext, InvokeModelStage
from strands.session.repository_session_manager import RepositorySessionManager
from strands.types.content import Message
from strands.types.exceptions import SessionException

from pool_telemetry.async_pool import ManagedAsyncMongoClient
from pool_telemetry.base_pool import PoolSettings
from pool_telemetry.client_options import ASYNC_DEFAULTS
from pool_telemetry.events import tracing
from pool_telemetry.pool import ManagedMongoClient, MongoDBConnectionPool
from pool_telemetry.sessions.async_repository import AsyncMongoDBSessionRepository
from pool_telemetry.sessions.client_choice import AnyClient, check_choice, shared_client
from pool_telemetry.sessions.dispatch import run_now
from pool_telemetry.sessions.documents import (
    PREFIX,
    Document,
    SessionConflictError,
    SessionUsage,
    describe,
)
from pool_telemetry.sessions.hooks import AsyncHook, Hook, Hooks, check_hooks
from pool_telemetry.sessions.opened_session import (
    OpenedSession,
    PreloadedSession,
    check_restore_last,
    finish_writes,
    log_lost_writes,
)
from pool_telemetry.sessions.repository import MongoDBSessionRepository
from pool_telemetry.state.frames import call_site
from pool_telemetry.stats import bounded

_log = logging.getLogger("pool_telemetry.sessions")
_warned = set[str]()  # the places that opened a blocking manager on an event loop
_MAX_WARNED: Final = 100


def _join_user_messages(context: InvokeModelContext) -> InvokeModelContext:
    """Send messages of the user that follow each other as one; the stored messages stay.

    A prompt has no answer if its turn failed or its process was killed. Some models, such as those
    of Amazon Bedrock, reject the next prompt then.
    """
    messages: list[Any] = []
    for message in context.messages:
        if messages and messages[-1]["role"] == message["role"] == "user":
            messages[-1] = {**message, "content": [*messages[-1]["content"], *message["content"]]}
        else:
            messages.append(message)
    return context.replace(messages=messages)


def _warn_on_event_loop() -> None:
    """Log once for each place that it blocks the event loop that runs there."""
    if asyncio._get_running_loop() is None or len(_warned) >= _MAX_WARNED:
        return
    if (place := call_site()) not in _warned:
        _warned.add(place)
        _log.warning(
            "MongoDBSessionManager blocks the event loop at %s, because each of its commands waits "
            "for the server there: use `await AsyncMongoDBSessionManager.open(...)`",
            place,
        )


class StateError(SessionException, ValueError):
    """A stored state that can't be restored; a ValueError too, as Strands raises it."""


class _Manager(RepositorySessionManager):
    """The shared part of both managers: Strands' own logic over an opened session."""

    def __init__(self, opened: OpenedSession, repository: AsyncMongoDBSessionRepository) -> None:
        self._opened = opened
        self._counts = repository.counts
        super().__init__(opened.session.session_id, opened)
        weakref.finalize(self, log_lost_writes, self.session_id, opened.agents)

    def initialize(self, agent: Any, **kwargs: Any) -> None:
        """Restore an agent from the session, or create it in the session."""
        if agent.agent_id in self._latest_agent_message:
            super().initialize(agent, **kwargs)  # raises, because the id is already in use
        with self._named_on_spans(agent):
            try:
                self._initialize(agent, **kwargs)
            except BaseException:
                self._forget(agent.agent_id)
                raise
            if self._latest_agent_message[agent.agent_id] is None:  # no message was restored
                self._latest_agent_message[agent.agent_id] = self._opened.latest.get(agent.agent_id)
            if isinstance(agent, Agent):
                agent.add_middleware(InvokeModelStage.Input, _join_user_messages)
            # The first turn need not write a state that was just read or written.
            opened = self._opened.agents[agent.agent_id]
            opened.is_restoring = True
            try:
                super().sync_agent(agent)
            finally:
                opened.is_restoring = False

    def append_message(self, message: Message, agent: Any, **kwargs: Any) -> None:
        """See RepositorySessionManager."""
        if isinstance(agent, Agent):
            state = agent.conversation_manager.get_state()
            self._opened.carry_counts(agent.agent_id, state)
        with self._named_on_spans(agent):
            super().append_message(message, agent, **kwargs)

    def redact_latest_message(self, redact_message: Message, agent: Any, **kwargs: Any) -> None:
        """See RepositorySessionManager."""
        with self._named_on_spans(agent):
            super().redact_latest_message(redact_message, agent, **kwargs)

    def sync_agent(self, agent: Any, **kwargs: Any) -> None:
        """See RepositorySessionManager."""
        if not self._opened.agents[agent.agent_id].is_in_turn:
            # Strands takes a count that waited for the end of the turn for written.
            self._last_synced_internal_state.pop(agent.agent_id, None)
        with self._named_on_spans(agent):
            super().sync_agent(agent, **kwargs)

    def replace_message(self, message: Message, agent: Any, **kwargs: Any) -> None:
        """Replace the stored message with the same tracking id, as a BidiAgent does.

        Its message is stored only when it is complete, so a killed process leaves no empty one.
        """
        for record in reversed(self._held_records.get(agent.agent_id, ())):
            if record.message.get("tracking_id") == message["tracking_id"]:
                record.message = message
                with self._named_on_spans(agent):
                    self._opened.update_message(self.session_id, agent.agent_id, record)
                break

    def _turn_ended(self, event: object) -> None:
        self._counts.add(turns=1)

    def _begin_turn(self, event: BeforeInvocationEvent) -> None:
        self._opened.agents[event.agent.agent_id].is_in_turn = True

    def _end_turn(self, event: AfterInvocationEvent) -> None:
        self._opened.agents[event.agent.agent_id].is_in_turn = False

    def _initialize(self, agent: Any, **kwargs: Any) -> None:
        failed = ""
        try:
            super().initialize(agent, **kwargs)
        except SessionConflictError:  # another writer created it after this session was opened
            self._forget(agent.agent_id)
            self._is_new_session = False
            super().initialize(agent, **kwargs)
        except SessionException:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            failed = type(error).__name__
        if failed:  # raised here, because a chain of errors would show the state
            ids = {"session_id": self.session_id, "agent_id": agent.agent_id}
            raise StateError(
                f"{describe(ids)} has a state that can't be restored ({failed}): it may be of "
                "another kind of conversation manager"
            )

    def _forget(self, agent_id: str) -> None:
        self._latest_agent_message.pop(agent_id, None)
        self._opened.agents.pop(agent_id, None)

    @contextmanager
    def _named_on_spans(self, agent: Any) -> Iterator[None]:
        """Add the agent's name to all spans that are made in the block."""
        name = getattr(agent, "name", None)
        token = tracing.span_attributes.set(
            {"gen_ai.agent.name": bounded(name)} if isinstance(name, str) else None
        )
        try:
            yield
        finally:
            tracing.span_attributes.reset(token)


class MongoDBSessionManager(_Manager):
    """Keeps a Strands agent's, graph's or swarm's conversation in MongoDB.

        manager = MongoDBSessionManager(uuid4().hex, client=client, user="ann")
        agent = Agent(session_manager=manager)

    A missing session is created. Use one manager for each open conversation. After the session was
    deleted, a message raises SessionException: at once after a deletion in this process, otherwise
    within a minute. Until then messages are stored that no later session of the id shows.

    Args:
        session_id: The session's id: 1 to 512 bytes without slash, backslash or null byte, and
            without `$` at the beginning.
        client: The client to use; its owner closes it.
        connection_string: A URI instead of a client: the manager makes a client and closes it.
            Without client and URI it uses the client of MongoDBConnectionPool.
        database_name: The database of the collections.
        prefix: The prefix of the collections' names.
        application: The session's application. A new session stores it; an existing session's has
            to be the same, here and in all methods of `repository`.
        user: The session's user, likewise. Without both, the id alone opens a session: use random
            ids, and give the user that your application has authenticated.
        metadata: The metadata of a new session.
        ttl: The time to live after the last use; None keeps an existing session's.
        restore_last: The number of messages that an agent begins with at most; None for all. The
            messages begin with a prompt, so there may be fewer, or more if one turn has more. The
            older messages stay: an agent that lacks them stores its state, but not the count of
            messages removed from its conversation, so that an open without this restores them all.
            Messages that such an agent removes are not restored by an open that asks for as many
            or fewer.
        create_indexes: See AsyncMongoDBSessionRepository.
        metadata_hook: A function to call with the session's id and the values after this manager
            changed the metadata; a deleted path has the value None. If it fails, that is logged.
        feedback_hook: The same for feedback.
        **kwargs: MongoClient's options, with a connection string.

    Raises:
        SessionOwnerError: The session has another application or user.
        SessionException: See MongoDBSessionRepository. SessionConflictError if another writer
            continued the session after it was opened. Then the agent has messages that the session
            lacks, and the messages that it stored in this turn stay: open the session again. For an
            agent's state the last write wins, except that this agent no longer stores which
            messages it removed.
        PyMongoError: The server is down. The manager keeps the failed writes, and the next turn
            repeats them.
        EventLoopException: Strands' own exception, raised in the middle of a turn; one of the other
            two is its `__cause__`.

    Attributes:
        repository: The repository of the session, for operations that the manager lacks.
    """

    def __init__(
        self,
        session_id: str,
        client: MongoClient[Document] | None = None,
        connection_string: str | None = None,
        database_name: str = "strands",
        *,
        prefix: str = PREFIX,
        application: str | None = None,
        user: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        ttl: timedelta | None = None,
        restore_last: int | None = None,
        create_indexes: bool = True,
        metadata_hook: Hook | None = None,
        feedback_hook: Hook | None = None,
        **kwargs: Any,
    ) -> None:
        check_choice(client, connection_string, kwargs)
        check_restore_last(restore_last)
        check_hooks(metadata_hook=metadata_hook, feedback_hook=feedback_hook)
        self._hooks = Hooks(session_id, metadata_hook, feedback_hook)
        self._owned: ManagedMongoClient | None = None
        if connection_string is not None:
            self._owned = ManagedMongoClient(PoolSettings.of(connection_string, None, kwargs, None))
            client = self._owned.client
        try:
            self.repository = MongoDBSessionRepository(
                MongoDBConnectionPool.get_client() if client is None else client,
                database_name,
                prefix=prefix,
                application=application,
                user=user,
                create_indexes=create_indexes,
            )
            _warn_on_event_loop()
            session, is_new = self.repository.open_session(session_id, metadata=metadata, ttl=ttl)
            shared = self.repository.asynchronous
            super().__init__(OpenedSession(shared, session, is_new, restore_last), shared)
        except BaseException:
            self._close_client()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def flush(self) -> None:
        """Repeat the writes that failed because the server was down, as the next turn would.

        Raises:
            PyMongoError: The server is still down; the manager keeps the writes.
        """
        for agent_id in [*self._opened.agents]:
            run_now(self._opened.flush(agent_id))

    def close(self) -> None:
        """Flush, then close the client if this manager made it; a repeat does nothing."""
        try:
            self.flush()
        finally:
            self._close_client()

    def _close_client(self) -> None:
        owned, self._owned = self._owned, None
        if owned is not None:
            owned.close()

    def register_hooks(self, registry: HookRegistry, **kwargs: Any) -> None:
        """Register Strands' own hooks and those of a BidiAgent, and count each turn."""
        super().register_hooks(registry, **kwargs)
        registry.add_callback(BeforeInvocationEvent, self._begin_turn)
        # Of these events the last callback is called first, so that Strands' own sees the end.
        registry.add_callback(AfterInvocationEvent, self._end_turn)
        registry.add_callback(AfterInvocationEvent, self._turn_ended)
        registry.add_callback(AfterMultiAgentInvocationEvent, self._turn_ended)
        registry.add_callback(MessageUpdatedEvent, self._on_update)
        registry.add_callback(BidiResponseStopEvent, self._turn_ended)
        registry.add_callback(BidiAgentStopEvent, self._on_stop)

    def _on_update(self, event: "MessageUpdatedEvent[Any]") -> None:
        self.replace_message(event.message, event.agent)

    def _on_stop(self, event: BidiAgentStopEvent) -> None:
        self.sync_agent(event.agent)

    def get_metadata(self) -> Document:
        """Return the session's metadata."""
        return self.repository.get_metadata(self.session_id)

    def update_metadata(self, values: Mapping[str, Any]) -> None:
        """Set values by their paths, such as `{"customer.plan": "pro"}`, and keep all others."""
        self.repository.update_metadata(self.session_id, values)
        self._hooks.metadata(values)

    def delete_metadata(self, *paths: str) -> None:
        """Delete values by their paths; a missing path is no error."""
        self.repository.delete_metadata(self.session_id, *paths)
        self._hooks.metadata(dict.fromkeys(paths))

    def get_application_name(self) -> str | None:
        """Return the session's application; None without one."""
        return self.repository.get_application_name(self.session_id)

    def get_user(self) -> str | None:
        """Return the session's user; None without one."""
        return self.repository.get_user(self.session_id)

    def get_feedbacks(self, agent_id: str | None = None) -> list[Document]:
        """Return the feedback on the session's messages, or on those of one of its agents."""
        return self.repository.list_feedback(self.session_id, agent_id)

    def add_feedback(self, feedback: Mapping[str, Any], agent_id: str | None = None) -> None:
        """Add feedback to the latest message of the session, or of one of its agents."""
        which = self.repository.latest_message(self.session_id, agent_id)
        self.repository.add_feedback(self.session_id, *which, feedback)
        self._hooks.feedback(feedback)

    def usage(self, agent_id: str | None = None) -> SessionUsage:
        """Return the sums of the models' reports so far, for the session or one of its agents."""
        return self.repository.usage(self.session_id, agent_id)


class AsyncMongoDBSessionManager(_Manager):
    """The manager for `agent.invoke_async` and `agent.stream_async`; it never blocks the loop.

        manager = await AsyncMongoDBSessionManager.open(uuid4().hex, client=client, user="ann")
        agent = Agent(session_manager=manager)
        await agent.invoke_async("hello")

    `open` reads the session's agents and messages, because Strands makes an agent without awaiting.
    The next step writes a guardrail's redaction. Over an AsyncMongoClient await the agent on the
    client's loop (not `agent("hello")`, nor `agent.tool.add()`). A MongoClient's calls run in
    threads and allow both.

    Attributes:
        repository: The repository of the session, for operations that the manager lacks.
    """

    repository: AsyncMongoDBSessionRepository
    _owned: ManagedAsyncMongoClient | None = None
    _hooks: Hooks
    _loop: asyncio.AbstractEventLoop  # that opened the session

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not args or not isinstance(args[0], OpenedSession):
            raise TypeError("use `await AsyncMongoDBSessionManager.open(session_id, ...)`")
        super().__init__(*args, **kwargs)

    @classmethod
    async def open(
        cls,
        session_id: str,
        client: AnyClient | None = None,
        connection_string: str | None = None,
        database_name: str = "strands",
        *,
        prefix: str = PREFIX,
        application: str | None = None,
        user: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        ttl: timedelta | None = None,
        restore_last: int | None = None,
        agent_id: str | Collection[str] | None = None,
        create_indexes: bool = True,
        metadata_hook: AsyncHook | None = None,
        feedback_hook: AsyncHook | None = None,
        **kwargs: Any,
    ) -> Self:
        """Open a session; for the other arguments see MongoDBSessionManager.

        With `agent_id`, one id or several, only these agents, graphs and swarms are read, and
        another one raises SessionException. Without it all are read, with 3 commands for any
        number: if a session has 50 agents, name the agent that answers.

        The hooks may be coroutine functions.

        Without client and connection string it uses the client of AsyncMongoDBConnectionPool, or of
        MongoDBConnectionPool if the asynchronous pool is not initialized.
        """
        check_choice(client, connection_string, kwargs)
        check_restore_last(restore_last)
        named = {agent_id} if isinstance(agent_id, str) else agent_id
        if not (named is None or all(isinstance(one, str) for one in named)):
            raise TypeError("agent_id is no text: use an agent's id, or several of them")
        owned: ManagedAsyncMongoClient | None = None
        if connection_string is not None:
            settings = PoolSettings.of(connection_string, None, kwargs, None, ASYNC_DEFAULTS)
            owned = ManagedAsyncMongoClient(settings)
            await owned.start()
            client = owned.client
        try:
            repository = AsyncMongoDBSessionRepository(
                shared_client() if client is None else client,
                database_name,
                prefix=prefix,
                application=application,
                user=user,
                create_indexes=create_indexes,
            )
            await finish_writes(repository, session_id)
            session, is_new = await repository.open_session(session_id, metadata=metadata, ttl=ttl)
            opened = PreloadedSession(repository, session, is_new, restore_last)
            await opened.load(named)
        except BaseException:
            if owned is not None:
                await owned.close()
            raise
        self = cls(opened, repository)
        self.repository, self._owned = repository, owned
        self._loop = asyncio.get_running_loop()
        self._hooks = Hooks(session_id, metadata_hook, feedback_hook)
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def flush(self) -> None:
        """Store everything that is not stored yet, in order.

        A turn does so by itself. Await this after calls outside of a turn, such as
        `append_message()`, `redact_latest_message()` or `sync_agent()`.

        Raises:
            SessionException: See MongoDBSessionManager.
            PyMongoError: The server is down; the manager keeps the writes.
        """
        for agent_id in [*self._opened.agents]:
            await self._opened.flush(agent_id)

    async def close(self) -> None:
        """Flush, then close the client if this manager made it; a repeat does nothing."""
        try:
            await self.flush()
        finally:
            owned, self._owned = self._owned, None
            if owned is not None:
                await owned.close()

    def register_hooks(self, registry: HookRegistry, **kwargs: Any) -> None:
        """Register hooks that await the writes after each step."""
        registry.add_callback(AgentInitializedEvent, self._on_agent)
        registry.add_callback(BeforeInvocationEvent, self._begin_turn)
        registry.add_callback(MessageAddedEvent, self._on_message)
        registry.add_callback(AfterInvocationEvent, self._on_invocation)
        registry.add_callback(MultiAgentInitializedEvent, self._on_multi_agent)
        registry.add_callback(AfterNodeCallEvent, self._on_node)
        registry.add_callback(AfterMultiAgentInvocationEvent, self._on_multi_agent_invocation)
        registry.add_callback(MessageUpdatedEvent, self._on_update)
        registry.add_callback(BidiResponseStopEvent, self._turn_ended)
        registry.add_callback(BidiAgentStopEvent, self._on_stop)

    def _on_agent(self, event: AgentInitializedEvent) -> None:
        self.initialize(event.agent)

    async def _on_message(self, event: "MessageAddedEvent[Any]") -> None:
        self.append_message(event.message, event.agent)
        self.sync_agent(event.agent)
        await self._flush(event.agent.agent_id, event.agent)

    async def _on_invocation(self, event: AfterInvocationEvent) -> None:
        self._end_turn(event)
        self._counts.add(turns=1)
        self.sync_agent(event.agent)
        # If a write is behind, this turn has failed and already waited for the server.
        if not self._opened.agents[event.agent.agent_id].is_behind:
            await self._flush(event.agent.agent_id, event.agent)

    async def _on_update(self, event: "MessageUpdatedEvent[Any]") -> None:
        self.replace_message(event.message, event.agent)
        await self._flush(event.agent.agent_id, event.agent)

    async def _on_stop(self, event: BidiAgentStopEvent) -> None:
        self.sync_agent(event.agent)
        await self._flush(event.agent.agent_id, event.agent)

    def _on_multi_agent(self, event: MultiAgentInitializedEvent) -> None:
        self.initialize_multi_agent(event.source)

    async def _on_node(self, event: AfterNodeCallEvent) -> None:
        self.sync_multi_agent(event.source)
        await self._flush(event.source.id, event.source)

    async def _on_multi_agent_invocation(self, event: AfterMultiAgentInvocationEvent) -> None:
        self._counts.add(turns=1)
        self.sync_multi_agent(event.source)
        await self._flush(event.source.id, event.source)

    async def _flush(self, agent_id: str, agent: Any) -> None:
        here = asyncio.get_running_loop()
        if here is not self._loop and not self.repository.uses_threads:
            raise SessionException(
                "this turn is not on the event loop of the AsyncMongoClient: await the agent with "
                "invoke_async() or stream_async() there, or use a MongoClient"
            )
        with self._named_on_spans(agent):
            await self._opened.flush(agent_id)

    async def get_metadata(self) -> Document:
        """Return the session's metadata."""
        return await self.repository.get_metadata(self.session_id)

    async def update_metadata(self, values: Mapping[str, Any]) -> None:
        """Set values by their paths, such as `{"customer.plan": "pro"}`, and keep all others."""
        await self.repository.update_metadata(self.session_id, values)
        await self._hooks.metadata_async(values)

    async def delete_metadata(self, *paths: str) -> None:
        """Delete values by their paths; a missing path is no error."""
        await self.repository.delete_metadata(self.session_id, *paths)
        await self._hooks.metadata_async(dict.fromkeys(paths))

    async def get_application_name(self) -> str | None:
        """Return the session's application; None without one."""
        return await self.repository.get_application_name(self.session_id)

    async def get_user(self) -> str | None:
        """Return the session's user; None without one."""
        return await self.repository.get_user(self.session_id)

    async def get_feedbacks(self, agent_id: str | None = None) -> list[Document]:
        """Return the feedback on the session's messages, or on those of one of its agents."""
        return await self.repository.list_feedback(self.session_id, agent_id)

    async def add_feedback(self, feedback: Mapping[str, Any], agent_id: str | None = None) -> None:
        """Add feedback to the latest message of the session, or of one of its agents."""
        which = await self.repository.latest_message(self.session_id, agent_id)
        await self.repository.add_feedback(self.session_id, *which, feedback)
        await self._hooks.feedback_async(feedback)

    async def usage(self, agent_id: str | None = None) -> SessionUsage:
        """Return the sums of the models' reports so far, for the session or one of its agents."""
        return await self.repository.usage(self.session_id, agent_id)
