"""The choice of a session's client: a given one, one made from a URI, or a singleton's."""

from collections.abc import Mapping
from typing import Any

from pymongo import AsyncMongoClient, MongoClient

from pool_telemetry.async_pool import AsyncMongoDBConnectionPool
from pool_telemetry.errors import PoolConfigurationError, PoolNotInitializedError
from pool_telemetry.pool import MongoDBConnectionPool

AnyClient = MongoClient[dict[str, Any]] | AsyncMongoClient[dict[str, Any]]


def check_client(client: object, *kinds: type) -> None:
    """Raise TypeError if an object is not a client of these classes."""
    if not isinstance(client, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        asynchronous = "; an AsyncMongoClient needs the classes with Async in their names"
        raise TypeError(
            f"client is {type(client).__name__}: use {wanted}"
            f"{asynchronous if isinstance(client, AsyncMongoClient) else ''}"
        )


def check_choice(
    client: object | None, connection_string: str | None, kwargs: Mapping[str, Any]
) -> None:
    """Raise PoolConfigurationError if the arguments describe more than one client."""
    if client is not None and connection_string is not None:
        raise PoolConfigurationError(
            "client and connection_string are both given: use one, or neither for the shared pool "
            "(the argument after client is connection_string; give database_name by its name)"
        )
    if connection_string is None and kwargs:
        raise PoolConfigurationError(
            f"unknown option {', '.join(sorted(kwargs))}: MongoClient's options need a "
            "connection_string"
        )


def shared_client() -> AnyClient:
    """Return the asynchronous singleton's client, or the synchronous singleton's without one."""
    for pool in (AsyncMongoDBConnectionPool, MongoDBConnectionPool):
        if pool.get_telemetry() is not None:
            client: AnyClient = pool.get_client()
            return client
    raise PoolNotInitializedError(
        "neither AsyncMongoDBConnectionPool nor MongoDBConnectionPool has a client: initialize one "
        "of them first, or pass client= or connection_string="
    )
