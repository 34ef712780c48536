"""Workers of a real uWSGI, which forks in C after it has loaded the application."""

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.forked_in_c import CALLERS, FINDS, SIZE
from tests.needs import lacks
from tests.support import prometheus_families, wait_for
from tests.web import Web

_BOUND = re.compile(r"bound to TCP address 127\.0\.0\.1:(\d+)")
_STOP_SECONDS = 10.0
_ONE_AFTER_THE_OTHER = ()
_THREADS = ("--threads", str(CALLERS + 1))  # one answers while the others wait
_HOOKS = (*_THREADS, "--py-call-osafterfork")  # Python and PyMongo are told of the fork


@contextlib.contextmanager
def uwsgi(uri: str, log: Path, *arguments: str) -> Iterator[Web]:
    """Serve `tests.uwsgi_app` by one worker of uWSGI, as it is by default."""
    if importlib.util.find_spec("pyuwsgi") is None:
        lacks("no uWSGI: pip install pyuwsgi")
    with log.open("w") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-W", "ignore", "-c", "import pyuwsgi; pyuwsgi.run()"),
                *("--http-socket", "127.0.0.1:0", "--module", "tests.uwsgi_app:application"),
                *("--master", "--processes", "1", "--die-on-term", "--need-app"),
                *arguments,
            ],
            env={**os.environ, "SERVER_URI": uri},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: "spawned uWSGI worker 1" in log.read_text() or process.poll() is not None)
        said = log.read_text()
        bound = _BOUND.search(said)
        assert process.poll() is None, said
        assert bound is not None, said
        yield Web(int(bound[1]))
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:  # the master then kills its workers
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    "arguments", [_ONE_AFTER_THE_OTHER, _THREADS, _HOOKS], ids=["alone", "threads", "hooks"]
)
def test_a_worker_lives_and_reports_on_itself(
    server_uri: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    if arguments == _HOOKS and sys.version_info >= (3, 13):
        pytest.skip("uWSGI 2.0.30 hangs so with any application on CPython 3.13")
    log = tmp_path / "log"
    with uwsgi(server_uri, log, *arguments) as web, ThreadPoolExecutor(CALLERS) as callers:
        unused = web.get("/stats").json()
        assert (unused["health"], unused["pools"], unused["finds"]) == ("degraded", 0, 0)
        for _ in range(FINDS):
            assert web.get("/find").status == 200
        wait_for(lambda: web.get("/stats").json()["watched"], "the watching thread")
        used = web.get("/stats").json()
        assert (used["health"], used["status"], used["phases"]) == (
            "healthy",
            "connected",
            ["ready"],
        )
        assert (used["finds"], used["checkouts"], used["watched"]) == (FINDS, FINDS, 1)
        assert (used["closed"], used["cleared"], used["errors"]) == (0, 0, 0)
        assert used["up"] == [True if arguments == _HOOKS else None]  # whether there are heartbeats

        if arguments:
            web.get("/hold")
        answers = [callers.submit(web.get, "/find") for _ in range(CALLERS)]
        if arguments:
            waiting = CALLERS - SIZE
            wait_for(lambda: web.get("/stats").json()["pool"]["waiting"] == waiting)
            web.get("/release")
        assert [one.result().status for one in answers] == [200] * CALLERS
        after = web.get("/stats").json()
        assert (after["finds"], after["checkouts"]) == (FINDS + CALLERS, FINDS + CALLERS)
        assert (after["pool"]["in_use"], after["pool"]["waiting"]) == (0, 0)
        assert after["pid"] == unused["pid"]
        samples = [
            sample
            for one in prometheus_families(web.get("/metrics").text)
            for sample in one.samples
        ]
        exported = {sample.name: sample.value for sample in samples}
        assert exported["db_client_connection_wait_time_seconds_count"] == FINDS + CALLERS
        assert exported["mongodb_client_pool_connections_created_total"] == after["pool"]["size"]
    assert "died" not in log.read_text()
