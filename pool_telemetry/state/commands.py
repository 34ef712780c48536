"""The durations of one client's commands, in a bounded number of series.

Its listener alone writes it, by one method for each event; readers take `stats()`. The same rules
hold as in `pool_state`: one leaf lock, nothing that grows.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from threading import RLock
from typing import Any, Final, Protocol

from pool_telemetry.standstill import later
from pool_telemetry.state.actor import Actor
from pool_telemetry.state.histogram import OPERATION_BOUNDS, Histogram
from pool_telemetry.state.service import Refusals
from pool_telemetry.stats import (
    OVERFLOW,
    Address,
    OperationStats,
    TraceLink,
    bounded,
    bounded_address,
    validate_address,
)

CommandKey = tuple[Address, str, str, str, str, str]
"""Server, database, collection, command, error type, status code."""


def bounded_key(key: CommandKey) -> CommandKey:
    """Return a key with bounded names.

    Raises:
        TypeError: The address is malformed, or a name is not a string.
    """
    address = validate_address(key[0])
    _, database, collection, command, error_type, status = key
    names = (database, collection, command, error_type, status)
    if not all(isinstance(name, str) for name in names):
        raise TypeError("a command has a name that is not a string")
    return (
        bounded_address(address),
        bounded(database),
        bounded(collection),
        bounded(command),
        bounded(error_type),
        bounded(status),
    )


class Trace(Protocol):
    """The part of a trace that belongs to one command."""

    def end(self, error_type: str, status_code: str) -> None:
        """End the command's part of the trace."""

    def link(self) -> TraceLink | None:
        """Return the command's place in the trace."""


_MAX_TRACKED: Final = 10_000  # commands of each kind; far above any pool's connections
_TRIES: Final = 100  # running commands that are passed over at most to evict a finished one


class Command:
    """One command, running or the latest of its actor.

    Attributes:
        key: The series that its duration belongs to.
        trace: Its part of a trace.
        started_at: When it was sent, by the clock.
        in_transaction: Whether it belongs to a transaction.
        seconds: How long it took; None while no answer has come.
        await_milliseconds: Of a getMore alone, as in its document: how long the server may wait for
            new data. None if the cursor is not tailable, or the application sets no bound.
    """

    __slots__ = ("await_milliseconds", "in_transaction", "key", "seconds", "started_at", "trace")

    key: CommandKey
    trace: Trace | None
    started_at: float
    in_transaction: bool
    seconds: float | None
    await_milliseconds: Any


class CommandState:
    """The durations of one client's commands, in a bounded number of series.

    Args:
        max_series: Series kept; further commands share one more, `_OTHER`.
        clock: Monotonic seconds.
    """

    def __init__(self, max_series: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_series = max_series
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Forget everything, with a new lock; a forked child needs both."""
        self._lock = RLock()
        self._series: dict[CommandKey, Histogram] = {}
        self._overloaded = set[CommandKey]()  # the series of errors of an overloaded server
        self.refusals, self._refused = Refusals(), 0
        # A command cancelled in flight publishes no end before PyMongo 4.20.1, and an ended task
        # sends no other command: so the newest evict the oldest.
        self._inflight: dict[int, Command] = {}  # by request id
        self._latest: dict[Actor, Command] = {}  # of each actor, running or ended
        self._latest_get_more: dict[Actor, Command] = {}
        self.evicted = False  # whether an actor's latest command was evicted

    def started(
        self,
        request_id: int,
        key: CommandKey,
        trace: Trace | None = None,
        actor: Actor = 0,
        document: Mapping[str, Any] = {},  # it is never changed
    ) -> None:
        """Keep a command until it ends, and longer while it is the latest of its actor.

        Args:
            request_id: PyMongo's number of the request.
            key: The series that it belongs to if it succeeds.
            trace: Its part of a trace.
            actor: The actor that sent it.
            document: The command, which is not kept.
        """
        command = Command()  # an __init__ would double what it costs
        command.key, command.trace, command.started_at = key, trace, self._clock()
        command.in_transaction, command.seconds = "autocommit" in document, None
        if key[3] == "getMore":
            # PyMongo sets it for tailable cursors that await data only (4.9 to 4.20): never from
            # pymongo.timeout() or timeoutMS, because a server refuses it for other cursors.
            command.await_milliseconds = document.get("maxTimeMS")
            self._latest_get_more[actor] = command
        inflight, latest = self._inflight, self._latest
        inflight[request_id] = command
        latest[actor] = command
        if len(inflight) > _MAX_TRACKED or len(latest) > _MAX_TRACKED:
            self._make_room()

    def _make_room(self) -> None:
        with contextlib.suppress(RuntimeError):  # another thread does it at this moment
            if len(self._inflight) > _MAX_TRACKED:
                self._inflight.pop(next(iter(self._inflight)), None)
            if len(self._latest) > _MAX_TRACKED:
                self.evicted = True
                self._evict(self._latest)
            if len(self._latest_get_more) > _MAX_TRACKED:
                self._evict(self._latest_get_more)

    def _evict(self, kept: dict[Actor, Command]) -> None:
        """Evict the oldest finished command, or a running one if the first _TRIES all run."""
        for _ in range(_TRIES):
            actor = next(iter(kept))
            command = kept.pop(actor, None)
            if command is None or command.seconds is not None:
                return
            kept[actor] = command
        kept.pop(next(iter(kept)), None)

    def ended(
        self,
        request_id: int,
        seconds: float,
        error_type: str = "",
        status_code: str = "",
        *,
        overloaded: bool = False,
    ) -> None:
        """Record the duration of a command that ended, under its error if it failed.

        Args:
            request_id: PyMongo's number of the request.
            seconds: How long it took.
            error_type: The error's code or class; empty if the command succeeded.
            status_code: The error's code.
            overloaded: Whether it failed because the server was overloaded.
        """
        command = self._inflight.pop(request_id, None)
        if command is not None:
            command.seconds = seconds
            key, trace = command.key, command.trace
            if error_type:
                key = (*key[:4], error_type, status_code)
            with self._lock:
                histogram = self._series.get(key) or self._bounded_series(command, key)
                histogram.observe(seconds, None if trace is None else trace.link)
                if overloaded:
                    self._refused += 1
                    key = bounded_key(key)
                    if key in self._series:
                        self._overloaded.add(key)
            if trace is not None:
                trace.end(error_type, status_code)

    def leave_out(self, seconds: float, now: float) -> None:
        """Leave out of every age some seconds for which this process stood still until now."""
        self.refusals.leave_out(seconds, now)
        kept = (self._inflight, self._latest, self._latest_get_more)
        for command in {id(one): one for by in kept for one in [*by.values()]}.values():
            command.started_at = later(command.started_at, seconds, now)

    def latest(self, actor: Actor) -> Command | None:
        """Return the latest command of an actor; None if it sent none, or it was evicted."""
        return self._latest.get(actor)

    def latest_get_more(self, actor: Actor) -> Command | None:
        """Return the latest getMore of an actor."""
        return self._latest_get_more.get(actor)

    def _bounded_series(self, command: Command, key: CommandKey) -> Histogram:
        """Return the series of a key without one, and bound the names of its command."""
        key = bounded_key(key)
        command.key = (*key[:4], "", "")  # the command is kept
        return self._series.get(key) or self._new_series(key)

    def _new_series(self, key: CommandKey) -> Histogram:
        if len(self._series) >= self._max_series:
            failed = OVERFLOW if key[4] else ""
            key = (("", None), "", "", OVERFLOW, failed, "")
        return self._series.setdefault(key, Histogram(OPERATION_BOUNDS))

    def stats(self) -> tuple[OperationStats, ...]:
        """Return a frozen copy of every series, each true in itself."""
        with self._lock:
            series = list(self._series.items())
        found = []
        for key, histogram in series:
            with self._lock:  # for a microsecond at a time: hundreds at once would stop the events
                duration = histogram.stats()
            found.append(
                OperationStats(
                    host=key[0][0],
                    port=key[0][1],
                    namespace=key[1],
                    collection=key[2],
                    operation=key[3],
                    error_type=key[4],
                    status_code=key[5],
                    duration=duration,
                    overloaded=key in self._overloaded,
                )
            )
        with self._lock:
            self.refusals.record(
                self._clock(),
                answered=sum(one.duration.count for one in found if not one.error_type),
                refused=self._refused,
            )
        return tuple(found)
