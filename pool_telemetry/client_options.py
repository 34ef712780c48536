"""MongoClient's options: this library's defaults, the ranges, and which value takes precedence.

Keyword arguments override options in the URI; both override the defaults here.
"""

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from pool_telemetry.errors import PoolConfigurationError
from pool_telemetry.ranges import OneOf, Range, shown_if_number
from pool_telemetry.uri import uri_options

DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "maxPoolSize": 100,
        "minPoolSize": 10,
        "maxIdleTimeMS": 30_000,
        "waitQueueTimeoutMS": 5_000,
        "serverSelectionTimeoutMS": 5_000,
        "connectTimeoutMS": 10_000,
        "socketTimeoutMS": 30_000,
        "retryWrites": True,
        "retryReads": True,
    }
)
"""Options that MongoClient gets unless the URI or a keyword argument sets them.

AsyncMongoClient gets `ASYNC_DEFAULTS`, which differ on Python 3.11.
"""

WAIT_LIMITS_BREAK_ASYNC_POOLS: Final = sys.version_info < (3, 12)
"""Whether a limit of the wait for a connection can break an AsyncMongoClient for good.

If there is a limit, PyMongo waits by `asyncio.wait_for(condition.wait(), seconds)`. Before Python
3.12 a task that is cancelled twice in this wait can lose the pool's lock (python/cpython#86766).
Server selection always waits like this; there cancelled callers can lose the topology's lock.
"""

ASYNC_DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        name: value
        for name, value in DEFAULTS.items()
        if name != "waitQueueTimeoutMS" or not WAIT_LIMITS_BREAK_ASYNC_POOLS
    }
)
"""The defaults of AsyncMongoClient: `DEFAULTS`, on Python 3.11 without waitQueueTimeoutMS."""

DEFAULT_URI: Final = "mongodb://localhost:27017/"

# PyMongo refuses keyword arguments out of range, but its error names neither value nor range. For a
# URI it only warns, and uses its own default.
_BELOW: Final = "below 1,000,000,000"
_BILLION: Final = 1e9
_MILLION: Final = 1_000_001  # exclusive
_NO_LIMIT: Final = Range(
    f"milliseconds, 0 or more and {_BELOW}; 0 or None for no limit", 0, _BILLION, none=True
)
_LIMIT: Final = Range(
    f"milliseconds above 0 and {_BELOW}, or None for no limit", 5e-324, _BILLION, none=True
)
_MILLISECONDS: Final = Range(f"milliseconds, 0 or more and {_BELOW}", 0, _BILLION)
_FLAG: Final = OneOf("true or false", (True, False, "true", "false"))
_ALLOWED: Final[Mapping[str, Range | OneOf]] = {
    "maxPoolSize": Range(
        "a whole number, 0 to 1,000,000; 0 or None for no limit", 0, _MILLION, whole=True, none=True
    ),
    "minPoolSize": Range("a whole number, 0 to 1,000,000", 0, _MILLION, whole=True),
    "maxConnecting": Range("a whole number, 1 to 1,000,000", 1, _MILLION, whole=True),
    "maxIdleTimeMS": _LIMIT,
    "waitQueueTimeoutMS": _LIMIT,
    "serverSelectionTimeoutMS": _MILLISECONDS,
    "connectTimeoutMS": _NO_LIMIT,
    "socketTimeoutMS": _NO_LIMIT,
    "timeoutMS": _NO_LIMIT,
    "heartbeatFrequencyMS": Range(f"milliseconds, 500 or more and {_BELOW}", 500, _BILLION),
    "localThresholdMS": _MILLISECONDS,
    "retryWrites": _FLAG,
    "retryReads": _FLAG,
    "serverMonitoringMode": OneOf("'auto', 'poll' or 'stream'", ("auto", "poll", "stream")),
}


def client_kwargs(
    uri: str, kwargs: Mapping[str, Any], defaults: Mapping[str, Any] = DEFAULTS
) -> dict[str, Any]:
    """Return the keyword arguments for MongoClient: the caller's and our defaults.

    A default is used if neither the caller nor the URI sets the option.

    The default of minPoolSize is lowered to a smaller maxPoolSize.

    Raises:
        PoolConfigurationError: A value is out of range, or the caller set minPoolSize above
            maxPoolSize.
    """
    chosen = {**uri_options(uri), **{key.lower(): value for key, value in kwargs.items()}}
    for name, allowed in _ALLOWED.items():
        if name.lower() in chosen and not allowed.has(value := chosen[name.lower()]):
            raise PoolConfigurationError(f"{name} is {shown_if_number(value)}: use {allowed.words}")
    unset = {key: value for key, value in defaults.items() if key.lower() not in chosen}
    max_size = _as_int(chosen.get("maxpoolsize", defaults["maxPoolSize"]))
    min_size = _as_int(chosen.get("minpoolsize"))
    # 0 and None are unlimited.
    if max_size and min_size is not None and min_size > max_size:
        raise PoolConfigurationError(
            f"maxPoolSize {max_size} is below minPoolSize {min_size}: "
            "raise maxPoolSize or lower minPoolSize"
        )
    if max_size is not None and "minPoolSize" in unset:
        # A maximum of 0 is unlimited, but older PyMongo refuses any minimum above it, so use 0.
        unset["minPoolSize"] = min(unset["minPoolSize"], max_size)
    return {**unset, **kwargs}


def wait_limits(uri: str, kwargs: Mapping[str, Any]) -> list[str]:
    """Return the limits of the wait for a connection, each with its source, for a log line."""
    given = {key.lower(): value for key, value in kwargs.items()}
    in_uri = uri_options(uri)
    found = []
    for name in ("waitQueueTimeoutMS", "timeoutMS"):
        source = "keyword argument or preset" if name.lower() in given else "connection string"
        value = given.get(name.lower(), in_uri.get(name.lower()))
        if value is not None and float(value) > 0:  # timeoutMS=0 is no limit
            found.append(f"{name}={float(value):g} ({source})")
    return found


def _as_int(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def pool_config(options: Any) -> dict[str, Any]:
    """Return every effective pool setting of `client.options`, under PyMongo's names.

    Times are milliseconds, as PyMongo takes them. None is unlimited, except that an unlimited
    maxPoolSize is 0, so that it can be compared with a number.
    """
    pool = options.pool_options
    max_size = pool.max_pool_size
    return {
        "maxPoolSize": int(max_size) if max_size and max_size != float("inf") else 0,
        "minPoolSize": pool.min_pool_size,
        "maxIdleTimeMS": _ms(pool.max_idle_time_seconds),
        "waitQueueTimeoutMS": _ms(pool.wait_queue_timeout),
        "maxConnecting": pool.max_connecting,
        "serverSelectionTimeoutMS": _ms(options.server_selection_timeout),
        "connectTimeoutMS": _ms(pool.connect_timeout),
        "socketTimeoutMS": _ms(pool.socket_timeout),
        "timeoutMS": _ms(options.timeout),
        "heartbeatFrequencyMS": _ms(options.heartbeat_frequency),
        "serverMonitoringMode": options.server_monitoring_mode,
        "localThresholdMS": options.local_threshold_ms,
        "retryWrites": options.retry_writes,
        "retryReads": options.retry_reads,
        "loadBalanced": bool(options.load_balanced),
        "directConnection": bool(options.direct_connection),
        "replicaSet": options.replica_set_name,
        "appName": pool.appname,
    }


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
