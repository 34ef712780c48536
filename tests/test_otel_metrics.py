"""The catalog over OTLP, decoded by a real receiver, and through an application's own provider."""

import inspect
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from typing import Any

import prometheus_client
import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.semconv._incubating.attributes import db_attributes
from opentelemetry.semconv._incubating.metrics import db_metrics
from opentelemetry.semconv.attributes import error_attributes, server_attributes
from prometheus_client import CollectorRegistry
from pymongo import MongoClient

from pool_telemetry import (
    MongoDBConnectionPool,
    PoolTelemetry,
    TelemetryOptions,
    otel,
    prometheus,
)
from pool_telemetry.catalog import (
    CATALOG,
    CLIENT_INFO,
    OWNER_SECONDS,
    POOL_ATTRIBUTES,
    PROCESS_UP,
    SERVER_TYPE,
    Metric,
)
from pool_telemetry.otel import collection
from pool_telemetry.otel.endpoint import metric_exporter
from tests.everything import replay
from tests.otlp import PROTOCOLS, Received, attributes, exported, receiver
from tests.support import hide_other_clients, prometheus_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> Iterator[PoolTelemetry]:
    """Yield a client with samples for every metric, and hide all others of this process."""
    telemetry, listeners = replay()
    hide_other_clients(telemetry, monkeypatch)
    yield telemetry
    del listeners  # they keep the telemetry alive, like a client


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_metric_of_the_catalog_arrives(everything: PoolTelemetry, protocol: str) -> None:
    received = exported(protocol)
    assert received.resource["service.name"] == "shop"
    assert received.latest.keys() == {metric.name for metric in CATALOG}
    for metric in CATALOG:
        arrived = received.latest[metric.name]
        assert (arrived.unit, arrived.description) == (metric.unit, metric.description)
        kind = arrived.WhichOneof("data")
        assert kind == {"gauge": "gauge", "histogram": "histogram"}.get(metric.instrument, "sum")
        if kind == "sum":
            assert arrived.sum.is_monotonic == (metric.instrument == "counter")
        points = getattr(arrived, kind).data_points
        assert points
        for point in points:
            assert kind == "gauge" or 0 < point.start_time_unix_nano <= point.time_unix_nano
            assert point.time_unix_nano <= time.time_ns()
            found = attributes(point.attributes)
            assert found.keys() <= {*POOL_ATTRIBUTES, *metric.attributes}
            assert "" not in found.values()
            of_client = tuple(
                f"mongodb.client.{one}." for one in ("agent", "clients", "server_selection")
            )
            if metric.name.startswith(of_client) or metric.name in (
                "mongodb.client.info",
                "mongodb.client.pool.telemetry_errors",
                "mongodb.client.stood_still_time",
            ):
                assert found["db.client.connection.pool.name"] == "golden"
            else:
                assert found["db.client.connection.pool.name"] == "golden@db.example:27017"
                assert (found["server.address"], found["server.port"]) == ("db.example", 27017)


def from_otlp(received: Received) -> Samples:
    """Return the Prometheus samples of OTLP metrics, by OpenTelemetry's specification."""
    samples: Samples = {}
    for metric in received.latest.values():
        name = metric.name.replace(".", "_") + ("_seconds" if metric.unit == "s" else "")
        kind = metric.WhichOneof("data")
        for point in getattr(metric, kind).data_points:
            pairs = attributes(point.attributes).items()
            labels = {key.replace(".", "_"): str(value) for key, value in pairs}

            def add(suffix: str, value: float, labels: dict[str, str], **more: str) -> None:
                samples[name + suffix, frozenset((labels | more).items())] = value  # noqa: B023

            if kind == "histogram":
                bounds = [*map(str, point.explicit_bounds), "+Inf"]
                for le, count in zip(bounds, accumulate(point.bucket_counts), strict=True):
                    add("_bucket", count, labels, le=le)
                add("_sum", point.sum, labels)
                add("_count", point.count, labels)
            else:
                value = getattr(point, point.WhichOneof("value"))
                add("_total" * (kind == "sum" and metric.sum.is_monotonic), value, labels)
    return samples


def from_prometheus() -> Samples:
    registry = CollectorRegistry()
    prometheus.register(registry)
    text = prometheus.generate(registry=registry)[0].decode()
    return {
        # To Prometheus an empty label and a missing label are the same.
        (sample.name, frozenset((k, v) for k, v in sample.labels.items() if v)): sample.value
        for family in prometheus_families(text)
        for sample in family.samples
        if sample.name != prometheus.prometheus_name(PROCESS_UP)  # OTLP has a resource
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_otlp_and_prometheus_have_the_same_samples(
    everything: PoolTelemetry, protocol: str
) -> None:
    assert from_otlp(exported(protocol)) == from_prometheus()


def test_opentelemetrys_prometheus_exporter_has_the_same_names(everything: PoolTelemetry) -> None:
    prometheus.unregister()  # another test may have registered ours there
    reader = PrometheusMetricReader()
    provider = MeterProvider([reader])
    otel.register(provider)
    theirs = {
        sample.name
        for family in prometheus_client.REGISTRY.collect()
        for sample in family.samples
        if family.name.startswith(("db_", "mongodb_"))
    }
    provider.shutdown()
    assert theirs == {name for name, _ in from_prometheus()}


class _Meter:
    """Returns the kind, name and unit of the instrument that the conventions' function makes."""

    def __getattr__(self, kind: str) -> Any:
        return lambda **made: (kind, made["name"], made["unit"])


HISTOGRAMS = {metric.name for metric in CATALOG if metric.instrument == "histogram"}
OWN = {
    *("outcome", "reason"),
    *CLIENT_INFO.attributes,
    *OWNER_SECONDS.attributes,
    *SERVER_TYPE.attributes,
}
INSTRUMENTS = {
    "counter": "create_counter",
    "updowncounter": "create_up_down_counter",
    "gauge": "create_gauge",
    "histogram": "create_histogram",
}


@pytest.mark.parametrize("metric", CATALOG, ids=lambda metric: metric.name)
def test_names_units_and_attributes_equal_the_conventions(metric: Metric) -> None:
    known = {
        value
        for module in (db_attributes, error_attributes, server_attributes)
        for name, value in inspect.getmembers(module)
        if name.isupper()
    }
    assert {*POOL_ATTRIBUTES, *metric.attributes} <= known | OWN
    make = getattr(db_metrics, "create_" + metric.name.replace(".", "_"), None)
    if metric.name.startswith("db.client.connection."):
        assert make is not None
    if make is not None:
        assert make(_Meter()) == (INSTRUMENTS[metric.instrument], metric.name, metric.unit)


def collected(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    resources = [] if data is None else data.resource_metrics
    return {
        metric.name: list(metric.data.data_points)
        for resource in resources
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_an_applications_own_provider_gets_the_same_values(everything: PoolTelemetry) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    for _ in range(2):  # a repeat adds nothing
        otel.register(provider)
    stats = everything.stats()
    for _ in range(2):  # a second collection adds nothing
        found = collected(reader)
        assert found.keys() == {metric.name for metric in CATALOG}
        for metric in CATALOG:
            expected = {
                frozenset(collection.attributes_of(metric, values).items()): value
                for values, value in metric.read(stats)
            }
            points = {frozenset((p.attributes or {}).items()): p for p in found[metric.name]}
            assert points.keys() == expected.keys()
            for key, value in expected.items():
                if metric.instrument == "histogram":
                    point: Any = points[key]
                    assert (point.bucket_counts, point.explicit_bounds) == (
                        value.counts,  # type: ignore[union-attr]  # a histogram's
                        value.bounds,  # type: ignore[union-attr]
                    )
                    assert point.sum == pytest.approx(value.sum)  # type: ignore[union-attr]
                else:
                    assert points[key].value == value
    otel.unregister(provider)
    assert collected(reader).keys() <= HISTOGRAMS  # the SDK keeps its recorded durations
    provider.shutdown()


def test_histograms_follow_a_client_between_collections(server_uri: str) -> None:
    reader, second = InMemoryMetricReader(), InMemoryMetricReader()
    provider = MeterProvider([reader, second])
    otel.register(provider)
    telemetry = PoolTelemetry("follows")
    with MongoClient[dict[str, Any]](server_uri, event_listeners=telemetry.listeners) as client:
        for round_ in range(4):
            threads = [
                threading.Thread(target=client["otel"]["t"].find_one) for _ in range(round_ * 5)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for one in (reader, second):
                (pool,) = telemetry.stats().pools
                for name, ours in (
                    ("db.client.connection.wait_time", pool.wait_time),
                    ("db.client.connection.use_time", pool.use_time),
                    ("db.client.connection.create_time", pool.create_time),
                ):
                    points = [
                        point
                        for point in collected(one).get(name, [])
                        if point.attributes["db.client.connection.pool.name"].startswith("follows")
                    ]
                    assert sum(point.count for point in points) == ours.count
                    if points:
                        assert points[0].bucket_counts == ours.counts
                        assert points[0].sum == pytest.approx(ours.sum)
    otel.unregister(provider)
    provider.shutdown()


def test_a_closed_clients_last_values_are_reported_once(server_uri: str) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    otel.register(provider)

    def finds(name: str) -> list[int]:
        return [
            point.count
            for point in collected(reader).get("db.client.operation.duration", [])
            if point.attributes["db.client.connection.pool.name"].startswith(f"{name}@")
            and point.attributes["db.operation.name"] == "find"
        ]

    options = TelemetryOptions(name="last")
    MongoDBConnectionPool.initialize(server_uri, telemetry=options)["otel"]["t"].find_one()
    MongoDBConnectionPool.close()
    assert finds("last") == [1]
    assert not [
        p for p in collected(reader).get("db.client.connection.count", []) if "last@" in str(p)
    ]
    # A new client of the same name replaces a closed client that was not reported yet.
    MongoDBConnectionPool.initialize(server_uri, telemetry=options)["otel"]["t"].find_one()
    MongoDBConnectionPool.close()
    client = MongoDBConnectionPool.initialize(server_uri, telemetry=options)
    for _ in range(2):
        client["otel"]["t"].find_one()
    assert collected(reader)["db.client.connection.max"]
    (pool,) = [p for p in collected(reader)["mongodb.client.pool.min"] if "last@" in str(p)]
    assert pool.value == 10
    otel.unregister(provider)
    provider.shutdown()


def test_an_exporter_that_prefers_delta_temporality_gets_it(
    server_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    with receiver("grpc") as received:
        make = partial(metric_exporter, "grpc", received.endpoint)
        otlp = otel.Otlp(Resource({}), make)
        options = TelemetryOptions(name="delta")
        client = MongoDBConnectionPool.initialize(server_uri, telemetry=options)
        counts, ends = [], []
        for finds in (3, 0, 2):
            for _ in range(finds):
                client["otel"]["t"].find_one()
            otlp.flush()
            arrived = received.latest["db.client.operation.duration"].histogram
            assert arrived.aggregation_temporality == 1  # delta
            (point,) = [
                point
                for point in arrived.data_points
                if "delta@" in str(point.attributes) and '"find"' in str(point.attributes)
            ]
            counts.append((point.count, sum(point.bucket_counts)))
            ends.append((point.start_time_unix_nano, point.time_unix_nano))
        otlp.close()
    assert counts == [(3, 3), (0, 0), (2, 2)]
    assert [start for start, _ in ends[1:]] == [end for _, end in ends[:-1]]


LATER = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pool_telemetry import MongoDBConnectionPool, otel
import sys

otel.register()  # before the global provider is set
reader = InMemoryMetricReader()
provider = MeterProvider([reader])
metrics.set_meter_provider(provider)
otel.register()
otel.register(provider)
MongoDBConnectionPool.initialize(sys.argv[1])
(resource,) = reader.get_metrics_data().resource_metrics
(scope,) = resource.scope_metrics
names = [metric.name for metric in scope.metrics]
assert len(names) == len(set(names)) > 20, names
(point,) = next(m for m in scope.metrics if m.name == "db.client.connection.max").data.data_points
assert point.value == 100
otel.unregister(provider)
assert not any("count" in m.name for m in reader.get_metrics_data().resource_metrics[0]
               .scope_metrics[0].metrics)
MongoDBConnectionPool.close()
"""


def test_the_global_provider_may_be_set_later(server_uri: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LATER, server_uri],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert (done.returncode, done.stderr) == (0, "")


FORKED = """
import os, sys
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pool_telemetry import MongoDBConnectionPool, otel
from pool_telemetry.otel import metrics

reader = InMemoryMetricReader()
otel.register(provider := MeterProvider([reader]))
client = MongoDBConnectionPool.initialize(sys.argv[1])
reader.get_metrics_data()
(instruments,) = metrics._registered.values()
with metrics._lock, instruments._lock:  # held like by the exporting thread of the parent
    pid = os.fork()
    if pid == 0:
        client["otel"]["t"].find_one()
        (resource,) = reader.get_metrics_data().resource_metrics
        counted = {m.name: m.data.data_points for m in resource.scope_metrics[0].metrics}
        otel.unregister(provider)
        os._exit(counted["mongodb.client.pool.connections.created"][0].value)
_, status = os.waitpid(pid, 0)
MongoDBConnectionPool.close()
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_collects_only_its_own_values(server_uri: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, server_uri + "?minPoolSize=0"],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.stdout == "1\n", done.stderr  # one connection, for its find_one
