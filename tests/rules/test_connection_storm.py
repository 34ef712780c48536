from pool_telemetry.diagnosis.evidence import Evidence, IdleChurnEvidence
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
