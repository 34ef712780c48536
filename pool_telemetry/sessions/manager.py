"""Strands' session managers over MongoDB: for an agent that is called, and for one that is awaited.

A turn writes its messages, one command each, and the agent if its state changed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Self

from pymongo import MongoClient
from strands.hooks.events import (
    AfterInvocationEvent,
    AfterMultiAgentInvocationEvent,
    AfterNodeCallEvent,
    AgentInitializedEvent,
    MessageAddedEvent,
    MultiAgentInitializedEvent,
)
from strands.hooks.registry import HookRegistry
from strands.session.repository_session_manager import RepositorySessionManager
from strands.types.content import Message

from pool_telemetry.async_pool import ManagedAsyncPool
from pool_telemetry.base_pool import Settings
from pool_telemetry.events import tracing
from pool_telemetry.pool import ManagedPool, MongoDBConnectionPool
from pool_telemetry.sessions.async_repository import AsyncMongoDBSessionRepository
from pool_telemetry.sessions.client_choice import AnyClient, check_choice, shared_client
from pool_telemetry.sessions.documents import (
    PREFIX,
    Document,
    SessionConflictError,
    SessionUsage,
)
from pool_telemetry.sessions.opened_session import (
    OpenedSession,
    PreloadedSession,
    check_restore_last,
)
from pool_telemetry.sessions.repository import MongoDBSessionRepository


class _Manager(RepositorySessionManager):
    """What both have: the base's logic over an opened session."""

    def __init__(self, opened: OpenedSession, repository: AsyncMongoDBSessionRepository) -> None:
        self._opened = opened
        self._counts = repository.counts
        super().__init__(opened.session.session_id, opened)

    def initialize(self, agent: Any, **kwargs: Any) -> None:
        """Restore an agent from the session, or create it there."""
        if agent.agent_id in self._latest_agent_message:
            super().initialize(agent, **kwargs)  # which refuses it
        with self._about(agent):
            try:
                self._initialize(agent, **kwargs)
            except BaseException:
                self._forget(agent.agent_id)
                raise
            if skipped := self._opened.skipped.pop(agent.agent_id, 0):
                agent.conversation_manager.removed_message_count += skipped
            # What was just read or written need not be written by the first turn.
            opened = self._opened.agents[agent.agent_id]
            opened.quiet = True
            try:
                super().sync_agent(agent)
            finally:
                opened.quiet = False

    def append_message(self, message: Message, agent: Any, **kwargs: Any) -> None:
        """See RepositorySessionManager."""
        with self._about(agent):
            super().append_message(message, agent, **kwargs)

    def redact_latest_message(self, redact_message: Message, agent: Any, **kwargs: Any) -> None:
        """See RepositorySessionManager."""
        with self._about(agent):
            super().redact_latest_message(redact_message, agent, **kwargs)

    def sync_agent(self, agent: Any, **kwargs: Any) -> None:
        """See RepositorySessionManager."""
        with self._about(agent):
            super().sync_agent(agent, **kwargs)

    def _initialize(self, agent: Any, **kwargs: Any) -> None:
        try:
            super().initialize(agent, **kwargs)
        except SessionConflictError:  # somebody else created it since the session was opened
            self._forget(agent.agent_id)
            self._is_new_session = False
            super().initialize(agent, **kwargs)

    def _forget(self, agent_id: str) -> None:
        self._latest_agent_message.pop(agent_id, None)
        self._opened.agents.pop(agent_id, None)

    @contextmanager
    def _about(self, agent: Any) -> Iterator[None]:
        """Name the agent on the spans of what is done for it."""
        name = getattr(agent, "name", None)
        token = tracing.span_attributes.set(
            {"gen_ai.agent.name": name} if isinstance(name, str) else None
        )
        try:
            yield
        finally:
            tracing.span_attributes.reset(token)


class MongoDBSessionManager(_Manager):
    """Keeps a Strands agent's, graph's or swarm's conversation in MongoDB.

        agent = Agent(session_manager=MongoDBSessionManager("user-42", client=client))

    A session that is not there is created. Use one manager for each conversation that is open.

    Args:
        session_id: Its id: 1 to 512 bytes, no slash, backslash or null byte, no `$` first.
        client: Who owns it closes it.
        connection_string: Instead of a client: the manager makes one, and closes it. With neither
            it takes the client of MongoDBConnectionPool.
        database_name: Where the collections are.
        prefix: Of the collections' names.
        application: Whose session it is, for `list_sessions`.
        user: As `application`.
        metadata: What a new session begins with.
        ttl: How long it lives after it was last used; kept as it was if None.
        restore_last: With how many messages an agent begins at most; None for all. It begins with
            a prompt, so there may be fewer, or more where one turn has more.
        **kwargs: MongoClient's, with a connection string.

    Raises:
        SessionException: See MongoDBSessionRepository. SessionConflictError where somebody else
            continued the session since it was opened: the agent has messages that the session has
            not, and what it stored of the turn stays. Open it again. Of an agent's state, who
            writes last is right.
        PyMongoError: The server is gone. What could not be written is kept and written by the next
            turn.
        EventLoopException: Strands' own, around either of them in the middle of a turn; it is the
            `__cause__`.

    Attributes:
        repository: Where the session is, for all that goes beyond it.
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
        **kwargs: Any,
    ) -> None:
        check_choice(client, connection_string, kwargs)
        check_restore_last(restore_last)
        self._owned: ManagedPool | None = None
        if connection_string is not None:
            self._owned = ManagedPool(Settings.of(connection_string, None, kwargs, None))
            client = self._owned.client
        try:
            self.repository = MongoDBSessionRepository(
                MongoDBConnectionPool.get_client() if client is None else client,
                database_name,
                prefix=prefix,
            )
            session, is_new = self.repository.open_session(
                session_id, application=application, user=user, metadata=metadata, ttl=ttl
            )
            everything = self.repository.asynchronous
            super().__init__(OpenedSession(everything, session, is_new, restore_last), everything)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the client, if this manager made it. Again is no error."""
        owned, self._owned = self._owned, None
        if owned is not None:
            owned.close()

    def register_hooks(self, registry: HookRegistry, **kwargs: Any) -> None:
        """See SessionManager; each invocation counts as a turn."""
        super().register_hooks(registry, **kwargs)
        registry.add_callback(AfterInvocationEvent, self._turn_ended)
        registry.add_callback(AfterMultiAgentInvocationEvent, self._turn_ended)

    def _turn_ended(self, event: object) -> None:
        self._counts.add(turns=1)

    def get_metadata(self) -> Document:
        """Return the session's metadata."""
        return self.repository.get_metadata(self.session_id)

    def update_metadata(self, values: Mapping[str, Any]) -> None:
        """Set values by their paths, and keep the others: `{"customer.plan": "pro"}`."""
        self.repository.update_metadata(self.session_id, values)

    def delete_metadata(self, *paths: str) -> None:
        """Delete values by their paths. One that is not there is no error."""
        self.repository.delete_metadata(self.session_id, *paths)

    def add_feedback(self, feedback: Mapping[str, Any], agent_id: str | None = None) -> None:
        """Add what somebody said of the session's latest message, or of the agent's."""
        which = self.repository.latest_message(self.session_id, agent_id)
        self.repository.add_feedback(self.session_id, *which, feedback)

    def usage(self) -> SessionUsage:
        """Return what models reported for the session so far."""
        return self.repository.usage(self.session_id)


class AsyncMongoDBSessionManager(_Manager):
    """The same for `agent.invoke_async` and `agent.stream_async`: it never blocks the event loop.

        manager = await AsyncMongoDBSessionManager.open("user-42", client=client)
        agent = Agent(session_manager=manager)
        await agent.invoke_async("hello")

    `open` reads the session's agents and messages, for Strands makes an agent without awaiting; a
    guardrail's redaction is written with the next step. Over an AsyncMongoClient await the agent on
    the client's loop (not `agent("hello")`, nor `agent.tool.add()`); a MongoClient's calls run in
    threads, and allow both.

    Attributes:
        repository: Where the session is, for all that goes beyond it.
    """

    repository: AsyncMongoDBSessionRepository
    _owned: ManagedAsyncPool | None = None

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
        **kwargs: Any,
    ) -> Self:
        """Open a session; see MongoDBSessionManager.

        With neither client nor connection string it takes the client of AsyncMongoDBConnectionPool,
        or of MongoDBConnectionPool if that one is not initialized.
        """
        check_choice(client, connection_string, kwargs)
        check_restore_last(restore_last)
        owned: ManagedAsyncPool | None = None
        if connection_string is not None:
            owned = ManagedAsyncPool(Settings.of(connection_string, None, kwargs, None))
            await owned.start()
            client = owned.client
        try:
            repository = AsyncMongoDBSessionRepository(
                shared_client() if client is None else client, database_name, prefix=prefix
            )
            session, is_new = await repository.open_session(
                session_id, application=application, user=user, metadata=metadata, ttl=ttl
            )
            opened = PreloadedSession(repository, session, is_new, restore_last)
            await opened.load()
        except BaseException:
            if owned is not None:
                await owned.close()
            raise
        self = cls(opened, repository)
        self.repository, self._owned = repository, owned
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the client, if this manager made it. Again is no error."""
        owned, self._owned = self._owned, None
        if owned is not None:
            await owned.close()

    def register_hooks(self, registry: HookRegistry, **kwargs: Any) -> None:
        """Register what is awaited after each step."""
        registry.add_callback(AgentInitializedEvent, self._on_agent)
        registry.add_callback(MessageAddedEvent, self._on_message)
        registry.add_callback(AfterInvocationEvent, self._on_invocation)
        registry.add_callback(MultiAgentInitializedEvent, self._on_multi_agent)
        registry.add_callback(AfterNodeCallEvent, self._on_node)
        registry.add_callback(AfterMultiAgentInvocationEvent, self._on_multi_agent_invocation)

    def _on_agent(self, event: AgentInitializedEvent) -> None:
        self.initialize(event.agent)

    async def _on_message(self, event: "MessageAddedEvent[Any]") -> None:
        self.append_message(event.message, event.agent)
        self.sync_agent(event.agent)
        await self._flush(event.agent.agent_id, event.agent)

    async def _on_invocation(self, event: AfterInvocationEvent) -> None:
        self._counts.add(turns=1)
        self.sync_agent(event.agent)
        # Else this turn has failed, and waited for the server.
        if not self._opened.agents[event.agent.agent_id].is_behind:
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
        with self._about(agent):
            await self._opened.flush(agent_id)

    async def get_metadata(self) -> Document:
        """Return the session's metadata."""
        return await self.repository.get_metadata(self.session_id)

    async def update_metadata(self, values: Mapping[str, Any]) -> None:
        """Set values by their paths, and keep the others: `{"customer.plan": "pro"}`."""
        await self.repository.update_metadata(self.session_id, values)

    async def delete_metadata(self, *paths: str) -> None:
        """Delete values by their paths. One that is not there is no error."""
        await self.repository.delete_metadata(self.session_id, *paths)

    async def add_feedback(self, feedback: Mapping[str, Any], agent_id: str | None = None) -> None:
        """Add what somebody said of the session's latest message, or of the agent's."""
        which = await self.repository.latest_message(self.session_id, agent_id)
        await self.repository.add_feedback(self.session_id, *which, feedback)

    async def usage(self) -> SessionUsage:
        """Return what models reported for the session so far."""
        return await self.repository.usage(self.session_id)
