"""Three ways to call a method of PyMongo, so that each operation is written only once.

Coroutines read and write the sessions. Over an AsyncMongoClient they await each call. Over a
MongoClient each call runs in a thread, or directly, so that the coroutine never waits and `run_now`
can finish it without an event loop.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from pymongo import AsyncMongoClient

T = TypeVar("T")


CallMethod = Callable[..., Coroutine[Any, Any, Any]]
"""A function that calls a method of PyMongo with its arguments and returns its result."""


async def call_now(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a method of the synchronous API directly, in this thread."""
    return method(*args, **kwargs)


async def call_async(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Await a method of the asynchronous API."""
    return await method(*args, **kwargs)


def call_method_for(client: object) -> CallMethod:
    """Return the function that calls this client's methods without blocking the event loop."""
    return call_async if isinstance(client, AsyncMongoClient) else asyncio.to_thread


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that never waits, because it was made with `call_now`."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise AssertionError("the coroutine waits: it was not made with call_now")
