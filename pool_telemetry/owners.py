"""On whose behalf connections are used: a name that the application gives to what it does."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from pool_telemetry.stats import NO_ORIGIN, Origin

MAX_OWNER: Final = 200  # characters

_note: ContextVar[Origin] = ContextVar("pool_telemetry_owner", default=NO_ORIGIN)

current_origin = _note.get
"""Return a note of the name in force."""


@contextmanager
def owner(name: str) -> Iterator[None]:
    """Give a name to what happens inside.

        with owner("checkout-flow"):
            client["shop"]["orders"].find_one()

    For threads and for tasks, which inherit it. The innermost counts. Use few names (a route, a
    job), never a user's or a request's.

    Raises:
        ValueError: It is empty, longer than 200 characters, or has some that can't be printed.
    """
    fits = isinstance(name, str) and 0 < len(name) <= MAX_OWNER and name.isprintable()
    if not fits:
        raise ValueError(f"an owner's name has 1 to {MAX_OWNER} printable characters")
    token = _note.set(Origin(name, None))
    try:
        yield
    finally:
        _note.reset(token)
