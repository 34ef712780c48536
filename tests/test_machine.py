"""PoolState against a model of PyMongo's pool: every legal order of events, also of missing ones.

The model does what PyMongo does and knows the truth. PoolState gets the events, late or never if
PyMongo publishes them late or never. After each step both must have the same numbers.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from pool_telemetry.state.actor import Actor
from pool_telemetry.state.connections import LATE_SECONDS
from pool_telemetry.state.exhaustion import RECOVERED_SECONDS
from pool_telemetry.state.pool_state import GRACE_SECONDS, NO_IDLE_PROOF_SECONDS, PoolState
from pool_telemetry.state.presumed import STALE_SECONDS
from pool_telemetry.stats import CLOSE_REASONS, OUTCOMES, PoolStats
from tests.support import unmeasured

ACTORS = range(1, 7)
FAILURES = st.sampled_from([outcome for outcome in OUTCOMES if outcome not in ("ok", "cancelled")])
pick = st.randoms(use_true_random=False)


@dataclass
class Conn:
    """A connection as PyMongo knows it."""

    id: int
    generation: int
    opener: int | None = None  # while it opens; 0 is the background thread
    holder: int | None = None
    told: int | None = None  # the holder that PoolState has to show, until a check-in event

    @property
    def idle(self) -> bool:
        return self.opener is None and self.holder is None


class Pool(RuleBasedStateMachine):
    """PyMongo's pool, whose events reach a PoolState."""

    @initialize(max_size=st.sampled_from([None, 1, 2, 3]), rarely=st.integers(1, 12))
    def begin(self, max_size: int | None, rarely: int) -> None:
        self.rarely = rarely  # a new pool or a fork comes after so many connections
        self.now = 1_000.0
        self.max_size = max_size
        self.new_process()

    def new_process(self) -> None:
        self.gone: set[int] = set()  # actors outside PyMongo's queue and code
        self.waiting: set[int] = set()
        self.unnoticed: set[int] = set()  # of the actors in `gone`: still waiting, by our books
        self.conns: dict[int, Conn] = {}
        self.departed: dict[tuple[int, int], Conn] = {}  # of an earlier pool, by id and holder
        # (actor, connection id) -> the time of a check-in whose event is still to come.
        self.due: dict[tuple[int, int], float] = {}
        self.unsure: set[int] = set()  # closed without an event
        self.stale: set[int] = set()  # closed by a clear, without an event
        self.of_a_service: set[int] = set()  # older than the clear of one service
        self.left: set[int] = set()  # held by a cursor whose task finished
        self.unseen: set[int] = set()  # of these, presumed closed by PoolState
        self.doubted: set[int] = set()  # of these, presumed closed because none was idle
        # Whether a holder finished, and whether that closed its connection: PoolState can't know
        # then which connections cursors hold.
        self.ended = self.vanished = False
        self.started = self.created = self.generation = 0
        self.opens = self.clears = 0
        self.outcomes: Counter[str] = Counter()
        self.closes: Counter[str] = Counter()
        self.next_id = 1
        self.phase = "paused"
        self.last: PoolStats | None = None
        self.last_at = self.now
        self.state = PoolState(
            ("h", 1),
            clock=lambda: self.now,
            still_waiting=self.who_is_there,
            may_hold=self.who_is_there,
        )
        self.state.heartbeat(up=True)
        self.state.created(self.max_size, 0)
        self.ready()

    def who_is_there(self, actors: Iterable[Actor]) -> set[Actor]:
        return {actor for actor in actors if actor not in self.gone}

    # The queue

    @precondition(lambda self: self.phase == "ready" and len(self.waiting) < len(ACTORS) // 2)
    @rule(actor=st.sampled_from(ACTORS))
    def start(self, actor: int) -> None:
        if actor in self.waiting or any(self.conns[i].holder == actor for i in self.left):
            return
        self.tell_all_of(actor)  # an actor publishes its events before it goes on
        self.gone.discard(actor)
        self.unnoticed.discard(actor)
        self.state.checkout_started(actor)
        self.started += 1
        self.waiting.add(actor)

    @precondition(lambda self: self.phase == "ready" and self.has_room())
    @rule(actor=st.sampled_from(ACTORS), random=pick)
    def get_a_connection(self, actor: int, random: Any) -> None:
        """A whole checkout of a caller that does not have to wait."""
        if actor in self.waiting:
            return
        self.start(actor)
        if actor not in self.waiting:  # it left a cursor, and has finished
            return
        idle = [conn for conn in self.conns.values() if conn.idle]
        if idle:
            self.take(actor, random.choice(idle))
        else:
            self.finish(self.open_for(actor))

    def has_room(self) -> bool:
        full = self.max_size is not None and len(self.conns) >= self.max_size
        return not full or any(conn.idle for conn in self.conns.values())

    @precondition(lambda self: self.waiting)
    @rule(random=pick, outcome=FAILURES)
    def fail(self, random: Any, outcome: str) -> None:
        self.serve()
        if waiting := self.queue():
            actor = random.choice(waiting)
            self.failed(actor, outcome)
            self.waiting.discard(actor)

    def queue(self) -> list[int]:
        return sorted(self.waiting - {conn.opener for conn in self.conns.values()})

    def serve(self) -> None:
        """Serve callers while a connection is idle, or may be opened.

        Otherwise a long wait would prove that a finished task still holds a connection.
        """
        for actor in self.queue() if self.ended else []:
            idle = [conn for conn in self.conns.values() if conn.idle]
            if idle:
                self.take(actor, idle[0])
            elif self.has_room():
                self.open_for(actor)

    def look(self) -> PoolStats:
        self.serve()
        stats = self.state.stats()
        self.unnoticed.clear()
        opening = any(conn.opener is not None for conn in self.conns.values())
        if self.queue() and self.left and not opening:
            self.now += 2 * NO_IDLE_PROOF_SECONDS
            for conn_id in self.left:
                conn = self.conns[conn_id]
                conn.told = conn.holder
                if conn_id in self.unseen:
                    self.unseen.discard(conn_id)
                    self.doubted.discard(conn_id)
                    self.created += 1
            stats = self.state.stats()
        return stats

    @precondition(lambda self: self.waiting)
    @rule(random=pick)
    def cancel(self, random: Any) -> None:
        """A wait that ends without an event; sometimes while it opens a connection."""
        actor = random.choice(sorted(self.waiting))
        if not self.holds(actor):
            self.waiting.discard(actor)
            self.gone.add(actor)
            for conn in [conn for conn in self.conns.values() if conn.opener == actor]:
                del self.conns[conn.id]
            self.now += 2 * GRACE_SECONDS
            self.state.stats()

    def holds(self, actor: int) -> bool:
        every = (*self.conns.values(), *self.departed.values())
        return any(conn.holder == actor for conn in every) or any(a == actor for a, _ in self.due)

    # Connections

    @precondition(lambda self: self.phase == "ready" and self.has_room())
    @rule(random=pick, background=st.booleans())
    def create(self, random: Any, background: bool) -> None:
        callers = sorted(self.waiting - {conn.opener for conn in self.conns.values()})
        if any(conn.idle for conn in self.conns.values()):
            return
        if background:
            self.open_for(0)
        elif callers:
            self.open_for(random.choice(callers))

    def open_for(self, opener: int) -> Conn:
        if self.waiting | self.unnoticed == {opener}:
            self.unsure.clear()  # it opens a connection because none is idle
            hidden = {i for i in self.left if self.conns[i].told is None}
            self.doubted |= hidden - self.unseen
            self.unseen |= hidden
        conn = Conn(self.next_id, self.generation, opener=opener)
        self.next_id += 1
        self.created += 1
        self.conns[conn.id] = conn
        self.state.connection_created(opener, conn.id)
        return conn

    @precondition(lambda self: any(c.opener is not None for c in self.conns.values()))
    @rule(random=pick, works=st.integers(0, 3))
    def opened(self, random: Any, works: int) -> None:
        conn = random.choice([c for c in self.conns.values() if c.opener is not None])
        if works:
            self.finish(conn)
        else:
            self.close(conn, "error")
            if conn.opener in self.waiting:
                self.failed(conn.opener, "connection_error")
                self.waiting.discard(conn.opener)

    @precondition(lambda self: any(c.opener in self.waiting for c in self.conns.values()))
    @rule(random=pick, told=st.booleans())
    def opened_in_vain(self, random: Any, told: bool) -> None:
        """A task that is cancelled when its new connection is ready; it is never closed."""
        conn = random.choice([c for c in self.conns.values() if c.opener in self.waiting])
        actor = conn.opener
        assert actor is not None
        if self.holds(actor):
            return
        self.opens += 1
        self.state.connection_ready(conn.id)
        del self.conns[conn.id]
        self.waiting.discard(actor)
        if told:
            self.failed(actor, "connection_error")
        else:
            self.gone.add(actor)
            self.unnoticed.add(actor)

    def finish(self, conn: Conn) -> None:
        opener, conn.opener, conn.generation = conn.opener, None, self.generation
        self.opens += 1
        self.state.connection_ready(conn.id)
        if opener in self.waiting:
            self.take(opener, conn)

    @precondition(lambda self: any(c.opener is None for c in self.conns.values()))
    @rule(random=pick)
    def authenticate_again(self, random: Any) -> None:
        conn = random.choice([c for c in self.conns.values() if c.opener is None])
        self.state.connection_ready(conn.id)

    @precondition(lambda self: any(conn.idle for conn in self.conns.values()))
    @rule(random=pick, reason=st.sampled_from(["idle", "error", "stale"]))
    def perish(self, random: Any, reason: str) -> None:
        conn = random.choice([c for c in self.conns.values() if c.idle])
        if reason != "stale" or conn.id in self.of_a_service:
            self.close(conn, reason)

    def failed(self, actor: int, outcome: str) -> None:
        self.outcomes[outcome] += 1
        self.state.checkout_failed(actor, outcome)

    def close(self, conn: Conn, reason: str) -> None:
        if conn.id not in self.unseen:
            self.closes[reason] += 1
        del self.conns[conn.id]
        self.left.discard(conn.id)
        self.unseen.discard(conn.id)
        self.doubted.discard(conn.id)
        self.state.connection_closed(conn.id, reason)

    # Checkouts

    @precondition(lambda self: self.waiting and any(c.idle for c in self.conns.values()))
    @rule(random=pick)
    def check_out(self, random: Any) -> None:
        if callers := sorted(self.waiting - {conn.opener for conn in self.conns.values()}):
            idle = [conn for conn in self.conns.values() if conn.idle]
            self.take(random.choice(callers), random.choice(idle))

    def take(self, actor: int, conn: Conn) -> None:
        self.waiting.discard(actor)
        conn.holder = conn.told = actor
        if conn.id in self.unseen:
            self.unseen.discard(conn.id)
            self.created += 1
        self.outcomes["ok"] += 1
        self.state.checked_out(actor, conn.id, 0.001)

    @precondition(lambda self: any(conn.holder for conn in self.conns.values()))
    @rule(random=pick, late=st.booleans())
    def check_in(self, random: Any, late: bool) -> None:
        """The connection is back at once; the event may come later."""
        conn = random.choice([c for c in self.conns.values() if c.holder])
        actor = conn.holder
        if actor is None or actor in self.waiting:  # a waiter does nothing else
            return
        if conn.id in self.left:  # another actor closes the cursor
            if any(conn_id == conn.id for _, conn_id in self.due):
                return
            self.left.discard(conn.id)
            self.proves_open(conn)
            actor, late, conn.told = 99, False, None
        conn.holder = None
        self.due[actor, conn.id] = self.now
        stale = conn.generation < self.generation or self.phase == "closed"
        if not late or stale:  # the event of a closed one is not late
            self.tell(actor, conn.id)
        if stale:
            self.close(conn, "pool_closed" if self.phase == "closed" else "stale")

    @precondition(lambda self: self.due)
    @rule(random=pick)
    def tell_late(self, random: Any) -> None:
        self.tell(*random.choice(list(self.due)))

    def tell(self, actor: int, conn_id: int) -> None:
        del self.due[actor, conn_id]
        self.state.checked_in(lambda: actor, conn_id)
        conn = self.conns.get(conn_id)
        if conn is not None and conn.told == actor and conn.holder is None:
            conn.told = None

    def tell_all_of(self, actor: int) -> None:
        for who, conn_id in [one for one in self.due if one[0] == actor]:
            self.tell(who, conn_id)

    @precondition(lambda self: any(conn.holder for conn in self.conns.values()))
    @rule(random=pick)
    def check_in_by_another(self, random: Any) -> None:
        """A cursor or a session that was given to another actor."""
        conn = random.choice([c for c in self.conns.values() if c.holder])
        fresh = conn.generation == self.generation and self.phase != "closed"
        if fresh and not any(conn_id == conn.id for _, conn_id in self.due):
            conn.holder = conn.told = None
            self.left.discard(conn.id)
            self.proves_open(conn)
            self.state.checked_in(lambda: 99, conn.id)

    def proves_open(self, conn: Conn) -> None:
        """A check-in proves that a connection was not closed, so it counts as another one."""
        if conn.id in self.doubted:
            self.doubted.discard(conn.id)
            self.unseen.discard(conn.id)
            self.created += 1

    @precondition(lambda self: any(conn.told for conn in self.conns.values()))
    @precondition(lambda self: not (self.vanished or self.departed))
    @rule(random=pick)
    def leave_a_cursor(self, random: Any) -> None:
        """A task finishes, but not the exhaust cursor that has its connection."""
        conn = random.choice([c for c in self.conns.values() if c.told])
        actor, conn.holder = conn.holder, None
        busy = actor is None or self.holds(actor) or actor in self.waiting
        conn.holder = actor
        if actor is None or busy or self.phase == "closed" or conn.id in self.left:
            return
        self.ended = True
        self.serve()
        conn.told = None
        self.gone.add(actor)
        self.left.add(conn.id)
        if conn.generation < self.generation:
            self.unseen.add(conn.id)
        self.now += 2 * GRACE_SECONDS
        self.look()

    @precondition(lambda self: any(conn.holder for conn in self.conns.values()))
    @rule(random=pick, closed=st.booleans())
    def check_in_without_event(self, random: Any, closed: bool) -> None:
        """A task that is cancelled while it checks in; its connection may be closed then, too."""
        conn = random.choice([c for c in self.conns.values() if c.holder])
        actor = conn.holder
        assert actor is not None
        conn.holder = None  # for a moment, to ask for its other connections
        stale = conn.generation < self.generation
        unclear = (closed or stale) and self.left
        unclear = unclear or conn.id in self.left
        if self.holds(actor) or actor in self.waiting or self.phase == "closed" or unclear:
            conn.holder = actor
            return
        self.ended, conn.holder = True, actor
        self.serve()
        conn.holder = conn.told = None
        self.gone.add(actor)
        self.vanished |= closed or stale
        if stale:
            del self.conns[conn.id]
        elif closed:
            del self.conns[conn.id]
            self.unsure.add(conn.id)
        self.now += 2 * GRACE_SECONDS
        self.state.stats()  # it may presume for a moment that a cursor has it

    # The pool

    @precondition(lambda self: self.phase == "ready" and self.created % 3 == 2)
    @rule(random=pick, silent=st.booleans())
    def clear(self, random: Any, silent: bool) -> None:
        """Waiters fail, idle connections close; one of them perhaps without an event."""
        self.phase = "paused"
        self.generation += 1
        self.clears += 1
        self.state.cleared(pauses=True)
        self.stale |= self.unsure
        self.unsure.clear()
        opening = {conn.opener for conn in self.conns.values()}
        for actor in sorted(self.waiting - opening):
            self.failed(actor, "connection_error")
        self.waiting &= opening
        for conn in [conn for conn in self.conns.values() if conn.idle]:
            if silent and conn.told is None and conn.id not in self.unseen:
                silent = False
                del self.conns[conn.id]
                self.stale.add(conn.id)
            else:
                self.close(conn, "stale")
        hidden = {i for i in self.left if self.conns[i].told is None}
        if hidden - self.unseen:  # PoolState takes them as idle
            self.now += STALE_SECONDS
            self.state.stats()
            self.stale.clear()
            self.unseen |= hidden

    @precondition(lambda self: self.phase == "paused")
    @rule()
    def ready(self) -> None:
        self.phase = "ready"
        self.state.ready()

    @precondition(lambda self: self.created % 5 == 4)
    @rule()
    def clear_one_service(self) -> None:
        self.clears += 1
        self.state.cleared(pauses=False)
        self.of_a_service |= self.conns.keys()

    @precondition(lambda self: self.phase != "closed" and self.created > self.rarely)
    @rule()
    def close_pool(self) -> None:
        """Connections in use, and those that are being opened, are closed afterwards."""
        self.settle()
        for conn in [conn for conn in self.conns.values() if conn.idle]:
            self.close(conn, "pool_closed")
        self.unseen |= {i for i in self.left if self.conns[i].told is None}
        self.phase = "closed"
        self.state.closed()
        for actor in sorted(self.waiting):
            self.failed(actor, "pool_closed")
        self.waiting.clear()
        for conn in [conn for conn in self.conns.values() if conn.opener is not None]:
            self.close(conn, "error")

    def settle(self) -> None:
        """Deliver every late event."""
        for actor, conn_id in list(self.due):
            self.tell(actor, conn_id)
        self.now += 2 * STALE_SECONDS
        self.look()
        self.stale.clear()

    @precondition(lambda self: self.phase == "closed" and not self.left)
    @rule()
    def come_back(self) -> None:
        """The server joins again: a new pool of the same address, with ids from 1 on."""
        left = {(conn.id, conn.holder): conn for conn in self.conns.values() if conn.holder}
        assert len(left) == len(self.conns)
        if left.keys() & self.departed.keys():
            return  # no event tells the two apart
        self.departed |= left
        self.conns, self.next_id, self.phase = {}, 1, "paused"
        self.unsure.clear()
        self.doubted.clear()
        self.of_a_service.clear()
        self.ended = self.vanished = False
        self.state.created(self.max_size, 0)

    @precondition(lambda self: self.departed)
    @rule(random=pick, dropped=st.booleans())
    def close_departed(self, random: Any, dropped: bool) -> None:
        """A connection of an earlier pool is checked in, and closed; not if that was dropped."""
        conn_id, actor = random.choice(sorted(self.departed))
        same = self.conns.get(conn_id)
        others = [key for key in self.departed if key[0] == conn_id]
        if self.phase == "closed" or len(others) > 1 or (same and same.told == actor):
            return  # no event tells the two apart
        older = self.of_a_service | self.stale | self.unsure
        if dropped and same and (same.opener is not None or same.generation < self.generation):
            return
        if dropped and conn_id in older:
            return
        del self.departed[conn_id, actor]
        if not dropped:
            self.state.checked_in(lambda: actor, conn_id)
        reason = "stale" if dropped else "pool_closed"
        self.closes[reason] += 1
        self.state.connection_closed(conn_id, reason)

    @precondition(lambda self: self.created > 2 * self.rarely)
    @rule()
    def fork(self) -> None:
        """The child begins with nothing."""
        self.new_process()

    @precondition(lambda self: not self.due)  # a late event comes within LATE_SECONDS
    @rule(seconds=st.floats(0.0, 20.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    # Invariants

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "state"):
            return
        self.now += 2 * GRACE_SECONDS
        for (actor, conn_id), at in list(self.due.items()):
            if self.now - at > LATE_SECONDS / 2:  # an event comes within LATE_SECONDS
                self.tell(actor, conn_id)
        before, stats = self.last, self.look()
        used = sum(conn.told is not None for conn in self.conns.values())
        opening = sum(conn.opener is not None for conn in self.conns.values())
        unknown = len(self.unsure) + len(self.stale)
        assert (stats.in_use, stats.opening, stats.waiting) == (used, opening, len(self.waiting))
        known = len(self.conns) - len(self.unseen)
        assert known <= stats.size <= known + unknown
        assert 0 <= stats.in_use + stats.opening <= stats.size
        assert stats.idle >= 0
        assert sum(stats.checkouts.values()) + stats.waiting == self.started
        # Cancelled waits, and closes without an event, are the rest of these sums.
        told = {**stats.checkouts, "cancelled": self.outcomes["cancelled"]}
        assert told == {outcome: self.outcomes[outcome] for outcome in OUTCOMES}
        assert stats.closed["idle"] == self.closes["idle"]
        assert all(stats.closed[reason] >= self.closes[reason] for reason in CLOSE_REASONS)
        assert (stats.create_time.count, stats.cleared) == (self.opens, self.clears)
        assert stats.created == self.created
        assert stats.created - sum(stats.closed.values()) == stats.size + len(self.departed)
        assert stats.wait_time.count == stats.checkouts["ok"]
        ended = sum(self.conns[i].told is not None for i in self.left)  # their use is counted
        held = stats.in_use + len(self.departed) - ended
        assert stats.use_time.count == stats.checkouts["ok"] - held
        demand = stats.waiting + stats.in_use
        assert stats.exhausted == (self.max_size is not None and demand > self.max_size)
        if before is not None:
            assert counters(before) <= counters(stats)
            assert all(a <= b for a, b in zip(counters(before), counters(stats), strict=True))
            self.counts_exhaustions(before, stats, self.now - self.last_at)
        self.last, self.last_at = stats, self.now

    def counts_exhaustions(self, before: PoolStats, stats: PoolStats, passed: float) -> None:
        """Exhaustions less than a second apart are one, whatever happened between two reads."""
        new = stats.exhaustions - before.exhaustions
        known = before.since_exhausted is not None
        quiet = (before.since_exhausted or 0.0) + passed  # at most so long since the last one
        if known and quiet < RECOVERED_SECONDS - 1e-6:
            assert new == 0
        if stats.exhausted and not before.exhausted and not known:
            assert new >= 1
        # Before each of them but a first one is a second in which nobody waited.
        assert new <= (not known) + quiet / RECOVERED_SECONDS
        assert stats.exhausted_time - before.exhausted_time <= passed + 1e-6
        assert (stats.exhaustions > 0) == (stats.since_exhausted is not None)

    @invariant()
    def forgets_what_is_over(self) -> None:
        """Connections that a clear closed without an event are noticed within STALE_SECONDS."""
        if hasattr(self, "state") and self.stale:
            self.now += STALE_SECONDS
            self.stale.clear()
            self.agrees()

    def teardown(self) -> None:
        """A client that is dropped leaves nothing open."""
        if hasattr(self, "state"):
            self.state.abandoned()
            stats = self.state.stats()
            assert (stats.size, stats.in_use, stats.waiting, stats.exhausted) == (0, 0, 0, False)


def counters(stats: PoolStats) -> list[float]:
    return [
        *(stats.checkouts[outcome] for outcome in OUTCOMES),
        *(stats.closed[reason] for reason in CLOSE_REASONS),
        *stats.wait_time.counts,
        *stats.use_time.counts,
        *stats.create_time.counts,
        *(histogram.sum for histogram in (stats.wait_time, stats.use_time, stats.create_time)),
        stats.created,
        stats.cleared,
        stats.exhaustions,
        stats.exhausted_time,
    ]


class TestPool(Pool.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(stateful_step_count=80, suppress_health_check=[HealthCheck.too_slow])

    @unmeasured()
    def runTest(self) -> None:  # noqa: N802
        super().runTest()
