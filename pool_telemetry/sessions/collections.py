"""The three collections: their indexes, and one place that calls PyMongo for all of them.

Each call is counted, its span gets the session's attributes, and its errors are described without
a document's values.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

import bson
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import DocumentTooLarge, DuplicateKeyError, OperationFailure, WriteError
from pymongo.write_concern import WriteConcern
from strands.types.exceptions import SessionException

from pool_telemetry.events import tracing
from pool_telemetry.process import ProcessLock
from pool_telemetry.registry import telemetry_of
from pool_telemetry.sessions.client_choice import AnyClient
from pool_telemetry.sessions.dispatch import CallMethod
from pool_telemetry.sessions.documents import (
    Document,
    SessionConflictError,
    describe,
    unstorable,
)
from pool_telemetry.sessions.values import ENCODE_ERRORS
from pool_telemetry.state.agents import AgentCounts

_TOO_LARGE: Final = (10334, 17419, 17420)  # the server's codes for an update beyond 16 MB
_REFUSED: Final = {28: "a path leads through a value", 40: "two paths overlap"}
_ATTRIBUTES: Final = {"session_id": "gen_ai.conversation.id", "agent_id": "gen_ai.agent.id"}
_INDEXES: Final[tuple[tuple[tuple[str, dict[str, Any]], ...], ...]] = (
    (("-updated_at _id", {}), ("application -updated_at _id", {}), ("user -updated_at _id", {})),
    (("session_id kind agent_id", {}),),
    (("session_id agent_id message_id", {}),),
)  # of sessions, agents, messages
_EXPIRY: Final = (
    "expires_at",
    {"expireAfterSeconds": 0, "partialFilterExpression": {"expires_at": {"$exists": True}}},
)

_log = logging.getLogger("pool_telemetry.sessions")

# Collections whose documents of another form were already logged; the number bounds the memory.
_with_others: set[str] = set()
_MAX_LOGGED: Final = 1_000
_MAX_REPEATS: Final = 20  # queries of one list; each but the last found documents to skip

_indexed: "WeakKeyDictionary[AnyClient, set[str]]" = WeakKeyDictionary()
indexing: Final = ProcessLock()


class UndecodableError(SessionException):
    """A document has a value that PyMongo can't decode, such as a text that is no valid UTF-8."""


class Store:
    """The collections of one database."""

    def __init__(
        self, client: AnyClient, database_name: str, prefix: str, call: CallMethod
    ) -> None:
        database: Any = client.get_database(database_name)
        if not database.write_concern.acknowledged:  # otherwise the server reports no conflict
            database = database.with_options(write_concern=WriteConcern(1))
        self.sessions = database[f"{prefix}sessions"]
        self.agents = database[f"{prefix}agents"]
        self.messages = database[f"{prefix}messages"]
        self._client = client
        self.call = call
        self.counts = found.agents if (found := telemetry_of(client)) else AgentCounts()

    @property
    def is_indexed(self) -> bool:
        """Return whether this process made the indexes of these collections with this client."""
        return self.messages.full_name in _indexed.get(self._client, ())

    async def create_indexes(self) -> None:
        """Create the missing indexes, once for each client and database."""
        if self.is_indexed:
            return
        every = (self.sessions, self.agents, self.messages)
        for collection, indexes in zip(every, _INDEXES, strict=True):
            models = [_index(keys, options) for keys, options in (*indexes, _EXPIRY)]
            await self.call(collection.create_indexes, models)
        _indexed.setdefault(self._client, set()).add(self.messages.full_name)

    async def do(
        self, ids: Mapping[str, Any], method: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Call a method of PyMongo; its span and errors name the session, agent or message."""
        named = {_ATTRIBUTES[key]: ids[key] for key in _ATTRIBUTES if key in ids}
        token = tracing.span_attributes.set({**(tracing.span_attributes.get() or {}), **named})
        self.counts.add(operations=1)
        try:
            with self._explained(ids):
                return await self.call(method, *args, **kwargs)
        finally:
            tracing.span_attributes.reset(token)

    async def find_ours(
        self,
        ids: Mapping[str, Any],
        collection: Any,
        which: Document,
        *,
        ours: Document,
        fault: Callable[[Document], str],
        sort: Sequence[tuple[str, int]] = (),
        skip: int = 0,
        limit: int = 0,
        shown: Document | None = None,
        skips_undecodable: bool = True,
    ) -> list[Document]:
        """Return the documents that this library wrote and can read.

        Other documents are rare, so only a query that finds one is repeated without it, first with
        the filter `ours`. They must not fill a page.
        """
        filters = [which]
        found: list[Document] = []
        for _ in range(_MAX_REPEATS):
            each = {"$and": filters} if filters[1:] else which
            query: Document = {"filter": each, "projection": shown, "skip": skip, "limit": limit}
            if sort:
                query["sort"] = [*sort]
            try:
                found = await self.do(ids, collection.find(**query).to_list)
            except UndecodableError:
                if not skips_undecodable:
                    raise
                found = await self._decodable(ids, collection, query)
            bad = [one["_id"] for one in found if fault(one)]
            if not bad:
                return found
            log_others(collection)
            filters.append({"_id": {"$nin": bad}} if filters[1:] else ours)
        return [one for one in found if not fault(one)]

    async def _decodable(
        self, ids: Mapping[str, Any], collection: Any, query: Document
    ) -> list[Document]:
        """Return the documents of a query that PyMongo can decode."""
        options = collection.codec_options
        raw = collection.with_options(options.with_options(document_class=RawBSONDocument))
        found = []
        for one in await self.do(ids, raw.find(**query).to_list):
            try:
                found.append(bson.decode(one.raw, options))
            except InvalidBSON:
                log_others(collection)
        return found

    @contextmanager
    def _explained(self, ids: Mapping[str, Any]) -> Iterator[None]:
        """Turn the errors of a write into SessionException, without a document's values."""
        try:
            yield
        except DuplicateKeyError as error:
            words = f"{describe(ids)} already exists: another writer was first"
            raise SessionConflictError(words) from error
        except DocumentTooLarge as error:
            raise SessionException(_too_large(ids)) from error
        except OperationFailure as error:
            # The server's message may contain values.
            if error.code in _TOO_LARGE:
                raise SessionException(_too_large(ids)) from None
            if isinstance(error, WriteError):
                reason = _REFUSED.get(error.code or 0, "the server refused it")
                words = f"{describe(ids)}: {reason} (code {error.code})"
                raise SessionException(words) from None
            raise
        except InvalidBSON:
            raise UndecodableError(f"{describe(ids)} has a value that isn't valid BSON") from None
        except ENCODE_ERRORS as error:
            raise unstorable(ids, error) from None  # the message contains the whole document


def log_others(collection: Any) -> None:
    """Log once that lists skip documents of a collection; their values may be secrets."""
    name = collection.full_name
    if name not in _with_others and len(_with_others) < _MAX_LOGGED:
        _with_others.add(name)
        _log.warning("%s has documents that pool_telemetry can't read; lists skip them", name)


def _too_large(ids: Mapping[str, Any]) -> str:
    return f"{describe(ids)} is larger than MongoDB's limit of 16 MB"


def _index(keys: str, options: Mapping[str, Any]) -> IndexModel:
    named = [(key.lstrip("-"), DESCENDING if key[0] == "-" else ASCENDING) for key in keys.split()]
    return IndexModel(named, **options)
