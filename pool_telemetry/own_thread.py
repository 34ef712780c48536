"""Makes values on a thread of the library's own, each once for all callers that ask meanwhile.

A web framework may have no free thread when its health is asked, because all of them wait for
connections. An event loop must not make long texts itself. `routes` asks; the thread starts on
first use, and a forked process has its own.
"""

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from pool_telemetry.process import ProcessLock, after_fork, start_thread

WORK_SECONDS: Final = 0.001
PAUSE_SECONDS: Final = 0.002
"""After so much work a thread of ours pauses for so long. Each time an event loop reads a socket it
gives the interpreter away, and gets it back from a thread that computes only after 5 ms. With 200
scrapes at once of 500 series the loop's longest gap was 370 ms, and 150 ms with these pauses: as
long as without any metrics."""

T = TypeVar("T")
_here: Final = threading.local()
_Job = tuple[Hashable, Callable[[], Any], "Future[Any]"]


def paced(parts: Iterable[T]) -> Iterator[T]:
    """Yield the parts of a long value; on a thread of ours, with pauses for the other threads."""
    if not getattr(_here, "is_own", False):
        yield from parts
        return
    began = time.perf_counter()
    for part in parts:
        yield part
        if time.perf_counter() - began > WORK_SECONDS:
            time.sleep(PAUSE_SECONDS)
            began = time.perf_counter()


class OwnThread:
    """One daemon thread that makes one value after another."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = ProcessLock()
        self._begin_anew()
        after_fork(self._begin_anew)

    def _begin_anew(self) -> None:
        # A fork copies no thread: what the parent makes now stays with the parent.
        self._is_running = False
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._asked: dict[Hashable, Future[Any]] = {}

    def ask(self, key: Hashable, make: Callable[[], Any]) -> "Future[Any]":
        """Return the future of a value; it can't be cancelled, because callers share it.

        Args:
            key: Callers with the same key share one value, until it is made.
            make: Makes the value.
        """
        with self._lock:
            if (future := self._asked.get(key)) is not None:
                return future
            future = self._asked[key] = Future()
            future.set_running_or_notify_cancel()
            if not self._is_running:
                jobs = self._jobs
                thread = start_thread(lambda: self._run(jobs), name=self._name)
                self._is_running = thread is not None
            if self._is_running:
                self._jobs.put((key, make, future))
                return future
        self._make(key, make, future)  # the system has no more threads
        return future

    def _run(self, jobs: "SimpleQueue[_Job]") -> None:
        _here.is_own = True
        while True:
            self._make(*jobs.get())

    def _make(self, key: Hashable, make: Callable[[], Any], future: "Future[Any]") -> None:
        value = error = None
        try:
            value = make()
        except BaseException as raised:  # noqa: BLE001  # the callers get it
            error = raised
        with self._lock:
            self._asked.pop(key, None)  # the next caller gets a newer value
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
