"""The demo as a user starts it: a separate process that leaves no processes or files."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from pool_telemetry import MongoDBConnectionPool, TelemetryOptions, cli
from pool_telemetry.demo import embedded
from pool_telemetry.demo.load import CYCLE, Callers, Server
from tests.conftest import need_embedded_server
from tests.support import fastest, wait_for

ROW = r"in use +\d+/8  idle +\d+  waiting +\d+  oldest wait .+  wait p99 .+  timeouts .+  status "


class Demo:
    """A running demo and its output so far."""

    def __init__(self, folder: Path, *arguments: str, stdout: Any = subprocess.PIPE, **env: str):
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.errors = folder / "stderr"
        self.output = ""
        # The server inherits this variable, too.
        self._mark = f"TMPDIR={self.temporary}\0"
        with self.errors.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pool_telemetry.cli", "demo", "--port", "0", *arguments],
                env={**os.environ, "TMPDIR": str(self.temporary), **env},
                stdout=stdout,
                stderr=stderr,
            )

    def listen(self, stream: Any) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal ends with an error
            while chunk := os.read(stream, 65536):
                self.output += chunk.decode(errors="replace")

    def see(self, pattern: str) -> "re.Match[str]":
        """Wait until the output has this pattern, and return the match."""

        def found() -> "re.Match[str] | None":
            match = re.search(pattern, self.output)
            ended = f"the demo ended: {self.output}{self.error_text}"
            assert match or self.process.poll() is None, ended
            return match

        match: re.Match[str] = wait_for(found, pattern)
        return match

    @property
    def url(self) -> str:
        return self.see(r"open (http://127\.0\.0\.1:\d+)/health")[1]

    @property
    def error_text(self) -> str:
        return self.errors.read_text()

    def stop(self, number: int) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def left_over(self) -> list[str]:
        """Return the demo's processes, including the server, and its temporary files."""
        found = [str(path) for path in self.temporary.iterdir()]
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # the process ended or belongs to another user
                if self._mark.encode() in environ.read_bytes():
                    found.append(environ.parent.joinpath("cmdline").read_text())
        return found


@contextlib.contextmanager
def running(folder: Path, *arguments: str, terminal: bool = False, **env: str) -> Iterator[Demo]:
    if terminal:
        ours, theirs = os.openpty()
        demo = Demo(folder, *arguments, stdout=theirs, TERM="xterm-256color", **env)
        os.close(theirs)
    else:
        demo = Demo(folder, *arguments, **env)
        assert demo.process.stdout is not None
        ours = demo.process.stdout.fileno()
    reader = threading.Thread(target=demo.listen, args=(ours,), daemon=True)
    reader.start()
    try:
        yield demo
    finally:
        if demo.process.poll() is None:
            demo.process.terminate()
        demo.process.wait(60)
        reader.join()
        if demo.process.stdout is None:
            os.close(ours)
        else:
            demo.process.stdout.close()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        text: str = answer.read().decode()
        return text


@pytest.fixture(autouse=True)
def _needs_the_server() -> None:
    need_embedded_server()


def test_once_plays_the_cycle_and_ends_well(tmp_path: Path) -> None:
    with running(tmp_path, "--once") as demo:
        demo.see(ROW)
        assert json.loads(get(f"{demo.url}/health"))["status"] == "healthy"

        demo.see("== exhausted: ")
        demo.see(r"timeouts +[1-9]\d*  status degraded")
        health, metrics = json.loads(get(f"{demo.url}/health")), get(f"{demo.url}/metrics")
        assert health["status"] == "degraded"
        assert health["mongodb"]["pool"]["in_use"] == 8
        assert re.search(
            r'^db_client_connection_timeouts_total\{.*"demo@.*\} [1-9]', metrics, re.MULTILINE
        )

        demo.see("What happened:")
        assert demo.process.wait(60) == 0

    phases = re.findall(r"^== (\w+): ", demo.output, re.MULTILINE)
    assert phases == [phase.name for phase in CYCLE] == ["calm", "rush", "exhausted", "recovered"]
    assert int(demo.see(r"  timeouts +(\d+)\n")[1]) > 0
    assert demo.see(r"  exhaustions +(\d+), [\d.]+ s in total\n")[1] != "0"
    assert demo.see(r"  status +(\w+)\n")[1] == "healthy"
    assert demo.error_text == ""
    assert demo.left_over() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path) as demo:
        demo.see(ROW)
        # The demo, the server, the server's watchdog and folder.
        assert len(demo.left_over()) == 4
        assert demo.stop(number) == 0
    demo.see("Everything is stopped")
    assert demo.error_text == ""
    assert demo.left_over() == []


def test_an_interrupted_cycle_is_no_success(tmp_path: Path) -> None:
    with running(tmp_path, "--once") as demo:
        demo.see(ROW)
        assert demo.stop(signal.SIGINT) == 130
    assert demo.left_over() == []


def test_closed_output_ends_the_demo(tmp_path: Path) -> None:
    with running(tmp_path) as demo:
        demo.see(ROW)
        assert demo.process.stdout is not None
        os.dup2(os.open(os.devnull, os.O_RDONLY), demo.process.stdout.fileno())
        assert demo.process.wait(60) == 1
    assert demo.error_text == ""
    assert demo.left_over() == []


def test_a_terminal_of_80_by_24_shows_the_whole_screen(tmp_path: Path) -> None:
    with running(tmp_path, terminal=True, COLUMNS="80", LINES="24") as demo:
        demo.see("Ctrl-C stops everything")  # the last line of the screen
        for text in ("in use", "idle", "waiting", "oldest wait", "wait p99", "timeouts", "status"):
            assert text in demo.output
        demo.see(r"http://127\.0\.0\.1:\d+/metrics/mongodb")
        assert demo.stop(signal.SIGINT) == 0
    assert demo.error_text == ""
    assert demo.left_over() == []


def test_given_server_is_left_as_it_was(tmp_path: Path, server_uri: str) -> None:
    with running(tmp_path, MONGODB_URI=server_uri) as demo:
        demo.see(ROW)
        app_name = json.loads(get(f"{demo.url}/health"))["mongodb"]["pool_config"]["appName"]
        with MongoClient[dict[str, Any]](server_uri, appName=app_name) as client:
            wait_for(lambda: app_name in client.list_database_names())
            assert demo.stop(signal.SIGINT) == 0
            assert app_name not in client.list_database_names()
            # Slowed down, each would take at least so long, however often it is tried.
            wait_for(lambda: fastest(client.test.test.find_one) < 0.03)
    assert demo.error_text == ""


@pytest.mark.bulk
def test_server_without_fail_points_gets_more_callers(tmp_path: Path) -> None:
    program = embedded.executable()
    assert program is not None
    server = subprocess.Popen(
        [program, "--port", "0", "--storage-path", str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert server.stdout is not None
    try:
        port = next(filter(None, (re.search(r"listening on .*:(\d+)", x) for x in server.stdout)))
        with running(tmp_path, MONGODB_URI=f"mongodb://127.0.0.1:{port[1]}/") as demo:
            demo.see("note: this server has no fail points")
            demo.see(ROW)
            assert demo.stop(signal.SIGINT) == 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    assert demo.error_text == ""


def test_callers_of_an_exhausted_pool_stop_after_their_current_operation(server_uri: str) -> None:
    before = threading.active_count()
    client = MongoDBConnectionPool.initialize(
        server_uri, appName="slow-one", maxPoolSize=2, telemetry=TelemetryOptions()
    )
    server, callers = Server(server_uri, "slow-one"), Callers(client.test.chats)
    server.slow_down(300)
    callers.scale_to(20, 0.0)
    wait_for(lambda: MongoDBConnectionPool.get_pool_stats()["pool"]["waiting"] == 18)

    before_stop = MongoDBConnectionPool.get_pool_stats()["checkouts"]["ok"]
    stopping = threading.Thread(target=callers.stop)
    stopping.start()
    callers._stopped.wait()  # before the server is quick, so that few operations end meanwhile
    server.speed_up()
    stopping.join()
    after_stop = MongoDBConnectionPool.get_pool_stats()["checkouts"]["ok"]
    # Each of the 20 reads and then writes.
    assert after_stop - before_stop <= 2 * 20

    server.close()
    MongoDBConnectionPool.close()
    wait_for(lambda: threading.active_count() <= before, "the end of all threads")


def test_demo_leaves_no_threads_and_restores_signal_handlers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = threading.active_count()
    handler = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        wait_for(lambda: MongoDBConnectionPool.get_pool_stats()["checkouts"]["ok"] > 10)
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    assert cli.main(["demo", "--port", "0"]) == 0
    interrupter.join()
    assert "Everything is stopped" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler
    wait_for(lambda: threading.active_count() <= before, "the end of all threads")


def test_port_in_use_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["demo", "--port", f"{port}"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"port {port} can't be used" in error
