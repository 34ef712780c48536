"""One pool's connections: which exist, and who has them. The caller holds the lock.

Used by `PoolState` only. It tells the truth also where PyMongo says nothing, or too late.
"""

from collections.abc import Callable, Mapping
from typing import Final

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

Checkout = tuple[
    Actor, float, Origin
]  # who has a connection, since when, and what he said of himself
Opener = tuple[Actor, float]

UNLIMITED: Final = float("inf")

# So long after the next check-out of a connection the event of its check-in may still come.
LATE_SECONDS: Final = 10.0
# So long after a clear what was idle is closed; a task cancelled meanwhile does not say so.
STALE_SECONDS: Final = 1.0

MAX_OWNERS: Final = 100  # what comes later is one more, under OVERFLOW

_MANY: Final = 10_000  # so many ids are remembered of those that closed in silence, or departed


class Connections:
    """The books. `size` is opening and ready ones; a held one is ready."""

    def __init__(self) -> None:
        self.max_size: float = UNLIMITED
        self.opening: dict[int, Opener] = {}  # connection id -> who opens it, and since when
        self.held: dict[int, Checkout] = {}
        self.count = 0  # that were ever created
        self.closed = dict.fromkeys(CLOSE_REASONS, 0)
        self.use_time = Histogram(POOL_BOUNDS)
        self.owners: dict[str, list[float]] = {}  # owner -> uses that are over, their seconds
        self.create_time = Histogram(POOL_BOUNDS)

        self._ready: dict[int, int] = {}  # connection id -> the generation that it belongs to
        self._generation = 0  # clears so far: who is of an earlier one is closed when it is idle
        self._cleared_at: float | None = None
        # From PyMongo 4.19 on a connection can be checked out again before the event of its
        # previous check-in arrives. Here is whose check-ins are still to come, and since when.
        self._late: dict[int, dict[Actor, float]] = {}
        # Connections of earlier pools of this address that are not closed yet; None: nobody has it,
        # it is closed next. Their ids start at 1 again in the new pool, so they are told apart by
        # their actor and close reason.
        self._departed: dict[int, list[Checkout | None]] = {}
        self._new: dict[Actor, int] = {}  # who waits -> the connection that is opened for him
        self._silent: set[int] = set()  # closed in silence, as it seems
        # Who ended in silence, by the connection that he had, and when that was seen. It is idle,
        # or closed in silence, or he left a cursor that still has it.
        self.gone: dict[int, tuple[Checkout, float]] = {}
        self._kept: set[Checkout] = set()  # of these, who has it for sure; his use is counted
        self.full_at = 0.0  # when all that there may be were last taken, while some are in `gone`
        self._newest: dict[Actor, int] = {}  # the connection that each holder took last
        # Of holders who took another: since when (by conn id, with that of the hold).
        self._superseded: dict[int, tuple[float, float]] = {}

    @property
    def size(self) -> int:
        """Return how many there are, opening ones included."""
        return len(self.opening) + len(self._ready)

    def begin_pool(self) -> None:
        """Begin with none; those of the pool before are still to be closed."""
        for conn_id in self.opening:
            self._depart(conn_id, None)
        for conn_id, holder in self.held.items():
            self._depart(conn_id, holder)
        self._forget()

    def end_pool(self) -> None:
        """Close what is idle: PyMongo has done so before it says that the pool is closed."""
        self._close_in_silence(self._ready.keys() - self.held.keys(), "pool_closed")

    def abandon(self) -> None:
        """Count all as closed."""
        self.closed["pool_closed"] += self.size
        self._forget()

    def _forget(self) -> None:
        self.opening.clear()
        self._ready.clear()
        self.held.clear()
        self._late.clear()
        self._new.clear()
        self._silent.clear()
        self.gone.clear()
        self._newest.clear()
        self._superseded.clear()

    def clear(self, now: float) -> None:
        """Begin a new generation."""
        self._generation += 1
        self._cleared_at = now

    # Events

    def created(
        self, actor: Actor, conn_id: int, now: float, waiters: Mapping[Actor, object]
    ) -> None:
        """Add one that an actor opens: for himself if he waits, else to have one more."""
        self.opening[conn_id] = (actor, now)
        self.count += 1
        if actor in waiters:
            self._new[actor] = conn_id
            if self.gone and len(waiters) == 1:  # it is opened for him because none is idle
                self._close_in_silence(self.gone.keys() & self._ready.keys(), "error")

    def ready(self, conn_id: int, now: float) -> None:
        """Mark one as open. Re-authentication says so again."""
        if self.gone:
            self._note_full(now)
        opening = self.opening.pop(conn_id, None)
        if opening is not None:
            self._ready[conn_id] = self._generation
            # The event's own duration leaves TCP and TLS out.
            self.create_time.observe(now - opening[1])

    def close(self, conn_id: int, reason: str, now: float, *, pool_is_closed: bool) -> None:
        """Take one out, and end its use."""
        self._note_full(now)
        known = conn_id in self._ready or conn_id in self.opening
        departed = self._departed.get(conn_id, [])
        if None in departed and (not known or (reason == "pool_closed" and not pool_is_closed)):
            self.closed[reason] += 1
            departed.remove(None)
            if not departed:
                del self._departed[conn_id]
            return
        if not known:  # PyMongo tells the end of an exhaust cursor's connection twice
            return
        self.closed[reason] += 1
        self.opening.pop(conn_id, None)
        self._ready.pop(conn_id, None)
        self._late.pop(conn_id, None)
        self.gone.pop(conn_id, None)
        # Closed by a clear between its check-in and the event of that: the use is over.
        if (holder := self.held.pop(conn_id, None)) is not None:
            self._used(holder, now)

    def take(self, actor: Actor, conn_id: int, now: float, note: Origin = NO_ORIGIN) -> None:
        """Give one to an actor."""
        if conn_id not in self._ready:
            if conn_id not in self._silent:
                if None in (departed := self._departed.get(conn_id, [])):  # no event explains it
                    departed.remove(None)
                self._depart(conn_id, (actor, now, note))
                return
            self._revive(conn_id)
        before = self.held.get(conn_id)
        self.held[conn_id] = actor, now, note
        if (other := self._newest.setdefault(actor, conn_id)) != conn_id:
            self._supersede(other, actor, now)
            self._newest[actor] = conn_id
        if self._new:
            self._new.pop(actor, None)
        if self.gone:
            self.gone.pop(conn_id, None)
            self._note_full(now)
        if before is not None:  # it came back, or nobody else could have it
            if before not in self._kept:  # who ended says nothing more
                self._late[conn_id] = {**self._still_due(conn_id, now), before[0]: now}
            self._used(before, now)

    def _revive(self, conn_id: int) -> None:
        """Begin the second life of one that was not closed."""
        self._silent.discard(conn_id)
        self.count += 1
        self._ready[conn_id] = self._generation

    def _supersede(self, conn_id: int, actor: Actor, now: float) -> None:
        """Note that an actor who has this one takes another: what he does next is done there."""
        holder = self.held.get(conn_id)
        if holder is not None and holder[0] == actor and holder[1] < now:
            if len(self._superseded) > _MANY:
                self._superseded.clear()
            self._superseded[conn_id] = (holder[1], now)

    def superseded(self) -> dict[int, float]:
        """Return since when the holders of connections do something else, where they do."""
        return {
            conn_id: at
            for conn_id, (since, at) in self._superseded.items()
            if conn_id in self.held and self.held[conn_id][1] == since
        }

    def give_back(
        self, who: Callable[[], Actor], conn_id: int, now: float, link: FindTraceLink | None
    ) -> None:
        """Take one back; it may already be someone else's, or closed.

        Who gives it back is rarely of interest, and in a task costs 0.3 µs to find out.
        """
        if self.gone:
            self._note_full(now)
        if self._late or self._departed:
            holder = self._untangle(who(), conn_id, now)
        else:
            holder = self.held.pop(conn_id, None) or self._come_back(conn_id)
        if holder is not None:
            self._used(holder, now, link)

    def _untangle(self, actor: Actor, conn_id: int, now: float) -> Checkout | None:
        """Take out the checkout of this id that this actor ends; None if it ended before."""
        holder = self.held.get(conn_id)
        if holder is not None and holder[0] == actor:
            return self.held.pop(conn_id)
        if (departed := self._come_back(conn_id, actor)) is not None:
            return departed
        late = self._still_due(conn_id, now)
        # Also where another actor returns it (a cursor, a transaction): the oldest ends.
        ended = actor if actor in late else next(iter(late), None)
        if ended is not None:
            del late[ended]
            if late:
                self._late[conn_id] = late
            return None
        return self.held.pop(conn_id, None) or self._come_back(conn_id)

    def _depart(self, conn_id: int, holder: Checkout | None) -> None:
        self._departed.setdefault(conn_id, []).append(holder)
        if len(self._departed) > _MANY:
            del self._departed[next(iter(self._departed))]

    def _come_back(self, conn_id: int, actor: Actor | None = None) -> Checkout | None:
        """Take the hold of a departed connection: this actor's, or anybody's."""
        if actor is None:
            self.gone.pop(conn_id, None)  # now it is known to be idle
        departed = self._departed.get(conn_id, [])
        for i, one in enumerate(departed):
            if one is not None and actor in (one[0], None):
                departed[i] = None
                return one
        return None

    def _still_due(self, conn_id: int, now: float) -> dict[Actor, float]:
        """Take out whose check-ins of this id may still come."""
        late = self._late.pop(conn_id, {})
        return {actor: since for actor, since in late.items() if now - since < LATE_SECONDS}

    # What no event tells: a task that is cancelled while it opens a connection, checks it in or
    # closes it, says nothing more of it (PyMongo 4.20).

    def give_up(self, conn_id: int, opener: Opener, now: float) -> None:
        """Take out one whose opener is gone."""
        if self.opening.get(conn_id) == opener:
            self._note_full(now)
            del self.opening[conn_id]
            self.closed["error"] += 1

    def do_without(self, actor: Actor) -> None:
        """Take out the one that was opened for an actor who did not get it."""
        conn_id = self._new.pop(actor, None)
        if conn_id in self._ready and conn_id not in self.held:
            self._close_in_silence({conn_id}, "error")

    def give_back_in_silence(self, conn_id: int, holder: Checkout, now: float) -> None:
        """Take back one whose holder can't have it any more."""
        if self.held.get(conn_id) == holder:
            del self.held[conn_id]
            self._used(holder, now)
            if self._ready[conn_id] < self._generation:  # it is closed at check-in
                self._close_in_silence({conn_id}, "stale")
            if len(self.gone) >= _MANY:
                del self.gone[next(iter(self.gone))]
            self.gone[conn_id] = holder, now

    def _note_full(self, now: float) -> None:
        """See whether all that there may be are taken."""
        if len(self.held) + len(self.opening) >= self.max_size:
            self.full_at = now

    def has_for_sure(self, holder: Checkout) -> bool:
        """Return whether he still has his, though he ended."""
        return holder in self._kept

    def hold_again(self, missing: int, before: float) -> bool:
        """Let those who ended in silence before some time have theirs: the latest, if they suffice.

        Returns whether they do.
        """
        found = [i for i, (_, seen) in reversed(self.gone.items()) if seen <= before]
        if len(found) < missing:
            return False
        for conn_id in found[:missing]:
            if conn_id not in self._ready:
                self._revive(conn_id)
            holder, _ = self.gone.pop(conn_id)
            self.held[conn_id] = holder
            self._kept.add(holder)
        return True

    def let_go(self, now: float) -> None:
        """Doubt again that those who ended have theirs: there would be too many."""
        doubtful = {conn_id: one for conn_id, one in self.held.items() if one in self._kept}
        for conn_id, holder in doubtful.items():
            del self.held[conn_id]
            self._kept.discard(holder)
            self.gone[conn_id] = holder, now
        self._close_in_silence(set(doubtful), "error")

    def drop_stale(self, now: float) -> None:
        """Take out those that were idle at a clear."""
        if self._cleared_at is not None and now - self._cleared_at >= STALE_SECONDS:
            self._cleared_at = None
            stale = {i for i, generation in self._ready.items() if generation < self._generation}
            self._close_in_silence(stale - self.held.keys(), "stale")

    def _used(self, holder: Checkout, now: float, link: FindTraceLink | None = None) -> None:
        """Count a use that is over."""
        actor, since, (owner, _) = holder
        self._newest.pop(actor, None)
        if self._kept and holder in self._kept:  # when he ended
            self._kept.discard(holder)
            return
        seconds = now - since
        self.use_time.observe(seconds, link)
        if owner:
            used = self.owners.get(owner) or self._new_owner(owner)
            used[0] += 1
            if seconds > 0.0:
                used[1] += seconds

    def owner_stats(self, now: float) -> list[OwnerStats]:
        """Return what each owner had, and has."""
        if not self.owners and not any(note.owner for _, _, note in self.held.values()):
            return []
        found = {owner: [*used, 0] for owner, used in self.owners.items()}
        for holder in self.held.values():
            _, since, note = holder
            if note.owner:
                known = note.owner in found or len(found) < MAX_OWNERS
                held = found.setdefault(note.owner if known else OVERFLOW, [0, 0.0, 0])
                held[1] += 0.0 if holder in self._kept else max(0.0, now - since)
                held[2] += 1
        return [OwnerStats(name, int(n), s, int(now_)) for name, (n, s, now_) in found.items()]

    def _new_owner(self, owner: str) -> list[float]:
        if len(self.owners) >= MAX_OWNERS:
            owner = OVERFLOW
        return self.owners.setdefault(owner, [0, 0.0])

    def _close_in_silence(self, conn_ids: set[int], reason: str) -> None:
        for conn_id in conn_ids:
            del self._ready[conn_id]
            self.closed[reason] += 1
        if len(self._silent) > _MANY:
            self._silent.clear()
        self._silent |= conn_ids
