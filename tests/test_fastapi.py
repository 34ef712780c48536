"""The routes over HTTP, with a healthy pool, an exhausted pool and a lost server."""

import asyncio
import json
import threading
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from pymongo import MongoClient
from pymongo.uri_parser import parse_uri

from pool_telemetry import (
    AsyncMongoDBConnectionPool,
    HealthLimits,
    MongoDBConnectionPool,
    PoolTelemetry,
)
from pool_telemetry.demo.embedded import EmbeddedServer
from pool_telemetry.fastapi import create_router, pool_lifespan
from tests.proxy import Proxy
from tests.support import prometheus_families, wait_for
from tests.web import Web, serving

SECRET = "s3cret-w0rd"
PATHS = ("/health", "/health/live", "/health/ready", "/metrics", "/metrics/mongodb")


def an_app(**kwargs: Any) -> FastAPI:
    app = FastAPI()
    app.include_router(create_router(registry=CollectorRegistry(), **kwargs))
    return app


def test_a_process_without_a_pool_is_alive_and_not_ready() -> None:
    with serving(an_app()) as web:
        assert (web.get("/health/live").status, web.get("/health/live").json()) == (
            200,
            {"status": "alive"},
        )
        ready = web.get("/health/ready")
        assert ready.status == 503
        answer = ready.json()
        assert (answer["status"], answer["worker"]) == ("unhealthy", None)
        assert answer["reasons"] == ["the pool is not initialized"]
        health = web.get("/health")
        assert (health.status, health.json()["status"]) == (200, "unhealthy")
        assert health.json()["mongodb"]["status"] == "not_initialized"
        advice = web.get("/metrics/mongodb").json()["recommendations"]
        assert (advice["check_connection"], advice["increase_pool"]) == (True, False)
        assert web.get("/metrics").status == 200


def test_a_client_for_each_request_is_found_although_all_are_closed(
    server_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pool_telemetry.endpoints.active", list)  # other tests' clients may be open
    for _ in range(30):
        listeners = PoolTelemetry("each").listeners
        with MongoClient[dict[str, Any]](server_uri, event_listeners=listeners) as client:
            client.admin.command("ping")
    with serving(an_app()) as web:
        (finding,) = web.get("/pool/diagnosis").json()["findings"]
    assert finding["id"] == "client_per_request.many_made"
    assert "made 30 clients named 'each' in 60 s; open now: 0" in finding["because"]


def test_a_healthy_pool_is_ready_and_reports_its_numbers(server_uri: str) -> None:
    MongoDBConnectionPool.initialize(server_uri, maxPoolSize=5)
    with serving(an_app()) as web:
        health = web.get("/health").json()
        assert (health["status"], health["reasons"]) == ("healthy", [])
        assert health["mongodb"].keys() == MongoDBConnectionPool.get_pool_stats().keys()
        assert web.get("/health/ready").status == 200
        answer = web.get("/metrics/mongodb").json()
        pool = answer["connection_pool"]
        assert (pool["status"], pool["max_pool_size"], pool["min_pool_size"]) == ("connected", 5, 5)
        assert (pool["waiting"], pool["exhausted"]) == (0, False)
        assert pool["checkouts"]["ok"] >= 1
        assert answer["recommendations"] == {
            "increase_pool": False,
            "check_connection": False,
            "reasons": [],
        }


def test_metrics_come_in_the_requested_format_without_a_redirect(server_uri: str) -> None:
    MongoDBConnectionPool.initialize(server_uri)
    with serving(an_app()) as web:
        plain = web.get("/metrics")
        assert plain.status == 200
        assert plain.content_type.startswith("text/plain; version=")
        assert "mongodb_client_pool_ready{" in plain.text
        asked = web.get("/metrics", accept="application/openmetrics-text; version=1.0.0")
        assert asked.content_type.startswith("application/openmetrics-text")
        names = {family.name for family in prometheus_families(asked.text)}
        assert "db_client_connection_wait_time_seconds" in names


def test_health_and_metrics_answer_while_all_connections_are_in_use(server_uri: str) -> None:
    """All connections are in use by commands without an answer, and callers wait for one."""
    app = an_app()
    strict = create_router(registry=CollectorRegistry(), limits=HealthLimits(stalled_seconds=0.5))
    app.include_router(strict, prefix="/strict")

    @app.get("/slow")
    def slow_request() -> str:
        MongoDBConnectionPool.get_client()["t"]["t"].find_one()
        return "done"

    def pool() -> Any:
        return MongoDBConnectionPool.get_pool_stats()["pool"]

    with Proxy(parse_uri(server_uri)["nodelist"][0][1]) as proxy, serving(app) as web:
        MongoDBConnectionPool.initialize(
            proxy.uri, maxPoolSize=2, minPoolSize=2, waitQueueTimeoutMS=120_000
        )
        wait_for(lambda: pool()["idle"] == 2)
        threads = [threading.Thread(target=web.get, args=("/slow",)) for _ in range(6)]
        proxy.freeze()
        for thread in threads:
            thread.start()
        wait_for(lambda: pool()["waiting"] == 4)
        busy = web.get("/health/ready")
        assert (busy.status, busy.json()["status"]) == (200, "degraded")
        assert "2 of 2 in use, 4 waiting" in busy.json()["reasons"][0]
        wait_for(lambda: web.get("/strict/health/ready").status == 503, "a stalled pool")
        assert "no connection was returned" in web.get("/strict/health").json()["reasons"][0]
        assert web.get("/health/live").status == 200
        advice = web.get("/metrics/mongodb").json()["recommendations"]
        assert advice["increase_pool"]
        assert "Exhausted for " in advice["reasons"][0]
        assert "mongodb_client_pool_exhausted{" in web.get("/metrics").text
        proxy.thaw()
        for thread in threads:
            thread.join()
        MongoDBConnectionPool.close()


def test_unreachable_server_is_reported_without_secrets(
    own_server: EmbeddedServer,
) -> None:
    uri = own_server.uri.replace("://", f"://ann:{SECRET}@")
    admin = MongoDBConnectionPool.initialize(own_server.uri)
    admin.admin.command("createUser", "ann", pwd=SECRET, roles=["root"])
    client = MongoDBConnectionPool.initialize(uri, heartbeatFrequencyMS=500)
    client["shop"]["orders"].insert_one({"card": SECRET})
    client["shop"]["orders"].find_one({"card": SECRET})
    with serving(an_app()) as web:
        assert_no_secret(web)
        own_server.stop(kill=True)
        wait_for(lambda: web.get("/health/ready").status == 503)
        health = web.get("/health").json()
        assert health["mongodb"]["status"] == "disconnected"
        assert "no server can be reached" in health["reasons"][0]
        assert "Errno" not in json.dumps(health)
        assert web.get("/metrics/mongodb").json()["recommendations"]["check_connection"]
        assert_no_secret(web)


def assert_no_secret(web: Web) -> None:
    for path in PATHS:
        for accept in ("*/*", "application/openmetrics-text"):
            assert SECRET not in web.get(path, accept=accept).text, path


def test_lifespan_opens_and_closes_the_pool(server_uri: str) -> None:
    app = FastAPI(lifespan=pool_lifespan(server_uri, maxPoolSize=3))
    app.include_router(create_router(MongoDBConnectionPool, registry=CollectorRegistry()))
    with serving(app) as web:
        assert web.get("/health").json()["mongodb"]["pool_config"]["maxPoolSize"] == 3
    assert MongoDBConnectionPool.get_pool_stats()["status"] == "not_initialized"


def test_the_asynchronous_pool_is_the_default_when_it_is_initialized(server_uri: str) -> None:
    app = FastAPI(lifespan=pool_lifespan(server_uri, pool=AsyncMongoDBConnectionPool))
    app.include_router(create_router(registry=CollectorRegistry()))

    @app.get("/find")
    async def find() -> str:
        await AsyncMongoDBConnectionPool.get_client()["t"]["t"].find_one()
        return "found"

    with serving(app) as web:
        assert web.get("/find").status == 200
        health = web.get("/health").json()
        assert health["status"] == "healthy"
        assert health["mongodb"]["operations"]["find"]["count"] == 1
    assert AsyncMongoDBConnectionPool.get_pool_stats()["status"] == "not_initialized"


def test_an_unreachable_address_stops_the_application_at_its_start() -> None:
    lifespan = pool_lifespan("mongodb://127.0.0.1:1/", serverSelectionTimeoutMS=200)

    async def start() -> None:
        async with lifespan(FastAPI()):
            pytest.fail("it started")

    with pytest.raises(Exception, match=r"127\.0\.0\.1:1"):
        asyncio.run(start())
