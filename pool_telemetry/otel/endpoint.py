"""Where OTLP goes to: the protocol, the address and the exporter of each signal.

The arguments of `configure_otlp()` override the standard `OTEL_EXPORTER_OTLP_*` variables.
"""

import contextlib
import os
import re
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

_ENDPOINT: Final = (
    "use http://host:port or https://host:port, without credentials, which exporters log: put them "
    "into OTEL_EXPORTER_OTLP_HEADERS"
)
# The headers that exporters accept. OpenTelemetry logs any other entry, with its value.
_HEADER: Final = re.compile(r"[!#-'*+\-.0-9A-Z^-z|~]+[ \t]*=[ \t]*[ !#-+\--:<-\[\]-~]*", re.ASCII)

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


def check_endpoint(endpoint: str | None) -> None:
    """Refuse endpoints with credentials, and headers that are no headers: exporters log these.

    Args:
        endpoint: The endpoint that the application gives; None for the environment's.

    Raises:
        PoolConfigurationError: One of them is wrong. The error has no secret.
    """
    if endpoint is not None and ("://" not in endpoint or "@" in endpoint):
        raise PoolConfigurationError(f"endpoint is {shown(endpoint)}: {_ENDPOINT}")
    for signal in ("", "METRICS_", "TRACES_"):
        name = f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT"
        value = os.environ.get(name, "")
        if endpoint is None and "@" in value:
            words = shown(value) if "://" in value else "not a URL"
            raise PoolConfigurationError(f"{name} is {words}: {_ENDPOINT}")
        name = f"OTEL_EXPORTER_OTLP_{signal}HEADERS"
        headers = os.environ.get(name, "").split(",")
        if any(header.strip() and not _HEADER.fullmatch(header.strip()) for header in headers):
            raise PoolConfigurationError(
                f"{name} has an entry that is not name=value, which may be secret and is not "
                "shown: separate entries by commas, and write special characters as %XX"
            )


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
