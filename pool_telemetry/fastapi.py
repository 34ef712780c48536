"""Health, metrics and the diagnosis over HTTP, for the FastAPI application that owns the pool.

The endpoints ask no database and need no thread of an executor, so that they answer while every
connection and every worker thread is in use. Reachability is the result of the last heartbeat.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

try:
    import fastapi.routing
    from fastapi import APIRouter, FastAPI, Request, Response
    from starlette.types import ASGIApp, Receive, Scope, Send
except ImportError as error:
    raise ImportError(
        "pool_telemetry.fastapi needs FastAPI: pip install 'pool-telemetry[fastapi]'"
    ) from error
from prometheus_client import CollectorRegistry
from prometheus_client.core import REGISTRY

from pool_telemetry import asgi, watch
from pool_telemetry.async_pool import AsyncMongoDBConnectionPool
from pool_telemetry.endpoints import Pool
from pool_telemetry.errors import PoolConfigurationError
from pool_telemetry.health import HealthLimits
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.pool import MongoDBConnectionPool
from pool_telemetry.process_end import end
from pool_telemetry.routes import METHODS, Answer, Route, Routes, Show

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_router(
    pool: Pool | None = None,
    *,
    limits: HealthLimits = HealthLimits(),  # noqa: B008  # frozen
    registry: CollectorRegistry = REGISTRY,
    holders: bool = False,
    show: Show = "all",
    dependencies: Sequence[Any] = (),
) -> APIRouter:
    """Return a router with the routes for health, metrics and the diagnosis.

    `/health`, `/health/live`, `/health/ready`, `/metrics`, `/metrics/mongodb`, `/pool/diagnosis`.
    If the service has several processes, each answers for all, except at `/health/ready`. The end
    of the application's lifespan sends the remaining metrics and spans, whatever lifespan the
    application has (FastAPI from 0.112.2).

    All but `/health/live` tell every client hosts, and most tell versions, collections and owners.
    Protect them by `dependencies=`, or include only the probes on a public port, and give the
    others a port of their own by `serving.serve()`:

        app.include_router(create_router(dependencies=[Depends(check_password)]))
        app.include_router(create_router(show="probes"))

    Args:
        pool: The singleton to report. By default the singleton that is initialized at the time of
            the request, the asynchronous one first.
        limits: The limits that decide when the pool is degraded or unhealthy.
        registry: The registry that `/metrics` shows; every client's metrics are added to it.
        holders: Whether to add `/pool/holders`. It lists holders and waiters with the names of
            threads, tasks, owners and collections.
        show: "probes" for `/health/live` and `/health/ready`, "details" for the others, or "all".
        dependencies: FastAPI's dependencies of all routes but the probes. With them, and with
            show="probes", `/health/ready` tells the status alone; otherwise also its reasons.

    Raises:
        PoolConfigurationError: `show` is invalid, or leaves `holders` or `dependencies` no route.
    """
    if dependencies and show == "probes":
        raise PoolConfigurationError(
            "dependencies= has no effect with show='probes': FastAPI's include_router() and "
            "APIRouter() take dependencies for every route"
        )
    router = APIRouter(lifespan=_taking_part)
    is_brief = bool(dependencies) or show == "probes"
    shown = Routes(
        pool, limits=limits, registry=registry, holders=holders, show=show, is_brief=is_brief
    )
    for route in shown.by_path.values():
        needed = () if route.is_probe else dependencies
        add = _adder(router, shown, route, dependencies=needed)
        # The schema of a route with two methods would have one operation id twice.
        add(METHODS, include_in_schema=False)
        add(["GET"])
    return router


def _adder(
    router: APIRouter, shown: Routes, route: Route, dependencies: Sequence[Any]
) -> Callable[..., None]:
    async def endpoint(request: Request) -> Response:
        answer = await asgi.wait(asgi.ask(shown, request.scope, route.path))
        return _Response(answer, answer.body_for(request.method))

    def add(methods: Sequence[str], **kwargs: Any) -> None:
        router.add_api_route(
            route.path,
            endpoint,
            methods=list(methods),
            name=route.name,
            description=route.description,
            dependencies=dependencies,
            response_model=None,
            **kwargs,
        )

    return add


class _Response(Response):
    """An answer of the routes, as FastAPI and its middleware take it."""

    def __init__(self, answer: Answer, body: bytes) -> None:
        super().__init__(body, answer.status, headers=dict(answer.headers))

    async def __call__(self, _: Scope, __: Receive, send: Send) -> None:
        await asgi.send_answer(send, self.status_code, self.raw_headers, bytes(self.body))
        if self.background is not None:
            await self.background()


@asynccontextmanager
async def _taking_part(_: FastAPI) -> AsyncIterator[None]:
    watch.take_part()  # a worker whose client was made before the fork has not used it yet
    try:
        yield
    finally:
        # uvicorn raises the signal again after its shutdown, so atexit does not run.
        await asyncio.to_thread(end)


# Since FastAPI 0.165 an included router is a single entry among an application's routes.
_flat: Callable[[Sequence[Any]], Iterable[Any]]
_flat = getattr(fastapi.routing, "iter_route_contexts", iter)


def _template(scope: asgi.Scope) -> str:
    return asgi.match_template(scope["app"].routes, scope, _flat) if "app" in scope else ""


class OwnerMiddleware(asgi.OwnerMiddleware):
    """Makes the template of a request's route, such as `/orders/{id}`, the owner of its checkouts.

        app.add_middleware(OwnerMiddleware)

    A request that matches no route gets no owner.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, _template)


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
