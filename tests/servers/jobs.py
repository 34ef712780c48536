"""The job of RQ's workers."""

from pool_telemetry import MongoDBConnectionPool
from tests.servers import work


def job(name: str, **numbers: float) -> int:
    """Call a function of `work` in a process that ends with the job."""
    work.initialize()
    try:
        result: int = getattr(work, name)(**numbers)
        return result
    finally:
        MongoDBConnectionPool.close()
