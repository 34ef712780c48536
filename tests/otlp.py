"""Real OTLP receivers on loopback, gRPC and HTTP, which decode the received messages."""

import contextlib
import gzip
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc  # type: ignore[import-untyped]  # it has no types
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc
from opentelemetry.sdk.resources import Resource

from pool_telemetry.otel import Otlp
from pool_telemetry.otel.endpoint import metric_exporter

PROTOCOLS = ("grpc", "http/protobuf")


@dataclass
class Received:
    """The received messages, in order."""

    endpoint: str = ""
    metrics: list[Any] = field(default_factory=list)
    traces: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def latest(self) -> dict[str, Any]:
        """Return the last export's metrics by name."""
        metrics = [
            metric
            for resource in self.metrics[-1].resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]
        found = {metric.name: metric for metric in metrics}
        assert len(found) == len(metrics), "an export has a metric twice"
        return found

    @property
    def spans(self) -> list[Any]:
        """Return the spans of all exports, by their start."""
        found = [
            span
            for request in self.traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    @property
    def resource(self) -> dict[str, Any]:
        """Return the attributes of the last export's resource."""
        return attributes(self.metrics[-1].resource_metrics[0].resource.attributes)


def attributes(pairs: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in pairs}


@contextlib.contextmanager
def receiver(protocol: str) -> Iterator[Received]:
    with _over_grpc() if protocol == "grpc" else _over_http() as received:
        yield received


@contextlib.contextmanager
def _over_grpc() -> Iterator[Received]:
    received = Received()

    class Metrics(metrics_grpc.MetricsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC's name
            received.headers.append(dict(context.invocation_metadata()))
            received.metrics.append(request)
            return metrics_pb2.ExportMetricsServiceResponse()

    class Traces(trace_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC's name
            received.traces.append(request)
            return trace_pb2.ExportTraceServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(4))
    metrics_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)  # type: ignore[no-untyped-call]  # generated
    trace_grpc.add_TraceServiceServicer_to_server(Traces(), server)  # type: ignore[no-untyped-call]  # generated
    port = server.add_insecure_port("127.0.0.1:0")
    received.endpoint = f"http://127.0.0.1:{port}"
    server.start()
    try:
        yield received
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def _over_http() -> Iterator[Received]:
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # http.server's name
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/traces":
                received.traces.append(trace_pb2.ExportTraceServiceRequest.FromString(body))
                answer = trace_pb2.ExportTraceServiceResponse().SerializeToString()
            else:
                assert self.path == "/v1/metrics"
                received.headers.append({k.lower(): v for k, v in self.headers.items()})
                received.metrics.append(metrics_pb2.ExportMetricsServiceRequest.FromString(body))
                answer = metrics_pb2.ExportMetricsServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def exported(protocol: str) -> Received:
    """Return one export over a real connection, without the process's global provider."""
    with receiver(protocol) as received:
        make = partial(metric_exporter, protocol, received.endpoint)
        otlp = Otlp(Resource.create({"service.name": "shop"}), make)
        otlp.flush()
        otlp.close()
        return received
