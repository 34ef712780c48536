"""The application of the WSGI servers, without a framework.

uWSGI imports it, and so makes its client, before it forks; gunicorn does so in each worker.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

from pool_telemetry.wsgi import create_app
from tests.servers import work

work.initialize()
routes = create_app(holders=True)
CALLS: dict[str, Callable[..., int]] = {
    "/pid": work.pid,
    "/find": work.find,
    "/hold": work.hold,
}


def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """Call the function that the path names with the numbers of the query, or answer as a route."""
    call = CALLS.get(environ["PATH_INFO"])
    if call is None:
        return routes(environ, start)
    numbers = {key: float(value) for key, value in parse_qsl(environ.get("QUERY_STRING"))}
    body = json.dumps(call(**numbers)).encode()
    start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
