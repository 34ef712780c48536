"""The examples for FastAPI, Flask and Django on real servers, while their pool is exhausted."""

import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import lacks
from tests.support import UNMEASURED, free_port, slow, wait_for
from tests.web import Web

ROOT = Path(__file__).parents[1]
APP = "chat-example"
CONNECTIONS = 10  # of presets.DEVELOPMENT
THREADS = 32
PROBES = 50
LIMIT_SECONDS = 5.0  # generous, because the machine may be busy
GUNICORN = ("gunicorn", "--threads", str(THREADS), "--bind", "127.0.0.1:{port}")
UVICORN = ("uvicorn", "--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning")

pytestmark = pytest.mark.load


@contextlib.contextmanager
def running(uri: str, app: str, *server: str) -> Iterator[tuple[Web, Web]]:
    """Run an example. Hand over its public port, and the port of the details."""
    for name in (server[0], app.partition("_")[0]):
        if importlib.util.find_spec(name) is None:
            lacks(f"no {name}: pip install -e '.[dev]'")
    public, details = free_port(), free_port()
    command = [one.format(port=public) for one in server]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", *command, f"examples.{app}"],
        cwd=ROOT,
        env={
            **os.environ,
            **UNMEASURED,
            "MONGODB_URI": f"{uri.rstrip('/')}/?appName={APP}",
            "TELEMETRY_PORT": str(details),
        },
    )
    try:
        web = Web(public)

        def answers() -> bool:
            assert process.poll() is None, f"{server[0]} ended"
            with contextlib.suppress(OSError):
                return web.get("/chat/1?message=hello", method="POST").status == 200
            return False

        wait_for(answers, app)
        yield web, web if server[0] == "uvicorn" else Web(details)
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def calling(web: Web, callers: int) -> Iterator[None]:
    """Call the service by so many threads, again and again."""
    over = threading.Event()

    def call() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                web.get("/chat/17?message=hello", method="POST")

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def slowest(web: Web, path: str) -> float:
    """Return the seconds of the slowest of some probes, all of which have to answer."""
    found = []
    for _ in range(PROBES):
        began = time.perf_counter()
        assert web.get(path).status == 200
        found.append(time.perf_counter() - began)
    return max(found)


def waiting(details: Web) -> int:
    found: int = details.get("/health").json()["mongodb"]["pool"]["waiting"]
    return found


def test_fastapi_on_uvicorn(server_uri: str, figures: list[str]) -> None:
    with running(server_uri, "fastapi_app:app", *UVICORN) as (web, details):
        assert details.get("/health").json()["status"] == "healthy"
        # FastAPI has 40 threads for functions that are not asynchronous: all of them are taken.
        with slow(server_uri, APP, 500, "insert"), calling(web, 60):
            wait_for(lambda: waiting(details) >= 40 - CONNECTIONS)
            measure("FastAPI on uvicorn, all threads taken", web, "", figures)
            assert details.get("/metrics").status == 200


@pytest.mark.parametrize(
    ("framework", "owner"),
    [("flask", "/chat/<session_id>"), ("django", "/chat/<str:session_id>")],
)
def test_wsgi_on_gunicorn(framework: str, owner: str, server_uri: str, figures: list[str]) -> None:
    app = f"{framework}_app:application"
    with running(server_uri, app, *GUNICORN) as (web, details):
        assert details.get("/health").json()["status"] == "healthy"
        assert web.get("/telemetry/health").status == 404
        with slow(server_uri, APP, 500, "insert"):
            with calling(web, 24):
                wait_for(lambda: waiting(details) >= 24 - CONNECTIONS - 4)
                measure(f"{framework} on gunicorn", web, "/telemetry", figures)
            with calling(web, THREADS + 8):
                wait_for(lambda: waiting(details) >= THREADS - CONNECTIONS - 2)
                name = f"{framework} on gunicorn, all threads taken, own port"
                measure(name, details, "", figures)
                assert details.get("/metrics").status == 200
        assert set(details.get("/health").json()["mongodb"]["top_owners"]) == {owner}


def measure(name: str, web: Web, prefix: str, figures: list[str]) -> None:
    for path in ("/health/live", "/health/ready"):
        seconds = slowest(web, prefix + path)
        figures.append(f"{name}: the slowest of {PROBES} {path} in {seconds * 1000:.0f} ms")
        assert seconds < LIMIT_SECONDS
