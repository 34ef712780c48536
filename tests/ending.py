"""Programs that never flush: an ASGI application, a Celery application, multiprocessing's workers.

`python -m tests.ending METHOD URI` starts a worker of multiprocessing by fork, forkserver or spawn.
ASGI servers start `tests.ending:closing` or `:including`, and Celery starts `tests.ending`. Each
process finds `FINDS` times. OTLP has these finds at its end, or never.
"""

import multiprocessing
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pymongo import MongoClient

from pool_telemetry import AsyncMongoDBConnectionPool, PoolTelemetry, otel
from pool_telemetry.fastapi import create_router

FINDS = 30


def find() -> None:
    telemetry = PoolTelemetry("ending")
    client: MongoClient[Any] = MongoClient(
        os.environ["MONGODB_URI"], event_listeners=telemetry.listeners
    )
    for _ in range(FINDS):
        client["otlp"]["t"].find_one()


@asynccontextmanager
async def closes_the_pool(app: FastAPI) -> AsyncIterator[None]:
    client = await AsyncMongoDBConnectionPool.initialize()
    for _ in range(FINDS):
        await client["otlp"]["t"].find_one()
    yield
    await AsyncMongoDBConnectionPool.close()


@asynccontextmanager
async def closes_nothing(app: FastAPI) -> AsyncIterator[None]:
    find()
    yield


closing = FastAPI(lifespan=closes_the_pool)
including = FastAPI(lifespan=closes_nothing)
including.include_router(create_router())

if __name__ == "__main__":
    method, os.environ["MONGODB_URI"] = sys.argv[1:]
    if method == "fork":
        otel.configure_otlp()
    worker = multiprocessing.get_context(method).Process(target=find)  # type: ignore[attr-defined]
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    os._exit(0)  # what this process would send itself is not asked
elif os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
    otel.configure_otlp()
    if "celery" in sys.modules:
        from celery import Celery

        app = Celery(broker="filesystem://")
        app.conf.broker_transport_options = {
            **{f"data_folder_{way}": os.environ["ENDING_DIR"] for way in ("in", "out")},
            "control_folder": str(Path(os.environ["ENDING_DIR"]) / "control"),
        }
        app.task(name="find")(find)
