"""The end of processes that never flush, and in which atexit does not run: all finds are sent."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.ending import FINDS
from tests.needs import lacks
from tests.otlp import Received, receiver
from tests.support import PATIENCE_SECONDS, UNMEASURED, free_port, wait_for
from tests.test_otlp_forks import sums

pytestmark = pytest.mark.workers
GUNICORN = ["gunicorn", "--bind=127.0.0.1:{port}", "--workers=2", "--preload"]
SERVERS = {
    "uvicorn": ["uvicorn", "--port={port}"],
    "uvicorn's workers": ["uvicorn", "--port={port}", "--workers=2"],
    "gunicorn": [*GUNICORN, "--worker-class=uvicorn_worker.UvicornWorker"],
}


@contextlib.contextmanager
def running(
    received: Received, log: Path, *arguments: str, **environ: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that sends nothing on its own before its end."""
    with log.open("w") as lines:
        program = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", *arguments],
            env={
                **os.environ,
                **UNMEASURED,
                "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                **environ,
            },
            stdout=lines,
            stderr=lines,
        )
    try:
        yield program
    finally:
        program.kill()  # does nothing to an ended process
        program.wait()


def sent(received: Received) -> list[int]:
    """Return the finds of each process that sent any."""
    return sums(received, "db.client.operation.duration", "cumulative") if received.metrics else []


@pytest.mark.parametrize("app", ["closing", "including"])
@pytest.mark.parametrize("server", SERVERS)
def test_a_web_server_whose_application_has_its_own_lifespan(
    server_uri: str, tmp_path: Path, server: str, app: str
) -> None:
    program, *arguments = (one.format(port=free_port()) for one in SERVERS[server])
    if find_spec(program) is None:
        lacks(f"no {program}: pip install {program}")
    workers = 1 if server == "uvicorn" else 2
    log = tmp_path / "log"
    given = (program, *arguments, f"tests.ending:{app}")
    with (
        receiver("http/protobuf") as received,
        running(received, log, *given, MONGODB_URI=server_uri) as running_program,
    ):
        started = "Application startup complete"
        wait_for(lambda: log.read_text().count(started) == workers, "the workers")
        running_program.send_signal(signal.SIGTERM)
        running_program.wait(PATIENCE_SECONDS)
        assert sent(received) == [FINDS] * workers, log.read_text()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_worker_of_multiprocessing(server_uri: str, tmp_path: Path, method: str) -> None:
    log = tmp_path / "log"
    with (
        receiver("http/protobuf") as received,
        running(received, log, "tests.ending", method, server_uri) as program,
    ):
        assert program.wait(PATIENCE_SECONDS) == 0, log.read_text()
        assert sent(received) == [FINDS]


def test_a_worker_of_celery(server_uri: str, tmp_path: Path) -> None:
    if find_spec("celery") is None:
        lacks("no celery: pip install celery")
    log = tmp_path / "log"
    folder = {"ENDING_DIR": str(tmp_path), "MONGODB_URI": server_uri}
    given = ("celery", "-A", "tests.ending", "worker", "-c2", "-linfo", "--without-mingle")
    with (
        receiver("http/protobuf") as received,
        running(received, log, *given, **folder) as worker,
        running(
            received, tmp_path / "call", "celery", "-A", "tests.ending", "call", "find", **folder
        ),
    ):
        wait_for(lambda: "succeeded" in log.read_text(), "the task")
        worker.send_signal(signal.SIGTERM)
        worker.wait(PATIENCE_SECONDS)
        assert sent(received) == [FINDS], log.read_text()


HOOKS = """
from pool_telemetry import process_end
for name in ("first", "second"):
    process_end.on_end(lambda name=name: print(name) or 1 / (name == "first"))
process_end.end()
"""


def test_every_hook_runs_the_latest_first_and_a_failure_is_logged() -> None:
    done = subprocess.run([sys.executable, "-c", HOOKS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["second", "first"]
    assert "a hook for the end of the process failed" in done.stderr
    assert "ZeroDivisionError" in done.stderr
