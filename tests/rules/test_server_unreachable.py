from typing import Any

import pytest

from pool_telemetry.diagnosis.evidence import IdleChurnEvidence
from tests.rules.evidence import a_period, an_interval, evidence, found, outcomes, the
from tests.test_health import DOWN, a_pool

CHECK = (
    "Check that the server runs and that the network and the address are right. "
    "PyMongo reconnects by itself."
)
PAUSED = (
    "Find the error in the logs of the application and the server. PyMongo resumes the pool by "
    "itself when the server is usable."
)
REASON = "Find the reason in the logs of the server and the network."


@pytest.mark.parametrize(
    ("server", "pool", "failed", "cause", "because", "advice"),
    [
        (
            {"down": True, "failed_connects": 12},
            {},
            0,
            "cannot_connect",
            "No connection to db:27017 could be opened in 3 s: 12 callers left without one.",
            CHECK,
        ),
        (
            {"down": True, "paused_seconds": 2.0},
            {"phase": "paused"},
            1,
            "paused",
            "db:27017 answers heartbeats, but PyMongo has kept its pool paused for 2 s after an "
            "error. No caller gets a connection meanwhile. 1 checkout failed.",
            PAUSED,
        ),
        (
            {"down": True},
            DOWN,
            1_200,
            "down",
            "db:27017 has not answered heartbeats for 12.0 s (AutoReconnect). "
            "1,200 checkouts failed.",
            CHECK,
        ),
        (
            {"down": True},
            {**DOWN, "down_reason": None},
            0,
            "down",
            "db:27017 has not answered heartbeats.",
            CHECK,
        ),
        (
            {"down": True},
            {**DOWN, "up": None},
            0,
            "down",
            "db:27017 has not answered for 12.0 s, nor ever before.",
            CHECK,
        ),
        (
            {"recovered": True},
            {"outage": 3.0, "since_up_changed": 20.0},
            9,
            "recovered",
            "db:27017 was down for 3.0 s.",
            REASON,
        ),
        (
            {"recovered": True},
            {"outage": 0.001, "since_up_changed": 20.0},
            0,
            "recovered",
            "db:27017 was down for a moment.",
            REASON,
        ),
    ],
)
def test_an_outage_is_described_with_its_cause(
    server: dict[str, Any],
    pool: dict[str, Any],
    failed: int,
    cause: str,
    because: str,
    advice: str,
) -> None:
    interval = an_interval(checkouts=outcomes(connection_error=failed))
    given = evidence(period=a_period(a_pool(**pool), calm=interval), server=the("server", **server))
    assert found(given) == [(f"server_unreachable.{cause}", "critical", because, advice, {})]


def test_an_outage_of_one_of_several_servers_is_a_warning() -> None:
    server = the("server", down=True, only_server_up=False)
    ((_, severity, *_),) = found(evidence(period=a_period(a_pool(**DOWN)), server=server))
    assert severity == "warning"


def test_an_outage_explains_what_the_other_rules_would_find() -> None:
    other = {
        "commands": the("commands", stalled_seconds=9.0),
        "churn": the("churn", failed=50, attempts=50),
        "idle_churn": IdleChurnEvidence(during=an_interval(), pause_seconds=0.1),
    }
    period = a_period(a_pool(**DOWN), failing=an_interval())
    ids = [
        one[0] for one in found(evidence(period=period, server=the("server", down=True), **other))
    ]
    assert ids == ["server_unreachable.down"]
    recovered = the("server", recovered=True)
    ids = [one[0] for one in found(evidence(period=period, server=recovered, **other))]
    assert ids == [
        "server_unreachable.recovered",
        "connection_storm.idle_churn",
        "slow_operations.stalled",
        "retry_storm.errors",
    ]
