"""Session managers made per request, over one client: no connection and no index each time."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, Self

from pymongo import MongoClient

from pool_telemetry.base_pool import Settings
from pool_telemetry.errors import PoolNotInitializedError
from pool_telemetry.pool import ManagedPool, MongoDBConnectionPool
from pool_telemetry.process import ProcessLock
from pool_telemetry.sessions.client_choice import AnyClient, check_choice, shared_client
from pool_telemetry.sessions.documents import PREFIX
from pool_telemetry.sessions.manager import (
    AsyncMongoDBSessionManager,
    MongoDBSessionManager,
)


class MongoDBSessionManagerFactory:
    """Makes session managers that share a client, and settings. Threads and tasks may share it.

    Args:
        connection_string: The factory makes a client, and closes it.
        database_name: Where the collections are.
        client: Instead: who owns it closes it. An AsyncMongoClient makes asynchronous managers
            only. With neither each manager takes the client that MongoDBConnectionPool, or
            AsyncMongoDBConnectionPool, has at that moment.
        prefix: Of the collections' names.
        application: Whose sessions they are, for lists.
        ttl: How long a session lives after it was last used; None for ever.
        restore_last: How many messages an agent begins with at most; None for all.
        **kwargs: MongoClient's, with a connection string.
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
        **kwargs: Any,
    ) -> None:
        check_choice(client, connection_string, kwargs)
        self._owned: ManagedPool | None = None
        if connection_string is not None:
            self._owned = ManagedPool(Settings.of(connection_string, None, kwargs, None))
            client = self._owned.client
        self._client = client
        self._settings: dict[str, Any] = {
            "database_name": database_name,
            "prefix": prefix,
            "application": application,
            "ttl": ttl,
            "restore_last": restore_last,
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
        """Open a session for an agent that is called; see MongoDBSessionManager.

        Raises:
            TypeError: The factory's client is an AsyncMongoClient.
        """
        client = self._client
        if client is None:
            client = shared_client()
            if not isinstance(client, MongoClient) and MongoDBConnectionPool.get_telemetry():
                client = MongoDBConnectionPool.get_client()
        if not isinstance(client, MongoClient):
            raise TypeError("there is an AsyncMongoClient only: await open_session_manager()")
        return MongoDBSessionManager(
            session_id, client, user=user, metadata=metadata, **self._settings
        )

    async def open_session_manager(
        self,
        session_id: str,
        *,
        user: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> AsyncMongoDBSessionManager:
        """Open a session for an agent that is awaited; see AsyncMongoDBSessionManager."""
        client = shared_client() if self._client is None else self._client
        return await AsyncMongoDBSessionManager.open(
            session_id, client, user=user, metadata=metadata, **self._settings
        )

    def close(self) -> None:
        """Close the client, if this factory made it. Again is no error."""
        owned, self._owned = self._owned, None
        if owned is not None:
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
    **kwargs: Any,
) -> MongoDBSessionManagerFactory:
    """Make the factory of this process, and return it; one that was there is closed.

    With a connection string the factory owns a client, whose pool is watched like any other; with
    none it is over MongoDBConnectionPool.
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
        PoolNotInitializedError: Before `initialize_global_factory()`, or after its close.
    """
    if _global is None:
        raise PoolNotInitializedError(
            "there is no global factory: call initialize_global_factory(connection_string) first, "
            "when the application starts (close_global_factory() undoes it)"
        )
    return _global


def close_global_factory() -> None:
    """Close the factory of this process. Without one it is no error."""
    global _global
    with _lock:
        old, _global = _global, None
    if old is not None:
        old.close()
