"""A WSGI application that uses its client before uWSGI forks its workers, which is the default."""

import json
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from pool_telemetry import MongoDBConnectionPool, prometheus
from tests.forked_in_c import FINDS, GATE, SIZE, counts
from tests.prefork import find

MongoDBConnectionPool.initialize(
    os.environ["SERVER_URI"],
    maxPoolSize=SIZE,
    minPoolSize=0,
    waitQueueTimeoutMS=60_000,
    event_listeners=[GATE],
)
find(10 * FINDS)
held = ExitStack()
registry = CollectorRegistry()
prometheus.register(registry)


def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """Answer `/find`, `/stats` and `/metrics`, and hold finds up from `/hold` to `/release`."""
    path = environ["PATH_INFO"]
    if path == "/hold":
        held.enter_context(GATE.shut())
    if path == "/release":
        held.close()
    if path == "/find":
        find(1)
    body = generate_latest(registry) if path == "/metrics" else json.dumps(said()).encode()
    start("200 OK", [("Content-Type", "text/plain")])
    return [body]


def said() -> dict[str, Any]:
    """Return the report of the worker about itself."""
    pool = MongoDBConnectionPool.get_pool_stats()["pool"]
    return {**counts(), "pid": os.getpid(), "pool": pool}
