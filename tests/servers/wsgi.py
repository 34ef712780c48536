"""The application of the WSGI servers, without a framework.

uWSGI imports it, and so makes its client, before it forks; gunicorn does so in each worker.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

from pool_telemetry import prometheus
from tests.servers import work

prometheus.register()
work.initialize()
CALLS: dict[str, Callable[..., int]] = {
    "/pid": work.pid,
    "/find": work.find,
    "/hold": work.hold,
}


def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """Answer `/metrics`, or call what the path names with the numbers of the query."""
    path = environ["PATH_INFO"]
    if path == "/metrics":
        body, content_type = prometheus.generate(environ.get("HTTP_ACCEPT", ""))
    else:
        numbers = {key: float(value) for key, value in parse_qsl(environ.get("QUERY_STRING"))}
        body, content_type = json.dumps(CALLS[path](**numbers)).encode(), "application/json"
    start("200 OK", [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [body]
