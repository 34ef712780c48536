"""A factory of session managers per request over one client, without new connections or indexes."""

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any, Final, Self

from pymongo import MongoClient

from pool_telemetry.base_pool import PoolSettings
from pool_telemetry.errors import PoolNotInitializedError
from pool_telemetry.pool import ManagedMongoClient, MongoDBConnectionPool
from pool_telemetry.process import ProcessLock
from pool_telemetry.sessions.client_choice import AnyClient, check_choice, shared_client
from pool_telemetry.sessions.documents import PREFIX
from pool_telemetry.sessions.hooks import AsyncHook
from pool_telemetry.sessions.manager import (
    AsyncMongoDBSessionManager,
    MongoDBSessionManager,
)


class MongoDBSessionManagerFactory:
    """Makes session managers that share a client and settings; threads and tasks may share it.

    Args:
        connection_string: The URI of a client that the factory makes and closes. While
            MongoDBConnectionPool has no client of its own, its `get_client()`, `get_pool_stats()`
            and health answer for this client.
        database_name: The database of the collections.
        client: A client instead of a URI; its owner closes it. With an AsyncMongoClient the factory
            makes asynchronous managers only. Without client and URI each manager uses the current
            client of MongoDBConnectionPool or AsyncMongoDBConnectionPool.
        prefix: The prefix of the collections' names.
        application: The sessions' application; each manager opens only sessions of it.
        ttl: A session's time to live after its last use; with None a new session never expires.
        restore_last: The number of messages that an agent begins with at most; None for all.
        create_indexes: See AsyncMongoDBSessionRepository.
        metadata_hook: See MongoDBSessionManager; asynchronous managers take coroutine functions.
        feedback_hook: The same for feedback.
        **kwargs: MongoClient's options, with a connection string.
    """

    def __init__(
        self,
        connection_string: str | None = None,
        database_name: str = "strands",
        *,
        client: AnyClient | None = None,
        prefix: str = PREFIX,
        application: str | None = None,
        ttl: timedelta | None = None,
        restore_last: int | None = None,
        create_indexes: bool = True,
        metadata_hook: AsyncHook | None = None,
        feedback_hook: AsyncHook | None = None,
        **kwargs: Any,
    ) -> None:
        check_choice(client, connection_string, kwargs)
        self._owned: ManagedMongoClient | None = None
        if connection_string is not None:
            self._owned = ManagedMongoClient(PoolSettings.of(connection_string, None, kwargs, None))
            MongoDBConnectionPool.adopt(self._owned)
            client = self._owned.client
        self._client = client
        self._settings: dict[str, Any] = {
            "database_name": database_name,
            "prefix": prefix,
            "application": application,
            "ttl": ttl,
            "restore_last": restore_last,
            "create_indexes": create_indexes,
            "metadata_hook": metadata_hook,
            "feedback_hook": feedback_hook,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create_session_manager(
        self,
        session_id: str,
        *,
        user: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> MongoDBSessionManager:
        """Open a session for a synchronous agent; see MongoDBSessionManager.

        Raises:
            TypeError: The factory's client is an AsyncMongoClient.
        """
        client = self._client
        if client is None:
            client = shared_client()
            if not isinstance(client, MongoClient) and MongoDBConnectionPool.get_telemetry():
                client = MongoDBConnectionPool.get_client()
        if not isinstance(client, MongoClient):
            raise TypeError("the client is an AsyncMongoClient: await open_session_manager()")
        return MongoDBSessionManager(
            session_id, client, user=user, metadata=metadata, **self._settings
        )

    async def open_session_manager(
        self,
        session_id: str,
        *,
        user: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        agent_id: str | Collection[str] | None = None,
    ) -> AsyncMongoDBSessionManager:
        """Open a session for an asynchronous agent; see AsyncMongoDBSessionManager."""
        client = shared_client() if self._client is None else self._client
        return await AsyncMongoDBSessionManager.open(
            session_id,
            client,
            user=user,
            metadata=metadata,
            agent_id=agent_id,
            **self._settings,
        )

    def close(self) -> None:
        """Close the client if this factory made it; a repeat does nothing."""
        owned, self._owned = self._owned, None
        if owned is not None and MongoDBConnectionPool.release(owned):
            owned.close()


_global: MongoDBSessionManagerFactory | None = None
_lock: Final = ProcessLock()


def initialize_global_factory(
    connection_string: str | None = None,
    database_name: str = "strands",
    *,
    client: AnyClient | None = None,
    prefix: str = PREFIX,
    application: str | None = None,
    ttl: timedelta | None = None,
    restore_last: int | None = None,
    create_indexes: bool = True,
    metadata_hook: AsyncHook | None = None,
    feedback_hook: AsyncHook | None = None,
    **kwargs: Any,
) -> MongoDBSessionManagerFactory:
    """Make the factory of this process and return it; a previous factory is closed.

    With a connection string the factory makes a client, which is also that of
    MongoDBConnectionPool unless this has its own. Without client and URI the factory uses the
    singletons' clients.
    """
    global _global
    new = MongoDBSessionManagerFactory(
        connection_string,
        database_name,
        client=client,
        prefix=prefix,
        application=application,
        ttl=ttl,
        restore_last=restore_last,
        create_indexes=create_indexes,
        metadata_hook=metadata_hook,
        feedback_hook=feedback_hook,
        **kwargs,
    )
    with _lock:
        old, _global = _global, new
    if old is not None:
        old.close()
    return new


def get_global_factory() -> MongoDBSessionManagerFactory:
    """Return the factory of this process.

    Raises:
        PoolNotInitializedError: Before `initialize_global_factory()`, or after
            `close_global_factory()`.
    """
    if _global is None:
        raise PoolNotInitializedError(
            "there is no global factory: call initialize_global_factory(connection_string) first, "
            "when the application starts (close_global_factory() undoes it)"
        )
    return _global


def close_global_factory() -> None:
    """Close the factory of this process; without a factory do nothing."""
    global _global
    with _lock:
        old, _global = _global, None
    if old is not None:
        old.close()
