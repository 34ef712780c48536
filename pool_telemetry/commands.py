"""The truth of one client's commands: durations, in a bounded number of series.

Written by its listener only, one method an event; read through `stats()` only. The same rules as
in `state.py`: one leaf lock, nothing that grows.
"""

import contextlib
from threading import RLock
from typing import Final, Protocol

from pool_telemetry.histogram import OPERATION_BOUNDS, Histogram
from pool_telemetry.stats import Address, Link, OperationStats, checked

Series = tuple[Address, str, str, str, str, str]
"""Server, database, collection, command, error type, status code."""


class Trace(Protocol):
    """What a trace has of one command that was sent."""

    def end(self, error_type: str, status_code: str) -> None:
        """Note the command's end."""

    def link(self) -> Link | None:
        """Return where in the trace it is."""


_OVERFLOW: Final = "_OTHER"  # OpenTelemetry's name for what a bounded attribute leaves out
_INFLIGHT_LIMIT: Final = 10_000


class CommandState:
    """The durations of one client's commands, in a bounded number of series.

    Args:
        max_series: Series kept; what comes later is counted in one more, under `_OTHER`.
    """

    def __init__(self, max_series: int) -> None:
        self._max_series = max_series
        self.reset()

    def reset(self) -> None:
        """Forget everything: in a forked child, with a fresh lock."""
        self._lock = RLock()
        self._series: dict[Series, Histogram] = {}
        # request id -> its series, were it to succeed. A command cancelled in flight publishes no
        # end, so the oldest make room for the newest.
        self._inflight: dict[int, tuple[Series, Trace | None]] = {}

    def started(self, request_id: int, series: Series, trace: Trace | None = None) -> None:
        """Remember what a request is about until it ends."""
        inflight = self._inflight
        inflight[request_id] = series, trace
        if len(inflight) > _INFLIGHT_LIMIT:
            with contextlib.suppress(RuntimeError):  # another thread does it at this moment
                inflight.pop(next(iter(inflight)), None)

    def ended(
        self, request_id: int, seconds: float, error_type: str = "", status_code: str = ""
    ) -> None:
        """Count a command that the server answered; under its error, if it failed."""
        found = self._inflight.pop(request_id, None)
        if found is not None:
            series, trace = found
            if error_type:
                series = (*series[:4], error_type, status_code)
            with self._lock:
                histogram = self._series.get(series) or self._new(series)
                histogram.observe(seconds, None if trace is None else trace.link)
            if trace is not None:
                trace.end(error_type, status_code)

    def _new(self, series: Series) -> Histogram:
        if len(self._series) >= self._max_series:
            failed = _OVERFLOW if series[4] else ""
            series = (("", None), "", "", _OVERFLOW, failed, "")
        checked(series[0])
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
