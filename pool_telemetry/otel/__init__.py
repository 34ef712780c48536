"""OpenTelemetry: the catalog's metrics, spans, and a complete set-up over OTLP.

An application with its own providers calls `register()` for metrics and `start_tracing()` for
spans; other applications call `configure_otlp()`. Only edges and applications import this room: the
listeners reach a tracer through `events/tracing.py`. It imports no other reader and uses no pool.
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
