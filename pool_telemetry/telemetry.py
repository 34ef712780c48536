"""One client's telemetry: the listeners to give to it, and the state that they write.

`PoolTelemetry` knows all pools of its client; `live()` knows every telemetry of the process, so
that one registration with an exporter covers every client.
"""

import asyncio
import itertools
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any, Final

from pool_telemetry import watch
from pool_telemetry.events.listeners import (
    HeartbeatListener,
    OperationListener,
    PoolListener,
    Pools,
)
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.process import ProcessLock, after_fork, notice_fork, threads_are_known
from pool_telemetry.report import LiveStats, live_stats
from pool_telemetry.state import callers
from pool_telemetry.state.actor import notice_greenlets
from pool_telemetry.state.agents import AgentCounts
from pool_telemetry.state.commands import CommandState
from pool_telemetry.state.connections import Checkout
from pool_telemetry.state.pool_state import Clock, PoolState
from pool_telemetry.stats import (
    Address,
    CallerStats,
    ClientStats,
    PoolStats,
    pool_name,
)
from pool_telemetry.watch.callbacks import Callbacks
from pool_telemetry.watch.history import History

_log = logging.getLogger("pool_telemetry.telemetry")

# Servers come and go (hosts of a replica set in a cluster): so many closed pools are remembered.
_CLOSED_POOLS_KEPT: Final = 50

_registry_lock: Final = ProcessLock()
_registry: "weakref.WeakSet[PoolTelemetry]" = weakref.WeakSet()
_by_listener: "weakref.WeakKeyDictionary[PoolListener, PoolTelemetry]"
_by_listener = weakref.WeakKeyDictionary()
_lately_closed: "deque[PoolTelemetry]" = deque(maxlen=10)  # their last values are to be shown
_ordinals = itertools.count()


class PoolTelemetry:
    """The telemetry of one client that somebody else makes.

    Use one for each client, and pass its listeners on; it lives as long as the client does:

        telemetry = PoolTelemetry("chat")
        client = MongoClient(uri, event_listeners=telemetry.listeners)
        telemetry.stats().pools[0].waiting

    Args:
        name: The pool's name in metrics; the same as `TelemetryOptions.name`, and goes before it.
            A second client of the same name is called `NAME#2`.
        options: Everything else; by default from the environment.
        clock: Monotonic seconds.

    Attributes:
        name: The name in use: the one asked for, or with a number where that was taken.
        options: The telemetry's own options.
        agents: Counts of the agents whose sessions this client's database has.
        server_version: What somebody learned of it, as the singletons do; None while nobody did.
        on_reconnected: Called when a server is back, while PyMongo holds its pool lock. What holds
            the client keeps it alive until `close()`.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        options: TelemetryOptions | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        options = TelemetryOptions() if options is None else TelemetryOptions.of(options)
        self.options = options if name is None else replace(options, name=name)
        self.server_version: str | None = None
        self.on_reconnected: Callable[[], None] | None = None
        self._clock = clock
        self._lock = threading.RLock()
        self._pools = Pools()
        self._inherited: dict[Address, PoolState] = {}  # of before a fork, as long as not used here
        self._owners: dict[Address, object] = {}
        self.commands = CommandState(self.options.max_operation_series, clock=clock)
        self.agents = AgentCounts()
        self.callbacks = Callbacks()
        self._history = History()
        self._errors = 0
        self._since, self._began = time.time(), clock()
        self._closed = False
        self._shared = False
        self._warned_of_wait_limits = False
        self._client: Callable[[], Any] = lambda: None
        self._ordinal = next(_ordinals)
        with _registry_lock:
            self.name = _free_name(self.options.name)
            _registry.add(self)

    def __repr__(self) -> str:
        return f"PoolTelemetry({self.name!r}, pools={list(self._pools)})"

    @property
    def listeners(self) -> Sequence[Any]:
        """Return new listeners for one client: `event_listeners=telemetry.listeners`.

        They keep this telemetry alive, not the other way round: when a client is dropped without
        `close()`, its listeners go with it, and its pools are marked closed.
        """
        notice_greenlets()
        owner = object()  # stands for the client that gets them
        on_created = partial(self._on_created, owner)
        pool = PoolListener(
            self._pools,
            on_created,
            self._on_reconnected,
            self._on_closed,
            self.on_error,
            on_wait_limit=lambda limit: self.warn_of_wait_limits([f"waitQueueTimeoutMS={limit:g}"]),
            pool_name=self._pool_name,
            options=self.options,
        )
        _by_listener[pool] = self
        # It holds this telemetry, which knows its client weakly: what it saw is still to be told.
        weakref.finalize(pool, _abandoned, self, owner).atexit = False
        found: list[Any] = [pool, HeartbeatListener(self._pools, self.on_error)]
        if self.options.operations:
            found.append(OperationListener(self.commands, self.on_error, self.options))
        return found

    def attach(self, client: Any) -> None:
        """Read round-trip times from this client, which measures them beside its heartbeats.

        Without it a server's RTT is that of the last heartbeat which did not wait for news; from
        MongoDB 4.4 on that is the first of each connection only. Kept weakly; no I/O.
        """
        self._client = weakref.ref(client)

    def warn_of_wait_limits(self, limits: Sequence[str]) -> None:
        """Log, once for this client, that these limits can break its asynchronous pool.

        Args:
            limits: Each option with its value, and its source if that is known.
        """
        with self._lock:
            warned, self._warned_of_wait_limits = self._warned_of_wait_limits, True
        if not warned:
            _log.warning(
                "pool %r may break for good: an AsyncMongoClient on Python 3.11 has %s. There, "
                "PyMongo loses connections or the pool's lock when waiting tasks are cancelled "
                "repeatedly, as web frameworks do when clients hang up. Use Python 3.12 or later; "
                "or set waitQueueTimeoutMS=None and bound the wait with `async with "
                "asyncio.timeout(seconds)`, because pymongo.timeout() and timeoutMS do the same "
                "harm",
                self.name,
                " and ".join(limits),
            )

    def stats(self) -> ClientStats:
        """Return all that is known at this moment. Never does I/O, never waits for a pool."""
        rtts = self._rtts()
        return ClientStats(
            name=self.name,
            pools=tuple(
                # Without heartbeats (a fork in C) PyMongo's value is the parent's, for good.
                p if p.up is None else replace(p, rtt=rtts.get((p.host, p.port)) or p.rtt)
                for p in self.pool_stats()
            ),
            operations=self.commands.stats(),
            telemetry_errors=self._errors,
            since=self._since,
            server_version=self.server_version,
            agents=self.agents.stats(),
            owner_metrics=self.options.owner_metrics,
            at=self._since + self._age(),
        )

    def pool_stats(self) -> list[PoolStats]:
        """Return the pools alone, for who looks often: hundreds of series of commands cost 1 ms."""
        # A closed pool that was never used is the alias under which a server was first sought.
        states = [one for one in self.states() if not (one.phase == "closed" and one.unused)]
        return [self._stats(state) for state in states]

    def _stats(self, state: PoolState) -> PoolStats:
        stats = state.stats()
        if not self.options.operations:
            return stats
        idle, read = list[float](), 0
        if stats.longest_checkout >= callers.READ_SECONDS:
            idle, read = callers.idle_and_read(state, self.commands, self._clock())
        return replace(
            stats,
            held_idle=len(idle),
            longest_idle=max(idle, default=0.0),
            held_by_cursors=read,
        )

    def callers(self) -> tuple[list[CallerStats], list[CallerStats]]:
        """Return who holds connections, and who waits for one, the longest first."""
        holders, waiters = list[CallerStats](), list[CallerStats]()
        for state in self.states():
            now = self._clock()
            waiters += callers.waiting(state, now)
            holders += callers.holding(state, self.commands, now)[1].values()
        oldest = attrgetter("seconds")
        return sorted(holders, key=oldest, reverse=True), sorted(waiters, key=oldest, reverse=True)

    def holders_by_connection(
        self, state: PoolState
    ) -> tuple[dict[int, Checkout], dict[int, CallerStats]]:
        """Return who has which connection of a pool: as it stands there, and in names."""
        return callers.holding(state, self.commands, self._clock())

    def history(self) -> list[ClientStats]:
        """Return samples of the last five minutes, the oldest first; none unless it is watched."""
        notice_fork()
        return self._history.samples()

    def record_sample(self, *, at_once: bool = False) -> None:
        """Take a sample for the history, if it is time, or urgent."""
        if at_once or self._history.is_due(self._since + self._age()):
            self._history.add(self.stats())

    def _age(self) -> float:
        return self._clock() - self._began

    def now(self) -> float:
        """Return monotonic seconds, by the clock that everything here has."""
        return self._clock()

    def live_stats(self) -> LiveStats:
        """Return `stats()` as the live part of `get_pool_stats()`: a dict for JSON."""
        return live_stats(self.stats())

    def close(self) -> None:
        """Leave the exporters and give the name free. For owners of a closed client."""
        self._closed = True
        self.on_reconnected = None  # it may hold the client
        self._on_closed()

    def succeed(self, old: "PoolTelemetry") -> None:
        """Take over the name of a client that this one's client replaces."""
        with _registry_lock:
            if self.options.name == old.options.name:
                self.name, old.name = old.name, self.name

    @property
    def active(self) -> bool:
        """Return whether its client is in use or yet to come, and so has a place in exports."""
        if self._closed:
            return False
        pools = self.states()
        return not pools or any(pool.phase != "closed" for pool in pools)

    def _pool_name(self, address: Address) -> str:
        return pool_name(self.name, address)

    def states(self) -> list[PoolState]:
        """Return the states of all its pools."""
        notice_fork()
        with self._lock:
            return list(self._pools.values())

    def _rtts(self) -> dict[Address, float | None]:
        client = self._client()
        if client is None:
            return {}
        servers = client.topology_description.server_descriptions()
        return {address: server.round_trip_time for address, server in servers.items()}

    # Called by the listeners

    def _on_created(
        self, owner: object, address: Address, max_size: int | None, min_size: int
    ) -> None:
        with self._lock:
            pool = self._pools.get(address)
            shared = pool is not None and pool.phase != "closed"
            if pool is None:
                pool = self._pools[address] = PoolState(address, clock=self._clock)
            pool.created(max_size, min_size)
            self._owners[address] = owner
            self._inherited.pop(address, None)
            self._forget_old_pools(address)
            said, self._shared = self._shared, self._shared or shared
        self.callbacks.loop = asyncio._get_running_loop() or self.callbacks.loop
        watch.watch(self)
        if shared and not said:
            _log.warning(
                "the listeners of pool %r are used by two clients, so its counts are mixed: "
                "make one PoolTelemetry for each client",
                self.name,
            )

    def _inherit(self, address: Address) -> PoolState:
        """Return the state of a pool of before a fork; without one, a state that nobody reads."""
        with self._lock:
            old = self._inherited.pop(address, None)
            if old is not None:
                self._pools[address] = old.in_a_fork()
            found = self._pools.get(address) or PoolState(address)
        if old is not None:
            watch.watch(self)
        return found

    def _forget_old_pools(self, current: Address) -> None:
        """Drop the oldest closed pools beyond a limit."""
        closed = [a for a, pool in self._pools.items() if pool.phase == "closed" and a != current]
        for address in closed[:-_CLOSED_POOLS_KEPT]:
            del self._pools[address], self._owners[address]

    def _on_reconnected(self) -> None:
        if self.on_reconnected is not None:
            self.on_reconnected()

    def _on_closed(self) -> None:
        if not self.active and self not in _lately_closed:
            _lately_closed.append(self)

    def on_error(self, error: Exception) -> None:
        """Count a failure of ours, and log the first."""
        with self._lock:
            self._errors += 1
            first = self._errors == 1
        if first:
            _log.error(
                "a listener of pool %r failed; its numbers may be off, the application is not "
                "affected (later failures are only counted)",
                self.name,
                exc_info=error,
            )

    def _after_fork(self) -> None:
        # The parent's connections are never closed here. PyMongo announces new pools; but after a
        # fork in C, of which it knows nothing, it goes on with those that it has.
        if threads_are_known():
            self._inherited.clear()
            self._owners.clear()
        else:
            self._inherited |= {a: p for a, p in self._pools.items() if p.phase != "closed"}
            self._pools.inherit = self._inherit
        self._lock = threading.RLock()
        self._errors = 0
        self._since, self._began = time.time(), self._clock()
        self._shared = False
        self._pools.clear()
        self._history = History()
        self.callbacks = Callbacks()
        self.commands.reset()
        self.agents.reset()


def _abandoned(telemetry: PoolTelemetry, owner: object) -> None:
    """Close the pools of a client that is gone; those that closed before stay as they are."""
    with telemetry._lock:
        pools = [p for a, p in telemetry._pools.items() if telemetry._owners.get(a) is owner]
    for pool in pools:
        pool.abandoned()
    telemetry._on_closed()


def live() -> list[PoolTelemetry]:
    """Return the telemetry of every client of this process that is in use, in order of making."""
    return [telemetry for telemetry in _every() if telemetry.active]


def ended() -> list[PoolTelemetry]:
    """Return the telemetry of clients that are no more, the last few of them at least."""
    return [telemetry for telemetry in _every() if not telemetry.active]


class ClosedClients:
    """The clients closed since a reader's previous collection, whose last values are still due.

    Without them all values of a short program would be lost. The first collection after its close
    has a client, and so have the collections of the next `keep_seconds`.

    Args:
        keep_seconds: How long collections repeat a client; 0.0 is one collection.
        clock: Monotonic seconds.
    """

    def __init__(self, keep_seconds: float = 0.0, *, clock: Clock = time.monotonic) -> None:
        self._keep_seconds = keep_seconds
        self._clock = clock
        self._first_at: weakref.WeakKeyDictionary[PoolTelemetry, float]
        self._first_at = weakref.WeakKeyDictionary()

    def to_report(self) -> list[PoolTelemetry]:
        """Return the closed clients to report now, except if another client has their name."""
        now = self._clock()
        shown = list[PoolTelemetry]()
        for one in ended():
            first_at = self._first_at.setdefault(one, now)
            if first_at == now or now - first_at < self._keep_seconds:
                shown.append(one)
        taken = {telemetry.name for telemetry in live()}
        return list({one.name: one for one in shown if one.name not in taken}.values())


def of(client: Any) -> PoolTelemetry | None:
    """Return the telemetry whose listeners a client has; None where it has none."""
    ours = (one for one in client.options.event_listeners if isinstance(one, PoolListener))
    return next((_by_listener[one] for one in ours if one in _by_listener), None)


def _every() -> list[PoolTelemetry]:
    with _registry_lock:
        every = list(_registry)
    return sorted(every, key=lambda telemetry: telemetry._ordinal)


def _free_name(wanted: str) -> str:
    taken = {telemetry.name for telemetry in live()}
    return next(
        name
        for name in itertools.chain([wanted], (f"{wanted}#{n}" for n in itertools.count(2)))
        if name not in taken
    )


@after_fork
def _begin_anew() -> None:
    _lately_closed.clear()
    for telemetry in list(_registry):
        telemetry._after_fork()
