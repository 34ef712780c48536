"""One client's telemetry: the listeners to give to it, and the state that they write.

`PoolTelemetry` knows all pools of its client; `registry` knows every client of the process. `live`,
`ended` and `of` are older names of its `active`, `recently_closed` and `telemetry_of`.
"""

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any, Final

from pool_telemetry import registry, watch
from pool_telemetry.events.listeners import (
    HeartbeatListener,
    OperationListener,
    PoolListener,
    Pools,
)
from pool_telemetry.events.sharing import Sharing, app_name_of_new_pool
from pool_telemetry.log_lines import ProcessLog
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.process import notice_fork, threads_are_known
from pool_telemetry.registry import active, recently_closed, telemetry_of
from pool_telemetry.report import LiveStats, live_stats
from pool_telemetry.server_selection import look_at_server_selection
from pool_telemetry.standstill import notice_standstill, total_seconds
from pool_telemetry.state import callers
from pool_telemetry.state.actor import names_of, notice_greenlets
from pool_telemetry.state.agents import AgentCounts
from pool_telemetry.state.commands import CommandState
from pool_telemetry.state.connections import Checkout
from pool_telemetry.state.frames import calling_client
from pool_telemetry.state.heartbeat import MonitorTimes
from pool_telemetry.state.loop_pulse import LoopPulse
from pool_telemetry.state.pool_state import Clock, PoolState
from pool_telemetry.state.server_selection import ServerSelection
from pool_telemetry.stats import (
    Address,
    CallerStats,
    ClientStats,
    Occupancy,
    PoolStats,
    ServerSelectionStats,
    bounded_address,
    pool_name,
    printable,
)
from pool_telemetry.watch.callbacks import Callbacks
from pool_telemetry.watch.history import History

_log: Final = ProcessLog("pool_telemetry.telemetry")

_MAX_CLOSED_POOLS: Final = 50
"""Closed pools of one client that are kept: in a cluster, hosts of a replica set come and go."""


class PoolTelemetry:
    """The telemetry of one client that the application makes.

    Use one for each client, and pass its listeners on; it lives as long as the client does:

        telemetry = PoolTelemetry("chat")
        client = MongoClient(uri, event_listeners=telemetry.listeners)
        telemetry.stats().pools[0].waiting

    Args:
        name: The pool's name in metrics; it overrides `TelemetryOptions.name`. A second client of
            the same name is called `NAME#2`, up to `NAME#10`; further ones share `NAME#_OTHER`.
        options: All other options; by default from the environment.
        clock: Monotonic seconds.

    Attributes:
        name: The name in use: the requested name, with a number if that was taken.
        wanted: The requested name, or else the client's appName.
        options: The telemetry's own options.
        agents: Counts of the agents whose sessions this client's database has.
        server_selection: The callers that wait until a server fits.
        inner: The telemetry of the client that PyMongo makes for automatic encryption, called
            `NAME/encryption`; None without one.
        server_version: The server's version; None while it is unknown. The singletons set it.
        on_reconnected: Called when a server is back, while PyMongo holds its pool lock. A function
            that refers to the client keeps the client alive until `close()`.
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
        self._inherited: dict[Address, PoolState] = {}  # from before a fork, not used since
        self._owners: dict[Address, object] = {}
        self.commands = CommandState(self.options.max_operation_series, clock=clock)
        self.agents = AgentCounts()
        self.server_selection = ServerSelection()
        self.callbacks = Callbacks()
        self._history = History()
        self._errors = 0
        self._since, self._began = time.time(), clock()
        self._monitor_times = MonitorTimes()
        self._pulse: LoopPulse | None = None
        self._closed = self._client_is_closed = False
        self.inner: PoolTelemetry | None = None
        self._warned_of_wait_limits = False
        self._client: Callable[[], Any] = lambda: None
        self.name = self.wanted = self.options.name
        registry.add(self)

    def __repr__(self) -> str:
        return (
            f"PoolTelemetry({self.name!r}, pools={[one.address for one in self._pools.values()]})"
        )

    @property
    def listeners(self) -> Sequence[Any]:
        """Return new listeners for one client: `event_listeners=telemetry.listeners`.

        The listeners keep this telemetry alive, and this telemetry does not keep the listeners. A
        client that is dropped without `close()` takes its listeners along, and its pools are then
        marked closed.
        """
        notice_greenlets()
        owner = object()  # stands for the client that gets these listeners
        on_created = partial(self._on_created, owner)
        sharing = Sharing(self._is_open, self._listeners_for_another)
        pool = PoolListener(
            self._pools,
            on_created,
            self._on_reconnected,
            self._on_closed,
            self.on_error,
            on_wait_limit=lambda limit: self.warn_of_wait_limits([f"waitQueueTimeoutMS={limit:g}"]),
            pool_name=self._pool_name,
            options=self.options,
            sharing=sharing,
        )
        registry.add_listener(pool, self)
        # The finalizer holds this telemetry, because its last values are still to be reported; it
        # does not hold the client, which this telemetry refers to weakly.
        weakref.finalize(pool, _on_client_collected, self, owner).atexit = False
        found: list[Any] = [pool, HeartbeatListener(self._pools, self.on_error)]
        if self.options.operations:
            found.append(OperationListener(self.commands, self.on_error, self.options))
        sharing.begin(found)
        return found

    def _is_open(self) -> bool:
        return bool(self.open_addresses())

    def open_addresses(self) -> list[Address]:
        """Return the addresses of the servers that the client knows now."""
        return [pool.address for pool in self.states() if pool.phase != "closed"]

    def _listeners_for_another(self, for_encryption: bool) -> Sequence[Any]:
        """Return the listeners of a further client that has the same listeners as the first."""
        name = registry.inner_name(self.name) if for_encryption else self.options.name
        another = PoolTelemetry(name, options=self.options, clock=self._clock)
        if for_encryption:
            self.inner, another._client = another, lambda: self._client()  # the same servers
        return another.listeners

    def attach(self, client: Any) -> None:
        """Read what only this client knows: round-trip times, the topology, and its options.

        Its heartbeatFrequencyMS and connectTimeoutMS decide when a server's monitor is silent. This
        happens by itself when the client makes its first pool. The client is referred to weakly.
        No I/O.
        """
        self._client = weakref.ref(client)
        timeout = client.options.pool_options.connect_timeout
        self._monitor_times = MonitorTimes(
            client.options.heartbeat_frequency, float("inf") if timeout is None else timeout
        )
        for state in self.states():
            state.monitor_times = self._monitor_times

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
        """Return everything that is known of the client now. No I/O, no wait for a pool."""
        notice_standstill()
        look_at_server_selection(rarely=not self.options.watch)
        rtts = self._rtts()
        stats = ClientStats(
            name=self.name,
            pools=tuple(
                # Without heartbeats (after a fork in C) PyMongo's value stays the parent's.
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
            server_selection=self._selection_stats(),
            refusals=self.commands.refusals.stats(self._clock()),
            has_no_server=self._has_no_server,
            topology_type=self._topology_type(),
            stood_still=total_seconds(),
        )
        return registry.count_clients(stats, self.wanted)

    def _selection_stats(self) -> ServerSelectionStats:
        stats = self.server_selection.stats(self._clock())
        # Nobody looks for the callers of a closed client any more.
        return stats if self.active else ServerSelectionStats(failures=stats.failures)

    def pool_stats(self) -> list[PoolStats]:
        """Return the pools without the series of commands, hundreds of which would cost 1 ms."""
        # A closed, never used pool has the name under which the server was sought, an alias.
        states = [one for one in self.states() if not (one.phase == "closed" and one.never_used)]
        return [self._stats(state) for state in states]

    def _stats(self, state: PoolState) -> PoolStats:
        stats = state.stats()
        if stats.exhausted and (blocked := state.self_blocked()):
            stats = replace(
                stats,
                self_blocked=len(blocked),
                self_blocked_by=printable(names_of(blocked)[blocked[0]]),
            )
        if not self.options.operations:
            return stats
        held = callers.Held([], 0, stats.longest_checkout)
        if stats.longest_checkout >= callers.READ_SECONDS:
            held = callers.held_for(state, self.commands, self._clock())
        return replace(
            stats,
            held_idle=len(held.idle),
            longest_idle=max(held.idle, default=0.0),
            held_by_cursors=held.read,
            longest_checkout=min(stats.longest_checkout, held.longest),
        )

    def occupancy(self) -> Occupancy:
        """Return how full the client's pools are, for load shedding.

        It takes some microseconds however many callers wait, because it inspects none of them. So a
        caller that was cancelled counts until the next inspection: with `watch` for half a second
        at most, otherwise until the next `stats()`. Callers in server selection do not count.
        """
        size = in_use = waiting = 0
        max_size: int | None = 0
        for state in self.states():
            pool = state.occupancy()
            size, in_use, waiting = size + pool.size, in_use + pool.in_use, waiting + pool.waiting
            if state.phase != "closed":
                limits = max_size, pool.max_size
                max_size = None if None in limits else sum(filter(None, limits))
        return Occupancy(size, in_use, waiting, max_size)

    def callers(self) -> tuple[list[CallerStats], list[CallerStats]]:
        """Return the holders of connections and the waiters, in both the longest first."""
        holders, waiters = list[CallerStats](), list[CallerStats]()
        for state in self.states():
            now = self._clock()
            waiters += callers.waiters_of(state, now)
            holders += callers.holders_of(state, self.commands, now)[1].values()
        oldest = attrgetter("seconds")
        return sorted(holders, key=oldest, reverse=True), sorted(waiters, key=oldest, reverse=True)

    def holders_by_connection(
        self, state: PoolState
    ) -> tuple[dict[int, Checkout], dict[int, CallerStats]]:
        """Return a pool's open checkouts and a description of each holder, by connection id."""
        return callers.holders_of(state, self.commands, self._clock())

    def history(self) -> list[ClientStats]:
        """Return samples of the last five minutes, the oldest first; empty without `watch`."""
        notice_fork()
        return self._history.samples()

    def record_sample(self, *, at_once: bool = False) -> None:
        """Add a sample to the history if it is due, or `at_once`."""
        look_at_server_selection(rarely=True)
        if at_once or self._history.is_due(self._since + self._age()):
            self._history.add(self.stats())

    def _age(self) -> float:
        return self._clock() - self._began

    def now(self) -> float:
        """Return monotonic seconds, by the clock of this client's pools."""
        return self._clock()

    def live_stats(self) -> LiveStats:
        """Return `stats()` as the live part of `get_pool_stats()`: a dict for JSON."""
        return live_stats(self.stats())

    def close(self) -> None:
        """Leave the exporters and free the name. For the owner of a closed client."""
        self._closed = True
        self.on_reconnected = None  # it may hold the client
        self._on_closed()
        if self.inner is not None:
            self.inner.close()

    @property
    def active(self) -> bool:
        """Return whether exporters show this client: it is not closed, or has no pool yet.

        A client that is open may have no pool left, if no server belongs to its replica set.
        """
        if self._closed:
            return False
        pools = self.states()
        if not pools or any(pool.phase != "closed" for pool in pools):
            return True
        # PyMongo publishes no event when a client without a server is closed.
        return not self._client_is_closed and self._topology_type() != "Unknown"

    @property
    def _has_no_server(self) -> bool:
        pools = self.states()
        return self.active and bool(pools) and all(pool.phase == "closed" for pool in pools)

    @property
    def may_lack_a_server(self) -> bool:
        """Return whether callers may wait in server selection: one does, or no server is writable.

        A caller may also wait for a server with certain tags, which no server's type shows.
        """
        waited_for = self.server_selection.is_waited_for
        return waited_for or (not self._closed and self.lacks_writable_server)

    @property
    def lacks_writable_server(self) -> bool:
        """Return whether no server that the client knows takes writes.

        A client of a single server, such as one secondary, asks it for everything.
        """
        if self._topology_type() == "Single":
            return False
        pools = [pool for pool in self.states() if pool.phase != "closed"]
        return not any(pool.is_writable for pool in pools)

    def leave_out(self, seconds: float) -> None:
        """Leave out of every age some seconds for which this process stood still until now."""
        if self._clock is time.monotonic:
            self.server_selection.leave_out(seconds, self._clock())
            if self._pulse is not None:
                self._pulse.leave_out(seconds)
            self.commands.leave_out(seconds, self._clock())
            for state in self.states():
                state.leave_out(seconds)

    def _pool_name(self, address: Address) -> str:
        return pool_name(self.name, bounded_address(address))

    def states(self) -> list[PoolState]:
        """Return the states of all pools of this client."""
        notice_fork()
        with self._lock:
            return list(self._pools.values())

    def _topology_type(self) -> str | None:
        client = self._client()
        return None if client is None else client.topology_description.topology_type_name

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
        if not self._is_open():
            registry.open_client(self, bounded_address(address), app_name_of_new_pool())
        if self._client() is None and (client := calling_client()) is not None:
            self.attach(client)
        loop = asyncio._get_running_loop()
        if loop is not None and (self._pulse is None or self._pulse.loop is not loop):
            self._pulse = LoopPulse(loop)
        with self._lock:
            pool = self._pools.get(address)
            if pool is None:
                pool = self._pools[address] = PoolState(address, clock=self._clock)
            pool.monitor_times = self._monitor_times
            pool.created(max_size, min_size)
            pool.pulse = self._pulse
            self._client_is_closed = False
            self._owners[address] = owner
            self._inherited.pop(address, None)
            self._forget_old_pools(address)
        self.callbacks.loop = asyncio._get_running_loop() or self.callbacks.loop
        watch.watch(self)

    def _inherit(self, address: Address) -> PoolState:
        """Return the state of a pool from before a fork; if there is none, an unused state."""
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
        for address in closed[:-_MAX_CLOSED_POOLS]:
            del self._pools[address], self._owners[address]

    def _on_reconnected(self) -> None:
        if self.on_reconnected is not None:
            self.on_reconnected()

    def _on_closed(self, client_is_closed: bool = True) -> None:
        self._client_is_closed = client_is_closed
        registry.keep_if_closed(self)

    def on_error(self, error: Exception) -> None:
        """Count a failure inside our own code, and log the first."""
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
        # The child never closes the parent's connections. After a fork PyMongo announces new pools;
        # but a fork in C is unknown to PyMongo, which goes on with the pools of the parent.
        if threads_are_known():
            self._inherited.clear()
            self._owners.clear()
        else:
            self._inherited |= {a: p for a, p in self._pools.items() if p.phase != "closed"}
            self._pools.inherit = self._inherit
        self._lock = threading.RLock()
        self._errors = 0
        self._since, self._began = time.time(), self._clock()
        self._pools.clear()
        self._history = History()
        self.callbacks = Callbacks()
        self._pulse = None
        self.commands.reset()
        self.agents.reset()
        self.server_selection = ServerSelection()


def _on_client_collected(telemetry: PoolTelemetry, owner: object) -> None:
    """Close the open pools of a client that was garbage collected without `close()`."""
    with telemetry._lock:
        pools = [p for a, p in telemetry._pools.items() if telemetry._owners.get(a) is owner]
    was_active = telemetry.active
    for pool in pools:
        pool.abandoned()
    if was_active:
        telemetry._on_closed()


live = active
"""The earlier name of `registry.active`."""
ended = recently_closed
"""The earlier name of `registry.recently_closed`."""
of = telemetry_of
"""The earlier name of `registry.telemetry_of`."""
