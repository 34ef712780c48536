import pytest

from pool_telemetry.diagnosis.evidence import ServiceEvidence
from pool_telemetry.diagnosis.gathering import gather
from pool_telemetry.stats import PoolStats
from tests.rules.evidence import a_period, an_interval, durations, evidence, found
from tests.test_health import a_pool

STALLED = a_pool(waiting=5, opening=2, size=2, oldest_opening=45.0, unserved_time=45.0)


def test_stalled_handshakes_have_their_age() -> None:
    service = ServiceEvidence(
        unserved_seconds=45.04, stalled_handshakes=2, oldest_opening_seconds=45.04
    )
    because = (
        "2 connections to db:27017 have been opening for up to 45.0 s and none is ready; no caller "
        "was served for 45.0 s. Callers waiting: 0."
    )
    advice = (
        "Look for what delays new connections: TLS, authentication (LDAP, Kerberos), a full accept "
        "queue or a firewall in between. Open connections still work. A shorter connectTimeoutMS "
        "lets callers fail sooner; a larger pool does not help."
    )
    given = evidence(service=service)
    assert found(given) == [("handshakes_stall.opening", "critical", because, advice, {})]


@pytest.mark.parametrize(
    ("pool", "ready", "stalled"),
    [
        (STALLED, 0, 2),
        (STALLED, 1, 0),  # slow, but they succeed
        (a_pool(waiting=5, opening=2, size=2, oldest_opening=2.0, unserved_time=45.0), 0, 0),
        (a_pool(waiting=5, opening=2, size=2, oldest_opening=45.0, unserved_time=0.0), 0, 0),
    ],
)
def test_handshakes_stall_if_none_succeeds_and_nobody_is_served(
    pool: PoolStats, ready: int, stalled: int
) -> None:
    create_time = durations(1.0, ready)
    period = a_period(pool, calm=an_interval(pool=pool, create_time=create_time))
    assert gather(period).service.stalled_handshakes == stalled
