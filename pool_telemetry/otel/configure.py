"""OTLP for an application that has no OpenTelemetry set-up: providers, exporters, and their end.

What is not given here comes from the standard `OTEL_*` variables, which the SDK and its exporters
read themselves: endpoint, headers, timeout, compression, resource, export interval, sampler.
"""

import atexit
import contextlib
import os
import socket
import threading
import time
import uuid
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

from opentelemetry import metrics as metrics_api
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from pool_telemetry.errors import PoolConfigurationError
from pool_telemetry.options import shown
from pool_telemetry.otel.exporter import HistogramExporter
from pool_telemetry.otel.metrics import register, unregister
from pool_telemetry.otel.spans import start_tracing, stop_tracing

Protocol = Literal["grpc", "http/protobuf"]

FLUSH_SECONDS: Final = 5.0
# For a collector that takes no TCP connection. An exporter learns it from its first attempt, and
# then retry for 10 s; this is enough for that attempt.
DEAD_SECONDS: Final = 0.5
CONNECT_SECONDS: Final = 0.5

Address = tuple[str, int]
_PROXIES: Final = [
    form
    for name in ("grpc_proxy", "http_proxy", "https_proxy", "all_proxy")
    for form in (name, name.upper())
]

_lock: Final = threading.RLock()
_current: "Otlp | None" = None


class Otlp:
    """What `configure_otlp()` made; the end of the process closes it.

    Attributes:
        meter_provider: Sends every client's metrics, and what else is recorded on it. None: none.
        tracer_provider: Sends their spans, and what else is made with it. None: none.
    """

    def __init__(
        self,
        resource: Resource,
        metric_exporter: MetricExporter | None = None,
        span_exporter: SpanExporter | None = None,
        *,
        metric_address: Address | None = None,
        span_address: Address | None = None,
    ) -> None:
        self._closed = False
        self._metric_address, self._span_address = metric_address, span_address
        self.meter_provider: MeterProvider | None = None
        self.tracer_provider: TracerProvider | None = None
        self._batches: _Batches | None = None
        if span_exporter is not None:
            self._batches = _Batches(span_exporter)  # refuses variables that are wrong
        if metric_exporter is not None:
            exporter = HistogramExporter(metric_exporter)
            reader = PeriodicExportingMetricReader(exporter)
            self.meter_provider = MeterProvider([reader], resource, shutdown_on_exit=False)
            register(self.meter_provider, exporter)
        if self._batches is not None:
            self.tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            self.tracer_provider.add_span_processor(self._batches)
            start_tracing(self.tracer_provider)
        atexit.register(self.close)

    def flush(self, timeout_seconds: float = FLUSH_SECONDS) -> None:
        """Send what there is now; give up after about this time, or 1 s if no collector listens."""
        addresses = {self._metric_address, self._span_address}
        until = time.monotonic() + max(_patience(one, timeout_seconds) for one in addresses)
        providers = (self.meter_provider, self.tracer_provider)
        # Their own time-outs are those of the exporters, 10 s by default.
        threads = [
            threading.Thread(target=one.force_flush, daemon=True) for one in providers if one
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def close(self, timeout_seconds: float = FLUSH_SECONDS) -> None:
        """Send what is left, and end, within about this time, or 1 s if no collector listens.

        Again is no error.
        """
        global _current
        with _lock:
            if self._closed:
                return
            self._closed = True
            if _current is self:
                _current = None
        atexit.unregister(self.close)
        until = time.monotonic() + timeout_seconds
        if self.tracer_provider is not None and self._batches is not None:
            stop_tracing(self.tracer_provider)
            self._batches.seconds = _patience(self._span_address, timeout_seconds)
            self.tracer_provider.shutdown()
        if self.meter_provider is not None:
            # A collector that took no spans in the whole time takes no metrics either.
            left = max(0.1, until - time.monotonic())
            self.meter_provider.shutdown(_patience(self._metric_address, left) * 1e3)
            unregister(self.meter_provider)


def _patience(address: Address | None, timeout_seconds: float) -> float:
    """Return the seconds for a last export: few if nothing listens at the address.

    None, an address that is not known, has the whole time.
    """
    if address is None:
        return timeout_seconds
    with contextlib.suppress(OSError), socket.create_connection(address, CONNECT_SECONDS):
        return timeout_seconds
    return min(timeout_seconds, DEAD_SECONDS)


class _Batches(BatchSpanProcessor):
    seconds = FLUSH_SECONDS

    def shutdown(self) -> None:
        """Send what is left within the bound; the SDK's own takes up to 30 s."""
        self._batch_processor.shutdown(int(self.seconds * 1e3))


def configure_otlp(
    service_name: str | None = None,
    *,
    endpoint: str | None = None,
    protocol: Protocol | None = None,
    metrics: bool | None = None,
    traces: bool | None = None,
) -> Otlp:
    """Send every client's metrics and spans, present and future, to an OpenTelemetry collector.

    Makes providers of its own, and sets them as the global ones unless somebody set others (nor
    after a `close()`: OpenTelemetry lets them be set once). Again, it returns what it made.

    A collector that is not there costs log lines, and about 1 s at the end of the process; one that
    takes connections and does not answer costs 5 s there.

    Args:
        service_name: By default `OTEL_SERVICE_NAME`.
        endpoint: Such as `http://localhost:4317`, or 4318 for HTTP; by default
            `OTEL_EXPORTER_OTLP_ENDPOINT`, or the one for each signal.
        protocol: By default `OTEL_EXPORTER_OTLP_PROTOCOL`, or gRPC.
        metrics: Whether metrics are sent; by default unless `OTEL_METRICS_EXPORTER` is `none`.
        traces: Whether spans are made; by default unless `OTEL_TRACES_EXPORTER` is `none`.

    Raises:
        PoolConfigurationError: The protocol is none of the two, or the endpoint is no URL, or has
            credentials, which exporters log: OTEL_EXPORTER_OTLP_HEADERS is for them.
    """
    global _current
    if endpoint is not None and ("://" not in endpoint or "@" in endpoint):
        words = "use http://host:port or https://host:port, without credentials"
        raise PoolConfigurationError(f"endpoint is {shown(endpoint)}: {words}")
    with _lock:
        if _current is None:
            # Older SDKs give none, and two processes of a service would write the same series.
            instance = Resource({"service.instance.id": str(uuid.uuid4())})
            given = {"service.name": service_name} if service_name else None
            resource = instance.merge(Resource.create(given))
            by = {signal: _protocol(protocol, signal) for signal in ("METRICS", "TRACES")}
            _current = Otlp(
                resource,
                _metric_exporter(by["METRICS"], endpoint) if _wanted(metrics, "METRICS") else None,
                _span_exporter(by["TRACES"], endpoint) if _wanted(traces, "TRACES") else None,
                metric_address=_address(by["METRICS"], "METRICS", endpoint),
                span_address=_address(by["TRACES"], "TRACES", endpoint),
            )
            _make_global(_current)
        return _current


def _wanted(given: bool | None, signal: str) -> bool:
    if given is not None:
        return given
    return os.environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower() != "none"


def _make_global(otlp: Otlp) -> None:
    """Make its providers the global ones, where nobody set others."""
    if otlp.meter_provider and _is_unset(metrics_api.get_meter_provider()):
        metrics_api.set_meter_provider(otlp.meter_provider)
    if otlp.tracer_provider and _is_unset(trace.get_tracer_provider()):
        trace.set_tracer_provider(otlp.tracer_provider)


def flush(timeout_seconds: float = FLUSH_SECONDS) -> None:
    """Send now, within about this time, what is to be sent if `configure_otlp()` was called.

    For who ends a process in another way than by leaving its main module.
    """
    with _lock:
        current = _current
    if current is not None:
        current.flush(timeout_seconds)


def _protocol(given: str | None, signal: str) -> str:
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        given = given or os.environ.get(name)
    given = given or "grpc"
    if given not in get_args(Protocol):
        raise PoolConfigurationError(f"protocol is {shown(given)}: use grpc or http/protobuf")
    return given


def _address(protocol: str, signal: str, endpoint: str | None) -> Address | None:
    """Return where the exporter of a signal connects to; None if it is not known.

    Behind a proxy, which exporters read from the environment, that is another address.
    """
    if any(os.environ.get(name) for name in _PROXIES):
        return None
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        endpoint = endpoint or os.environ.get(name)
    grpc = protocol == "grpc"
    url = urlsplit(endpoint or f"http://localhost:{4317 if grpc else 4318}")
    try:
        port = url.port or (None if grpc else {"http": 80, "https": 443}.get(url.scheme))
    except ValueError:
        return None
    return (url.hostname, port) if url.hostname and port else None


def _metric_exporter(protocol: str, endpoint: str | None) -> MetricExporter:
    # Each on first use: gRPC alone takes 100 ms to import.
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as grpc

        return grpc.OTLPMetricExporter(endpoint)
    from opentelemetry.exporter.otlp.proto.http import metric_exporter as http

    return http.OTLPMetricExporter(endpoint and endpoint.rstrip("/") + "/v1/metrics")


def _span_exporter(protocol: str, endpoint: str | None) -> SpanExporter:
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc

        return grpc.OTLPSpanExporter(endpoint)
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as http

    return http.OTLPSpanExporter(endpoint and endpoint.rstrip("/") + "/v1/traces")


def _is_unset(provider: object) -> bool:
    """Return whether it is one of the API's own, which stand in until one is set."""
    return type(provider).__module__.startswith(("opentelemetry.metrics", "opentelemetry.trace"))
