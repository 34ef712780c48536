"""Three ways to make one call of PyMongo, so that what is asked is written once.

Sessions are read and written by coroutines. Over an AsyncMongoClient they await; over a MongoClient
each call runs in a thread; or at once, when a coroutine that never waits is all that is needed to
write synchronous code (`run_now`).
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from pymongo import AsyncMongoClient

T = TypeVar("T")


CallMethod = Callable[..., Coroutine[Any, Any, Any]]
"""How a method of PyMongo's is called: with the method and its arguments."""


async def call_now(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a method of the synchronous API here and now."""
    return method(*args, **kwargs)


async def call_async(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Await a method of the asynchronous API."""
    return await method(*args, **kwargs)


def call_method_for(client: object) -> CallMethod:
    """Return how to call this client's methods without blocking the event loop."""
    return call_async if isinstance(client, AsyncMongoClient) else asyncio.to_thread


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that makes its calls at once."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise AssertionError("it waits: it was not made to call at once")
