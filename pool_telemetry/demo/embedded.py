"""A MongoDB-compatible server as a separate process, for the demo and for tests.

The server is `secantusdb`, an optional extra under the GPL: it is run, never imported. Its data is
in a temporary folder, which is removed when the server stops. The server also ends, with its data,
when the process that started it ends without a `stop()`, even by SIGKILL. It gets only the
variables of `ENVIRONMENT`, because an application's other variables may be credentials.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from typing import IO, Final

from pool_telemetry.errors import PoolTelemetryError
from pool_telemetry.process import after_fork

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 5.0

ENVIRONMENT: Final = (
    *("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR"),
    *("LANG", "LC_ALL", "LC_CTYPE", "TZ"),
)
"""The variables that the server inherits: how to find its code, its files, and the locale."""

# Reads the server's process id from a pipe, and then its end, which comes when this process is
# gone. Linux's PDEATHSIG would end the server with the thread that started it, and macOS has none.
# A killed server may still be ending, so the folder may not be empty at first.
_WATCHDOG: Final = """
read -r pid
read -r _
[ -z "$pid" ] || kill -9 "$pid"
for _ in 1 2 3 4 5; do rm -rf "$1" && break; sleep 1; done
"""
# The server writes its id to that pipe itself, so it has a watchdog however early this process is
# killed. Then it has no end of the pipe.
_SERVER: Final = 'echo $$ >&0 && exec "$@" </dev/null'

_LISTENING: Final = re.compile(r"listening on [\d.]+:(\d+)")


class EmbeddedServerError(PoolTelemetryError, RuntimeError):
    """The embedded server is not installed, or did not start."""


def executable() -> str | None:
    """Return the path of the embedded server, first from this environment; None if missing."""
    beside = Path(sys.executable).parent
    return shutil.which("secantusd-py", path=str(beside)) or shutil.which("secantusd-py")


class EmbeddedServer:
    """Runs the server while the `with` block runs; the block may also call `stop` and `start`.

    Args:
        port: The port; 0 uses a free port, and later starts use the same port.
        arguments: More arguments for the server, such as `--auth`.

    Raises:
        EmbeddedServerError: `start` failed.
    """

    def __init__(self, port: int = 0, *arguments: str) -> None:
        self.port = port
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def uri(self) -> str:
        """Return the connection string."""
        return f"mongodb://127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int | None:
        """Return the server's process id; None while it does not run."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the server, and return when it listens."""
        program = executable()
        if program is None:
            raise EmbeddedServerError(
                "the embedded server is not installed (pip install 'pool-telemetry[demo]'; "
                "it has wheels for CPython 3.11 to 3.13): set MONGODB_URI to a server of yours"
            )
        try:
            self._start(program)
        except BaseException:
            self.stop(kill=True)  # because __exit__ is not called if __enter__ fails
            raise

    def _start(self, program: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pool-telemetry-")
        environ = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        self._watchdog = subprocess.Popen(  # noqa: S603  # our own script; the argument is ours
            ["/bin/sh", "-c", _WATCHDOG, "sh", self._folder.name],
            cwd="/",
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # it outlives whatever ends this process and its group
        )
        _servers.add(self)
        self._process = subprocess.Popen(  # noqa: S603  # our own program and script
            [
                *("/bin/sh", "-c", _SERVER, "sh"),
                program,
                *("--port", str(self.port)),
                *("--storage-path", f"{self._folder.name}/data"),
                "--enable-test-commands",
                *self._arguments,
            ],
            cwd=self._folder.name,
            env=environ,
            stdin=self._watchdog.stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that Ctrl-C in the terminal does not reach the server
        )
        self._wait_until_it_listens(self._process)

    def _wait_until_it_listens(self, process: "subprocess.Popen[str]") -> None:
        late = threading.Timer(START_SECONDS, process.kill)
        late.start()
        output = []
        stream = process.stdout
        assert stream is not None
        try:
            for line in stream:
                output.append(line.strip())
                if found := _LISTENING.search(line):
                    self.port = int(found[1])
                    threading.Thread(target=_drain, args=(stream,), daemon=True).start()
                    return
        finally:
            late.cancel()
        stream.close()
        last = " | ".join(output[-5:]) or "none"
        raise EmbeddedServerError(f"the embedded server did not start; its output: {last}")

    def stop(self, *, kill: bool = False) -> None:
        """Stop the server, with `kill` at once, and remove its data; a repeat does nothing."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.kill()  # before its pipe closes, which it would take for our end
            watchdog.communicate()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def forget_pipe(self) -> None:
        """Close this process's end of the watchdog's pipe, in a forked child."""
        if self._watchdog is not None and self._watchdog.stdin is not None:
            self._watchdog.stdin.close()

    def __enter__(self) -> "EmbeddedServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


_servers: "weakref.WeakSet[EmbeddedServer]" = weakref.WeakSet()


@after_fork
def _forget_pipes() -> None:
    """Let the server end with the process that started it, although its children live on."""
    for server in list(_servers):
        server.forget_pipe()


def _drain(stream: IO[str]) -> None:
    # Without a reader the pipe would fill up and block the server.
    with stream:
        for _ in stream:
            pass
