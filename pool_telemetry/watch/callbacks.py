"""Calls the application back, in order, on a thread that lives while calls are due.

The application's functions may be slow, fail, or be coroutines: the watching thread never waits for
them.
"""

import asyncio
import inspect
import threading
from collections import deque
from concurrent import futures
from typing import Any, Final

from pool_telemetry.log_lines import ProcessLog
from pool_telemetry.options import OnEpisode
from pool_telemetry.stats import Episode

LOOP_SECONDS: Final = 1.0
"""Seconds between two checks that the event loop of a coroutine still runs."""

_MAX_DUE: Final = 10  # calls that may queue behind a callback that does not return

_log: Final = ProcessLog("pool_telemetry.callbacks")


class Callbacks:
    """The calls of one client.

    Attributes:
        loop: The event loop of the client, on which coroutines run. None: each has a new one.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._due: deque[tuple[OnEpisode, Episode]] = deque()
        self._busy = False

    def call(self, callback: OnEpisode | None, episode: Episode) -> None:
        """Call back soon, after the calls that are already due; without a callback do nothing."""
        if callback is None:
            return
        with self._lock:
            dropped = len(self._due) >= _MAX_DUE
            if not dropped:
                self._due.append((callback, episode))
            start, self._busy = not self._busy, True
        if dropped:
            _log.error("a callback of pool %r does not return: a call was dropped", episode.pool)
        if start:
            thread = threading.Thread(target=self._run, name="pool_telemetry-callback", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the process ends: the next call tries again
                self._busy = False

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._due:
                    self._busy = False
                    return
                callback, episode = self._due.popleft()
            try:
                self._call(callback, episode)
            except (
                BaseException
            ):  # also a cancelled coroutine or sys.exit(): go on with the next call
                _log.exception("a callback of pool %r failed", episode.pool)

    def _call(self, callback: OnEpisode, episode: Episode) -> None:
        answer: Any = callback(episode)
        if not inspect.isawaitable(answer):
            return

        async def wait() -> None:
            await answer

        loop = self.loop
        if loop is None or not loop.is_running():
            asyncio.run(wait())
            return
        done = asyncio.run_coroutine_threadsafe(wait(), loop)
        while loop.is_running() and not done.done():
            futures.wait([done], LOOP_SECONDS)
        if done.done():
            done.result()
