"""The routes as a WSGI application, and the owners of requests, without a framework.

The application is served by itself or mounted below a prefix, as by Werkzeug's
`DispatcherMiddleware`.
"""

import contextlib
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import REGISTRY

from pool_telemetry.endpoints import Pool
from pool_telemetry.health import HealthLimits
from pool_telemetry.owners import owner_of_route
from pool_telemetry.routes import Routes, Show

Environ = dict[str, Any]
App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


def create_app(
    pool: Pool | None = None,
    *,
    limits: HealthLimits = HealthLimits(),  # noqa: B008  # frozen
    registry: CollectorRegistry = REGISTRY,
    holders: bool = False,
    show: Show = "all",
) -> App:
    """Return a WSGI application with the routes for health, metrics and the diagnosis.

        app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/telemetry": create_app()})  # Flask

    All but `/health/live` tell hosts, and most tell collections and owners. With show="probes"
    `/health/ready` tells the status alone, and `serving.serve()` has the others on a port of their
    own, which also answers while every thread of the web server waits.

    Args:
        pool: The singleton to report, as in `Routes`.
        limits: The limits that decide when the pool is degraded or unhealthy.
        registry: The registry that `/metrics` shows; every client's metrics are added to it.
        holders: Whether to add `/pool/holders`, which names threads, tasks and owners.
        show: "probes" for `/health/live` and `/health/ready`, "details" for the others, or "all".
    """
    shown = Routes(pool, limits=limits, registry=registry, holders=holders, show=show)

    def app(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        found = shown.wait(
            environ["REQUEST_METHOD"],
            environ.get("PATH_INFO", ""),
            query=environ.get("QUERY_STRING", ""),
            accept=environ.get("HTTP_ACCEPT", ""),
            accept_encoding=environ.get("HTTP_ACCEPT_ENCODING", ""),
        )
        start(f"{found.status} {HTTPStatus(found.status).phrase}", list(found.headers))
        return [found.body_for(environ["REQUEST_METHOD"])]

    return app


def werkzeug_template(url_map: Any) -> Callable[[Environ], str]:
    """Return what `OwnerMiddleware` needs for Flask: its `url_map` knows each rule.

    app.wsgi_app = OwnerMiddleware(app.wsgi_app, werkzeug_template(app.url_map))
    """

    def template(environ: Environ) -> str:
        rule, _ = url_map.bind_to_environ(environ).match(return_rule=True)
        return str(rule.rule)

    return template


class OwnerMiddleware:
    """Makes the template of a request's route, such as `/orders/<id>`, the owner of its checkouts.

    A request that matches no route gets no owner, and a body that is streamed has none.

    Args:
        app: The application.
        template: Returns the template by the request's environ, or raises if no route matches. It
            has to return few values: templates of routes, never paths.
    """

    def __init__(self, app: Any, template: Callable[[Environ], str]) -> None:
        self._app = app
        self._template = template

    def __call__(self, environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        """Serve one request."""
        name = ""
        with contextlib.suppress(Exception):  # a redirection, a wrong method, or no route
            name = self._template(environ)
        with owner_of_route(name):
            found: Iterable[bytes] = self._app(environ, start)
            return found
