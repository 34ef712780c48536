from typing import Any

import pytest

from pool_telemetry.stats import OwnerStats
from tests.rules.evidence import (
    EXHAUSTED,
    a_period,
    an_interval,
    evidence,
    exhausted,
    found,
    outcomes,
    the,
)
from tests.test_health import a_pool

ADVICE = (
    "Close cursors and end transactions where they are used (`with`). /pool/holders, "
    "get_pool_stats(detail=True) and the log of long checkouts name the holders."
)


@pytest.mark.parametrize(
    ("held", "pool", "severity", "because"),
    [
        (
            3,
            {"in_use": 4, "held_idle": 3, "longest_idle": 14.04},
            "warning",
            "3 of 4 connections in use run no command, for up to 14.0 s. maxPoolSize is 10; "
            "callers waiting: 0.",
        ),
        (
            5,
            {
                "in_use": 6,
                "held_idle": 5,
                "longest_idle": 5.0,
                "owners": (OwnerStats("checkout", 1, 1.0, 5), OwnerStats("", 1, 1.0, 1)),
            },
            "critical",
            "5 of 6 connections in use run no command, for up to 5.0 s. maxPoolSize is 10; "
            "callers waiting: 0. In use by owner: checkout 5, no owner 1.",
        ),
        (
            0,
            {"held_idle": None, "longest_checkout": 120.0, "max_size": None},
            "warning",
            "A connection has been checked out for 120 s. maxPoolSize is unlimited; "
            "callers waiting: 0.",
        ),
    ],
)
def test_a_leak_is_described_with_its_holders(
    held: int, pool: dict[str, Any], severity: str, because: str
) -> None:
    given = evidence(period=a_period(a_pool(**pool)), leak=the("leak", held_idle=held, recent=True))
    cause = "leak.held_idle" if held else "leak.old_checkout"
    assert found(given) == [(cause, severity, because, ADVICE, {})]


def test_a_connection_that_is_missed_leaks_from_its_first_idle_second() -> None:
    leak = the("leak", held_idle=1, recent=True)
    pool = {"held_idle": 1, "longest_idle": 1.5}
    assert found(evidence(period=a_period(a_pool(**pool)), leak=leak)) == []
    because = (
        "1 of 10 connections in use run no command, for up to 1.5 s. maxPoolSize is 10; "
        "callers waiting: 4."
    )
    assert found(exhausted(pool, leak=leak)) == [("leak.held_idle", "warning", because, ADVICE, {})]


def test_a_leak_for_which_callers_time_out_is_critical() -> None:
    pool = a_pool(**EXHAUSTED, held_idle=1, longest_idle=6.0)
    contention = an_interval(pool=pool, checkouts=outcomes(ok=9, timeout=1))
    leak = the("leak", held_idle=1, recent=True)
    ((_, severity, *_),) = found(evidence(period=a_period(pool, contention=contention), leak=leak))
    assert severity == "critical"
