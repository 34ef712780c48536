"""The recipes of `examples/workers` are true: each command of its README runs real programs."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.needs import lacks, needs
from tests.support import PATIENCE_SECONDS, UNMEASURED, free_port, wait_for
from tests.web import Web

HERE = Path(__file__).parent.parent / "examples" / "workers"
README = (HERE / "README.md").read_text()
WORKERS = 4
PROGRAMS = {
    "uvicorn": ("uvicorn", "-m", "uvicorn"),
    "gunicorn": ("gunicorn", "-m", "gunicorn"),
    "uwsgi": ("pyuwsgi", "-c", "import pyuwsgi; pyuwsgi.run()"),
    "celery": ("celery", "-m", "celery"),
    "rq": ("rq", "-m", "rq.cli"),
    "pool-telemetry": ("pool_telemetry", "-m", "pool_telemetry.cli"),
    "python": ("pool_telemetry",),
}
"""What Python runs instead of a program, so that the program need not be in PATH."""

SERVERS = re.findall(r"\| `([^`]* [^`]*:?8000[^`]*)` \|", README)
"""The commands of the web servers."""


def command(line: str) -> list[str]:
    """Return what to run instead of a line of the README."""
    program, *arguments = shlex.split(line)
    package, *instead = PROGRAMS[program]
    if find_spec(package) is None:
        lacks(f"no {package}: pip install -e '.[dev]'")
    return [sys.executable, "-W", "ignore", *instead, *arguments]


def line_of(program: str) -> str:
    """Return the README's line that begins with a program."""
    (line,) = re.findall(rf"^(?:\| \S.* )?`?({program} [^`\n]*)`?(?: \|.*)?$", README, re.MULTILINE)
    return str(line)


@contextlib.contextmanager
def running(line: str, log: Path, **environ: str) -> Iterator[int]:
    """Run a line of the README while the block runs; end it and its processes by SIGTERM."""
    with log.open("a") as lines:
        process = subprocess.Popen(
            command(line),
            cwd=HERE,
            env={**inherited(), **environ},
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=lines,
            start_new_session=True,
        )
    try:
        yield process.pid
        process.terminate()
        process.wait(PATIENCE_SECONDS)
    except BaseException:
        print(log.read_text(errors="replace")[-20_000:])
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its processes, if it left any
        process.wait()


def inherited() -> dict[str, str]:
    ours = {key: value for key, value in os.environ.items() if "POOL_TELEMETRY" not in key}
    return {**ours, **UNMEASURED, "PYTHONDONTWRITEBYTECODE": "1"}


def finds(web: Web) -> dict[str, int]:
    """Return the finds of each worker, as a scrape shows them."""
    found = dict[str, int]()
    shown = r"^db_client_operation_duration_seconds_count{(.*)} (.*)$"
    for labels, value in re.findall(shown, web.get("/metrics").text, re.MULTILINE):
        worker = re.search(r'worker="(\d+)"', labels)
        if worker and 'db_operation_name="find"' in labels:
            found[worker[1]] = found.get(worker[1], 0) + int(float(value))
    return found


@contextlib.contextmanager
def exporter(folder: Path) -> Iterator[Web]:
    """Run the README's server for processes without HTTP."""
    port = free_port()
    line = line_of("pool-telemetry").replace("9216", str(port))
    log = folder / "exporter"
    with running(line, log, POOL_TELEMETRY_DIR=str(folder)):
        wait_for(lambda: "/metrics shows" in log.read_text(), "the exporter")
        yield Web(port)


@pytest.mark.workers
@pytest.mark.parametrize("line", SERVERS)
def test_a_web_server(line: str, server_uri: str, tmp_path: Path) -> None:
    port = free_port()
    web, answered = Web(port), 0
    line = line.replace(" :8000", f" 127.0.0.1:{port}").replace(" 8000", f" {port}")
    with (
        running(line, tmp_path / "log", MONGODB_URI=server_uri),
        ThreadPoolExecutor(2 * WORKERS) as callers,
    ):

        def order(_: int) -> bool:
            with contextlib.suppress(OSError):  # it does not listen yet
                return web.get("/order").status == 200
            return False

        def all_work() -> bool:
            nonlocal answered
            answered += sum(callers.map(order, range(32)))
            return answered > 0 and len(finds(web)) == WORKERS

        wait_for(all_work, "a find of each worker", pause=0.1)

        def is_complete() -> bool:
            seen = finds(web)
            assert set(seen) == {"0", "1", "2", "3"}
            assert sum(seen.values()) <= answered  # a worker that is late is shown as it was
            return sum(seen.values()) == answered

        for _ in range(5):
            wait_for(is_complete, "the finds of all")


@pytest.mark.workers
def test_celery(server_uri: str, tmp_path: Path) -> None:
    (tmp_path / "queue").mkdir()
    broker = tmp_path / "broker.py"  # a folder, instead of a broker that listens
    broker.write_text(
        "from celery_tasks import app\n"
        "app.conf.update(broker_url='filesystem://', broker_transport_options={\n"
        f"    'data_folder_in': {str(tmp_path / 'queue')!r},\n"
        f"    'data_folder_out': {str(tmp_path / 'queue')!r},\n"
        f"    'control_folder': {str(tmp_path / 'control')!r},\n"
        "    'polling_interval': 0.02,\n"
        "})\n"
    )
    environ = {
        "MONGODB_URI": server_uri,
        "POOL_TELEMETRY_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }

    def send(count: int) -> None:
        tasks = f"import broker, celery_tasks as t; [t.order.delay() for _ in range({count})]"
        given = [sys.executable, "-W", "ignore", "-c", tasks]
        subprocess.run(given, cwd=HERE, env={**inherited(), **environ}, check=True)

    line = line_of("celery")
    assert "--app celery_tasks" in line
    line = line.replace("--app celery_tasks", "--app broker")
    with exporter(tmp_path) as web:
        with running(line, tmp_path / "log", **environ):
            send(3)
            wait_for(lambda: sum(finds(web).values()) == 3, "the tasks")
            assert set(finds(web)) <= {"0", "1", "2", "3"}
            send(1)
            log = tmp_path / "log"
            wait_for(lambda: log.read_text().count(" succeeded in ") == 4, "the last task")
        assert sum(finds(web).values()) == 4
        assert web.get("/health").json()["reasons"] == ["no process runs now"]


@pytest.mark.workers
def test_rq(server_uri: str, tmp_path: Path) -> None:
    needs("redis-server", package="redis-server")
    command("rq")
    import redis
    import rq

    port = free_port()
    environ = {
        "MONGODB_URI": server_uri,
        "POOL_TELEMETRY_DIR": str(tmp_path),
        "RQ_REDIS_URL": f"redis://127.0.0.1:{port}",
    }
    broker = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen(broker, stdout=subprocess.DEVNULL) as server:
        try:
            connection = redis.Redis(port=port)

            def listens() -> bool:
                with contextlib.suppress(redis.ConnectionError):
                    return bool(connection.ping())
                return False

            wait_for(listens, "Redis")
            queue = rq.Queue(connection=connection)
            with running(line_of("rq"), tmp_path / "log", **environ), exporter(tmp_path) as web:
                for _ in range(5):
                    queue.enqueue("rq_jobs.order")
                wait_for(lambda: finds(web) == {"0": 5}, "the jobs")
            connection.close()
        finally:
            server.terminate()


@pytest.mark.workers
def test_cron(server_uri: str, tmp_path: Path) -> None:
    line = re.sub(r"(?:\S+ ){5}(POOL_TELEMETRY_DIR)=\S+ (?=python)", "", line_of(r"\*/10"))
    environ = {"MONGODB_URI": server_uri, "POOL_TELEMETRY_DIR": str(tmp_path)}
    with exporter(tmp_path) as web:
        for run in range(1, 4):
            subprocess.run(
                command(line),
                cwd=HERE,
                env={**inherited(), **environ},
                stdout=subprocess.DEVNULL,
                check=True,
            )
            assert finds(web) == {"0": run}
