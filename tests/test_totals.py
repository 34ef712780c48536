"""Counters of a name never fall, whichever of its clients ends, and names are bounded."""

import contextlib
import gc
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry
from pymongo import MongoClient
from pymongo.monitoring import PoolClosedEvent

from pool_telemetry import (
    MongoDBConnectionPool,
    PoolTelemetry,
    TelemetryOptions,
    otel,
    prometheus,
    registry,
    totals,
)
from pool_telemetry.catalog import CATALOG, Metric
from pool_telemetry.prometheus import PoolCollector
from pool_telemetry.registry import ClosedClients, active, clients_to_report
from pool_telemetry.state.server_selection import Selection
from pool_telemetry.stats import OVERFLOW, ClientStats, HistogramStats
from tests import everything
from tests.support import prometheus_families, wait_for

Client = MongoClient[dict[str, Any]]
Values = dict[tuple[str, ...], float]


def values(metric: Metric, clients: list[ClientStats], name: str) -> Values:
    """Return a row's values of one name's series, a histogram's as its count."""
    found: Values = {}
    for client in clients:
        for labels, value in metric.read(client):
            if labels[0].rpartition("@")[0] == name or labels[0] == name:
                assert labels not in found, "a series is there twice"
                found[labels] = value.count if isinstance(value, HistogramStats) else float(value)
    return found


def counters(name: str) -> dict[str, Values]:
    """Return all counters and histograms of one name, as a scrape would have them now."""
    clients = clients_to_report(ClosedClients())
    rows = [one for one in CATALOG if one.instrument in ("counter", "histogram")]
    return {row.name: values(row, clients, name) for row in rows}


def is_not_below(now: dict[str, Values], before: dict[str, Values]) -> None:
    for row, series in before.items():
        for labels, value in series.items():
            assert now[row].get(labels, -1.0) >= value, (row, labels)


def finds_in_text(collectors: CollectorRegistry, *names: str) -> float:
    counts = ["db_client_operation_duration_seconds_count"]
    text = prometheus.generate(registry=collectors, names=counts)[0].decode()
    return sum(
        float(sample.value)
        for family in prometheus_families(text)
        for sample in family.samples
        if sample.labels["db_operation_name"] == "find"
        and sample.labels["db_client_connection_pool_name"].partition("@")[0] in names
    )


def finds_in_otlp(reader: InMemoryMetricReader, name: str) -> float:
    data: Any = reader.get_metrics_data()
    return sum(
        int(point.count)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "db.client.operation.duration"
        for point in metric.data.data_points
        if point.attributes.get("db.client.connection.pool.name", "").startswith(f"{name}@")
        and point.attributes["db.operation.name"] == "find"
    )


def test_counts_of_short_lived_clients_stay(server_uri: str) -> None:
    prometheus.register(collectors := CollectorRegistry())
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    otel.register(provider)
    prometheus.register(late := CollectorRegistry())
    before: dict[str, Values] = {}
    for number in range(1, 101):
        telemetry = PoolTelemetry("brief")
        with Client(server_uri, event_listeners=telemetry.listeners) as client:
            client["totals"]["t"].find_one()
        assert telemetry.name == "brief"
        if number % 10 == 0:
            now = counters("brief")
            is_not_below(now, before)
            before = now
            assert finds_in_text(collectors, "brief") == number
            assert finds_in_otlp(reader, "brief") == number
    assert finds_in_text(late, "brief") == 100  # a first scrape has all of them, too
    assert set(now["mongodb.client.clients.created"].values()) == {100}

    def in_memory() -> int:
        gc.collect()
        return sum(one.wanted == "brief" for one in registry._every())

    wait_for(lambda: in_memory() <= 11, "PyMongo's threads of the closed clients to end")
    otel.unregister(provider)
    provider.shutdown()


def test_ended_name_has_counts_and_no_state(server_uri: str) -> None:
    now = [0.0]
    collectors = CollectorRegistry()
    collectors.register(PoolCollector(clock=lambda: now[0]))
    with Client(server_uri, event_listeners=PoolTelemetry("stateless").listeners) as client:
        client["totals"]["t"].find_one()
    shown = []
    for now[0] in (100.0, 130.0):
        text = prometheus.generate(registry=collectors)[0].decode()
        shown.append(
            {
                family.type
                for family in prometheus_families(text)
                for sample in family.samples
                if "stateless" in sample.labels.get("db_client_connection_pool_name", "")
                if family.name != "mongodb_client_clients_open"  # the process has this number
            }
        )
    assert shown == [{"counter", "gauge", "histogram"}, {"counter", "histogram"}]
    assert finds_in_text(collectors, "stateless") == 1


@contextlib.contextmanager
def many(server_uri: str, name: str, number: int) -> Iterator[list[Client]]:
    with contextlib.ExitStack() as opened:
        yield [
            opened.enter_context(
                Client(server_uri, maxPoolSize=3, event_listeners=PoolTelemetry(name).listeners)
            )
            for _ in range(number)
        ]


def test_names_of_open_clients_are_bounded(server_uri: str) -> None:
    prometheus.register(collectors := CollectorRegistry())
    number = 3 * registry.MAX_NUMBERED
    before: dict[str, Values] = {}
    with many(server_uri, "crowded", number) as clients:
        for client in clients:
            client["totals"]["t"].find_one()
        names = {one.name for one in active() if one.wanted == "crowded"}
        assert len(names) == registry.MAX_NUMBERED + 1
        shared = f"crowded#{OVERFLOW}"
        assert shared in names
        assert finds_in_text(collectors, *names) == number
        assert finds_in_text(collectors, shared) == number - registry.MAX_NUMBERED
        (stats,) = (one for one in clients_to_report(ClosedClients()) if one.name == shared)
        (pool,) = stats.pools
        assert pool.idle == number - registry.MAX_NUMBERED
        assert pool.max_size == 3 * pool.idle
        assert pool.phase == "ready"
        for client in random.Random(1).sample(clients, number):
            client.close()
            now = counters(shared)
            is_not_below(now, before)
            before = now
    assert finds_in_text(collectors, shared) == number - registry.MAX_NUMBERED


def test_different_names_are_bounded(server_uri: str) -> None:
    held = [PoolTelemetry(f"tenant-{number}") for number in range(2 * registry.MAX_NAMES)]
    assert len({one.name for one in held}) <= registry.MAX_NAMES + 1
    assert held[-1].name == OVERFLOW
    del held
    gc.collect()
    for number in range(2 * registry.MAX_NAMES):
        with Client(server_uri, event_listeners=PoolTelemetry(f"gone-{number}").listeners) as one:
            one.admin.command("ping")
    gc.collect()
    names = [one.name for one in clients_to_report(ClosedClients()) if "gone-" in one.name]
    assert len(names) <= registry.MAX_NAMES + 11  # those and the last clients
    assert f"gone-{2 * registry.MAX_NAMES - 1}" in names


def test_counts_stay_with_the_name_of_a_replaced_client(server_uri: str) -> None:
    options = TelemetryOptions(name="replaced", drain_seconds=0.0)
    before: dict[str, dict[str, Values]] = {}
    for size in (2, 3, 4):
        client = MongoDBConnectionPool.initialize(server_uri, maxPoolSize=size, telemetry=options)
        for _ in range(size):
            client["totals"]["t"].find_one()
        now = {name: counters(name) for name in ("replaced", "replaced#2")}
        for name, was in before.items():
            is_not_below(now[name], was)
        before = now
    finds = now["replaced"]["db.client.operation.duration"]
    assert sum(count for labels, count in finds.items() if "find" in labels) == 2 + 3 + 4
    MongoDBConnectionPool.close()


@pytest.mark.parametrize("ends", [1, 30])
def test_every_counter_stays_when_its_client_has_ended(ends: int) -> None:
    """Of a row of the catalog that is forgotten in `totals`, the value falls here."""
    before: dict[str, Values] = {}
    for _ in range(ends):
        telemetry, listeners = everything.replay()
        telemetry.agents.add(turns=3, operations=5, conflicts=2)
        telemetry.on_error(ValueError("made up"))
        (state,) = telemetry.states()
        state.count_long_checkout()
        telemetry.server_selection.update([Selection(None, ends, 0.0, 1.0)], 0.0)
        telemetry.server_selection.update([], 1.0)
        assert telemetry.name == "golden"
        now = counters("golden")
        del now["mongodb.client.clients.created"]  # replay() sets it back
        del now["mongodb.client.stood_still_time"]  # it is of the process
        for row, series in now.items():
            assert series, f"{row} has no series"
            assert any(
                value > before.get(row, {}).get(labels, 0) for labels, value in series.items()
            ), row
        is_not_below(now, before)
        before = now
        listeners[0].pool_closed(PoolClosedEvent(everything.ADDRESS))
        telemetry.close()
        is_not_below(counters("golden"), before)


def test_clients_of_a_name_are_counted(server_uri: str) -> None:
    telemetry = PoolTelemetry("counted")
    assert telemetry.stats().clients_made == 0
    with Client(server_uri, event_listeners=telemetry.listeners) as client:
        client.admin.command("ping")
        with many(server_uri, "counted", 20):
            stats = telemetry.stats()
            assert (stats.clients_made, stats.clients_made_lately, stats.clients_open) == (21,) * 3
        stats = telemetry.stats()
        assert (stats.clients_made, stats.clients_made_lately, stats.clients_open) == (21, 21, 1)
    assert telemetry.stats().clients_open == 0


def test_rate_of_new_clients_covers_the_last_minute(
    server_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry = PoolTelemetry("minute")
    with Client(server_uri, event_listeners=telemetry.listeners):
        wait_for(lambda: telemetry.stats().clients_made)
        later = time.monotonic() + registry.LATELY_SECONDS
        monkeypatch.setattr(time, "monotonic", lambda: later)
        assert telemetry.stats().clients_made_lately == 0
        monkeypatch.undo()
        assert telemetry.stats().clients_made == 1


def test_counts_that_processes_pass_on_are_bounded_and_lose_none() -> None:
    passed_on: tuple[ClientStats, ...] = ()
    stats = everything.replay()[0].stats()
    for number in range(20):
        job = replace(stats, name=f"job-{number}", telemetry_errors=1)
        passed_on = totals.of_predecessor((*passed_on, job), 5)
    assert [one.name for one in passed_on] == [OVERFLOW, *(f"job-{n}" for n in range(15, 20))]
    assert [one.telemetry_errors for one in passed_on] == [15, 1, 1, 1, 1, 1]
