import dataclasses
from typing import Any

import pytest
from pymongo import MongoClient

from pool_telemetry import Health, HealthLimits, PoolConfigurationError, PoolTelemetry, assess
from pool_telemetry.diagnosis import diagnose, recommend
from pool_telemetry.state.pool_state import PoolState
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


def test_an_unused_pool_is_healthy_without_reasons() -> None:
    assert assess(a_client(a_pool())) == Health("healthy", ())


def test_a_telemetry_does_in_the_place_of_its_stats(server_uri: str) -> None:
    telemetry = PoolTelemetry()
    with MongoClient[dict[str, Any]](server_uri, event_listeners=telemetry.listeners) as client:
        client.admin.command("ping")
        assert assess(telemetry) == assess(telemetry.stats()) == Health("healthy", ())


@pytest.mark.parametrize("wrong", [None, a_pool(), {"pools": ()}])
def test_what_is_neither_stats_nor_telemetry_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"but {type(wrong).__name__}: use telemetry.stats"):
        assess(wrong)


def test_a_pool_without_waiters_is_healthy_when_all_connections_are_in_use() -> None:
    assert assess(a_client(a_pool(in_use=10, size=10))).status == "healthy"


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        (EXHAUSTED, "degraded", "exhausted: 10 of 10 in use, 4 waiting, the oldest for 1.50 s"),
        ({**EXHAUSTED, "stalled_time": 29.0}, "degraded", "exhausted"),
        ({**EXHAUSTED, "stalled_time": 31.0}, "unhealthy", "no connection was returned for 31.0 s"),
        ({"since_exhausted": 9.0}, "degraded", "was exhausted 9.0 s ago"),
        ({"since_exhausted": 11.0}, "healthy", ""),
        ({"since_timeout": 2.0}, "degraded", "a checkout from db:27017 timed out 2.0 s ago"),
        ({"since_timeout": 11.0}, "healthy", ""),
        ({"phase": "paused"}, "degraded", "is paused because its last connection failed"),
        (
            {"outage": 1.0, "since_up_changed": 3.0},
            "degraded",
            "db:27017 recovered 3.0 s ago after a 1.0 s outage",
        ),
        ({"outage": 9.0, "since_up_changed": 3.0}, "unhealthy", "has answered for 3.0 s only"),
        ({"outage": 9.0, "since_up_changed": 13.0}, "healthy", ""),
        ({**DOWN, "outage": 1.0}, "degraded", "db:27017 down for 1.0 s"),
        (DOWN, "unhealthy", "db:27017 down for 12.0 s (AutoReconnect)"),
        ({"up": None, "phase": "paused", "since_up_changed": 9.0}, "unhealthy", "not answered yet"),
        ({"up": None}, "healthy", ""),  # behind a load balancer there are no heartbeats
    ],
)
def test_a_reason_has_its_numbers(changes: dict[str, Any], status: str, words: str) -> None:
    health = assess(a_client(a_pool(**changes)))
    assert health.status == status
    assert words in " ".join(health.reasons)
    assert bool(health.reasons) == (status != "healthy")


def test_a_client_with_one_of_two_servers_down_is_degraded() -> None:
    health = assess(a_client(a_pool(), a_pool(host="other", **DOWN)))
    assert (health.status, len(health.reasons)) == ("degraded", 1)
    assert "other:27017 down" in health.reasons[0]


def test_a_closed_client_is_unhealthy_and_an_unused_client_degraded() -> None:
    assert assess(a_client(a_pool(phase="closed"))) == Health(
        "unhealthy", ("no server can be reached: the client is closed",)
    )
    health = assess(a_client())  # a forked child, before its first operation
    assert health.status == "degraded"
    assert "this process has not used the client" in health.reasons[0]


def test_the_worst_reason_is_first() -> None:
    health = assess(
        a_client(
            a_pool(since_timeout=1.0), a_pool(host="other", **{**EXHAUSTED, "stalled_time": 99.0})
        )
    )
    assert health.status == "unhealthy"
    assert "other:27017" in health.reasons[0]


def test_the_status_does_not_flap_at_the_edge_of_exhaustion() -> None:
    """A pool that is exhausted in every other sample keeps one status."""
    statuses = []
    for moment in range(100):
        changes = EXHAUSTED if moment % 2 else {"since_exhausted": 0.5}
        statuses.append(assess(a_client(a_pool(**changes))).status)
    assert set(statuses) == {"degraded"}


@pytest.mark.parametrize("up_seconds", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("down_seconds", [0.5, 2.0, 8.0])
def test_the_status_does_not_flap_with_a_server_that_goes_down_and_up(
    up_seconds: float, down_seconds: float
) -> None:
    now = 0.0
    state = PoolState(("db", 27017), clock=lambda: now)
    state.created(10, 0)
    state.ready()
    state.heartbeat(up=True)
    now, until, up = 100.0, 160.0, True
    statuses: list[str] = []
    while now < until:
        up = not up
        state.heartbeat(up=up, reason=None if up else "AutoReconnect")
        ends = now + (up_seconds if up else down_seconds)
        while now < ends:
            status = assess(a_client(state.stats())).status
            if not statuses or status != statuses[-1]:
                statuses.append(status)
            now += 0.1
    assert statuses == ["degraded", "unhealthy"]
    state.heartbeat(up=True)
    now += 200.0
    state.heartbeat(up=True)
    assert assess(a_client(state.stats())).status == "healthy"


def test_a_new_server_is_not_lost_before_the_outage_limit() -> None:
    new = a_pool(up=None, phase="paused", since_up_changed=1.0)
    assert assess(a_client(new)).status == "healthy"


def test_given_limits_replace_the_defaults() -> None:
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


def test_a_healthy_pool_gets_no_recommendation() -> None:
    assert recommend(diagnose(a_client(a_pool()))) == {
        "increase_pool": False,
        "check_connection": False,
        "reasons": [],
    }


def test_recommendations_name_past_exhaustions_and_outages() -> None:
    dry = a_pool(exhaustions=3, exhausted_time=9.0, since_exhausted=200.0)
    advice = recommend(diagnose(dataclasses.replace(a_client(dry), at=1_000.0)))
    assert (advice["increase_pool"], advice["check_connection"]) == (True, False)
    assert "(3 episodes, no timeouts), most recently 200 s ago." in advice["reasons"][0]
    assert "Raise maxPoolSize above 10" in advice["reasons"][0]
    assert not recommend(diagnose(a_client(a_pool(since_exhausted=301.0))))["increase_pool"]
    advice = recommend(diagnose(a_client(a_pool(**DOWN))))
    assert (advice["increase_pool"], advice["check_connection"]) == (False, True)
    assert "has not answered heartbeats for 12.0 s" in advice["reasons"][0]
