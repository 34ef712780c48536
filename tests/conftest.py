"""One real server for the whole run, and nothing left over between tests."""

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from pymongo import AsyncMongoClient, MongoClient

from pool_telemetry import AsyncMongoDBConnectionPool, MongoDBConnectionPool, registry
from pool_telemetry.demo import embedded
from pool_telemetry.demo.embedded import EmbeddedServer
from tests.chaos import Chaos
from tests.needs import lacks
from tests.support import UNMEASURED
from tests.verdicts import Judged, confusion

ASYNCHRONOUS = (AsyncMongoClient, AsyncMongoDBConnectionPool, Chaos)
# The same examples each time. `make test-bulk` has three times as many.
# To search: --hypothesis-profile=default --hypothesis-seed=random
hypothesis.settings.register_profile("same", derandomize=True, deadline=None, max_examples=100)
hypothesis.settings.register_profile("many", derandomize=True, deadline=None, max_examples=300)
hypothesis.settings.load_profile("same")
# A shell's & has SIGINT ignored, which tests send and what they start inherits.
signal.signal(signal.SIGINT, signal.default_int_handler)


_FIGURES = pytest.StashKey[list[str]]()
_JUDGED = pytest.StashKey[list[tuple[Any, ...]]]()


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> list[str]:
    """Lines to show at the end of the run, of what was measured in it."""
    return pytestconfig.stash.setdefault(_FIGURES, [])


@pytest.fixture(scope="session")
def judged(pytestconfig: pytest.Config) -> list[tuple[Any, ...]]:
    """The diagnoses of recordings, as `Judged` in plain values, to show their matrix at the end."""
    return pytestconfig.stash.setdefault(_JUDGED, [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands what it measured to the process that prints it."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["figures"] = session.config.stash.get(_FIGURES, [])
        output["judged"] = session.config.stash.get(_JUDGED, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})
    node.config.stash.setdefault(_FIGURES, []).extend(output.get("figures", []))
    node.config.stash.setdefault(_JUDGED, []).extend(map(tuple, output.get("judged", [])))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines = config.stash.get(_FIGURES, [])
    if judged := config.stash.get(_JUDGED, []):
        lines += ["recorded scenarios:", *confusion([Judged(*one) for one in judged])]
    if lines:
        terminalreporter.section("what was measured")
        terminalreporter.write_line("\n".join(lines))


@pytest.fixture(scope="session")
def server_uri() -> Iterator[str]:
    """A MongoDB that understands fail points: MONGODB_URI, else the embedded one."""
    given = os.environ.get("MONGODB_URI")
    if given:
        yield given
        return
    with embedded_server() as server:
        yield server.uri


@pytest.fixture
def client(server_uri: str) -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](server_uri) as client:
        yield client


@pytest.fixture
def database(client: MongoClient[dict[str, Any]]) -> Iterator[str]:
    """A name for a test's own database."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield name
    client.drop_database(name)


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server that a test may stop and start."""
    with embedded_server() as server:
        yield server


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port that refuses connections: it is bound, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


class UnmeasuredServer(EmbeddedServer):
    """A server whose own Python code is not traced by coverage, which makes it slower."""

    def start(self) -> None:
        with pytest.MonkeyPatch.context() as environ:
            for name, value in UNMEASURED.items():
                environ.setenv(name, value)
            super().start()


@contextlib.contextmanager
def embedded_server() -> Iterator[EmbeddedServer]:
    """A server that is killed in the end, because a proper end takes it 2 s."""
    need_embedded_server()
    server = UnmeasuredServer()
    try:
        server.start()
        yield server
    finally:
        server.stop(kill=True)


def need_embedded_server() -> None:
    if embedded.executable() is None:
        lacks("no embedded server: pip install -e '.[dev]' on CPython 3.11 to 3.13")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let pass what PyMongo does to asynchronous clients, and only there.

    One that is closed, or whose task is cancelled, while it connects drops that socket unclosed
    (PyMongo 4.20).
    """
    for item in items:
        known = vars(getattr(item, "module", item)).values()
        if any(one is kind for one in known for kind in ASYNCHRONOUS):
            for dropped in ("socket.socket", r"_SelectorTransport.__del__"):
                warning = f"ignore:.*{dropped}:pytest.PytestUnraisableExceptionWarning"
                item.add_marker(pytest.mark.filterwarnings(warning))
            item.fixturenames.append("collected")  # type: ignore[attr-defined]  # a test's


def pytest_collection_finish() -> None:
    """Leave all that was imported out of the collections between tests, which take 0.2 s else."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def collected() -> Iterator[None]:
    """Collect this test's garbage now, and not in another test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(autouse=True)
def nothing_left_over(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test begins without a pool and without settings from outside."""
    for name in list(os.environ):
        if name.startswith("POOL_TELEMETRY_") or name == "MONGODB_URI":
            monkeypatch.delenv(name)
    # Children that a test forks would find each other; tests/test_workers.py is about that.
    monkeypatch.setenv("POOL_TELEMETRY_WORKERS", "false")
    # The tests of a minute make more clients than a service should.
    registry._by_wanted.clear()
    driver_log = logging.getLogger("pymongo")
    level = driver_log.level
    yield
    # A snippet of the guide turns it up; records of a driver's errors keep its clients alive.
    driver_log.setLevel(level)
    # Strands' tracer patches every thread of the process, for good.
    if (threads := sys.modules.get("opentelemetry.instrumentation.threading")) is not None:
        instrumentor = threads.ThreadingInstrumentor()
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument()
    MongoDBConnectionPool.close()
