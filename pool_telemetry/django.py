"""The routes as URLs of Django, and the owners of requests.

The views are asynchronous: below ASGI they need no thread of Django, and below WSGI Django runs
them in the thread of their request.
"""

import contextlib
import logging
import weakref
from collections.abc import Callable
from typing import Any, Final

try:
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction
    from django.db.transaction import non_atomic_requests
    from django.http import HttpRequest, HttpResponse
    from django.urls import Resolver404, URLPattern, re_path, resolve
except ImportError as error:
    raise ImportError("pool_telemetry.django needs Django: pip install django") from error
from prometheus_client import CollectorRegistry
from prometheus_client.core import REGISTRY

from pool_telemetry import asgi
from pool_telemetry.endpoints import Pool
from pool_telemetry.health import HealthLimits
from pool_telemetry.owners import owner_of_route
from pool_telemetry.routes import Route, Routes, Show

NOT_READY: Final = 503


def create_urls(
    pool: Pool | None = None,
    *,
    limits: HealthLimits = HealthLimits(),  # noqa: B008  # frozen
    registry: CollectorRegistry = REGISTRY,
    holders: bool = False,
    show: Show = "all",
) -> list[URLPattern]:
    """Return the URLs of the routes for health, metrics and the diagnosis.

        urlpatterns = [path("telemetry/", include(create_urls()))]

    All but `/health/live` tell hosts, and most tell collections and owners. With show="probes"
    `/health/ready` tells the status alone, and `serving.serve()` has the others on a port of their
    own, which also answers while every thread of the web server waits.

    Args:
        pool: The singleton to report. By default the singleton that is initialized at the time of
            the request, the asynchronous one first.
        limits: The limits that decide when the pool is degraded or unhealthy.
        registry: The registry that `/metrics` shows; every client's metrics are added to it.
        holders: Whether to add `/pool/holders`, which names threads, tasks and owners.
        show: "probes" for `/health/live` and `/health/ready`, "details" for the others, or "all".
    """
    shown = Routes(pool, limits=limits, registry=registry, holders=holders, show=show)
    return [
        re_path(rf"^{one.path[1:]}/?$", _view(shown, one), name=one.name)
        for one in shown.by_path.values()
    ]


def _view(shown: Routes, route: Route) -> Callable[..., Any]:
    async def view(request: HttpRequest) -> HttpResponse:
        found = await asgi.wait(
            shown.ask(
                request.method or "",
                route.path,
                query=request.META.get("QUERY_STRING", ""),
                accept=request.headers.get("accept", ""),
                accept_encoding=request.headers.get("accept-encoding", ""),
            )
        )
        body = found.body_for(request.method or "")
        return HttpResponse(body, status=found.status, headers=dict(found.headers))

    if route.is_probe:
        _probes.add(view)
    view.csrf_exempt = True  # type: ignore[attr-defined]  # so that a POST gets 405
    # With ATOMIC_REQUESTS Django refuses asynchronous views, except if they are exempt.
    exempt: Callable[..., Any] = non_atomic_requests(view)
    return exempt


_probes: "weakref.WeakSet[Callable[..., Any]]" = weakref.WeakSet()


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Return false if a record of Django says that a probe answered 503.

    That is an answer and no error of this process, but Django would mail it to the admins each
    time. This library logs why the client is unhealthy.
    """
    match = getattr(getattr(record, "request", None), "resolver_match", None)
    return getattr(record, "status_code", None) != NOT_READY or (
        getattr(match, "func", None) not in _probes
    )


# Django documents the logger's name, and what its records have.
logging.getLogger("django.request").addFilter(_is_worth_a_line)


class OwnerMiddleware:
    """Makes the route of a request, such as `/orders/<int:id>/`, the owner of its checkouts.

        MIDDLEWARE = ["pool_telemetry.django.OwnerMiddleware", ...]

    A request that matches no route gets no owner. It runs in synchronous and asynchronous stacks.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        self._is_asynchronous = iscoroutinefunction(get_response)
        if self._is_asynchronous:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """Serve one request."""
        if self._is_asynchronous:
            return self._respond(request)
        with _owner_of(request):
            return self._get_response(request)

    async def _respond(self, request: HttpRequest) -> Any:
        with _owner_of(request):
            return await self._get_response(request)


def _owner_of(request: HttpRequest) -> contextlib.AbstractContextManager[None]:
    # A middleware runs before Django resolves the URL.
    try:
        match = resolve(request.path_info, getattr(request, "urlconf", None))
    except Resolver404:
        return contextlib.nullcontext()
    return owner_of_route(f"/{match.route}")
