import dataclasses

import pytest

from pool_telemetry.diagnosis.evidence import Evidence, IdleChurnEvidence
from pool_telemetry.diagnosis.gathering import gather
from pool_telemetry.diagnosis.intervals import Interval, merge
from tests.rules.evidence import (
    a_period,
    an_interval,
    closed,
    durations,
    evidence,
    found,
    outcomes,
    the,
)
from tests.test_health import a_pool


def test_callers_that_wait_for_new_connections() -> None:
    pool = a_pool(max_size=50, size=14, in_use=12, opening=2, waiting=28)
    contention = an_interval(create_time=durations(0.4, 38), use_time=durations(0.1, 90))
    given = evidence(
        period=a_period(pool, contention=contention),
        churn=the("churn", opened=40, slow_opening=True),
        queue=the("queue", exhausted=True),
    )
    because = (
        "Callers wait for new connections: 40 in 3 s, 0.40 s each. 12 are in use (maxPoolSize 50); "
        "callers waiting: 28."
    )
    advice = (
        "Keep connections open (minPoolSize 40) and open more at the same time (maxConnecting, 2 "
        "by default). Find what slows the handshake: TLS, DNS or authentication."
    )
    # The pool is not undersized: the storm explains the queue.
    assert found(given) == [
        ("connection_storm.slow_opening", "warning", because, advice, {"minPoolSize": 40})
    ]


def test_callers_whose_deadline_ends_before_a_connection_is_open() -> None:
    pool = a_pool(max_size=10, size=3, in_use=1, opening=2, waiting=8)
    checkouts = outcomes(ok=60, timeout=36, connection_error=36)
    contention = an_interval(pool=pool, checkouts=checkouts, created=38)
    given = evidence(
        period=a_period(pool, contention=contention, failing=contention),
        churn=the("churn", opened=2, unopened=36, slow_opening=True, failed=36, attempts=96),
    )
    because = (
        "Callers wait for new connections: 2 of 38 that were begun in 3 s. 1 are in use "
        "(maxPoolSize 10); callers waiting: 8. 36 checkouts timed out."
    )
    # These attempts failed because no connection was open, and that is said already.
    ((cause, severity, told, _, change),) = found(given)
    assert (cause, severity, told) == ("connection_storm.slow_opening", "critical", because)
    assert change == {"minPoolSize": 9}


def idle_churn(rate: float, pause: float, *, min_size: int = 0) -> Evidence:
    """Return the evidence of a pool that opened a connection for each of so many requests."""
    many = round(rate * 10.0)
    pool = a_pool(min_size=min_size)
    during = an_interval(
        pool=pool,
        seconds=10.0,
        created=many,
        closed=closed(idle=many),
        checkouts=outcomes(ok=many),
        use_time=durations(0.005, many),
    )
    churn = IdleChurnEvidence(during=during, pause_seconds=pause)
    return evidence(period=a_period(pool, calm=during), idle_churn=churn)


def test_connections_that_are_closed_before_they_are_used_again() -> None:
    because = (
        "120 connections were opened for 120 checkouts in 10 s, and 120 were closed because they "
        "were idle."
    )
    advice = (
        "Raise maxIdleTimeMS to 60000 or drop it, so that connections outlast the pauses of your "
        "traffic (83 ms). minPoolSize alone does not help."
    )
    change = {"maxIdleTimeMS": 60_000}
    assert found(idle_churn(12.0, 0.083)) == [
        ("connection_storm.idle_churn", "warning", because, advice, change)
    ]


def test_a_handshake_for_each_request_is_a_notice_if_requests_are_few() -> None:
    ((_, severity, _, advice, change),) = found(idle_churn(1.0, 45.2))
    assert severity == "notice"
    assert "(45.2 s)" in advice
    assert change == {"maxIdleTimeMS": 91_000}


def test_connections_of_min_pool_size_are_closed_too() -> None:
    ((_, _, because, *_),) = found(idle_churn(12.0, 0.1, min_size=5))
    assert because.endswith(" maxIdleTimeMS closes the 5 of minPoolSize, too.")


def seconds_of(checkouts: int, opened: int) -> Interval:
    """Return three seconds in which some checkouts opened a connection that then was idle."""
    return an_interval(created=opened, closed=closed(idle=opened), checkouts=outcomes(ok=checkouts))


@pytest.mark.parametrize(
    ("recent", "pause"),
    [
        ([(20, 20), (0, 0), (0, 0), (20, 20)], 6.0),
        ([(3, 3), (3, 3), (3, 3), (3, 3)], 1.0),  # one after the other, and none between
        ([(60, 20), (60, 20)], 0.05),
    ],
)
def test_the_longest_pause_is_that_of_the_traffic(
    recent: list[tuple[int, int]], pause: float
) -> None:
    every = tuple(seconds_of(*one) for one in recent)
    period = dataclasses.replace(a_period(calm=every[-1]), recent=every)
    churn = gather(period).idle_churn
    assert churn is not None
    assert churn.pause_seconds == pytest.approx(pause)


@pytest.mark.parametrize(
    "recent",
    [
        [(40, 40), (40, 40), (20, 0)],  # it is over
        [(40, 4), (40, 4)],  # connections are used ten times
        [(3, 3), (3, 3)],  # too few to tell
    ],
)
def test_connections_that_are_used_again_are_no_churn(recent: list[tuple[int, int]]) -> None:
    every = tuple(seconds_of(*one) for one in recent)
    period = dataclasses.replace(a_period(calm=merge(every)), recent=every)
    assert gather(period).idle_churn is None


@pytest.mark.parametrize(("intervals", "peak"), [(1, 28), (3, 7)])
def test_a_burst_between_two_samples_counts_by_its_waits(intervals: int, peak: int) -> None:
    pool = a_pool(in_use=3, waiting=4)
    every = tuple(an_interval(pool=pool, wait_time=durations(0.4, 28)) for _ in range(intervals))
    period = dataclasses.replace(a_period(pool, contention=merge(every)), contended=every)
    assert gather(period).churn.peak_demand == peak
