import dataclasses
from typing import Any

import pytest

from pool_telemetry import Health, HealthLimits, PoolConfigurationError, assess
from pool_telemetry.diagnosis import diagnose, recommend
from pool_telemetry.state import PoolState
from pool_telemetry.stats import ClientStats, PoolStats


def a_pool(**changes: Any) -> PoolStats:
    state = PoolState(("db", 27017), clock=lambda: 0.0)
    state.created(10, 0)
    state.ready()
    state.heartbeat(up=True)
    return dataclasses.replace(state.stats(), **changes)


def a_client(*pools: PoolStats) -> ClientStats:
    return ClientStats(name="", pools=pools, operations=(), telemetry_errors=0)


EXHAUSTED: dict[str, Any] = {
    "exhausted": True,
    "exhaustions": 3,
    "since_exhausted": 0.0,
    "in_use": 10,
    "size": 10,
    "waiting": 4,
    "oldest_wait": 1.5,
}
DOWN: dict[str, Any] = {
    "up": False,
    "down_reason": "AutoReconnect",
    "since_up_changed": 12.0,
    "outage": 12.0,
    "phase": "paused",
}


def test_a_quiet_pool_is_healthy_and_has_nothing_to_say() -> None:
    assert assess(a_client(a_pool())) == Health("healthy", ())


def test_a_full_pool_is_busy_not_ill() -> None:
    assert assess(a_client(a_pool(in_use=10, size=10))).status == "healthy"


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        (EXHAUSTED, "degraded", "exhausted: 10 of 10 in use, 4 waiting, the oldest for 1.50 s"),
        ({**EXHAUSTED, "stalled_time": 29.0}, "degraded", "exhausted"),
        ({**EXHAUSTED, "stalled_time": 31.0}, "unhealthy", "none came back for 31.0 s"),
        ({"since_exhausted": 9.0}, "degraded", "was exhausted 9.0 s ago"),
        ({"since_exhausted": 11.0}, "healthy", ""),
        ({"since_timeout": 2.0}, "degraded", "timed a caller out 2.0 s ago"),
        ({"since_timeout": 11.0}, "healthy", ""),
        ({"phase": "paused"}, "degraded", "is paused"),
        ({"outage": 1.0, "since_up_changed": 3.0}, "degraded", "is back since 3.0 s, after 1"),
        ({"outage": 9.0, "since_up_changed": 3.0}, "unhealthy", "answers since 3.0 s only"),
        ({"outage": 9.0, "since_up_changed": 13.0}, "healthy", ""),
        ({**DOWN, "outage": 1.0}, "degraded", "db:27017 down for 1.0 s"),
        (DOWN, "unhealthy", "db:27017 down for 12.0 s (AutoReconnect)"),
        ({"up": None, "phase": "paused", "since_up_changed": 9.0}, "unhealthy", "not answered yet"),
        ({"up": None}, "healthy", ""),  # behind a load balancer there are no heartbeats
    ],
)
def test_what_is_wrong_is_said_with_its_numbers(
    changes: dict[str, Any], status: str, words: str
) -> None:
    health = assess(a_client(a_pool(**changes)))
    assert health.status == status
    assert words in " ".join(health.reasons)
    assert bool(health.reasons) == (status != "healthy")


def test_one_of_two_servers_gone_is_degraded() -> None:
    health = assess(a_client(a_pool(), a_pool(host="other", **DOWN)))
    assert (health.status, len(health.reasons)) == ("degraded", 1)
    assert "other:27017 down" in health.reasons[0]


def test_a_closed_client_is_unhealthy_and_an_unused_one_only_unknown() -> None:
    assert assess(a_client(a_pool(phase="closed"))) == Health(
        "unhealthy", ("no server can be reached: the client is closed",)
    )
    health = assess(a_client())  # a forked child, before its first operation
    assert health.status == "degraded"
    assert "this process did not use the client" in health.reasons[0]


def test_the_worst_comes_first() -> None:
    health = assess(
        a_client(
            a_pool(since_timeout=1.0), a_pool(host="other", **{**EXHAUSTED, "stalled_time": 99.0})
        )
    )
    assert health.status == "unhealthy"
    assert "other:27017" in health.reasons[0]


def test_it_does_not_flap_at_the_edge_of_exhaustion() -> None:
    """A pool that is exhausted every other moment changes its status once, not each time."""
    said = []
    for moment in range(100):
        changes = EXHAUSTED if moment % 2 else {"since_exhausted": 0.5}
        said.append(assess(a_client(a_pool(**changes))).status)
    assert set(said) == {"degraded"}


@pytest.mark.parametrize("up_seconds", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("down_seconds", [0.5, 2.0, 8.0])
def test_it_does_not_flap_with_a_server_that_comes_and_goes(
    up_seconds: float, down_seconds: float
) -> None:
    now = 0.0
    state = PoolState(("db", 27017), clock=lambda: now)
    state.created(10, 0)
    state.ready()
    state.heartbeat(up=True)
    now, until, up = 100.0, 160.0, True
    said: list[str] = []
    while now < until:
        up = not up
        state.heartbeat(up=up, reason=None if up else "AutoReconnect")
        ends = now + (up_seconds if up else down_seconds)
        while now < ends:
            status = assess(a_client(state.stats())).status
            if not said or status != said[-1]:
                said.append(status)
            now += 0.1
    assert said == ["degraded", "unhealthy"]
    state.heartbeat(up=True)
    now += 200.0
    assert assess(a_client(state.stats())).status == "healthy"


def test_a_server_that_was_just_found_has_a_moment_to_answer() -> None:
    new = a_pool(up=None, phase="paused", since_up_changed=1.0)
    assert assess(a_client(new)).status == "healthy"


def test_limits_are_ones_own() -> None:
    limits = HealthLimits(stalled_seconds=5.0, settle_seconds=1.0)
    assert assess(a_client(a_pool(since_exhausted=2.0)), limits).status == "healthy"
    stalled = a_pool(**{**EXHAUSTED, "stalled_time": 6.0})
    assert assess(a_client(stalled), limits).status == "unhealthy"


@pytest.mark.parametrize(
    "value", [0.0, "3", "mongodb://ann:s3cret@h/", None, True, float("nan"), float("inf"), 10**400]
)
@pytest.mark.parametrize("name", ["stalled_seconds", "outage_seconds", "settle_seconds"])
def test_a_limit_has_to_be_above_zero(name: str, value: Any) -> None:
    with pytest.raises(
        PoolConfigurationError, match=f"{name} is .*: use a number of sec"
    ) as raised:
        HealthLimits(**{name: value})
    assert "s3cret" not in str(raised.value)


def test_nothing_is_recommended_where_nothing_happened() -> None:
    assert recommend(diagnose(a_client(a_pool()))) == {
        "increase_pool": False,
        "check_connection": False,
        "reasons": [],
    }


def test_recommendations_come_from_what_happened() -> None:
    dry = a_pool(exhaustions=3, exhausted_time=9.0, since_exhausted=200.0)
    advice = recommend(diagnose(dataclasses.replace(a_client(dry), at=1_000.0)))
    assert (advice["increase_pool"], advice["check_connection"]) == (True, False)
    assert "(3 episodes, no timeouts), most recently 200 s ago." in advice["reasons"][0]
    assert "Raise maxPoolSize above 10" in advice["reasons"][0]
    assert not recommend(diagnose(a_client(a_pool(since_exhausted=301.0))))["increase_pool"]
    advice = recommend(diagnose(a_client(a_pool(**DOWN))))
    assert (advice["increase_pool"], advice["check_connection"]) == (False, True)
    assert "has not answered heartbeats for 12.0 s" in advice["reasons"][0]
