"""OpenTelemetry: the catalog's metrics, spans, and a ready set-up over OTLP.

An application with providers of its own calls `register()` for metrics and `start_tracing()` for
spans; one without calls `configure_otlp()`.
"""

from pool_telemetry.otel.configure import Otlp, configure_otlp, flush
from pool_telemetry.otel.exporter import HistogramExporter
from pool_telemetry.otel.metrics import register, unregister
from pool_telemetry.otel.spans import start_tracing, stop_tracing

__all__ = [
    "HistogramExporter",
    "Otlp",
    "configure_otlp",
    "flush",
    "register",
    "start_tracing",
    "stop_tracing",
    "unregister",
]
