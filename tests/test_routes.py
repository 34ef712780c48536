"""The answers of the routes by every adapter, and the threads that make them."""

import asyncio
import contextlib
import functools
import gc
import gzip
import http.client
import io
import json
import multiprocessing
import os
import re
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.urls import include
from django.urls import path as url
from fastapi import Depends, FastAPI, HTTPException
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import GaugeMetricFamily
from starlette.applications import Starlette
from starlette.routing import Mount

from pool_telemetry import asgi, routes, serving, workers, wsgi
from pool_telemetry.errors import PoolConfigurationError, PoolTelemetryError
from pool_telemetry.fastapi import create_router
from pool_telemetry.own_thread import OwnThread
from pool_telemetry.routes import Routes, takes_gzip
from tests.support import PATIENCE_SECONDS, logged, until, wait_for
from tests.web import use_django

DETAILS = ["/health", "/metrics", "/metrics/mongodb", "/pool/diagnosis"]
PROBES = ["/health/live", "/health/ready"]
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@dataclass(frozen=True)
class Got:
    """An answer as a client of an adapter gets it."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


Ask = Callable[..., Got]
"""Asks an application: `ask("/health", "GET", accept="...")`."""


def ask_asgi(app: Any, prefix: str = "") -> Ask:
    def ask(path: str, method: str = "GET", **headers: str) -> Got:
        return asyncio.run(asked(app, prefix + path, method, **headers))

    return ask


async def asked(app: Any, path: str, method: str = "GET", **headers: str) -> Got:
    """Ask an ASGI application on this loop."""
    path, _, query = path.partition("?")
    sent = list[Any]()

    received = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        return next(received, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "server": ("testserver", 80),
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
    }
    await app(scope, receive, send)
    begin, *pieces = sent
    assert [one.get("more_body", False) for one in pieces] == [True] * (len(pieces) - 1) + [False]
    found = {name.decode().lower(): value.decode() for name, value in begin["headers"]}
    return Got(begin["status"], found, b"".join(one.get("body", b"") for one in pieces))


def ask_wsgi(app: Any, prefix: str = "") -> Ask:
    def ask(path: str, method: str = "GET", **headers: str) -> Got:
        path, _, query = path.partition("?")
        began = list[Any]()
        environ = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": prefix + path,
            "QUERY_STRING": query,
            "SERVER_NAME": "testserver",
            "SERVER_PORT": "80",
            "wsgi.input": io.BytesIO(),
            "wsgi.url_scheme": "http",
            **{f"HTTP_{name.upper()}": value for name, value in headers.items()},
        }
        answer = app(environ, lambda *given: began.append(given))
        body = b"".join(answer)
        if hasattr(answer, "close"):
            answer.close()
        ((status, found),) = began
        return Got(int(status.split()[0]), {k.lower(): v for k, v in found}, body)

    return ask


def http_get(port: int, path: str, method: str = "GET", **headers: str) -> Got:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    with contextlib.closing(connection):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Got(answer.status, found, answer.read())


@contextlib.contextmanager
def ask_port(**kwargs: Any) -> Iterator[Ask]:
    with serving.serve(0, **kwargs) as served:
        yield functools.partial(http_get, served.port)


@contextlib.contextmanager
def ask_django(handler: Any, ask: Any, **kwargs: Any) -> Iterator[Ask]:
    from pool_telemetry.django import create_urls

    use_django()
    urls = type("urls", (), {"urlpatterns": [url("inner/", include(create_urls(**kwargs)))]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "ROOT_URLCONF", urls, raising=False)
        patch.setattr(settings, "ALLOWED_HOSTS", ["*"])
        yield ask(handler(), "/inner")


@contextlib.contextmanager
def adapter(name: str, **kwargs: Any) -> Iterator[Ask]:
    """Ask the routes by one of the adapters."""
    kwargs = {"registry": CollectorRegistry(), **kwargs}
    if name == "fastapi":
        app = FastAPI()
        app.include_router(create_router(**kwargs), prefix="/inner")
        yield ask_asgi(app, "/inner")
    elif name == "asgi":
        yield ask_asgi(asgi.create_app(**kwargs))
    elif name == "asgi, mounted":
        yield ask_asgi(Starlette(routes=[Mount("/inner", asgi.create_app(**kwargs))]), "/inner")
    elif name == "wsgi":
        yield ask_wsgi(wsgi.create_app(**kwargs))
    elif name == "port":
        with ask_port(**kwargs) as ask:
            yield ask
    elif name == "django, asgi":
        with ask_django(ASGIHandler, ask_asgi, **kwargs) as ask:
            yield ask
    else:
        with ask_django(WSGIHandler, ask_wsgi, **kwargs) as ask:
            yield ask


ADAPTERS = ["fastapi", "asgi", "asgi, mounted", "wsgi", "port", "django, asgi", "django, wsgi"]


@pytest.fixture(params=ADAPTERS)
def ask(request: pytest.FixtureRequest) -> Iterator[Ask]:
    with adapter(request.param, holders=True) as found:
        yield found


def test_every_adapter_answers_every_route(ask: Ask) -> None:
    for path in (*DETAILS, *PROBES, "/pool/holders"):
        got, head = ask(path), ask(path, "HEAD")
        without_a_pool = path in ("/health/ready", "/pool/diagnosis")
        assert got.status == head.status == (503 if without_a_pool else 200), path
        assert int(got.headers["content-length"]) == len(got.body) > 0
        if path == "/metrics":
            assert got.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert b"# TYPE mongodb_client_pool_exhausted gauge\n" in got.body
        else:
            assert got.headers["content-type"] == "application/json"
            json.loads(got.body)
        assert head.body == b""
        # The pids and ages in two answers may differ in length.
        assert abs(int(head.headers["content-length"]) - len(got.body)) < 100
        assert head.headers.keys() == got.headers.keys()
        assert head.headers["content-type"] == got.headers["content-type"]
        for method in ("POST", "PROPFIND"):
            wrong = ask(path, method)
            assert wrong.status == 405
            assert sorted(wrong.headers["allow"].split(", ")) == ["GET", "HEAD"]
    assert ask("/nowhere").status == 404


@pytest.mark.parametrize("show", ["all", "probes", "details"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_shows_the_probes_or_the_details(name: str, show: str) -> None:
    with adapter(name, show=show) as ask:
        for path in DETAILS:
            assert (ask(path).status != 404) == (show != "probes"), path
        for path in PROBES:
            assert (ask(path).status != 404) == (show != "details"), path
        assert ask("/pool/holders").status == 404
        if show == "probes":
            ready = ask("/health/ready")
            assert (ready.status, json.loads(ready.body)) == (503, {"status": "unhealthy"})


def test_another_kind_of_routes_is_refused() -> None:
    with pytest.raises(PoolConfigurationError, match="show is 'some'"):
        Routes(show="some")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_argument_without_effect_is_refused(name: str) -> None:
    with (
        pytest.raises(PoolConfigurationError, match="holders=True has no effect"),
        adapter(name, show="probes", holders=True),
    ):
        pass


def test_dependencies_of_no_route_are_refused() -> None:
    with pytest.raises(PoolConfigurationError, match="dependencies= has no effect"):
        create_router(show="probes", dependencies=[Depends(lambda: None)])


def test_every_adapter_compresses_what_is_worth_it(ask: Ask) -> None:
    for path in ("/metrics", "/health"):
        plain, packed = ask(path), ask(path, accept_encoding="br, gzip")
        assert "content-encoding" not in plain.headers
        assert packed.headers["content-encoding"] == "gzip"
        assert "Accept-Encoding" in plain.headers["vary"]
        assert packed.headers["vary"] == plain.headers["vary"]
        assert int(packed.headers["content-length"]) == len(packed.body) < len(plain.body) / 2
        assert gzip.decompress(packed.body)[:20] == plain.body[:20]
    assert "content-encoding" not in ask("/health/ready", accept_encoding="gzip").headers


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP;Q=0.5, br", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("*", True),
        ("*;q=0", False),
        ("gzip;q=0, *", False),
        ("*;q=0, gzip", True),
        ("identity", False),
        ("deflate, gzip ; q = 1.0", True),
        ("gzip;q=", False),
        ("gzip;q=much", False),
        ("gzip;q=nan", False),
        ("gzip;level=9", False),
        (";;,=,q=1", False),
        ("\udc80\x00gzip", False),
    ],
)
def test_only_a_header_that_allows_gzip_gets_it(header: str, expected: bool) -> None:
    assert takes_gzip(header) == expected


@pytest.mark.parametrize(
    "accept",
    [
        *("application/openmetrics-text; version=1.x", "text/plain; version=", ";;;,,,===", "\x00"),
        "application/openmetrics-text; version=" + "9" * 5_000,
        "text/plain; version=1.0.0; escaping=nonsense",
    ],
)
def test_a_malformed_accept_header_gets_text(accept: str) -> None:
    answer = Routes(registry=CollectorRegistry()).wait(
        "GET", "/metrics", accept=accept, accept_encoding=accept
    )
    assert answer.status == 200
    assert dict(answer.headers)["content-type"].startswith("text/plain")


def test_the_format_follows_the_accept_header(ask: Ask) -> None:
    assert (
        ask("/metrics", accept=OPENMETRICS)
        .headers["content-type"]
        .startswith("application/openmetrics-text; version=1.0.0")
    )


def test_names_choose_samples(ask: Ask) -> None:
    got = ask("/metrics?name[]=mongodb_client_process_up&name%5B%5D=nothing")
    families = re.findall(rb"^# TYPE (\S+) ", got.body, re.MULTILINE)
    assert families == [b"mongodb_client_process_up"]
    assert b"# TYPE" not in ask("/metrics?name[]=nothing").body


@given(*[st.text(max_size=40)] * 5)
@hypothesis_settings(max_examples=hypothesis_settings().max_examples // 4)
def test_no_request_can_make_it_fail(
    method: str, place: str, query: str, accept: str, encoding: str
) -> None:
    shown = Routes(registry=CollectorRegistry())
    malformed = f"application/openmetrics-text; version={accept}, text/plain; version={encoding}"
    for header in (accept, malformed):
        asked = {"query": f"name[]={query}", "accept": header, "accept_encoding": encoding}
        assert shown.wait("GET", "/metrics", **asked).status == 200
        assert shown.wait(method, "/metrics", **asked).status in (200, 405)
        assert shown.wait("GET", place, **asked).status in (200, 404)


def test_lone_surrogates_break_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"caf\xe9")
    monkeypatch.setattr("pool_telemetry.endpoints.holders", lambda: {"holders": [{"task": name}]})
    shown = Routes(registry=CollectorRegistry(), holders=True)
    assert shown.wait("GET", "/pool/holders").body == b'{"holders":[{"task":"caf?"}]}'


# On which threads


class Slow:
    """A collector that waits until it may go on, and counts how often it is asked."""

    def __init__(self) -> None:
        self.collected = 0
        self.may_go_on = threading.Event()
        self.threads = set[str]()
        self.error: BaseException | None = None

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        self.collected += 1
        self.threads.add(threading.current_thread().name)
        assert self.may_go_on.wait(PATIENCE_SECONDS)
        if self.error:
            raise self.error
        yield GaugeMetricFamily("asked", "How often.", value=self.collected)


@pytest.fixture
def slow() -> Iterator[Slow]:
    """Its registry is `registry_of(slow)`."""
    found = Slow()
    yield found
    found.may_go_on.set()


def registry_of(slow: Slow) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(slow)
    return registry


def is_asked(slow: Slow, times: int = 1) -> bool:
    return slow.collected >= times


def test_requests_at_the_same_time_share_one_answer(slow: Slow) -> None:
    shown = Routes(registry=registry_of(slow))
    first = shown.ask("GET", "/metrics")
    wait_for(lambda: is_asked(slow))
    same = [shown.ask(method, "/metrics", accept="*/*") for method in ("GET", "HEAD") * 50]
    packed = shown.ask("GET", "/metrics", accept_encoding="gzip")
    assert all(one is first for one in same)
    slow.may_go_on.set()
    answer = first.result(PATIENCE_SECONDS)
    assert b"asked 1.0\n" in answer.body
    assert b"asked 2.0\n" in gzip.decompress(packed.result(PATIENCE_SECONDS).body)
    assert slow.threads == {"pool_telemetry-metrics"}
    assert b"asked 3.0\n" in shown.wait("GET", "/metrics").body


def test_different_requests_share_nothing(slow: Slow) -> None:
    shown, other = Routes(registry=registry_of(slow)), Routes(registry=CollectorRegistry())
    futures = [
        shown.ask("GET", "/metrics"),
        shown.ask("GET", "/metrics", accept=OPENMETRICS),
        shown.ask("GET", "/metrics", query="name[]=asked"),
        other.ask("GET", "/metrics"),
    ]
    assert len(set(map(id, futures))) == 4
    again = shown.ask("GET", "/metrics", query="name%5B%5D=asked&name[]=asked&x=1")
    assert again is futures[2]
    slow.may_go_on.set()
    for one in futures:
        assert one.result(PATIENCE_SECONDS).status == 200


def test_names_that_do_not_exist_share_one_answer(slow: Slow) -> None:
    shown = Routes(registry=registry_of(slow))
    for count, known in enumerate(("mongodb_client_process_up", "none"), start=1):
        slow.may_go_on.clear()
        shown.ask("GET", "/metrics")  # it keeps the thread of the answers
        wait_for(partial(is_asked, slow, count))
        asked = [
            shown.ask("GET", "/metrics", query=f"name[]={known}&name[]=none{number}")
            for number in range(100)
        ]
        assert len(set(map(id, asked))) == 1
        slow.may_go_on.set()
        answer = asked[0].result(PATIENCE_SECONDS)
        assert (b"process_up" in answer.body) == (known != "none")


def test_an_answer_is_not_made_if_all_its_callers_have_left(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_of(slow)
    app, shown = asgi.create_app(registry=registry), Routes(registry=registry)
    first = shown.ask("GET", "/metrics")
    wait_for(lambda: is_asked(slow))

    async def leave() -> None:
        callers = [asyncio.create_task(asked(app, "/metrics")) for _ in range(3)]
        await asyncio.sleep(0)
        for one in callers:
            one.cancel()
        await asyncio.wait(callers)

    asyncio.run(leave())
    assert not asgi._queues
    with monkeypatch.context() as patch:
        patch.setattr(routes, "LIMIT_SECONDS", 0.0)
        assert shown.wait("GET", "/metrics", accept=OPENMETRICS).status == 503
    stays, leaves = (shown.ask("GET", "/metrics", accept_encoding="gzip") for _ in range(2))
    leaves.leave()
    slow.may_go_on.set()
    assert b"asked 1.0\n" in first.result(PATIENCE_SECONDS).body
    assert b"asked 2.0\n" in gzip.decompress(stays.result(PATIENCE_SECONDS).body)
    assert b"asked 3.0\n" in shown.wait("GET", "/metrics", accept=OPENMETRICS).body


def test_the_answers_that_wait_to_be_made_are_limited(slow: Slow) -> None:
    shown = Routes(registry=registry_of(slow))

    def ask(number: int) -> Any:
        accept = OPENMETRICS.replace("1.0.0", f"1.0.{number}")
        return shown.ask("GET", "/metrics", accept=accept)

    first = ask(0)
    wait_for(lambda: is_asked(slow))
    accepted = [ask(number) for number in range(1, 32)]
    refused = ask(33).result(0)
    assert (refused.status, dict(refused.headers)["retry-after"]) == (503, "5")
    assert ask(0) is first  # the same answer has room
    assert shown.wait("GET", "/health/ready").status == 503  # no pool
    accepted.pop().leave()
    accepted.append(ask(33))
    slow.may_go_on.set()
    assert {one.result(PATIENCE_SECONDS).status for one in (first, *accepted)} == {200}


def test_a_slow_answer_delays_neither_the_loop_nor_another_route(slow: Slow) -> None:
    """The framework's own executor has no free thread."""
    app = FastAPI()
    app.include_router(create_router(registry=registry_of(slow)))

    async def main() -> None:
        held = threading.Event()
        executor_threads = [asyncio.create_task(asyncio.to_thread(held.wait)) for _ in range(64)]
        try:
            scrape = asyncio.create_task(asked(app, "/metrics"))
            await until(lambda: is_asked(slow))
            for path in (*PROBES, "/health", "/metrics/mongodb", "/pool/diagnosis"):
                assert (await asked(app, path)).status in (200, 503)
            assert not scrape.done()
            slow.may_go_on.set()
            assert b"asked 1.0\n" in (await scrape).body
        finally:
            held.set()
            await asyncio.gather(*executor_threads)

    asyncio.run(main())


def test_a_cancelled_caller_leaves_the_answer_to_the_others(slow: Slow) -> None:
    app = asgi.create_app(registry=registry_of(slow))

    async def main() -> None:
        callers = [asyncio.create_task(asked(app, "/metrics")) for _ in range(3)]
        await until(lambda: is_asked(slow))
        callers[0].cancel()
        await asyncio.wait(callers[:1])
        slow.may_go_on.set()
        assert [(await one).status for one in callers[1:]] == [200, 200]

    asyncio.run(main())


def test_a_loop_that_closes_meanwhile_harms_nobody(
    slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    shown = Routes(registry=registry_of(slow))

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asgi.wait(shown.ask("GET", "/metrics")), 0.01)

    asyncio.run(leave())
    later = shown.ask("GET", "/metrics")
    slow.may_go_on.set()
    assert later.result(PATIENCE_SECONDS).status == 200
    assert asyncio.run(asgi.wait(shown.ask("GET", "/metrics"))).status == 200
    assert not caplog.records


def test_an_answer_that_fails_says_nothing_and_is_logged_once(
    slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    slow.error = ValueError("a s3cret")
    slow.may_go_on.set()
    shown = Routes(registry=registry_of(slow))
    for _ in range(3):
        answer = shown.wait("GET", "/metrics")
        assert answer.status == 500
        assert b"s3cret" not in answer.body
    assert len(logged(caplog, "/metrics could not be made")) == 1
    slow.error = None
    assert shown.wait("GET", "/metrics").status == 200
    slow.error = ValueError("again")
    assert shown.wait("GET", "/metrics").status == 500
    assert len(logged(caplog, "/metrics could not be made")) == 2


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("name", ["asgi", "wsgi", "port"])
def test_a_collector_that_would_end_the_process_fails_like_any_other(
    slow: Slow, name: str, kind: type[BaseException]
) -> None:
    slow.error = kind("a s3cret")
    slow.may_go_on.set()
    with adapter(name, registry=registry_of(slow)) as ask:
        answer = ask("/metrics")
        assert (answer.status, b"s3cret" in answer.body) == (500, False)
        slow.error = None
        assert ask("/metrics").status == 200


def test_an_answer_that_never_comes_is_given_up(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "LIMIT_SECONDS", 0.05)
    registry = registry_of(slow)
    for ask in (
        ask_asgi(asgi.create_app(registry=registry)),
        ask_wsgi(wsgi.create_app(registry=registry)),
    ):
        assert ask("/metrics").status == 503


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_process_that_is_forked_meanwhile_makes_its_own_answers(slow: Slow) -> None:
    shown = Routes(registry=registry_of(slow))
    first = shown.ask("GET", "/metrics")
    wait_for(lambda: is_asked(slow))
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=child_asks, args=(shown, slow, theirs))
    child.start()
    try:
        assert ours.poll(PATIENCE_SECONDS)
        assert ours.recv() == [503, 200]
    finally:
        child.kill()
        child.join()
    assert not first.done()
    slow.may_go_on.set()
    assert first.result(PATIENCE_SECONDS).status == 200


def child_asks(shown: Routes, slow: Slow, report: Any) -> None:
    slow.may_go_on = threading.Event()
    slow.may_go_on.set()
    report.send([shown.wait("GET", path).status for path in ("/health/ready", "/metrics")])


def test_without_more_threads_the_caller_makes_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    thread = OwnThread("pool_telemetry-none")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        assert thread.ask("a", lambda: 1).result(0) == 1
    assert thread.ask("a", lambda: 2).result(PATIENCE_SECONDS) == 2


def test_a_value_that_cannot_be_made_raises_for_its_callers() -> None:
    def fail() -> None:
        raise SystemExit("a reason")

    thread = OwnThread("pool_telemetry-failing")
    with pytest.raises(SystemExit, match="a reason"):
        thread.ask("a", fail).result(PATIENCE_SECONDS)
    assert thread.ask("a", lambda: 2).result(PATIENCE_SECONDS) == 2


# Of one adapter only


def test_dependencies_protect_the_details_of_a_router_and_no_probe() -> None:
    def an_operator() -> None:
        raise HTTPException(401)

    app = FastAPI()
    router = create_router(
        registry=CollectorRegistry(), holders=True, dependencies=[Depends(an_operator)]
    )
    app.include_router(router)
    ask = ask_asgi(app)
    for path in (*DETAILS, "/pool/holders"):
        assert ask(path).status == ask(path, "HEAD").status == 401, path
    assert ask("/health/live").status == 200
    assert json.loads(ask("/health/ready").body) == {"status": "unhealthy"}


def test_the_schema_of_a_router_names_each_route_once() -> None:
    app = FastAPI()
    app.include_router(create_router(registry=CollectorRegistry()))
    schema = json.loads(ask_asgi(app)("/openapi.json").body)
    assert sorted(schema["paths"]) == sorted((*DETAILS, *PROBES))
    assert [set(one) for one in schema["paths"].values()] == [{"get"}] * 6
    assert schema["paths"]["/metrics"]["get"]["operationId"] == "metrics_metrics_get"


def test_an_asgi_application_refuses_websockets_and_lives_with_its_server() -> None:
    app = asgi.create_app(registry=CollectorRegistry())

    async def talk(kind: str, *received: str) -> list[str]:
        sent = list[str]()
        messages = iter(received)

        async def receive() -> Any:
            return {"type": next(messages)}

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await app({"type": kind, "path": "/health", "headers": []}, receive, send)
        return sent

    assert asyncio.run(talk("websocket", "websocket.connect")) == ["websocket.close"]
    assert asyncio.run(talk("lifespan", "lifespan.startup", "lifespan.shutdown")) == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


def test_a_large_body_is_sent_in_pieces_of_which_the_loop_sees_each() -> None:
    registry = CollectorRegistry()
    gauge = Gauge("large", "Large.", ["name"], registry=registry)
    for number in range(5_000):
        gauge.labels(f"{number:050}").set(number)
    app = asgi.create_app(registry=registry)
    shown = Routes(registry=registry)
    got = asyncio.run(asked(app, "/metrics"))
    assert got.body == shown.wait("GET", "/metrics").body
    assert len(got.body) > 5 * asgi.CHUNK_BYTES


def test_a_port_that_is_taken_is_said() -> None:
    shown = Routes(registry=CollectorRegistry())
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for serve in (serving.serve, lambda port: serving.PortServer(port, "127.0.0.1", shown)):
            with pytest.raises(PoolTelemetryError, match=f"can't listen at .*:{port}: "):
                serve(port)


@pytest.mark.parametrize("port", [80_000, -1, "9464", 9464.0, True, None])
def test_a_port_that_is_none_is_refused(port: Any) -> None:
    with pytest.raises(PoolConfigurationError, match=f"port is {port!r}: "):
        serving.serve(port)


@pytest.mark.parametrize("host", ["", " ", "a\0b", None, 127])
def test_a_host_that_is_none_is_refused(host: Any) -> None:
    with pytest.raises(PoolConfigurationError, match=r"host is .*: it has to be an address"):
        serving.serve(0, host)


@pytest.mark.parametrize("host", ["[::1]", "a" * 300, "\udc80"])
def test_a_host_without_an_address_is_said(host: str) -> None:
    with pytest.raises(PoolTelemetryError, match=r"^can't listen at "):
        serving.serve(0, host)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems share no port")
def test_processes_of_one_service_share_a_port_and_no_others(tmp_path: Path) -> None:
    with serving.serve(0, registry=CollectorRegistry()) as served:
        assert child_serves(served.port) == "shared"
        assert child_serves(served.port, str(tmp_path)).endswith("Address already in use")
        with pytest.raises(PoolTelemetryError, match="Address already in use"):
            serving.serve(served.port)  # this process twice
        with pytest.raises(PoolTelemetryError, match="Address already in use"):
            serving.serve(served.port, "0.0.0.0")  # it includes the other address
        serving.serve(served.port, "127.0.0.2").close()  # another address
    assert child_serves(served.port, str(tmp_path)) == "shared"


def child_serves(port: int, folder: str = "") -> str:
    """Serve in a process of this service, or of the service that shares a folder."""

    def serve(report: Any) -> None:
        os.environ[workers.VARIABLE] = folder
        try:
            with serving.serve(port, registry=CollectorRegistry()):
                report.send("shared")
        except PoolTelemetryError as error:
            report.send(str(error))

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=serve, args=(theirs,))
    child.start()
    try:
        assert ours.poll(PATIENCE_SECONDS)
        return str(ours.recv())
    finally:
        child.kill()
        child.join()


def test_a_forked_process_closes_the_port_that_it_inherits() -> None:
    with serving.serve(0, registry=CollectorRegistry()) as served:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=child_listens, args=(served, theirs))
        child.start()
        try:
            assert ours.poll(PATIENCE_SECONDS)
            assert ours.recv() == -1
            child.join(PATIENCE_SECONDS)
            assert child.exitcode == 0
            assert http_get(served.port, "/health/live").status == 200
        finally:
            child.kill()
            child.join()


def child_listens(served: Any, report: Any) -> None:
    report.send(served._server.socket.fileno())
    with served:
        served.close()  # neither waits for a thread of the parent


def test_a_loop_that_has_ended_is_not_kept_alive(slow: Slow) -> None:
    slow.may_go_on.set()
    app = asgi.create_app(registry=registry_of(slow))

    async def scrape_at_once() -> "weakref.ref[asyncio.AbstractEventLoop]":
        await asyncio.gather(*(asked(app, "/metrics") for _ in range(20)))
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(scrape_at_once())
    gc.collect()
    assert loop() is None


def test_a_port_does_not_say_which_python_it_runs_on() -> None:
    with ask_port(registry=CollectorRegistry()) as ask:
        assert ask("/health/live").headers["server"].strip() == "pool-telemetry"


@pytest.mark.parametrize("name", ["django, asgi", "django, wsgi"])
def test_django_logs_no_error_if_a_probe_answers_503(
    name: str, slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    slow.error = ValueError("a reason")
    slow.may_go_on.set()
    with adapter(name, registry=registry_of(slow)) as ask:
        places = {"/health/ready": 503, "/pool/diagnosis": 503, "/metrics": 500}
        assert {place: ask(place).status for place in places} == places
        assert ask("/health/ready", "POST").status == 405
    assert [one.getMessage() for one in caplog.records if one.name == "django.request"] == [
        "Service Unavailable: /inner/pool/diagnosis",
        "Internal Server Error: /inner/metrics",
        "Method Not Allowed: /inner/health/ready",
    ]


@pytest.mark.parametrize("place", ["http://a.host:80", "HTTPS://[::1]", ""])
def test_a_port_takes_the_address_with_and_without_the_host(place: str) -> None:
    with ask_port(registry=CollectorRegistry()) as ask:
        assert ask(f"{place}/health/live?a=1").status == 200
        assert ask(f"{place}/nowhere").status == 404


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"a request that is none\r\n\r\n", 400),
        (b"GET / HTTP/3.0\r\n\r\n", 505),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.0\r\n\r\n", 414),
        (b"GET / HTTP/1.0\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
    ],
    ids=["400", "505", "414", "431"],
)
def test_a_port_refuses_a_malformed_request_in_json(request_: bytes, status: int) -> None:
    with (
        serving.serve(0, registry=CollectorRegistry()) as served,
        socket.create_connection(("127.0.0.1", served.port), PATIENCE_SECONDS) as client,
    ):
        client.sendall(request_)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert answer.status == status
        assert answer.headers["content-type"] == "application/json"
        assert json.loads(answer.read())["detail"]


def test_a_port_waits_for_a_request_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "REQUEST_SECONDS", 0.05)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        request = serving._Request(ours)
        received = bytearray(1)
        theirs.sendall(b"G")

        def read() -> None:
            while request.readinto(received):  # a byte is always there
                theirs.sendall(b"G")

        with pytest.raises(TimeoutError):
            read()


def test_a_port_gives_a_slow_request_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "REQUEST_SECONDS", 0.05)
    with (
        serving.serve(0, registry=CollectorRegistry()) as served,
        socket.create_connection(("127.0.0.1", served.port), PATIENCE_SECONDS) as client,
    ):
        client.sendall(b"GET /health/live HTTP/1.0\r\n")
        assert client.recv(1) == b""
