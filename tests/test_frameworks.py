"""Frameworks that only pass listeners to PyMongo: MongoEngine, Beanie, Django's backend."""

import asyncio
from typing import Any

import beanie
import mongoengine
import pytest
from pymongo import AsyncMongoClient

from pool_telemetry import PoolTelemetry
from tests.web import use_django


def counted_operations(telemetry: PoolTelemetry) -> set[str]:
    stats = telemetry.stats()
    assert stats.telemetry_errors == 0
    assert stats.open_pools[0].checkouts["ok"] > 0
    return {one.operation for one in stats.operations}


def test_mongoengine(server_uri: str) -> None:
    class Order(mongoengine.Document):  # type: ignore[misc]  # it has no types
        item = mongoengine.StringField()

    telemetry = PoolTelemetry("mongoengine")
    mongoengine.connect(
        "shop",
        host=server_uri,
        uuidRepresentation="standard",
        event_listeners=telemetry.listeners,
    )
    try:
        Order(item="tea").save()
        assert Order.objects(item="tea").count() >= 1
        assert counted_operations(telemetry) >= {"insert", "aggregate"}
    finally:
        mongoengine.disconnect()


class Message(beanie.Document):
    text: str


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_beanie(server_uri: str) -> None:
    telemetry = PoolTelemetry("beanie")

    async def main() -> None:
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            server_uri, event_listeners=telemetry.listeners
        )
        await beanie.init_beanie(database=client["chat"], document_models=[Message])
        await Message(text="hello").insert()
        assert await Message.find_one(Message.text == "hello")
        assert counted_operations(telemetry) >= {"insert", "find"}
        await client.close()

    asyncio.run(main())


def test_django(server_uri: str) -> None:
    use_django()
    from django.db.utils import ConnectionHandler

    telemetry = PoolTelemetry("django")
    database = {
        "ENGINE": "django_mongodb_backend",
        "HOST": server_uri,
        "NAME": "django",
        "OPTIONS": {"event_listeners": telemetry.listeners},
    }
    connection = ConnectionHandler({"default": database})["default"]
    connection.ensure_connection()
    collection = connection.get_collection("orders")
    collection.insert_one({"item": "tea"})
    assert counted_operations(telemetry) >= {"insert"}
    connection.close()
    connection.close_pool()
