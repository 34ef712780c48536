"""`pool-telemetry serve`: the routes for processes that serve no HTTP themselves.

It asks the processes that share a directory, as a web worker does, and has no pool of its own.
"""

import json
import os
import signal
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import REGISTRY

from pool_telemetry import endpoints, prometheus, workers
from pool_telemetry.errors import PoolTelemetryError
from pool_telemetry.health import HealthLimits


def run(*, host: str, port: int, folder: str | None) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        host: The address to listen at.
        port: The port; 0 is any free one.
        folder: The value of POOL_TELEMETRY_DIR of the processes; None: the variable, or else the
            only service of this user on this host.

    Raises:
        PoolTelemetryError: The port is taken, or several services run, or none.
    """
    path = workers.directory_of(folder or os.environ.get(workers.VARIABLE))
    workers.observe(path)
    prometheus.add_to(REGISTRY)
    try:
        server = ThreadingHTTPServer((host, port), _Routes)
    except (OSError, UnicodeError) as error:  # the latter for a host that is no name
        reason = getattr(error, "strerror", None) or "this is not a valid host"
        raise PoolTelemetryError(f"can't listen at {host}:{port}: {reason}") from None
    for number in (signal.SIGINT, signal.SIGTERM):
        # In a thread, because shutdown() waits for serve_forever(), which this interrupts.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"http://{host}:{server.server_port}/metrics shows the processes of {path}", flush=True)
    with server:
        server.serve_forever()


def _ready() -> tuple[Any, int]:
    answer = endpoints.health(None, HealthLimits())
    every = answer["workers"]
    is_ready = not every or any(one["status"] != "unhealthy" for one in every)
    return {"status": answer["status"], "reasons": answer["reasons"]}, 200 if is_ready else 503


_ROUTES: Final[dict[str, Callable[[], tuple[Any, int]]]] = {
    "/health": lambda: (endpoints.health(None, HealthLimits()), 200),
    "/health/live": lambda: ({"status": "alive"}, 200),
    "/health/ready": _ready,
    "/metrics/mongodb": lambda: (endpoints.mongodb(None), 200),
    "/pool/diagnosis": endpoints.diagnosis,
    "/pool/holders": lambda: (endpoints.holders(), 200),
}


class _Routes(BaseHTTPRequestHandler):
    timeout = 10.0  # seconds for a request to arrive

    def do_GET(self) -> None:  # http.server's name
        """Answer one request."""
        route = self.path.partition("?")[0].rstrip("/")
        if route == "/metrics":
            text, kind = prometheus.generate(self.headers.get("accept", ""))
            self._send(200, kind, text)
        elif (answer := _ROUTES.get(route)) is not None:
            values, status = answer()
            self._send(status, "application/json", json.dumps(values).encode())
        else:
            known = ["/metrics", *_ROUTES]
            self._send(404, "application/json", json.dumps({"routes": known}).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # http.server's name
        """Log no request."""
