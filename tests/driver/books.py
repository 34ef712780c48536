"""Every client's books: our counts, the driver's own counters, and a naive count of its events."""

import asyncio
import contextlib
import gc
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import util
from typing import Any, Final

from pymongo.asynchronous.pool import Pool as AsyncPool
from pymongo.monitoring import CommandListener
from pymongo.synchronous.pool import Pool

from pool_telemetry import PoolTelemetry
from pool_telemetry.events.listeners import PoolListener
from pool_telemetry.stats import CLOSE_REASONS, PoolStats
from tests.support import Noop

PATIENCE_SECONDS: Final = 3.0
"""An end that PyMongo still works on, such as a close in a task, has this long to be published."""

_SIZE: Final = {"created": 1, "closed": -1}
_CAMEL: Final = {"poolClosed": "pool_closed", "connectionError": "connection_error"}


class Recorder(Noop, CommandListener):
    """Counts events by their kind, server and reason, and corrects nothing."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any, str]] = []  # appending needs no lock

    def replay(self) -> "Counter[tuple[str, Any, str]]":
        return Counter(list(self.events))

    def _record(self, kind: str, address: Any, reason: str = "") -> None:
        self.events.append((kind, address, _CAMEL.get(reason, reason)))

    def connection_check_out_started(self, event: Any) -> None:
        self._record("started", event.address)

    def connection_check_out_failed(self, event: Any) -> None:
        self._record("failed", event.address, event.reason)

    def connection_checked_out(self, event: Any) -> None:
        self._record("checked out", event.address)

    def connection_checked_in(self, event: Any) -> None:
        self._record("checked in", event.address)

    def connection_created(self, event: Any) -> None:
        self._record("created", event.address)

    def connection_closed(self, event: Any) -> None:
        self._record("closed", event.address, event.reason)

    def pool_cleared(self, event: Any) -> None:
        self._record("cleared", event.address)

    def started(self, event: Any) -> None: ...

    def succeeded(self, event: Any) -> None:
        self._record("command", None)

    def failed(self, event: Any) -> None:
        self._record("command", None)


class Book:
    """One client's telemetry, the events that it heard, and the pools that PyMongo made for it."""

    def __init__(self) -> None:
        self.telemetry = PoolTelemetry(f"{next(_numbers)}")
        self.recorder = Recorder()
        self.pools: list[weakref.ref[Any]] = []
        self.loop: asyncio.AbstractEventLoop | None = None

    def listeners(self) -> list[Any]:
        """Return the listeners of the client; only the client keeps them, as in an application."""
        ours = list(self.telemetry.listeners)
        _by_listener[next(one for one in ours if isinstance(one, PoolListener))] = self
        return [self.recorder, *ours]

    @property
    def is_over(self) -> bool:
        """Return whether no pool is left that could still change."""
        return bool(self.pools) and all(pool.closed for pool in self.open_pools())

    def open_pools(self) -> list[Any]:
        return [pool for one in self.pools if (pool := one()) is not None]

    def differences(self) -> list[str]:
        """Return each number on which we differ from the driver or from its events."""
        stats = self.telemetry.stats()
        pools, events = self.open_pools(), self.recorder.replay()
        found = list[str]()
        for ours in stats.pools:
            address = (ours.host, ours.port)
            theirs = [pool for pool in pools if pool.address == address]
            if not theirs:  # PyMongo dropped its connections with the pool, without an event
                lost = sum(
                    n * _SIZE.get(kind, 0) for (kind, at, _), n in events.items() if at == address
                )
                events["closed", address, "pool_closed"] += max(0, lost)
            pairs = [*_by_counters(ours, theirs), *_by_events(ours, address, events)]
            found += [f"{name}: {a}, ours {b}" for name, a, b in pairs if a != b]
        ended = sum(one.duration.count for one in stats.operations)
        if events["command", None, ""] != ended:
            found.append(f"commands: {events['command', None, '']}, ours {ended}")
        if stats.telemetry_errors:
            found.append(f"errors of our own: 0, ours {stats.telemetry_errors}")
        return found


def _by_counters(ours: PoolStats, pools: list[Any]) -> Iterator[tuple[str, int, int]]:
    """Yield the numbers that PyMongo's counters have, too, at a moment without a caller."""
    idle = sum(len(pool.conns) for pool in pools)
    in_use = sum(pool.active_sockets for pool in pools)
    opening = sum(pool._pending for pool in pools)
    queues = [queue for p in pools for queue in (p.size_cond, p._max_connecting_cond)]
    yield "idle", idle, ours.idle
    yield "in use", in_use, ours.in_use
    yield "opening", opening, ours.opening
    yield "waiting", sum(len(queue._waiters) for queue in queues), ours.waiting
    yield "size", idle + in_use + opening, ours.size
    if pools:  # a checkout that ended with its pool has no use time
        yield "use times", ours.use_time.count, ours.checkouts["ok"] - in_use


def _by_events(
    ours: PoolStats, address: Any, events: "Counter[tuple[str, Any, str]]"
) -> Iterator[tuple[str, int, int]]:
    """Yield the numbers that follow from the events alone."""

    def count(kind: str, reason: str = "") -> int:
        return events[kind, address, reason]

    created, cleared = count("created"), count("cleared")
    yield "created", created, ours.created
    for reason in CLOSE_REASONS:
        yield f"closed by {reason}", count("closed", reason), ours.closed[reason]
    yield "cleared", cleared, ours.cleared
    yield "checked out", count("checked out"), ours.checkouts["ok"]
    yield "checkouts", count("started"), sum(ours.checkouts.values()) + ours.waiting
    for reason in ("timeout", "pool_closed"):
        yield f"failed by {reason}", count("failed", reason), ours.checkouts[reason]
    yield "balance", ours.size, ours.created - sum(ours.closed.values())


_numbers: Final = iter(range(1, 1_000_000))
_by_listener: "weakref.WeakKeyDictionary[PoolListener, Book]" = weakref.WeakKeyDictionary()
_open: Final = list[Book]()


def with_book(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a new client, with the listeners of a book of its own."""
    given = list(kwargs.get("event_listeners") or ())
    if any(isinstance(one, PoolListener) for one in given):
        return kwargs  # PyMongo made this client itself, with the arguments of another
    book = Book()
    _open.append(book)
    return {**kwargs, "event_listeners": [*given, *book.listeners()]}


def add_pool(pool: "Pool | AsyncPool") -> None:
    """Enter a pool that PyMongo makes into the book of its client."""
    listeners = pool.opts._event_listeners
    for one in [] if listeners is None else listeners.event_listeners():
        book = _by_listener.get(one) if isinstance(one, PoolListener) else None
        if book is not None and not pool.is_sdam:
            book.pools.append(weakref.ref(pool))
            with contextlib.suppress(RuntimeError):
                book.loop = asyncio.get_running_loop()


def compare() -> tuple[int, list[str]]:
    """Compare every open book; return how many were compared, and the differences that stay."""
    pending = list(_open)
    deadline = time.monotonic() + PATIENCE_SECONDS
    differences = dict[int, list[str]]()
    while pending:
        differences = {i: found for i, book in enumerate(pending) if (found := book.differences())}
        pending = [pending[i] for i in differences]
        if pending:
            if time.monotonic() > deadline:
                break
            gc.collect()
            _let_pass({book.loop for book in pending if book.loop is not None})
    compared = len(_open)
    told = [f"{line}" for found in differences.values() for line in found]
    # A difference is told once, after the test that made it.
    _open[:] = [book for book in _open if book not in pending and not book.is_over]
    return compared, told


def _let_pass(loops: set[asyncio.AbstractEventLoop]) -> None:
    """Give the threads and tasks that end something a moment."""
    for loop in loops:
        if not loop.is_closed() and not loop.is_running():
            loop.run_until_complete(asyncio.sleep(0.01))
    time.sleep(0.01)


def begin_in_child(report: Callable[[], None]) -> None:
    """Begin the books anew in a process that `multiprocessing` forked; report at its end."""
    for book in _open:
        book.recorder.events.clear()
        book.pools.clear()
    util.Finalize(None, report, exitpriority=100)
