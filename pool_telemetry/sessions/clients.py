"""Whose client a session is kept with: one that is given, one that is made, or the shared one."""

from collections.abc import Mapping
from typing import Any

from pymongo import AsyncMongoClient, MongoClient

from pool_telemetry.async_pool import AsyncMongoDBConnectionPool
from pool_telemetry.errors import PoolConfigurationError
from pool_telemetry.pool import MongoDBConnectionPool

AnyClient = MongoClient[dict[str, Any]] | AsyncMongoClient[dict[str, Any]]


def check_choice(
    client: object | None, connection_string: str | None, kwargs: Mapping[str, Any]
) -> None:
    """Raise PoolConfigurationError where more than one client is described."""
    if client is not None and connection_string is not None:
        raise PoolConfigurationError(
            "client and connection_string are both given: use one, or neither for the shared pool"
        )
    if kwargs and connection_string is None:
        raise PoolConfigurationError(
            f"{', '.join(sorted(kwargs))}: options of a client need a connection_string"
        )


def shared_client() -> AnyClient:
    """Return the client of the asynchronous singleton, or of the other if that has none."""
    if AsyncMongoDBConnectionPool.get_telemetry() is not None:
        return AsyncMongoDBConnectionPool.get_client()
    return MongoDBConnectionPool.get_client()
