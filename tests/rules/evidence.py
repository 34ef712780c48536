"""Evidence made by hand: a pool of ten connections that is well, and what a test changes."""

import dataclasses
from typing import Any

from pool_telemetry.diagnosis import Finding
from pool_telemetry.diagnosis.evidence import (
    ChurnEvidence,
    CommandEvidence,
    Evidence,
    LeakEvidence,
    QueueEvidence,
    ServerEvidence,
    SizingEvidence,
    SlowCommand,
)
from pool_telemetry.diagnosis.intervals import EMPTY, Interval
from pool_telemetry.diagnosis.periods import Period
from pool_telemetry.diagnosis.queueing import Load
from pool_telemetry.diagnosis.rules import judge
from pool_telemetry.stats import CLOSE_REASONS, OUTCOMES, HistogramStats, PoolStats
from tests.test_health import a_client, a_pool

SLOW = SlowCommand("find orders", 0.345, None, 120, 0.964, 3.0)
SLOWER = SLOW._replace(usual_seconds=0.0018)
EXHAUSTED: dict[str, Any] = {
    "exhausted": True,
    "exhaustions": 2,
    "exhausted_time": 4.04,
    "since_exhausted": 0.0,
    "peak_waiting": 8,
    "in_use": 10,
    "size": 10,
    "waiting": 4,
}


def outcomes(**counts: int) -> dict[str, int]:
    return dict.fromkeys(OUTCOMES, 0) | counts


def closed(**counts: int) -> dict[str, int]:
    return dict.fromkeys(CLOSE_REASONS, 0) | counts


def durations(seconds: float, count: int) -> HistogramStats:
    return HistogramStats((60.0,), (count, 0), seconds * count, seconds)


def an_interval(**changes: Any) -> Interval:
    """Return three seconds in which nothing happened, except for the changes."""
    quiet: dict[str, Any] = {
        "start": 97.0,
        "end": 100.0,
        "seconds": 3.0,
        "whole_life": False,
        "pool": a_pool(),
        "checkouts": outcomes(),
        "retries": 0,
        "created": 0,
        "closed": closed(),
        "cleared": 0,
        "queue_growth": 0,
        "exhaustions": 0,
        "exhausted_seconds": 0.0,
        "wait_time": EMPTY,
        "use_time": EMPTY,
        "create_time": EMPTY,
        "commands": {},
    }
    return Interval(**(quiet | changes))


def a_period(
    pool: PoolStats | None = None,
    *,
    contention: Interval | None = None,
    calm: Interval | None = None,
    failing: Interval | None = None,
) -> Period:
    """Return a period that ends at 100.0; all of it is contended, or calm."""
    pool = pool or a_pool()
    whole = contention or calm or an_interval(pool=pool)
    return Period(
        kind="current",
        client=dataclasses.replace(a_client(pool), at=100.0),
        pool=pool,
        latest=pool,
        recent=(whole,),
        contended=(contention,) if contention else (),
        last_seconds=(whole,),
        contention=contention,
        settled=contention,
        steady=whole,
        window=whole,
        failing=failing,
        baseline=None,
        ended_at=None,
        slowed_at=None,
    )


WELL = Evidence(
    period=a_period(),
    pool_name="shop@db:27017",
    connection_budget=None,
    server=ServerEvidence(
        only_server_up=True, failed_connects=0, paused_seconds=0.0, down=False, recovered=False
    ),
    leak=LeakEvidence(held_idle=0, recent=False),
    commands=CommandEvidence(
        use_seconds=0.002, usual_use_seconds=None, slow_command=None, stalled_seconds=0.0
    ),
    queue=QueueEvidence(
        exhausted=False,
        held_by_cursors=False,
        callers_give_up=False,
        retry_storm=False,
        closed_workload=False,
        bursty_arrivals=False,
        peak_demand=0,
    ),
    sizing=None,
    churn=ChurnEvidence(
        opened=0, unopened=0, slow_opening=False, peak_demand=0, failed=0, attempts=0
    ),
    spare=None,
)


def the(group: str, **changes: Any) -> Any:
    """Return a group of the evidence of a pool that is well, with some changes."""
    return dataclasses.replace(getattr(WELL, group), **changes)


def evidence(**changes: Any) -> Evidence:
    """Return the evidence of a pool that is well, with other groups."""
    return dataclasses.replace(WELL, **changes)


def exhausted(pool: dict[str, Any] | None = None, **changes: Any) -> Evidence:
    """Return the evidence of an exhausted pool."""
    contention: dict[str, Any] = {"checkouts": outcomes(ok=600), "exhausted_seconds": 2.7}
    made = a_pool(**(EXHAUSTED | (pool or {})))
    period = a_period(made, contention=an_interval(pool=made, **contention))
    return evidence(**({"period": period, "queue": the("queue", exhausted=True)} | changes))


def sizing(required_size: int, *, rate: float = 2098.0, use: float = 0.0018) -> SizingEvidence:
    """Return the sizing of a load that a pool of ten is too small for, if more are required."""
    return SizingEvidence(
        load=Load(rate, ((use, use, 1.0),)),
        size_for_random=7,
        required_size=required_size,
        too_small=required_size > 10,
    )


def told(one: Finding) -> tuple[str, str, str, str, dict[str, int]]:
    """Return what a person reads of a finding, and its id."""
    return one.id, one.severity, one.because, one.advice, dict(one.change)


def found(given: Evidence) -> list[tuple[str, str, str, str, dict[str, int]]]:
    """Return all findings of the rules as a person reads them."""
    return [told(one) for one in judge(given)]
