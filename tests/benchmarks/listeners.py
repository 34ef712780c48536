"""The listeners that ours are compared with."""

from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pymongo import monitoring


def noop() -> list[Any]:
    """Return listeners that do nothing. Their cost is PyMongo's own: it makes the events."""

    def silent(base: type[Any]) -> Any:
        methods = [name for name in vars(base) if not name.startswith("_")]
        return type("Noop", (base,), {name: lambda self, event: None for name in methods})()

    return [
        silent(monitoring.ConnectionPoolListener),
        silent(monitoring.ServerHeartbeatListener),
        silent(monitoring.CommandListener),
    ]


def straightforward() -> list[Any]:
    """Return what one writes in an hour: prometheus_client with `.labels()` in each handler."""
    registry = CollectorRegistry()
    return [_PrometheusPoolListener(registry), _PrometheusCommandListener(registry)]


def command_spans(provider: TracerProvider | None = None) -> list[Any]:
    """Return opentelemetry-instrumentation-pymongo's listener, by default without an exporter."""
    # Imported here: tests use this module, and run without it at the floor of our dependencies.
    from opentelemetry.instrumentation.pymongo import CommandTracer

    provider = provider or TracerProvider(shutdown_on_exit=False)
    return [CommandTracer(provider.get_tracer("benchmark"))]


class _PrometheusPoolListener(monitoring.ConnectionPoolListener):
    def __init__(self, registry: CollectorRegistry) -> None:
        self._size = Gauge("size", "Connections", ["server"], registry=registry)
        self._in_use = Gauge("in_use", "Connections in use", ["server"], registry=registry)
        self._waiting = Gauge("waiting", "Callers that wait", ["server"], registry=registry)
        self._wait = Histogram("wait_seconds", "Wait", ["server"], registry=registry)
        self._failed = Counter("failed", "Failures", ["server", "reason"], registry=registry)

    def connection_check_out_started(self, event: Any) -> None:
        self._waiting.labels(_server(event.address)).inc()

    def connection_checked_out(self, event: Any) -> None:
        server = _server(event.address)
        self._waiting.labels(server).dec()
        self._in_use.labels(server).inc()
        self._wait.labels(server).observe(event.duration)

    def connection_checked_in(self, event: Any) -> None:
        self._in_use.labels(_server(event.address)).dec()

    def connection_check_out_failed(self, event: Any) -> None:
        self._waiting.labels(_server(event.address)).dec()
        self._failed.labels(_server(event.address), event.reason).inc()

    def connection_created(self, event: Any) -> None:
        self._size.labels(_server(event.address)).inc()

    def connection_ready(self, event: Any) -> None: ...

    def connection_closed(self, event: Any) -> None:
        self._size.labels(_server(event.address)).dec()

    def pool_created(self, event: Any) -> None: ...

    def pool_ready(self, event: Any) -> None: ...

    def pool_cleared(self, event: Any) -> None: ...

    def pool_closed(self, event: Any) -> None: ...


class _PrometheusCommandListener(monitoring.CommandListener):
    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["server", "database", "command", "outcome"]
        self._duration = Histogram("duration_seconds", "Duration", labels, registry=registry)

    def started(self, event: Any) -> None: ...

    def succeeded(self, event: Any) -> None:
        self._observe(event, "ok")

    def failed(self, event: Any) -> None:
        self._observe(event, "error")

    def _observe(self, event: Any, outcome: str) -> None:
        server = _server(event.connection_id)
        self._duration.labels(server, event.database_name, event.command_name, outcome).observe(
            event.duration_micros / 1e6
        )


def _server(address: Any) -> str:
    return f"{address[0]}:{address[1]}"
