"""Strands' Storage over both kinds of client; `make test-strands` adds Strands' own tests."""

import asyncio
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from strands import Agent
from strands.session import SnapshotSessionManager
from strands.storage import Storage
from strands.types.exceptions import StorageError

from pool_telemetry import MongoDBConnectionPool
from pool_telemetry.sessions import MongoDBStorage
from tests.scripted import agent_with, texts
from tests.support import rest_in_bulk

Make = Callable[..., MongoDBStorage]


@pytest.fixture
def database(server_uri: str) -> Iterator[Any]:
    with MongoClient[dict[str, Any]](server_uri) as client:
        name = f"storage_{uuid.uuid4().hex[:12]}"
        yield client[name]
        client.drop_database(name)


@pytest.fixture(params=rest_in_bulk(["awaited", "in threads"]))
def kind(request: pytest.FixtureRequest) -> Any:
    return AsyncMongoClient if request.param == "awaited" else MongoClient


async def closed(client: Any) -> None:
    if (closing := client.close()) is not None:
        await closing


def test_a_stored_blob_is_read_listed_replaced_and_deleted(
    server_uri: str, database: Any, kind: Any
) -> None:
    async def use() -> None:
        client = kind(server_uri)
        storage = MongoDBStorage(client, database.name)
        assert isinstance(storage, Storage)
        assert await storage.read("nothing") is None
        await storage.delete("nothing")
        for key, data in {"a/b": b"1", "//a//c/": b"\0\xff", "a_b": b"", "å/😀": b"x"}.items():
            await storage.write(key, data)
            assert await storage.read(key) == data
        assert await storage.list() == ["a/b", "a/c", "a_b", "å/😀"]
        assert await storage.list("a/") == ["a/b", "a/c"]
        assert await storage.list("a.") == []  # the prefix is not a pattern
        await storage.write("a/b", b"2")
        assert await storage.read("a/b") == b"2"
        await storage.delete("a/b")
        assert await storage.read("a/b") is None
        for key in ("", "/", "../x", "a/../b", "a\\b", "a\0b", "x" * 2_000, "\ud800"):
            with pytest.raises(StorageError, match="storage key"):
                await storage.write(key, b"")
        await closed(client)

    asyncio.run(use())


def test_a_namespace_has_only_its_own_keys(server_uri: str, database: Any) -> None:
    async def use() -> None:
        with MongoClient[dict[str, Any]](server_uri) as client:
            storage = MongoDBStorage(client, database.name)
            team = storage.namespace("team").namespace("a/")
            await team.write("notes", b"1")
            await storage.write("other", b"2")
            assert await team.list() == ["notes"]
            assert await storage.list() == ["other", "team/a/notes"]
            assert await team.read("other") is None
            assert [found.key for found in await team.search("notes")] == ["notes"]
            await team.delete("notes")
            assert await storage.list() == ["other"]

    asyncio.run(use())


def test_a_large_blob_is_a_file_that_is_deleted_with_it(
    server_uri: str, database: Any, kind: Any
) -> None:
    async def use() -> None:
        client = kind(server_uri)
        storage = MongoDBStorage(client, database.name)
        large = os.urandom(17_000_000)
        await storage.write("large", large)
        assert await storage.read("large") == large
        assert "data" not in database["strands_blobs"].find_one()
        await storage.write("large", large[::-1])
        assert await storage.read("large") == large[::-1]
        assert database["strands_blobs.files"].count_documents({}) == 1
        await storage.write("large", b"small")
        assert await storage.read("large") == b"small"
        await storage.write("large", large)
        await storage.delete("large")
        left = {
            name: database[name].count_documents({})
            for name in ("strands_blobs", "strands_blobs.chunks")
        }
        assert left == {"strands_blobs": 0, "strands_blobs.chunks": 0}
        await closed(client)

    asyncio.run(use())


def test_a_reader_never_gets_a_partial_blob(server_uri: str, database: Any, kind: Any) -> None:
    """Two tasks write blobs of one repeated letter, several chunks long, while three tasks read."""
    size = 1_000_000

    async def use() -> None:
        client = kind(server_uri)
        storage = MongoDBStorage(client, database.name, inline_bytes=1_000)
        await storage.write("blob", b"a" * size)
        writing = True

        async def write(letters: bytes) -> None:
            for letter in letters:
                await storage.write("blob", bytes([letter]) * size)

        async def read() -> int:
            reads = 0
            while writing:
                data = await storage.read("blob")
                assert data is not None
                assert (len(data), len(set(data))) == (size, 1)
                reads += 1
            return reads

        readers = [asyncio.create_task(read()) for _ in range(3)]
        await asyncio.gather(write(b"bdfhjlnprt"), write(b"cegikmoqsu"))
        writing = False
        assert min(await asyncio.gather(*readers)) >= 1
        # The remaining files are not counted: the embedded server's findAndModify may return the
        # same old document to two writers, which MongoDB never does.
        await closed(client)

    asyncio.run(use())


def test_a_snapshot_is_restored(server_uri: str, database: Any, kind: Any) -> None:
    async def use() -> None:
        client = kind(server_uri)
        storage = MongoDBStorage(client, database.name)

        async def agent(*steps: str) -> Agent:
            manager = SnapshotSessionManager("s", storage=storage)
            return await asyncio.to_thread(agent_with, manager, *steps)

        await (await agent("hi")).invoke_async("hello")
        again = await agent("fine")
        await again.invoke_async("how are you?")
        assert texts(await agent()) == texts(again)
        assert len(texts(again)) == 4
        assert await storage.list() == [
            "session/s/scopes/agent/default/snapshots/snapshot_latest.json"
        ]
        await closed(client)

    asyncio.run(use())


def test_a_blocked_event_loop_is_an_error_instead_of_a_wait(
    server_uri: str, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pool_telemetry.sessions.storage._LOOP_SECONDS", 0.05)

    async def use() -> None:
        async with AsyncMongoClient[dict[str, Any]](server_uri) as client:
            storage = MongoDBStorage(client, database.name)
            with pytest.raises(StorageError, match=r"await asyncio.to_thread\(Agent, ...\)"):
                agent_with(SnapshotSessionManager("s", storage=storage))

    asyncio.run(use())


def test_a_failed_operation_raises_a_storage_error_without_secrets(server_uri: str) -> None:
    async def use() -> None:
        uri = "mongodb://ann:s3cr3t@127.0.0.1:1/?serverSelectionTimeoutMS=50"
        with MongoClient[dict[str, Any]](uri) as client:
            storage = MongoDBStorage(client)
            for call in (
                storage.read("key"),
                storage.write("key", b"s3cr3t"),
                storage.list(),
                storage.delete("key"),
            ):
                with pytest.raises(StorageError, match="ServerSelectionTimeoutError") as caught:
                    await call
                assert "s3cr3t" not in repr(caught.value) + repr(caught.value.__cause__)

    asyncio.run(use())
    with pytest.raises(ValueError, match="inline_bytes is 16777216"):
        MongoDBStorage(MongoDBConnectionPool.initialize(server_uri), inline_bytes=16 * 2**20)
