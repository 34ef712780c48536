"""Makes values on a thread of the library's own, each once for all callers that ask meanwhile.

A web framework may have no free thread when its health is asked, because all of them wait for
connections. An event loop must not make long texts itself. `routes` asks; the thread starts on
first use, and a forked process has its own.
"""

import functools
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from queue import Full, SimpleQueue
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


class Shared(Future[T]):
    """A value that callers share. It can't be cancelled; a caller that gives up calls `leave()`."""

    def __init__(self, leave: Callable[["Shared[T]"], None] = lambda _: None) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()
        self.callers = 0
        self._leave = leave

    def leave(self) -> None:
        """Stop waiting. A value for which no caller waits is not made, unless that has begun."""
        self._leave(self)


class OwnThread:
    """One daemon thread that makes one value after another.

    Args:
        name: The thread's name.
        max_values: How many values may be asked for at one time.
    """

    def __init__(self, name: str, max_values: int = 32) -> None:
        self._name = name
        self._max_values = max_values
        self._lock = ProcessLock()
        self._begin_anew()
        after_fork(self._begin_anew)

    def _begin_anew(self) -> None:
        # A fork copies no thread: what the parent makes now stays with the parent.
        self._is_running = False
        self._woken: SimpleQueue[None] = SimpleQueue()
        self._asked: dict[Hashable, Shared[Any]] = {}  # with the one that is made now
        self._waiting: dict[Hashable, Callable[[], Any]] = {}  # what makes each of the others

    def ask(self, key: Hashable, make: Callable[[], T]) -> Shared[T]:
        """Return the future of a value.

        Args:
            key: Callers with the same key share one value, until it is made.
            make: Makes the value.

        Raises:
            Full: Too many values are asked for.
        """
        with self._lock:
            future = self._asked.get(key)
            if future is None:
                if len(self._asked) >= self._max_values:
                    raise Full
                future = self._asked[key] = Shared(functools.partial(self._drop, key))
                self._waiting[key] = make
                if not self._is_running:
                    woken = self._woken
                    thread = start_thread(lambda: self._run(woken), name=self._name)
                    self._is_running = thread is not None
                if self._woken.empty():
                    self._woken.put(None)
            future.callers += 1
            if self._is_running:
                return future
            del self._waiting[key]
        self._make(key, make, future)  # the system has no more threads
        return future

    def _drop(self, key: Hashable, future: Shared[Any]) -> None:
        """Forget a value for which no caller waits any more."""
        with self._lock:
            future.callers -= 1
            if future.callers or self._asked.get(key) is not future or key not in self._waiting:
                return
            del self._asked[key], self._waiting[key]
        future.set_exception(CancelledError())  # its callbacks clean up

    def _run(self, woken: "SimpleQueue[None]") -> None:
        _here.is_own = True
        while True:
            woken.get()
            while (job := self._next()) is not None:
                self._make(*job)

    def _next(self) -> tuple[Hashable, Callable[[], Any], Shared[Any]] | None:
        with self._lock:
            for key, make in self._waiting.items():
                del self._waiting[key]
                return key, make, self._asked[key]
            return None

    def _make(self, key: Hashable, make: Callable[[], Any], future: Shared[Any]) -> None:
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
