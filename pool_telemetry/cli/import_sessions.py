"""`pool-telemetry import-sessions`: copy the sessions of mongodb-session-manager.

The progress is shown on stderr: a bar on a terminal, otherwise a line every 10 s. The summary is on
stdout. Connection strings come from arguments or the environment, and no text shows their secrets.
"""

import contextlib
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from pymongo import MongoClient
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError
from strands.types.exceptions import SessionException

from pool_telemetry.cli import output
from pool_telemetry.errors import PoolTelemetryError
from pool_telemetry.sessions import ImportReport, MongoDBSessionRepository, import_sessions
from pool_telemetry.stats import bounded
from pool_telemetry.uri import check_credentials, mask_uri, without_secrets

LINE_SECONDS: Final = 10.0  # between two lines of progress
_DRAW_SECONDS: Final = 0.1  # between two states of the bar
_BAR: Final = 30  # characters
_REACH_MS: Final = 10_000
_SHOWN: Final = 3  # ids of sessions that were refused for one reason
_SHOWN_CHARACTERS: Final = 80  # of such an id
_ADVICE: Final = {
    13: ": the user needs to read the source and to write the target",
    18: ": check the user's name and password",
}


def run(
    source_uri: str,
    target_uri: str,
    *,
    database: str,
    collection: str,
    target_database: str,
    prefix: str,
    user_key: str | None,
    dry_run: bool,
    as_json: bool,
) -> tuple[str, bool]:
    """Import the sessions, and return the summary and whether all sessions are in the target.

    Raises:
        PoolTelemetryError: A server can't be used, or the source has no documents.
    """
    progress = _Progress()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_explained(source_uri, target_uri))
        source = stack.enter_context(_client(source_uri))
        target = source
        if target_uri != source_uri:
            target = stack.enter_context(_client(target_uri))
        stack.callback(progress.end)
        if source[database][collection].find_one({}, {"_id": True}) is None:
            raise PoolTelemetryError(
                f"{mask_uri(source_uri)} has no documents in {database}.{collection}: check "
                "--database and --collection"
            )
        report = import_sessions(
            source[database][collection],
            MongoDBSessionRepository(
                target, target_database, prefix=prefix, create_indexes=not dry_run
            ),
            user_key=user_key,
            dry_run=dry_run,
            on_progress=progress.show,
        )
    return _summary(report, dry_run=dry_run, as_json=as_json), not report.refused


def _client(uri: str) -> MongoClient[dict[str, Any]]:
    check_credentials(uri)
    with warnings.catch_warnings(action="ignore"):  # each has the path of PyMongo's source
        return MongoClient(
            uri, appname="pool-telemetry", maxPoolSize=2, serverSelectionTimeoutMS=_REACH_MS
        )


@contextlib.contextmanager
def _explained(*uris: str) -> Iterator[None]:
    """Turn errors into one line without secrets and without values of documents."""
    shown = " or ".join(dict.fromkeys(map(mask_uri, uris)))
    try:
        with without_secrets(uris[0], {}), without_secrets(uris[-1], {}):
            yield
    except OperationFailure as error:
        advice = _ADVICE.get(error.code or 0, "")
        words = f"{shown} refuses the import (code {error.code}){advice}"
        raise PoolTelemetryError(words) from None
    except SessionException as error:
        raise PoolTelemetryError(str(error)) from None
    except PyMongoError as error:
        cause = str(error).partition(" (configured timeouts:")[0].partition(", Timeout:")[0]
        goes_on = "; a repeated run goes on" if isinstance(error, ConnectionFailure) else ""
        raise PoolTelemetryError(f"{shown} can't be used: {cause}{goes_on}") from None
    except (OSError, TypeError, ValueError) as error:
        if isinstance(error, PoolTelemetryError):
            raise
        raise PoolTelemetryError(f"{shown} can't be used: {error}") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted: run it again to go on") from None


def _summary(report: ImportReport, *, dry_run: bool, as_json: bool) -> str:
    if as_json:
        return output.as_json({**asdict(report), "dry_run": dry_run})
    done = "would be imported" if dry_run else "imported"
    lines = [
        f"{report.imported} sessions {done} ({report.messages} messages), "
        f"{report.present} already there, {report.refused} refused"
    ]
    if report.without_user:
        lines.append(
            f"{report.without_user} of them have no user: any caller that knows the id opens them"
        )
    sessions = defaultdict(list)
    for session_id, reason in report.reasons.items():
        sessions[reason].append(session_id)
    for reason, ids in sessions.items():
        shown = ", ".join(repr(bounded(one, _SHOWN_CHARACTERS)) for one in ids[:_SHOWN])
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        lines.append(f"{len(ids)} refused, {reason}: {shown}{more}")
    if others := report.refused - len(report.reasons):
        lines.append(f"and {others} more")
    return output.as_text(lines)


class _Progress:
    """Shows how far the import is: a bar on a terminal, or lines."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._next = time.monotonic() + (0.0 if self._is_terminal else LINE_SECONDS)
        self._drawn = False

    def show(self, report: ImportReport) -> None:
        """Show the state of the import, unless it was shown just before."""
        now = time.monotonic()
        if now < self._next and not (self._is_terminal and report.done == report.total):
            return
        total = max(report.total, report.done)
        words = f"{report.done} of {total} sessions, {report.refused} refused"
        if self._is_terminal:
            full = _BAR * report.done // total
            print(
                f"\r[{'#' * full}{'.' * (_BAR - full)}] {words} ",
                end="",
                file=sys.stderr,
                flush=True,
            )
            self._drawn, self._next = True, now + _DRAW_SECONDS
        else:
            output.say(words, sys.stderr)
            self._next = now + LINE_SECONDS

    def end(self) -> None:
        """End the line of the bar."""
        if self._drawn:
            print(file=sys.stderr, flush=True)
