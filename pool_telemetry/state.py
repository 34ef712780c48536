"""The truth of one server's pool.

Written by its listener only, one method an event; read through `stats()` only. Each event costs one
clock read, one leaf lock and a few integer updates: nothing here logs, formats or blocks. The
lock is reentrant because a garbage collection inside it may run a finalizer that publishes.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import RLock
from typing import Final

from pool_telemetry.actor import Actor, still_in_pool
from pool_telemetry.histogram import POOL_BOUNDS, Histogram
from pool_telemetry.stats import CLOSE_REASONS, OUTCOMES, Address, Phase, PoolStats

Clock = Callable[[], float]
Holder = tuple[Actor, float]  # who has a connection, and since when

# A wait younger than this is not examined: most end by themselves, and looking costs 3 µs each.
MOMENT: Final = 0.05
# A server that fails again so soon after it came back was never well: it is one outage.
STEADY_SECONDS: Final = 10.0
# The hot path looks for ghosts at most this often, per waiter: under 1 % of a core.
LOOK_SECONDS_PER_WAITER: Final = 0.001

_UNLIMITED: Final = float("inf")


@dataclass(frozen=True, slots=True)
class _Heartbeat:
    """What the last heartbeat said."""

    changed: float  # when `up` last changed
    up: bool | None = None
    down_since: float | None = None  # where the outage began that is the last, or lasts
    reason: str | None = None
    rtt: float | None = None


@dataclass(frozen=True, slots=True)
class _Episodes:
    """The episodes of exhaustion that are over; `count` has the current one, too."""

    count: int = 0
    seconds: float = 0.0
    until: float | None = None


class PoolState:
    """One server's pool, as PyMongo's events tell it.

    Args:
        address: Host and port; the port is None for a Unix domain socket.
        clock: Monotonic seconds.
        still_waiting: Returns those of the given actors that are still in the pool's code.
    """

    def __init__(
        self,
        address: Address,
        *,
        clock: Clock = time.monotonic,
        still_waiting: Callable[[Iterable[Actor]], set[Actor]] = still_in_pool,
    ) -> None:
        self._address = address
        self._clock = clock
        self._still_waiting = still_waiting
        self._lock = RLock()
        self.phase: Phase = "paused"
        self._max_size: float = _UNLIMITED
        self._min_size = 0

        self._opening: dict[int, float] = {}  # connection id -> when it was created
        self._ready: set[int] = set()
        self._held: dict[int, Holder] = {}
        # From PyMongo 4.19 on a connection can be checked out again before the event of its
        # previous check-in arrives: the later holders of an id wait here.
        self._overlapping: dict[int, list[Holder]] = {}
        # Connections of an earlier pool of this address that are not closed yet. Their ids start
        # at 1 again in the new pool, so they are told apart by their actor and close reason.
        self._departed: dict[int, Holder | None] = {}
        self._waiters: dict[Actor, float] = {}

        self._checkouts = dict.fromkeys(OUTCOMES, 0)
        self._closed = dict.fromkeys(CLOSE_REASONS, 0)
        self._ok = self._created = self._cleared = 0
        self._wait_time = Histogram(POOL_BOUNDS)
        self._use_time = Histogram(POOL_BOUNDS)
        self._create_time = Histogram(POOL_BOUNDS)

        self._exhausted_since: float | None = None
        self._episodes = _Episodes()
        self._alarm = _UNLIMITED  # demand above this is worth a look
        self._look_at = 0.0
        # When a caller first found nothing free, since the last check-in; and the silence before.
        self._unmet_since: float | None = None
        self._last_silence = 0.0
        self._last_timeout: float | None = None

        self._heartbeat = _Heartbeat(clock())

    # The pool

    def created(self, max_size: int | None, min_size: int) -> None:
        """Begin a new pool; counters go on."""
        with self._lock:
            self._departed.update({**dict.fromkeys(self._opening), **self._held})
            self._forget_connections()
            self.phase = "paused"
            self._max_size = _UNLIMITED if max_size is None else max_size
            self._min_size = min_size
            self._settle()

    def ready(self) -> bool:
        """Mark the pool ready; return whether it was cleared before, so this is a reconnection."""
        with self._lock:
            self.phase = "ready"
            return self._cleared > 0

    def cleared(self, *, pauses: bool) -> None:
        """Count a clear; behind a load balancer it concerns one service and does not pause."""
        with self._lock:
            self._cleared += 1
            if pauses:
                self.phase = "paused"

    def closed(self) -> None:
        """Close the pool. Connections in use stay counted until they come back."""
        with self._lock:
            self.phase = "closed"

    def abandoned(self) -> None:
        """Close the pool of a client that was dropped: no event will ever come."""
        with self._lock:
            self.phase = "closed"
            self._closed["pool_closed"] += len(self._opening) + len(self._ready)
            self._forget_connections()
            self._checkouts["cancelled"] += len(self._waiters)
            self._waiters.clear()
            self._settle()

    def _forget_connections(self) -> None:
        self._opening.clear()
        self._ready.clear()
        self._held.clear()
        self._overlapping.clear()
        self._unmet_since = None
        self._last_silence = 0.0

    @property
    def unused(self) -> bool:
        """Return whether it never had a connection nor a checkout, like a seed's alias."""
        return not (self._created or self._ok or any(self._checkouts.values()))

    # Connections

    def connection_created(self, conn_id: int) -> None:
        """Count a connection that begins to open."""
        now = self._clock()
        with self._lock:
            self._created += 1
            self._opening[conn_id] = now

    def connection_ready(self, conn_id: int) -> None:
        """Count a connection as ready, once: re-authentication publishes the event again."""
        now = self._clock()
        with self._lock:
            created = self._opening.pop(conn_id, None)
            if created is not None:
                self._ready.add(conn_id)
                # The event's own duration leaves TCP and TLS out.
                self._create_time.observe(now - created)

    def connection_closed(self, conn_id: int, reason: str) -> None:
        """Count a closed connection by one of CLOSE_REASONS."""
        now = self._clock()
        with self._lock:
            known = conn_id in self._ready or conn_id in self._opening
            if conn_id in self._departed and (
                not known or (reason == "pool_closed" and self.phase != "closed")
            ):
                self._closed[reason] += 1
                del self._departed[conn_id]
                return
            if not known:  # PyMongo tells the end of an exhaust cursor's connection twice
                return
            self._closed[reason] += 1
            self._opening.pop(conn_id, None)
            self._ready.discard(conn_id)
            # Closed by a clear between its check-in and the event of that: the use is over.
            if (holder := self._held.pop(conn_id, None)) is not None:
                for _, since in (holder, *self._overlapping.pop(conn_id, ())):
                    self._use_time.observe(now - since)

    # Checkouts: the hot path

    def checkout_started(self, actor: Actor) -> None:
        """Put an actor into the queue. A checkout of its own that still stands there is stale."""
        now = self._clock()
        with self._lock:
            waiters = self._waiters
            if actor in waiters:
                self._checkouts["cancelled"] += 1
            waiters[actor] = now
            alarm = len(waiters) + len(self._held) > self._alarm
        if alarm:
            self._examine(now)

    def checked_out(self, actor: Actor, conn_id: int, wait_seconds: float) -> None:
        """End an actor's wait with a connection."""
        now = self._clock()
        with self._lock:
            self._ok += 1
            self._wait_time.observe(wait_seconds)
            self._waiters.pop(actor, None)
            if conn_id not in self._ready:
                self._departed[conn_id] = (actor, now)
            elif conn_id in self._held:
                self._overlapping.setdefault(conn_id, []).append((actor, now))
            else:
                self._held[conn_id] = (actor, now)

    def checkout_failed(self, actor: Actor, outcome: str) -> None:
        """End an actor's wait without a connection, with one of OUTCOMES."""
        now = self._clock()
        with self._lock:
            self._checkouts[outcome] += 1
            self._waiters.pop(actor, None)
            if outcome == "timeout":
                self._last_timeout = now
            exhausted = self._exhausted_since is not None
        if exhausted:
            self._examine(now)

    def checked_in(self, who: Callable[[], Actor], conn_id: int) -> None:
        """End a checkout; the connection may already be someone else's, or closed.

        Who ends it is rarely of interest, and in a task costs 0.3 µs to find out.
        """
        now = self._clock()
        with self._lock:
            if self._overlapping or self._departed:
                holder = self._untangle(who(), conn_id)
            else:
                holder = self._held.pop(conn_id, None)
            if holder is not None:
                self._use_time.observe(now - holder[1])
            exhausted = self._exhausted_since is not None
            if self._unmet_since is not None:
                self._last_silence = now - self._unmet_since
                self._unmet_since = now if exhausted else None
        if exhausted:
            self._examine(now)

    def _untangle(self, actor: Actor, conn_id: int) -> Holder | None:
        """Take out the checkout of this id that this actor ends."""
        holder = self._held.get(conn_id)
        departed = self._departed.get(conn_id)
        if departed is not None and (holder is None or departed[0] == actor != holder[0]):
            self._departed[conn_id] = None  # it is closed next
            return departed
        later = self._overlapping.get(conn_id)
        if holder is None or not later:
            return self._held.pop(conn_id, None)
        if holder[0] == actor or all(one[0] != actor for one in later):
            # Also where another actor returns it (a cursor, a transaction): the oldest ends.
            self._held[conn_id] = later.pop(0)
        else:
            holder = later.pop(next(i for i, one in enumerate(later) if one[0] == actor))
        if not later:
            del self._overlapping[conn_id]
        return holder

    # Exhaustion

    def _examine(self, now: float) -> None:
        """See whether the pool is exhausted, by callers who really wait."""
        if now >= self._look_at:
            self._look_at = now + max(MOMENT, LOOK_SECONDS_PER_WAITER * len(self._waiters))
            self._drop_ghosts(now)
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        """Begin or end an episode of exhaustion. Called with the lock held.

        It reads the clock there: with a time from before, the exhausted time that a reader was
        told meanwhile would fall.

        Exhausted is when callers and holders together exceed max_size: then someone stands in
        the queue for lack of a connection. `in_use + opening >= max_size` would instead flicker
        at every hand-over, and be true of the caller who opens the last connection himself.
        """
        now = self._clock()
        demand = len(self._waiters) + len(self._held)
        if demand > self._max_size:
            if self._exhausted_since is None:
                self._exhausted_since = now
                last = self._episodes
                self._episodes = _Episodes(last.count + 1, last.seconds, last.until)
                self._last_silence = 0.0
                if self._unmet_since is None:
                    self._unmet_since = now
            self._alarm = 2 * demand + 64  # a look when the queue doubles keeps ghosts bounded
        else:
            if self._exhausted_since is not None:
                lasted = _age(now, self._exhausted_since) or 0.0
                last = self._episodes
                self._episodes = _Episodes(last.count, last.seconds + lasted, until=now)
                self._exhausted_since = None
                if len(self._held) < self._max_size:  # else the waiters just gave up
                    self._unmet_since = None
            self._alarm = min(self._max_size, 2 * demand + 1024)

    def _drop_ghosts(self, now: float) -> None:
        """Count as cancelled those who left the queue in silence."""
        with self._lock:
            everyone = self._waiters.copy()
        waiting = {actor: since for actor, since in everyone.items() if now - since > MOMENT}
        if not waiting:
            return
        # Who is out of the pool's code has had the event that ends its wait, or never will. So
        # look first, then check that the wait is still the same one.
        real = self._still_waiting(waiting)
        for actor in waiting.keys() - real:
            with self._lock:  # for a moment at a time: events wait for it
                if self._waiters.get(actor) == waiting[actor]:
                    del self._waiters[actor]
                    self._checkouts["cancelled"] += 1

    # The server, by heartbeats

    def heartbeat(self, *, up: bool, rtt: float | None = None, reason: str | None = None) -> None:
        """Note a heartbeat's outcome; `rtt` None leaves the last one, except when it is down."""
        now = self._clock()
        with self._lock:
            last = self._heartbeat
            changed, down_since = last.changed, last.down_since
            if not up and last.up is None:
                down_since = changed  # it never answered
            elif up is not last.up:
                again = down_since is not None and now - changed < STEADY_SECONDS
                if not up and not again:
                    down_since = now
                changed = now
            known = rtt if rtt is not None or not up else last.rtt
            self._heartbeat = _Heartbeat(changed, up, down_since, reason, known)

    # Reading

    def stats(self) -> PoolStats:
        """Return one consistent, frozen view; no I/O.

        Events wait for the copy alone, not for what is computed from it.
        """
        self._drop_ghosts(self._clock())
        with self._lock:
            self._settle()
            now = self._clock()
            phase, max_size, min_size = self.phase, self._max_size, self._min_size
            waits, holders = list(self._waiters.values()), list(self._held.values())
            opening, size = len(self._opening), len(self._opening) + len(self._ready)
            checkouts, closed = {**self._checkouts, "ok": self._ok}, dict(self._closed)
            created, cleared = self._created, self._cleared
            exhausted_since, unmet_since = self._exhausted_since, self._unmet_since
            episodes, beat = self._episodes, self._heartbeat
            last_silence, last_timeout = self._last_silence, self._last_timeout
            wait_time, use_time = self._wait_time.stats(), self._use_time.stats()
            create_time = self._create_time.stats()
        exhausted = exhausted_since is not None
        silence = _age(now, unmet_since) or 0.0 if len(holders) >= max_size else 0.0
        host, port = self._address
        return PoolStats(
            host=host,
            port=port,
            phase=phase,
            max_size=None if max_size == _UNLIMITED else int(max_size),
            min_size=min_size,
            size=size,
            in_use=len(holders),
            opening=opening,
            waiting=len(waits),
            oldest_wait=_age(now, min(waits, default=now)) or 0.0,
            longest_checkout=_age(now, min((since for _, since in holders), default=now)) or 0.0,
            exhausted=exhausted,
            exhaustions=episodes.count,
            exhausted_time=episodes.seconds + (_age(now, exhausted_since) or 0.0),
            since_exhausted=0.0 if exhausted else _age(now, episodes.until),
            since_timeout=_age(now, last_timeout),
            stalled_time=max(silence, last_silence if exhausted else 0.0),
            checkouts=checkouts,
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
        )


def _age(now: float, since: float | None) -> float | None:
    return None if since is None else max(0.0, now - since)
