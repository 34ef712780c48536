"""Which of PyMongo's test modules run, and the differences that are its own, with their reasons."""

from pathlib import Path
from typing import Final

BOUNDED: Final[dict[str, str]] = {
    "test_pooling": "",
    "test_connection_monitoring": "",
    "test_monitoring": "",
    "test_cursor": "",
    "test_session": "",
    "test_fork": "",
    "test_csot": "WaitQueue or Execution or Cursors or Sessions",
    "test_retryable_reads": "not overload",
    "test_retryable_writes": "not MultipleErrors",
}
"""The modules that CI runs, with pytest's `-k` for those that take too long as a whole."""

_RESET: Final = (
    "the test calls pool.reset_without_pause(), which PyMongo does after a fork only; that is no "
    "clear by a failure"
)
_VISIBLE: Final = "the test compares a client's listeners or its repr, and ours show there"
KNOWN: Final[dict[tuple[str, str], str]] = {
    ("test_connection_timeout_message", "cleared"): _RESET,
    ("test_event_listeners", "fails with telemetry only"): _VISIBLE,
    ("TestClient::test_repr", "fails with telemetry only"): _VISIBLE,
    ("test_background_connections_log_on_error", "cleared"): _RESET,
    ("test_rs_client_does_not_maintain_pool_to_arbiters", ""): (
        "the test's client has several servers of one address, which no real client has"
    ),
    ("TestCollection::test_exhaust", "closed by error"): (
        "PyMongo publishes the close of an exhaust cursor's connection twice"
    ),
}
"""By the end of a test's name and the start of a difference: why it is the driver's own."""


def modules(folder: Path, *, all_of_them: bool) -> dict[str, str]:
    """Return the test modules to run, as paths in the folder, with pytest's `-k` for each."""
    paths = sorted([*folder.glob("test/test_*.py"), *folder.glob("test/asynchronous/test_*.py")])
    return {
        str(path.relative_to(folder)): "" if all_of_them else BOUNDED[path.stem]
        for path in paths
        if all_of_them or path.stem in BOUNDED
    }


def reason_of(test: str, difference: str) -> str:
    """Return why a difference is the driver's own; empty if it is not."""
    for (name, start), reason in KNOWN.items():
        if test.endswith(name) and difference.startswith(start):
            return reason
    return ""
