"""Jobs of RQ: each runs in a process of its own, which has a client for this one job."""

from pool_telemetry import MongoDBConnectionPool


def order() -> str:
    """Find an order."""
    client = MongoDBConnectionPool.initialize(minPoolSize=0)
    try:
        return str(client["shop"]["orders"].find_one())
    finally:
        # RQ ends the process by os._exit(), so this is the last time to keep its counts.
        MongoDBConnectionPool.close()
