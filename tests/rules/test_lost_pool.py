import pytest

from pool_telemetry.diagnosis.evidence import ServiceEvidence
from pool_telemetry.diagnosis.gathering import gather
from pool_telemetry.stats import PoolStats
from tests.rules.evidence import a_period, an_interval, exhausted, found
from tests.test_health import a_pool

UNSERVED = a_pool(waiting=8, oldest_wait=1.04, unserved_time=9.04, in_use=2, size=2)
LOST = ServiceEvidence(unserved_seconds=9.04, lost=True)


def test_lost_slots_are_named_and_no_larger_pool_is_advised() -> None:
    because = (
        "No caller was served for 9.0 s, although 2 of 10 connections are in use and none is being "
        "opened: all other slots are taken, and nobody holds them. Callers waiting: 4."
    )
    advice = (
        "Restart the process: PyMongo has lost these slots, and a larger pool loses them, too. "
        "Then update PyMongo, and use Python 3.12 or later with asyncio."
    )
    given = exhausted({"in_use": 2}, service=LOST)
    assert found(given) == [("lost_pool.lost", "critical", because, advice, {})]


@pytest.mark.parametrize(
    ("pool", "created", "is_lost"),
    [
        (UNSERVED, 0, True),
        (UNSERVED, 1, False),  # it opened one
        (a_pool(waiting=8, unserved_time=2.0), 0, False),
        (a_pool(waiting=8, unserved_time=9.0, opening=1, size=1), 0, False),
        (a_pool(waiting=8, unserved_time=9.0, in_use=10, size=10), 0, False),
        (a_pool(waiting=8, unserved_time=9.0, phase="paused"), 0, False),
    ],
)
def test_a_pool_is_lost_if_it_may_open_and_does_not(
    pool: PoolStats, created: int, is_lost: bool
) -> None:
    period = a_period(pool, calm=an_interval(pool=pool, created=created))
    assert gather(period).service.lost is is_lost
