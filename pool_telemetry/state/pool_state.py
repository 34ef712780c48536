"""The state of one server's pool.

Its listener alone writes it, by one method for each event; readers take `stats()`. Each event costs
one clock read, at most one leaf lock and a few integer updates: nothing here logs, formats or
blocks. The lock is reentrant because a garbage collection inside it may run a finalizer that
publishes.
"""

import time
from collections.abc import Callable, Iterable
from operator import attrgetter
from threading import RLock
from typing import Final

from pool_telemetry.standstill import later
from pool_telemetry.state.actor import Actor, may_hold
from pool_telemetry.state.connections import UNLIMITED, Checkout
from pool_telemetry.state.exhaustion import Exhaustion
from pool_telemetry.state.frames import still_in_pool
from pool_telemetry.state.heartbeat import MIN_SILENCE_SECONDS, Heartbeat, MonitorTimes
from pool_telemetry.state.loop_pulse import LoopPulse
from pool_telemetry.state.presumed import Connections
from pool_telemetry.state.service import Service
from pool_telemetry.state.wait_queue import Wait, WaitQueue
from pool_telemetry.stats import (
    NO_ORIGIN,
    Address,
    FindTraceLink,
    Occupancy,
    Origin,
    Phase,
    PoolStats,
    bounded_address,
)

Clock = Callable[[], float]
InspectActors = Callable[[Iterable[Actor]], set[Actor]]

GRACE_SECONDS: Final = 0.05
"""Waits and checkouts younger than this are not inspected.

Most end on their own, and each inspection costs 3 µs.
"""

NO_IDLE_PROOF_SECONDS: Final = 0.25
"""A caller that has waited this long proves that PyMongo has no idle connection."""

_WRITABLE: Final = (None, "RSPrimary", "Standalone", "Mongos", "LoadBalancer")  # None: unknown

INSPECTION_SECONDS_PER_WAITER: Final = 0.001
"""The hot path inspects callers at most this often, per waiter: under 1 % of a core."""


class PoolState:
    """One server's pool, as PyMongo's events describe it.

    Args:
        address: Host and port; the port is None for a Unix domain socket.
        clock: Monotonic seconds.
        still_waiting: Returns which of the given actors are still in the pool's code.
        may_hold: Returns which of the given actors may hold a connection.

    Attributes:
        monitor_times: How often PyMongo's monitor of the server publishes an event.
        pulse: That of the client's event loop, with which the monitor ends; None for a synchronous
            client.
    """

    def __init__(
        self,
        address: Address,
        *,
        clock: Clock = time.monotonic,
        still_waiting: InspectActors = still_in_pool,
        may_hold: InspectActors = may_hold,
    ) -> None:
        self.address = bounded_address(address)
        self._clock = clock
        self._still_waiting = still_waiting
        self._may_hold = may_hold
        self._lock = RLock()
        self.phase: Phase = "paused"
        self._min_size = 0
        self._connections = Connections()
        self._queue = WaitQueue()
        # The hot path's short ways into the queue.
        self._waiters, self._timed_out = self._queue.waiters, self._queue.timed_out
        self._wait_time = self._queue.wait_time
        self._exhaustion = Exhaustion()
        self._inspect_at = 0.0
        self._cleared = 0
        self._long_checkouts = 0
        self._closed_at: float | None = None
        self._latest = clock()
        self._heartbeat = Heartbeat(self._latest)
        self.monitor_times = MonitorTimes()
        self.pulse: LoopPulse | None = None
        self._service = Service()
        self._had_heartbeats = False  # in the process that this one was forked from

    def in_a_fork(self) -> "PoolState":
        """Return the state of this pool in a forked process in which PyMongo keeps the pool.

        It begins without connections, callers and counts. The lock is not taken: a thread that does
        not exist there may hold it.
        """
        new = PoolState(
            self.address,
            clock=self._clock,
            still_waiting=self._still_waiting,
            may_hold=self._may_hold,
        )
        new.phase, new._had_heartbeats = self.phase, self.has_heartbeats
        new._connections.max_size, new._min_size = self._connections.max_size, self._min_size
        with new._lock:
            new._update_exhaustion()
        return new

    # The pool

    def created(self, max_size: int | None, min_size: int) -> None:
        """Begin a new pool; counters go on."""
        with self._lock:
            self._connections.begin_pool()
            self._exhaustion.forget()
            self.phase, self._closed_at = "paused", None
            self._connections.max_size = UNLIMITED if max_size is None else max_size
            self._min_size = min_size
            self._update_exhaustion()

    def ready(self) -> bool:
        """Mark the pool as ready; return whether that ends the pause after a clear."""
        with self._lock:
            self.phase = "ready"
            return self._cleared > 0

    def cleared(self, *, pauses: bool, is_failure: bool = True) -> None:
        """Count a clear; behind a load balancer it concerns one service and does not pause.

        With `is_failure` false PyMongo only drops a parent's connections after a fork.
        """
        now = self._clock()
        with self._lock:
            self._cleared += is_failure
            if pauses and is_failure:
                self.phase = "paused"
                self._connections.clear(now)
            else:
                self._connections.doubt_generations()

    def closed(self) -> None:
        """Close the pool. Connections in use stay counted until they are checked in."""
        now = self._clock()
        with self._lock:
            self.phase, self._closed_at = "closed", now
            self._connections.end_pool()

    def abandoned(self) -> None:
        """Close the pool of a client that was dropped: no further event will come."""
        now = self._clock()
        with self._lock:
            self.phase, self._closed_at = "closed", now
            self._connections.abandon(now)
            self._exhaustion.forget()
            self._queue.cancel_all()
            self._update_exhaustion()

    @property
    def never_used(self) -> bool:
        """Return whether the pool never had a connection nor a checkout, like a seed's alias."""
        ended = any(self._queue.ended.values())
        return not (self._connections.created_total or ended or self._wait_time.stats().count)

    @property
    def has_heartbeats(self) -> bool:
        """Return whether the server's answers are known, or were before a fork.

        Behind a load balancer they never are.
        """
        return self._heartbeat.up is not None or self._had_heartbeats

    @property
    def is_writable(self) -> bool:
        """Return whether the server takes writes: a primary, a mongos, or a server by itself."""
        heartbeat = self._heartbeat
        return not self.has_heartbeats or (
            heartbeat.up is True and heartbeat.server_type in _WRITABLE
        )

    # Connections

    def connection_created(self, actor: Actor, conn_id: int) -> None:
        """Count a connection that an actor begins to open."""
        now = self._clock()
        with self._lock:
            self._connections.created(actor, conn_id, now, self._waiters)
            if self._connections.size > self._connections.max_size:
                self._connections.undo_reinstate(now)

    def connection_ready(self, conn_id: int) -> None:
        """Count a connection as ready, once: re-authentication publishes the event again."""
        now = self._clock()
        with self._lock:
            self._connections.ready(conn_id, now)

    def connection_closed(self, conn_id: int, reason: str) -> None:
        """Count a closed connection by one of CLOSE_REASONS."""
        now = self._clock()
        with self._lock:
            closed = self.phase == "closed"
            self._connections.close(conn_id, reason, now, pool_is_closed=closed)

    # Checkouts: the hot path

    def checkout_started(self, actor: Actor, origin: Origin = NO_ORIGIN) -> None:
        """Put an actor into the queue. A wait of its own that is still there has ended."""
        now = self._clock()
        waiters = self._waiters
        if actor in waiters or self._timed_out:
            self._record_reentry(actor, now)
        # This needs no lock: only this thread adds this actor, and others remove only actors that
        # are in the queue.
        waiters[actor] = now, origin
        if len(waiters) + len(self._connections.held) > self._exhaustion.check_above:
            self._check_exhaustion(now)

    def checked_out(
        self, actor: Actor, conn_id: int, wait_seconds: float, link: FindTraceLink | None = None
    ) -> None:
        """End an actor's wait with a connection; `link` finds where in a trace that was."""
        now = self._clock()
        with self._lock:
            waiters = self._waiters
            wait = waiters.get(actor)
            origin = NO_ORIGIN if wait is None else wait[1]
            # An odd id fails here: nothing is changed.
            self._connections.check_out(actor, conn_id, now, origin)
            waiters.pop(actor, None)
            self._wait_time.observe(wait_seconds, link)

    def checkout_failed(self, actor: Actor, outcome: str) -> None:
        """End an actor's wait without a connection, with one of OUTCOMES."""
        now = self._clock()
        with self._lock:
            self._exhaustion.record_queue(len(self._waiters))
            wait = self._queue.fail(actor, outcome, now)
            self._connections.discard_opened_for(actor)
            if outcome == "timeout" and wait is not None and self._connections.presumed_returned:
                self._reinstate(wait[0], now, before=now - NO_IDLE_PROOF_SECONDS)
            exhausted = self._exhaustion.since is not None
        if exhausted:
            self._check_exhaustion(now)

    def checked_in(
        self, find_actor: Callable[[], Actor], conn_id: int, link: FindTraceLink | None = None
    ) -> None:
        """End a checkout; by then another caller may have the connection, or it may be closed."""
        now = self._clock()
        with self._lock:
            self._connections.check_in(find_actor, conn_id, now, link)
            exhaustion = self._exhaustion
            if exhaustion.unserved_since is not None:
                exhaustion.record_check_in(now)
            exhausted = exhaustion.since is not None
        if exhausted:
            self._check_exhaustion(now)

    def _record_reentry(self, actor: Actor, now: float) -> None:
        """Count the caller's earlier wait as cancelled if no event ended it.

        Count this checkout as a retry if the caller's last one just timed out.
        """
        with self._lock:
            if self._queue.record_reentry(actor, now):
                self._connections.discard_opened_for(actor)

    # What PyMongo does not report

    def _check_exhaustion(self, now: float) -> None:
        """Update the exhaustion by the callers that really wait."""
        if now >= self._inspect_at:
            pause = max(GRACE_SECONDS, INSPECTION_SECONDS_PER_WAITER * len(self._waiters))
            self._inspect_at = now + pause
            self._reconcile(now)
        with self._lock:
            self._update_exhaustion()

    def _update_exhaustion(self) -> int:
        """Begin or end an exhaustion; return how many callers wait. The lock is held.

        The clock is read under the lock, because an older time could make `exhausted_time` run
        backwards for a concurrent reader. Callers enter without the lock, so repeat until the
        queue's length is the same twice: then each caller is counted here or sees `check_above`.
        """
        waiting = -1
        while waiting != len(self._waiters):
            waiting = len(self._waiters)
            self._exhaustion.update(
                self._now(),
                waiting=waiting,
                held=len(self._connections.held),
                max_size=self._connections.max_size,
            )
        return waiting

    def _now(self) -> float:
        """Return the time, which never runs backwards, whatever the clock does; in the lock."""
        self._latest = max(self._latest, self._clock())
        return self._latest

    def _reconcile(self, now: float) -> None:
        """Correct the state for cancelled waits, abandoned connects and missing check-ins.

        Collect candidates under the lock, inspect them without it, and change one only if it is
        still the same wait or checkout.
        """
        connections = self._connections
        with self._lock:
            connections.presume_stale_closed(now)
            waiters, opening = self._waiters.copy(), connections.opening.copy()
            held = connections.held.copy()
        inside = set[Actor]()
        waiting = {actor: wait for actor, wait in waiters.items() if now - wait[0] > GRACE_SECONDS}
        opening = {i: opener for i, opener in opening.items() if now - opener[1] > GRACE_SECONDS}
        held = {i: checkout for i, checkout in held.items() if now - checkout[1] > GRACE_SECONDS}
        if waiting or opening:
            # If a caller is outside PyMongo's pool code, PyMongo has published the end of its wait,
            # or never will.
            inside = self._still_waiting({*waiting, *(actor for actor, _ in opening.values())})
            for actor in waiting.keys() - inside:
                with self._lock:  # taken for each caller, because events wait for it
                    if self._queue.cancel(actor, waiting[actor]):
                        connections.discard_opened_for(actor)
            for conn_id, opener in opening.items():
                if opener[0] not in inside:
                    with self._lock:
                        connections.abandon_opening(conn_id, opener, now)
        # Behind a load balancer, which has no heartbeats, a cursor or a transaction keeps its
        # connection after the task ended.
        if held and self.has_heartbeats:
            holding = self._may_hold({checkout[0] for checkout in held.values()})
            for conn_id, checkout in held.items():
                if checkout[0] not in holding and not connections.is_reinstated(checkout):
                    with self._lock:
                        connections.presume_returned(conn_id, checkout, now)
        if connections.presumed_returned and waiting:
            with self._lock:
                since = (self._waiters[actor][0] for actor in inside if actor in self._waiters)
                # Include checkouts that were presumed returned just now. If they were returned,
                # the waiting caller gets a connection at once.
                self._reinstate(min(since, default=now), now, before=now)

    def _reinstate(self, since: float, now: float, *, before: float) -> None:
        """Reinstate checkouts that were presumed returned, if a caller's wait disproves that.

        The caller has waited since `since`. PyMongo would have given it an idle connection or
        opened one, so cursors of finished tasks still hold the connections. The lock is held.
        """
        connections = self._connections
        missing = connections.max_size - len(connections.held)
        proven = now - max(since, connections.last_full_at) >= NO_IDLE_PROOF_SECONDS
        if (
            proven
            and not connections.opening
            and 0 < missing < UNLIMITED
            and connections.reinstate(int(missing), before)
        ):
            self._update_exhaustion()

    # The server, by heartbeats

    def heartbeat_started(self) -> None:
        """Record that a heartbeat has begun."""
        now = self._clock()
        with self._lock:
            self._heartbeat = self._heartbeat.started(now)

    def heartbeat(
        self,
        *,
        up: bool,
        rtt: float | None = None,
        reason: str | None = None,
        server_type: str | None = None,
    ) -> None:
        """Record a heartbeat; `rtt` None keeps the last one, except when the server is down."""
        now = self._clock()
        with self._lock:
            self._heartbeat = self._heartbeat.updated(
                now, up=up, rtt=rtt, reason=reason, server_type=server_type
            )

    # Findings of the watching thread

    def leave_out(self, seconds: float) -> None:
        """Leave out of every age some seconds for which this process stood still until now."""
        with self._lock:
            now = self._clock()
            for actor, (since, origin) in list(self._waiters.items()):
                self._waiters[actor] = later(since, seconds, now), origin
            self._connections.leave_out(seconds, now)
            self._exhaustion.leave_out(seconds, now)
            self._service.leave_out(seconds, now)
            self._heartbeat = self._heartbeat.without(seconds, now)
            if self._queue.last_timeout_at is not None:
                self._queue.last_timeout_at = later(self._queue.last_timeout_at, seconds, now)
            if self._closed_at is not None:
                self._closed_at = later(self._closed_at, seconds, now)

    def count_long_checkout(self) -> None:
        """Count a checkout that has lasted for too long."""
        with self._lock:
            self._long_checkouts += 1

    # Reading

    def wait_seconds_of(self, actor: Actor) -> float | None:
        """Return for how long an actor has been waiting; None if it does not wait."""
        with self._lock:
            wait = self._waiters.get(actor)
        return None if wait is None else _age(self._clock(), wait[0])

    def occupancy(self) -> Occupancy:
        """Return how full the pool is, for load shedding and the span of a failed checkout.

        It takes no lock and inspects no callers, unlike `stats()`, because thousands may ask at
        once. Its numbers may be of moments some microseconds apart.
        """
        max_size, in_use = self._connections.max_size, len(self._connections.held)
        return Occupancy(
            size=max(in_use, self._connections.size),
            in_use=in_use,
            waiting=len(self._waiters),
            max_size=None if max_size == UNLIMITED else int(max_size),
        )

    def waiters(self) -> dict[Actor, Wait]:
        """Return the wait of each caller in the queue."""
        self._reconcile(self._clock())
        with self._lock:
            return self._waiters.copy()

    def self_blocked(self) -> list[Actor]:
        """Return the holders that wait for another connection, once for each that they hold."""
        with self._lock:
            held, waiters = self._connections.held.values(), self._waiters
            return [actor for actor, _, _ in held if actor in waiters]

    def holders(self) -> tuple[dict[int, Checkout], dict[int, float]]:
        """Return the checkouts, and when a holder took a later connection, by connection id."""
        self._reconcile(self._clock())
        with self._lock:
            return self._connections.held.copy(), self._connections.superseded()

    def stats(self) -> PoolStats:
        """Return one consistent, frozen view; no I/O.

        Events wait for the copy alone, not for what is computed from it.
        """
        self._reconcile(self._clock())
        connections, exhaustion, queue = self._connections, self._exhaustion, self._queue
        with self._lock:
            while self._update_exhaustion() != len(waiters := self._waiters.copy()):
                pass  # a caller entered meanwhile
            now = self._latest
            waits = [since for since, _ in waiters.values()]
            phase, max_size, min_size = self.phase, connections.max_size, self._min_size
            closed_at = self._closed_at
            checkouts = [since for _, since, _ in connections.held.values()]
            openings = [since for _, since in connections.opening.values()]
            size = connections.size
            outcomes, closed = queue.ended.copy(), connections.closed.copy()
            created, cleared = connections.created_total, self._cleared
            exhausted_since, unserved_since = exhaustion.since, exhaustion.unserved_since
            episodes, last_stall_seconds = exhaustion.episodes, exhaustion.last_stall_seconds
            last_timeout_at, heartbeat = queue.last_timeout_at, self._heartbeat
            peak_waiting, long_checkouts = exhaustion.peak, self._long_checkouts
            retries = queue.retries
            wait_time, use_time = self._wait_time.stats(), connections.use_time.stats()
            create_time = connections.create_time.stats()
            owners = connections.owner_stats(now)
            failures = sum(outcomes.values())
            served = wait_time.count + use_time.count  # a returned connection can be used again
            unserved_time = self._service.unserved_seconds(now, served, failures, waits)
            full = len(checkouts) >= max_size
            may_open = phase == "ready" and not full and not openings
            # Tasks of a blocked loop can't take the connections that they are given.
            may_open = may_open and (self.pulse is None or self.pulse.is_settled)
            lost = self._service.is_lost(now, unserved_time, created=created, may_open=may_open)
            connections.note_read()
        exhausted = exhausted_since is not None
        stall_seconds = _age(now, unserved_since) or 0.0 if full else 0.0
        host, port = self.address
        return PoolStats(
            host=host,
            port=port,
            phase=phase,
            max_size=None if max_size == UNLIMITED else int(max_size),
            min_size=min_size,
            size=size,
            in_use=len(checkouts),
            opening=len(openings),
            waiting=len(waits),
            oldest_wait=_age(now, min(waits, default=now)) or 0.0,
            longest_checkout=_age(now, min(checkouts, default=now)) or 0.0,
            exhausted=exhausted,
            exhaustions=episodes.count,
            exhausted_time=episodes.seconds + (_age(now, exhausted_since) or 0.0),
            since_exhausted=0.0 if exhausted else _age(now, episodes.until),
            since_timeout=_age(now, last_timeout_at),
            stalled_time=max(stall_seconds, last_stall_seconds if exhausted else 0.0),
            peak_waiting=peak_waiting,
            long_checkouts=long_checkouts,
            retries=retries,
            checkouts={**outcomes, "ok": wait_time.count},
            created=created,
            closed=closed,
            cleared=cleared,
            up=heartbeat.up,
            since_up_changed=_age(now, heartbeat.changed_at) or 0.0,
            outage=_age(heartbeat.changed_at if heartbeat.up else now, heartbeat.down_since) or 0.0,
            down_reason=heartbeat.reason,
            rtt=heartbeat.rtt,
            wait_time=wait_time,
            use_time=use_time,
            create_time=create_time,
            owners=tuple(sorted(owners, key=attrgetter("seconds"), reverse=True)),
            oldest_opening=_age(now, min(openings, default=now)) or 0.0,
            unserved_time=0.0 if phase == "closed" else unserved_time,
            since_served=_age(now, self._service.served_at),
            lost=lost,
            server_type=heartbeat.server_type,
            silent_time=0.0 if phase == "closed" else self._silent_seconds(heartbeat, now),
            since_closed=_age(now, closed_at),
        )

    def _silent_seconds(self, heartbeat: Heartbeat, now: float) -> float:
        silent = heartbeat.silent_seconds(now, self.monitor_times)
        if self.pulse is None:
            return silent
        if self.pulse.loop.is_closed():
            return 0.0  # the client ended with it
        blocked = self.pulse.blocked_seconds
        return max(silent, blocked if blocked >= MIN_SILENCE_SECONDS else 0.0)


def _age(now: float, since: float | None) -> float | None:
    return None if since is None else max(0.0, now - since)
