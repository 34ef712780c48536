"""The advice of each finding, tried on a real server: it has to end the trouble that it is for.

`make scenarios` shows that the trouble is found; here the advice comes from its recording where
that does, because a recording takes no time.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import math
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.cursor import CursorType

from pool_telemetry.demo.embedded import EmbeddedServer
from pool_telemetry.diagnosis import Diagnosis, diagnose
from pool_telemetry.stats import ClientStats
from tests.conftest import need_embedded_server
from tests.recordings import Recording, recordings
from tests.scenarios import (
    CALM_SECONDS,
    SAMPLE_SECONDS,
    SCENARIOS,
    TROUBLE_SECONDS,
    AsyncClient,
    Case,
    Play,
    Scenario,
    playing,
    provide_documents,
    run_tasks,
)

pytestmark = pytest.mark.load

MOMENTARY = "few open for many"
"""Its peak lasts a moment, so that it differs from play to play, and so does the advice."""


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


def the_scenario(name: str) -> Scenario:
    return next(one for one in SCENARIOS if one.name == name)


@cache
def recorded() -> dict[str, Recording]:
    return {one.name: one for one in recordings()}


def played(scenario: Scenario, server: EmbeddedServer) -> Diagnosis:
    with playing(scenario, server) as (case, stats):
        return diagnose(stats, case.history)


@pytest.mark.parametrize(
    "name",
    [
        "hardly used connections",
        "a handshake for each request",
        "kept open, and closed",
        "cold start",
        "storm after calm",
        "few open for many",
        "deadlines while opening",
        "idle connections",
    ],
)
def test_the_recommended_options_end_the_trouble(name: str, server: EmbeddedServer) -> None:
    scenario = the_scenario(name)
    if name == MOMENTARY:
        finding = played(scenario, server).findings[0]
    else:
        samples = recorded()[name].samples
        finding = diagnose(samples[-1], samples).findings[0]
    assert finding.verdict == scenario.verdict
    options, left = dict(scenario.options), [finding]
    # A part of the peak may be hidden: then the next advice has two connections more, or the same
    # options are played again. The peak has thirty callers, and the first advice some twenty.
    for _ in range(10):
        options = {**options, **left[0].change}
        after = played(dataclasses.replace(scenario, options=options), server)
        if not (left := [one for one in after.findings if one.verdict == finding.verdict]):
            break
    assert not left


async def shielded(client: AsyncClient, over: threading.Event) -> None:
    for number in itertools.count():
        if over.is_set():
            return
        find = asyncio.ensure_future(client["shop"]["orders"].find_one())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02 if number % 3 else None):
                await asyncio.shield(find)
        await asyncio.sleep(0.02)
        await find


async def patient(client: AsyncClient, over: threading.Event) -> None:
    while not over.is_set():
        async with asyncio.timeout(5.0):
            await client["shop"]["orders"].find_one()
        await asyncio.sleep(0.02)


def clients_that_do_not_end_operations(case: Case) -> None:
    case.slow(40)
    run_tasks(case, shielded, 8)
    case.go_on(CALM_SECONDS + TROUBLE_SECONDS)


def clients_with_longer_timeouts(case: Case) -> None:
    case.slow(40)
    run_tasks(case, patient, 8)
    case.go_on(CALM_SECONDS + TROUBLE_SECONDS)


def nested(case: Case, inner: MongoClient[dict[str, Any]], *, to_the_end: bool) -> None:
    """Do as `deadlock` does, but the inner find has another client, or the cursor is read first."""

    def run() -> None:
        find = case.client["shop"]["orders"].find
        while not over.wait(0.02):
            with find(cursor_type=CursorType.EXHAUST, batch_size=10) as cursor:
                if to_the_end:
                    list(cursor)
                else:
                    next(cursor)
                inner["shop"]["orders"].find_one()

    over = threading.Event()
    case.callers(2, think=0.02)
    case.go_on(CALM_SECONDS)
    case.beside([run] * 4, over)
    case.go_on(TROUBLE_SECONDS)


def one_connection_at_a_time(case: Case) -> None:
    nested(case, case.client, to_the_end=True)


def a_client_for_inner_operations(case: Case) -> None:
    with MongoClient[dict[str, Any]](case.server.uri) as inner:
        nested(case, inner, to_the_end=False)
        case.stack.close()  # before the inner client is closed


def slower_and_retried_after_a_pause(case: Case) -> None:
    case.callers(3, think=0.02)
    case.go_on(CALM_SECONDS)
    case.slow(800)
    case.callers(20, leave=True)
    case.go_on(TROUBLE_SECONDS)


def test_pauses_before_retries_end_the_storm(server: EmbeddedServer) -> None:
    scenario = the_scenario("slower, and retried")
    before = played(scenario, server).findings
    assert "retry_storm.timeouts" in {one.id for one in before}
    after = played(dataclasses.replace(scenario, play=slower_and_retried_after_a_pause), server)
    timeouts = [one.evidence["timeouts"] for one in (before[0], after.findings[0])]
    assert timeouts[1] < 0.7 * timeouts[0]  # the server is as slow as before


@pytest.mark.parametrize(
    ("name", "advised"),
    [
        ("clients that hang up", clients_that_do_not_end_operations),
        ("clients that hang up", clients_with_longer_timeouts),
        ("deadlock", one_connection_at_a_time),
        ("deadlock", a_client_for_inner_operations),
    ],
)
# PyMongo leaves the socket of a connection open that is cancelled while it is opened (4.20.1).
@pytest.mark.filterwarnings("ignore:Exception ignored in.*socket")
def test_the_advice_ends_the_trouble(name: str, advised: Play, server: EmbeddedServer) -> None:
    scenario = the_scenario(name)
    after = played(dataclasses.replace(scenario, play=advised), server)
    assert scenario.verdict not in {one.verdict for one in after.findings}, after


@pytest.mark.parametrize("name", ["waits for news", "slow readers"])
def test_a_connection_for_each_cursor_ends_the_exhaustion(
    name: str, server: EmbeddedServer
) -> None:
    scenario = the_scenario(name)
    assert scenario.verdict == "undersized"
    size = scenario.options["maxPoolSize"] + 3  # as many as there are cursors
    options = {**scenario.options, "maxPoolSize": size}
    after = played(dataclasses.replace(scenario, options=options), server)
    assert "undersized" not in {one.verdict for one in after.findings}, after


@pytest.mark.parametrize("name", ["too many callers", "too many arrivals"])
def test_the_recommended_size_ends_the_exhaustion(name: str, server: EmbeddedServer) -> None:
    """And one that is 30 % smaller does not."""
    scenario = the_scenario(name)

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
