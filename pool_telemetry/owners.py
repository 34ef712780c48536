"""Owners: names that the application gives to its work, so that connections can be told apart."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Final

from pool_telemetry.stats import NO_ORIGIN, Origin, bounded, printable

MAX_OWNER: Final = 200  # characters

_origin: ContextVar[Origin] = ContextVar("pool_telemetry_owner", default=NO_ORIGIN)

current_origin = _origin.get
"""Return the origin of the caller: the innermost owner."""


@contextmanager
def owner(name: str) -> Iterator[None]:
    """Name the owner of all connections that the block uses.

        with owner("checkout-flow"):
            client["shop"]["orders"].find_one()

    It holds for the thread or task; new tasks inherit it. The innermost owner counts. Use few names
    (of routes or jobs), never the name of a user or a request.

    Raises:
        ValueError: The name is empty, longer than 200 characters, or not printable.
    """
    fits = isinstance(name, str) and 0 < len(name) <= MAX_OWNER and name.isprintable()
    if not fits:
        raise ValueError(f"an owner's name has 1 to {MAX_OWNER} printable characters")
    token = _origin.set(Origin(name, None))
    try:
        yield
    finally:
        _origin.reset(token)


def owner_of_route(template: str) -> AbstractContextManager[None]:
    """Make the template of a request's route the owner; an empty one is no owner.

    The template is cut to what an owner's name may have.
    """
    return owner(printable(bounded(template, MAX_OWNER))) if template else nullcontext()
