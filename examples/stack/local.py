"""The stack without containers: two processes of the service, Prometheus and Alertmanager.

`make stack-local` runs the stack until Ctrl-C. It needs Debian's packages prometheus and
prometheus-alertmanager, or programs of these names on the PATH. The database is the embedded server
or the server in MONGODB_URI. All processes use loopback only and end with the stack.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from pool_telemetry.demo.embedded import EmbeddedServer
from pool_telemetry.monitoring import files

HERE: Final = Path(__file__).parent
PROGRAMS: Final = ("prometheus", "prometheus-alertmanager")
START_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Stack:
    """The addresses of the running stack, and its processes by name."""

    app: str
    prometheus: str
    alertmanager: str
    processes: Mapping[str, subprocess.Popen[bytes]]

    def pages(self) -> dict[str, list[str]]:
        """Return the pages to look at, by the name of their program."""
        # Debian's Prometheus has only its old pages, and its Alertmanager has none.
        alerts = f"{self.prometheus}/alerts"
        if not _answers(alerts):
            alerts = f"{self.prometheus}/classic/alerts"
        return {
            "service": [f"{self.app}/health", f"{self.app}/metrics"],
            "Prometheus": [alerts, f"{self.prometheus}/graph"],
            "Alertmanager": [f"{self.alertmanager}/api/v2/alerts"],
        }


def missing() -> list[str]:
    """Return the programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextlib.contextmanager
def running(uri: str, **environ: str) -> Iterator[Stack]:
    """Run the stack while the `with` block runs.

    Args:
        uri: The URI of the database.
        **environ: More environment variables for the service.
    """
    app, calm, prometheus, alertmanager = (f"127.0.0.1:{_free_port()}" for _ in range(4))
    places = {  # compose's addresses and ours; without a collector Prometheus scrapes both
        '"app:8000"': f'"{app}", "{calm}"',
        "app:8000": app,
        "alertmanager:9093": alertmanager,
    }
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pool-telemetry-")))
        places["/etc/prometheus/rules.yml"] = str(folder / "rules.yml")
        for name, text in files.rules().items():
            (folder / name).write_text(text)
        for name in ("prometheus/prometheus.yml", "alertmanager/alertmanager.yml"):
            text = (HERE / name).read_text()
            for theirs, ours in places.items():
                text = text.replace(theirs, ours)
            # Without the scrape job of the collector, which does not run here.
            (folder / Path(name).name).write_text(text.partition("\n  # The other")[0] + "\n")
        processes: dict[str, subprocess.Popen[bytes]] = {}
        for address, load in ((app, environ.get("LOAD", "cycle")), (calm, "calm")):
            host, _, port = address.partition(":")
            uvicorn = ["-m", "uvicorn", "--app-dir", str(HERE), "--log-level", "warning"]
            processes[f"the service at {address}"] = stack.enter_context(
                _process(
                    [sys.executable, *uvicorn, "--host", host, "--port", port, "app:app"],
                    f"http://{address}/health/live",
                    {"MONGODB_URI": uri, **environ, "LOAD": load},
                )
            )
        processes["Alertmanager"] = stack.enter_context(
            _process(
                [
                    "prometheus-alertmanager",
                    f"--config.file={folder}/alertmanager.yml",
                    f"--storage.path={folder}/alerts",
                    f"--web.listen-address={alertmanager}",
                    "--cluster.listen-address=",
                    "--log.level=warn",
                ],
                f"http://{alertmanager}/-/ready",
            )
        )
        processes["Prometheus"] = stack.enter_context(
            _process(
                [
                    "prometheus",
                    f"--config.file={folder}/prometheus.yml",
                    f"--storage.tsdb.path={folder}/series",
                    f"--web.listen-address={prometheus}",
                    "--enable-feature=exemplar-storage",
                    "--log.level=warn",
                ],
                f"http://{prometheus}/-/ready",
            )
        )
        yield Stack(
            app=f"http://{app}",
            prometheus=f"http://{prometheus}",
            alertmanager=f"http://{alertmanager}",
            processes=processes,
        )


@contextlib.contextmanager
def _process(
    command: list[str], ready: str, environ: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program while the block runs; the block begins when the program answers."""
    process = subprocess.Popen(  # noqa: S603  # our own commands, no shell
        command,
        env={**os.environ, **(environ or {})},
        start_new_session=True,  # so that Ctrl-C in the terminal does not reach the program
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} did not start")
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  # our own
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _ping(uri: str) -> None:
    try:
        with MongoClient[Any](uri, serverSelectionTimeoutMS=3000) as client:
            client.admin.command("ping")
    except PyMongoError as error:  # its message may contain parts of the address
        raise SystemExit(f"no server answers at MONGODB_URI: {type(error).__name__}") from None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


def main() -> None:
    """Run the stack until Ctrl-C."""
    if needed := missing():
        raise SystemExit(
            f"{' and '.join(needed)} not installed: apt-get install {' '.join(needed)}"
        )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    with contextlib.ExitStack() as stack:
        uri = os.environ.get("MONGODB_URI") or stack.enter_context(EmbeddedServer()).uri
        _ping(uri)
        one = stack.enter_context(running(uri))
        print(
            *(f"{name:<13} {'  '.join(urls)}" for name, urls in one.pages().items()),
            "",
            "The pool is exhausted about every five minutes; its alerts are printed here.",
            f"To exhaust it now: curl -X PUT {one.app}/load/exhausted    and back: .../load/cycle",
            "Ctrl-C stops everything.",
            sep="\n",
            flush=True,
        )
        while not stop.wait(1.0):
            for name, process in one.processes.items():
                if process.poll() is not None:
                    raise SystemExit(f"{name} ended, so the stack stops")
    print("Everything is stopped.")


if __name__ == "__main__":
    main()
