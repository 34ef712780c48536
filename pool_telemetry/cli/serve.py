"""`pool-telemetry serve`: the routes for processes that serve no HTTP themselves.

It asks the processes that share a directory, as a web worker does, and has no pool of its own.
"""

import os
import signal
import threading

from pool_telemetry import workers
from pool_telemetry.routes import Routes
from pool_telemetry.serving import PortServer


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
    server = PortServer(port, host, Routes(holders=True))
    for number in (signal.SIGINT, signal.SIGTERM):
        # In a thread, because shutdown() waits for serve_forever(), which this interrupts.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"http://{host}:{server.server_port}/metrics shows the processes of {path}", flush=True)
    with server:
        server.serve_forever()
