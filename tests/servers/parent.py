"""Four processes of multiprocessing, each with a client, and their parent, which has the port.

`python -m tests.servers.parent METHOD PORT` starts them by fork, forkserver or spawn. The parent
has no client. It hands each request but `/metrics` to the next child, and replaces one that died.
"""

import itertools
import json
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qsl
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from pool_telemetry import MongoDBConnectionPool, prometheus
from tests.servers import work
from tests.servers.ways import WORKERS


def serve_pipe(requests: "Connection[Any, Any]") -> None:
    """Call what the parent asks for, until it closes the pipe or sends SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    work.initialize()
    try:
        while True:
            name, numbers = requests.recv()
            requests.send(getattr(work, name)(**numbers))
    except EOFError:
        pass
    finally:
        MongoDBConnectionPool.close()


class Child:
    """A child process that is replaced when it dies."""

    def __init__(self, method: str) -> None:
        self._context: Any = multiprocessing.get_context(method)
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=serve_pipe, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, name: str, **numbers: float) -> Any:
        """Return what the call returns in the child."""
        with self._lock:
            try:
                self._pipe.send((name, numbers))
                return self._pipe.recv()
            except (EOFError, OSError):
                self._process.join()
                self._start()
                raise


class Server(ThreadingMixIn, WSGIServer):
    """Answers `/metrics` while a child works."""

    daemon_threads = True


class Silent(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def main() -> None:
    """Serve until SIGTERM."""
    method, port = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    prometheus.register()
    children = itertools.cycle([Child(method) for _ in range(WORKERS)])
    turn = threading.Lock()

    def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            body, content_type = prometheus.generate(environ.get("HTTP_ACCEPT", ""))
        else:
            numbers = {key: float(value) for key, value in parse_qsl(environ["QUERY_STRING"])}
            with turn:
                child = next(children)
            said = child.call(path.strip("/"), **numbers)
            body, content_type = json.dumps(said).encode(), "application/json"
        start("200 OK", [("Content-Type", content_type), ("Content-Length", str(len(body)))])
        return [body]

    with make_server("127.0.0.1", int(port), application, Server, Silent) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
