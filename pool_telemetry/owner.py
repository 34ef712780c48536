"""On whose behalf connections are used: a name that the application gives to what it does."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

MAX_OWNER: Final = 200  # characters

_owner: ContextVar[str] = ContextVar("pool_telemetry_owner", default="")

current_owner = _owner.get
"""Return the name in force; empty without one."""


@contextmanager
def owner(name: str) -> Iterator[None]:
    """Give a name to what happens inside.

        with owner("checkout-flow"):
            client["shop"]["orders"].find_one()

    For threads and for tasks, which inherit it. The innermost counts. Use few names (a route, a
    job), never a user's or a request's.

    Raises:
        ValueError: It is empty, or longer than 200 characters.
    """
    if not isinstance(name, str) or not 0 < len(name) <= MAX_OWNER:
        raise ValueError(f"an owner's name has 1 to {MAX_OWNER} characters")
    token = _owner.set(name)
    try:
        yield
    finally:
        _owner.reset(token)
