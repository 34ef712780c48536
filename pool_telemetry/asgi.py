"""The routes as an ASGI application, and the owners of requests, without a framework.

The application is served by itself or mounted below any prefix, in Starlette, Litestar or FastAPI.
No answer is made on the event loop, and none is waited for by blocking it.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import REGISTRY

from pool_telemetry import routes, watch
from pool_telemetry.endpoints import Pool
from pool_telemetry.health import HealthLimits
from pool_telemetry.own_thread import Shared
from pool_telemetry.owners import owner_of_route
from pool_telemetry.process_end import end
from pool_telemetry.routes import Answer, Routes, Show

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CHUNK_BYTES: Final = 64 * 1024
"""A body is sent in pieces of this size, between which the loop runs other tasks. It is what a
transport takes before it asks its writer to wait."""


def create_app(
    pool: Pool | None = None,
    *,
    limits: HealthLimits = HealthLimits(),  # noqa: B008  # frozen
    registry: CollectorRegistry = REGISTRY,
    holders: bool = False,
    show: Show = "all",
) -> App:
    """Return an ASGI application with the routes for health, metrics and the diagnosis.

        app.mount("/telemetry", create_app())  # Starlette: /telemetry/health and the others

    All but `/health/live` tell hosts, and most tell collections and owners. With show="probes"
    `/health/ready` tells the status alone.

    Args:
        pool: The singleton to report, as in `Routes`.
        limits: The limits that decide when the pool is degraded or unhealthy.
        registry: The registry that `/metrics` shows; every client's metrics are added to it.
        holders: Whether to add `/pool/holders`, which names threads, tasks and owners.
        show: "probes" for `/health/live` and `/health/ready`, "details" for the others, or "all".
    """
    shown = Routes(pool, limits=limits, registry=registry, holders=holders, show=show)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live_on(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        else:
            root, path = scope.get("root_path", "").rstrip("/"), scope["path"]
            # Some frameworks leave the prefix in the path, as the specification says.
            if path.startswith(f"{root}/"):
                path = path[len(root) :]
            found = await wait(ask(shown, scope, path))
            headers = [(name.encode(), value.encode()) for name, value in found.headers]
            await send_answer(send, found.status, headers, found.body_for(scope["method"]))

    return app


def ask(shown: Routes, scope: Scope, path: str) -> Shared[Answer]:
    """Return the future of a route's answer to a request."""
    found = dict(scope["headers"])
    return shown.ask(
        scope["method"],
        path,
        query=scope["query_string"].decode("latin-1"),
        accept=found.get(b"accept", b"").decode("latin-1"),
        accept_encoding=found.get(b"accept-encoding", b"").decode("latin-1"),
    )


async def wait(future: Shared[Answer]) -> Answer:
    """Return an answer without blocking the loop; each of its callers may be cancelled."""
    if future.done():
        return future.result()
    loop = asyncio.get_running_loop()
    if (queue := _queues.get((loop, future))) is None:
        queue = _queues[loop, future] = _Queue(loop)
        future.add_done_callback(queue.begin)
    woken = loop.create_future()
    queue.waiting.append(woken)
    limit = loop.call_later(routes.LIMIT_SECONDS, _wake, woken)
    try:
        await woken
    finally:
        limit.cancel()
        if not future.done():
            future.leave()
    return future.result() if future.done() else routes.late()


class _Queue:
    """The callers on one loop that wait for one answer. They wake up one in each turn of the loop.

    If all of 200 woke up in one turn, the loop would do nothing else until each has sent its
    answer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.waiting = deque[asyncio.Future[None]]()

    def begin(self, future: "Future[Answer]") -> None:
        """Wake the callers. The thread that made the answer calls this."""
        _queues.pop((self._loop, future), None)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._wake_next)

    def _wake_next(self) -> None:
        if self.waiting:
            _wake(self.waiting.popleft())
            self._loop.call_soon(self._wake_next)


_queues: dict[tuple[asyncio.AbstractEventLoop, "Future[Answer]"], _Queue] = {}


def _wake(caller: "asyncio.Future[None]") -> None:
    if not caller.done():  # it may be cancelled, or given up
        caller.set_result(None)


async def send_answer(
    send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """Send an answer, a large body in pieces."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    shown = memoryview(body)
    for begin in range(0, len(body), CHUNK_BYTES):
        piece = bytes(shown[begin : begin + CHUNK_BYTES])
        is_more = begin + CHUNK_BYTES < len(body)
        await send({"type": "http.response.body", "body": piece, "more_body": is_more})
        if is_more:
            await asyncio.sleep(0)
    if not body:
        await send({"type": "http.response.body", "body": b""})


async def _live_on(receive: Receive, send: Send) -> None:
    """Serve the lifespan of an application that is served by itself."""
    await receive()
    watch.take_part()  # a worker whose client was made before the fork has not used it yet
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await asyncio.to_thread(end)
    await send({"type": "lifespan.shutdown.complete"})


def route_template(scope: Scope) -> str:
    """Return the template of a request's route in Starlette or Litestar; empty if none matches."""
    if (path := scope.get("path_template")) is not None:  # Litestar's
        return str(path)
    app = scope.get("app")
    return match_template(getattr(app, "routes", ()), scope)


def match_template(found: Any, scope: Scope, flat: Callable[[Any], Any] = iter) -> str:
    """Return the template of the first of Starlette's routes that matches.

    Args:
        found: The routes.
        scope: The request's.
        flat: Returns the routes that some routes stand for.
    """
    partial = ""
    for route in flat(found):
        match, inner = route.matches(scope)
        path = getattr(route, "path", "")
        if match.name == "FULL":
            children = getattr(route, "routes", None)
            below = match_template(children, {**scope, **inner}, flat) if children else ""
            return str(path) + below
        if match.name == "PARTIAL":  # the path matches, the HTTP method does not
            partial = partial or path
    return partial


class OwnerMiddleware:
    """Makes the template of a request's route, such as `/orders/{id}`, the owner of its checkouts.

        app.add_middleware(OwnerMiddleware)       # Starlette
        Litestar(middleware=[OwnerMiddleware])

    A request that matches no route gets no owner.

    Args:
        app: The application.
        template: Returns the template by the request's scope, in another framework. It has to
            return few values: templates of routes, never paths.
    """

    def __init__(self, app: Any, template: Callable[[Scope], str] = route_template) -> None:
        self._app = app
        self._template = template

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        name = self._template(scope) if scope["type"] in ("http", "websocket") else ""
        with owner_of_route(name):
            await self._app(scope, receive, send)
