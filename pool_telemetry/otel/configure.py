"""OTLP for an application without an OpenTelemetry set-up: providers, exporters, and their end.

All other settings come from the standard `OTEL_*` variables, which the SDK and its exporters read
themselves: endpoint, headers, timeout, compression, resource, export interval, sampler.
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
from pool_telemetry.otel.exporter import HistogramExporter
from pool_telemetry.otel.metrics import register, unregister
from pool_telemetry.otel.spans import start_tracing, stop_tracing
from pool_telemetry.process import ProcessLock, after_fork, threads_are_known
from pool_telemetry.ranges import shown

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

_lock: Final = ProcessLock()
_current: "Otlp | None" = None
_service_name: str | None = None


class Otlp:
    """The providers that `configure_otlp()` made; they are closed when the process ends.

    Attributes:
        meter_provider: Sends every client's metrics and all others recorded on it. None if metrics
            are off.
        tracer_provider: Sends every client's spans and all others made with it. None if spans are
            off.
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
        self._metric_exporter, self._span_exporter = metric_exporter, span_exporter
        self.begin(resource)
        atexit.register(self.close)

    def begin(self, resource: Resource) -> None:
        """Make the providers: once more in a process that was forked in C.

        There the SDK's threads do not exist, and nobody told it: what it counted is the parent's.
        """
        if self.tracer_provider is not None:
            stop_tracing(self.tracer_provider)
        if self.meter_provider is not None:
            unregister(self.meter_provider)
        metric_exporter, span_exporter = self._metric_exporter, self._span_exporter
        if span_exporter is not None:
            self._batches = _Batches(span_exporter)  # raises if an OTEL_BSP_* variable is invalid
        if metric_exporter is not None:
            exporter = HistogramExporter(metric_exporter)
            reader = PeriodicExportingMetricReader(exporter)
            self.meter_provider = MeterProvider([reader], resource, shutdown_on_exit=False)
            register(self.meter_provider, exporter)
        if self._batches is not None:
            self.tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            self.tracer_provider.add_span_processor(self._batches)
            start_tracing(self.tracer_provider)

    def flush(self, timeout_seconds: float = FLUSH_SECONDS) -> None:
        """Send all metrics and spans now; return after about this time at the latest.

        If no collector listens, it returns after 1 s.
        """
        addresses = {self._metric_address, self._span_address}
        until = time.monotonic() + max(_patience(one, timeout_seconds) for one in addresses)
        providers = (self.meter_provider, self.tracer_provider)
        # In threads, because the providers wait for their exporters' timeouts, 10 s by default.
        threads = [
            threading.Thread(target=one.force_flush, daemon=True) for one in providers if one
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def close(self, timeout_seconds: float = FLUSH_SECONDS) -> None:
        """Send the remaining data and shut down within about this time; a repeat does nothing.

        If no collector listens, it returns after 1 s.
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
            # A collector that did not accept the spans won't accept the metrics in time either.
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
        """Send the remaining spans within `seconds`; the SDK's own shutdown takes up to 30 s."""
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

    Makes its own providers and sets them as the global ones, except if others are already set.
    OpenTelemetry lets them be set only once, so after a `close()` they are not set again. A
    repeated call returns the same providers.

    A missing collector costs log lines, and about 1 s at the end of the process. A collector that
    accepts connections but does not answer costs 5 s there.

    Args:
        service_name: The service's name; by default `OTEL_SERVICE_NAME`.
        endpoint: The collector, such as `http://localhost:4317`, or port 4318 for HTTP. By default
            `OTEL_EXPORTER_OTLP_ENDPOINT`, or the variable of each signal.
        protocol: By default `OTEL_EXPORTER_OTLP_PROTOCOL`, or gRPC.
        metrics: Whether metrics are sent; by default unless `OTEL_METRICS_EXPORTER` is `none`.
        traces: Whether spans are made; by default unless `OTEL_TRACES_EXPORTER` is `none`.

    Raises:
        PoolConfigurationError: The protocol is unknown, or the endpoint is not a URL or contains
            credentials. Exporters log the endpoint: put credentials into
            OTEL_EXPORTER_OTLP_HEADERS.
    """
    global _current, _service_name
    if endpoint is not None and ("://" not in endpoint or "@" in endpoint):
        words = "use http://host:port or https://host:port, without credentials"
        raise PoolConfigurationError(f"endpoint is {shown(endpoint)}: {words}")
    with _lock:
        if _current is None:
            _service_name = service_name
            by = {signal: _protocol(protocol, signal) for signal in ("METRICS", "TRACES")}
            _current = Otlp(
                _resource(),
                _metric_exporter(by["METRICS"], endpoint) if _wanted(metrics, "METRICS") else None,
                _span_exporter(by["TRACES"], endpoint) if _wanted(traces, "TRACES") else None,
                metric_address=_address(by["METRICS"], "METRICS", endpoint),
                span_address=_address(by["TRACES"], "TRACES", endpoint),
            )
            _make_global(_current)
        return _current


def _resource() -> Resource:
    # Older SDKs give none, and two processes of a service would write the same series.
    instance = Resource({"service.instance.id": str(uuid.uuid4())})
    given = {"service.name": _service_name} if _service_name else None
    return instance.merge(Resource.create(given))


@after_fork
def _begin_anew() -> None:
    if _current is not None and not threads_are_known():
        _current.begin(_resource())


def _wanted(given: bool | None, signal: str) -> bool:
    if given is not None:
        return given
    return os.environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower() != "none"


def _make_global(otlp: Otlp) -> None:
    """Set these providers as the global ones, except if others are already set."""
    if otlp.meter_provider and _is_unset(metrics_api.get_meter_provider()):
        metrics_api.set_meter_provider(otlp.meter_provider)
    if otlp.tracer_provider and _is_unset(trace.get_tracer_provider()):
        trace.set_tracer_provider(otlp.tracer_provider)


def flush(timeout_seconds: float = FLUSH_SECONDS) -> None:
    """Send the metrics and spans of `configure_otlp()` now, within about this time.

    Does nothing before `configure_otlp()`. Call it if the process ends without running atexit.
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
    # Imported on first use, because gRPC alone takes 100 ms to import.
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
    """Return whether a provider is the API's placeholder, which stands until one is set."""
    return type(provider).__module__.startswith(("opentelemetry.metrics", "opentelemetry.trace"))
