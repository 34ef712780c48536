"""The ways to start four workers of one service, and one `with` block for all of them.

    with start("uvicorn", uri, folder) as service:
        service.call("find")

The block begins when every worker has answered. It ends as an operator would end it, by SIGTERM to
the parent process; what is left then is killed and named in `survivors`.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from tests.needs import lacks, needs
from tests.support import PATIENCE_SECONDS, UNMEASURED, free_port, wait_for
from tests.web import Web

WORKERS: Final = 4
CALLERS: Final = 40
"""More than the threads of all workers but one, so that none of them is left out."""
STOP_SECONDS: Final = 20.0
PAUSE_SECONDS: Final = 0.05
"""A worker that tells its id takes no other request for so long."""


@dataclass
class Service:
    """Workers that answer for one service, and the process that started them."""

    way: str
    process: "subprocess.Popen[bytes]"
    folder: Path
    call: Callable[..., Any] = field(init=False)
    """Calls a function of `work` in one of the workers and returns its result."""
    web: Web | None = None
    pids: frozenset[int] = frozenset()
    """The workers' process ids as they were at the start."""
    survivors: list[int] = field(default_factory=list)
    """The processes that SIGTERM to the parent did not end."""

    @property
    def has_routes(self) -> bool:
        """Return whether it serves `/health` and the other routes beside `/metrics`."""
        return self.way in _WITH_ROUTES

    @property
    def log(self) -> Path:
        """Return the file with what all processes print."""
        return self.folder / "log"

    def members(self) -> list[int]:
        """Return the ids of all its processes that live, the parent's included."""
        names = (one.name for one in Path("/proc").iterdir())
        return [pid for pid in map(int, filter(str.isdigit, names)) if self._has(pid)]

    def _has(self, pid: int) -> bool:
        try:
            state, _, group = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[:3]
        except OSError:  # it ended
            return False
        return int(group) == self.process.pid and state != "Z"

    def ask_all(self, count: int = WORKERS) -> frozenset[int]:
        """Return the process ids of the workers when so many have answered."""
        seen: set[int] = set()

        def ask(_: int) -> None:
            with contextlib.suppress(OSError):  # it does not listen yet
                seen.add(self.call("pid", pause=PAUSE_SECONDS))

        def all_answered() -> bool:
            assert self.process.poll() is None, f"{self.way} ended"
            list(callers.map(ask, range(CALLERS)))
            return len(seen) >= count

        with ThreadPoolExecutor(CALLERS) as callers:
            wait_for(all_answered, f"{count} workers of {self.way}", pause=0.1)
        return frozenset(seen)

    def release(self, pid: int) -> None:
        """End the hold of a worker."""
        (self.folder / f"release-{pid}").touch()


@dataclass(frozen=True)
class Way:
    """A package, and what Python runs to start its workers."""

    package: str
    arguments: tuple[str, ...]
    recycle: tuple[str, ...] = ()  # replaces a worker after "{requests}" requests


_OURS: Final = "POOL_TELEMETRY_"
_NO_MORE: Final[Mapping[str, str]] = {}
_ASGI: Final = "tests.servers.asgi:app"
_WSGI: Final = "tests.servers.wsgi:application"
_WORKERS: Final = ("--workers", str(WORKERS))
_HOST_AND_PORT: Final = ("--host", "127.0.0.1", "--port", "{port}")
_BIND: Final = ("--bind", "127.0.0.1:{port}")
_UVICORN_WORKER: Final = ("--worker-class", "uvicorn_worker.UvicornWorker")


def _gunicorn(app: str, *arguments: str) -> Way:
    given = (*_WORKERS, *_BIND, "--graceful-timeout", "5")
    return Way(
        "gunicorn", ("-m", "gunicorn", app, *given, *arguments), ("--max-requests", "{requests}")
    )


HTTP: Final[dict[str, Way]] = {
    "uvicorn": Way(
        "uvicorn",
        ("-m", "uvicorn", _ASGI, *_HOST_AND_PORT, *_WORKERS),
        ("--limit-max-requests", "{requests}"),
    ),
    "gunicorn": _gunicorn(_ASGI, *_UVICORN_WORKER),
    "gunicorn-preload": _gunicorn(_ASGI, *_UVICORN_WORKER, "--preload"),
    "gunicorn-gthread": _gunicorn(_WSGI, "--worker-class", "gthread", "--threads", "8"),
    "gunicorn-gevent": _gunicorn(_WSGI, "--worker-class", "gevent"),
    "hypercorn": Way(
        "hypercorn",
        ("-m", "hypercorn", _ASGI, *_BIND, *_WORKERS),
        ("--max-requests", "{requests}"),
    ),
    "granian": Way(
        "granian", ("-m", "granian", _ASGI, "--interface", "asgi", *_HOST_AND_PORT, *_WORKERS)
    ),
    "uwsgi": Way(
        "pyuwsgi",
        (
            *("-c", "import pyuwsgi; pyuwsgi.run()", "--http-socket", "127.0.0.1:{port}"),
            *("--module", _WSGI, "--master", "--processes", str(WORKERS), "--threads", "8"),
            # Without Python's hooks a lock that PyMongo's monitor holds at the fork stays held.
            *("--die-on-term", "--need-app", "--py-call-osafterfork"),
        ),
        ("--max-requests", "{requests}"),
    ),
    **{
        method: Way("pool_telemetry", ("-m", "tests.servers.parent", method, "{port}"))
        for method in ("fork", "forkserver", "spawn")
    },
}
"""The ways whose workers share a port, or whose parent has one."""

_WITH_ROUTES: Final = {
    *("uvicorn", "gunicorn", "gunicorn-preload", "gunicorn-gthread", "hypercorn", "granian"),
    "celery",
}

CELERY: Final = Way(
    "celery",
    (
        *("-m", "celery", "--app", "tests.servers.tasks:app", "worker"),
        *("--concurrency", str(WORKERS), "--loglevel", "INFO"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ),
    ("--max-tasks-per-child", "{requests}"),
)
RQ: Final = Way(
    "rq",
    ("-m", "rq.cli", "worker-pool", "--num-workers", str(WORKERS), "--url", "{url}", "default"),
)
SCRIPT: Final = ("-m", "tests.servers.script")


@contextlib.contextmanager
def start(
    way: str, uri: str, folder: Path, *, requests: int = 0, env: Mapping[str, str] = _NO_MORE
) -> Iterator[Service]:
    """Start the workers of a way and hand them over when all have answered.

    Args:
        way: A name in HTTP.
        uri: The address of the MongoDB server.
        folder: An empty folder for the log and what else the workers need.
        requests: Replace each worker after so many requests; 0 never does.
        env: More variables of the environment.
    """
    port = free_port()
    with _running(way, HTTP[way], uri, folder, env, port=port, requests=requests) as service:
        service.web = Web(port)
        service.call = _call_of_http(service.web)
        service.pids = service.ask_all()
        yield service


@contextlib.contextmanager
def start_celery(uri: str, folder: Path, env: Mapping[str, str] = _NO_MORE) -> Iterator[Service]:
    """Start four workers of Celery."""
    _need(CELERY)
    with _redis() as url:
        more = {**env, "SERVERS_QUEUE": url}
        with _running("celery", CELERY, uri, folder, more) as service:
            service.call = _call_of_celery(url)
            service.pids = service.ask_all()
            yield service


@contextlib.contextmanager
def start_rq(uri: str, folder: Path, env: Mapping[str, str] = _NO_MORE) -> Iterator[Service]:
    """Start four workers of RQ. Each job runs in a process of its own, which ends with the job."""
    _need(RQ)
    import redis
    import rq

    with contextlib.ExitStack() as stack:
        url = stack.enter_context(_redis())
        connection = stack.enter_context(redis.Redis.from_url(url))
        queue = rq.Queue(connection=connection)

        def call(name: str, **numbers: float) -> Any:
            job = queue.enqueue("tests.servers.jobs.job", name, **numbers)
            done = (rq.job.JobStatus.FINISHED, rq.job.JobStatus.FAILED)
            wait_for(lambda: job.get_status() in done, f"{name} of RQ")
            return job.return_value(refresh=True)

        service = stack.enter_context(_running("rq", RQ, uri, folder, env, url=url))
        service.call = call
        yield service


@contextlib.contextmanager
def _redis() -> Iterator[str]:
    """Run a Redis and hand over its address."""
    needs("redis-server", package="redis-server")
    port = free_port()
    command = ("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for(lambda: _listens(port), "Redis")
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.terminate()


def run_script(uri: str, folder: Path, finds: int, env: Mapping[str, str] = _NO_MORE) -> int:
    """Run a script as cron does: it finds so often and ends. Return its process id."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *SCRIPT, str(finds)],
        env=_environment(uri, folder, env),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@contextlib.contextmanager
def exporter(folder: Path) -> Iterator[Web]:
    """Run `pool-telemetry serve` for processes whose POOL_TELEMETRY_DIR is this folder."""
    port = free_port()
    serve = ("-m", "pool_telemetry.cli", "serve", "--port", str(port), "--dir", str(folder))
    with subprocess.Popen([sys.executable, *serve], env=_inherited()) as process:
        try:
            wait_for(lambda: _listens(port), "pool-telemetry serve")
            yield Web(port)
        finally:
            process.terminate()


@contextlib.contextmanager
def _running(
    name: str, way: Way, uri: str, folder: Path, env: Mapping[str, str], **values: object
) -> Iterator[Service]:
    _need(way)
    recycle = way.recycle if values.get("requests") else ()
    assert recycle or not values.get("requests"), f"{name} replaces no worker after some requests"
    command = [one.format(**values) if "{" in one else one for one in (*way.arguments, *recycle)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *command],
            env=_environment(uri, folder, env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its process group has its workers, however they are started
        )
        # Reads a pipe that ends when this process does, however that is ended.
        watchdog = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; kill -9 -- "-$1"', "sh", str(process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
    service = Service(name, process, folder)
    try:
        yield service
    except BaseException:
        print(f"the log of {name}:", service.log.read_text(errors="replace")[-20_000:], sep="\n")
        raise
    finally:
        _end(service)
        watchdog.kill()
        watchdog.communicate()


def _end(service: Service) -> None:
    """End the parent as an operator does, and kill what is left of its group."""
    service.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        service.process.wait(STOP_SECONDS)
    with contextlib.suppress(AssertionError):  # an orphan may end a moment after its parent
        wait_for(lambda: not service.members(), seconds=2.0)
    service.survivors = service.members()
    for pid in service.survivors:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    service.process.wait()


def _environment(uri: str, folder: Path, env: Mapping[str, str]) -> dict[str, str]:
    given = {"SERVER_URI": uri, "SERVERS_FOLDER": str(folder), "PYTHONUNBUFFERED": "1"}
    return {**_inherited(), **given, **env}


def _inherited() -> dict[str, str]:
    """Return the environment, without what `conftest` turns off."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {**ours, **UNMEASURED}


def _need(way: Way) -> None:
    if importlib.util.find_spec(way.package) is None:
        lacks(f"no {way.package}: pip install -e '.[dev]'")


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _call_of_http(web: Web) -> Callable[..., Any]:
    def call(name: str, **numbers: float) -> Any:
        answer = web.get(f"/{name}?{urlencode(numbers)}")
        assert answer.status == 200, answer
        return answer.json()

    return call


def _call_of_celery(url: str) -> Callable[..., Any]:
    from tests.servers.tasks import celery_app

    app = celery_app(url)

    def call(name: str, **numbers: float) -> Any:
        result = app.send_task("call", (name,), numbers)
        return result.get(PATIENCE_SECONDS)

    return call
