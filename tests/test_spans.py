"""Spans of real operations, as a real OTLP receiver decodes them."""

import asyncio
import contextlib
import gc
import inspect
import json
import logging
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bson.son import SON
from opentelemetry import context, trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.instrumentation.pymongo import PymongoInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.semconv._incubating.attributes import db_attributes, network_attributes
from opentelemetry.semconv.attributes import error_attributes, server_attributes
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient, DeleteOne, MongoClient, UpdateOne, monitoring
from pymongo.errors import OperationFailure, PyMongoError, WaitQueueTimeoutError

from pool_telemetry import PoolTelemetry, TelemetryOptions, otel, prometheus
from pool_telemetry.demo.embedded import EmbeddedServer
from pool_telemetry.events import tracing
from pool_telemetry.otel.endpoint import metric_exporter, span_exporter
from pool_telemetry.otel.query_text import MAX_CHARACTERS, query_text
from tests.conftest import need_embedded_server
from tests.otlp import PROTOCOLS, attributes, receiver
from tests.proxy import Proxy
from tests.support import (
    PATIENCE_SECONDS,
    aexhausted,
    exhausted,
    hide_other_clients,
    pool_of,
    prometheus_families,
    slow,
    the_pool,
    traced_to,
    until,
    wait_for,
)

Client = MongoClient[dict[str, Any]]

INTERNAL, CLIENT = 1, 3
ERROR = 2
OWN = "mongodb.client.pool."


@dataclass
class Traced:
    """A client, and the exporter that keeps its spans."""

    client: Client
    telemetry: PoolTelemetry
    provider: TracerProvider
    exporter: InMemorySpanExporter

    @property
    def tracer(self) -> trace.Tracer:
        return self.provider.get_tracer("application")

    def spans(self, name: str = "") -> list[Any]:
        found = self.exporter.get_finished_spans()
        return [span for span in found if span.name == name or not name]


@pytest.fixture
def memory() -> Iterator[tuple[TracerProvider, InMemorySpanExporter]]:
    """Turn tracing on, with an exporter in memory."""
    exporter = InMemorySpanExporter()
    with traced_to(SimpleSpanProcessor(exporter)) as provider:
        yield provider, exporter


@pytest.fixture(autouse=True)
def no_checkout_is_slow(nothing_left_over: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, only a checkout that opens a connection or fails has a span."""
    monkeypatch.setenv("POOL_TELEMETRY_SLOW_CHECKOUT_SECONDS", str(PATIENCE_SECONDS))


@contextlib.contextmanager
def traced(
    uri: str,
    memory: tuple[TracerProvider, InMemorySpanExporter],
    options: TelemetryOptions | None = None,
    **kwargs: Any,
) -> Iterator[Traced]:
    telemetry = PoolTelemetry("traced", options=options)
    with MongoClient(uri, event_listeners=telemetry.listeners, **kwargs) as client:
        client.admin.command("ping")
        memory[1].clear()
        yield Traced(client, telemetry, *memory)
    assert telemetry.stats().telemetry_errors == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_span_and_attribute_arrives(server_uri: str, protocol: str) -> None:
    """One application span around a batch, a failing command and a checkout that times out."""
    host, port = "127.0.0.1", 0
    with receiver(protocol) as received:
        otlp = otel.Otlp(
            Resource.create({"service.name": "shop"}),
            partial(metric_exporter, protocol, received.endpoint),
            partial(span_exporter, protocol, received.endpoint),
        )
        assert otlp.tracer_provider is not None
        tracer = otlp.tracer_provider.get_tracer("application")
        telemetry = PoolTelemetry("shop", options=TelemetryOptions(query_text=True))
        client: Client = MongoClient(
            server_uri,
            event_listeners=telemetry.listeners,
            maxPoolSize=1,
            waitQueueTimeoutMS=50,
            retryReads=False,
        )
        with client, tracer.start_as_current_span("request"):
            orders = client["shop"]["orders"]
            orders.insert_many([{"n": 1}, {"n": 2}])
            with pytest.raises(OperationFailure):
                orders.find_one({"$nonsense": 1})
            (pool,) = telemetry.stats().open_pools
            host, port = pool.host, pool.port or 0
            with exhausted(client), pytest.raises(WaitQueueTimeoutError):
                orders.find_one()
            without_a_span = threading.Thread(target=orders.find_one)
            without_a_span.start()
            without_a_span.join()
        otlp.close()
        telemetry.close()
    by_name: dict[str, list[Any]] = {}
    for span in received.spans:
        by_name.setdefault(span.name, []).append(span)
    (request,) = by_name["request"]
    server = {
        "db.system.name": "mongodb",
        "server.address": host,
        "server.port": port,
    }
    pool_name = {"db.client.connection.pool.name": f"shop@{host}:{port}"}
    orders_of_shop = {"db.namespace": "shop", "db.collection.name": "orders"}

    (insert,) = by_name["insert orders"]
    found = attributes(insert.attributes)
    assert 0.0 < found.pop("mongodb.client.pool.wait_time") < 5.0
    assert found == {
        **server,
        **orders_of_shop,
        "db.operation.name": "insert",
        "db.operation.batch.size": 2,
        "db.query.text": '{"insert": "orders", "ordered": "?"}',
    }
    assert (insert.kind, insert.status.code) == (CLIENT, 0)

    failed, passed = by_name["find orders"]
    assert failed.status.code == ERROR
    assert not failed.status.message
    found = attributes(failed.attributes)
    assert 0.0 <= found.pop("mongodb.client.pool.wait_time") < 5.0
    assert json.loads(found.pop("db.query.text"))["filter"] == {"$nonsense": "?"}
    assert found == {
        **server,
        **orders_of_shop,
        "db.operation.name": "find",
        "error.type": "2",
        "db.response.status_code": "2",
    }
    assert passed.status.code == 0

    first, timed_out = by_name["checkout"]  # the first opened the connection
    assert attributes(first.attributes) == {**server, **pool_name}
    (connect,) = by_name["connect"]
    assert attributes(connect.attributes) == {**server, **pool_name}
    assert connect.parent_span_id == first.span_id
    assert first.start_time_unix_nano <= connect.start_time_unix_nano
    assert connect.end_time_unix_nano <= first.end_time_unix_nano
    assert attributes(timed_out.attributes) == {
        **server,
        **pool_name,
        "error.type": "timeout",
        "mongodb.client.pool.size": 1,
        "mongodb.client.pool.in_use": 1,
        "mongodb.client.pool.waiting": 0,  # no other caller
        "mongodb.client.pool.max_size": 1,
    }
    assert (timed_out.kind, timed_out.status.code) == (INTERNAL, ERROR)
    lasted = timed_out.end_time_unix_nano - timed_out.start_time_unix_nano
    assert 0.045e9 < lasted < 5e9
    for span in (insert, failed, first, timed_out):
        assert span.parent_span_id == request.span_id
    for span in (*by_name["insert orders"], failed, first, connect, timed_out):
        assert span.trace_id == request.trace_id
    assert passed.trace_id != request.trace_id  # from a thread without a span
    # The histograms' exemplars name the trace.
    for name in ("wait_time", "use_time"):
        points = received.latest[f"db.client.connection.{name}"].histogram.data_points
        exemplars = [e for point in points for e in point.exemplars]
        assert (request.trace_id, request.span_id) in [(e.trace_id, e.span_id) for e in exemplars]
        (point,) = (p for p in points if "shop@" in str(p.attributes))
        for exemplar in point.exemplars:
            bucket = bisect_left(point.explicit_bounds, exemplar.as_double)
            assert point.bucket_counts[bucket]
            assert point.start_time_unix_nano <= exemplar.time_unix_nano <= point.time_unix_nano
    points = received.latest["db.client.operation.duration"].histogram.data_points
    exemplars = [e for point in points for e in point.exemplars]
    ours = {insert.span_id, failed.span_id, passed.span_id}
    assert ours <= {e.span_id for e in exemplars}


def test_attributes_have_the_conventions_names(server_uri: str, memory: Any) -> None:
    known = {
        value
        for module in (db_attributes, error_attributes, network_attributes, server_attributes)
        for name, value in inspect.getmembers(module)
        if name.isupper()
    }
    with traced(server_uri, memory, TelemetryOptions(query_text=True)) as t:
        t.client["spans"]["t"].insert_many([{}, {}])
        with pytest.raises(OperationFailure):
            t.client["spans"].command("nonsense")
        found = {key for span in t.spans() for key in span.attributes}
        assert "db.query.text" in found
        assert "error.type" in found
        assert {key for key in found if not key.startswith(OWN)} <= known


def test_a_command_without_a_collection_is_named_by_its_database(
    server_uri: str, memory: Any
) -> None:
    with traced(server_uri, memory) as t:
        t.client.admin.command("ping")
        (span,) = t.spans()
        assert span.name == "ping admin"
        assert "db.collection.name" not in span.attributes
        assert "db.query.text" not in span.attributes  # the option is off by default


def test_only_a_command_with_two_or_more_operations_has_a_batch_size(
    server_uri: str, memory: Any
) -> None:
    with traced(server_uri, memory) as t:
        collection = t.client["spans"]["batches"]
        collection.insert_one({"_id": 1})
        collection.bulk_write([UpdateOne({"_id": n}, {"$set": {"n": n}}) for n in (1, 2, 3)])
        collection.bulk_write([DeleteOne({"_id": 1})])
        collection.drop()
        sizes = [(s.name, s.attributes.get("db.operation.batch.size")) for s in t.spans()]
        assert sizes == [
            ("insert batches", None),
            ("update batches", 3),
            ("delete batches", None),
            ("drop batches", None),
        ]


def test_a_slow_checkout_has_a_span_from_the_start_of_its_wait(
    server_uri: str, memory: Any
) -> None:
    options = TelemetryOptions(slow_checkout_seconds=0.5)
    with traced(server_uri, memory, options, maxPoolSize=1) as t:
        taken, seen = threading.Event(), []

        def hold() -> None:
            with exhausted(t.client):
                taken.set()
                wait_for(lambda: the_pool(t.telemetry).oldest_wait > 0.6)
                seen.append(time.time_ns())

        holder = threading.Thread(target=hold)
        holder.start()
        taken.wait()
        with t.tracer.start_as_current_span("request") as request:
            t.client["spans"]["t"].find_one()
        holder.join()
        (checkout,) = t.spans("checkout")  # the other one did not wait
        assert checkout.parent.span_id == request.get_span_context().span_id
        find = t.spans("find t")[-1]
        assert find.attributes["mongodb.client.pool.wait_time"] > 0.6
        assert (seen[0] - checkout.start_time) / 1e9 > 0.59  # its clock may differ a little
        assert (checkout.end_time - seen[0]) / 1e9 > -0.01
        assert checkout.end_time <= find.start_time
        assert "error.type" not in checkout.attributes


def test_only_the_first_command_of_a_checkout_has_its_wait_time(
    server_uri: str, memory: Any
) -> None:
    with traced(server_uri, memory, maxPoolSize=1) as t:
        documents = [{"text": "x" * 1_000_000} for _ in range(49)]  # a message has 48 MB at most
        t.client["spans"]["big"].insert_many(documents)
        t.client["spans"]["big"].drop()
        inserts = t.spans("insert big")
        assert len(inserts) > 1
        waits = ["mongodb.client.pool.wait_time" in span.attributes for span in inserts]
        assert waits == [True] + [False] * (len(inserts) - 1)


def test_a_failed_connect_has_failed_spans(memory: Any) -> None:
    with EmbeddedServer() as server, Proxy(server.port) as proxy:
        options: Any = {"retryReads": False, "heartbeatFrequencyMS": 60_000}
        with traced(proxy.uri, memory, **options) as t:
            with pool_of(t.client).checkout():
                proxy.refuse()
                with (
                    t.tracer.start_as_current_span("request") as request,
                    pytest.raises(PyMongoError),
                ):
                    t.client["spans"]["t"].find_one()
            (connect,) = t.spans("connect")
            (checkout,) = t.spans("checkout")
            for span, error in ((connect, "error"), (checkout, "connection_error")):
                assert span.status.status_code is trace.StatusCode.ERROR
                assert span.attributes["error.type"] == error
            assert connect.parent.span_id == checkout.context.span_id
            assert checkout.parent.span_id == request.get_span_context().span_id
            assert checkout.attributes["mongodb.client.pool.in_use"] == 1


def test_authentication_spans_are_children_of_the_connect_span(memory: Any, tmp_path: Path) -> None:
    need_embedded_server()
    storage = ("--storage-path", str(tmp_path / "data"))
    with EmbeddedServer(0, *storage) as server, MongoClient[Any](server.uri) as admin:
        admin.admin.command("createUser", "ann", pwd="s3cret", roles=["root"])
    with EmbeddedServer(0, *storage, "--auth") as server:
        uri = server.uri.replace("//", "//ann:s3cret@")
        with traced(uri, memory, TelemetryOptions(query_text=True)) as t:
            with pool_of(t.client).checkout(), t.tracer.start_as_current_span("request"):
                t.client["spans"]["t"].find_one()
            (connect,) = t.spans("connect")
            authentication = [span for span in t.spans() if span.name.startswith("sasl")]
            assert authentication
            for span in authentication:
                assert span.parent.span_id == connect.context.span_id
                assert "mongodb.client.pool.wait_time" not in span.attributes
            assert "s3cret" not in str([(s.name, dict(s.attributes)) for s in t.spans()])
            find = t.spans("find t")[-1]
            assert find.attributes["mongodb.client.pool.wait_time"] > 0.0


def test_connections_opened_in_the_background_have_no_spans(server_uri: str, memory: Any) -> None:
    with traced(server_uri, memory, minPoolSize=3) as t:
        wait_for(lambda: the_pool(t.telemetry).idle >= 3)
        assert t.spans("connect") == t.spans("checkout") == []


def test_the_span_of_a_cancelled_command_ends_as_cancelled(server_uri: str, memory: Any) -> None:
    _, exporter = memory

    async def main() -> None:
        telemetry = PoolTelemetry("cancel")
        client: AsyncMongoClient[Any] = AsyncMongoClient(
            server_uri, event_listeners=telemetry.listeners, appName="cancelspan"
        )
        with slow(server_uri, "cancelspan", 5_000, "find"):
            task = asyncio.create_task(client["spans"]["t"].find_one())
            await until(lambda: telemetry.stats().pools and telemetry.stats().pools[0].in_use)
            await until(lambda: [one for one in telemetry.callers()[0] if one.operation])
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await client.close()
        (span,) = [s for s in exporter.get_finished_spans() if s.name == "find t"]
        assert span.attributes["error.type"] == "cancelled"
        assert span.status.status_code is trace.StatusCode.ERROR

    asyncio.run(main())


def test_a_cancelled_wait_does_not_change_the_next_checkout_span(
    server_uri: str, memory: Any
) -> None:
    _, exporter = memory

    async def main() -> None:
        telemetry = PoolTelemetry("cancel")
        client: AsyncMongoClient[Any] = AsyncMongoClient(
            server_uri,
            event_listeners=telemetry.listeners,
            maxPoolSize=1,
            waitQueueTimeoutMS=100,
            retryReads=False,
        )
        await client["spans"]["t"].find_one()
        async with aexhausted(client):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await client["spans"]["t"].find_one()
            with pytest.raises(WaitQueueTimeoutError):
                await client["spans"]["t"].find_one()
        await client.close()
        failed = [
            s
            for s in exporter.get_finished_spans()
            if s.name == "checkout" and "error.type" in s.attributes
        ]
        (one,) = failed
        assert one.attributes["error.type"] == "timeout"
        assert (one.end_time - one.start_time) / 1e9 > 0.09

    asyncio.run(main())


def test_spans_of_asynchronous_operations_are_children_of_their_callers(
    server_uri: str, memory: Any
) -> None:
    provider, exporter = memory
    tracer = provider.get_tracer("application")

    async def one(client: AsyncMongoClient[Any], number: int) -> None:
        with tracer.start_as_current_span(f"request {number}"):
            await client["spans"]["t"].find_one({"n": number})

    async def main() -> None:
        telemetry = PoolTelemetry("async")
        async with AsyncMongoClient[Any](
            server_uri, event_listeners=telemetry.listeners, maxPoolSize=2
        ) as client:
            await asyncio.gather(*(one(client, n) for n in range(20)))

    asyncio.run(main())
    spans = exporter.get_finished_spans()
    requests = {s.context.span_id for s in spans if s.name.startswith("request")}
    finds = [s for s in spans if s.name == "find t"]
    assert len(finds) == 20
    assert {s.parent.span_id for s in finds} == requests


def test_suppressed_instrumentation_makes_no_spans(server_uri: str, memory: Any) -> None:
    for key in (_SUPPRESS_INSTRUMENTATION_KEY, "suppress_instrumentation"):
        with traced(server_uri, memory, maxPoolSize=1) as t:
            token = context.attach(context.set_value(key, True))
            try:
                t.client["spans"]["t"].find_one()
            finally:
                context.detach(token)
            assert t.spans() == []


def test_an_unsampled_trace_has_no_spans_and_no_exemplars(server_uri: str) -> None:
    exporter = InMemorySpanExporter()
    with (
        traced_to(SimpleSpanProcessor(exporter), ALWAYS_OFF) as provider,
        traced(server_uri, (provider, exporter)) as t,
    ):
        with t.tracer.start_as_current_span("request"):
            t.client["spans"]["t"].find_one()
        assert t.spans() == []
        (pool,) = t.telemetry.stats().pools
        assert not pool.wait_time.exemplars


def test_opentelemetry_is_not_called_while_tracing_is_off(
    server_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracing.spans is None
    touched: list[str] = []

    class Watched:
        def __getattribute__(self, name: str) -> Any:
            touched.append(name)
            raise AssertionError(name)

    for module in (context, trace):
        monkeypatch.setattr(module, "_RUNTIME_CONTEXT", Watched(), raising=False)
    telemetry = PoolTelemetry("untraced")
    with MongoClient[Any](server_uri, event_listeners=telemetry.listeners) as client:
        client["spans"]["t"].find_one()
    assert touched == []
    assert telemetry.stats().telemetry_errors == 0


# Exemplars


def test_exemplars_name_the_trace_and_span(server_uri: str, memory: Any) -> None:
    with traced(server_uri, memory) as t:
        with t.tracer.start_as_current_span("request") as request:
            t.client["spans"]["t"].find_one()
        here = request.get_span_context()
        (pool,) = t.telemetry.stats().pools
        caller = (here.trace_id, here.span_id)
        for histogram in (pool.wait_time, pool.use_time):
            assert caller in [one.link for one in histogram.exemplars.values()]
        (find,) = [o for o in t.telemetry.stats().operations if o.operation == "find"]
        (span,) = t.spans("find t")
        ((bucket, exemplar),) = find.duration.exemplars.items()
        assert exemplar.link == (span.context.trace_id, span.context.span_id)
        assert find.duration.counts[bucket] == 1
        registry = CollectorRegistry()
        prometheus.register(registry)
        text = prometheus.generate("application/openmetrics-text", registry)[0].decode()
        (shown,) = [
            sample.exemplar
            for family in prometheus_families(text)
            for sample in family.samples
            if sample.name == "db_client_operation_duration_seconds_bucket"
            and sample.labels["db_operation_name"] == "find"
            and "traced@" in sample.labels["db_client_connection_pool_name"]
            and sample.exemplar
        ]
        assert shown.labels == {
            "trace_id": f"{span.context.trace_id:032x}",
            "span_id": f"{span.context.span_id:016x}",
        }
        assert shown.value == exemplar.seconds
        assert float(shown.timestamp) == pytest.approx(exemplar.time, abs=1e-3)
        assert "trace_id" not in prometheus.generate(registry=registry)[0].decode()


def test_exemplars_reach_an_applications_own_meter_provider(
    server_uri: str, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = InMemoryMetricReader()
    meter_provider = MeterProvider([reader])
    otel.register(meter_provider)
    with traced(server_uri, memory) as t:
        with t.tracer.start_as_current_span("request") as request:
            t.client["spans"]["t"].find_one()
        stats = t.telemetry.stats()
        hide_other_clients(t.telemetry, monkeypatch)  # ended ones of this name have counts, too
        data: Any = reader.get_metrics_data()
    otel.unregister(meter_provider)
    meter_provider.shutdown()
    (waits,) = [
        point
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        if metric.name == "db.client.connection.wait_time"
        for point in metric.data.data_points
        if point.attributes["db.client.connection.pool.name"].startswith("traced@")
    ]
    ours = stats.pools[0].wait_time
    assert request.get_span_context().trace_id in [one.trace_id for one in waits.exemplars]
    known = {(one.link, one.seconds) for one in ours.exemplars.values()}
    assert {((e.trace_id, e.span_id), e.value) for e in waits.exemplars} == known
    assert waits.bucket_counts == ours.counts
    assert waits.sum == pytest.approx(ours.sum)


# Coexistence


@pytest.fixture
def their_instrumentor() -> Iterator[PymongoInstrumentor]:
    """Yield opentelemetry-instrumentation-pymongo, and remove its listener afterwards."""
    instrumentor = PymongoInstrumentor()
    yield instrumentor
    instrumentor.uninstrument()
    monitoring._LISTENERS.command_listeners.remove(instrumentor._commandtracer_instance)
    instrumentor._commandtracer_instance = None


def test_command_spans_are_not_doubled(
    server_uri: str,
    memory: Any,
    their_instrumentor: PymongoInstrumentor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider, _ = memory
    their_instrumentor.instrument(tracer_provider=provider)
    with traced(server_uri, memory) as t:
        for _ in range(2):
            t.client["spans"]["t"].find_one()
        assert [span.name for span in t.spans()] == ["spans.find", "spans.find"]
        (logged,) = [r.getMessage() for r in caplog.records if r.name == "pool_telemetry.otel"]
        assert "opentelemetry-instrumentation-pymongo already makes command spans" in logged
        assert "POOL_TELEMETRY_COMMAND_SPANS=true" in logged
        their_instrumentor.uninstrument()  # pool_telemetry makes the spans from now on
        t.exporter.clear()
        t.client["spans"]["t"].find_one()
        assert [span.name for span in t.spans()] == ["find t"]
        their_instrumentor.instrument()
    options = TelemetryOptions(command_spans=True)
    with traced(server_uri, memory, options) as t:
        t.client["spans"]["t"].find_one()
        assert {span.name for span in t.spans()} == {"spans.find", "find t"}
    options = TelemetryOptions(command_spans=False, slow_checkout_seconds=0.0)
    their_instrumentor.uninstrument()
    with traced(server_uri, memory, options) as t:
        t.client["spans"]["t"].find_one()
        assert {span.name for span in t.spans()} == {"checkout"}
    their_instrumentor.instrument()


def test_command_spans_of_pymongo_itself_are_not_doubled(
    server_uri: str, memory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """PyMongo's next version makes its own spans; the operation's span is current meanwhile."""
    provider, _ = memory
    native = provider.get_tracer("PyMongo", "4.21.0")
    with traced(server_uri, memory) as t:
        for _ in range(2):
            with native.start_as_current_span("find spans.t", kind=trace.SpanKind.CLIENT):
                t.client["spans"]["t"].find_one()
        first, second = t.spans()
        assert first.name == second.name == "find spans.t"
        # PyMongo's span gets the wait time.
        assert first.attributes["mongodb.client.pool.wait_time"] > 0.0
        logged = [r.getMessage() for r in caplog.records if r.name == "pool_telemetry.otel"]
        assert len(logged) == 1
        assert "PyMongo already makes command spans" in logged[0]


# The text of a query


def test_a_query_text_has_no_value() -> None:
    command = SON(
        [
            ("aggregate", "orders"),
            (
                "pipeline",
                [
                    {"$match": {"card": "s3cr3t", "n": {"$in": [1, 2]}, "at": [{"x": b"s3cr3t"}]}},
                    {"$limit": 5},
                ],
            ),
            ("cursor", {}),
            ("comment", "s3cr3t"),
            ("lsid", {"id": 1}),
            ("$db", "shop"),
        ]
    )
    text = query_text(command, ("aggregate", "collection"))
    assert json.loads(text) == {
        "aggregate": "orders",
        "pipeline": [
            {"$match": {"card": "?", "n": {"$in": "?"}, "at": [{"x": "?"}]}},
            {"$limit": "?"},
        ],
        "cursor": {},
        "comment": "?",
    }
    assert json.loads(query_text({"createUser": "ann"})) == {"createUser": "?"}


def test_a_query_text_is_bounded() -> None:
    deep: Any = 1
    for _ in range(400):
        deep = {"a": [deep, deep]}
    wide = {"updates": [{"q": {f"f{i}": i}, "u": {}} for i in range(100_000)]}
    for command in ({"find": "t", "filter": deep}, {"update": "t", **wide}):
        assert len(query_text(command)) <= MAX_CHARACTERS


# Faults around the tracer


class _Lock(SpanProcessor):
    """A processor with a lock that is not reentrant, such as some exporters have."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.ended = 0

    def on_end(self, span: Any) -> None:
        assert self.lock.acquire(timeout=5.0), "the thread waits for its own lock"
        self.ended += 1
        self.lock.release()


class _Cycle:
    """A reference cycle whose finalizer uses a client."""

    def __init__(self, client: Client) -> None:
        self.me = self
        self.client = client

    def __del__(self) -> None:
        self.client["spans"]["t"].find_one()


def test_a_garbage_collection_inside_the_sdks_lock_makes_no_span(server_uri: str) -> None:
    processor = _Lock()
    with traced_to(processor):
        telemetry = PoolTelemetry("collected")
        with MongoClient[Any](server_uri, event_listeners=telemetry.listeners) as client:
            client.admin.command("ping")
            before = processor.ended
            _Cycle(client)
            with processor.lock:
                gc.collect()
            assert processor.ended == before
            (find,) = [o for o in telemetry.stats().operations if o.operation == "find"]
            assert find.duration.count == 1  # the metrics still count it
            client["spans"]["t"].find_one()
            assert processor.ended == before + 1
        assert telemetry.stats().telemetry_errors == 0


class _Broken(SpanProcessor):
    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("broken")


def test_a_broken_span_processor_changes_neither_results_nor_counts(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    with traced_to(_Broken()):
        telemetry = PoolTelemetry("broken", options=TelemetryOptions(slow_checkout_seconds=0.0))
        with MongoClient[Any](server_uri, event_listeners=telemetry.listeners) as client:
            for _ in range(3):
                client["spans"]["t"].find_one()
            stats = telemetry.stats()
            assert stats.pools[0].in_use == stats.pools[0].waiting == 0
            assert stats.pools[0].checkouts["ok"] >= 3
            assert sum(o.duration.count for o in stats.operations if o.operation == "find") == 3
            assert stats.telemetry_errors > 0
        assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1


def test_tracing_can_start_and_stop_while_a_client_works(server_uri: str) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry = PoolTelemetry("onoff")
    stop = threading.Event()

    def work(client: Client) -> None:
        while not stop.is_set():
            client["spans"]["t"].find_one()

    with MongoClient[Any](server_uri, event_listeners=telemetry.listeners) as client:
        threads = [threading.Thread(target=work, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(50):
            otel.start_tracing(provider)
            wait_for(exporter.get_finished_spans)
            otel.stop_tracing()
            exporter.clear()
        stop.set()
        for thread in threads:
            thread.join()
    assert telemetry.stats().telemetry_errors == 0
    provider.shutdown()


def test_field_names_are_shown_only_with_the_option_query_text(
    server_uri: str, memory: Any
) -> None:
    for options in (TelemetryOptions(), TelemetryOptions(query_text=True)):
        with traced(server_uri, memory, options) as t:
            t.client["spans"]["t"].find_one({"s3cr3t": 1})
            assert ("s3cr3t" in t.spans("find t")[0].to_json()) == options.query_text
