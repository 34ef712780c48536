"""The application of the ASGI servers: FastAPI, with our routes and our lifespan."""

import os

from fastapi import FastAPI

from pool_telemetry.fastapi import create_router, pool_lifespan
from tests.servers import work

app = FastAPI(lifespan=pool_lifespan(os.environ["SERVER_URI"], **work.OPTIONS))
app.include_router(create_router(holders=True))


@app.get("/pid")
async def pid(pause: float = 0.0) -> int:
    """Return the worker's process id. The pause blocks the event loop, as it is to."""
    return work.pid(pause)


@app.get("/find")
def find() -> int:
    """Find once."""
    return work.find()


@app.get("/hold")
def hold(seconds: float) -> int:
    """Exhaust this worker's pool for a time, or until it is released."""
    return work.hold(seconds)
