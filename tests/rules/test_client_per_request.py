import dataclasses

import pytest

from pool_telemetry.diagnosis import diagnose, worst_first
from pool_telemetry.stats import ClientStats
from tests.test_health import a_client, a_pool


def a_process(made: int, *, phase: str = "ready", name: str = "shop") -> ClientStats:
    stats = a_client(a_pool(phase=phase))
    return dataclasses.replace(
        stats, name=name, clients_made=300, clients_made_lately=made, clients_open=7
    )


@pytest.mark.parametrize("phase", ["ready", "closed"])
def test_a_process_that_makes_a_client_for_each_request_is_told_once(phase: str) -> None:
    every = (a_process(200, phase=phase, name=name) for name in ("shop", "shop#2", "shop#_OTHER"))
    found = worst_first(one for stats in every for one in diagnose(stats).findings)
    (finding,) = found.findings
    assert (finding.id, finding.severity) == ("client_per_request.many_made", "warning")
    assert finding.because == (
        "This process made 200 clients named 'shop' in 60 s; open now: 7. Each opens "
        "connections and monitors of its own and shares none."
    )
    assert finding.advice == (
        "Make one client when the process starts, and share it: it is a pool for all threads or "
        "tasks. Close it when the process ends."
    )


def test_a_few_clients_are_no_finding() -> None:
    assert diagnose(a_process(29)).findings == ()
    assert diagnose(a_process(0, phase="closed")).findings == ()


@pytest.mark.parametrize(("made", "is_found"), [(2, False), (3, True)])
def test_two_samples_show_the_rate_as_metrics_do(made: int, is_found: bool) -> None:
    before = dataclasses.replace(a_process(0), at=100.0)
    after = dataclasses.replace(before, at=102.0, clients_made=before.clients_made + made)
    words = f"This process made {made} clients named 'shop' in 2 s"
    found = [one.because.startswith(words) for one in diagnose(after, [before]).findings]
    assert found == [True] * is_found
