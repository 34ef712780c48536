"""Our OTLP messages pass unchanged through Rotel, a collector of another project.

Rotel is a program in a wheel; it is run and never imported.
"""

import contextlib
import importlib.util
import socket
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from packaging.requirements import Requirement

from pool_telemetry.catalog import CATALOG
from pool_telemetry.otel import Otlp
from pool_telemetry.otel.endpoint import metric_exporter, span_exporter
from tests.everything import replay
from tests.needs import lacks
from tests.otlp import PROTOCOLS, receiver
from tests.support import wait_for

# The program is linked to the libpython of its wheel's Python. It gets nothing else of this
# environment, because ROTEL_* would configure it and a proxy variable would redirect its exports.
LIBRARIES = (sysconfig.get_config_var("LIBDIR"), str(Path(sys.base_prefix) / "lib"))
ENVIRON = {"LD_LIBRARY_PATH": ":".join(filter(None, LIBRARIES))}
STOP_SECONDS = 10.0


@pytest.fixture(scope="module")
def program() -> Path:
    spec = importlib.util.find_spec("rotel")
    if spec is None or spec.origin is None:
        words = "no Rotel: pip install -e '.[dev]' on Linux with CPython 3.11 to 3.13"
        if is_for_this_machine():
            lacks(words)
        pytest.skip(words)
    found = Path(spec.origin).with_name("rotel-agent")
    tried = subprocess.run([found, "version"], env=ENVIRON, capture_output=True, text=True)
    if tried.returncode:  # for example because this Python has no shared library
        pytest.skip(f"Rotel does not run here: {tried.stderr.strip()}")
    return found


def is_for_this_machine() -> bool:
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    lines = tomllib.loads(pyproject)["project"]["optional-dependencies"]["dev"]
    (rotel,) = (one for one in map(Requirement, lines) if one.name == "rotel")
    return rotel.marker is None or rotel.marker.evaluate()


@contextlib.contextmanager
def collector(program: Path, log: Path, behind: str, leaves: str) -> Iterator[dict[str, str]]:
    """Yield a collector's endpoints by protocol.

    It forwards all data to the receiver `behind` by the protocol `leaves`.
    """
    with contextlib.ExitStack() as stack:
        yield wait_for(lambda: started(stack, program, log, behind, leaves))


def started(
    stack: contextlib.ExitStack, program: Path, log: Path, behind: str, leaves: str
) -> dict[str, str] | None:
    """Return a started collector's endpoints; None if another process took a free port first."""
    # The collector does not report its ports, so port 0 can't be used.
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        grpc, http = (f"127.0.0.1:{one.getsockname()[1]}" for one in (a, b))
    arguments = [
        *("--otlp-grpc-endpoint", grpc),
        *("--otlp-http-endpoint", http),
        *("--otlp-exporter-endpoint", behind),
        *("--otlp-exporter-protocol", leaves.partition("/")[0]),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "start", *arguments], env=ENVIRON, stdout=output, stderr=subprocess.STDOUT
        )
    stack.callback(stop, process)
    # The collector logs this line when it has both ports; without a port it ends before.
    wait_for(lambda: "Starting Rotel" in log.read_text() or process.poll() is not None, "Rotel")
    if process.poll() is None:
        return {"grpc": f"http://{grpc}", "http/protobuf": f"http://{http}"}
    assert "Address already in use" in log.read_text(), log.read_text()
    return None


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    finally:
        process.kill()  # does nothing to an ended process
        process.wait()


class Twice:
    """An exporter that sends the same data to two endpoints."""

    def __init__(self, make: Callable[[str, str], Any], protocol: str, *endpoints: str) -> None:
        self._exporters = [make(protocol, endpoint) for endpoint in endpoints]

    def __getattr__(self, name: str) -> Any:
        first, second = (getattr(one, name) for one in self._exporters)
        if not callable(first):
            return first
        return lambda *args, **kwargs: (first(*args, **kwargs), second(*args, **kwargs))[0]


@pytest.mark.parametrize("leaves", PROTOCOLS)
@pytest.mark.parametrize("enters", PROTOCOLS)
def test_a_collector_forwards_our_messages_unchanged(
    program: Path, tmp_path: Path, enters: str, leaves: str
) -> None:
    """The whole message: names, units, attributes, buckets, sums, exemplars, parents and times."""
    with (
        receiver(enters) as direct,
        receiver(leaves) as behind,
        collector(program, tmp_path / "rotel.log", behind.endpoint, leaves) as endpoints,
    ):
        to_both: Any = (enters, direct.endpoint, endpoints[enters])
        makes: Any = [partial(Twice, make, *to_both) for make in (metric_exporter, span_exporter)]
        with contextlib.closing(Otlp(Resource({"service.name": "shop"}), *makes)) as otlp:
            assert otlp.tracer_provider is not None
            tracer = otlp.tracer_provider.get_tracer("application")
            with tracer.start_as_current_span("request"):
                _telemetry, _listeners = replay()
            otlp.flush()
            wait_for(lambda: behind.metrics and behind.traces, "the collector's export")
            assert behind.latest.keys() == {metric.name for metric in CATALOG}
            assert {span.name for span in behind.spans} == {"request", "find orders", "checkout"}
            assert behind.metrics == direct.metrics
            assert behind.traces == direct.traces
