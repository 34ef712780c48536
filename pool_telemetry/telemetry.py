"""One client's telemetry: the listeners to give to it, and the state that they write.

`PoolTelemetry` knows all pools of its client; `live()` knows every telemetry of the process, so
that one registration with an exporter covers every client.
"""

import itertools
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, Final

from pool_telemetry.actor import Actor, name_of, notice_greenlets
from pool_telemetry.agents import AgentCounts
from pool_telemetry.commands import Command, CommandState
from pool_telemetry.connections import Holder
from pool_telemetry.listeners import HeartbeatListener, OperationListener, PoolListener, Pools
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.report import LiveStats, live_stats
from pool_telemetry.state import Clock, PoolState
from pool_telemetry.stats import (
    Address,
    CallerStats,
    ClientStats,
    Doing,
    Link,
    Note,
    PoolStats,
    pool_name,
)

_log = logging.getLogger("pool_telemetry.telemetry")

# Servers come and go (hosts of a replica set in a cluster): so many closed pools are remembered.
_CLOSED_POOLS_KEPT: Final = 50

_CURSORS: Final = frozenset({"aggregate", "find", "getMore"})  # what may leave one open

_registry_lock = threading.RLock()
_registry: "weakref.WeakSet[PoolTelemetry]" = weakref.WeakSet()
_by_listener: "weakref.WeakKeyDictionary[PoolListener, PoolTelemetry]"
_by_listener = weakref.WeakKeyDictionary()
_lately_closed: "deque[PoolTelemetry]" = deque(maxlen=10)  # kept for who pushes, to say the last
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
        self._owners: dict[Address, object] = {}
        self._commands = CommandState(self.options.max_operation_series, clock=clock)
        self.agents = AgentCounts()
        self._errors = 0
        self._since = time.time()
        self._closed = False
        self._shared = False
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
            self._on_error,
            pool_name=self._pool_name,
            options=self.options,
        )
        _by_listener[pool] = self
        # It holds this telemetry, which knows its client weakly: what it saw is still to be told.
        weakref.finalize(pool, _abandoned, self, owner).atexit = False
        found: list[Any] = [pool, HeartbeatListener(self._pools, self._on_error)]
        if self.options.operations:
            found.append(OperationListener(self._commands, self._on_error, self.options))
        return found

    def attach(self, client: Any) -> None:
        """Read round-trip times from this client, which measures them beside its heartbeats.

        Without it a server's RTT is that of the last heartbeat which did not wait for news; from
        MongoDB 4.4 on that is the first of each connection only. Kept weakly; no I/O.
        """
        self._client = weakref.ref(client)

    def stats(self) -> ClientStats:
        """Return all that is known at this moment. Never does I/O, never waits for a pool."""
        rtts = self._rtts()
        return ClientStats(
            name=self.name,
            pools=tuple(
                replace(p, rtt=rtts.get((p.host, p.port)) or p.rtt) for p in self.pool_stats()
            ),
            operations=self._commands.stats(),
            telemetry_errors=self._errors,
            since=self._since,
            server_version=self.server_version,
            agents=self.agents.stats(),
        )

    def pool_stats(self) -> list[PoolStats]:
        """Return the pools alone, for who looks often: hundreds of series of commands cost 1 ms."""
        # A closed pool that was never used is the alias under which a server was first sought.
        states = [one for one in self._states() if not (one.phase == "closed" and one.unused)]
        return [state.stats() for state in states]

    def callers(self) -> tuple[list[CallerStats], list[CallerStats]]:
        """Return who holds connections, and who waits for one, the longest first."""
        holders, waiters = list[CallerStats](), list[CallerStats]()
        for state in self._states():
            waiting, holding = state.callers()
            now = self._clock()
            waiters += (self._waiter(state, who, now, *stay) for who, stay in waiting.items())
            holders += self._holders(state, holding, now)
        oldest = attrgetter("seconds")
        return sorted(holders, key=oldest, reverse=True), sorted(waiters, key=oldest, reverse=True)

    def _waiter(
        self, state: PoolState, actor: Actor, now: float, since: float, note: Note
    ) -> CallerStats:
        return CallerStats(
            address=pool_name("", state.address),
            seconds=max(0.0, now - since),
            actor=name_of(actor),
            owner=note.owner,
            doing="waiting",
            operation="",
            collection="",
            trace_id=_trace_id(note.link),
        )

    def _holders(
        self, state: PoolState, holding: list[Holder], now: float
    ) -> Iterator[CallerStats]:
        newest = {actor: since for actor, since, _ in sorted(holding, key=itemgetter(1))}
        for actor, since, note in holding:
            command = self._commands.latest(actor)
            # Of one who holds several, what he does belongs to the one that he took last.
            if command is None or command.since < since or newest[actor] != since:
                command = None
            link = note.link
            if command is not None and command.trace is not None:
                link = command.trace.link() or link
            yield CallerStats(
                address=pool_name("", state.address),
                seconds=max(0.0, now - since),
                actor=name_of(actor),
                owner=note.owner,
                doing=_doing(command),
                operation=command.series[3] if command else "",
                collection=command.series[2] if command else "",
                trace_id=_trace_id(link),
            )

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
        pools = self._states()
        return not pools or any(pool.phase != "closed" for pool in pools)

    def _pool_name(self, address: Address) -> str:
        return pool_name(self.name, address)

    def _states(self) -> list[PoolState]:
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
            self._forget_old_pools(address)
            said, self._shared = self._shared, self._shared or shared
        if shared and not said:
            _log.warning(
                "the listeners of pool %r are used by two clients, so its counts are mixed: "
                "make one PoolTelemetry for each client",
                self.name,
            )

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

    def _on_error(self, error: Exception) -> None:
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
        # The parent's connections are never closed here, and PyMongo announces new pools.
        self._lock = threading.RLock()
        self._errors = 0
        self._since = time.time()
        self._shared = False
        self._pools.clear()
        self._owners.clear()
        self._commands.reset()
        self.agents.reset()


def _doing(command: Command | None) -> Doing:
    if command is None:
        return ""
    if command.runs:
        return "command"
    if command.in_transaction:
        return "transaction"
    return "cursor" if command.series[3] in _CURSORS else ""


def _trace_id(link: Link | None) -> str | None:
    return None if link is None else f"{link[0]:032x}"


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


def _after_fork_in_child() -> None:
    global _registry_lock
    _registry_lock = threading.RLock()
    _lately_closed.clear()
    for telemetry in list(_registry):
        telemetry._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
