"""`pool-telemetry demo`: a pool under load, in the terminal and over HTTP, until Ctrl-C.

Everything except the embedded server is in this process, so that the endpoints show the pool under
load. `run` ends all of it: threads, sockets, the server, its files, and all changes to the user's
own server.
"""

import contextlib
import itertools
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import uvicorn
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from pymongo.errors import PyMongoError

from pool_telemetry.demo.embedded import EmbeddedServer
from pool_telemetry.demo.load import (
    CROWDED_CYCLE,
    CYCLE,
    MAX_POOL_SIZE,
    WAIT_QUEUE_TIMEOUT_MS,
    Callers,
    Phase,
    Server,
)
from pool_telemetry.demo.view import Intro, Reading, Recent, Screen, screen, summary
from pool_telemetry.errors import PoolTelemetryError
from pool_telemetry.fastapi import create_router
from pool_telemetry.health import HealthLimits, assess
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.pool import MongoDBConnectionPool

PORT: Final = 8000
LIMITS: Final = HealthLimits(settle_seconds=3.0)
"""`settle_seconds` is shorter than the default, so that the recovery shows within its phase."""

# The screen already shows the contents of these log lines.
logging.getLogger("pool_telemetry.watch").addHandler(logging.NullHandler())

_TICK_SECONDS: Final = 0.25  # the time between two updates of the screen
_PATIENCE_SECONDS: Final = 5.0  # the time limit for the HTTP server to start
_HOST: Final = "127.0.0.1"


class DemoError(PoolTelemetryError, RuntimeError):
    """The demo can't run here; the message says what to change."""


def run(
    *, once: bool = False, port: int | None = None, show_on: Callable[[Intro], Screen] = screen
) -> bool:
    """Show the demo until Ctrl-C, or for one cycle.

    Args:
        once: Whether to run a single cycle and then print a summary.
        port: The port of the endpoints; 0 uses a free port, None prefers PORT.
        show_on: Makes the screen; by default the one that stdout can show.

    Returns:
        True if the demo came to its end; False if a signal ended it.

    Raises:
        DemoError: The port is taken, or the server that MONGODB_URI names can't be used.
        EmbeddedServerError: MONGODB_URI is not set, and there is no embedded server here.
    """
    name = f"pool_telemetry_demo_{uuid.uuid4().hex[:8]}"  # names the database and connections
    with contextlib.ExitStack() as stack:  # ends everything in reverse order
        stop = stack.enter_context(_stop_on_signals())
        given = os.environ.get("MONGODB_URI")
        uri = given or _embedded(stack)
        telemetry = TelemetryOptions(name="demo")
        stack.callback(MongoDBConnectionPool.close)
        with _explaining():
            client = MongoDBConnectionPool.initialize(
                uri,
                telemetry=telemetry,
                appName=name,
                maxPoolSize=MAX_POOL_SIZE,
                minPoolSize=2,
                waitQueueTimeoutMS=WAIT_QUEUE_TIMEOUT_MS,
                serverSelectionTimeoutMS=3_000,
                socketTimeoutMS=5_000,
            )
            server = Server(uri, name)
        stack.callback(server.close)
        if given:
            stack.callback(_drop, server, name)
        url = stack.enter_context(_serving(port))
        callers = Callers(client[name].chats)
        stack.callback(callers.stop)
        stack.callback(server.speed_up)  # runs first, so that no caller waits for a slow operation
        cycle = CYCLE if server.has_fail_points else CROWDED_CYCLE
        with show_on(
            _intro(url, given=given is not None, has_fail_points=server.has_fail_points)
        ) as view:
            phases = cycle if once else itertools.cycle(cycle)
            completed = _play(phases, server, callers, view, stop)
        text = summary(MongoDBConnectionPool.get_pool_stats(), _read(Recent()).health.status)
    print(f"{text}\nEverything is stopped.", flush=True)
    return completed


class _Stop:
    """A flag that says whether a signal asked to stop.

    It is not an Event, because the handler runs on the main thread between any two of its steps,
    and that thread could hold the Event's lock there.
    """

    asked = False

    def ask(self, *_: object) -> None:
        """Set the flag; the arguments are those of a signal handler."""
        self.asked = True


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[_Stop]:
    """Set a flag at Ctrl-C, SIGTERM or a closed terminal, so that the demo ends in order."""
    stop = _Stop()
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, stop.ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _embedded(stack: contextlib.ExitStack) -> str:
    server = EmbeddedServer()
    # Killed, because its data is not kept and an orderly end takes two seconds.
    stack.callback(server.stop, kill=True)
    server.start()
    return server.uri


@contextlib.contextmanager
def _explaining() -> Iterator[None]:
    """Turn an error at the start into a DemoError with a short message for the user."""
    try:
        yield
    except (PyMongoError, ValueError) as error:  # PyMongo refuses some URIs with a ValueError
        # The rest of the message is for developers: the topology, all timeouts, the whole reply.
        what = re.split(r" \(configured timeouts|, Timeout:|, full error", str(error))[0]
        raise DemoError(f"the server that MONGODB_URI names can't be used: {what}") from error


def _drop(server: Server, database: str) -> None:
    try:
        server.drop(database)
    except PyMongoError as error:
        why = type(error).__name__
        print(f"the database {database} could not be dropped ({why})", file=sys.stderr)


def _app() -> FastAPI:
    # Without the documentation pages, because they need a CDN.
    app = FastAPI(title="pool_telemetry demo", docs_url=None, redoc_url=None)
    app.include_router(create_router(MongoDBConnectionPool, limits=LIMITS))

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/health")

    return app


class _HttpServer(uvicorn.Server):
    """An HTTP server that sets an event when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answers = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.answers.set()


@contextlib.contextmanager
def _serving(port: int | None) -> Iterator[str]:
    """Serve the endpoints from a thread while the block runs, and yield their URL."""
    listener = _listen(port)
    config = uvicorn.Config(
        _app(),
        access_log=False,
        lifespan="off",
        log_level="warning",
        timeout_graceful_shutdown=1,  # a browser keeps its connections open
        ws="none",
    )
    server = _HttpServer(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="demo-http")
    thread.start()
    try:
        if not server.answers.wait(_PATIENCE_SECONDS):
            raise DemoError("the HTTP server did not start")
        yield f"http://{_HOST}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def _listen(port: int | None) -> socket.socket:
    try:
        return socket.create_server((_HOST, PORT if port is None else port))
    except OSError as error:
        if port is None:
            return socket.create_server((_HOST, 0))
        raise DemoError(f"port {port} can't be used ({error.strerror}): choose another") from error


def _intro(url: str, *, given: bool, has_fail_points: bool) -> Intro:
    stats = MongoDBConnectionPool.get_pool_stats()
    kind = "the server that MONGODB_URI names" if given else "embedded server"
    return Intro(
        server=f"{kind}, MongoDB {stats['server_version'] or 'of unknown version'}",
        pool=f"'demo', maxPoolSize {MAX_POOL_SIZE}, waitQueueTimeoutMS {WAIT_QUEUE_TIMEOUT_MS}",
        urls={
            f"{url}/health": "the status and all numbers",
            f"{url}/metrics": "for Prometheus",
            f"{url}/metrics/mongodb": "what to change",
        },
        note=""
        if has_fail_points
        else "this server has no fail points, so it stays fast; more callers than connections "
        "exhaust the pool, perhaps without timeouts",
    )


def _play(
    phases: Iterable[Phase], server: Server, callers: Callers, view: Screen, stop: _Stop
) -> bool:
    """Play the phases; return False as soon as a signal asks to stop."""
    recent = Recent()
    for phase in phases:
        server.slow_down(phase.slow_ms)
        callers.scale_to(phase.callers, phase.pause_seconds)
        ends = time.monotonic() + phase.seconds
        while (left_seconds := ends - time.monotonic()) > 0.0:
            if stop.asked:
                return False
            view.show(phase, left_seconds, _read(recent))
            time.sleep(min(_TICK_SECONDS, left_seconds))
    return True


def _read(recent: Recent) -> Reading:
    telemetry = MongoDBConnectionPool.get_telemetry()
    assert telemetry is not None
    stats = telemetry.stats()
    return recent.read(stats, assess(stats, LIMITS))
