"""The task of Celery's workers."""

import os
from typing import Any

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

from pool_telemetry import MongoDBConnectionPool
from tests.servers import work


def celery_app(url: str) -> Any:
    """Return Celery's application whose queue and results are in a Redis."""
    app = Celery("servers", broker=url, backend=url)
    app.conf.broker_connection_retry_on_startup = True
    return app


app = celery_app(os.environ["SERVERS_QUEUE"]) if "SERVERS_QUEUE" in os.environ else None


def call(name: str, **numbers: float) -> int:
    """Call a function of `work`, as a task of Celery."""
    result: int = getattr(work, name)(**numbers)
    return result


def begin(**_: Any) -> None:
    """Initialize the pool in a process of Celery's."""
    work.initialize()


def end(**_: Any) -> None:
    """Close the pool at the end of a process of Celery's."""
    MongoDBConnectionPool.close()


if app is not None:
    app.task(name="call")(call)

    worker_process_init.connect(begin)
    worker_process_shutdown.connect(end)
