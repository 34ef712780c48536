"""The connections of one server's pool, by PyMongo's events: their states and their holders.

Used by `PoolState` through `presumed`, which adds the ends that PyMongo never reports. The caller
holds the pool's lock.
"""

from collections.abc import Callable, Mapping
from typing import Final

from pool_telemetry.standstill import later
from pool_telemetry.state.actor import Actor
from pool_telemetry.state.histogram import POOL_BOUNDS, Histogram
from pool_telemetry.stats import (
    CLOSE_REASONS,
    NO_ORIGIN,
    OVERFLOW,
    FindTraceLink,
    Origin,
    OwnerStats,
)

Checkout = tuple[Actor, float, Origin]
"""The caller, its checkout time (monotonic seconds), its owner and trace."""

Opener = tuple[Actor, float]
"""The actor that opens a connection, and when it began (monotonic seconds)."""

UNLIMITED: Final = float("inf")

LATE_SECONDS: Final = 10.0
"""After another caller took a connection, the check-in event of the earlier one may be this late.

Only a paused thread delays it, because PyMongo publishes the event right after the check-in.
"""

MAX_OWNERS: Final = 100
"""Owners that are counted by name; further ones share OVERFLOW, because labels must be bounded."""

MAX_TRACKED: Final = 10_000
"""Entries of a collection that nothing else bounds; far above the connections of any pool."""


class ReportedConnections:
    """The connections as PyMongo's events report them.

    Attributes:
        max_size: The pool's maxPoolSize, or UNLIMITED.
        opening: The opener of each connection that is being opened, by connection id.
        held: The checkout of each connection that is in use; all of these are ready.
        created_total: Connections created so far.
        closed: Connections closed so far, by reason.
        use_time: The durations of the checkouts that ended.
        create_time: The durations from the creation of a connection until it was ready.
        presumed_returned: Checkouts whose task finished without a check-in event, by connection
            id, with the time at which that was noticed. The connection is idle, closed, or held by
            a cursor that the task left open.
        last_full_at: When the pool was last full; kept only while check-ins are presumed.
    """

    def __init__(self) -> None:
        self.max_size: float = UNLIMITED
        self.opening: dict[int, Opener] = {}
        self.held: dict[int, Checkout] = {}
        self.created_total = 0
        self.closed = dict.fromkeys(CLOSE_REASONS, 0)
        self.use_time = Histogram(POOL_BOUNDS)
        self.create_time = Histogram(POOL_BOUNDS)
        self._owners: dict[str, list[float]] = {}  # owner -> ended checkouts, and their seconds

        self._ready: dict[int, int] = {}  # connection id -> its generation
        # Number of clears; PyMongo closes idle connections of an older generation.
        self._generation = 0
        self._cleared_at: float | None = None
        # Connections whose generation PyMongo may count as older than `_ready` has it.
        self._maybe_older: set[int] = set()
        # From PyMongo 4.19 on a connection can be checked out again before the event of its
        # previous check-in arrives: for each connection the callers whose events are still to
        # come, and when another caller took the connection.
        self._pending_check_ins: dict[int, dict[Actor, float]] = {}
        # Connections of earlier pools of this address that are not closed yet: the checkout of
        # each, or None if it is idle and PyMongo closes it next. The new pool uses the same ids
        # again; the actor and the close reason show which pool an event concerns.
        self._carried_over: dict[int, list[Checkout | None]] = {}
        self._opened_for: dict[Actor, int] = {}  # waiter -> the connection that it opens for itself
        self._latest_by_actor: dict[Actor, int] = {}  # holder -> its latest connection
        # Checkouts whose caller checked out another connection: by connection id the time of the
        # checkout, and the time of the later one.
        self._superseded: dict[int, tuple[float, float]] = {}

        # Written by `presumed`; an event that contradicts a presumption corrects it here.
        self.presumed_returned: dict[int, tuple[Checkout, float]] = {}
        self.last_full_at = 0.0
        self._presumed_closed: dict[int, str] = {}  # connection id -> reason
        # Of these, the closes that no reader has seen: they may still be taken back, while counters
        # that were read never fall.
        self._unread: set[int] = set()
        # Checkouts reinstated from `presumed_returned`; their use time is already recorded.
        self._reinstated: set[Checkout] = set()

    @property
    def size(self) -> int:
        """Return the number of connections, including those that are being opened."""
        return len(self.opening) + len(self._ready)

    def begin_pool(self) -> None:
        """Begin a pool without connections; those of the pool before are still to be closed."""
        for conn_id in self.opening:
            self._carry_over(conn_id, None)
        for conn_id, checkout in self.held.items():
            self._carry_over(conn_id, checkout)
        self._forget()

    def end_pool(self) -> None:
        """Count idle connections as closed: PyMongo closes them before it closes the pool."""
        self._presume_closed(self._ready.keys() - self.held.keys(), "pool_closed")

    def abandon(self, now: float) -> None:
        """End every checkout, and count every connection as closed."""
        for conn_id, checkout in self.held.items():
            self._record_use(conn_id, checkout, now)
        self.closed["pool_closed"] += self.size
        self._forget()

    def _forget(self) -> None:
        self.opening.clear()
        self.held.clear()
        self._ready.clear()
        self._pending_check_ins.clear()
        self._opened_for.clear()
        self._latest_by_actor.clear()
        self._superseded.clear()
        self.presumed_returned.clear()
        self._presumed_closed.clear()
        self._unread.clear()
        self._maybe_older.clear()

    def clear(self, now: float) -> None:
        """Begin a new generation."""
        self._generation += 1
        self._cleared_at = now
        self._maybe_older = (self._maybe_older & self._ready.keys()) | self.opening.keys()

    def doubt_generations(self) -> None:
        """Record a clear that concerns some connections; the event does not say which."""
        self._maybe_older = self._ready.keys() | self.opening.keys()

    def created(
        self, actor: Actor, conn_id: int, now: float, waiters: Mapping[Actor, object]
    ) -> None:
        """Add a connection that an actor opens: for itself if it waits, else for the pool."""
        self.opening[conn_id] = (actor, now)
        self.created_total += 1
        if actor in waiters:
            self._opened_for[actor] = conn_id
            # The only waiter opens a connection because none is idle.
            if self.presumed_returned and len(waiters) == 1:
                self._presume_closed(self.presumed_returned.keys() & self._ready.keys(), "error")

    def ready(self, conn_id: int, now: float) -> None:
        """Mark a connection as open. PyMongo publishes the event again at re-authentication."""
        if self.presumed_returned:
            self._note_full(now)
        opening = self.opening.pop(conn_id, None)
        if opening is not None:
            self._ready[conn_id] = self._generation
            # The event's own duration leaves TCP and TLS out.
            self.create_time.observe(now - opening[1])

    def close(self, conn_id: int, reason: str, now: float, *, pool_is_closed: bool) -> None:
        """Remove a connection, and end its checkout."""
        self._note_full(now)
        known = conn_id in self._ready or conn_id in self.opening
        carried_over = self._carried_over.get(conn_id, [])
        # A connection that was opening when its pool was closed is closed as stale, too.
        dropped = reason == "stale" and not (pool_is_closed or self._may_be_stale(conn_id))
        if dropped and None not in carried_over:
            if (checkout := self._return_carried_over(conn_id)) is None:
                return  # a pool of the process that this one was forked from
            self._record_use(conn_id, checkout, now)
        # The close concerns an earlier pool if the id is unknown in this one, if no clear explains
        # it, or if the reason is pool_closed while this pool is open.
        of_earlier = not known or dropped or (reason == "pool_closed" and not pool_is_closed)
        if None in carried_over and of_earlier:
            self.closed[reason] += 1
            carried_over.remove(None)
            if not carried_over:
                del self._carried_over[conn_id]
            return
        if not known:  # PyMongo publishes the close of an exhaust cursor's connection twice
            return
        self.closed[reason] += 1
        self.opening.pop(conn_id, None)
        self._ready.pop(conn_id, None)
        self._pending_check_ins.pop(conn_id, None)
        self.presumed_returned.pop(conn_id, None)
        # A clear may close the connection between its check-in and the event of that.
        if (checkout := self.held.pop(conn_id, None)) is not None:
            self._record_use(conn_id, checkout, now)

    def _may_be_stale(self, conn_id: int) -> bool:
        """Return whether a clear explains that PyMongo closes this connection as stale.

        Otherwise a cursor closes a connection of a pool that no longer exists: of one that this
        process inherited by a fork, or of a server that came back.
        """
        if conn_id in self.opening or conn_id in self._maybe_older:
            return True
        return self._ready.get(conn_id, self._generation) < self._generation

    def check_out(self, actor: Actor, conn_id: int, now: float, origin: Origin = NO_ORIGIN) -> None:
        """Record that an actor has a connection."""
        if conn_id not in self._ready:
            if conn_id not in self._presumed_closed:
                # No event explains this connection, so it is one of an earlier pool.
                if None in (carried_over := self._carried_over.get(conn_id, [])):
                    carried_over.remove(None)
                self._carry_over(conn_id, (actor, now, origin))
                return
            self._reopen(conn_id)
        held = self.held
        before = held.get(conn_id)
        held[conn_id] = actor, now, origin
        if (other := self._latest_by_actor.setdefault(actor, conn_id)) != conn_id:
            self._supersede(other, actor, now)
            self._latest_by_actor[actor] = conn_id
        if self._opened_for:
            self._opened_for.pop(actor, None)
        if self.presumed_returned:
            self.presumed_returned.pop(conn_id, None)
            self._note_full(now)
        if before is not None:  # it was checked in, because nobody else could get it otherwise
            if before not in self._reinstated:  # a finished task publishes no late check-in
                pending = self._pop_pending(conn_id, now)
                self._pending_check_ins[conn_id] = {**pending, before[0]: now}
            self._record_use(conn_id, before, now)

    def _reopen(self, conn_id: int) -> None:
        """Count a connection again that was presumed closed, but is open."""
        reason = self._presumed_closed.pop(conn_id, "")
        if conn_id in self._unread:
            self._unread.discard(conn_id)
            self.closed[reason] -= 1
        else:
            self.created_total += 1
        self._ready[conn_id] = self._generation
        self._maybe_older.add(conn_id)

    def _supersede(self, conn_id: int, actor: Actor, now: float) -> None:
        """Record that the holder checked out another connection; its next commands run there."""
        checkout = self.held.get(conn_id)
        if checkout is not None and checkout[0] == actor and checkout[1] < now:
            if len(self._superseded) > MAX_TRACKED:
                self._superseded.clear()
            self._superseded[conn_id] = (checkout[1], now)

    def superseded(self) -> dict[int, float]:
        """Return the time of the later checkout, for each connection whose holder made one."""
        return {
            conn_id: at
            for conn_id, (since, at) in self._superseded.items()
            if conn_id in self.held and self.held[conn_id][1] == since
        }

    def check_in(
        self,
        find_actor: Callable[[], Actor],
        conn_id: int,
        now: float,
        link: FindTraceLink | None = None,
    ) -> None:
        """End a checkout; by then another caller may have the connection, or it may be closed.

        The actor is rarely needed, and in a task costs 0.3 µs to find.
        """
        if self.presumed_returned:
            self._note_full(now)
        if self._pending_check_ins or self._carried_over:
            checkout = self._match_check_in(find_actor(), conn_id, now)
        else:
            checkout = self.held.pop(conn_id, None) or self._check_in_unheld(conn_id)
        if checkout is not None:
            self._record_use(conn_id, checkout, now, link)

    def note_read(self) -> None:
        """Record that a reader has seen the counters."""
        if self._unread:
            self._unread.clear()

    def _match_check_in(self, actor: Actor, conn_id: int, now: float) -> Checkout | None:
        """Remove the checkout that this actor ends; return None if it was ended before."""
        checkout = self.held.get(conn_id)
        if checkout is not None and checkout[0] == actor:
            return self.held.pop(conn_id)
        if (carried_over := self._return_carried_over(conn_id, actor)) is not None:
            return carried_over
        pending = self._pop_pending(conn_id, now)
        # Another actor may check in for the holder (a cursor, a transaction): then the oldest
        # pending check-in ends.
        ended = actor if actor in pending else next(iter(pending), None)
        if ended is not None:
            del pending[ended]
            if pending:
                self._pending_check_ins[conn_id] = pending
            return None
        return self.held.pop(conn_id, None) or self._check_in_unheld(conn_id)

    def _check_in_unheld(self, conn_id: int) -> Checkout | None:
        """Return the checkout of an earlier pool that ends, or reopen the connection."""
        checkout = self._return_carried_over(conn_id)
        if checkout is None and self._presumed_closed.get(conn_id) == "error":
            self._reopen(conn_id)  # if PyMongo closes it now, the event follows
        return checkout

    def _pop_pending(self, conn_id: int, now: float) -> dict[Actor, float]:
        """Remove and return the check-ins of a connection whose events may still come."""
        pending = self._pending_check_ins.pop(conn_id, {})
        return {actor: since for actor, since in pending.items() if now - since < LATE_SECONDS}

    def _carry_over(self, conn_id: int, checkout: Checkout | None) -> None:
        self._carried_over.setdefault(conn_id, []).append(checkout)
        if len(self._carried_over) > MAX_TRACKED:
            del self._carried_over[next(iter(self._carried_over))]

    def _return_carried_over(self, conn_id: int, actor: Actor | None = None) -> Checkout | None:
        """End the checkout of a carried-over connection: this actor's, or anybody's."""
        if actor is None:
            self.presumed_returned.pop(conn_id, None)  # now it is known to be idle
        carried_over = self._carried_over.get(conn_id, [])
        for i, checkout in enumerate(carried_over):
            if checkout is not None and actor in (checkout[0], None):
                carried_over[i] = None
                return checkout
        return None

    def _record_use(
        self, conn_id: int, checkout: Checkout, now: float, link: FindTraceLink | None = None
    ) -> None:
        """Record the use time of a checkout that ended."""
        actor, since, (owner, _) = checkout
        latest = self._latest_by_actor.pop(actor, conn_id)
        if latest != conn_id:
            self._latest_by_actor[actor] = latest
        if self._reinstated and checkout in self._reinstated:
            self._reinstated.discard(checkout)
            return
        seconds = now - since
        self.use_time.observe(seconds, link)
        if owner:
            used = self._owners.get(owner) or self._new_owner(owner)
            used[0] += 1
            if seconds > 0.0:
                used[1] += seconds

    def _new_owner(self, owner: str) -> list[float]:
        if len(self._owners) >= MAX_OWNERS:
            owner = OVERFLOW
        return self._owners.setdefault(owner, [0, 0.0])

    def leave_out(self, seconds: float, now: float) -> None:
        """Leave out of every age some seconds for which this process stood still until now."""

        def moved(checkout: Checkout) -> Checkout:
            return checkout[0], later(checkout[1], seconds, now), checkout[2]

        for conn_id, (actor, since) in self.opening.items():
            self.opening[conn_id] = actor, later(since, seconds, now)
        for conn_id, checkout in self.held.items():
            self.held[conn_id] = moved(checkout)
        for conn_id, (checkout, at) in self.presumed_returned.items():
            self.presumed_returned[conn_id] = moved(checkout), later(at, seconds, now)
        for conn_id, (since, at) in self._superseded.items():
            self._superseded[conn_id] = later(since, seconds, now), later(at, seconds, now)
        self._reinstated = set(map(moved, self._reinstated))

    def owner_stats(self, now: float) -> list[OwnerStats]:
        """Return the checkouts of each owner, ended and current, and their seconds."""
        if not self._owners and not any(origin.owner for _, _, origin in self.held.values()):
            return []
        found = {owner: [*used, 0] for owner, used in self._owners.items()}
        for checkout in self.held.values():
            _, since, origin = checkout
            if origin.owner:
                known = origin.owner in found or len(found) < MAX_OWNERS
                held = found.setdefault(origin.owner if known else OVERFLOW, [0, 0.0, 0])
                held[1] += 0.0 if checkout in self._reinstated else max(0.0, now - since)
                held[2] += 1
        return [OwnerStats(name, int(n), s, int(now_)) for name, (n, s, now_) in found.items()]

    def _note_full(self, now: float) -> None:
        """Record the time if every connection that the pool may have is taken."""
        if len(self.held) + len(self.opening) >= self.max_size:
            self.last_full_at = now

    def _presume_closed(self, conn_ids: set[int], reason: str) -> None:
        """Count connections as closed, unless a checkout proves that they are not."""
        for conn_id in conn_ids:
            del self._ready[conn_id]
            self.closed[reason] += 1
        if len(self._presumed_closed) > MAX_TRACKED:
            self._presumed_closed.clear()
            self._unread.clear()
        self._presumed_closed |= dict.fromkeys(conn_ids, reason)
        self._unread |= conn_ids
