"""The three collections: their indexes, and one place that calls PyMongo for all of them.

Each call is counted, its span gets the session's attributes, and its errors are described without
a document's values.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final

import bson
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import DocumentTooLarge, DuplicateKeyError, OperationFailure, WriteError
from pymongo.write_concern import WriteConcern
from strands.types.exceptions import SessionException

from pool_telemetry.errors import PoolConfigurationError
from pool_telemetry.events import tracing
from pool_telemetry.process import ProcessLock
from pool_telemetry.registry import telemetry_of
from pool_telemetry.sessions.client_choice import AnyClient
from pool_telemetry.sessions.dispatch import CallMethod
from pool_telemetry.sessions.documents import (
    PREFIX,
    Document,
    SessionConflictError,
    describe,
    unstorable,
)
from pool_telemetry.sessions.values import ENCODE_ERRORS
from pool_telemetry.state.agents import AgentCounts

_TOO_LARGE: Final = (10334, 17419, 17420)  # the server's codes for an update beyond 16 MB
_REFUSED: Final = {
    28: "a path leads through a value",
    40: "two paths overlap",
    121: "the collection's validator refuses it",
}
_ATTRIBUTES: Final = {"session_id": "gen_ai.conversation.id", "agent_id": "gen_ai.agent.id"}
_INDEXES: Final[Mapping[str, tuple[str, ...]]] = {
    "sessions": ("-updated_at _id", "application -updated_at _id", "user -updated_at _id"),
    "agents": ("session_id kind agent_id",),
    "messages": ("session_id agent_id message_id",),
}
_EXPIRY: Final = (
    "expires_at",
    {"expireAfterSeconds": 0, "partialFilterExpression": {"expires_at": {"$exists": True}}},
)

_log = logging.getLogger("pool_telemetry.sessions")

# The number of documents in a batch, so that a read is one command unless it is larger than 16 MB;
# by default the first batch has 101.
ONE_BATCH: Final = 1_000_000

# Collections whose documents of another form were already logged; the number bounds the memory.
_with_others: set[str] = set()
_MAX_LOGGED: Final = 1_000
_MAX_REPEATS: Final = 20  # queries of one list; each but the last found documents to skip

_UNAUTHORIZED: Final = 13


Ids = Mapping[str, object] | None
"""The server's ids of three collections; None if the account may not ask for them."""

# The collections that have their indexes, by server and the full name of the messages' collection.
# A client object is not asked about: two of them may have one server, and PyMongo's compare their
# addresses only.
_indexed: OrderedDict[tuple[Hashable, str], Ids] = OrderedDict()
_MAX_INDEXED: Final = 1_000  # it bounds the memory
indexing: Final = ProcessLock()


class UndecodableError(SessionException):
    """A document has a value that PyMongo can't decode, such as a text that is no valid UTF-8."""


def indexes(prefix: str = PREFIX) -> dict[str, list[IndexModel]]:
    """Return the indexes of the sessions' collections, by the collections' names.

    An account that may create indexes can create them for one that may not:

        for name, models in indexes().items():
            client["strands"][name].create_indexes(models)
    """
    return {
        f"{prefix}{name}": [*map(_index, keys), IndexModel(_EXPIRY[0], **_EXPIRY[1])]
        for name, keys in _INDEXES.items()
    }


class Store:
    """The collections of one database.

    Args:
        client: The client.
        database_name: The database.
        prefix: The prefix of the collections' names.
        call: The function that calls this client's methods.
        create_indexes: Whether to create missing indexes; False for an account that may not.
    """

    def __init__(
        self,
        client: AnyClient,
        database_name: str,
        prefix: str,
        call: CallMethod,
        *,
        create_indexes: bool = True,
    ) -> None:
        if not isinstance(prefix, str):
            raise TypeError(f"prefix is {type(prefix).__name__}: use a text, which may be empty")
        database: Any = client.get_database(database_name)
        if not database.write_concern.acknowledged:  # otherwise the server reports no conflict
            database = database.with_options(write_concern=WriteConcern(1))
        self.sessions = database[f"{prefix}sessions"]
        self.agents = database[f"{prefix}agents"]
        self.messages = database[f"{prefix}messages"]
        self._database = database
        self._client = client
        self._indexes = indexes(prefix) if create_indexes else {}
        self.call = call
        self.counts = found.agents if (found := telemetry_of(client)) else AgentCounts()

    @property
    def is_indexed(self) -> bool:
        """Return whether the server has the indexes, as far as this process knows."""
        return not self._indexes or any(key in _indexed for key in self._keys())

    async def create_indexes(self) -> None:
        """Create the missing indexes, once for each server and database.

        Raises:
            PoolConfigurationError: The account may not create indexes.
        """
        if self.is_indexed:
            return
        if not self._servers():
            ids = await self._ids()  # it connects the client, so that its server is known
            if any(key in _indexed and _indexed[key] == ids for key in self._keys()):
                return
        try:
            for name, models in self._indexes.items():
                await self.call(self._database[name].create_indexes, models)
        except OperationFailure as error:
            if error.code != _UNAUTHORIZED:
                raise
            raise PoolConfigurationError(
                f"the account may not create the indexes of {self.messages.full_name!r}: grant it "
                "createIndex, or create them with another account (pool_telemetry.sessions."
                "indexes() lists them) and use create_indexes=False"
            ) from None
        ids = await self._ids()
        for key in self._keys():
            _indexed[key] = ids
            _indexed.move_to_end(key)
        while len(_indexed) > _MAX_INDEXED:
            _indexed.popitem(last=False)

    async def check_indexes(self) -> None:
        """Create the indexes again if a collection was dropped since they were created.

        The server does not say this by itself, so the creation of a session asks for the ids of
        the collections, with one command.
        """
        known = self._known_ids
        if self._indexes and known is not None and await self._ids() != known:
            for key in self._keys():
                _indexed.pop(key, None)
            await self.create_indexes()

    @property
    def _known_ids(self) -> Ids:
        return next((_indexed[key] for key in self._keys() if key in _indexed), None)

    def _keys(self) -> list[tuple[Hashable, str]]:
        return [(server, self.messages.full_name) for server in self._servers()]

    def _servers(self) -> list[Hashable]:
        """Return the servers that the client writes to; an empty list before it has one.

        A process of MongoDB names itself by its `processId`, whatever its address. Other servers
        lack it; there each client has its own answer.
        """
        servers = self._client.topology_description.server_descriptions().values()
        return [
            (one.topology_version or {}).get("processId") or (id(self._client), one.address)
            for one in servers
            if one.is_writable
        ]

    async def _ids(self) -> dict[str, object] | None:
        """Return the server's ids of the collections; None if the account may not ask."""
        which = {"name": {"$in": [*self._indexes]}}
        try:
            cursor = await self.call(self._database.list_collections, filter=which)
            found = await self.call(cursor.to_list)
        except OperationFailure as error:
            if error.code != _UNAUTHORIZED:
                raise
            return None
        return {one["name"]: one.get("info", {}).get("uuid") for one in found}

    async def do(
        self, ids: Mapping[str, Any], method: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Call a method of PyMongo; its span and errors name the session, agent or message."""
        named = {_ATTRIBUTES[key]: ids[key] for key in _ATTRIBUTES if key in ids}
        token = tracing.span_attributes.set({**(tracing.span_attributes.get() or {}), **named})
        self.counts.add(operations=1)
        try:
            return await self.call(method, *args, **kwargs)
        except Exception as error:
            explained = _explained(ids, error)
            if explained is error:
                raise
        finally:
            tracing.span_attributes.reset(token)
        raise explained  # here, because a chain of errors would show the document

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
            query["batch_size"] = ONE_BATCH
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


def log_others(collection: Any) -> None:
    """Log once that lists skip documents of a collection; their values may be secrets."""
    name = collection.full_name
    if name not in _with_others and len(_with_others) < _MAX_LOGGED:
        _with_others.add(name)
        _log.warning("%s has documents that pool_telemetry can't read; lists skip them", name)


def _explained(ids: Mapping[str, Any], error: Exception) -> Exception:
    """Return the SessionException for an error whose message may contain values, or the error."""
    code = error.code or 0 if isinstance(error, OperationFailure) else 0
    if isinstance(error, DuplicateKeyError):
        words = f"{describe(ids)} already exists: another writer was first"
        return SessionConflictError(words)
    if isinstance(error, DocumentTooLarge) or code in _TOO_LARGE:
        return SessionException(f"{describe(ids)} is larger than MongoDB's limit of 16 MB")
    if isinstance(error, WriteError) or code in _REFUSED:
        reason = _REFUSED.get(code, "the server refused it")
        return SessionException(f"{describe(ids)}: {reason} (code {code})")
    if isinstance(error, InvalidBSON):
        return UndecodableError(f"{describe(ids)} has a value that isn't valid BSON")
    return unstorable(ids, error) if isinstance(error, ENCODE_ERRORS) else error


def _index(keys: str) -> IndexModel:
    return IndexModel(
        [(key.lstrip("-"), DESCENDING if key[0] == "-" else ASCENDING) for key in keys.split()]
    )
