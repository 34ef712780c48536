"""The truth of one client's commands: durations, in a bounded number of series.

Written by its listener only, one method an event; read through `stats()` only. The same rules as
in `state.py`: one leaf lock, nothing that grows.
"""

import contextlib
import time
from collections.abc import Callable
from threading import RLock
from typing import Final, Protocol

from pool_telemetry.state.actor import Actor
from pool_telemetry.state.histogram import OPERATION_BOUNDS, Histogram
from pool_telemetry.stats import OVERFLOW, Address, OperationStats, TraceLink, validate_address

CommandKey = tuple[Address, str, str, str, str, str]
"""Server, database, collection, command, error type, status code."""


class Trace(Protocol):
    """What a trace has of one command that was sent."""

    def end(self, error_type: str, status_code: str) -> None:
        """Note the command's end."""

    def link(self) -> TraceLink | None:
        """Return where in the trace it is."""


_LIMIT: Final = 10_000
_TRIES: Final = 100


class Command:
    """One command, as long as it is of interest.

    Attributes:
        series: What it is.
        trace: Its part of a trace.
        since: When it was sent, by the clock.
        in_transaction: It belongs to one.
        seconds: How long it took; None while no answer has come.
    """

    __slots__ = ("in_transaction", "seconds", "series", "since", "trace")

    series: CommandKey
    trace: Trace | None
    since: float
    in_transaction: bool
    seconds: float | None


class CommandState:
    """The durations of one client's commands, in a bounded number of series.

    Args:
        max_series: Series kept; what comes later is counted in one more, under `_OTHER`.
        clock: Monotonic seconds.
    """

    def __init__(self, max_series: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_series = max_series
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Forget everything: in a forked child, with a fresh lock."""
        self._lock = RLock()
        self._series: dict[CommandKey, Histogram] = {}
        # A command cancelled in flight publishes no end before PyMongo 4.20.1, and who is gone
        # sends no other: so the oldest make room for the newest.
        self._inflight: dict[int, Command] = {}  # by request id
        self._latest: dict[Actor, Command] = {}  # of each actor, running or not
        self._batches: dict[Actor, Command] = {}  # of those the last getMore
        self.forgot = False  # whether somebody's latest had to make room

    def started(
        self,
        request_id: int,
        series: CommandKey,
        trace: Trace | None = None,
        actor: Actor = 0,
        in_transaction: bool = False,
    ) -> None:
        """Remember what a request is about until it ends, and whose latest it is beyond that.

        Args:
            request_id: PyMongo's.
            series: What it is, were it to succeed.
            trace: Its part of a trace.
            actor: Who sent it.
            in_transaction: It belongs to one.
        """
        command = Command()  # an __init__ would double what it costs
        command.series, command.trace, command.since = series, trace, self._clock()
        command.in_transaction, command.seconds = in_transaction, None
        inflight, latest = self._inflight, self._latest
        inflight[request_id] = command
        latest[actor] = command
        if series[3] == "getMore":
            self._batches[actor] = command
        if len(inflight) > _LIMIT or len(latest) > _LIMIT:
            self._make_room()

    def _make_room(self) -> None:
        with contextlib.suppress(RuntimeError):  # another thread does it at this moment
            if len(self._inflight) > _LIMIT:
                self._inflight.pop(next(iter(self._inflight)), None)
            if len(self._latest) > _LIMIT:
                self.forgot = True
                self._forget(self._latest)
            if len(self._batches) > _LIMIT:
                self._forget(self._batches)

    def _forget(self, kept: dict[Actor, Command]) -> None:
        """Take out the oldest, but rather one that is over: who runs a command has its place."""
        for _ in range(_TRIES):
            actor = next(iter(kept))
            command = kept.pop(actor, None)
            if command is None or command.seconds is not None:
                return
            kept[actor] = command
        kept.pop(next(iter(kept)), None)

    def ended(
        self, request_id: int, seconds: float, error_type: str = "", status_code: str = ""
    ) -> None:
        """Count a command that the server answered; under its error, if it failed."""
        command = self._inflight.pop(request_id, None)
        if command is not None:
            command.seconds = seconds
            series, trace = command.series, command.trace
            if error_type:
                series = (*series[:4], error_type, status_code)
            with self._lock:
                histogram = self._series.get(series) or self._new(series)
                histogram.observe(seconds, None if trace is None else trace.link)
            if trace is not None:
                trace.end(error_type, status_code)

    def latest(self, actor: Actor) -> Command | None:
        """Return the command that an actor sent last; None if it sent none, or it is forgotten."""
        return self._latest.get(actor)

    def latest_get_more(self, actor: Actor) -> Command | None:
        """Return the getMore that an actor sent last."""
        return self._batches.get(actor)

    def _new(self, series: CommandKey) -> Histogram:
        if len(self._series) >= self._max_series:
            failed = OVERFLOW if series[4] else ""
            series = (("", None), "", "", OVERFLOW, failed, "")
        validate_address(series[0])
        if not all(isinstance(name, str) for name in series[1:]):
            raise TypeError("a command's names are no texts")
        return self._series.setdefault(series, Histogram(OPERATION_BOUNDS))

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
                )
            )
        return tuple(found)
