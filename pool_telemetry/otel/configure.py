"""OTLP for an application that has no OpenTelemetry set-up: provider, exporter, and their end.

What is not given here comes from the standard `OTEL_*` variables, which the SDK and its exporters
read themselves: endpoint, headers, timeout, compression, resource, export interval.
"""

import atexit
import os
import threading
from typing import Final, Literal, get_args

from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from pool_telemetry.errors import PoolConfigurationError
from pool_telemetry.options import shown
from pool_telemetry.otel.exporter import HistogramExporter
from pool_telemetry.otel.metrics import register, unregister

Protocol = Literal["grpc", "http/protobuf"]

FLUSH_SECONDS: Final = 5.0

_lock: Final = threading.RLock()
_current: "Otlp | None" = None


class Otlp:
    """What `configure_otlp()` made; the end of the process closes it.

    Attributes:
        meter_provider: Sends every client's metrics, and what else is recorded on it.
    """

    def __init__(self, resource: Resource, metric_exporter: MetricExporter) -> None:
        self._closed = False
        exporter = HistogramExporter(metric_exporter)
        reader = PeriodicExportingMetricReader(exporter)
        self.meter_provider = MeterProvider([reader], resource, shutdown_on_exit=False)
        register(self.meter_provider, exporter)
        atexit.register(self.close)

    def flush(self, timeout_seconds: float = FLUSH_SECONDS) -> None:
        """Send what there is now."""
        self.meter_provider.force_flush(timeout_seconds * 1e3)

    def close(self, timeout_seconds: float = FLUSH_SECONDS) -> None:
        """Send what is left, and end, within about this time; again is no error."""
        global _current
        with _lock:
            if self._closed:
                return
            self._closed = True
            if _current is self:
                _current = None
        atexit.unregister(self.close)
        self.meter_provider.shutdown(timeout_seconds * 1e3)
        unregister(self.meter_provider)


def configure_otlp(
    service_name: str | None = None,
    *,
    endpoint: str | None = None,
    protocol: Protocol | None = None,
) -> Otlp:
    """Send every client's metrics, present and future, to an OpenTelemetry collector.

    Makes providers of its own, and sets them as the global ones unless somebody set others. Again,
    it returns what it made. A collector that is not there costs log lines and nothing else.

    Args:
        service_name: By default `OTEL_SERVICE_NAME`.
        endpoint: Such as `http://localhost:4317`, or 4318 for HTTP; by default
            `OTEL_EXPORTER_OTLP_ENDPOINT`, or the one for each signal.
        protocol: By default `OTEL_EXPORTER_OTLP_PROTOCOL`, or gRPC.

    Raises:
        PoolConfigurationError: The protocol is none of the two.
    """
    global _current
    with _lock:
        if _current is None:
            resource = Resource.create({"service.name": service_name} if service_name else None)
            _current = Otlp(resource, _metric_exporter(_protocol(protocol, "METRICS"), endpoint))
            if _is_unset(metrics.get_meter_provider()):
                metrics.set_meter_provider(_current.meter_provider)
        return _current


def _protocol(given: str | None, signal: str) -> str:
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        given = given or os.environ.get(name)
    given = given or "grpc"
    if given not in get_args(Protocol):
        raise PoolConfigurationError(f"protocol is {shown(given)}: use grpc or http/protobuf")
    return given


def _metric_exporter(protocol: str, endpoint: str | None) -> MetricExporter:
    # Each on first use: gRPC alone takes 100 ms to import.
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as grpc

        return grpc.OTLPMetricExporter(endpoint)
    from opentelemetry.exporter.otlp.proto.http import metric_exporter as http

    return http.OTLPMetricExporter(endpoint and endpoint.rstrip("/") + "/v1/metrics")


def _is_unset(provider: object) -> bool:
    """Return whether it is one of the API's own, which stand in until one is set."""
    return type(provider).__module__.startswith("opentelemetry.metrics")
