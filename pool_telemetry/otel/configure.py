"""OTLP for an application without an OpenTelemetry set-up: providers, exporters, and their end.

All other settings come from the standard `OTEL_*` variables, which the SDK and its exporters read
themselves: endpoint, headers, timeout, compression, resource, export interval, sampler.
"""

import atexit
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from opentelemetry import metrics as metrics_api
from opentelemetry import trace
from opentelemetry.sdk import resources
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from pool_telemetry.otel import metrics as our_metrics
from pool_telemetry.otel import spans as our_spans
from pool_telemetry.otel.endpoint import (
    DEAD_SECONDS,
    Address,
    Protocol,
    address_of,
    check_endpoint,
    metric_exporter,
    patience_for,
    protocol_of,
    span_exporter,
)
from pool_telemetry.otel.exporter import HistogramExporter
from pool_telemetry.process import ProcessLock, after_fork, threads_are_known
from pool_telemetry.process_end import on_end

FLUSH_SECONDS: Final = 5.0
# A process may have several ends, such as `close()` and atexit. After an end at which no collector
# answered, the next ones do not wait for it again.
FORGET_SECONDS: Final = 30.0

_log = logging.getLogger("pool_telemetry.otel")

_lock: Final = ProcessLock()
_current: "Otlp | None" = None
_unanswered_at = -math.inf  # monotonic


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
        make_metric_exporter: Callable[[], MetricExporter] | None = None,
        make_span_exporter: Callable[[], SpanExporter] | None = None,
        *,
        metric_address: Address | None = None,
        span_address: Address | None = None,
    ) -> None:
        self._closed = False
        self._resource = resource
        self._make_metric_exporter = make_metric_exporter
        self._make_span_exporter = make_span_exporter
        self._metric_address, self._span_address = metric_address, span_address
        self.meter_provider: MeterProvider | None = None
        self.tracer_provider: TracerProvider | None = None
        # The providers of this process, and before them those of the processes it was forked from:
        # the application's own instruments and tracers may still use them.
        self._meter_providers: list[MeterProvider] = []
        self._tracer_providers: list[tuple[TracerProvider, _Batches]] = []
        self._begin()
        atexit.register(self.close)

    def begin_in_child(self) -> None:
        """Make new providers and exporters in a forked process, whose counts begin at 0.

        The SDK would count on from its parent's numbers, and use its parent's connections.
        """
        renewed = {**self._resource.attributes, **_instance().attributes}
        # In place, because SDKs before 1.44 keep the parent's in the providers that there are.
        Resource.__init__(self._resource, renewed, self._resource.schema_url)
        # The application may have turned one off, or sent the spans elsewhere.
        metrics = self.meter_provider in our_metrics.registered_providers()
        traces = self.tracer_provider is our_spans.current_provider()
        if metrics:
            our_metrics.unregister(self.meter_provider)
        if not threads_are_known():  # the SDK notices no fork in C: its threads are not there
            self._meter_providers.clear()
            self._tracer_providers.clear()
        self._begin(metrics=metrics, traces=traces)

    def _begin(self, *, metrics: bool = True, traces: bool = True) -> None:
        if self._make_span_exporter is not None:
            # Raises if an OTEL_BSP_* variable is invalid.
            batches = _Batches(self._make_span_exporter())
        if self._make_metric_exporter is not None:
            exporter = HistogramExporter(self._make_metric_exporter())
            reader = PeriodicExportingMetricReader(exporter)
            self.meter_provider = MeterProvider([reader], self._resource, shutdown_on_exit=False)
            self._meter_providers.append(self.meter_provider)
            if metrics:
                our_metrics.register(self.meter_provider, exporter)
        if self._make_span_exporter is not None:
            self.tracer_provider = TracerProvider(resource=self._resource, shutdown_on_exit=False)
            self.tracer_provider.add_span_processor(batches)
            self._tracer_providers.append((self.tracer_provider, batches))
            if traces:
                our_spans.start_tracing(self.tracer_provider)

    def flush(self, timeout_seconds: float = FLUSH_SECONDS) -> None:
        """Send all metrics and spans now; return after about this time at the latest.

        If no collector listens, it returns after 1 s.
        """
        _force_flush(self._providers(timeout_seconds))

    def _providers(self, timeout_seconds: float) -> "dict[_Provider, float]":
        """Return the providers to flush, with the seconds for all of them."""
        addresses = {self._metric_address, self._span_address}
        seconds = max(patience_for(one, timeout_seconds) for one in addresses)
        tracer_providers = [provider for provider, _ in self._tracer_providers]
        return dict.fromkeys([*self._meter_providers, *tracer_providers], seconds)

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
        if _is_unanswered():
            timeout_seconds = min(timeout_seconds, DEAD_SECONDS)
        until = time.monotonic() + timeout_seconds
        for tracer_provider, batches in reversed(self._tracer_providers):
            our_spans.stop_tracing(tracer_provider)
            left = max(0.1, until - time.monotonic())
            batches.seconds = patience_for(self._span_address, left)
            tracer_provider.shutdown()
        for meter_provider in reversed(self._meter_providers):
            # A collector that did not accept the spans won't accept the metrics in time either.
            left = max(0.1, until - time.monotonic())
            meter_provider.shutdown(patience_for(self._metric_address, left) * 1e3)
            our_metrics.unregister(meter_provider)


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

    A process that is forked from this one gets providers and an instance id of its own, and its
    counts begin at 0. The application's own instruments and tracers keep the parent's providers
    there, as the SDK does. Forks while another thread exports are safer over http/protobuf, because
    gRPC does not prepare itself for these.

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
        PoolConfigurationError: The protocol is unknown, the endpoint is not a URL or contains
            credentials (also in the environment), or an entry of OTEL_EXPORTER_OTLP_HEADERS is not
            `name=value`. Exporters log these: put credentials into a header.
    """
    global _current
    check_endpoint(endpoint)
    with _lock:
        if _current is None:
            makers: dict[str, Any] = {"METRICS": metric_exporter, "TRACES": span_exporter}
            by = {signal: protocol_of(protocol, signal) for signal in makers}
            given = {"METRICS": metrics, "TRACES": traces}
            makes = (
                partial(make, by[signal], endpoint) if _wanted(given[signal], signal) else None
                for signal, make in makers.items()
            )
            _current = Otlp(
                _instance().merge(
                    Resource.create({"service.name": service_name} if service_name else None)
                ),
                *makes,
                metric_address=address_of(by["METRICS"], "METRICS", endpoint),
                span_address=address_of(by["TRACES"], "TRACES", endpoint),
            )
            _make_global(_current)
        return _current


def _instance() -> Resource:
    """Return this process's id, without which two processes of a service write the same series.

    SDKs before 1.44 have none. Later ones renew theirs in a forked process, also an explicit one.
    """
    detector: Any = getattr(resources, "ServiceInstanceIdResourceDetector", None)
    if detector is None:
        return Resource({"service.instance.id": str(uuid.uuid4())})
    found: Resource = detector().detect()
    return found


@after_fork
def _begin_anew() -> None:
    if _current is None:
        return
    try:
        _current.begin_in_child()
    except Exception:  # noqa: BLE001  # such as a certificate that this process may not read
        _log.warning("OTLP: this forked process sends no metrics and spans", exc_info=True)


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
    """Send the metrics and spans of all clients now, within about this time.

    It flushes the providers of `configure_otlp()`, of `register()` and of `start_tracing()`, which
    are the global ones under `opentelemetry-instrument`. Call it if the process ends without
    running atexit. A pool's `close()` and `fastapi.create_router()` call it.
    """
    with _lock:
        current = _current
    others = [*our_metrics.registered_providers(), our_spans.current_provider()]
    providers = {one: timeout_seconds for one in others if hasattr(one, "force_flush")}
    if current is not None:
        providers.update(current._providers(timeout_seconds))
    _force_flush(providers)


@on_end
def _flush_at_end() -> None:
    if not _is_unanswered():
        flush()


def _is_unanswered() -> bool:
    return time.monotonic() - _unanswered_at < FORGET_SECONDS


_Provider = Any  # the SDK's MeterProvider or TracerProvider


def _force_flush(providers: dict[_Provider, float]) -> None:
    """Flush each provider within its seconds."""
    global _unanswered_at
    began = time.monotonic()
    # In threads, because the providers wait for their exporters' timeouts, 10 s by default.
    threads = {
        threading.Thread(target=one.force_flush, daemon=True): seconds
        for one, seconds in providers.items()
    }
    for thread in threads:
        thread.start()
    for thread, seconds in threads.items():
        thread.join(max(0.0, began + seconds - time.monotonic()))
    _unanswered_at = time.monotonic() if any(map(threading.Thread.is_alive, threads)) else -math.inf


def _is_unset(provider: object) -> bool:
    """Return whether a provider is the API's placeholder, which stands until one is set."""
    return type(provider).__module__.startswith(("opentelemetry.metrics", "opentelemetry.trace"))
