"""The size that a diagnosis recommends, tried on a real server."""

import dataclasses
import math
from collections.abc import Iterator

import pytest

from pool_telemetry.diagnosis import Diagnosis, diagnose
from pool_telemetry.embedded import EmbeddedServer
from pool_telemetry.stats import ClientStats
from tests.conftest import need_embedded_server
from tests.scenarios import SAMPLE_SECONDS, SCENARIOS, Scenario, playing, provide_documents

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """A server of its own, with the documents that scenarios read."""
    need_embedded_server()
    with EmbeddedServer() as server:
        provide_documents(server)
        yield server


def resized(scenario: Scenario, size: int) -> Scenario:
    options = {**scenario.options, "maxPoolSize": size, "minPoolSize": size}
    return dataclasses.replace(scenario, options=options)


@pytest.mark.parametrize("name", ["too many callers", "too many arrivals"])
def test_the_recommended_size_ends_the_exhaustion(name: str, server: EmbeddedServer) -> None:
    """And one that is 30 % smaller does not."""
    scenario = next(one for one in SCENARIOS if one.name == name)

    def play(size: int) -> tuple[Diagnosis, ClientStats, float]:
        with playing(resized(scenario, size), server) as (case, stats):
            rushed = case.history[-round(2.0 / SAMPLE_SECONDS) :]
        dry = stats.pools[0].exhausted_time - rushed[0].pools[0].exhausted_time
        return diagnose(stats, case.history), stats, dry / (stats.at - rushed[0].at)

    first, _, dry = play(scenario.options["maxPoolSize"])
    size = first.findings[0].change["maxPoolSize"]
    assert dry > 0.9
    for _ in range(3):
        enough, stats, dry = play(size)
        change = {one.verdict: one.change for one in enough.findings}
        if "undersized" not in change:
            break
        size = change["undersized"]["maxPoolSize"]  # others slowed this machine down meanwhile
    assert "undersized" not in change
    assert dry < 0.1  # the size is for 5 % of the callers to wait, and this is a short time
    assert stats.pools[0].checkouts["timeout"] == 0
    smaller, _, dry = play(math.floor(0.7 * size))
    assert smaller.verdict == "undersized"
    assert dry > 0.1
