"""Automatic encryption: PyMongo gives the listeners of a client to an inner client of its own."""

import asyncio
import gc
import importlib.util
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pymongo
import pytest
from bson import ObjectId
from bson.binary import Binary
from bson.codec_options import CodecOptions
from pymongo import AsyncMongoClient, MongoClient
from pymongo.encryption import ClientEncryption
from pymongo.encryption_options import AutoEncryptionOpts

from pool_telemetry import MongoDBConnectionPool, PoolTelemetry, TelemetryOptions
from pool_telemetry.registry import active
from tests.needs import lacks
from tests.support import drivers, logged, ours, the_pool, wait_for

Client = MongoClient[dict[str, Any]]
AsyncClient = AsyncMongoClient[dict[str, Any]]

KEY = {"local": {"key": bytes(96)}}
EXPIRY: dict[str, Any] = {} if pymongo.version_tuple < (4, 12) else {"key_expiration_ms": 1}
"""A key is soon read again, so that nearly each encrypted value needs the inner client."""


@pytest.fixture(scope="module", autouse=True)
def _needs_pymongocrypt() -> None:
    if importlib.util.find_spec("pymongocrypt") is None:
        lacks("no pymongocrypt: pip install -e '.[dev]'")


@pytest.fixture(scope="module")
def vault(server_uri: str) -> Iterator[str]:
    """The namespace of a key vault; the collection `encrypted.t` has a value to decrypt."""
    namespace = f"vault.keys_{ObjectId()}"
    with Client(server_uri) as client:
        encryption: ClientEncryption[Any] = ClientEncryption(KEY, namespace, client, CodecOptions())
        with encryption:
            key = encryption.create_data_key("local")
            algorithm = "AEAD_AES_256_CBC_HMAC_SHA_512-Random"
            secret = encryption.encrypt("secret", algorithm, key_id=key)
        assert isinstance(secret, Binary)
        client["encrypted"]["t"].delete_many({})
        client["encrypted"]["t"].insert_one({"_id": 1, "secret": secret})
        yield namespace


def automatic(vault: str) -> AutoEncryptionOpts:
    """Options that need no mongocryptd: commands are not analyzed, answers are decrypted."""
    return AutoEncryptionOpts(
        KEY,
        vault,
        bypass_query_analysis=True,
        **EXPIRY,
        mongocryptd_bypass_spawn=True,
        mongocryptd_uri="mongodb://127.0.0.1:1/",  # no server has this port
    )


def inner(client: Any) -> Any:
    """Return PyMongo's inner client."""
    return client._encrypter._internal_client


def telemetry_named(name: str) -> PoolTelemetry:
    (found,) = (one for one in active() if one.name == name)
    return found


def agree(client: Any, name: str) -> None:
    """The books of both clients are those of the driver."""
    for one, book in ((client, name), (inner(client), f"{name}/encryption")):
        telemetry = telemetry_named(book)
        assert ours(the_pool(telemetry)) == drivers(one), book
        assert the_pool(telemetry).created == the_pool(telemetry).size + sum(
            the_pool(telemetry).closed.values()
        )


def read_with_threads(client: Client, number: int = 6) -> None:
    def work() -> None:
        for _ in range(20):
            found = client["encrypted"]["t"].find_one({"_id": 1})
            assert found is not None
            assert found["secret"] == "secret"

    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("connect", [True, False])
def test_inner_client_has_a_book_of_its_own(
    server_uri: str, vault: str, connect: bool, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = PoolTelemetry("crypt")
    with (
        caplog.at_level(logging.INFO),
        Client(
            server_uri,
            connect=connect,
            maxPoolSize=4,
            auto_encryption_opts=automatic(vault),
            event_listeners=telemetry.listeners,
        ) as client,
    ):
        read_with_threads(client)
        agree(client, "crypt")
        outer, book = telemetry.stats(), telemetry_named("crypt/encryption").stats()
        assert {(one.namespace, one.operation) for one in outer.operations} == {
            ("encrypted", "find")
        }
        assert {(one.namespace, one.operation) for one in book.operations} == {
            ("vault", "find"),  # a key
            ("encrypted", "listCollections"),
        }
        assert sum(one.duration.count for one in book.operations) == sum(
            pool.checkouts["ok"] for pool in book.pools
        )
        assert the_pool(telemetry).checkouts["ok"] == 120
        assert the_pool(telemetry).up
        assert the_pool(telemetry_named("crypt/encryption")).up
        assert outer.telemetry_errors == book.telemetry_errors == 0
    for one in (outer, book):
        assert one.name not in {telemetry.name for telemetry in active()}
    assert not logged(caplog, "PoolTelemetry for each client")


def test_inner_client_of_an_asynchronous_client(server_uri: str, vault: str) -> None:
    telemetry = PoolTelemetry("acrypt")

    async def main() -> None:
        async with AsyncMongoClient[dict[str, Any]](
            server_uri,
            maxPoolSize=4,
            auto_encryption_opts=automatic(vault),
            event_listeners=telemetry.listeners,
        ) as client:
            found = [client["encrypted"]["t"].find_one({"_id": 1}) for _ in range(40)]
            assert all(one and one["secret"] == "secret" for one in await asyncio.gather(*found))
            agree(client, "acrypt")
            assert the_pool(telemetry).checkouts["ok"] == 40

    asyncio.run(main())


def test_singleton_that_is_replaced_keeps_both_names(server_uri: str, vault: str) -> None:
    def names() -> set[str]:
        return {one.name for one in active() if one.name.startswith("single")}

    for size in (3, 4):
        client = MongoDBConnectionPool.initialize(
            server_uri,
            maxPoolSize=size,
            minPoolSize=0,
            auto_encryption_opts=automatic(vault),
            telemetry=TelemetryOptions(name="single", drain_seconds=0.0),
        )
        read_with_threads(client, 2)
        wait_for(lambda: names() == {"single", "single/encryption"}, str(names()))
        agree(client, "single")
        assert the_pool(telemetry_named("single/encryption")).max_size == size
    MongoDBConnectionPool.close()
    assert names() == set()


@pytest.mark.filterwarnings("ignore:unclosed <socket")  # PyMongo 4.11
def test_inner_client_that_is_dropped_leaves_no_open_pool(server_uri: str, vault: str) -> None:
    telemetry = PoolTelemetry("dropped_crypt")

    def use() -> PoolTelemetry:
        client = Client(
            server_uri,
            auto_encryption_opts=automatic(vault),
            event_listeners=telemetry.listeners,
        )
        read_with_threads(client, 1)
        book = telemetry_named("dropped_crypt/encryption")
        assert the_pool(book).size == 1
        return book

    def drop() -> PoolTelemetry:
        book = use()
        wait_for(lambda: gc.collect() >= 0 and not book.active and not telemetry.active)
        return book

    with pytest.warns(ResourceWarning, match="Unclosed MongoClient"):
        book = drop()
    (pool,) = book.stats().pools
    assert (pool.size, pool.closed["pool_closed"]) == (0, 1)


def test_unlimited_pool_has_no_inner_client(server_uri: str, vault: str) -> None:
    telemetry = PoolTelemetry("unlimited")
    with Client(
        server_uri,
        maxPoolSize=None,
        auto_encryption_opts=automatic(vault),
        event_listeners=telemetry.listeners,
    ) as client:
        read_with_threads(client)
        assert ours(the_pool(telemetry)) == drivers(client)
        assert {one.name for one in active() if "unlimited" in one.name} == {"unlimited"}


PROGRAM = """
import sys
from pymongo import MongoClient
from pymongo.encryption_options import AutoEncryptionOpts
from pool_telemetry.health import assess
from pool_telemetry.otel.instrumentor import PoolTelemetryInstrumentor
from pool_telemetry.registry import active

PoolTelemetryInstrumentor().instrument()
uri, vault = sys.argv[1:]
automatic = AutoEncryptionOpts(
    {"local": {"key": bytes(96)}},
    vault,
    bypass_query_analysis=True,
    mongocryptd_bypass_spawn=True,
    mongocryptd_uri="mongodb://127.0.0.1:1/",
)
client = MongoClient(uri, auto_encryption_opts=automatic)
assert client.encrypted.t.find_one({"_id": 1})["secret"] == "secret"
mongocryptd = client._encrypter._auto_encrypter.callback.mongocryptd_client
mongocryptd._get_topology()
assert not mongocryptd.options.event_listeners
for one in active():
    print(one.name or "-", assess(one).status, len(one.stats().pools))
client.close()
"""


def test_zero_code_has_books_for_both_clients_and_none_for_mongocryptd(
    server_uri: str, vault: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, server_uri, vault],
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | {"POOL_TELEMETRY_NAME": "zero"},
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["zero healthy 1", "zero/encryption healthy 1"]
    assert not done.stderr
