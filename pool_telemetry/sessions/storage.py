"""Strands' Storage in MongoDB: bytes under keys, for SnapshotSessionManager and other users.

A blob is a document. A larger blob is a GridFS file, and its document points to the file. A write
makes a new file and then moves the pointer, so a reader sees either blob whole.
"""

import asyncio
import builtins
import contextlib
import copy
import re
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, Final, Self, TypeVar

from bson import ObjectId
from bson.binary import Binary
from gridfs import AsyncGridFSBucket, GridFSBucket
from gridfs.errors import CorruptGridFile, NoFile
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError
from strands.storage import Storage
from strands.storage import storage as strands_storage
from strands.storage.search.keyword import STOP_WORDS, tokenize
from strands.types.exceptions import StorageError

from pool_telemetry.sessions.client_choice import AnyClient, check_client, shared_client
from pool_telemetry.sessions.collections import log_others
from pool_telemetry.sessions.dispatch import call_method_for
from pool_telemetry.sessions.documents import (
    PREFIX,
    SCHEMA,
    Document,
    check_owner,
    owned_by,
    owner_of,
)

T = TypeVar("T")
_EXTENSION: Final = re.compile(r"(?<=[^/])\.[^./]*$")

INLINE_BYTES: Final = 15 * 1024 * 1024  # a document has 16 MB, its key included
MAX_KEY_BYTES: Final = 1024

MAX_FOUND: Final = 1_000  # blobs that a search returns

_SEARCHED_BYTES: Final = 1024 * 1024  # of a blob; more words would cost each write too much
_MAX_WORDS: Final = 5_000  # of a blob, so that they fit beside INLINE_BYTES
_MAX_WORD: Final = 64  # characters; longer ones are no words
_UNAUTHORIZED: Final = 13

_READS: Final = 10  # attempts to read a blob; a write may replace it during each
_LOOP_SECONDS: Final = 5.0  # the client's loop counts as blocked if it runs nothing for so long


class MongoDBStorage(Storage):
    """Keeps blobs in the collection `blobs`, and large blobs in the GridFS bucket of that name.

    A key has 1 to 1,024 bytes. Slashes separate its parts, several slashes count as one, and `..`
    is not allowed.

    Over an AsyncMongoClient, make a SnapshotSessionManager's agent in a thread, because it restores
    on its own event loop: `await asyncio.to_thread(Agent, session_manager=manager)`. A guardrail's
    redaction also uses its own loop, within the turn. With guardrails use a MongoClient, whose
    calls run in threads.

    Args:
        client: The application's client, which is never closed here; by default a singleton's.
        database_name: The database of the collections.
        prefix: The prefix of the collections' names.
        inline_bytes: The size above which a blob is a file; at most INLINE_BYTES.
        application: The application whose blobs alone the storage uses; None for any.
        user: The user whose blobs alone the storage uses; None for any. A new blob stores both, and
            a blob without them is anybody's, as a session is (see `documents.py`).
        searchable: Whether a write also stores the words of a blob's first MB, with an index. Then
            `search` reads no blob. It finds other blobs by their keys only, and returns no data,
            at most MAX_FOUND keys. Without it, Strands' own search reads all blobs.

    Raises:
        SessionOwnerError: A blob has another owner.
        StorageError: A key is invalid, another program wrote the document, or the server or the
            network fails.
    """

    _namespaced: object = None  # Strands reads it to decide if it adds a prefix of its own

    def __init__(
        self,
        client: AnyClient | None = None,
        database_name: str = "strands",
        *,
        prefix: str = PREFIX,
        inline_bytes: int = INLINE_BYTES,
        application: str | None = None,
        user: str | None = None,
        searchable: bool = False,
    ) -> None:
        if not 0 <= inline_bytes <= INLINE_BYTES:
            raise ValueError(f"inline_bytes is {inline_bytes}: use 0 to {INLINE_BYTES}")
        client = shared_client() if client is None else client
        check_client(client, AsyncMongoClient, MongoClient)
        database: Any = client[database_name]
        asynchronous = isinstance(client, AsyncMongoClient)
        name = f"{prefix}blobs"
        self._blobs = database[name]
        self._files: Any = (AsyncGridFSBucket if asynchronous else GridFSBucket)(database, name)
        self._call = call_method_for(client)
        self._inline_bytes = inline_bytes
        self._loop = _running_loop() if asynchronous else None  # the client's event loop
        self._prefix = ""
        self._owner = owner_of(application, user)
        self._searchable = searchable
        self._has_index = [False]  # shared with the storages of `namespace()`

    def namespace(self, prefix: str) -> Self:
        """Return this storage limited to keys below a prefix; its keys are without the prefix."""
        below = _without_runs(prefix).strip("/")
        scoped = copy.copy(self)
        scoped._prefix = f"{self._prefix}{below}/" if below else self._prefix
        # Without this Strands adds its own prefix, too.
        scoped._namespaced = getattr(strands_storage, "_NAMESPACED", None)
        return scoped

    async def write(self, key: str, data: bytes) -> None:
        """Store bytes under a key; an existing blob is replaced atomically."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise StorageError(f"data is {type(data).__name__}: use bytes")
        name = self._prefix + _normalized(key)
        await self._run(name, self._write(name, bytes(data)))

    async def read(self, key: str) -> bytes | None:
        """Return the bytes under a key; None if there are none."""
        name = self._prefix + _normalized(key)
        return await self._run(name, self._read(name))

    async def delete(self, key: str) -> None:
        """Delete the blob under a key; a missing blob is no error."""
        name = self._prefix + _normalized(key)
        await self._run(name, self._delete(name))

    async def list(self, query: str = "") -> builtins.list[str]:
        """Return the keys that begin with a text, sorted."""
        prefix = self._prefix + _without_runs(query).lstrip("/")
        keys = await self._run(prefix, self._list(prefix))
        return [key[len(self._prefix) :] for key in keys]

    async def search(self, query: str) -> builtins.list[strands_storage.StorageSearchResult]:
        """Return the keys of blobs with words of the query, most words first.

        A word counts once, in the blob or in its key without the extension.
        """
        if not self._searchable:
            return await super().search(query)
        words = tokenize(query) - STOP_WORDS
        return await self._run(query[:40], self._search(sorted(words))) if words else []

    async def _search(
        self, words: builtins.list[str]
    ) -> builtins.list[strands_storage.StorageSearchResult]:
        in_key = {"$regex": "|".join(map(re.escape, words)), "$options": "i"}
        pipeline = [
            {"$match": self._below(self._prefix)},
            {"$match": {"$or": [{"words": {"$in": words}}, {"_id": in_key}]}},
            {"$project": {"words": {"$setIntersection": [{"$ifNull": ["$words", []]}, words]}}},
            {"$addFields": {"found": {"$size": "$words"}}},
            {"$sort": {"found": -1, "_id": 1}},
            {"$limit": MAX_FOUND},
        ]
        cursor = await self._call(self._blobs.aggregate, pipeline)
        found = []
        for one in await self._call(cursor.to_list):
            key = one["_id"][len(self._prefix) :]
            of_key = tokenize(_EXTENSION.sub("", key))
            if score := len({*one["words"], *of_key}.intersection(words)):
                found.append(strands_storage.StorageSearchResult(key, score))
        return sorted(found, key=lambda one: (-one.score, one.key))

    async def _create_index(self) -> None:
        if self._has_index[0]:
            return
        try:
            await self._call(self._blobs.create_index, "words", sparse=True)
        except OperationFailure as error:
            if error.code != _UNAUTHORIZED:  # without the index a search is slower
                raise
        self._has_index[0] = True

    async def _write(self, key: str, data: bytes) -> None:
        blob: Document = {
            "schema": SCHEMA,
            "size": len(data),
            "updated_at": datetime.now(UTC).isoformat(),
        }
        if len(data) <= self._inline_bytes:
            blob["data"] = Binary(data)
        else:
            await self._find(key)  # raises before the upload
            blob["file"] = ObjectId()
            await self._call(self._files.upload_from_stream_with_id, blob["file"], key, data)
        unset = {"data" if "file" in blob else "file": ""}
        if self._searchable:
            await self._create_index()
            blob["words"] = _words(data)
        else:
            unset["words"] = ""  # of an earlier blob
        update: Document = {"$set": blob, "$unset": unset}
        if self._owner:
            update["$setOnInsert"] = self._owner
        method, which = self._blobs.find_one_and_update, self._blob(key)
        for _ in range(_READS):
            try:
                before = await self._call(method, which, update, {"file": True}, upsert=True)
            except DuplicateKeyError:
                try:
                    await self._find(key)  # raises unless another writer just created the blob
                except BaseException:
                    await self._drop_file(blob)
                    raise
            else:
                await self._drop_file(before)
                return
        raise StorageError(f"blob {key!r}: other writers replace it all the time")

    async def _read(self, key: str) -> bytes | None:
        for attempt in range(_READS):
            found = await self._find(key)
            if found is None:
                return None
            if "data" in found:
                return bytes(found["data"])
            try:
                stream = await self._call(self._files.open_download_stream, found["file"])
                data: bytes = await self._call(stream.read)
            except (NoFile, CorruptGridFile):  # a write replaced the blob during the read
                if attempt == _READS - 1:
                    raise
            else:
                return data
        raise AssertionError

    async def _delete(self, key: str) -> None:
        before = await self._call(self._blobs.find_one_and_delete, self._blob(key))
        if before is None:
            await self._find(key)  # raises if the blob exists
        await self._drop_file(before)

    async def _list(self, prefix: str) -> builtins.list[str]:
        cursor = self._blobs.find(self._below(prefix), {"schema": True, "size": True}).sort("_id")
        found = await self._call(cursor.to_list)
        keys = [one["_id"] for one in found if isinstance(one["_id"], str) and _is_ours(one)]
        if len(keys) < len(found):
            log_others(self._blobs)
        return keys

    def _below(self, prefix: str) -> Document:
        """Return the filter for blobs whose keys begin with a text, and that the owner may use."""
        which: Document = {"_id": {"$regex": f"^{re.escape(prefix)}"}} if prefix else {}
        return which | owned_by(self._owner)

    def _blob(self, key: str) -> Document:
        """Return the filter for a blob that this library wrote and the owner may use."""
        form = {"schema": {"$type": "number"}, "size": {"$type": "number"}}
        return {"_id": key, **form, **owned_by(self._owner)}

    async def _find(self, key: str) -> Document | None:
        """Return the document of a blob that the owner may use; None if there is none."""
        found: Document | None = await self._call(self._blobs.find_one, {"_id": key})
        if found is not None:
            kinds = {"data": bytes, "file": ObjectId}
            has_blob = any(isinstance(found.get(name), kind) for name, kind in kinds.items())
            if not (has_blob and _is_ours(found)):
                raise StorageError(f"another program wrote blob {key!r}: use another prefix=")
            check_owner(f"blob {key!r}", found, self._owner)
        return found

    async def _drop_file(self, blob: Document | None) -> None:
        if blob is not None and "file" in blob:
            with contextlib.suppress(NoFile):  # another writer already deleted the file
                await self._call(self._files.delete, blob["file"])

    async def _run(self, key: str, work: Coroutine[Any, Any, T]) -> T:
        """Run an operation on the client's loop; PyMongo's errors become a StorageError."""
        try:
            here = asyncio.get_running_loop()
            if not isinstance(self._blobs.database.client, AsyncMongoClient):
                return await work
            if self._loop is None:
                self._loop = here
            if self._loop is here:
                return await work
            return await self._elsewhere(self._loop, work)
        except PyMongoError as error:
            raise StorageError(f"blob {key!r}: {type(error).__name__}") from error

    async def _elsewhere(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
        answers = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop)
        try:
            async with asyncio.timeout(_LOOP_SECONDS):
                await asyncio.wrap_future(answers)
        except TimeoutError:
            work.close()
            raise StorageError(
                "the caller of this operation blocks the AsyncMongoClient's event loop: make the "
                "agent in a thread, `await asyncio.to_thread(Agent, ...)`, or use a MongoClient"
            ) from None
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


def _is_ours(blob: Document) -> bool:
    return all(isinstance(blob.get(name), int) for name in ("schema", "size"))


def _words(data: bytes) -> builtins.list[str]:
    words = tokenize(data[:_SEARCHED_BYTES].decode("utf-8", "replace"))
    return sorted(word for word in words if len(word) <= _MAX_WORD)[:_MAX_WORDS]


def _normalized(key: str) -> str:
    found = _without_runs(key).strip("/")
    if not 1 <= len(found.encode("utf-8", "surrogatepass")) <= MAX_KEY_BYTES:
        raise StorageError(f"storage key {found[:40]!r}: use 1 to {MAX_KEY_BYTES} bytes")
    return found


def _without_runs(key: str) -> str:
    found = re.sub(r"/+", "/", key)
    if ".." in found.split("/") or any(c in "\\\0" or "\ud800" <= c <= "\udfff" for c in found):
        raise StorageError(
            f"storage key {found[:40]!r}: '..', backslashes and null bytes are not allowed"
        )
    return found


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
