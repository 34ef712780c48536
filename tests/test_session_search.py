"""A searchable storage finds blobs by their words, and reads none of them."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from strands.storage import InMemoryStorage

from pool_telemetry import PoolTelemetry
from pool_telemetry.sessions import MongoDBStorage, storage
from tests.support import failing, rest_in_bulk

BLOBS = {
    "notes/auth.md": b"OAuth2 flow: the dark mode toggle is elsewhere",
    "notes/dark.md": "Dunkel, é and dark Mode".encode(),
    "notes/empty": b"",
    "images/dark-mode.png": b"\xff\xfe\x00dark",
    "other/mode.md.bak": b"nothing",
}
QUERIES = [
    "dark mode",
    "the",
    "",
    "oauth2 flow toggle",
    "md",
    "MODE",
    "\u00e9",
    "missing",
    "a.b*c(",
]


@pytest.fixture
def database(server_uri: str) -> Iterator[Any]:
    with MongoClient[dict[str, Any]](server_uri) as client:
        name = f"search_{uuid.uuid4().hex[:12]}"
        yield client[name]
        client.drop_database(name)


@pytest.fixture(params=rest_in_bulk(["awaited", "in threads"]))
def use(request: pytest.FixtureRequest, server_uri: str) -> Callable[..., None]:
    """Return a function that runs a test with a client of each kind and its telemetry."""

    def run(test: Callable[[Any, PoolTelemetry], Awaitable[None]]) -> None:
        async def with_client() -> None:
            telemetry = PoolTelemetry("search")
            kind: Any = AsyncMongoClient if request.param == "awaited" else MongoClient
            listeners = telemetry.listeners
            client = kind(server_uri, appName="search", event_listeners=listeners)
            await test(client, telemetry)
            if (closing := client.close()) is not None:
                await closing

        asyncio.run(with_client())

    return run


def scores(found: Any) -> dict[str, float]:
    return {one.key: one.score for one in found}


def test_a_search_finds_what_strands_own_search_finds(use: Any, database: Any) -> None:
    async def test(client: Any, telemetry: PoolTelemetry) -> None:
        ours = MongoDBStorage(client, database.name, searchable=True)
        theirs = InMemoryStorage()
        for key, data in BLOBS.items():
            await ours.write(key, data)
            await theirs.write(key, data)
        for query in QUERIES:
            found, expected = await ours.search(query), await theirs.search(query)
            assert scores(found) == scores(expected), query
            ordered = [one.score for one in found]
            assert ordered == sorted(ordered, reverse=True)
        below = ours.namespace("notes")
        assert scores(await below.search("notes dark")) == {"dark.md": 1, "auth.md": 1}

    use(test)


def test_a_search_takes_one_command_and_returns_no_data(use: Any, database: Any) -> None:
    async def test(client: Any, telemetry: PoolTelemetry) -> None:
        ours = MongoDBStorage(client, database.name, searchable=True, inline_bytes=10)
        for number in range(20):
            await ours.write(f"note-{number}", b"dark mode " * 10)
        before = {one.operation: one.duration.count for one in telemetry.stats().operations}
        found = await ours.search("dark")
        after = {one.operation: one.duration.count for one in telemetry.stats().operations}
        assert {key: count - before.get(key, 0) for key, count in after.items()} == {
            **dict.fromkeys(before, 0),
            "aggregate": 1,
        }
        assert len(found) == 20
        assert {one.data for one in found} == {None}

    use(test)


def test_the_words_of_a_replaced_blob_are_forgotten(use: Any, database: Any) -> None:
    async def test(client: Any, telemetry: PoolTelemetry) -> None:
        ours = MongoDBStorage(client, database.name, searchable=True)
        plain = MongoDBStorage(client, database.name)
        await ours.write("a", b"dark")
        await ours.write("a", b"light")
        assert await ours.search("dark") == []
        await plain.write("a", b"dark")
        assert await ours.search("light") == []
        assert scores(await plain.search("dark")) == {"a": 1}  # it reads all blobs

    use(test)


def test_another_owners_blobs_are_not_found(use: Any, database: Any) -> None:
    async def test(client: Any, telemetry: PoolTelemetry) -> None:
        await MongoDBStorage(client, database.name, user="ann", searchable=True).write("a", b"dark")
        eve = MongoDBStorage(client, database.name, user="eve", searchable=True)
        assert await eve.search("dark a") == []

    use(test)


def test_a_search_is_bounded(use: Any, database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MAX_FOUND", 2)
    monkeypatch.setattr(storage, "_MAX_WORDS", 2)

    async def test(client: Any, telemetry: PoolTelemetry) -> None:
        ours = MongoDBStorage(client, database.name, searchable=True)
        for key, data in {"1": b"dark", "2": b"dark mode", "3": b"dark mode"}.items():
            await ours.write(key, data)
        assert scores(await ours.search("dark mode")) == {"2": 2, "3": 2}
        await ours.write("4", b"a b c d")
        stored = database["strands_blobs"].find_one({"_id": "4"})
        assert stored["words"] == ["a", "b"]

    use(test)


def test_an_account_that_may_not_create_the_index_writes_and_searches(
    use: Any, server_uri: str, database: Any
) -> None:
    async def test(client: Any, telemetry: PoolTelemetry) -> None:
        ours = MongoDBStorage(client, database.name, searchable=True)
        await ours.write("a", b"dark")
        assert scores(await ours.search("dark")) == {"a": 1}

    with failing(server_uri, "search", "createIndexes", errorCode=13):
        use(test)
