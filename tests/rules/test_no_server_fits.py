from dataclasses import replace
from typing import Any

import pytest

from pool_telemetry.diagnosis import diagnose
from pool_telemetry.stats import ClientStats, ServerSelectionStats
from tests.test_health import a_client, a_pool

SECONDARY = a_pool(server_type="RSSecondary")
PRIMARY = a_pool(server_type="RSPrimary")
WAITING = ServerSelectionStats(waiting=3, oldest_wait=2.04)
FAILED = ServerSelectionStats(failures=5, since_failure=1.0)


def findings(client: ClientStats, **changes: Any) -> list[tuple[str, str, str, float | None]]:
    every = diagnose(replace(client, **changes)).findings
    return [(one.id, one.severity, one.because, one.ended) for one in every]


@pytest.mark.parametrize(
    ("client", "changes", "found"),
    [
        (
            a_client(SECONDARY),
            {"server_selection": WAITING},
            (
                "no_server_fits.no_primary",
                "critical",
                "No server is the primary; callers in server selection: 3 waiting, the oldest for "
                "2.0 s (db:27017 is RSSecondary).",
                None,
            ),
        ),
        (
            a_client(SECONDARY),
            {},
            (
                "no_server_fits.no_primary",
                "warning",
                "No server is the primary (db:27017 is RSSecondary).",
                None,
            ),
        ),
        (
            a_client(PRIMARY),
            {"server_selection": FAILED},
            (
                "no_server_fits.selector",
                "critical",
                "No server fits; callers in server selection: 5 failed (db:27017 is RSPrimary).",
                None,
            ),
        ),
        (
            a_client(PRIMARY),
            {"server_selection": FAILED._replace(since_failure=30.0)},
            (
                "no_server_fits.selector",
                "critical",
                "No server fits; callers in server selection: 5 failed (db:27017 is RSPrimary).",
                30.0,
            ),
        ),
        (
            a_client(),
            {"server_selection": WAITING, "has_no_server": True},
            (
                "no_server_fits.no_server",
                "critical",
                "No server is left, because none belongs to the client's replica set; callers in "
                "server selection: 3 waiting, the oldest for 2.0 s.",
                None,
            ),
        ),
    ],
)
def test_callers_that_lack_a_server(
    client: ClientStats, changes: dict[str, Any], found: tuple[Any, ...]
) -> None:
    assert findings(client, **changes) == [found]


@pytest.mark.parametrize(
    ("client", "selection"),
    [
        (a_client(PRIMARY), WAITING._replace(oldest_wait=0.9)),  # it discovers its servers
        (a_client(PRIMARY), FAILED._replace(since_failure=301.0)),
        (a_client(a_pool(server_type="Standalone")), ServerSelectionStats()),
        (a_client(), WAITING),  # not used yet
    ],
)
def test_no_finding_without_a_lack(client: ClientStats, selection: ServerSelectionStats) -> None:
    assert findings(client, server_selection=selection) == []


def test_an_outage_is_told_as_such() -> None:
    down = a_pool(up=False, outage=9.0, since_up_changed=9.0, down_reason="AutoReconnect")
    ((name, *_),) = findings(a_client(down), server_selection=WAITING)
    assert name == "server_unreachable.down"
