"""Where OTLP goes to: the protocol, the address and the exporter of each signal.

The arguments of `configure_otlp()` override the standard `OTEL_EXPORTER_OTLP_*` variables.
"""

import contextlib
import os
import socket
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.trace.export import SpanExporter

from pool_telemetry.errors import PoolConfigurationError
from pool_telemetry.ranges import shown

Protocol = Literal["grpc", "http/protobuf"]
Address = tuple[str, int]

# For a collector that takes no TCP connection. An exporter learns it from its first attempt, and
# then retry for 10 s; this is enough for that attempt.
DEAD_SECONDS: Final = 0.5
CONNECT_SECONDS: Final = 0.5

_PROXIES: Final = [
    form
    for name in ("grpc_proxy", "http_proxy", "https_proxy", "all_proxy")
    for form in (name, name.upper())
]


def protocol_of(given: str | None, signal: str) -> str:
    """Return the protocol of a signal, METRICS or TRACES."""
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        given = given or os.environ.get(name)
    given = given or "grpc"
    if given not in get_args(Protocol):
        raise PoolConfigurationError(f"protocol is {shown(given)}: use grpc or http/protobuf")
    return given


def address_of(protocol: str, signal: str, endpoint: str | None) -> Address | None:
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


def patience_for(address: Address | None, timeout_seconds: float) -> float:
    """Return the seconds for a last export: few if nothing listens at the address.

    None, an address that is not known, has the whole time.
    """
    if address is None:
        return timeout_seconds
    with contextlib.suppress(OSError), socket.create_connection(address, CONNECT_SECONDS):
        return timeout_seconds
    return min(timeout_seconds, DEAD_SECONDS)


def metric_exporter(protocol: str, endpoint: str | None) -> MetricExporter:
    """Make an exporter of metrics; None is the endpoint of the environment."""
    # Imported on first use, because gRPC alone takes 100 ms to import.
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as grpc

        return grpc.OTLPMetricExporter(endpoint)
    from opentelemetry.exporter.otlp.proto.http import metric_exporter as http

    return http.OTLPMetricExporter(endpoint and endpoint.rstrip("/") + "/v1/metrics")


def span_exporter(protocol: str, endpoint: str | None) -> SpanExporter:
    """Make an exporter of spans; None is the endpoint of the environment."""
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc

        return grpc.OTLPSpanExporter(endpoint)
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as http

    return http.OTLPSpanExporter(endpoint and endpoint.rstrip("/") + "/v1/traces")
