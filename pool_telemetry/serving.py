"""The routes on a port of their own, on threads that no web framework can take.

`serve()` is for a process that has a pool. `pool-telemetry serve` listens by the same server.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
import socket
import socketserver
import sys
import time
import weakref
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, NoReturn, Self

from prometheus_client import CollectorRegistry
from prometheus_client.core import REGISTRY

from pool_telemetry import workers
from pool_telemetry.endpoints import Pool
from pool_telemetry.errors import PoolConfigurationError, PoolTelemetryError
from pool_telemetry.health import HealthLimits
from pool_telemetry.process import after_fork, notice_fork, start_thread
from pool_telemetry.routes import Answer, Routes, Show, malformed

REQUEST_SECONDS: Final = 10.0
"""A client has this long to send its request, and this long to take the answer, in seconds."""

_LAST_PORT: Final = 65_535


class Served:
    """A port on which the routes answer, until `close()` or the end of a `with` block.

    Attributes:
        port: The port.
    """

    def __init__(self, server: "PortServer") -> None:
        self._server = server
        self.port: int = server.server_port

    def close(self) -> None:
        """Listen no more. Requests that have arrived are answered. A repeat changes nothing."""
        notice_fork()
        if self._server in _open:  # A forked process has no thread that shutdown() could stop.
            _open.discard(self._server)
            self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(
    port: int,
    host: str = "127.0.0.1",
    *,
    pool: Pool | None = None,
    limits: HealthLimits = HealthLimits(),  # noqa: B008  # frozen
    registry: CollectorRegistry = REGISTRY,
    holders: bool = False,
    show: Show = "all",
) -> Served:
    """Serve the routes on a port of their own, on threads of this library.

    The port answers while every thread of the web framework waits for a connection. Other hosts do
    not reach it, unless `host` says so. Call it in the process that has the pool, after a fork:
    a forked process closes the port that it inherits. On Linux the processes of one service share
    a port, and each answers for all. The port of another service is taken.

    Args:
        port: The port; 0 is any free one.
        host: The address to listen at. A firewall or a network policy has to protect any other
            address than loopback.
        pool: The singleton to report. By default the singleton that is initialized at the time of
            the request, the asynchronous one first.
        limits: The limits that decide when the pool is degraded or unhealthy.
        registry: The registry that `/metrics` shows; every client's metrics are added to it.
        holders: Whether to add `/pool/holders`, which names threads, tasks and owners.
        show: "probes" for `/health/live` and `/health/ready`, "details" for the others, or "all".

    Raises:
        PoolConfigurationError: The port, the host or `show` is invalid.
        PoolTelemetryError: The port is taken, or the system has no more threads.
    """
    shown = Routes(pool, limits=limits, registry=registry, holders=holders, show=show)
    server = PortServer(port, host, shown, is_shared=True)
    if start_thread(server.serve_forever, name="pool_telemetry-serve") is None:
        server.server_close()
        raise PoolTelemetryError(f"can't serve at {host}:{port}: the system has no more threads")
    _open.add(server)
    return Served(server)


class PortServer(ThreadingHTTPServer):
    """A socket that listens, with a thread for each request.

    Raises:
        PoolConfigurationError: The port or the host is invalid.
        PoolTelemetryError: The port is taken, or the host has no such address.
    """

    request_queue_size = 128  # connections in the queue; with 5, a few clients would be refused

    def __init__(self, port: int, host: str, shown: Routes, *, is_shared: bool = False) -> None:
        _check_place(port, host)
        self.shown = shown
        self.allow_reuse_port = is_shared and sys.platform == "linux"
        self._claim: socket.socket | None = None
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except (OSError, TypeError, UnicodeError) as error:  # not OSError: the host is no name
            reason = getattr(error, "strerror", None) or "this is not a valid host"
            raise PoolTelemetryError(f"can't listen at {host}:{port}: {reason}") from None

    def server_bind(self) -> None:
        """Bind without asking for the host's full name, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        if self.allow_reuse_port:
            self._claim = _claim(self)

    def server_close(self) -> None:
        """Listen no more, and leave the port to other services."""
        super().server_close()
        if self._claim is not None:
            self._claim.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing about a client that has gone away."""


def _check_place(port: int, host: str) -> None:
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= _LAST_PORT:
        raise PoolConfigurationError(
            f"port is {port!r}: it has to be a whole number from 0 (any free port) to {_LAST_PORT}"
        )
    if not isinstance(host, str) or not host.strip() or "\0" in host:
        # To the socket an empty host is every address, and an empty variable would open the port.
        raise PoolConfigurationError(
            f"host is {host!r}: it has to be an address; '0.0.0.0' is every address"
        )


def _claim(server: PortServer) -> socket.socket:
    """Claim a bound port for this service, and return the socket that keeps the claim.

    Linux lets all programs of one user share a port. So each process also binds an abstract Unix
    socket, which is seen in the same network namespace as the port and ends with its process.

    Raises:
        OSError: Another service has the port, or this process itself.
    """
    port = f"pool_telemetry-{os.geteuid()}-{server.server_name}:{server.server_port}-"
    ours = port + hashlib.sha256(os.fsencode(workers.service_name())).hexdigest()[:16]
    name = f"{ours}-{os.getpid()}"
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0{name}")
        is_free = _is_free(server)  # before the claims, because a process claims before it listens
        sockets = Path("/proc/net/unix").read_text(errors="replace").split()
        others = {one for one in sockets if one.startswith(f"@{port}")} - {f"@{name}"}
        if not (others or is_free) or not all(one.startswith(f"@{ours}-") for one in others):
            _raise_taken()
    except OSError:
        claim.close()
        raise
    return claim


def _is_free(server: PortServer) -> bool:
    """Return whether no socket listens at the port of this one, which is bound only."""
    with socket.socket(server.address_family) as alone, contextlib.suppress(OSError):
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind(server.server_address)
        return True
    return False


def _raise_taken() -> NoReturn:
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


_open: "weakref.WeakSet[PortServer]" = weakref.WeakSet()


@after_fork
def _close_inherited() -> None:
    for server in list(_open):
        with contextlib.suppress(OSError):
            server.server_close()
    _open.clear()


class _Request(io.RawIOBase):
    """Reads a request from a socket, as a whole within REQUEST_SECONDS.

    A socket's own timeout begins anew whenever a byte arrives.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._until = time.monotonic() + REQUEST_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        remaining = self._until - time.monotonic()
        if remaining <= 0.0:
            raise TimeoutError
        self._connection.settimeout(remaining)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: PortServer
    server_version = "pool-telemetry"
    sys_version = ""  # the version of Python is nobody's business

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Request(self.connection))

    def __getattr__(self, name: str) -> Any:
        """Return what answers a request: http.server asks for `do_` and the method."""
        if name.startswith("do_"):
            return self._respond
        raise AttributeError(name)

    def _respond(self) -> None:
        # Clients of proxies name the host, too.
        path, _, query = re.sub("(?i)^https?://[^/?]*", "", self.path).partition("?")
        self._send(
            self.server.shown.wait(
                self.command,
                path,
                query=query,
                accept=self.headers.get("accept", ""),
                accept_encoding=self.headers.get("accept-encoding", ""),
            )
        )

    def _send(self, found: Answer) -> None:
        self.connection.settimeout(REQUEST_SECONDS)  # of sendall() as a whole
        self.send_response(found.status)
        for name, value in found.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(found.body_for(self.command))

    def send_error(self, code: int, *_: Any) -> None:
        """Refuse a malformed request as the routes do, and not in HTML."""
        self.close_connection = True
        self.request_version = self.protocol_version  # an answer to HTTP/0.9 has no headers
        self._send(malformed(code))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # http.server's name
        """Log no request."""
