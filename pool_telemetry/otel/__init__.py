"""OpenTelemetry: the catalog's metrics on a MeterProvider, and a ready set-up over OTLP.

An application with a set-up of its own calls `register()`; one without calls `configure_otlp()`.
"""

from pool_telemetry.otel.configure import Otlp, configure_otlp
from pool_telemetry.otel.exporter import HistogramExporter
from pool_telemetry.otel.metrics import register, unregister

__all__ = ["HistogramExporter", "Otlp", "configure_otlp", "register", "unregister"]
