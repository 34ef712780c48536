"""The truth of one server's pool.

Written by its listener only, one method an event; read through `stats()` only. Each event costs one
clock read, at most one leaf lock and a few integer updates: nothing here logs, formats or blocks.
The lock is reentrant because a garbage collection inside it may run a finalizer that publishes.
"""

import time
from collections.abc import Callable, Iterable
from operator import attrgetter
from threading import RLock
from typing import Final

from pool_telemetry.state.actor import Actor, may_hold, still_in_pool
from pool_telemetry.state.connections import UNLIMITED, Checkout, Connections
from pool_telemetry.state.exhaustion import Exhaustion
from pool_telemetry.state.heartbeat import Heartbeat
from pool_telemetry.state.histogram import POOL_BOUNDS, Histogram
from pool_telemetry.stats import (
    NO_ORIGIN,
    OUTCOMES,
    Address,
    FindTraceLink,
    Occupancy,
    Origin,
    Phase,
    PoolStats,
)

Clock = Callable[[], float]
InspectActors = Callable[[Iterable[Actor]], set[Actor]]

# What is younger than this is not examined: most ends by itself, and looking costs 3 µs each.
MOMENT: Final = 0.05
# PyMongo lets nobody wait for so long while a connection is idle.
QUEUE_SECONDS: Final = 0.25
# The hot path looks for ghosts at most this often, per waiter: under 1 % of a core.
LOOK_SECONDS_PER_WAITER: Final = 0.001

# Who timed out and comes again so soon tries again: PyMongo itself, or who called it.
RETRY_SECONDS: Final = 1.0
_MANY: Final = 10_000


class PoolState:
    """One server's pool, as PyMongo's events tell it.

    Args:
        address: Host and port; the port is None for a Unix domain socket.
        clock: Monotonic seconds.
        still_waiting: Returns those of the given actors that are still in the pool's code.
        may_hold: Returns those that may hold a connection.
    """

    def __init__(
        self,
        address: Address,
        *,
        clock: Clock = time.monotonic,
        still_waiting: InspectActors = still_in_pool,
        may_hold: InspectActors = may_hold,
    ) -> None:
        self.address = address
        self._clock = clock
        self._still_waiting = still_waiting
        self._may_hold = may_hold
        self._lock = RLock()
        self.phase: Phase = "paused"
        self._min_size = 0
        self._connections = Connections()
        self._waiters: dict[Actor, tuple[float, Origin]] = {}
        self._exhaustion = Exhaustion()
        self._look_at = 0.0
        self._checkouts = dict.fromkeys(OUTCOMES, 0)
        self._cleared = 0
        self._wait_time = Histogram(POOL_BOUNDS)
        self._last_timeout: float | None = None
        self._long_checkouts = self._retries = 0
        self._failed: dict[Actor, float] = {}  # who timed out, and did not come again yet
        self._latest = clock()
        self._heartbeat = Heartbeat(self._latest)
        self._had_heartbeats = False  # in the process that this one was forked from

    def in_a_fork(self) -> "PoolState":
        """Return this pool's state in a forked process where PyMongo goes on with the same pool.

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
            new._settle()
        return new

    # The pool

    def created(self, max_size: int | None, min_size: int) -> None:
        """Begin a new pool; counters go on."""
        with self._lock:
            self._connections.begin_pool()
            self._exhaustion.forget()
            self.phase = "paused"
            self._connections.max_size = UNLIMITED if max_size is None else max_size
            self._min_size = min_size
            self._settle()

    def ready(self) -> bool:
        """Mark the pool ready; return whether it was cleared before, so this is a reconnection."""
        with self._lock:
            self.phase = "ready"
            return self._cleared > 0

    def cleared(self, *, pauses: bool) -> None:
        """Count a clear; behind a load balancer it concerns one service and does not pause."""
        now = self._clock()
        with self._lock:
            self._cleared += 1
            if pauses:
                self.phase = "paused"
                self._connections.clear(now)

    def closed(self) -> None:
        """Close the pool. Connections in use stay counted until they come back."""
        with self._lock:
            self.phase = "closed"
            self._connections.end_pool()

    def abandoned(self) -> None:
        """Close the pool of a client that was dropped: no event will ever come."""
        with self._lock:
            self.phase = "closed"
            self._connections.abandon()
            self._exhaustion.forget()
            self._checkouts["cancelled"] += len(self._waiters)
            self._waiters.clear()
            self._settle()

    @property
    def unused(self) -> bool:
        """Return whether it never had a connection nor a checkout, like a seed's alias."""
        ended = any(self._checkouts.values())
        return not (self._connections.count or ended or self._wait_time.stats().count)

    @property
    def has_heartbeats(self) -> bool:
        """Return whether the server's answers are known, or were before a fork.

        Behind a load balancer they never are.
        """
        return self._heartbeat.up is not None or self._had_heartbeats

    # Connections

    def connection_created(self, actor: Actor, conn_id: int) -> None:
        """Count a connection that an actor begins to open."""
        now = self._clock()
        with self._lock:
            self._connections.created(actor, conn_id, now, self._waiters)
            if self._connections.size > self._connections.max_size:
                self._connections.let_go(now)

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

    def checkout_started(self, actor: Actor, note: Origin = NO_ORIGIN) -> None:
        """Put an actor into the queue. A checkout of its own that still stands there is stale."""
        now = self._clock()
        waiters = self._waiters
        if actor in waiters or self._failed:
            self._come_again(actor, now)
        # This alone needs no lock: nobody else puts an actor here, nor takes out one that is not.
        waiters[actor] = now, note
        if len(waiters) + len(self._connections.held) > self._exhaustion.alarm:
            self._examine(now)

    def checked_out(
        self, actor: Actor, conn_id: int, wait_seconds: float, link: FindTraceLink | None = None
    ) -> None:
        """End an actor's wait with a connection; `link` finds where in a trace that was."""
        now = self._clock()
        with self._lock:
            waited = self._waiters.get(actor)
            note = NO_ORIGIN if waited is None else waited[1]
            # An odd id fails here: nothing is changed.
            self._connections.take(actor, conn_id, now, note)
            self._waiters.pop(actor, None)
            self._wait_time.observe(wait_seconds, link)

    def checkout_failed(self, actor: Actor, outcome: str) -> None:
        """End an actor's wait without a connection, with one of OUTCOMES."""
        now = self._clock()
        with self._lock:
            self._checkouts[outcome] += 1
            self._exhaustion.noticed(len(self._waiters))
            waited = self._waiters.pop(actor, None)
            self._connections.do_without(actor)
            if outcome == "timeout":
                self._last_timeout = now
                if self._connections.gone and waited is not None:
                    self._hold_again(waited[0], now, before=now - QUEUE_SECONDS)
                if len(self._failed) < _MANY:
                    self._failed[actor] = now
            exhausted = self._exhaustion.since is not None
        if exhausted:
            self._examine(now)

    def checked_in(
        self, who: Callable[[], Actor], conn_id: int, link: FindTraceLink | None = None
    ) -> None:
        """End a checkout; the connection may already be someone else's, or closed."""
        now = self._clock()
        with self._lock:
            self._connections.give_back(who, conn_id, now, link)
            exhaustion = self._exhaustion
            if exhaustion.unmet_since is not None:
                exhaustion.came_back(now)
            exhausted = exhaustion.since is not None
        if exhausted:
            self._examine(now)

    def _come_again(self, actor: Actor, now: float) -> None:
        """See whether a caller left the queue in silence before, or just timed out."""
        with self._lock:
            if self._waiters.pop(actor, None) is not None:
                self._checkouts["cancelled"] += 1
                self._connections.do_without(actor)
            failed = self._failed.pop(actor, None)
            if failed is not None and now - failed < RETRY_SECONDS:
                self._retries += 1
            if len(self._failed) == _MANY:  # tasks that never come again
                self._failed.clear()

    # What no event tells

    def _examine(self, now: float) -> None:
        """See whether the pool is exhausted, by callers who really wait."""
        if now >= self._look_at:
            self._look_at = now + max(MOMENT, LOOK_SECONDS_PER_WAITER * len(self._waiters))
            self._drop_ghosts(now)
        with self._lock:
            self._settle()

    def _settle(self) -> int:
        """Begin or end an episode of exhaustion; return how many wait. Called with the lock held.

        It reads the clock there: with a time from before, the exhausted time that a reader was
        told meanwhile would fall. Callers come without the lock: one sees the alarm that is set
        here, or is seen here.
        """
        waiting = -1
        while waiting != len(self._waiters):
            waiting = len(self._waiters)
            self._exhaustion.settle(
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

    def _drop_ghosts(self, now: float) -> None:
        """Count those who left in silence: the queue, a connection they opened, or one they held.

        Look first at those who are there for a moment, then check that it is still the same stay.
        """
        connections = self._connections
        with self._lock:
            connections.drop_stale(now)
            waiters, opening = self._waiters.copy(), connections.opening.copy()
            held = connections.held.copy()
        inside = set[Actor]()
        waiting = {actor: stay for actor, stay in waiters.items() if now - stay[0] > MOMENT}
        opening = {i: one for i, one in opening.items() if now - one[1] > MOMENT}
        held = {i: one for i, one in held.items() if now - one[1] > MOMENT}
        if waiting or opening:
            # Who is out of the pool's code has had the event that ends its wait, or never will.
            inside = self._still_waiting({*waiting, *(actor for actor, _ in opening.values())})
            for actor in waiting.keys() - inside:
                with self._lock:  # for a moment at a time: events wait for it
                    if self._waiters.get(actor) == waiting[actor]:
                        del self._waiters[actor]
                        self._checkouts["cancelled"] += 1
                        connections.do_without(actor)
            for conn_id, opener in opening.items():
                if opener[0] not in inside:
                    with self._lock:
                        connections.give_up(conn_id, opener, now)
        # Behind a load balancer, which has no heartbeats, cursors and transactions keep theirs.
        if held and self.has_heartbeats:
            holding = self._may_hold({holder[0] for holder in held.values()})
            for conn_id, holder in held.items():
                if holder[0] not in holding and not connections.has_for_sure(holder):
                    with self._lock:
                        connections.give_back_in_silence(conn_id, holder, now)
        if connections.gone and waiting:
            with self._lock:
                stays = (self._waiters[actor][0] for actor in inside if actor in self._waiters)
                # Those who ended this moment, too: if it is wrong, who waits has one the next.
                self._hold_again(min(stays, default=now), now, before=now)

    def _hold_again(self, since: float, now: float, *, before: float) -> None:
        """See whether those who left in silence, before some time, left cursors that have theirs.

        Somebody waits since then, or did: for that PyMongo must have none idle, and none to open.
        Called with the lock held.
        """
        connections = self._connections
        missing = connections.max_size - len(connections.held)
        waited = now - max(since, connections.full_at) >= QUEUE_SECONDS
        if (
            waited
            and not connections.opening
            and 0 < missing < UNLIMITED
            and connections.hold_again(int(missing), before)
        ):
            self._settle()

    # The server, by heartbeats

    def heartbeat(self, *, up: bool, rtt: float | None = None, reason: str | None = None) -> None:
        """Note a heartbeat's outcome; `rtt` None leaves the last one, except when it is down."""
        now = self._clock()
        with self._lock:
            self._heartbeat = self._heartbeat.then(now, up=up, rtt=rtt, reason=reason)

    # What the watch found

    def count_long_checkout(self) -> None:
        """Count a checkout that is open for too long."""
        with self._lock:
            self._long_checkouts += 1

    # Reading

    def waited(self, actor: Actor) -> float | None:
        """Return for how long an actor has been waiting; None: it is not."""
        with self._lock:
            stay = self._waiters.get(actor)
        return None if stay is None else _age(self._clock(), stay[0])

    def crowd(self) -> Occupancy:
        """Return what is to be said of a checkout that failed; unlike `stats()` it looks at nobody.

        Where thousands give up at once it has to be cheap.
        """
        with self._lock:
            limited = self._connections.max_size != UNLIMITED
            return Occupancy(
                size=self._connections.size,
                in_use=len(self._connections.held),
                waiting=len(self._waiters),
                max_size=int(self._connections.max_size) if limited else None,
            )

    def waiters(self) -> dict[Actor, tuple[float, Origin]]:
        """Return who waits, and since when by the clock."""
        self._drop_ghosts(self._clock())
        with self._lock:
            return self._waiters.copy()

    def holders(self) -> tuple[dict[int, Checkout], dict[int, float]]:
        """Return who holds which connection, and since when he does something else over another."""
        self._drop_ghosts(self._clock())
        with self._lock:
            return self._connections.held.copy(), self._connections.superseded()

    def stats(self) -> PoolStats:
        """Return one consistent, frozen view; no I/O.

        Events wait for the copy alone, not for what is computed from it.
        """
        self._drop_ghosts(self._clock())
        connections, exhaustion = self._connections, self._exhaustion
        with self._lock:
            while self._settle() != len(waiters := self._waiters.copy()):
                pass  # somebody came
            now = self._latest
            waits = [since for since, _ in waiters.values()]
            phase, max_size, min_size = self.phase, self._connections.max_size, self._min_size
            holds = [since for _, since, _ in connections.held.values()]
            opening, size = len(connections.opening), connections.size
            checkouts, closed = self._checkouts.copy(), connections.closed.copy()
            created, cleared = connections.count, self._cleared
            exhausted_since, unmet_since = exhaustion.since, exhaustion.unmet_since
            episodes, last_silence = exhaustion.episodes, exhaustion.last_silence
            last_timeout, beat = self._last_timeout, self._heartbeat
            peak_waiting, long_checkouts = exhaustion.peak, self._long_checkouts
            retries = self._retries
            wait_time, use_time = self._wait_time.stats(), connections.use_time.stats()
            create_time = connections.create_time.stats()
            owners = connections.owner_stats(now)
        exhausted = exhausted_since is not None
        silence = _age(now, unmet_since) or 0.0 if len(holds) >= max_size else 0.0
        host, port = self.address
        return PoolStats(
            host=host,
            port=port,
            phase=phase,
            max_size=None if max_size == UNLIMITED else int(max_size),
            min_size=min_size,
            size=size,
            in_use=len(holds),
            opening=opening,
            waiting=len(waits),
            oldest_wait=_age(now, min(waits, default=now)) or 0.0,
            longest_checkout=_age(now, min(holds, default=now)) or 0.0,
            exhausted=exhausted,
            exhaustions=episodes.count,
            exhausted_time=episodes.seconds + (_age(now, exhausted_since) or 0.0),
            since_exhausted=0.0 if exhausted else _age(now, episodes.until),
            since_timeout=_age(now, last_timeout),
            stalled_time=max(silence, last_silence if exhausted else 0.0),
            peak_waiting=peak_waiting,
            long_checkouts=long_checkouts,
            retries=retries,
            checkouts={**checkouts, "ok": wait_time.count},
            created=created,
            closed=closed,
            cleared=cleared,
            up=beat.up,
            since_up_changed=_age(now, beat.changed) or 0.0,
            outage=_age(beat.changed if beat.up else now, beat.down_since) or 0.0,
            down_reason=beat.reason,
            rtt=beat.rtt,
            wait_time=wait_time,
            use_time=use_time,
            create_time=create_time,
            owners=tuple(sorted(owners, key=attrgetter("seconds"), reverse=True)),
        )


def _age(now: float, since: float | None) -> float | None:
    return None if since is None else max(0.0, now - since)
