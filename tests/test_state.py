"""PoolState by itself: every event, in and out of order, with a clock that the test sets."""

from collections.abc import Callable, Iterable, Iterator

import pytest

from pool_telemetry.state.actor import Actor
from pool_telemetry.state.commands import CommandState
from pool_telemetry.state.connections import LATE_SECONDS
from pool_telemetry.state.pool_state import GRACE_SECONDS, PoolState
from pool_telemetry.stats import Origin, PoolStats

A, B, C, D = 1, 2, 3, 4  # actors


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0
        self.calls: Iterator[Callable[[], None]] = iter(())  # called while it is read

    def __call__(self) -> float:
        next(self.calls, lambda: None)()
        return self.now


class Pool(PoolState):
    """A PoolState with a clock to set and actors that may finish without an event."""

    def __init__(self, max_size: int | None = 2, min_size: int = 0) -> None:
        self.time = Clock()
        self.gone: set[Actor] = set()
        super().__init__(("h", 1), clock=self.time, still_waiting=self._who_waits)
        self.created(max_size, min_size)
        self.ready()

    def _who_waits(self, actors: Iterable[Actor]) -> set[Actor]:
        return set(actors) - self.gone

    def open(self, *ids: int) -> None:
        for conn_id in ids:
            self.connection_created(A, conn_id)
            self.connection_ready(conn_id)

    def out(self, actor: Actor, conn_id: int) -> None:
        self.checkout_started(actor)
        self.checked_out(actor, conn_id, 0.0)

    def returned(self, actor: Actor, conn_id: int) -> None:
        self.checked_in(lambda: actor, conn_id)

    def counts(self) -> tuple[int, int, int, int, int]:
        stats = self.stats()
        assert 0 <= stats.in_use + stats.opening <= stats.size
        assert stats.idle >= 0
        return stats.size, stats.in_use, stats.idle, stats.opening, stats.waiting


def test_a_connection_opens_is_used_and_closes() -> None:
    pool = Pool(min_size=1)
    pool.connection_created(A, 1)
    assert pool.counts() == (1, 0, 0, 1, 0)
    pool.time.now += 0.3
    pool.connection_ready(1)
    assert pool.counts() == (1, 0, 1, 0, 0)
    assert pool.stats().create_time.sum == pytest.approx(0.3)
    pool.checkout_started(A)
    pool.time.now += 0.02
    assert pool.counts() == (1, 0, 1, 0, 1)
    assert pool.stats().oldest_wait == pytest.approx(0.02)
    pool.checked_out(A, 1, 0.02)
    assert pool.counts() == (1, 1, 0, 0, 0)
    pool.time.now += 5.0
    assert pool.stats().longest_checkout == pytest.approx(5.0)
    pool.returned(A, 1)
    pool.connection_closed(1, "idle")
    stats = pool.stats()
    assert pool.counts() == (0, 0, 0, 0, 0)
    assert stats.use_time.sum == pytest.approx(5.0)
    assert stats.wait_time.sum == pytest.approx(0.02)
    assert (stats.created, stats.closed["idle"], stats.checkouts["ok"]) == (1, 1, 1)
    assert (stats.max_size, stats.min_size, stats.phase) == (2, 1, "ready")


def test_re_authentication_does_not_count_a_connection_twice() -> None:
    pool = Pool()
    pool.open(1)
    pool.connection_ready(1)
    assert pool.counts() == (1, 0, 1, 0, 0)
    assert pool.stats().create_time.count == 1


def test_a_check_in_that_comes_after_the_next_check_out_of_its_connection() -> None:
    pool = Pool()
    pool.open(1)
    pool.out(A, 1)
    pool.time.now += 1.0
    pool.out(B, 1)  # PyMongo 4.19: A's connection is checked in, but its event is still to come
    assert pool.counts() == (1, 1, 0, 0, 0)
    pool.time.now += 1.0
    pool.returned(A, 1)
    assert pool.counts() == (1, 1, 0, 0, 0)
    pool.time.now += 3.0
    pool.returned(B, 1)
    assert pool.counts() == (1, 0, 1, 0, 0)
    assert pool.stats().use_time.sum == pytest.approx(1.0 + 4.0)


def test_check_ins_of_one_connection_in_the_wrong_order_keep_their_own_times() -> None:
    pool = Pool()
    pool.open(1)
    for actor in (A, B, C):
        pool.out(actor, 1)
        pool.time.now += 1.0
    pool.returned(B, 1)
    assert pool.counts() == (1, 1, 0, 0, 0)
    pool.returned(C, 1)  # the last holder, so that nobody has it now
    assert pool.counts() == (1, 0, 1, 0, 0)
    pool.out(D, 1)
    pool.returned(A, 1)
    assert pool.counts() == (1, 1, 0, 0, 0)
    pool.returned(D, 1)
    assert pool.counts() == (1, 0, 1, 0, 0)
    assert pool.stats().use_time.sum == pytest.approx(3.0)


def test_a_check_in_without_an_event_ends_with_the_next_check_out_of_its_connection() -> None:
    """A task cancelled while it checks in."""
    pool = Pool()
    pool.open(1)
    for _ in range(3):
        pool.out(A, 1)
        pool.time.now += 1.0
        pool.out(B, 1)
        pool.time.now += 1.0
        pool.returned(B, 1)
        assert pool.counts() == (1, 0, 1, 0, 0)
    pool.out(A, 1)
    pool.out(B, 1)
    pool.time.now += LATE_SECONDS
    pool.returned(C, 1)  # not A's check-in, whose event is no longer awaited
    assert pool.counts() == (1, 0, 1, 0, 0)
    assert pool.stats().use_time.count == pool.stats().checkouts["ok"]


def test_a_connection_whose_opener_finished_without_an_event_is_closed() -> None:
    """A task cancelled between the socket and the handshake (PyMongo 4.20)."""
    pool = Pool()
    pool.checkout_started(A)
    pool.connection_created(A, 1)
    pool.connection_created(B, 2)
    pool.gone = {A}
    pool.time.now += 2 * GRACE_SECONDS
    stats = pool.stats()
    assert (stats.opening, stats.size, stats.closed["error"]) == (1, 1, 1)
    assert (stats.waiting, stats.checkouts["cancelled"]) == (0, 1)


def test_a_checkout_stays_superseded_when_an_older_one_of_its_holder_ends() -> None:
    """The holder's commands run on its latest connection, also if it closes an older cursor."""
    pool = Pool(max_size=3)
    pool.open(1, 2, 3)
    for conn_id in (1, 2):
        pool.time.now += 1.0
        pool.out(A, conn_id)
    assert pool.holders()[1] == {1: 1_002.0}
    pool.returned(A, 1)
    pool.time.now += 1.0
    pool.out(A, 3)
    assert pool.holders()[1] == {2: 1_003.0}


def test_a_connection_returned_by_someone_else_ends_the_oldest_checkout() -> None:
    pool = Pool()
    pool.open(1)
    pool.out(A, 1)
    pool.time.now += 1.0
    pool.out(B, 1)
    pool.returned(C, 1)
    assert pool.stats().use_time.sum == pytest.approx(1.0)
    pool.returned(C, 1)
    assert pool.counts() == (1, 0, 1, 0, 0)


def test_a_connection_closed_by_a_clear_before_its_check_in_arrives() -> None:
    pool = Pool()
    pool.open(1)
    pool.out(A, 1)
    pool.time.now += 1.0
    pool.cleared(pauses=True)
    pool.connection_closed(1, "stale")
    assert pool.counts() == (0, 0, 0, 0, 0)
    pool.returned(A, 1)
    stats = pool.stats()
    assert (stats.use_time.count, stats.phase, stats.cleared) == (1, "paused", 1)


def test_a_clear_behind_a_load_balancer_does_not_pause() -> None:
    pool = Pool()
    pool.cleared(pauses=False)
    assert pool.stats().phase == "ready"


def test_only_a_pool_that_was_cleared_reconnects() -> None:
    pool = Pool()
    assert not pool.ready()
    pool.cleared(pauses=True)
    assert pool.ready()


def test_a_cancelled_waiter_is_not_counted() -> None:
    pool = Pool()
    pool.checkout_started(A)
    pool.checkout_started(B)
    pool.gone = {A}
    pool.time.now += GRACE_SECONDS / 2
    assert pool.stats().waiting == 2  # too young to be inspected
    pool.time.now += GRACE_SECONDS
    stats = pool.stats()
    assert (stats.waiting, stats.checkouts["cancelled"]) == (1, 1)


def test_a_waiter_that_was_served_during_the_inspection_is_not_cancelled() -> None:
    pool = Pool()
    pool.open(1)
    pool.checkout_started(A)
    pool.time.now += 1.0

    def served_meanwhile(actors: Iterable[Actor]) -> set[Actor]:
        pool.checked_out(A, 1, 1.0)
        pool.returned(A, 1)
        pool.checkout_started(A)  # and waits again
        return set()

    pool._still_waiting = served_meanwhile
    pool.time.now += 1.0
    stats = pool.stats()
    assert (stats.waiting, stats.checkouts["cancelled"], stats.checkouts["ok"]) == (1, 0, 1)


def test_a_new_wait_of_the_same_actor_replaces_its_stale_one() -> None:
    pool = Pool()
    pool.checkout_started(A)
    pool.time.now += 9.0
    pool.checkout_started(A)
    stats = pool.stats()
    assert (stats.waiting, stats.oldest_wait, stats.checkouts["cancelled"]) == (1, 0.0, 1)


@pytest.mark.parametrize("outcome", ["timeout", "connection_error", "pool_closed", "cancelled"])
def test_a_failed_checkout_counts_its_outcome(outcome: str) -> None:
    pool = Pool()
    pool.checkout_started(A)
    pool.checkout_failed(A, outcome)
    pool.time.now += 2.0
    stats = pool.stats()
    assert (stats.waiting, stats.checkouts[outcome], stats.wait_time.count) == (0, 1, 0)
    assert stats.since_timeout == (2.0 if outcome == "timeout" else None)


# Exhaustion


def exhausted_pool() -> Pool:
    """Two of two in use, C waits."""
    pool = Pool(max_size=2)
    pool.open(1, 2)
    pool.out(A, 1)
    pool.out(B, 2)
    pool.checkout_started(C)
    return pool


def test_all_in_use_is_not_exhausted_until_someone_waits() -> None:
    pool = Pool(max_size=2)
    pool.open(1, 2)
    pool.out(A, 1)
    pool.out(B, 2)
    assert not pool.stats().exhausted
    pool.checkout_started(C)
    stats = pool.stats()
    assert (stats.exhausted, stats.exhaustions, stats.since_exhausted) == (True, 1, 0.0)


def test_the_caller_that_opens_the_last_connection_does_not_exhaust_the_pool() -> None:
    pool = Pool(max_size=1)
    pool.checkout_started(A)
    pool.connection_created(A, 1)
    assert not pool.stats().exhausted
    pool.connection_ready(1)
    pool.checked_out(A, 1, 0.0)
    assert pool.stats().exhaustions == 0


def test_callers_beyond_max_size_exhaust_a_pool_that_is_still_opening() -> None:
    pool = Pool(max_size=1)
    pool.checkout_started(A)
    pool.connection_created(A, 1)
    pool.checkout_started(B)
    assert pool.stats().exhausted


def test_handing_over_is_one_episode() -> None:
    pool = exhausted_pool()
    pool.checkout_started(D)
    for giver, taker in ((A, C), (C, A), (A, C)):
        pool.time.now += 1.0
        pool.returned(giver, 1)
        assert pool.stats().exhausted
        pool.checked_out(taker, 1, 1.0)
        pool.checkout_started(giver)
    assert pool.stats().exhaustions == 1
    assert pool.stats().exhausted_time == pytest.approx(3.0)


def test_exhaustion_ends_when_the_last_caller_can_be_served() -> None:
    pool = exhausted_pool()
    pool.time.now += 4.0
    pool.returned(A, 1)
    pool.time.now += 1.0
    stats = pool.stats()
    assert (stats.exhausted, stats.exhausted_time, stats.since_exhausted) == (False, 4.0, 1.0)
    pool.checked_out(C, 1, 4.0)
    pool.checkout_started(A)
    assert pool.stats().exhaustions == 2


def test_a_timeout_of_the_only_waiter_ends_exhaustion() -> None:
    pool = exhausted_pool()
    pool.time.now += 4.0
    pool.checkout_failed(C, "timeout")
    assert not pool.stats().exhausted


def test_a_caller_that_enters_during_a_read_is_counted_wholly_or_not_at_all() -> None:
    """Callers enter the queue without the pool's lock."""
    pool = Pool(max_size=1)
    pool.open(1)
    pool.out(A, 1)
    pool.time.calls = iter((lambda: None, lambda: pool.checkout_started(B)))
    stats = pool.stats()  # it reads the clock twice: the second time in the lock
    assert (stats.waiting, stats.exhausted) == (1, True)
    pool.returned(A, 1)
    pool.checked_out(B, 1, 0.0)
    pool.returned(B, 1)
    assert pool.counts() == (1, 0, 1, 0, 0)
    assert not pool.stats().exhausted


def test_the_end_of_a_queue_flickers_and_its_peak_stays() -> None:
    pool = Pool(max_size=1)
    pool.open(1)
    pool.out(A, 1)
    pool.checkout_started(B)
    pool.checkout_started(C)
    pool.time.now += 0.5
    for before, after in ((A, B), (B, C)):
        pool.returned(before, 1)
        pool.checked_out(after, 1, 0.5)
    pool.time.now += 0.9
    pool.checkout_started(D)
    assert (pool.stats().exhaustions, pool.stats().peak_waiting) == (1, 2)
    pool.returned(C, 1)
    pool.checked_out(D, 1, 0.0)
    pool.time.now += 1.0
    pool.checkout_started(A)  # this is another exhaustion
    assert (pool.stats().exhaustions, pool.stats().peak_waiting) == (2, 1)


def a_flicker(pool: Pool, holder: int, waiter: int, seconds: float) -> None:
    """Let a caller wait for so long, then hand over to it: nobody waits after that."""
    pool.checkout_started(waiter)
    pool.time.now += seconds
    pool.returned(holder, 1)
    pool.checked_out(waiter, 1, seconds)


@pytest.mark.parametrize("read", [False, True])
def test_exhaustions_less_than_a_second_apart_are_one(read: bool) -> None:
    """A queue's hand-overs flicker; a reader between two of them sees no other count."""
    pool = Pool(max_size=1)
    pool.open(1)
    pool.out(A, 1)
    for n in range(200):
        a_flicker(pool, *((B, A) if n % 2 else (A, B)), 0.0625)
        pool.time.now += 0.96875
        if read:
            stats = pool.stats()
            assert (stats.exhausted, stats.exhaustions) == (False, 1)
            assert stats.since_exhausted == 0.96875
            # The gaps do not count: nobody waited in them.
            assert stats.exhausted_time == 0.0625 * (n + 1)
    assert pool.stats().exhaustions == 1
    assert pool.stats().exhausted_time == 0.0625 * 200


def test_exhaustions_a_second_apart_are_two() -> None:
    pool = Pool(max_size=1)
    pool.open(1)
    pool.out(A, 1)
    for n in range(3):
        a_flicker(pool, *((B, A) if n % 2 else (A, B)), 0.25)
        assert pool.stats().exhaustions == n + 1
        pool.time.now += 1.0


def test_the_peak_is_that_of_all_that_counts_as_one_exhaustion() -> None:
    pool = Pool(max_size=1)
    pool.open(1)
    pool.out(A, 1)
    pool.checkout_started(C)
    pool.checkout_started(D)
    for waiter in (C, D):  # too short to be logged
        pool.time.now += 0.01
        pool.checkout_failed(waiter, "timeout")
    for n in range(5):
        pool.time.now += 0.9
        a_flicker(pool, *((B, A) if n % 2 else (A, B)), 0.01)
        assert (pool.stats().exhaustions, pool.stats().peak_waiting) == (1, 2)


def test_a_cancelled_waiter_does_not_begin_an_exhaustion() -> None:
    pool = Pool(max_size=2)
    pool.open(1, 2)
    pool.out(A, 1)
    pool.checkout_started(B)
    pool.gone = {B}
    pool.time.now += 1.0
    pool.checkout_started(
        C
    )  # A holds, C waits, and B was cancelled: two callers for two connections
    assert pool.stats().exhaustions == 0


def test_a_cancelled_waiter_does_not_prolong_an_exhaustion() -> None:
    pool = exhausted_pool()
    pool.gone = {C}
    pool.time.now += 1.0
    pool.returned(A, 1)
    pool.out(A, 1)
    pool.time.now += 100.0
    assert pool.stats().exhausted_time == pytest.approx(1.0)


def test_cancelled_waiters_stay_bounded_while_nobody_reads() -> None:
    pool = exhausted_pool()
    for ghost in range(100, 20_100):
        pool.gone.add(ghost)
        pool.time.now += 0.01
        pool.checkout_started(ghost)
    assert len(pool._waiters) < 1_000
    unlimited = Pool(max_size=None)
    for ghost in range(100, 20_100):
        unlimited.gone.add(ghost)
        unlimited.time.now += 0.01
        unlimited.checkout_started(ghost)
    assert len(unlimited._waiters) < 3_000
    assert not unlimited.stats().exhausted


def test_a_pool_without_check_ins_is_stalled_also_when_callers_give_up() -> None:
    """Both connections are leaked; callers come one after another and time out."""
    pool = exhausted_pool()
    for _ in range(10):
        pool.time.now += 5.0
        pool.checkout_failed(C, "timeout")
        assert not pool.stats().exhausted
        pool.time.now += 1.0
        pool.checkout_started(C)
    assert pool.stats().stalled_time == pytest.approx(60.0)
    pool.checkout_failed(C, "timeout")
    pool.returned(A, 1)
    assert pool.stats().stalled_time == 0.0


def test_stalled_is_the_time_without_a_check_in_while_exhausted() -> None:
    pool = exhausted_pool()
    pool.checkout_started(D)
    pool.time.now += 40.0
    assert pool.stats().stalled_time == pytest.approx(40.0)
    pool.returned(A, 1)
    pool.checked_out(C, 1, 40.0)
    pool.time.now += 1.0
    assert pool.stats().stalled_time == pytest.approx(40.0)  # one check-in is not a flow
    pool.checkout_started(A)
    pool.returned(B, 2)
    pool.checked_out(D, 2, 41.0)
    pool.time.now += 2.0
    assert pool.stats().stalled_time == pytest.approx(2.0)
    pool.returned(C, 1)
    assert pool.stats().stalled_time == 0.0


# The ends of pools


def test_connections_in_use_at_close_stay_until_their_check_in() -> None:
    pool = exhausted_pool()
    pool.closed()
    pool.checkout_failed(C, "connection_error")
    assert pool.counts() == (2, 2, 0, 0, 0)
    for actor, conn_id in ((A, 1), (B, 2)):
        pool.returned(actor, conn_id)
        pool.connection_closed(conn_id, "pool_closed")
    assert pool.counts() == (0, 0, 0, 0, 0)
    assert pool.stats().closed["pool_closed"] == 2


def test_a_server_that_comes_back_begins_its_ids_anew() -> None:
    pool = exhausted_pool()
    pool.closed()
    pool.checkout_failed(C, "connection_error")
    pool.created(2, 0)
    pool.ready()
    pool.open(1)
    pool.out(D, 1)  # the new connection 1, while A still has the old one
    pool.returned(A, 1)
    pool.connection_closed(1, "pool_closed")
    assert pool.counts() == (1, 1, 0, 0, 0)
    pool.returned(D, 1)
    assert pool.counts() == (1, 0, 1, 0, 0)
    pool.returned(B, 2)
    pool.connection_closed(2, "pool_closed")
    pool.connection_closed(1, "idle")
    stats = pool.stats()
    assert pool.counts() == (0, 0, 0, 0, 0)
    assert (stats.created, sum(stats.closed.values()), stats.use_time.count) == (3, 3, 3)


def test_a_waiter_of_the_old_pool_ends_once() -> None:
    pool = exhausted_pool()
    pool.closed()
    pool.created(2, 0)
    pool.checkout_failed(C, "connection_error")
    stats = pool.stats()
    assert (stats.waiting, sum(stats.checkouts.values())) == (0, 3)


def test_a_late_check_out_of_a_closed_pool_is_counted_but_not_held() -> None:
    pool = Pool()
    pool.checkout_started(A)
    pool.checked_out(A, 7, 0.1)
    assert pool.counts() == (0, 0, 0, 0, 0)
    pool.returned(A, 7)
    pool.connection_closed(7, "pool_closed")
    stats = pool.stats()
    assert (stats.checkouts["ok"], stats.use_time.count) == (1, 1)


def test_the_oldest_of_several_counts() -> None:
    pool = Pool(max_size=2)
    pool.open(1, 2)
    for actor, conn_id in ((A, 1), (B, 2)):
        pool.out(actor, conn_id)
        pool.time.now += 3.0
    for actor in (C, D):
        pool.checkout_started(actor)
        pool.time.now += 2.0
    stats = pool.stats()
    assert (stats.oldest_wait, stats.longest_checkout) == (4.0, 10.0)


def test_a_dropped_client_leaves_nothing_open() -> None:
    pool = exhausted_pool()
    pool.connection_created(A, 3)
    pool.abandoned()
    stats = pool.stats()
    assert pool.counts() == (0, 0, 0, 0, 0)
    assert (stats.phase, stats.closed["pool_closed"], stats.exhausted) == ("closed", 3, False)


def test_events_of_unknown_connections_change_no_count() -> None:
    pool = Pool()
    pool.connection_ready(9)
    pool.returned(A, 9)
    pool.checkout_failed(A, "timeout")
    assert pool.counts() == (0, 0, 0, 0, 0)


def test_a_clock_that_jumps_back_makes_no_negative_age() -> None:
    pool = exhausted_pool()
    pool.time.now -= 50.0
    stats = pool.stats()
    ages: list[float] = [stats.oldest_wait, stats.longest_checkout, stats.exhausted_time]
    assert all(age >= 0.0 for age in ages)
    pool.returned(A, 1)
    assert all(h.sum >= 0.0 for h in (pool.stats().use_time, pool.stats().wait_time))


@pytest.mark.parametrize("jump", [-1e9, -50.0, 1e9])
def test_a_clock_that_jumps_makes_no_time_run_backwards(jump: float) -> None:
    pool = exhausted_pool()
    pool.time.now += 10.0
    seen = [pool.stats().exhausted_time]
    for step in (jump, 1.0, 2.0, -jump, 5.0):
        pool.time.now += step
        pool.returned(A, 1)
        pool.out(A, 1)
        stats = pool.stats()
        seen.append(stats.exhausted_time)
        assert min(stats.oldest_wait, stats.longest_checkout, stats.use_time.sum) >= 0.0
    pool.checkout_failed(C, "timeout")
    seen.append(pool.stats().exhausted_time)
    assert seen == sorted(seen)
    assert not pool.stats().exhausted


def test_a_connection_whose_close_is_published_twice_is_closed_once() -> None:
    """An exhaust cursor closed early: Closed, CheckedIn, Closed."""
    pool = Pool()
    pool.open(1)
    pool.out(A, 1)
    pool.connection_closed(1, "error")
    pool.returned(A, 1)
    pool.connection_closed(1, "error")
    stats = pool.stats()
    assert (stats.created, stats.closed["error"], stats.size) == (1, 1, 0)
    assert stats.use_time.count == 1


def test_heartbeats_say_whether_the_server_is_there() -> None:
    pool = Pool()
    assert pool.stats().up is None
    pool.heartbeat(up=True, rtt=0.002)
    pool.heartbeat(up=True)
    assert (pool.stats().up, pool.stats().rtt) == (True, 0.002)
    pool.time.now += 5.0
    pool.heartbeat(up=False, reason="AutoReconnect")
    pool.time.now += 3.0
    pool.heartbeat(up=False, reason="NetworkTimeout")
    stats = pool.stats()
    assert (stats.up, stats.rtt, stats.down_reason) == (False, None, "NetworkTimeout")
    assert (stats.since_up_changed, stats.outage) == (3.0, 3.0)
    pool.heartbeat(up=True, rtt=0.003)
    pool.time.now += 2.0
    assert (pool.stats().outage, pool.stats().rtt) == (3.0, 0.003)
    pool.heartbeat(up=False, reason="AutoReconnect")  # so soon: it is the same outage
    assert pool.stats().outage == 5.0
    pool.heartbeat(up=True)
    pool.time.now += 60.0
    pool.heartbeat(up=False, reason="AutoReconnect")
    pool.time.now += 1.0
    assert pool.stats().outage == 1.0


def test_a_server_that_never_answered_is_down_from_the_beginning() -> None:
    pool = Pool()
    pool.time.now += 10.0
    pool.heartbeat(up=False, reason="NetworkTimeout")
    assert (pool.stats().outage, pool.stats().since_up_changed) == (10.0, 10.0)


def test_exhausted_time_never_falls_whoever_reads_meanwhile() -> None:
    """The clock is read under the lock, not before the lock was free."""
    pool = exhausted_pool()
    pool.time.now += 10.0
    seen: list[float] = []

    def read_meanwhile(actors: Iterable[Actor]) -> set[Actor]:
        pool._still_waiting = pool._who_waits
        pool.time.now += 0.005
        seen.append(pool.stats().exhausted_time)
        return set(actors)

    pool.checkout_started(D)
    pool.time.now += 1.0
    pool._still_waiting = read_meanwhile
    pool.checkout_failed(C, "timeout")
    pool.checkout_failed(D, "timeout")
    seen.append(pool.stats().exhausted_time)
    assert len(seen) == 2
    assert seen == sorted(seen)


def leaving(pool: Pool) -> None:
    """Let actors finish without an event, as tasks may."""
    pool._may_hold = pool._who_waits
    pool.heartbeat(up=True)


def test_a_long_wait_proves_that_finished_tasks_left_cursors() -> None:
    pool = Pool(max_size=2)
    leaving(pool)
    pool.open(1, 2)
    pool.out(A, 1)
    pool.out(B, 2)
    pool.gone = {A, B}
    pool.time.now += 1.0
    assert pool.counts() == (2, 0, 2, 0, 0)
    pool.checkout_started(C)
    pool.time.now += 0.2
    assert pool.counts() == (2, 0, 2, 0, 1)  # it may be served any moment
    pool.time.now += 0.1
    assert pool.counts() == (2, 2, 0, 0, 1)
    stats = pool.stats()
    assert stats.exhausted
    assert stats.longest_checkout == pytest.approx(1.3)
    assert (stats.created, stats.use_time.count) == (2, 2)
    pool.returned(D, 1)  # another actor closes the cursor
    pool.checked_out(C, 1, 0.3)
    pool.returned(C, 1)
    assert pool.counts() == (2, 1, 1, 0, 0)
    assert pool.stats().use_time.count == 3


def one_held() -> Pool:
    """Return a pool of one, whose connection a task has that may finish without an event."""
    pool = Pool(max_size=1)
    leaving(pool)
    pool.open(1)
    pool.out(A, 1)
    return pool


def one_finished() -> Pool:
    """Return a pool of two, one of which a task had that finished without an event."""
    pool = Pool(max_size=2)
    leaving(pool)
    pool.open(1, 2)
    pool.out(A, 1)
    pool.gone = {A}
    pool.time.now += 1.0
    assert pool.counts() == (2, 0, 2, 0, 0)
    return pool


def test_a_long_wait_proves_left_cursors_while_others_are_served() -> None:
    pool = one_finished()
    pool.checkout_started(C)
    for _ in range(6):  # each checked-in connection goes to another caller
        pool.out(B, 2)
        pool.time.now += 0.05
        pool.returned(B, 2)
    pool.out(B, 2)
    pool.time.now += 0.05
    assert pool.counts() == (2, 2, 0, 0, 1)
    assert pool.stats().exhausted


def test_a_wait_behind_a_full_pool_proves_nothing_about_cursors() -> None:
    pool = one_finished()  # idle
    pool.checkout_started(C)
    for _ in range(6):
        pool.connection_created(B, 3)  # in place of one that was closed without an event
        pool.connection_ready(3)
        pool.out(B, 3)
        pool.out(D, 2)
        pool.time.now += 0.1
        pool.returned(B, 3)
        pool.connection_closed(3, "error")
        pool.returned(D, 2)
        assert pool.stats().in_use == 0


def test_a_timeout_proves_that_finished_tasks_left_cursors() -> None:
    pool = one_held()
    pool.gone = {A}
    pool.time.now += 1.0
    assert pool.stats().in_use == 0
    pool.checkout_started(C)
    pool.time.now += 0.5
    pool.checkout_failed(C, "timeout")
    assert pool.counts() == (1, 1, 0, 0, 0)


def test_a_cursor_that_nobody_left_is_noticed() -> None:
    """A connection was closed without an event, and a caller waits until there is another."""
    pool = one_held()
    pool.gone = {A}
    pool.checkout_started(C)
    pool.time.now += 1.0
    assert pool.stats().in_use == 1
    pool.connection_created(C, 2)
    pool.connection_ready(2)
    pool.checked_out(C, 2, 1.0)
    assert pool.counts() == (1, 1, 0, 0, 0)
    assert pool.stats().closed["error"] == 1
    pool.returned(C, 2)
    assert pool.counts() == (1, 0, 1, 0, 0)


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("closed", [False, True])
def test_a_check_in_proves_that_a_connection_was_not_closed(read: bool, closed: bool) -> None:
    """A finished task left its connection to a cursor, and the only waiter opened another."""
    pool = Pool(max_size=5)
    leaving(pool)
    pool.open(1)
    pool.out(A, 1)
    pool.gone = {A}
    pool.time.now += 1.0
    assert pool.counts() == (1, 0, 1, 0, 0)
    pool.checkout_started(B)
    pool.connection_created(B, 2)
    pool.connection_ready(2)
    pool.checked_out(B, 2, 0.0)
    if read:
        assert pool.counts() == (1, 1, 0, 0, 0)
    pool.returned(C, 1)
    if closed:
        pool.connection_closed(1, "error")
    stats = pool.stats()
    assert pool.counts() == (2 - closed, 1, 1 - closed, 0, 0)
    # A counter that was read never falls, so the connection counts as another one then.
    assert (stats.created, stats.closed["error"]) == (2 + read, closed + read)
    pool.returned(B, 2)
    pool.out(C, 2 if closed else 1)
    assert pool.stats().created == 2 + read


def test_a_connection_that_was_opened_in_vain_proves_nothing_about_cursors() -> None:
    """While it was being opened the pool was full, so the other caller waited for that alone."""
    pool = one_held()
    pool.checkout_started(B)
    pool.checkout_started(C)
    pool.gone = {A}
    pool.time.now += 1.0
    assert pool.stats().in_use == 1  # B and C wait, so A seems to have left a cursor
    pool.connection_created(B, 2)  # no: A's connection is closed
    pool.time.now += 1.0
    pool.connection_ready(2)
    pool.checkout_failed(B, "connection_error")
    assert pool.stats().in_use == 0
    assert pool.stats().created == 2


def test_a_stale_connection_of_a_finished_task_is_not_counted_twice() -> None:
    """PyMongo closed it at a check-in without an event, and the waiter opens another at once."""
    pool = one_held()
    pool.cleared(pauses=True)
    pool.ready()
    pool.checkout_started(B)
    pool.gone = {A}
    pool.time.now += 1.0
    assert pool.counts() == (0, 0, 0, 0, 1)
    pool.connection_created(B, 2)
    pool.connection_ready(2)
    pool.checked_out(B, 2, 1.0)
    assert pool.counts() == (1, 1, 0, 0, 0)
    assert pool.stats().created == 2


def test_a_new_pool_has_no_memory_of_the_old_ones_stall() -> None:
    pool = exhausted_pool()
    pool.time.now += 5.0
    pool.checkout_failed(C, "timeout")
    pool.closed()
    pool.time.now += 1_000.0
    pool.created(1, 0)
    pool.ready()
    pool.open(1)
    pool.out(D, 1)
    pool.checkout_started(C)
    pool.time.now += 0.1
    assert pool.stats().stalled_time == pytest.approx(0.1)


def test_a_connection_held_through_two_new_pools_is_closed_once() -> None:
    pool = exhausted_pool()
    for _ in range(2):
        pool.closed()
        pool.created(2, 0)
    pool.ready()
    for actor, conn_id in ((A, 1), (B, 2)):
        pool.returned(actor, conn_id)
        pool.connection_closed(conn_id, "pool_closed")
    stats = pool.stats()
    assert (stats.created, stats.closed["pool_closed"], stats.use_time.count) == (2, 2, 2)


def test_a_cursor_of_a_pool_that_no_longer_exists_closes_no_connection_of_the_next() -> None:
    """A server came back, or a child was forked; then PyMongo closes the connection as stale."""
    pool = exhausted_pool()
    pool.closed()
    pool.created(2, 0)
    pool.ready()
    pool.open(1)
    pool.connection_closed(1, "stale")
    stats = pool.stats()
    assert pool.counts() == (1, 0, 1, 0, 1)
    assert (stats.created, stats.closed["stale"], stats.use_time.count) == (3, 1, 1)
    pool.connection_closed(1, "stale")  # no pool that we know had a third one of this id
    assert pool.counts() == (1, 0, 1, 0, 1)
    assert pool.stats().closed["stale"] == 1


@pytest.mark.parametrize("cleared_while_it_opens", [False, True])
def test_a_connection_older_than_a_clear_is_closed_as_stale(cleared_while_it_opens: bool) -> None:
    pool = Pool()
    pool.connection_created(A, 1)
    if cleared_while_it_opens:
        pool.cleared(pauses=True)
    pool.connection_ready(1)
    if not cleared_while_it_opens:
        pool.cleared(pauses=True)
    pool.connection_closed(1, "stale")
    assert pool.counts() == (0, 0, 0, 0, 0)
    assert pool.stats().closed["stale"] == 1


@pytest.mark.parametrize("by_a_fork", [False, True])
def test_a_clear_that_begins_no_new_generation_may_close_any_connection(by_a_fork: bool) -> None:
    """PyMongo clears one service behind a load balancer, or drops connections after a fork."""
    pool = Pool()
    pool.open(1)
    pool.cleared(pauses=by_a_fork, is_failure=not by_a_fork)
    pool.connection_closed(1, "stale")
    stats = pool.stats()
    assert (stats.phase, stats.cleared) == ("ready", int(not by_a_fork))
    assert (stats.size, stats.closed["stale"]) == (0, 1)


def test_addresses_are_written_as_people_write_them() -> None:
    def address(host: str, port: int | None) -> str:
        return PoolState((host, port)).stats().address

    assert address("h", 27017) == "h:27017"
    assert address("::1", 27017) == "[::1]:27017"
    assert address("/tmp/mongodb.sock", None) == "/tmp/mongodb.sock"


def test_a_copy_stays_as_it_was() -> None:
    pool = Pool()
    before: PoolStats = pool.stats()
    pool.open(1)
    pool.out(A, 1)
    assert (before.size, before.checkouts["ok"], before.wait_time.count) == (0, 0, 0)


# Commands

FIND = (("h", 1), "shop", "orders", "find", "", "")


def test_commands_are_counted_by_what_they_are() -> None:
    commands = CommandState(500)
    commands.started(1, FIND)
    commands.ended(1, 0.2)
    commands.started(2, FIND)
    commands.ended(2, 0.1, "11000", "11000")
    ok, failed = commands.stats()
    assert (ok.operation, ok.collection, ok.duration.count, ok.error_type) == (
        "find",
        "orders",
        1,
        "",
    )
    assert (failed.error_type, failed.status_code, failed.duration.sum) == ("11000", "11000", 0.1)


def test_an_end_without_a_start_counts_nothing() -> None:
    commands = CommandState(500)
    commands.ended(1, 0.2)
    commands.ended(2, 0.2, "1", "1")
    assert commands.stats() == ()


def test_series_beyond_the_limit_fold_into_one() -> None:
    commands = CommandState(3)
    for number in range(10):
        commands.started(number, (("h", 1), "shop", f"c{number}", "find", "", ""))
        commands.ended(number, 0.1)
    commands.started(99, FIND)
    commands.ended(99, 0.1, "1", "1")
    series = {one.operation: one for one in commands.stats() if not one.error_type}
    assert len(commands.stats()) == 5
    assert (series["_OTHER"].duration.count, series["_OTHER"].collection) == (7, "")


def test_commands_cancelled_in_flight_do_not_pile_up() -> None:
    commands = CommandState(3)
    for number in range(50_000):
        commands.started(number, FIND)
    assert len(commands._inflight) <= 10_000
    commands.ended(49_999, 0.1)
    assert commands.stats()[0].duration.count == 1


def test_connections_that_no_event_explains_do_not_pile_up() -> None:
    pool = Pool(max_size=None)
    for number in range(25_000):
        pool.out(A, number)
        pool.returned(A, number)
    for _ in range(100):
        pool.out(A, 7)
        pool.returned(A, 7)
    departed = pool._connections._carried_over
    assert len(departed) <= 10_000
    assert max(map(len, departed.values())) == 1
    assert pool.counts() == (0, 0, 0, 0, 0)


def test_owner_of_an_abandoned_pool_keeps_its_seconds() -> None:
    """The client was dropped while a connection was in use; no counter falls."""
    now = 0.0
    pool = PoolState(("db", 27017), clock=lambda: now)
    pool.created(2, 0)
    pool.ready()
    pool.connection_created("a", 1)
    pool.connection_ready(1)
    pool.checkout_started("a", Origin("page", None))
    pool.checked_out("a", 1, 0.0)
    now = 2.5
    (before,) = pool.stats().owners
    pool.abandoned()
    (after,) = pool.stats().owners
    assert (before.seconds, before.in_use) == (2.5, 1)
    assert (after.seconds, after.in_use, after.checkouts) == (2.5, 0, 1)


def test_connection_that_was_opening_when_its_pool_was_closed_is_stale() -> None:
    """PyMongo fills the pool up to minPoolSize meanwhile, and publishes no clear."""
    pool = PoolState(("db", 27017))
    pool.created(2, 1)
    pool.ready()
    pool.connection_created("filler", 1)
    pool.closed()
    pool.connection_ready(1)
    pool.connection_closed(1, "stale")
    stats = pool.stats()
    assert (stats.size, stats.closed["stale"], stats.closed["pool_closed"]) == (0, 1, 0)
