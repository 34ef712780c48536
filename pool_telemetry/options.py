"""What can be set: the telemetry's own options, the pool's defaults, and which of them wins.

Precedence for the pool: the guide's nine defaults < options in the URI < keyword arguments.
"""

import os
import reprlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from pool_telemetry.errors import PoolConfigurationError
from pool_telemetry.stats import Episode
from pool_telemetry.uri import mask_uri, uri_options

OnEpisode = Callable[[Episode], object]

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
"""The guide's nine: what MongoClient gets unless the URI or the caller says otherwise.

AsyncMongoClient gets `ASYNC_DEFAULTS`, which differ on Python 3.11.
"""

WAIT_LIMITS_BREAK_ASYNC_POOLS: Final = sys.version_info < (3, 12)
"""Whether a limit of the wait for a connection can break an AsyncMongoClient for good.

PyMongo waits by `asyncio.wait_for(condition.wait(), seconds)` if there is a limit. Before Python
3.12 a task that is cancelled twice in it can lose the pool's lock (python/cpython#86766). Server
selection always waits so: there, two callers that hang up can lose the topology's lock.
"""

ASYNC_DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        name: value
        for name, value in DEFAULTS.items()
        if name != "waitQueueTimeoutMS" or not WAIT_LIMITS_BREAK_ASYNC_POOLS
    }
)
"""The defaults of AsyncMongoClient: on Python 3.11 all but waitQueueTimeoutMS, else the same."""

DEFAULT_URI: Final = "mongodb://localhost:27017/"

_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}
_FLAGS_OR_AUTO: Final = {**_FLAGS, "auto": None}


@dataclass(frozen=True, slots=True)
class Range:
    """What a number may be: from `low` to below `high`, in words; None too, where that is one."""

    words: str
    low: float
    high: float = sys.float_info.max
    whole: bool = False
    none: bool = False

    def has(self, value: Any) -> bool:
        """Return whether it is in the range; a text of a number, as in a URI, may be."""
        if value is None:
            return self.none
        if isinstance(value, str):
            try:
                value = int(value) if self.whole else float(value)
            except ValueError:
                return False
        kinds = int if self.whole else int | float
        return (
            isinstance(value, kinds)
            and not isinstance(value, bool)
            and self.low <= value < self.high
        )


@dataclass(frozen=True, slots=True)
class _OneOf:
    """What a choice may be, in words."""

    words: str
    values: tuple[Any, ...]

    def has(self, value: Any) -> bool:
        return any(isinstance(value, type(one)) and value == one for one in self.values)


# PyMongo refuses these as keywords, with neither value nor range; in a URI it only warns, and goes
# on with its own default.
_BELOW: Final = "below 1,000,000,000"
_BILLION: Final = 1e9
_MANY: Final = 1_000_001
_NO_LIMIT: Final = Range(
    f"milliseconds, 0 or more and {_BELOW}; 0 or None for no limit", 0, _BILLION, none=True
)
_LIMIT: Final = Range(
    f"milliseconds above 0 and {_BELOW}, or None for no limit", 5e-324, _BILLION, none=True
)
_MILLISECONDS: Final = Range(f"milliseconds, 0 or more and {_BELOW}", 0, _BILLION)
_FLAG: Final = _OneOf("true or false", (True, False, "true", "false"))
_ALLOWED: Final[Mapping[str, Range | _OneOf]] = {
    "maxPoolSize": Range(
        "a whole number, 0 to 1,000,000; 0 or None for no limit", 0, _MANY, whole=True, none=True
    ),
    "minPoolSize": Range("a whole number, 0 to 1,000,000", 0, _MANY, whole=True),
    "maxConnecting": Range("a whole number, 1 to 1,000,000", 1, _MANY, whole=True),
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
    "serverMonitoringMode": _OneOf("'auto', 'poll' or 'stream'", ("auto", "poll", "stream")),
}
_MAX_NAME: Final = 200
_MAX_SERIES: Final = 100_000
_SERIES: Final = Range(f"a whole number, 1 to {_MAX_SERIES:,}", 1, _MAX_SERIES + 1, whole=True)
LIMIT_SECONDS: Final = Range("a number of seconds, above 0.0 and finite", 5e-324)
_SECONDS: Final = Range("a number of seconds, 0.0 or more and below 86,400 (a day)", 0.0, 86_400.0)


def shown(value: Any) -> str:
    """Return a value for an error's text: of bearable length, without a connection's secrets."""
    if isinstance(value, str):
        return reprlib.repr(mask_uri(value) if "://" in value or "@" in value else value)
    if not isinstance(value, int | float | None):
        return f"of type {type(value).__name__}"  # what is in it is nobody's business
    try:
        return reprlib.repr(value)
    except ValueError:  # Python has a limit for the digits of an integer
        return "too long to show"


def check_number(name: str, value: Any, allowed: Range) -> None:
    """Refuse what is no number in a range; a text of one is none.

    Raises:
        PoolConfigurationError: With the name, the value and the range.
    """
    if isinstance(value, str) or not allowed.has(value):
        raise PoolConfigurationError(f"{name} is {shown(value)}: use {allowed.words}")


def _from_env(name: str, default: Any, parse: Callable[[str], Any], expected: str) -> Any:
    """Return a field whose default is read from the environment when the options are made."""

    def read() -> Any:
        variable = f"POOL_TELEMETRY_{name}"
        text = os.environ.get(variable)
        if text is None:
            return default
        try:
            return parse(text)
        except (KeyError, ValueError):
            raise PoolConfigurationError(f"{variable} is {shown(text)}: use {expected}") from None

    return field(default_factory=read)


def _flag_from_env(name: str, *, default: bool) -> Any:
    return _from_env(name, default, lambda text: _FLAGS[text.strip().lower()], "true or false")


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryOptions:
    """The telemetry's own options.

    Each but the functions is also read from `POOL_TELEMETRY_<NAME>` when not given.

    Attributes:
        name: The pool's name in metrics, `NAME@host:port`; empty for `host:port` alone.
        operations: Whether commands are timed. If not, no CommandListener is registered, and
            commands get no spans.
        max_operation_series: Series of commands kept per client, 1 to 100,000; others fold into
            one.
        drain_seconds: How long a replaced client may finish its work, 0.0 or more and below a day.
        command_spans: Whether commands get spans while tracing is on. None (`auto`): unless
            opentelemetry-instrumentation-pymongo or PyMongo itself makes them.
        query_text: Whether they have `db.query.text`: field names as they are, each value a `?`.
        slow_checkout_seconds: A checkout that waits so long gets a span, 0.0 or more.
        watch: Whether a thread (one for the process) looks twice a second: it logs when a pool is
            exhausted and has recovered, calls back, and keeps the history for a diagnosis.
        long_checkout_seconds: A connection that is out for so long is logged once, with its
            holder's stack, and counted; 0.0 is never.
        notice_seconds: One pool's exhaustions are told at most once in so many seconds; what was
            not told is then told as a number.
        on_exhausted: Called with an `Episode` when a pool is exhausted, on a thread of its own; an
            `async` function on the event loop on which the client was made, else on a new one.
        on_recovered: The same when it has not been exhausted for a second and connections come
            back again, after each call of `on_exhausted`.
        owner_metrics: Whether metrics tell what happened on behalf of each `owner()`, 100 at most.

    Raises:
        PoolConfigurationError: A value is out of range.
    """

    name: str = _from_env("NAME", "", str, "a text")
    operations: bool = _flag_from_env("OPERATIONS", default=True)
    max_operation_series: int = _from_env("MAX_OPERATION_SERIES", 500, int, "a whole number")
    drain_seconds: float = _from_env("DRAIN_SECONDS", 30.0, float, "a number of seconds")
    command_spans: bool | None = _from_env(
        "COMMAND_SPANS",
        None,
        lambda text: _FLAGS_OR_AUTO[text.strip().lower()],
        "true, false or auto",
    )
    query_text: bool = _flag_from_env("QUERY_TEXT", default=False)
    slow_checkout_seconds: float = _from_env(
        "SLOW_CHECKOUT_SECONDS", 0.01, float, "a number of seconds"
    )
    watch: bool = _flag_from_env("WATCH", default=True)
    long_checkout_seconds: float = _from_env(
        "LONG_CHECKOUT_SECONDS", 60.0, float, "a number of seconds"
    )
    notice_seconds: float = _from_env("NOTICE_SECONDS", 60.0, float, "a number of seconds")
    on_exhausted: OnEpisode | None = None
    on_recovered: OnEpisode | None = None
    owner_metrics: bool = _flag_from_env("OWNER_METRICS", default=False)

    @staticmethod
    def of(given: Any) -> "TelemetryOptions":
        """Return what was given where these were asked for.

        Raises:
            PoolConfigurationError: It is something else.
        """
        if not isinstance(given, TelemetryOptions):
            words = "use TelemetryOptions(name=..., ...)"
            raise PoolConfigurationError(f"the telemetry's options are {shown(given)}: {words}")
        return given

    def __post_init__(self) -> None:
        name: Any = self.name  # what a caller without a type checker gave
        fits = isinstance(name, str) and name.isprintable() and len(name) <= _MAX_NAME
        if not fits or "@" in name:
            words = f"a printable text of at most {_MAX_NAME} characters, without '@'"
            raise PoolConfigurationError(f"name is {shown(name)}: use {words}")
        for key in ("operations", "query_text", "watch", "owner_metrics"):
            if not isinstance(value := getattr(self, key), bool):
                raise PoolConfigurationError(f"{key} is {shown(value)}: use True or False")
        wanted: Any = self.command_spans
        if not isinstance(wanted, bool | None):
            raise PoolConfigurationError(
                f"command_spans is {shown(wanted)}: use True, False or None"
            )
        for key, allowed in (
            ("max_operation_series", _SERIES),
            ("drain_seconds", _SECONDS),
            ("slow_checkout_seconds", _SECONDS),
            ("long_checkout_seconds", _SECONDS),
            ("notice_seconds", _SECONDS),
        ):
            check_number(key, getattr(self, key), allowed)
        for key in ("on_exhausted", "on_recovered"):
            callback = getattr(self, key)
            if callback is not None and not callable(callback):
                raise PoolConfigurationError(f"{key} is {shown(callback)}: use a function")


def client_kwargs(
    uri: str, kwargs: Mapping[str, Any], defaults: Mapping[str, Any] = DEFAULTS
) -> dict[str, Any]:
    """Return the keyword arguments for MongoClient: the caller's, and the defaults not set.

    The default minPoolSize gives way to a smaller maxPoolSize.

    Raises:
        PoolConfigurationError: A value is out of range, or minPoolSize is above maxPoolSize and the
            caller set it so.
    """
    chosen = {**uri_options(uri), **{key.lower(): value for key, value in kwargs.items()}}
    for name, allowed in _ALLOWED.items():
        if name.lower() in chosen and not allowed.has(value := chosen[name.lower()]):
            raise PoolConfigurationError(f"{name} is {shown(value)}: use {allowed.words}")
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
        # To 0 also under 0, "unlimited": older PyMongo refuses any minimum above it.
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
        if value is not None and float(value) > 0:  # PyMongo takes timeoutMS=0 for no limit
            found.append(f"{name}={float(value):g} ({source})")
    return found


def _as_int(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def pool_config(options: Any) -> dict[str, Any]:
    """Return every effective pool setting of `client.options`, under PyMongo's names.

    Milliseconds as PyMongo takes them. None: not limited; maxPoolSize alone says 0 for that,
    so that a comparison with a number holds.
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
