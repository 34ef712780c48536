"""The plugin of the pytest that runs PyMongo's tests: a book for each client, compared each time.

Without DRIVER_BOOKS in the environment the clients stay as they are, for the comparison.
"""

import json
import os
from collections.abc import Iterator
from multiprocessing import util
from pathlib import Path
from typing import Any, Final

import pytest
from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.asynchronous.pool import Pool as AsyncPool
from pymongo.synchronous.mongo_client import MongoClient
from pymongo.synchronous.pool import Pool

from tests.driver import books

_results: Final = Path(os.environ["DRIVER_RESULTS"])
_with_books: Final = "DRIVER_BOOKS" in os.environ
_outcomes: Final = dict[str, str]()
_running: Final = list[str]()  # the test


def _patch_clients(*kinds: Any) -> None:
    for kind in kinds:

        def make(self: Any, *args: Any, _make: Any = kind.__init__, **kwargs: Any) -> None:
            _make(self, *args, **books.with_book(kwargs))

        kind.__init__ = make


def _patch_pools(*kinds: Any) -> None:
    for kind in kinds:

        def make(self: Any, *args: Any, _make: Any = kind.__init__, **kwargs: Any) -> None:
            _make(self, *args, **kwargs)
            books.add_pool(self)

        kind.__init__ = make


# Some tests take the default port for granted.
MongoClient.PORT = AsyncMongoClient.PORT = int(os.environ["DB_PORT"])

if _with_books:
    _patch_clients(MongoClient, AsyncMongoClient)
    _patch_pools(Pool, AsyncPool)


def _report(test: str, outcome: str) -> None:
    """Compare, and add a line for a test that ended, or for a process that it forked."""
    compared, differences = books.compare() if _with_books else (0, [])
    line = {"test": test, "outcome": outcome, "compared": compared, "differences": differences}
    with _results.open("a") as file:
        file.write(json.dumps(line) + "\n")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _running[:] = [item.nodeid]
    yield
    _report(item.nodeid, _outcomes.pop(item.nodeid, "none"))


def _in_child(_: Any) -> None:
    books.begin_in_child(lambda: _report(f"{_running[0]} in a fork", "forked"))


util.register_after_fork(books, _in_child)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # The worst of setup, call and teardown.
    before = _outcomes.get(report.nodeid, "passed")
    if "failed" not in (before, report.outcome) and report.when != "call":
        _outcomes[report.nodeid] = report.outcome if before == "passed" else before
    else:
        _outcomes[report.nodeid] = (
            "failed" if "failed" in (before, report.outcome) else report.outcome
        )
