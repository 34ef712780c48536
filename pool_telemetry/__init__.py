"""Live numbers of a PyMongo connection pool: who waits, who holds, how long, and why it ran out.

Begin with a pool of your own:

    from pool_telemetry import MongoDBConnectionPool

    client = MongoDBConnectionPool.initialize("mongodb://localhost:27017/", maxPoolSize=50)
    stats = MongoDBConnectionPool.get_pool_stats()
    print(stats["pool"]["in_use"], stats["pool"]["waiting"], stats["wait_time"]["p99"])
    MongoDBConnectionPool.close()

or with a client that exists:

    from pymongo import MongoClient
    from pool_telemetry import PoolTelemetry, assess, diagnose, prometheus

    telemetry = PoolTelemetry("chat")
    client = MongoClient("mongodb://localhost:27017/", event_listeners=telemetry.listeners)
    prometheus.register()  # once per process
    print(assess(telemetry.stats()).status)
    print(diagnose(telemetry).verdict)

Where to read on:

    help(MongoDBConnectionPool)     AsyncMongoDBConnectionPool for an event loop
    help(TelemetryOptions)          the telemetry's own options, with their defaults
    help(pool_telemetry.report)     what get_pool_stats() returns
    help(pool_telemetry.fastapi)    routes and a lifespan (extra: fastapi)
    help(pool_telemetry.otel)       metrics and traces by OpenTelemetry
    help(pool_telemetry.sessions)   sessions of Strands agents (extra: strands)
    help("pool_telemetry.promises") what the numbers promise, with the test for each promise
"""

from typing import TYPE_CHECKING, Any

from pool_telemetry import endpoints as endpoints  # answers the other processes of a service
from pool_telemetry import presets
from pool_telemetry.async_pool import AsyncMongoDBConnectionPool
from pool_telemetry.diagnosis import Diagnosis, Finding, diagnose
from pool_telemetry.errors import (
    PoolConfigurationError,
    PoolNotInitializedError,
    PoolTelemetryError,
)
from pool_telemetry.health import Health, HealthLimits, assess
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.owners import owner
from pool_telemetry.pool import MongoDBConnectionPool
from pool_telemetry.report import PoolReport
from pool_telemetry.stats import ClientStats, Episode, Occupancy, PoolStats
from pool_telemetry.telemetry import PoolTelemetry
from pool_telemetry.version import __version__ as __version__

if TYPE_CHECKING:
    from pool_telemetry.sessions import (
        AsyncMongoDBSessionManager,
        MongoDBSessionManager,
        MongoDBSessionManagerFactory,
        MongoDBStorage,
        close_global_factory,
        get_global_factory,
        initialize_global_factory,
    )

__all__ = [
    "AsyncMongoDBConnectionPool",
    "AsyncMongoDBSessionManager",
    "ClientStats",
    "Diagnosis",
    "Episode",
    "Finding",
    "Health",
    "HealthLimits",
    "MongoDBConnectionPool",
    "MongoDBSessionManager",
    "MongoDBSessionManagerFactory",
    "MongoDBStorage",
    "Occupancy",
    "PoolConfigurationError",
    "PoolNotInitializedError",
    "PoolReport",
    "PoolStats",
    "PoolTelemetry",
    "PoolTelemetryError",
    "TelemetryOptions",
    "assess",
    "close_global_factory",
    "diagnose",
    "get_global_factory",
    "initialize_global_factory",
    "owner",
    "presets",
]

# Those of sessions need the extra `strands`, and are imported when they are first asked for.
_OF_SESSIONS = frozenset(name for name in __all__ if name not in globals())


def __getattr__(name: str) -> Any:
    if name not in _OF_SESSIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pool_telemetry import sessions

    return getattr(sessions, name)
