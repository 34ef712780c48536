"""A load on a service, and scrapes of it all the time."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.servers.page import Seen, read
from tests.servers.ways import Service
from tests.support import wait_for
from tests.web import Web

PATIENT_SECONDS = 5.0
"""A request that a stopped worker has accepted is given up after this time."""


class _Repeated:
    """Calls something again and again in threads while the `with` block runs."""

    def __init__(self, call: Callable[[], None], threads: int, pause: float) -> None:
        self._call, self._pause = call, pause
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._over.wait(self._pause):
            self._call()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


class Load(_Repeated):
    """Finds of several callers, with a pause between two of each."""

    def __init__(self, service: Service, callers: int = 4, pause: float = 0.02) -> None:
        super().__init__(self._find, callers, pause)
        self._service = service
        self._lock = threading.Lock()
        self.answered = Counter[int]()  # finds by process id
        self.unanswered = 0

    def _find(self) -> None:
        try:
            pid = self._service.call("find")
        except (AssertionError, OSError, ValueError):  # of a worker that died meanwhile
            with self._lock:
                self.unanswered += 1
        else:
            with self._lock:
                self.answered[pid] += 1


@dataclass(frozen=True)
class Scrape:
    """One answer of `/metrics`."""

    seconds: float
    seen: dict[str, Seen] = field(repr=False)


class Scrapes(_Repeated):
    """Scrapes one after the other, each over a connection of its own."""

    def __init__(self, service: Service, pause: float = 0.1) -> None:
        super().__init__(self._scrape, 1, pause)
        assert service.web
        self._web = Web(service.web.port, PATIENT_SECONDS)
        self.done: list[Scrape] = []
        self.unanswered = 0

    def _scrape(self) -> None:
        began = time.monotonic()
        try:
            answer = self._web.get("/metrics")
            assert answer.status == 200
        except (AssertionError, OSError):  # the worker that was asked died
            self.unanswered += 1
        else:
            self.done.append(Scrape(time.monotonic() - began, read(answer.text)))

    def more(self, count: int) -> list[Scrape]:
        """Return as many further scrapes, when they are done."""
        before = len(self.done)
        wait_for(lambda: len(self.done) >= before + count, f"{count} more scrapes")
        return self.done[before : before + count]

    def last(self, worker: str) -> Seen:
        """Return a worker as the last scrape shows it."""
        return self.done[-1].seen.get(worker, Seen())

    def falls(self) -> list[str]:
        """Return each counter that fell within a worker's number, with both values."""
        found = []
        last: dict[tuple[str, str], tuple[float, str]] = {}
        for scrape in self.done:
            for worker, seen in scrape.seen.items():
                for name, value in seen.counters.items():
                    before, instance = last.get((worker, name), (0.0, ""))
                    if value < before:
                        same = "of one process" if instance == seen.instance else "at a new process"
                        found.append(f"worker {worker}: {name} from {before} to {value} {same}")
                    last[worker, name] = value, seen.instance
        return found
