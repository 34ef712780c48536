"""The import of another library's sessions; `upstream.py` reads their form.

The source is only read. A session begins as a mark, a document that readers refuse: its `_id`,
and `imported` with an id, the source and a digest of the source's document. Its agents and messages
are inserted next, with the id of the mark. The session's document replaces the mark last.

Several runs may import a session at once, or one after a killed run. They insert the same documents
under one mark, and skip those that are already there. If the source changed meanwhile, the later
run replaces the mark. Each mark has a new id. So documents may be deleted if the session's document
has another id than they have, however slow a run is.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import bson
from bson.codec_options import CodecOptions, DatetimeConversion
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
    agent_fault,
    check_owner,
    describe,
    message_document,
    message_fault,
    others_filter,
    session_fault,
)
from pool_telemetry.sessions.repository import MongoDBSessionRepository
from pool_telemetry.sessions.upstream import (
    OddDocumentError,
    UpstreamSession,
    session_of,
)
from pool_telemetry.sessions.values import DECODE_ERRORS, encode

MAX_REASONS: Final = 1_000  # reasons that a report keeps; it bounds memory

_MAX_BYTES: Final = 16 * 1024 * 1024  # of a document
_DUPLICATE: Final = 11000
_TRIES: Final = 5  # to write a session while other runs or programs write it, too
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
        present: The number of sessions that another run imported.
        refused: The number of sessions that were not imported.
        without_user: The number of imported sessions without a user, if `user_key` was given.
        reasons: Why, by session, for the first 1,000 of them.
    """

    total: int = 0
    imported: int = 0
    messages: int = 0
    present: int = 0
    refused: int = 0
    without_user: int = 0
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
    again. Several runs may work at once. Messages are numbered from 0 in their stored order. The
    reports of the models count in `usage()`; that library stores the sums of an agent object's
    life, so they are too high if one object served several turns. `session_viewer_password` is not
    copied.

    Args:
        source: The collection of that library; it is only read.
        repository: The target. Its application and user become those of a session without them.
        user_key: The key of a session's metadata that names its user, such as `user_id`, with a
            text or an integer; None for no user. Without a user, any caller that knows its id
            opens the session.
        dry_run: Whether to write nothing.
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
            # The server sends at most 16 MB at once, so memory is bounded.
            for raw in self._source.find({"_id": {"$in": missing}}):
                self._import(raw)

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
        missing = set(ids)
        for one in self._store.sessions.find({"_id": {"$in": ids}}):
            reason = self._reason(one)
            if reason or not _is_mark(one):
                missing.remove(one["_id"])
            if reason:
                self._refuse(one["_id"], reason)
            elif not _is_mark(one):
                self.report.present += 1
                self._on_progress(self.report)
        return [one for one in ids if one in missing]

    def _reason(self, found: Document) -> str:
        """Return why a document in the target is no session of this source, or ""."""
        if session_fault(found) and not _is_mark(found):
            return (
                f"another program wrote the document of this id in "
                f"{self._store.sessions.full_name}: use another prefix"
            )
        mark = found.get("imported")
        origin = mark.get("from") if isinstance(mark, dict) else None
        if origin is None:
            return "the target has a session of this id that is its own"
        return "" if origin == self._name else f"the target has it already, imported from {origin}"

    def _import(self, raw: RawBSONDocument) -> None:
        session_id = "?"
        try:
            session_id = raw["_id"]
            session = session_of(bson.decode(raw.raw, _OPTIONS), user_key=self._user_key)
            owner = {**self._repository._owner, **session.owner}
            check_owner("the session", session.owner, self._repository._owner)
            digest = hashlib.sha256(raw.raw).hexdigest()
            mark = {"from": self._name, "run": uuid.uuid4().hex, "digest": digest}
            documents = self._documents(session, owner, mark)
            is_mine = self._dry_run or self._write(session_id, mark, *documents)
        except (OddDocumentError, SessionException, SessionOwnerError) as error:
            self._refuse(session_id, str(error))
        except DECODE_ERRORS as error:
            self._refuse(session_id, f"its document can't be read ({type(error).__name__})")
        else:
            if is_mine:
                self.report.imported += 1
                self.report.messages += sum(len(one.messages) for one in session.agents)
                self.report.without_user += bool(self._user_key) and "user" not in owner
            else:
                self.report.present += 1
            self._on_progress(self.report)

    def _documents(
        self, session: UpstreamSession, owner: Document, mark: Document
    ) -> tuple[Document, list[Document], list[Document]]:
        """Return the documents of a session, its agents and its messages, which readers accept."""
        ids: Document = {"session_id": session.session.session_id}
        stamp = {"session_created_at": session.session.created_at}
        agents, messages = [], []
        for each in session.agents:
            its = {**ids, "agent_id": each.agent.agent_id, "kind": "agent"}
            imported = {"run": mark["run"], **({"rest": each.rest} if each.rest else {})}
            agent = {"_id": its, **agent_document(its, each.agent), **stamp, "imported": imported}
            _check(agent, agent_fault(agent))
            agents.append(agent)
            for one in each.messages:
                its = {**ids, "agent_id": each.agent.agent_id, "message_id": one.message_id}
                message = {"_id": its, **message_document(its, one), **stamp}
                message["imported"] = {"run": mark["run"]}
                if feedback := each.feedback.get(one.message_id):
                    message["feedback"] = [encode(entry) for entry in feedback]
                _check(message, message_fault(message))
                messages.append(message)
        document: Document = {
            "_id": ids["session_id"],
            "schema": SCHEMA,
            **session.session.to_dict(),
            **owner,
            "metadata": encode(session.metadata),
            "imported": {"from": self._name, "run": mark["run"]},
        }
        if session.rest:
            document["imported"]["rest"] = session.rest
        _check(document, session_fault(document))
        return document, agents, messages

    def _write(
        self,
        session_id: str,
        mark: Document,
        document: Document,
        agents: list[Document],
        messages: list[Document],
    ) -> bool:
        """Write a session, and return False if another run has written it."""
        ids = {"session_id": session_id}
        try:
            for _ in range(_TRIES):
                found = self._begin(ids, mark)
                if found is None:
                    return False
                mark = found
                for one in (document, *agents, *messages):
                    one["imported"]["run"] = mark["run"]
                is_whole = self._insert(ids, self._store.agents, agents) and self._insert(
                    ids, self._store.messages, messages
                )
                which = {"_id": session_id, "imported": mark}
                method = self._store.sessions.replace_one
                if is_whole and self._do(ids, method, which, document).matched_count:
                    return True
        except SessionException:
            self._take_back(ids, mark)
            raise
        raise SessionException("other programs use this id now: run the import again")

    def _begin(self, ids: Document, mine: Document) -> Document | None:
        """Return the mark of a session to write, a new one or another run's; None if it is whole.

        Raises:
            SessionException: The target has another session of this id.
        """
        which, sessions = {"_id": ids["session_id"]}, self._store.sessions
        while True:
            mark = {**mine, "run": uuid.uuid4().hex}
            runs = self._runs(ids)
            try:
                self._do(ids, sessions.insert_one, {**which, "imported": mark})
                found: Document | None = {**which, "imported": mark}
            except SessionConflictError:
                found = self._do(ids, sessions.find_one, which)
            if found is None:
                continue
            if reason := self._reason(found):
                raise SessionException(reason)
            if not _is_mark(found):
                return None
            if found["imported"]["digest"] == mark["digest"]:
                break
            self._do(ids, sessions.update_one, found, {"$set": {"imported": mark}})
        # Their documents were there before the mark was seen, so their marks are gone for good.
        mark = dict(found["imported"])
        self._delete(ids, runs - {mark["run"]})
        return mark

    def _runs(self, ids: Document) -> set[str]:
        """Return the ids of the marks of the agents and messages that the target has."""
        match = {"$match": {**ids, "imported.run": {"$exists": True}}}
        union = {"$unionWith": {"coll": self._store.messages.name, "pipeline": [match]}}
        group = {"$group": {"_id": "$imported.run"}}
        cursor = self._do(ids, self._store.agents.aggregate, [match, union, group])
        return {one["_id"] for one in cursor}

    def _insert(self, ids: Document, collection: Any, documents: list[Document]) -> bool:
        """Insert documents, and return False if the target has some of another mark.

        Raises:
            SessionException: The server refuses a document, or the target has some of no import.
        """
        if not documents:
            return True
        try:
            self._do(ids, collection.insert_many, documents, ordered=False)
        except BulkWriteError as error:  # its message may contain values
            errors = error.details.get("writeErrors", [])
            codes = {one.get("code") for one in errors} - {_DUPLICATE}
            if codes or not errors:
                words = f"the server refused a document (code {min(codes, default=None)})"
                raise SessionException(words) from None
            names = [documents[one["index"]]["_id"] for one in errors]
            run = documents[0]["imported"]["run"]
            which = {"_id": {"$in": names}, "imported.run": {"$ne": run}}
            other = self._do(ids, collection.find_one, which, {"imported.run": True})
            if other and "imported" not in other:
                raise SessionException(
                    "the target has agents or messages of a deleted session of this id"
                ) from None
            return other is None
        return True

    def _take_back(self, ids: Document, mark: Document) -> None:
        """Delete what a refused session has in the target, unless another run made it whole."""
        which = {"_id": ids["session_id"]}
        self._do(ids, self._store.sessions.delete_one, {**which, "imported": mark})
        its = {**which, "imported.run": mark["run"]}
        if self._do(ids, self._store.sessions.find_one, its) is None:
            self._delete(ids, {mark["run"]})

    def _delete(self, ids: Document, runs: set[str]) -> None:
        if runs:
            which = {**others_filter(ids), "imported.run": {"$in": [*runs]}}
            self._do(ids, self._store.messages.delete_many, which)
            self._do(ids, self._store.agents.delete_many, which)

    def _do(self, ids: Document, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return run_now(self._store.do(ids, method, *args, **options))

    def _refuse(self, session_id: str, reason: str) -> None:
        self.report.refused += 1
        if len(self.report.reasons) < MAX_REASONS:
            self.report.reasons[session_id] = reason
        self._on_progress(self.report)


def _is_mark(found: Document) -> bool:
    """Return whether a run has begun to import a session, and none has made it whole."""
    mark = found.get("imported")
    return "schema" not in found and isinstance(mark, dict) and {"run", "digest"} <= mark.keys()


def _check(document: Document, fault: str) -> None:
    """Refuse a document that no reader or server would accept."""
    what = "it"
    if isinstance(ids := document["_id"], dict):
        what = describe({**ids, "session_id": None})
    if fault:
        raise OddDocumentError(f"{what} {fault.partition(': ')[0]}")
    if len(bson.encode(document)) > _MAX_BYTES:
        raise OddDocumentError(f"{what} is larger than MongoDB's limit of 16 MB")


def _ignore(report: ImportReport) -> None:
    pass
