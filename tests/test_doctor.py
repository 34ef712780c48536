"""The command line's diagnosis and sizes: of a service, of its metrics, and of a server."""

import base64
import contextlib
import dataclasses
import itertools
import json
import math
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, ProcessCollector
from pymongo import CursorType, MongoClient
from pymongo.uri_parser import parse_uri

from pool_telemetry import (
    MongoDBConnectionPool,
    PoolTelemetry,
    TelemetryOptions,
    cli,
    prometheus,
)
from pool_telemetry.cli import doctor
from pool_telemetry.cli.prometheus_text import read
from pool_telemetry.fastapi import create_router
from pool_telemetry.stats import HistogramStats, PoolStats
from tests.proxy import Proxy
from tests.support import slow, wait_for
from tests.web import serving

APP = "ailing"


numbers = itertools.count()


@pytest.fixture
def service(server_uri: str) -> Iterator[str]:
    """A service with a pool of two, whose server takes its time."""
    MongoDBConnectionPool.initialize(
        server_uri,
        maxPoolSize=2,
        minPoolSize=0,
        # PyMongo's queue is not fair: on a busy machine some callers are not served for seconds.
        waitQueueTimeoutMS=60_000,
        appName=APP,
        # One of its own, because the counts of ended clients stay in those of their name.
        telemetry=TelemetryOptions(name=f"{APP}-{next(numbers)}"),
    )
    app, registry = FastAPI(), CollectorRegistry()
    ProcessCollector(registry=registry)
    app.include_router(create_router(registry=registry))
    app.include_router(create_router(registry=registry), prefix="/internal")
    with serving(app) as web:
        yield f"http://127.0.0.1:{web.port}"


@contextlib.contextmanager
def exhausted(server_uri: str) -> Iterator[None]:
    """Ten threads find all the time, 20 ms each."""
    orders, over = MongoDBConnectionPool.get_client()["shop"]["orders"], threading.Event()

    def ask() -> None:
        while not over.is_set():
            orders.find_one()

    threads = [threading.Thread(target=ask) for _ in range(10)]
    with slow(server_uri, APP, 20):
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: MongoDBConnectionPool.get_pool_stats()["pool"]["waiting"] >= 7)
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    told = capsys.readouterr()
    return code, told.out, told.err


def test_a_healthy_service_is_told_so(service: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain = service.removeprefix("http://")
    for target in (service, plain, plain + "/health", plain + "/metrics", service + "/metrics/"):
        code, out, err = run(capsys, "doctor", target, "--seconds", "0.2")
        assert (code, err) == (0, ""), out
        assert out.startswith("healthy: nothing is wrong\n")
        assert "0 in use, 0 waiting, 1 open, maxPoolSize 2" in out


def test_every_pool_of_a_service_is_looked_at(
    service: str, server_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    telemetry = PoolTelemetry("reports")
    with MongoClient[Any](server_uri, event_listeners=telemetry.listeners) as client:
        reports = client["shop"]["reports"]
        reports.insert_many([{} for _ in range(10)])
        with reports.find(cursor_type=CursorType.EXHAUST, batch_size=2) as cursor:
            next(cursor)
            wait_for(lambda: telemetry.stats().pools[0].longest_idle >= 5.0)
            code, out, _ = run(capsys, "doctor", service)
    assert (code, "WARNING: leak, reports@" in out) == (1, True)
    assert out.count(" in use, ") >= 2


@pytest.mark.load
@pytest.mark.parametrize("page", ["", "/health", "/pool/diagnosis", "/internal", "/metrics"])
def test_an_exhausted_pool_is_told_with_what_to_set(
    page: str, service: str, server_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with exhausted(server_uri):
        threading.Event().wait(1.0)  # for which it is exhausted
        code, out, _ = run(capsys, "doctor", service + page, "--seconds", "1.5")
        assert code == doctor.EXIT_CODES["warning"], out
        assert re.match(r"WARNING: undersized, ailing-\d+@127.0.0.1:", out)
        (size,) = re.findall(r"Raise maxPoolSize from 2 to (\d+)", out.replace("\n       ", " "))
        assert f"\n  set  maxPoolSize={size}\n" in out
        code, out, _ = run(capsys, "doctor", service + page, "--json", "--seconds", "1.5")
        found = json.loads(out)
        assert (code, found["verdict"], found["severity"]) == (1, "undersized", "warning")
        # The first second does not show yet that each of the ten returns as soon as it is served.
        least = 9 if page == "/metrics" else 3
        assert least <= found["findings"][0]["change"]["maxPoolSize"] <= 11
        assert found["findings"][0]["evidence"]["peak_waiting"] >= 8


@pytest.mark.load
def test_sizes_are_told_with_their_waits(
    service: str, server_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with exhausted(server_uri):
        code, out, _ = run(capsys, "size", service, "--seconds", "1.5")
        assert code == 0
        assert " callers per second hold a connection for " in out
        (now,) = [line for line in out.splitlines() if "  now (p95 measured: " in line]
        assert now.split()[0] == "2"
        code, out, _ = run(capsys, "size", service, "--seconds", "1.5", "--json")
        (found,) = json.loads(out)
        assert 9 <= found["recommended"] == found["wanted"] <= 11
        assert found["max_pool_size"] == 2
        assert found["connections_in_use"] == pytest.approx(2.0, rel=0.1)
        # Never above what the server has for each process.
        limits = ("--connection-limit", "40", "--processes", "5")
        code, out, _ = run(capsys, "size", service, "--seconds", "1.5", *limits)
        assert code == cli.FAILED
        assert (
            "The server allows 5 in each process's pool, besides 3 that monitor the server"
            in out.replace("\n", " ")
        )
        (best,) = [
            line for line in out.splitlines() if line.endswith("the most that the server allows")
        ]
        assert best.split()[0] == "5"
        assert not any(line.endswith("recommended") for line in out.splitlines())
        code, _, err = run(capsys, "size", service, "--connection-limit", "40", "--processes", "11")
        assert code == 1
        assert "40 connections are too few for 11 processes" in err


@pytest.mark.load
def test_what_suffices_is_enough(
    service: str, server_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A caller that returns as soon as it is served keeps a connection busy, and never waits."""
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            MongoDBConnectionPool.get_client()["shop"]["orders"].find_one()

    with slow(server_uri, APP, 20):
        thread = threading.Thread(target=ask)
        thread.start()
        try:
            code, out, _ = run(capsys, "size", service, "--seconds", "1.5")
        finally:
            over.set()
            thread.join()
    assert code == 0
    assert re.search(r"^ +2 .* now \(p95 measured: [\d.]+ ms\), recommended$", out, re.MULTILINE), (
        out
    )


def test_a_size_is_no_cure_for_a_leak(
    service: str, server_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = MongoDBConnectionPool.get_client()["shop"]["orders"]
    orders.insert_many({"i": i} for i in range(1_000))
    cursors = [orders.find(cursor_type=CursorType.EXHAUST, batch_size=2) for _ in range(2)]
    for cursor in cursors:
        next(cursor)
    wait_for(lambda: run(capsys, "doctor", service)[0] == doctor.EXIT_CODES["critical"])
    code, out, err = run(capsys, "size", service, "--seconds", "0.2")
    assert (code, out) == (cli.CANT_TELL, "")
    assert "no connection was used for 0.2 s, and the doctor reports: leak\n" in err
    for cursor in cursors:
        cursor.close()


def test_given_numbers_need_no_address(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "size", "--rate", "80", "--use-time", "0.0085", "--json")
    (found,) = json.loads(out)
    assert (code, found["recommended"]) == (0, 3)
    assert found["connections_in_use"] == pytest.approx(0.68)
    assert [one["size"] for one in found["sizes"]] == sorted(one["size"] for one in found["sizes"])
    code, out, err = run(capsys, "size")
    assert (code, out) == (cli.CANT_TELL, "")
    assert (
        err
        == "pool-telemetry size: the load is not known: give an address, or --rate and --use-time\n"
    )
    for huge in (["--rate", "1e9", "--use-time", "10"], ["--rate", "1e5", "--use-time", "1"]):
        code, out, err = run(capsys, "size", *huge)
        assert (code, out) == (cli.CANT_TELL, "")
        assert "and no pool is larger than " in err
    code, out, _ = run(capsys, "size", "--rate", "9.9e4", "--use-time", "1", "--json")
    assert json.loads(out)[0]["recommended"] == pytest.approx(99_000, rel=0.01)
    for wrong in (
        ["--rate", "0"],
        ["--rate", "abc"],
        ["--rate", "nan"],
        ["--processes", "0"],
        ["--processes", "x"],
    ):
        with pytest.raises(SystemExit, match=str(cli.CANT_TELL)):
            cli.main(["size", *wrong])
        capsys.readouterr()


def test_a_server_is_examined(server_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor", server_uri, "--seconds", "0.2")
    assert code == 0
    assert out.startswith("healthy: the server itself has no problem\n")
    assert "operations per second, ping " in out
    assert "a server does not know its clients' pools: for these, ask a service" in out
    code, _, err = run(capsys, "size", server_uri, "--seconds", "0.2")
    assert code == cli.CANT_TELL
    assert "the server ran no operation for 0.2 s" in err
    code, out, _ = run(
        capsys, "size", server_uri, "--seconds", "0.2", "--rate", "100", "--use-time", "0.05"
    )
    assert code == 0
    assert "5.00 in use on average" in out
    code, _, err = run(capsys, "size", server_uri, "--seconds", "0.2", "--rate", "100")
    assert code == cli.CANT_TELL
    assert "the server does not report how long operations take: give --use-time\n" in err


def test_a_slow_way_to_the_server_is_told(
    server_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Proxy(parse_uri(server_uri)["nodelist"][0][1]) as proxy:
        proxy.delay(0.06)
        code, out, _ = run(capsys, "doctor", proxy.uri, "--seconds", "0.1")
    assert code == doctor.EXIT_CODES["warning"]
    assert out.startswith("WARNING: slow operations, 127.0.0.1:")
    (milliseconds,) = re.findall(r"A ping takes (\d+) ms", out)
    assert int(milliseconds) >= 120


def test_what_does_not_answer_is_critical_or_can_not_be_told(
    dead_port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pool_telemetry.cli.sources.server.REACH_SECONDS", 0.5)
    nowhere = dead_port
    code, out, _ = run(capsys, "doctor", f"mongodb://ann:s3cr3t@127.0.0.1:{nowhere}/")
    assert code == doctor.EXIT_CODES["critical"]
    assert out.startswith(f"CRITICAL: server unreachable, mongodb://***:***@127.0.0.1:{nowhere}/")
    for target, words in (
        (f"http://127.0.0.1:{nowhere}", "does not answer (Connection refused): check"),
        (f"http://ann:s3cr3t@127.0.0.1:{nowhere}", "does not answer ("),
        (f"localhost:{nowhere}", f"http://localhost:{nowhere} does not answer ("),
        ("http://", "the argument is not a valid address (its host is not valid): "),
        ("", "the argument is not a valid address (it is empty): "),
        ("mongodb://ann:s3cr3t@", "can't be used: "),
        ("mongodb://ann:s3c:r3t@h/", "special characters in its user name or password"),
    ):
        code, out, err = run(capsys, "doctor", target)
        assert (code, out) == (cli.CANT_TELL, ""), target
        assert err.count("\n") == 1
        assert words in err
        assert "s3c" not in err
    code, out, _ = run(capsys, "doctor", f"http://127.0.0.1:{nowhere}", "--json")
    assert (code, json.loads(out)["verdict"]) == (cli.CANT_TELL, None)


def test_an_address_may_have_credentials(service: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Guard(_Page):
        """Asks for what `curl -u` sends, and leads elsewhere."""

        def do_GET(self) -> None:
            asked.append(self.headers.get("Authorization"))
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{elsewhere.server_port}{self.path}")
            self.end_headers()

    class Elsewhere(_Page):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            super().do_GET()

    asked, seen = list[str | None](), list[str | None]()
    with serving_pages(Guard) as guard, serving_pages(Elsewhere) as elsewhere:
        code, out, err = run(
            capsys, "doctor", f"http://ann:s3%3Acr3t@127.0.0.1:{guard.server_port}"
        )
    assert (code, out) == (cli.CANT_TELL, "")
    assert "cr3t" not in err
    assert asked == ["Basic " + base64.b64encode(b"ann:s3:cr3t").decode()] * len(asked)
    assert asked
    assert seen == []  # another port is another address
    assert "redirects to http://127.0.0.1:" in err


@contextlib.contextmanager
def serving_pages(page: type[BaseHTTPRequestHandler]) -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Page(BaseHTTPRequestHandler):
    text = ""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.text.encode())

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002  # theirs


@pytest.mark.parametrize(
    "text", ["<html>hello</html>", "up 1\n", "", "[1, 2]", '{"findings": [{}]}', '{"findings": 3}']
)
def test_what_has_no_pool_can_not_be_told(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = type("Page", (_Page,), {"text": text})
    with serving_pages(page) as server:
        for command in ("doctor", "size"):
            url = f"http://127.0.0.1:{server.server_port}"
            code, out, err = run(capsys, command, url, "--seconds", "0.1")
            assert (code, out) == (cli.CANT_TELL, "")
            assert err.count("\n") == 1
            assert re.search(
                "has no metrics of a pool|not in Prometheus' text format|of another version", err
            )


def test_the_words_of_a_status_are_safe_for_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    class Refusing(_Page):
        def do_GET(self) -> None:
            self.send_response(418, "a \x1b[2J teapot")
            self.end_headers()

    with serving_pages(Refusing) as server:
        code, _, err = run(capsys, "doctor", f"http://127.0.0.1:{server.server_port}")
    assert code == cli.CANT_TELL
    assert "status 418 (a  [2J teapot)" in err
    assert err[:-1].isprintable()


UNTOLD = {  # by metrics: ages of what is over, and why
    *("since_exhausted", "since_timeout", "since_up_changed", "outage", "down_reason"),
    *("stalled_time", "longest_idle", "owners", "since_served", "lost"),
}


def test_metrics_are_read_back_as_what_they_were(server_uri: str) -> None:
    telemetry = PoolTelemetry("read-back")
    client = MongoClient[Any](server_uri, event_listeners=telemetry.listeners, maxPoolSize=7)
    for _ in range(50):
        client["shop"]["orders"].find_one()
    with contextlib.suppress(Exception):
        client["shop"]["orders"].find_one({"$nonsense": 1})
    registry = CollectorRegistry()
    prometheus.register(registry)
    stats = telemetry.stats()
    (process,) = read(prometheus.generate(registry=registry)[0].decode(), stats.at)
    found = process.clients
    (client_read,) = [one for one in found if one.name == "read-back"]
    (pool, was) = client_read.pools[0], stats.pools[0]
    for field in dataclasses.fields(PoolStats):
        now, before = getattr(pool, field.name), getattr(was, field.name)
        if isinstance(now, HistogramStats):
            assert now.counts == before.counts
            assert now.sum == pytest.approx(before.sum)
            assert before.max <= now.max < math.inf
        elif field.name not in UNTOLD:
            assert now == pytest.approx(before), field.name
    operations = {one.series: one.duration.counts for one in stats.operations}
    assert {one.series: one.duration.counts for one in client_read.operations} == operations
    client.close()
