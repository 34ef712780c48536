from tests.rules.evidence import (
    EXHAUSTED,
    a_period,
    an_interval,
    evidence,
    exhausted,
    found,
    outcomes,
    sizing,
    the,
)
from tests.test_health import a_pool


def test_attempts_that_fail_with_errors() -> None:
    because = (
        "1,120 of 3,000 attempts in 3 s failed with errors that are retried. The pool was cleared "
        "4 times and opened 16 connections."
    )
    advice = (
        "Find out why the server or the network fails them. Until then, retry after growing "
        "pauses, and not forever."
    )
    period = a_period(failing=an_interval(cleared=4, created=16))
    given = evidence(period=period, churn=the("churn", failed=1_120, attempts=3_000))
    assert found(given) == [("retry_storm.errors", "critical", because, advice, {})]
    few = evidence(period=period, churn=the("churn", failed=9, attempts=9))
    assert found(few) == []


def test_checkouts_that_time_out_and_are_retried() -> None:
    pool = a_pool(**EXHAUSTED)
    contention = an_interval(pool=pool, checkouts=outcomes(ok=100, timeout=200), retries=190)
    period = a_period(pool, contention=contention)
    because = (
        "200 of 300 checkouts timed out in 3 s. 190 were retries by callers that had just timed "
        "out."
    )
    advice = "Let callers wait before they retry, longer each time, and give up in the end."
    queue = the("queue", exhausted=True, retry_storm=True)
    storm = exhausted(period=period, queue=queue, sizing=sizing(8))
    assert found(storm) == [("retry_storm.timeouts", "critical", because, advice, {})]
    # A pool that is too small explains the timeouts.
    small = exhausted(period=period, queue=queue, sizing=sizing(13))
    ids = {one[0]: one[1] for one in found(small)}
    assert ids == {"retry_storm.timeouts": "warning", "undersized.random_arrivals": "critical"}
