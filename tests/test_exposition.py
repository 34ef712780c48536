"""The text of `/metrics`, read back: every row of the catalog, and means that are exact."""

import datetime
import math
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from pymongo.monitoring import CommandStartedEvent, CommandSucceededEvent

import pool_telemetry
from pool_telemetry import PoolTelemetry, catalog
from pool_telemetry.catalog import CATALOG
from pool_telemetry.cli.prometheus_text import histogram_of, read
from pool_telemetry.diagnosis import diagnose
from pool_telemetry.diagnosis.queueing import Load
from pool_telemetry.prometheus import PoolCollector, prometheus_name
from pool_telemetry.state.actor import ThreadActor
from pool_telemetry.state.histogram import OPERATION_BOUNDS, POOL_BOUNDS, Histogram
from pool_telemetry.stats import ClientStats, HistogramStats
from tests.everything import ADDRESS, replay
from tests.support import hide_other_clients

UNTOLD = (catalog.OWNER_SECONDS, catalog.OWNER_CHECKOUTS)  # and what an owner has now
PACKAGE = Path(pool_telemetry.__file__).parent


def text_of(telemetry: PoolTelemetry, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the exposition of one client alone."""
    hide_other_clients(telemetry, monkeypatch)
    registry = CollectorRegistry()
    registry.register(PoolCollector())
    return generate_latest(registry).decode()


def points(metric: Any, client: ClientStats) -> list[Any]:
    """Return what a row reads; of a histogram without the maximum, which the text does not have."""
    return [
        (labels, (value.bounds, value.counts, pytest.approx(value.sum)))
        if isinstance(value, HistogramStats)
        else (labels, value)
        for labels, value in metric.read(client)
    ]


@pytest.mark.parametrize("metric", CATALOG, ids=lambda one: one.name)
def test_every_row_is_read_back_as_it_was(
    metric: catalog.Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry, listeners = replay()
    telemetry.server_version = "8.0.1"
    telemetry.agents.add(turns=3, operations=5, conflicts=2)
    assert listeners
    was = telemetry.stats()
    ((client,),) = (one.clients for one in read(text_of(telemetry, monkeypatch), was.at))
    assert points(metric, was)
    if metric in UNTOLD:
        assert points(metric, client) == []
    else:
        assert points(metric, client) == points(metric, was)


def test_no_module_but_the_catalog_spells_a_name_of_a_metric() -> None:
    names = [name for one in CATALOG for name in (one.name, prometheus_name(one))]
    spelled = [
        (str(module.relative_to(PACKAGE)), name)
        for module in PACKAGE.rglob("*.py")
        for name in names
        if name in module.read_text(encoding="utf-8")
    ]
    assert {module for module, _ in spelled} == {"catalog.py"}


# Means


@st.composite
def observed(draw: Any) -> tuple[Histogram, list[float]]:
    bounds = draw(st.sampled_from([POOL_BOUNDS, OPERATION_BOUNDS]))
    times = draw(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=20))
    histogram = Histogram(bounds)
    for time in times:
        histogram.observe(time)
    return histogram, times


def scraped(histogram: HistogramStats, share: float = 1.0) -> HistogramStats:
    """Return it as cumulative buckets tell it; `share`: of it, as a rate has it."""
    below = (share * count for count in accumulate(histogram.counts))
    buckets = zip((*histogram.bounds, math.inf), below, strict=True)
    return histogram_of([*buckets], share * histogram.sum)


@given(observed(), st.sampled_from([1.0, 0.7]))
def test_a_mean_is_the_sum_by_the_count(one: tuple[Histogram, list[float]], share: float) -> None:
    """The mean is exact for all buckets, above the last bound, and for a rate's broken counts."""
    histogram, times = one
    was, mean = histogram.stats(), sum(times) / len(times)
    assert was.mean == pytest.approx(mean)
    read_back = scraped(was, share)
    if read_back.count:
        assert read_back.mean == pytest.approx(mean)
    if read_back.count and share == 1.0:
        assert Load.from_histogram(3.0, read_back).use_seconds == pytest.approx(mean, abs=1e-9)
        assert Load.from_histogram(3.0, was).use_seconds == pytest.approx(mean, abs=1e-9)


HOLDER, WAITER = ThreadActor(), ThreadActor()


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_a_constant_duration_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is 302 ms in a bucket from 100 to 500 ms, as a scrape shows it."""
    clock = Clock()
    telemetry = PoolTelemetry("shop", clock=clock)
    pool, heartbeat, command = telemetry.listeners
    assert pool
    assert heartbeat
    telemetry._on_created(object(), ADDRESS, 1, 0)
    (state,) = telemetry.states()
    state._still_waiting = state._may_hold = lambda actors: set(actors)  # nobody stands anywhere
    state.ready()
    state.heartbeat(up=True)
    state.connection_created(HOLDER, 1)
    state.connection_ready(1)
    command.started(CommandStartedEvent({"find": "orders"}, "shop", 99, ADDRESS, None))
    longest = datetime.timedelta(seconds=0.49)  # long ago, and the maximum since
    command.succeeded(CommandSucceededEvent(longest, {}, "find", 99, ADDRESS, None))
    clock.now += 1_000.0
    first = telemetry.stats()
    texts = [text_of(telemetry, monkeypatch)]
    began = clock.now
    state.checkout_started(HOLDER)
    state.checked_out(HOLDER, 1, 0.3)
    for request in range(50):
        state.checkout_started(WAITER)
        command.started(CommandStartedEvent({"find": "orders"}, "shop", request, ADDRESS, None))
        clock.now += 0.302
        took = datetime.timedelta(seconds=0.302)
        command.succeeded(CommandSucceededEvent(took, {}, "find", request, ADDRESS, None))
        state.checked_in(lambda: HOLDER, 1)
        state.checked_out(WAITER, 1, 0.302)
        state.checked_in(lambda: WAITER, 1)
        state.checkout_started(HOLDER)
        state.checked_out(HOLDER, 1, 0.0)
    state.checkout_started(WAITER)
    state.heartbeat(up=True)
    texts.append(text_of(telemetry, monkeypatch))
    ((before,), (now,)) = (
        read(text, at)[0].clients for text, at in zip(texts, (began, clock.now), strict=True)
    )
    first, last = replace(first, at=began), replace(telemetry.stats(), at=clock.now)
    for stats, history in ((now, [before]), (last, [first])):
        (slow,) = (one for one in diagnose(stats, history).findings if "slow" in one.verdict)
        assert slow.because.startswith("find orders took 302 ms on average")
        assert slow.evidence["command_seconds"] == pytest.approx(0.302)
