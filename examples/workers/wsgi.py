"""A WSGI application with several workers: each makes the client when it first needs it."""

from collections.abc import Callable, Iterable
from typing import Any

from pool_telemetry import MongoDBConnectionPool, prometheus

prometheus.register()


def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """Answer `/metrics` for all workers, and any other path with an order."""
    if environ["PATH_INFO"] == "/metrics":
        body, kind = prometheus.generate(environ.get("HTTP_ACCEPT", ""))
    else:
        client = MongoDBConnectionPool.initialize(maxPoolSize=50)  # a repeat changes nothing
        body, kind = str(client["shop"]["orders"].find_one()).encode(), "text/plain"
    start("200 OK", [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]
