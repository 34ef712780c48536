import pytest

from pool_telemetry.diagnosis.gathering import gather
from pool_telemetry.stats import PoolStats
from tests.rules.evidence import EXHAUSTED, a_period, an_interval, evidence, exhausted, found, the
from tests.test_health import a_pool

ADVICE = (
    "Let a caller hold one connection at a time: read a cursor to its end, or close it, before the "
    "next operation. Or give the inner operations a client of their own."
)
LOCKED = a_pool(**EXHAUSTED, self_blocked=10, self_blocked_by="worker-1")


def test_callers_that_wait_for_each_other_are_named() -> None:
    because = (
        "All 10 connections are in use by callers that wait for another connection themselves. One "
        "of them is worker-1. None will be returned before a caller gives up; callers waiting: 4."
    )
    leak = the("leak", held_idle=10, recent=True)
    given = exhausted({"held_idle": 10}, leak=leak, deadlock=LOCKED)
    # The connections are not leaked, and the pool is not too small.
    assert found(given) == [("deadlock.self_blocked", "critical", because, ADVICE, {})]


def test_a_deadlock_without_a_name() -> None:
    ((_, _, because, *_),) = found(evidence(deadlock=a_pool(**EXHAUSTED, self_blocked=10)))
    assert "themselves. None will" in because


@pytest.mark.parametrize(
    ("pool", "is_deadlock"),
    [
        (LOCKED, True),
        (a_pool(**EXHAUSTED, self_blocked=9), False),  # one is held by a caller that returns it
        (a_pool(**(EXHAUSTED | {"max_size": None}), self_blocked=10), False),
    ],
)
def test_a_pool_is_deadlocked_if_every_holder_waits(pool: PoolStats, is_deadlock: bool) -> None:
    period = a_period(pool, contention=an_interval(pool=pool))
    assert (gather(period).deadlock == pool) is is_deadlock
