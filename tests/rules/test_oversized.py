import pytest

from pool_telemetry.diagnosis.evidence import SpareEvidence
from tests.rules.evidence import SLOWER, a_period, evidence, found, the
from tests.test_health import a_pool

SPARE = SpareEvidence(used=1.24, needed=3)


@pytest.mark.parametrize(
    ("min_size", "cause", "advice", "change"),
    [
        (
            30,
            "min_pool_size",
            "Lower minPoolSize from 30 to 3, unless a peak is expected.",
            {"minPoolSize": 3},
        ),
        (
            0,
            "past_peak",
            "Set maxIdleTimeMS so that connections left over from a peak are closed.",
            {},
        ),
    ],
)
def test_connections_that_are_not_needed(
    min_size: int, cause: str, advice: str, change: dict[str, int]
) -> None:
    because = "30 connections are open, and 1.2 were in use on average in 3 s: 3 would be enough."
    given = evidence(period=a_period(a_pool(size=30, min_size=min_size)), spare=SPARE)
    assert found(given) == [(f"oversized.{cause}", "notice", because, advice, change)]


def test_few_spare_connections_are_not_worth_a_notice() -> None:
    assert found(evidence(period=a_period(a_pool(size=12)), spare=SPARE)) == []


def test_a_pool_with_a_problem_is_not_oversized() -> None:
    waiting = a_period(a_pool(size=30, waiting=1))
    assert found(evidence(period=waiting, spare=SPARE)) == []
    slow = the("commands", slow_command=SLOWER)
    given = evidence(period=a_period(a_pool(size=30)), spare=SPARE, commands=slow)
    assert [one[0] for one in found(given)] == ["slow_operations.slower_than_usual"]
