"""The callers that wait in server selection, because no server fits their operation.

PyMongo publishes no event of server selection, and such a caller has not begun a checkout. So the
callers are read from the frames of threads and of asyncio's tasks; greenlets are not seen. Readers
and the watching thread call this, never the hot path.
"""

import asyncio
from collections.abc import Hashable, Iterable, Iterator
from types import FrameType
from typing import Any, Final, NamedTuple

from pool_telemetry.standstill import later
from pool_telemetry.state.frames import (
    await_chain,
    current_frames,
    is_client,
    is_topology,
    outward,
    without_collections,
)
from pool_telemetry.stats import ServerSelectionStats

MIN_WAIT_SECONDS: Final = 0.05
"""A caller that has selected for less than this is not counted: it may be about to succeed."""


class Selection(NamedTuple):
    """One caller that waits in server selection; times are monotonic seconds."""

    client: Any  # the MongoClient or AsyncMongoClient
    caller: Hashable
    since: float
    deadline: float  # when the selection fails


def selections(loops: Iterable[asyncio.AbstractEventLoop], now: float) -> list[Selection]:
    """Return the callers of this process that wait in server selection.

    Args:
        loops: The event loops whose tasks are looked at.
        now: Monotonic seconds.
    """
    with without_collections():
        every = [_selection(caller, stack) for caller, stack in _stacks(loops)]
    return [one for one in every if one is not None and now - one.since >= MIN_WAIT_SECONDS]


def _stacks(
    loops: Iterable[asyncio.AbstractEventLoop],
) -> Iterator[tuple[Hashable, Iterable[FrameType]]]:
    """Yield the stack of each thread and each suspended task, the innermost frame first."""
    for ident, innermost in (current_frames() or {}).items():
        yield ident, outward(innermost)
    for loop in loops:
        for task in asyncio.all_tasks(loop):
            yield id(task), reversed(await_chain(task.get_coro())[0])


def _selection(caller: Hashable, stack: Iterable[FrameType]) -> Selection | None:
    """Return the selection that a stack is in; None if it is in none."""
    names: dict[str, Any] = {}
    for frame in stack:
        module = frame.f_globals.get("__name__")
        if is_topology(module) and "end_time" in frame.f_locals:
            names = frame.f_locals
        elif names and is_client(module) and (client := frame.f_locals.get("self")) is not None:
            since, deadline = names["end_time"] - names["timeout"], names["end_time"]
            return Selection(client, caller, since, deadline)
    return None


class ServerSelection:
    """The callers of one client that wait in server selection, and those that failed there."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[Hashable, float], Selection] = {}
        self._failures = 0
        self._failed_at: float | None = None
        self._lacked_server = False

    @property
    def is_waited_for(self) -> bool:
        """Return whether a caller waited when the callers were last looked at."""
        return bool(self._waiting)

    def update(self, found: Iterable[Selection], now: float, *, lacks_server: bool = False) -> None:
        """Record the callers that wait now; callers that are gone failed if their time is up.

        Args:
            found: The callers.
            now: Monotonic seconds.
            lacks_server: Whether no server takes writes. If that has just ended, callers that are
                gone were served.
        """
        waiting = {(one.caller, one.deadline): one for one in found}
        recovered, self._lacked_server = self._lacked_server and not lacks_server, lacks_server
        for key, one in self._waiting.items():
            if key not in waiting and one.deadline <= now and not recovered:
                self._failures += 1
                self._failed_at = now
        self._waiting = waiting

    def stats(self, now: float) -> ServerSelectionStats:
        """Return the callers of the last look, and all failures so far."""
        waiting = list(self._waiting.values())
        return ServerSelectionStats(
            waiting=len(waiting),
            oldest_wait=max((now - one.since for one in waiting), default=0.0),
            failures=self._failures,
            since_failure=None if self._failed_at is None else max(0.0, now - self._failed_at),
        )

    def leave_out(self, seconds: float, now: float) -> None:
        """Leave out of every age some seconds for which this process stood still until now."""
        if self._failed_at is not None:
            self._failed_at = later(self._failed_at, seconds, now)
