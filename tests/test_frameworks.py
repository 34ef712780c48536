"""Frameworks that only pass listeners to PyMongo: MongoEngine, Beanie, Django's backend."""

import asyncio
from typing import Any

import beanie
import mongoengine
import pytest
from pymongo import AsyncMongoClient

from pool_telemetry import PoolTelemetry


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
    import django
    from django.conf import settings

    telemetry = PoolTelemetry("django")
    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "django_mongodb_backend",
                "HOST": server_uri,
                "NAME": "django",
                "OPTIONS": {"event_listeners": telemetry.listeners},
            }
        },
        DEFAULT_AUTO_FIELD="django_mongodb_backend.fields.ObjectIdAutoField",
    )
    django.setup()
    from django.db import connection

    connection.ensure_connection()
    collection = connection.get_collection("orders")
    collection.insert_one({"item": "tea"})
    assert counted_operations(telemetry) >= {"insert"}
    connection.close()
    connection.close_pool()
