"""Each framework's middleware makes the route's template the owner, and never a value in a path."""

import importlib.util
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from pool_telemetry import asgi, wsgi
from pool_telemetry.owners import current_origin
from pool_telemetry.stats import bounded
from tests.needs import lacks
from tests.test_routes import Ask, ask_asgi, ask_wsgi
from tests.web import use_django

LONG = "/long/{number}/" + "x" * 300


def needs_package(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        lacks(f"no {name}: pip install -e '.[dev]'")


def owners(ask: Ask, *paths: str) -> list[str]:
    """Return the owner of each path's request, as the handler sees it."""
    return [ask(path).body.decode() for path in paths]


def test_starlette() -> None:
    async def said(_: Any) -> PlainTextResponse:
        return PlainTextResponse(current_origin().owner)

    inner = [Route("/{year:int}", said), Route(LONG, said)]
    app = Starlette(routes=[Route("/orders/{number}", said), Mount("/reports", routes=inner)])
    app.add_middleware(asgi.OwnerMiddleware)
    ask = ask_asgi(app)
    assert owners(ask, "/orders/17", "/reports/2026") == [
        "/orders/{number}",
        "/reports/{year:int}",
    ]
    (cut,) = owners(ask, "/reports" + LONG)
    assert cut == bounded(f"/reports{LONG}", 200)
    assert cut.startswith("/reports/long/")
    assert ask("/nowhere/17").status == 404
    assert current_origin().owner == ""


def test_another_asgi_framework_names_its_templates_itself() -> None:
    async def said(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse(current_origin().owner)(scope, receive, send)

    app = asgi.OwnerMiddleware(said, lambda scope: str(scope.get("kind", "")))
    assert owners(ask_asgi(app), "/orders/17") == [""]
    app = asgi.OwnerMiddleware(said, lambda _: "an order")
    assert owners(ask_asgi(app), "/orders/17") == ["an order"]


def test_litestar() -> None:
    needs_package("litestar")
    from litestar import Litestar, get

    async def order() -> str:
        return current_origin().owner

    handler = get("/orders/{number:int}")(order)
    app = Litestar([handler], middleware=[asgi.OwnerMiddleware], openapi_config=None)
    assert owners(ask_asgi(app), "/orders/17") == ["/orders/{number}"]
    assert ask_asgi(app)("/nowhere/17").status == 404


def test_flask() -> None:
    needs_package("flask")
    from flask import Flask

    app: Any = Flask("test")
    app.add_url_rule("/orders/<int:number>", "order", lambda number: current_origin().owner)
    app.wsgi_app = wsgi.OwnerMiddleware(app.wsgi_app, wsgi.werkzeug_template(app.url_map))
    ask = ask_wsgi(app)
    assert owners(ask, "/orders/17") == ["/orders/<int:number>"]
    assert ask("/nowhere/17").status == 404
    assert ask("/orders/17", "POST").status == 405
    assert current_origin().owner == ""


@pytest.mark.parametrize("is_asynchronous", [False, True])
def test_django(is_asynchronous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use_django()
    from django.conf import settings
    from django.core.handlers.asgi import ASGIHandler
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpResponse
    from django.urls import include, path

    def said(request: Any, number: int) -> HttpResponse:
        return HttpResponse(current_origin().owner)

    async def said_later(request: Any, number: int) -> HttpResponse:
        return HttpResponse(current_origin().owner)

    inner = [path("<int:number>/", said), path("<int:number>/later", said_later)]
    urls = type("urls", (), {"urlpatterns": [path("orders/", include(inner))]})
    monkeypatch.setattr(settings, "ROOT_URLCONF", urls, raising=False)
    monkeypatch.setattr(settings, "ALLOWED_HOSTS", ["*"])
    monkeypatch.setattr(settings, "MIDDLEWARE", ["pool_telemetry.django.OwnerMiddleware"])
    ask = ask_asgi(ASGIHandler()) if is_asynchronous else ask_wsgi(WSGIHandler())
    assert owners(ask, "/orders/17/", "/orders/17/later") == [
        "/orders/<int:number>/",
        "/orders/<int:number>/later",
    ]
    assert ask("/nowhere/17").status == 404
