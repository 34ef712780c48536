"""The import of another library's sessions; `upstream.py` reads their form.

The source is only read. A session's own document is written last, so that a killed import leaves
no session that looks complete: its next run deletes what it had written of that session, and
writes it again. An imported session has `imported`, so that the next run knows it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import bson
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo import ASCENDING
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError
from strands.types.exceptions import SessionException

from pool_telemetry.errors import PoolConfigurationError, SessionOwnerError
from pool_telemetry.sessions.dispatch import run_now
from pool_telemetry.sessions.documents import (
    SCHEMA,
    Document,
    SessionConflictError,
    agent_document,
    check_owner,
    message_document,
    others_filter,
    session_fault,
)
from pool_telemetry.sessions.repository import MongoDBSessionRepository
from pool_telemetry.sessions.upstream import (
    OddDocumentError,
    UpstreamAgent,
    UpstreamSession,
    session_of,
)
from pool_telemetry.sessions.values import encode

MAX_REASONS: Final = 1_000  # reasons that a report keeps; it bounds memory

_TOO_LARGE: Final = "an agent or a message is larger than MongoDB's limit of 16 MB"
_REFUSED: Final = {
    11000: "the target has agents or messages of a deleted session of this id",
    10334: _TOO_LARGE,
    17419: _TOO_LARGE,
    17420: _TOO_LARGE,
}
_BATCH: Final = 200  # sessions whose ids are read at once
_RAW: Final = CodecOptions(document_class=RawBSONDocument)
# Dates that Python does not have must not break a document.
_OPTIONS: Final[CodecOptions[Any]] = CodecOptions(
    tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)


@dataclass(slots=True)
class ImportReport:
    """The result of an import, or how far it is.

    Attributes:
        total: The number of sessions in the source, as the server estimates it.
        imported: The number of sessions that this run imported, or would import.
        messages: The number of their messages.
        present: The number of sessions that an earlier run imported.
        refused: The number of sessions that were not imported.
        reasons: Why, by session, for the first 1,000 of them.
    """

    total: int = 0
    imported: int = 0
    messages: int = 0
    present: int = 0
    refused: int = 0
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Return the number of sessions that this run has looked at."""
        return self.imported + self.present + self.refused


def import_sessions(
    source: Collection[Any],
    repository: MongoDBSessionRepository,
    *,
    user_key: str | None = None,
    dry_run: bool = False,
    on_progress: Callable[[ImportReport], None] | None = None,
) -> ImportReport:
    """Copy the sessions of mongodb-session-manager into a repository.

    A session is copied with its application, metadata, feedback, agents, messages and times. A
    repeated run goes on after an interrupted run, and skips sessions that are already imported,
    also if the source changed meanwhile. A session that was deleted from the target is imported
    again. Messages are numbered from 0 in their stored order. The
    reports of the models count in `usage()`; that library stores the sums of an agent object's
    life, so they are too high if one object served several turns. `session_viewer_password` is not
    copied.

    Args:
        source: The collection of that library; it is only read.
        repository: The target. Its application and user become those of a session without them.
        user_key: The key of a session's metadata that names its user, such as `user_id`; None
            for no user. Without a user, any caller that knows its id opens the session.
        dry_run: Whether to write nothing. It does not notice documents that are too large.
        on_progress: A function to call with the report after each session.

    Raises:
        PoolConfigurationError: The source is a collection of the target.
        PyMongoError: The server or the network fails; a repeated run goes on.
    """
    done = _Import(source, repository, user_key, dry_run, on_progress or _ignore)
    done.run()
    return done.report


class _Import:
    """One run."""

    def __init__(
        self,
        source: Collection[Any],
        repository: MongoDBSessionRepository,
        user_key: str | None,
        dry_run: bool,
        on_progress: Callable[[ImportReport], None],
    ) -> None:
        self.report = ImportReport()
        self._source = source.with_options(codec_options=_RAW)
        self._name = source.full_name
        self._repository = repository.asynchronous
        self._store = self._repository._store
        self._user_key = user_key
        self._dry_run = dry_run
        self._on_progress = on_progress
        targets = (self._store.sessions, self._store.agents, self._store.messages)
        same_server = source.database.client == self._store.sessions.database.client
        if same_server and self._name in [one.full_name for one in targets]:
            raise PoolConfigurationError(
                f"{self._name} is the source and a collection of the target: give the target "
                "another database, or another prefix= (--prefix)"
            )

    def run(self) -> None:
        """Import all sessions, a batch at a time."""
        self.report.total = self._source.estimated_document_count()
        for ids in self._batches():
            missing = self._missing(ids)
            if not missing:
                continue
            unfinished = self._unfinished(missing)
            # The server sends at most 16 MB at once, so memory is bounded.
            for raw in self._source.find({"_id": {"$in": missing}}):
                self._import(raw, unfinished)

    def _batches(self) -> Iterator[list[str]]:
        """Yield the ids of the source.

        Each batch is a query of its own, because a cursor ends if it waits for ten minutes.
        """
        which: Document = {"$gte": ""}
        while True:
            cursor = self._source.find({"_id": which}, {"_id": True}).sort("_id", ASCENDING)
            ids = [one["_id"] for one in cursor.limit(_BATCH)]
            if not ids:
                break
            yield ids
            which = {"$gt": ids[-1]}
        for one in self._source.find({"_id": {"$not": {"$type": "string"}}}, {"_id": True}):
            self._refuse(str(one["_id"]), "its _id is no text")

    def _missing(self, ids: list[str]) -> list[str]:
        """Return the sessions to import, and count the others."""
        found: dict[str, Document] = {
            one["_id"]: one for one in self._store.sessions.find({"_id": {"$in": ids}})
        }
        for session_id, one in found.items():
            mark = one.get("imported")
            origin = mark.get("from") if isinstance(mark, dict) else None
            if origin == self._name and not session_fault(one):
                self.report.present += 1
                self._on_progress(self.report)
            elif session_fault(one):
                self._refuse(
                    session_id,
                    f"another program wrote the document of this id in "
                    f"{self._store.sessions.full_name}: use another prefix",
                )
            elif origin is not None:
                self._refuse(session_id, f"the target has it already, imported from {origin}")
            else:
                self._refuse(session_id, "the target has a session of this id that is its own")
        return [one for one in ids if one not in found]

    def _unfinished(self, missing: list[str]) -> set[str]:
        """Return the sessions of which the target has agents; agents are written first."""
        which = {"session_id": {"$in": missing}}
        return {one["session_id"] for one in self._store.agents.find(which, {"session_id": True})}

    def _import(self, raw: RawBSONDocument, unfinished: set[str]) -> None:
        session_id = "?"
        try:
            session_id = raw["_id"]
            session = session_of(bson.decode(raw.raw, _OPTIONS), user_key=self._user_key)
            owner = {**self._repository._owner, **session.owner}
            check_owner("the session", session.owner, self._repository._owner)
            if not self._dry_run:
                self._write(session, owner, clean=session_id in unfinished)
        except (OddDocumentError, SessionException, SessionOwnerError) as error:
            self._refuse(session_id, str(error))
        except (BSONError, ValueError, TypeError, AttributeError, RecursionError) as error:
            self._refuse(session_id, f"its document can't be read ({type(error).__name__})")
        else:
            self.report.imported += 1
            self.report.messages += sum(len(one.messages) for one in session.agents)
            self._on_progress(self.report)

    def _write(self, session: UpstreamSession, owner: Document, *, clean: bool) -> None:
        ids = {"session_id": session.session.session_id}
        created_at = session.session.created_at
        if clean:
            self._delete(ids, created_at)
        messages = [
            one for agent in session.agents for one in self._messages(ids, agent, created_at)
        ]
        agents = [self._agent(ids, agent, created_at) for agent in session.agents]
        document = {
            "_id": ids["session_id"],
            "schema": SCHEMA,
            **session.session.to_dict(),
            **owner,
            "metadata": encode(session.metadata),
            "imported": {"from": self._name, **({"rest": session.rest} if session.rest else {})},
        }
        try:
            for collection, documents in (
                (self._store.agents, agents),
                (self._store.messages, messages),
            ):
                if documents:
                    self._do(ids, collection.insert_many, documents)
            self._do(ids, self._store.sessions.insert_one, document)
        except BulkWriteError as error:  # its message may contain values
            self._delete(ids, created_at)
            code = next((one.get("code") for one in error.details.get("writeErrors", [])), None)
            known = _REFUSED.get(code or 0, f"the server refused a document (code {code})")
            raise SessionException(known) from None
        except SessionConflictError:
            self._delete(ids, created_at)
            raise SessionException("another program created a session of this id now") from None
        except SessionException:
            self._delete(ids, created_at)
            raise
        # A session of this id that was opened meanwhile took the messages for leftovers.
        which = {**others_filter(ids, created_at), "session_created_at": created_at}
        stored = self._do(ids, self._store.messages.count_documents, which)
        if stored < len(messages):
            self._do(ids, self._store.sessions.delete_one, {"_id": ids["session_id"]})
            raise SessionException("another program used this id now: run the import again")

    def _agent(self, ids: Document, agent: UpstreamAgent, created_at: str) -> Document:
        its = {**ids, "agent_id": agent.agent.agent_id, "kind": "agent"}
        rest = {"imported": agent.rest} if agent.rest else {}
        return {
            "_id": its,
            **agent_document(its, agent.agent),
            "session_created_at": created_at,
        } | rest

    def _messages(self, ids: Document, agent: UpstreamAgent, created_at: str) -> Iterator[Document]:
        for one in agent.messages:
            its = {**ids, "agent_id": agent.agent.agent_id, "message_id": one.message_id}
            document = {"_id": its, **message_document(its, one), "session_created_at": created_at}
            if feedback := agent.feedback.get(one.message_id):
                document["feedback"] = [encode(each) for each in feedback]
            yield document

    def _delete(self, ids: Document, created_at: str) -> None:
        """Delete what an import wrote of a session that it did not finish."""
        which = {**others_filter(ids), "session_created_at": created_at}
        self._do(ids, self._store.messages.delete_many, which)
        self._do(ids, self._store.agents.delete_many, which)

    def _do(self, ids: Document, method: Callable[..., Any], *args: Any) -> Any:
        return run_now(self._store.do(ids, method, *args))

    def _refuse(self, session_id: str, reason: str) -> None:
        self.report.refused += 1
        if len(self.report.reasons) < MAX_REASONS:
            self.report.reasons[session_id] = reason
        self._on_progress(self.report)


def _ignore(report: ImportReport) -> None:
    pass
