"""Whose client a session is kept with: one that is given, one that is made, or the shared one."""

from collections.abc import Mapping
from typing import Any

from pymongo import AsyncMongoClient, MongoClient

from pool_telemetry.async_pool import AsyncMongoDBConnectionPool
from pool_telemetry.errors import PoolConfigurationError, PoolNotInitializedError
from pool_telemetry.pool import MongoDBConnectionPool

AnyClient = MongoClient[dict[str, Any]] | AsyncMongoClient[dict[str, Any]]


def check_client(client: object, *kinds: type) -> None:
    """Raise TypeError where it is no client of these kinds."""
    if not isinstance(client, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        asynchronous = "; for an AsyncMongoClient there are the classes with Async in their names"
        raise TypeError(
            f"client is {type(client).__name__}: use {wanted}"
            f"{asynchronous if isinstance(client, AsyncMongoClient) else ''}"
        )


def check_choice(
    client: object | None, connection_string: str | None, kwargs: Mapping[str, Any]
) -> None:
    """Raise PoolConfigurationError where more than one client is described."""
    if client is not None and connection_string is not None:
        raise PoolConfigurationError(
            "client and connection_string are both given: use one, or neither for the shared pool"
        )
    if connection_string is None and kwargs:
        raise PoolConfigurationError(
            f"{', '.join(sorted(kwargs))}: no option of ours, and MongoClient's need a "
            "connection_string"
        )


def shared_client() -> AnyClient:
    """Return the client of the asynchronous singleton, or of the other if that has none."""
    for pool in (AsyncMongoDBConnectionPool, MongoDBConnectionPool):
        if pool.get_telemetry() is not None:
            client: AnyClient = pool.get_client()
            return client
    raise PoolNotInitializedError(
        "neither AsyncMongoDBConnectionPool nor MongoDBConnectionPool has a client: initialize one "
        "of them first, or pass client= or connection_string="
    )
