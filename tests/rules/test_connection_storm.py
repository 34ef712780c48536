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


def test_connections_that_are_hardly_used() -> None:
    window = an_interval(
        created=1_180,
        closed=closed(idle=1_170),
        checkouts=outcomes(ok=2_300),
        use_time=durations(0.005, 2_300),
    )
    churn = the("churn", opened=1_180, idle_churn=True)
    because = (
        "1,180 connections were opened for 2,300 checkouts in 3 s, and 1,170 were closed because "
        "they were idle."
    )
    advice = (
        "Raise maxIdleTimeMS above the pauses of your traffic, or keep connections open "
        "(minPoolSize {})."
    )
    for budget, least in ((None, 4), (3, 3)):
        given = evidence(period=a_period(calm=window), churn=churn, connection_budget=budget)
        assert found(given) == [
            (
                "connection_storm.idle_churn",
                "warning",
                because,
                advice.format(least),
                {"minPoolSize": least},
            )
        ]
