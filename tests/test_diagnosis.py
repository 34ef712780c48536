"""Each thing that goes wrong, made to happen on a real server, and what is said of it."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator

import pytest

from pool_telemetry.diagnosis import Diagnosis, diagnose, recommend
from pool_telemetry.embedded import EmbeddedServer
from pool_telemetry.stats import ClientStats
from tests.conftest import need_embedded_server
from tests.scenarios import SCENARIOS, Scenario, playing, provide_documents

pytestmark = pytest.mark.heavy

PAUSES = {"every half second": 1, "every second": 2}
OWN = "by the watching thread"
_found: dict[str, list[tuple[str, str, str]]] = {sampled: [] for sampled in (*PAUSES, OWN)}


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """One that a scenario may kill."""
    need_embedded_server()
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def matrix(figures: list[str]) -> Iterator[None]:
    """Show what was found, right or wrong, when all scenarios were played."""
    yield
    for sampled, found in _found.items():
        wrong = [f"WRONG: {name}: {got}, not {want}" for name, want, got in found if want != got]
        head = f"diagnoses, sampled {sampled}: verdicts down, what it was across"
        figures += ["", head, *table(found), f"{len(found) - len(wrong)} of {len(found)} right"]
        figures += wrong


def table(found: list[tuple[str, str, str]]) -> list[str]:
    """Return the confusion matrix in lines."""
    names = sorted({name for _, want, got in found for name in (want, got)})
    cells = Counter((want, got) for _, want, got in found)
    width = max(map(len, names), default=0)
    words = ((*name.split(), "")[:2] for name in names)  # one above the other
    heads = ("".join(f"  {word:>11}" for word in row) for row in zip(*words, strict=True))
    rows = (
        f"{got:>{width}}" + "".join(f"  {cells[want, got] or '.':>11}" for want in names)
        for got in names
    )
    return [*(" " * width + head for head in heads), *rows]


@pytest.fixture(autouse=True)
def documents(server: EmbeddedServer) -> None:
    provide_documents(server)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.name)
def test_what_is_wrong_is_found(scenario: Scenario, server: EmbeddedServer) -> None:
    with playing(scenario, server) as (case, stats):
        histories = {sampled: case.history[::step] for sampled, step in PAUSES.items()}
        histories[OWN] = case.telemetry.history()
    found: Diagnosis = diagnose(stats)
    for sampled, history in histories.items():
        found = diagnose(stats, history)
        _found[sampled].append((scenario.name, scenario.verdict, found.verdict))
        assert found.verdict == scenario.verdict, found
        expected = (scenario.also | {scenario.verdict}) - {"healthy"}
        assert {one.verdict for one in found.findings} - scenario.maybe == expected, found
    for one in found.findings:
        assert one.pool == stats.pools[0].address
        assert one.because
        assert one.advice
        assert all(math.isfinite(number) for number in one.evidence.values())
    json.dumps(recommend(found))


def resized(scenario: Scenario, size: int) -> Scenario:
    options = {**scenario.options, "maxPoolSize": size, "minPoolSize": size}
    return dataclasses.replace(scenario, options=options)


@pytest.mark.parametrize("name", ["too many callers", "too many arrivals"])
def test_the_recommended_size_ends_the_exhaustion(name: str, server: EmbeddedServer) -> None:
    """And one that is 30 % smaller does not."""
    scenario = next(one for one in SCENARIOS if one.name == name)

    def play(size: int) -> tuple[Diagnosis, ClientStats, float]:
        with playing(resized(scenario, size), server) as (case, stats):
            rushed = case.history[-5:]
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
