"""The control of our tests: a listener as they are usually written, which has to fail.

It subtracts one event's count from another's, keys by what seems to be an id, and believes the
durations that it is told.
"""

import threading
from dataclasses import dataclass
from typing import Any

from pymongo import monitoring as cmap

from pool_telemetry import PoolTelemetry, assess
from tests.support import Noop


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The numbers that both listeners claim."""

    size: int
    in_use: int
    waiting: int
    callers: int  # in the queue, by thread
    used: int  # connections that were ever seen
    max_size: int | None
    opened: int  # connections that became ready
    open_seconds: float
    timeouts: int
    failed_operations: int
    commands: int
    commands_in_flight: int
    paused: bool
    leaks: int
    peak_in_use: int


class Naive(Noop, cmap.CommandListener):
    """The usual listener."""

    def __init__(
        self, leak_seconds: float = float("inf"), wait_limit: float = float("inf")
    ) -> None:
        self.lock = threading.Lock()
        self._leak_seconds, self._wait_limit = leak_seconds, wait_limit
        self.max_size: int | None = None
        self.paused = False
        self.in_flight: dict[int, str] = {}
        self.by_operation: dict[int | None, str] = {}
        self._forget()

    def _forget(self) -> None:
        self._started = self._out = self._failed = self._in = self._created = self._closed = 0
        self._opened = self._timeouts = self._peak = 0
        self._open_seconds = 0.0
        self._used: set[tuple[Any, int]] = set()
        self._by_thread: dict[int, int] = {}

    def pool_created(self, event: cmap.PoolCreatedEvent) -> None:
        self.max_size = event.options.get("maxPoolSize")

    def pool_ready(self, event: cmap.PoolReadyEvent) -> None:
        self.paused = False

    def pool_cleared(self, event: cmap.PoolClearedEvent) -> None:
        self.paused = True

    def pool_closed(self, event: cmap.PoolClosedEvent) -> None:
        self._forget()

    def connection_created(self, event: cmap.ConnectionCreatedEvent) -> None:
        with self.lock:
            self._created += 1

    def connection_ready(self, event: cmap.ConnectionReadyEvent) -> None:
        with self.lock:
            self._opened += 1
            self._open_seconds += event.duration or 0.0

    def connection_closed(self, event: cmap.ConnectionClosedEvent) -> None:
        with self.lock:
            self._closed += 1

    def connection_check_out_started(self, event: cmap.ConnectionCheckOutStartedEvent) -> None:
        with self.lock:
            self._started += 1
            self._by_thread[threading.get_ident()] = 1

    def connection_check_out_failed(self, event: cmap.ConnectionCheckOutFailedEvent) -> None:
        with self.lock:
            self._failed += 1
            self._timeouts += event.reason == cmap.ConnectionCheckOutFailedReason.TIMEOUT
            self._by_thread.pop(threading.get_ident(), None)

    def connection_checked_out(self, event: cmap.ConnectionCheckedOutEvent) -> None:
        with self.lock:
            self._out += 1
            self._peak = max(self._peak, self._out - self._in)
            self._used.add((event.address, event.connection_id))
            self._timeouts += (event.duration or 0.0) > self._wait_limit
            self._by_thread.pop(threading.get_ident(), None)

    def connection_checked_in(self, event: cmap.ConnectionCheckedInEvent) -> None:
        with self.lock:
            self._in += 1

    def started(self, event: cmap.CommandStartedEvent) -> None:
        self.in_flight[event.request_id] = event.command_name
        self.by_operation[event.operation_id] = event.command_name

    def succeeded(self, event: cmap.CommandSucceededEvent) -> None:
        self.in_flight.pop(event.request_id, None)

    def failed(self, event: cmap.CommandFailedEvent) -> None:
        self.in_flight.pop(event.request_id, None)

    def numbers(self, longest_checkout: float = 0.0) -> Numbers:
        return Numbers(
            size=self._created - self._closed,
            in_use=self._out - self._in,
            waiting=self._started - self._out - self._failed,
            callers=len(self._by_thread),
            used=len(self._used),
            max_size=self.max_size,
            opened=self._opened,
            open_seconds=self._open_seconds,
            timeouts=self._timeouts,
            failed_operations=self._failed,
            commands=len(self.by_operation),
            commands_in_flight=len(self.in_flight),
            paused=self.paused,
            leaks=int(longest_checkout > self._leak_seconds),
            peak_in_use=self._peak,
        )


def numbers_of(telemetry: PoolTelemetry, peak_in_use: int = 0) -> Numbers:
    """Return ours, summed over the pools of one client."""
    stats = telemetry.stats()
    pools = stats.pools
    open_pools = stats.open_pools
    in_flight = telemetry.commands._inflight
    return Numbers(
        size=sum(pool.size for pool in pools),
        in_use=sum(pool.in_use for pool in pools),
        waiting=sum(pool.waiting for pool in pools),
        callers=sum(pool.waiting for pool in pools),
        used=sum(pool.size for pool in pools),
        max_size=open_pools[0].max_size if open_pools else None,
        opened=sum(pool.create_time.count for pool in pools),
        open_seconds=sum(pool.create_time.sum for pool in pools),
        timeouts=sum(pool.checkouts["timeout"] for pool in pools),
        failed_operations=sum(one.duration.count for one in stats.operations if one.error_type),
        commands=sum(one.duration.count for one in stats.operations),
        commands_in_flight=len(in_flight),
        paused=any(pool.phase == "paused" for pool in pools),
        leaks=int(assess(stats).status == "unhealthy"),
        peak_in_use=peak_in_use,
    )
