"""Whether an event loop runs what it is asked to run: a call without await, or CPU work, blocks it.

The watching thread asks twice a second. The answer costs the loop a microsecond.
"""

import asyncio
import contextlib
from time import monotonic
from typing import Final

from pool_telemetry.standstill import later

BLOCKED_SECONDS: Final = 0.5
"""A loop that has not answered for this long is blocked: no task takes what it waits for."""
SETTLE_SECONDS: Final = 1.0
"""Time that the tasks of a loop need after it was blocked."""


class LoopPulse:
    """The pulse of one client's event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._asked_at: float | None = None  # not answered yet
        self._blocked_until = float("-inf")

    def ask(self) -> None:
        """Ask the loop to answer, unless it still has to."""
        if self._asked_at is None and self.loop.is_running():
            self._asked_at = monotonic()
            with contextlib.suppress(RuntimeError):  # it was closed meanwhile
                self.loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        now = monotonic()
        if self._asked_at is not None and now - self._asked_at >= BLOCKED_SECONDS:
            self._blocked_until = now
        self._asked_at = None

    @property
    def blocked_seconds(self) -> float:
        """Return for how long the loop has been blocked; 0.0 if it runs, or was stopped."""
        if (asked_at := self._asked_at) is None or not self.loop.is_running():
            return 0.0
        seconds = monotonic() - asked_at
        return seconds if seconds >= BLOCKED_SECONDS else 0.0

    @property
    def is_settled(self) -> bool:
        """Return whether the loop runs, and was not blocked a moment ago."""
        return not self.blocked_seconds and monotonic() - self._blocked_until >= SETTLE_SECONDS

    def leave_out(self, seconds: float) -> None:
        """Leave out some seconds for which this process stood still until now."""
        if (asked_at := self._asked_at) is not None:
            self._asked_at = later(asked_at, seconds, monotonic())
