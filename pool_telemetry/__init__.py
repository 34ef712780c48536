"""Tells the truth about a PyMongo connection pool while it runs."""

from pool_telemetry import presets
from pool_telemetry.async_pool import AsyncMongoDBConnectionPool
from pool_telemetry.errors import (
    PoolConfigurationError,
    PoolNotInitializedError,
    PoolTelemetryError,
)
from pool_telemetry.health import Health, HealthLimits, assess
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.pool import MongoDBConnectionPool
from pool_telemetry.report import PoolReport
from pool_telemetry.stats import ClientStats, PoolStats
from pool_telemetry.telemetry import PoolTelemetry

__version__ = "0.1.0"

__all__ = [
    "AsyncMongoDBConnectionPool",
    "ClientStats",
    "Health",
    "HealthLimits",
    "MongoDBConnectionPool",
    "PoolConfigurationError",
    "PoolNotInitializedError",
    "PoolReport",
    "PoolStats",
    "PoolTelemetry",
    "PoolTelemetryError",
    "TelemetryOptions",
    "assess",
    "presets",
]
