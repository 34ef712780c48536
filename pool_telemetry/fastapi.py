"""Health, metrics and the diagnosis over HTTP, for the application that owns the pool.

The endpoints run on the event loop and do no I/O, so that they answer while every connection and
every worker thread is in use. Reachability is the result of the last heartbeat.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

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

from pool_telemetry import prometheus
from pool_telemetry.async_pool import AsyncMongoDBConnectionPool
from pool_telemetry.diagnosis import Finding, diagnose, recommend, worst_first
from pool_telemetry.health import Health, HealthLimits, assess
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.owners import MAX_OWNER, owner
from pool_telemetry.pool import MongoDBConnectionPool
from pool_telemetry.process_end import end
from pool_telemetry.registry import active, recently_closed
from pool_telemetry.report import PoolReport, pool_lines
from pool_telemetry.stats import ClientStats, printable

Pool = type[MongoDBConnectionPool] | type[AsyncMongoDBConnectionPool]
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_NOT_INITIALIZED = Health("unhealthy", ("the pool is not initialized",))


def create_router(
    pool: Pool | None = None,
    *,
    limits: HealthLimits = HealthLimits(),  # noqa: B008  # frozen
    registry: CollectorRegistry = REGISTRY,
    holders: bool = False,
) -> APIRouter:
    """Return a router with the routes for health, metrics and the diagnosis.

    `/health`, `/health/live`, `/health/ready`, `/metrics`, `/metrics/mongodb`, `/pool/diagnosis`.
    The end of the application's lifespan sends the remaining metrics and spans, whatever lifespan
    the application has (FastAPI from 0.112.2).

    Args:
        pool: The singleton to report. By default the singleton that is initialized at the time of
            the request, the asynchronous one first.
        limits: The limits that decide when the pool is degraded or unhealthy.
        registry: The registry that `/metrics` shows; every client's metrics are added to it.
        holders: Whether to add `/pool/holders`. It lists holders and waiters with the names of
            threads, tasks, owners and collections.
    """
    prometheus.register(registry)
    router = APIRouter(lifespan=_ending)

    def chosen() -> Pool:
        return pool or (
            AsyncMongoDBConnectionPool
            if AsyncMongoDBConnectionPool.get_telemetry()
            else MongoDBConnectionPool
        )

    def current() -> tuple[PoolReport, ClientStats | None, Health]:
        report, stats = chosen().read()
        return report, stats, assess(stats, limits) if stats else _NOT_INITIALIZED

    @router.get("/health", response_model=None)
    async def health() -> JSONResponse:
        """Return the pool's status and all its numbers, always with HTTP status 200."""
        report, _, judged = current()
        return JSONResponse({"status": judged.status, "reasons": judged.reasons, "mongodb": report})

    @router.get("/health/live", response_model=None)
    async def live() -> JSONResponse:
        """Return 200 while the process answers, because a restart would not repair a database."""
        return JSONResponse({"status": "alive"})

    @router.get("/health/ready", response_model=None)
    async def ready() -> JSONResponse:
        """Return whether to send requests here: 503 while unhealthy, otherwise 200."""
        judged = current()[2]
        return JSONResponse(
            {"status": judged.status, "reasons": judged.reasons},
            status_code=503 if judged.status == "unhealthy" else 200,
        )

    @router.get("/metrics", response_model=None)
    async def metrics(request: Request) -> Response:
        """Return the registry in Prometheus' text format, or as OpenMetrics if accepted."""
        body, content_type = prometheus.generate(request.headers.get("accept", ""), registry)
        return Response(body, media_type=content_type)

    @router.get("/metrics/mongodb", response_model=None)
    async def metrics_mongodb() -> JSONResponse:
        """Return the live numbers of the pool as JSON, with recommendations."""
        report, stats, _ = current()
        telemetry = chosen().get_telemetry()
        config = report["pool_config"]
        return JSONResponse(
            {
                "connection_pool": {
                    "status": report["status"],
                    "server_version": report["server_version"],
                    "max_pool_size": config.get("maxPoolSize"),
                    "min_pool_size": config.get("minPoolSize"),
                    **report["pool"],
                    "checkouts": report["checkouts"],
                    "wait_time": report["wait_time"],
                    "use_time": report["use_time"],
                },
                "recommendations": recommend(
                    diagnose(stats, telemetry.history() if telemetry else ())
                )
                if stats
                else {
                    "increase_pool": False,
                    "check_connection": True,
                    "reasons": list(_NOT_INITIALIZED.reasons),
                },
            }
        )

    @router.get("/pool/diagnosis", response_model=None)
    async def pool_diagnosis() -> JSONResponse:
        """Return the diagnosis of every pool of the process: problems, numbers, and changes."""
        # Each request may have a client of its own, which is closed by now.
        every, closed = active(), recently_closed()[-1:]
        if not every and not any(diagnose(one).findings for one in closed):
            return JSONResponse({"detail": _NOT_INITIALIZED.reasons[0]}, status_code=503)
        found, lines = list[Finding](), list[str]()
        for telemetry in (*every, *closed):
            stats = telemetry.stats()
            found += diagnose(stats, telemetry.history()).findings
            lines += pool_lines(stats)
        return JSONResponse({**worst_first(found).as_dict(), "pools": lines})

    async def pool_holders() -> JSONResponse:
        """Return the holders and waiters of the pool, the longest checkout and wait first."""
        report = chosen().get_pool_stats(detail=True)
        return JSONResponse({key: report[key] for key in ("pool", "holders", "waiters")})

    if holders:
        router.add_api_route("/pool/holders", pool_holders, response_model=None)
    return router


@asynccontextmanager
async def _ending(_: FastAPI) -> AsyncIterator[None]:
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
