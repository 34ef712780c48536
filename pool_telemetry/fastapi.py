"""Health, metrics and the diagnosis over HTTP, for the application that owns the pool.

The endpoints ask no database and need no thread of an executor, so that they answer while every
connection and every worker thread is in use. Reachability is the result of the last heartbeat.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

try:
    import fastapi.routing
    from fastapi import APIRouter, FastAPI, Request, Response
    from fastapi.responses import JSONResponse
    from starlette.routing import Match
    from starlette.types import ASGIApp, Receive, Scope, Send
except ImportError as error:
    raise ImportError(
        "pool_telemetry.fastapi needs FastAPI: pip install 'pool-telemetry[fastapi]'"
    ) from error
from prometheus_client import CollectorRegistry
from prometheus_client.core import REGISTRY

from pool_telemetry import endpoints, prometheus, watch, workers
from pool_telemetry.async_pool import AsyncMongoDBConnectionPool
from pool_telemetry.endpoints import Pool
from pool_telemetry.health import HealthLimits
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.owners import MAX_OWNER, owner
from pool_telemetry.pool import MongoDBConnectionPool
from pool_telemetry.process_end import end
from pool_telemetry.stats import printable

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
T = TypeVar("T")


def create_router(
    pool: Pool | None = None,
    *,
    limits: HealthLimits = HealthLimits(),  # noqa: B008  # frozen
    registry: CollectorRegistry = REGISTRY,
    holders: bool = False,
) -> APIRouter:
    """Return a router with the routes for health, metrics and the diagnosis.

    `/health`, `/health/live`, `/health/ready`, `/metrics`, `/metrics/mongodb`, `/pool/diagnosis`.
    If the service has several processes, each answers for all, except at `/health/ready`. The end
    of the application's lifespan sends the remaining metrics and spans, whatever lifespan the
    application has (FastAPI from 0.112.2).

    Args:
        pool: The singleton to report. By default the singleton that is initialized at the time of
            the request, the asynchronous one first.
        limits: The limits that decide when the pool is degraded or unhealthy.
        registry: The registry that `/metrics` shows; every client's metrics are added to it.
        holders: Whether to add `/pool/holders`. It lists holders and waiters with the names of
            threads, tasks, owners and collections.
    """
    prometheus.add_to(registry)
    router = APIRouter(lifespan=_taking_part)

    async def json(answer: Callable[[], Any]) -> JSONResponse:
        return JSONResponse(await _answered(answer))

    @router.get("/health", response_model=None)
    async def health() -> JSONResponse:
        """Return the status of all processes, and this one's numbers; the HTTP status is 200."""
        return await json(lambda: endpoints.health(pool, limits))

    @router.get("/health/live", response_model=None)
    async def live() -> JSONResponse:
        """Return 200 while the process answers, because a restart would not repair a database."""
        return JSONResponse({"status": "alive"})

    @router.get("/health/ready", response_model=None)
    async def ready() -> JSONResponse:
        """Return whether to send requests to this process: 503 while unhealthy, otherwise 200."""
        answer, status = endpoints.ready(pool, limits)
        return JSONResponse(answer, status_code=status)

    @router.get("/metrics", response_model=None)
    async def metrics(request: Request) -> Response:
        """Return the registry in Prometheus' text format, or as OpenMetrics if accepted."""
        accept = request.headers.get("accept", "")
        body, content_type = await _answered(lambda: prometheus.generate(accept, registry))
        return Response(body, media_type=content_type)

    @router.get("/metrics/mongodb", response_model=None)
    async def metrics_mongodb() -> JSONResponse:
        """Return the live numbers of the pool as JSON, with recommendations."""
        return await json(lambda: endpoints.mongodb(pool))

    @router.get("/pool/diagnosis", response_model=None)
    async def pool_diagnosis() -> JSONResponse:
        """Return the diagnosis of every pool of the service: problems, numbers, and changes."""
        answer, status = await _answered(endpoints.diagnosis)
        return JSONResponse(answer, status_code=status)

    async def pool_holders() -> JSONResponse:
        """Return the holders and waiters, the longest checkout and wait first."""
        return await json(endpoints.holders)

    if holders:
        router.add_api_route("/pool/holders", pool_holders, response_model=None)
    return router


async def _answered(answer: Callable[[], T]) -> T:
    """Return an answer: at once if this process is alone, else without blocking the event loop.

    A thread of its own asks the other processes, because the threads of an executor may all wait
    for connections.
    """
    if workers.folder() is None:
        return answer()
    executor = ThreadPoolExecutor(1, thread_name_prefix="pool_telemetry-ask")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, answer)
    finally:
        executor.shutdown(wait=False)


@asynccontextmanager
async def _taking_part(_: FastAPI) -> AsyncIterator[None]:
    watch.take_part()  # a worker whose client was made before the fork has not used it yet
    try:
        yield
    finally:
        # uvicorn raises the signal again after its shutdown, so atexit does not run.
        await asyncio.to_thread(end)


class OwnerMiddleware:
    """Makes the template of a request's route, such as `/orders/{id}`, the owner of its checkouts.

        app.add_middleware(OwnerMiddleware)

    A request that matches no route gets no owner.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        template = ""
        if scope["type"] in ("http", "websocket") and "app" in scope:
            template = printable(_template(scope["app"].routes, scope)[:MAX_OWNER])
        with owner(template) if template else contextlib.nullcontext():
            await self._app(scope, receive, send)


# Since FastAPI 0.165 an included router is a single entry among an application's routes.
_flat: Callable[[Sequence[Any]], Iterable[Any]]
_flat = getattr(fastapi.routing, "iter_route_contexts", iter)


def _template(routes: Sequence[Any], scope: Scope) -> str:
    partial = ""
    for route in _flat(routes):
        match, inner = route.matches(scope)
        path = getattr(route, "path", "")
        if match is Match.FULL:
            children = getattr(route, "routes", None)
            return path + (_template(children, {**scope, **inner}) if children else "")
        if match is Match.PARTIAL:  # the path matches, the HTTP method does not
            partial = partial or path
    return partial


def pool_lifespan(
    connection_string: str | None = None,
    *,
    pool: Pool = MongoDBConnectionPool,
    telemetry: TelemetryOptions | None = None,
    **kwargs: Any,
) -> Lifespan:
    """Return a lifespan that initializes the pool at the start and closes it at the end.

    The pool's `close()` also sends the remaining metrics and spans.

        app = FastAPI(lifespan=pool_lifespan("mongodb://localhost:27017/", maxPoolSize=50))

    Args:
        connection_string: The URI, as in `initialize`.
        pool: The singleton to use; the synchronous one connects in a thread.
        telemetry: The options of the telemetry.
        **kwargs: MongoClient's options, as in `initialize`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if issubclass(pool, AsyncMongoDBConnectionPool):
            await pool.initialize(connection_string, telemetry=telemetry, **kwargs)
        else:
            await asyncio.to_thread(
                pool.initialize, connection_string, telemetry=telemetry, **kwargs
            )
        try:
            yield
        finally:
            if issubclass(pool, AsyncMongoDBConnectionPool):
                await pool.close()
            else:
                await asyncio.to_thread(pool.close)

    return lifespan
