"""Zero-code instrumentation of an unchanged program: every client, until `uninstrument()`."""

import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import pytest

from pool_telemetry.otel.instrumentor import PoolTelemetryInstrumentor

PROGRAM = """
import asyncio, sys
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pymongo import AsyncMongoClient, MongoClient
from pool_telemetry import PoolTelemetry
from pool_telemetry.otel.instrumentor import PoolTelemetryInstrumentor

reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
meter_provider, tracer_provider = MeterProvider([reader]), TracerProvider()
tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
uri = sys.argv[1]
made = MongoClient.__init__, AsyncMongoClient.__init__
instrumentor = PoolTelemetryInstrumentor()
instrumentor.instrument(tracer_provider=tracer_provider, meter_provider=meter_provider)


def pools():
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        point.attributes["db.client.connection.pool.name"]: point.value
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        if metric.name == "db.client.connection.max"
        for point in metric.data.data_points
    }


def spans():
    found = [span.name for span in exporter.get_finished_spans()]
    exporter.clear()
    return found
"""


def run(uri: str, body: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM + body, uri],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_the_entry_point_is_installed() -> None:
    (found,) = entry_points(group="opentelemetry_instrumentor", name="pool_telemetry")
    assert found.load() is PoolTelemetryInstrumentor


def test_every_client_has_metrics_and_spans(server_uri: str) -> None:
    body = """
class Own(MongoClient):
    pass

class Listener:
    pass

first, second = MongoClient(uri, maxPoolSize=7), Own(uri, None, maxPoolSize=8)
first.a.b.find_one(), second.a.b.find_one()

async def main():
    async with AsyncMongoClient(uri, maxPoolSize=9) as client:
        await client.a.b.find_one()
        return pools()

found = asyncio.run(main())
host = uri.split("/")[2]
assert found == {host: 7, f"#2@{host}": 8, f"#3@{host}": 9}, found
assert spans().count("find b") == 3
first.close(), second.close()
"""
    run(server_uri, body)


def test_uninstrument_removes_metrics_and_spans(server_uri: str) -> None:
    body = """
client = MongoClient(uri)
client.a.b.find_one()
assert "find b" in spans() and pools()
instrumentor.uninstrument()
assert (MongoClient.__init__, AsyncMongoClient.__init__) == made
client.a.b.find_one()
later = MongoClient(uri)
later.a.b.find_one()
assert spans() == [] and pools() == {}, (spans(), pools())
instrumentor.instrument(tracer_provider=tracer_provider, meter_provider=meter_provider)
client.a.b.find_one()
assert spans() == ["find b"]
client.close(), later.close()
"""
    run(server_uri, body)


def test_uninstrument_keeps_metrics_and_tracing_that_others_started(server_uri: str) -> None:
    body = """
from pool_telemetry import otel
instrumentor.uninstrument()
otel.register(meter_provider)
instrumentor.instrument(tracer_provider=TracerProvider(), meter_provider=meter_provider)
otel.start_tracing(tracer_provider)
client = MongoClient(uri)
instrumentor.uninstrument()
client.a.b.find_one()
assert "find b" in spans() and pools()
client.close()
"""
    run(server_uri, body)


def test_a_client_with_our_listeners_gets_no_second_set(server_uri: str) -> None:
    body = """
telemetry = PoolTelemetry("mine")
client = MongoClient(uri, maxPoolSize=5, event_listeners=telemetry.listeners)
client.a.b.find_one()
assert pools() == {"mine@" + uri.split("/")[2]: 5}, pools()
assert spans().count("find b") == 1
client.close()
"""
    run(server_uri, body)


def test_other_listeners_are_kept_and_pymongo_reports_wrong_arguments(server_uri: str) -> None:
    body = """
from pymongo.monitoring import CommandListener
from pymongo.errors import InvalidURI

class Counts(CommandListener):
    started_ = 0
    def started(self, event): self.started_ += 1
    def succeeded(self, event): pass
    def failed(self, event): pass

counts = Counts()
client = MongoClient(uri, event_listeners=(counts,))
client.a.b.find_one()
assert counts.started_ >= 1
assert spans().count("find b") == 1
client.close()
for wrong in ({"event_listeners": 5}, {"event_listeners": [object()]}):
    try:
        MongoClient(uri, **wrong)
    except TypeError as error:
        print(type(error).__name__)
try:
    MongoClient("mongodb://")
except InvalidURI:
    print("InvalidURI")
assert not pools() or len(pools()) == 0, pools()
"""
    assert run(server_uri, body).split() == ["TypeError", "TypeError", "InvalidURI"]


def test_an_invalid_variable_is_an_error_of_instrument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOL_TELEMETRY_COMMAND_SPANS", "perhaps")
    instrumentor: Any = PoolTelemetryInstrumentor()
    with pytest.raises(ValueError, match="POOL_TELEMETRY_COMMAND_SPANS is 'perhaps'"):
        instrumentor.instrument()
    assert not instrumentor.is_instrumented_by_opentelemetry
