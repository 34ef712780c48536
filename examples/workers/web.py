"""A FastAPI service with several workers: the client is made in each worker, by the lifespan."""

from fastapi import FastAPI

from pool_telemetry import MongoDBConnectionPool
from pool_telemetry.fastapi import create_router, pool_lifespan

app = FastAPI(lifespan=pool_lifespan(maxPoolSize=50))  # the address is in MONGODB_URI
app.include_router(create_router())


@app.get("/order")
def order() -> str:
    """Find an order."""
    return str(MongoDBConnectionPool.get_client()["shop"]["orders"].find_one())
