import dataclasses

import pytest

from pool_telemetry.diagnosis.intervals import CommandKey, intervals
from pool_telemetry.stats import OperationStats
from tests.rules.evidence import (
    EXHAUSTED,
    a_period,
    an_interval,
    durations,
    evidence,
    exhausted,
    found,
    outcomes,
    sizing,
    the,
)
from tests.test_health import a_client, a_pool


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


def test_attempts_that_an_overloaded_server_refuses() -> None:
    refused = {CommandKey("shop", "orders", "find", "overloaded"): durations(0.001, 36)}
    failing = an_interval(commands=refused)
    assert failing.failures() == (36, 36)
    given = evidence(period=a_period(failing=failing), churn=the("churn", failed=36, attempts=36))
    because = (
        "36 of 36 attempts in 3 s failed. The server refused 36 of them because it is overloaded."
    )
    advice = (
        "Send fewer requests: let callers retry after growing pauses, and not forever. A smaller "
        "maxPoolSize bounds what all processes send at once. Then find what overloads the server."
    )
    assert found(given) == [("retry_storm.overload", "critical", because, advice, {})]


@pytest.mark.parametrize(
    ("error_type", "overloaded"),
    [("50", True), ("462", True), ("462", False)],  # metrics have a code, and no labels
)
def test_errors_of_an_overloaded_server_are_retried_whatever_their_code(
    error_type: str, overloaded: bool
) -> None:
    refused = OperationStats(
        host="db",
        port=27017,
        namespace="shop",
        collection="orders",
        operation="find",
        error_type=error_type,
        status_code=error_type,
        duration=durations(0.001, 36),
        overloaded=overloaded,
    )
    sample = dataclasses.replace(a_client(a_pool()), operations=(refused,))
    (interval,) = intervals([sample], ("db", 27017))
    assert (interval.failures(), interval.overloads()) == ((36, 36), 36)


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
