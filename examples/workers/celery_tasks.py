"""Tasks of Celery: each worker process makes the client when it first needs it."""

from celery import Celery

from pool_telemetry import MongoDBConnectionPool

app = Celery("shop")  # the broker is in CELERY_BROKER_URL


@app.task  # type: ignore[untyped-decorator]  # Celery has no types
def order() -> str:
    """Find an order."""
    client = MongoDBConnectionPool.initialize(minPoolSize=0)  # a repeat changes nothing
    return str(client["shop"]["orders"].find_one())
