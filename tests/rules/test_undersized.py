import dataclasses
from typing import Any

import pytest

from tests.rules.evidence import (
    EXHAUSTED,
    SLOW,
    SLOWER,
    a_period,
    an_interval,
    exhausted,
    found,
    outcomes,
    sizing,
    the,
)
from tests.test_health import a_pool

DRY = "Exhausted for 4.0 s (2 episodes, no timeouts)."
NEED = "2,098 requests/s at 1.8 ms each keep 3.8 of 10 connections busy."


@pytest.mark.parametrize(
    ("queue", "required", "budget", "cause", "callers", "advice", "size"),
    [
        (
            {},
            13,
            None,
            "random_arrivals",
            "Up to 8 callers queued.",
            "Raise maxPoolSize from 10 to 13, or shorten what holds a connection.",
            13,
        ),
        (
            {"closed_workload": True},
            18,
            None,
            "closed_workload",
            "Up to 8 callers queued; each returns as soon as it is served.",
            "Raise maxPoolSize from 10 to 18, or shorten what holds a connection. 11 may be enough "
            "if callers pause between their operations.",
            18,
        ),
        (
            {"bursty_arrivals": True},
            18,
            None,
            "bursty_arrivals",
            "Up to 8 callers queued; they arrived together.",
            "Raise maxPoolSize from 10 to 18, or spread the callers over time.",
            18,
        ),
        (
            {"closed_workload": True},
            18,
            12,
            "closed_workload",
            "Up to 8 callers queued; each returns as soon as it is served.",
            "Raise maxPoolSize from 10 to 12, or shorten what holds a connection. The server has "
            "no more for this process; 18 would be needed.",
            12,
        ),
        (
            {},
            18,
            10,
            "random_arrivals",
            "Up to 8 callers queued.",
            "Shorten what holds a connection: 18 would be needed, but the server has no more for "
            "this process.",
            None,
        ),
        (
            {},
            7,
            None,
            "enough_on_average",
            "Up to 8 callers queued.",
            "10 connections are enough for this load on average. The log of the exhaustion and "
            "/pool/holders show which callers held them.",
            None,
        ),
    ],
)
def test_a_pool_that_is_too_small(
    queue: dict[str, bool],
    required: int,
    budget: int | None,
    cause: str,
    callers: str,
    advice: str,
    size: int | None,
) -> None:
    given = exhausted(
        queue=the("queue", exhausted=True, **queue),
        sizing=sizing(required),
        connection_budget=budget,
    )
    change = {"maxPoolSize": size} if size else {}
    because = f"{DRY} {NEED} {callers}"
    assert found(given) == [(f"undersized.{cause}", "warning", because, advice, change)]


def test_a_load_that_is_above_the_pool() -> None:
    given = exhausted(sizing=sizing(20, rate=2.5, use=6.0))
    because = (
        f"{DRY} 2.5 requests/s at 6,000 ms each need 15.0 connections; maxPoolSize is 10. "
        "Up to 8 callers queued."
    )
    ((_, _, found_because, *_),) = found(given)
    assert found_because == because


def test_a_load_that_is_unknown() -> None:
    pool = {"exhaustions": 1, "peak_waiting": 1, "checkouts": outcomes(timeout=1, cancelled=3)}
    assert found(exhausted(pool)) == [
        (
            "undersized.unknown_load",
            "warning",
            "Exhausted for 4.0 s (1 episode, 1 timeout, 3 callers gave up). Up to 1 caller queued.",
            "Raise maxPoolSize above 10, or shorten what holds a connection.",
            {},
        )
    ]


def test_cursors_that_hold_the_pool() -> None:
    given = exhausted(
        {"held_by_cursors": 9},
        queue=the("queue", exhausted=True, held_by_cursors=True),
        sizing=sizing(13),
    )
    assert found(given) == [
        (
            "undersized.held_by_cursors",
            "warning",
            f"{DRY} {NEED} Up to 8 callers queued. Cursors that are being read hold 9 of 10 "
            "connections.",
            "Read exhaust cursors to their end at once, and give cursors that wait for news a "
            "client of their own. Or raise maxPoolSize from 10 by the number of cursors that are "
            "read at the same time.",
            {},
        )
    ]


def test_callers_that_time_out_make_it_critical() -> None:
    pool = a_pool(**EXHAUSTED)
    contention = an_interval(pool=pool, checkouts=outcomes(ok=100, timeout=3))
    given = exhausted(period=a_period(pool, contention=contention), sizing=sizing(13))
    ((_, severity, *_),) = found(given)
    assert severity == "critical"


@pytest.mark.parametrize(
    "cause",
    [
        {"commands": the("commands", slow_command=SLOWER)},
        {"commands": the("commands", stalled_seconds=3.0)},
        {"leak": the("leak", recent=True)},
        {"queue": the("queue", exhausted=True, retry_storm=True)},
    ],
)
def test_another_cause_needs_a_load_that_is_too_large_without_it(cause: dict[str, Any]) -> None:
    def ids(required: int) -> list[str]:
        return [one[0] for one in found(exhausted(**cause, sizing=sizing(required)))]

    assert not any(one.startswith("undersized.") for one in ids(8))
    assert "undersized.random_arrivals" in ids(13)


def test_a_command_that_is_slow_explains_the_load() -> None:
    commands = the("commands", slow_command=SLOW)
    ids = [one[0] for one in found(exhausted(commands=commands, sizing=sizing(13)))]
    assert ids == ["slow_operations.slow_command"]


def test_a_pool_without_a_limit_is_never_undersized() -> None:
    assert found(exhausted({"max_size": None})) == []


def test_an_exhaustion_that_is_over_says_how_long_ago() -> None:
    given = exhausted({"since_exhausted": 12.4, "exhausted": False})
    given = dataclasses.replace(given, sizing=sizing(13))
    ((_, _, because, *_),) = found(given)
    assert because.startswith(
        "Exhausted for 4.0 s (2 episodes, no timeouts), most recently 12 s ago. "
    )
