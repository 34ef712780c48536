"""The embedded server starts, stops, starts again, and reports why it can't start."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from pool_telemetry.demo import embedded
from pool_telemetry.demo.embedded import ENVIRONMENT, EmbeddedServer, EmbeddedServerError
from tests.conftest import need_embedded_server
from tests.support import UNMEASURED, free_port, wait_for


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_restarted_server_has_its_port_and_no_data(
    own_server: EmbeddedServer, folder: Path
) -> None:
    uri = own_server.uri
    with MongoClient[dict[str, Any]](uri) as client:
        client["t"]["t"].insert_one({})
    own_server.stop(kill=True)
    own_server.stop()
    own_server.start()
    assert own_server.uri == uri
    assert len(list(folder.iterdir())) == 1
    with MongoClient[dict[str, Any]](uri) as client:
        assert client["t"]["t"].count_documents({}) == 0
    pid = own_server.pid
    assert pid is not None
    own_server.stop()
    assert list(folder.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_port_in_use_is_an_error_that_leaves_no_files(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = EmbeddedServer(taken.getsockname()[1])
        with pytest.raises(EmbeddedServerError, match=r"did not start; its output: .*in use"):
            server.start()
    assert server.pid is None
    assert list(folder.iterdir()) == []


# It starts the server on a thread that ends, which must not end the server. A child that it forks
# lives on.
PARENT = """
import os, threading
from pool_telemetry.demo.embedded import EmbeddedServer
server = EmbeddedServer()
starter = threading.Thread(target=server.start)
starter.start()
starter.join()
child = os.fork()
if child == 0:
    os.close(1)
    threading.Event().wait()
print(server.pid, server.uri, child, flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_the_process_that_started_it(tmp_path: Path, how: signal.Signals) -> None:
    need_embedded_server()
    environ = {**os.environ, **UNMEASURED, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environ,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid, uri, child = parent.stdout.readline().split()
        try:
            with MongoClient[dict[str, Any]](uri) as client:
                client.admin.command("ping")
            assert len(list(tmp_path.iterdir())) == 1
        finally:
            parent.send_signal(how)
    try:
        wait_for(lambda: not listens(uri), "the end of the server")
        wait_for(lambda: not list(tmp_path.iterdir()), "the end of its data")
    finally:
        for one in (pid, child):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(one), signal.SIGKILL)


# It is killed before it knows the server's process id: it never returns from Popen.
KILLED_IN_START = """
import os, signal, subprocess
from pool_telemetry.demo import embedded
class Popen(subprocess.Popen):
    def __init__(self, arguments, **kwargs):
        super().__init__(arguments, **kwargs)
        if "--storage-path" in arguments:
            os.kill(os.getpid(), signal.SIGKILL)
subprocess.Popen = Popen
embedded.EmbeddedServer(int(os.environ["PORT"])).start()
"""


def test_it_ends_with_a_process_that_is_killed_while_it_starts(tmp_path: Path) -> None:
    need_embedded_server()
    port = free_port()
    environ = {**os.environ, **UNMEASURED, "TMPDIR": str(tmp_path), "PORT": str(port)}
    subprocess.run([sys.executable, "-c", KILLED_IN_START], env=environ, check=False)
    wait_for(lambda: not list(tmp_path.iterdir()), "the end of its data")
    assert not listens(f"mongodb://127.0.0.1:{port}/")


def test_it_inherits_no_credentials(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_server.stop()
    for name in ("MONGODB_URI", "AWS_SECRET_ACCESS_KEY", "OTEL_EXPORTER_OTLP_HEADERS"):
        monkeypatch.setenv(name, "s3cr3t")
    own_server.start()
    watchdog = own_server._watchdog
    assert watchdog is not None
    for pid in (own_server.pid, watchdog.pid):
        environ = Path(f"/proc/{pid}/environ")
        if not environ.exists():
            pytest.skip("the environment of a process is read from /proc")
        names = {one.partition("=")[0] for one in environ.read_text().split("\0") if one}
        assert names <= {*ENVIRONMENT, "PWD"}  # the shell sets PWD
        assert "PATH" in names


def listens(uri: str) -> bool:
    """Return whether a server does; the process id of an ended one may stay with its parent."""
    port = int(uri.rstrip("/").rpartition(":")[2])
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_without_the_embedded_server_the_error_asks_for_a_uri(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedded, "executable", lambda: None)
    with pytest.raises(EmbeddedServerError, match="set MONGODB_URI to a server of yours"):
        EmbeddedServer().start()
