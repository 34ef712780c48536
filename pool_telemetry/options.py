"""What can be set: the telemetry's own options, the pool's defaults, and which of them wins.

Precedence for the pool: the guide's nine defaults < options in the URI < keyword arguments.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_plus

from pool_telemetry.errors import PoolConfigurationError

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
"""The guide's nine: what MongoClient gets unless the URI or the caller says otherwise."""

DEFAULT_URI: Final = "mongodb://localhost:27017/"

# Hosts, a database, options: an "@" may only stand in an option's value. What is not of this form
# has credentials before it, perhaps with special characters that are not escaped.
_HOST: Final = r"([^\s:@/?,\[\]]+|\[[^\]@/?]*\])(:\d+)?"
_WITHOUT_CREDENTIALS: Final = re.compile(rf"{_HOST}(,{_HOST})*(/[^@?]*)?(\?([^@=]+=.*)?)?")

_SECRET_OPTIONS: Final = frozenset(
    {
        "authmechanismproperties",  # may carry AWS_SESSION_TOKEN
        "tlscertificatekeyfilepassword",
        "ssl_pem_passphrase",
        "proxyusername",
        "proxypassword",
        "username",
        "password",
    }
)


_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}


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
            raise PoolConfigurationError(f"{variable} is {text!r}: use {expected}") from None

    return field(default_factory=read)


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryOptions:
    """The telemetry's own options. Each is also read from `POOL_TELEMETRY_<NAME>` when not given.

    Attributes:
        name: The pool's name in metrics, `NAME@host:port`; empty for `host:port` alone.
        operations: Whether commands are timed. If not, no CommandListener is registered.
        max_operation_series: Series of commands kept per client, 1 or more; others fold into one.
        drain_seconds: How long a replaced client may finish its work, 0.0 or more.

    Raises:
        PoolConfigurationError: A value is out of range.
    """

    name: str = _from_env("NAME", "", str, "a text")
    operations: bool = _from_env(
        "OPERATIONS", True, lambda text: _FLAGS[text.strip().lower()], "true or false"
    )
    max_operation_series: int = _from_env("MAX_OPERATION_SERIES", 500, int, "a whole number")
    drain_seconds: float = _from_env("DRAIN_SECONDS", 30.0, float, "a number of seconds")

    def __post_init__(self) -> None:
        name, series, drain = self.name, self.max_operation_series, self.drain_seconds
        if not isinstance(name, str) or not name.isprintable() or "@" in name:
            raise PoolConfigurationError(f"name is {name!r}: use a printable text without '@'")
        if not isinstance(self.operations, bool):
            raise PoolConfigurationError(f"operations is {self.operations!r}: use True or False")
        if not isinstance(series, int) or isinstance(series, bool) or series < 1:
            raise PoolConfigurationError(
                f"max_operation_series is {series!r}: use a whole number, 1 or more"
            )
        if not isinstance(drain, int | float) or not 0.0 <= drain < float("inf"):
            raise PoolConfigurationError(
                f"drain_seconds is {drain!r}: use a number of seconds, 0.0 or more"
            )


def client_kwargs(uri: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments for MongoClient: the caller's, and the defaults not set.

    The default minPoolSize gives way to a smaller maxPoolSize.

    Raises:
        PoolConfigurationError: minPoolSize is above maxPoolSize, and the caller set it so.
    """
    chosen = {**_uri_options(uri), **{key.lower(): value for key, value in kwargs.items()}}
    defaults = {key: value for key, value in DEFAULTS.items() if key.lower() not in chosen}
    max_size = _as_int(chosen.get("maxpoolsize", DEFAULTS["maxPoolSize"]))
    min_size = _as_int(chosen.get("minpoolsize"))
    # 0 and None are unlimited; what is no number is PyMongo's to refuse.
    if max_size and min_size is not None and min_size > max_size:
        raise PoolConfigurationError(
            f"maxPoolSize {max_size} is below minPoolSize {min_size}: "
            "raise maxPoolSize or lower minPoolSize"
        )
    if max_size is not None and "minPoolSize" in defaults:
        # To 0 also under 0, "unlimited": older PyMongo refuses any minimum above it.
        defaults["minPoolSize"] = min(defaults["minPoolSize"], max_size)
    return {**defaults, **kwargs}


def _as_int(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _uri_options(uri: str) -> dict[str, str]:
    """Return the options in a URI by lower-case name; PyMongo takes names in any case."""
    found: dict[str, list[str]] = {}
    query = uri.partition("?")[2]
    for key, value in parse_qsl(query, separator="&" if "&" in query else ";"):
        found.setdefault(key.lower(), []).append(value)
    return {key: ",".join(values) for key, values in found.items()}  # tags may come repeatedly


def identity(uri: str, kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return what two initializations must share to have the same effective settings."""
    options = {**_uri_options(uri), **{key.lower(): value for key, value in kwargs.items()}}
    return uri.partition("?")[0].rstrip("/"), {k: _plain(v) for k, v in options.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(int(value) if value == value // 1 else value)
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return ",".join(value)
    return value


def mask_uri(uri: str) -> str:
    """Return the URI without user name, password, and the options that carry secrets."""
    scheme, separator, rest = uri.partition("://")
    if not separator:  # MongoClient also takes host:port alone
        return uri if _WITHOUT_CREDENTIALS.fullmatch(uri) else "***"
    if not _WITHOUT_CREDENTIALS.fullmatch(rest):
        tail = rest.partition("@")[2]
        if not _WITHOUT_CREDENTIALS.fullmatch(tail):
            tail = rest.rpartition("@")[2] if "@" in rest else ""
        rest = f"***:***@{tail}"
    address, question, query = rest.partition("?")
    separator = "&" if "&" in query else ";"
    parts = query.split(separator)
    for i, part in enumerate(parts):
        key, equals, _ = part.partition("=")
        if unquote_plus(key).lower() in _SECRET_OPTIONS:
            parts[i] = f"{key}{equals}***"
    return f"{scheme}://{address}{question}{separator.join(parts)}"


def secrets_of(uri: str, kwargs: Mapping[str, Any]) -> list[str]:
    """Return the texts that must never be shown, longest first, as given and percent-decoded."""
    found = [str(v) for k, v in kwargs.items() if k.lower() in _SECRET_OPTIONS and v]
    found += [v for k, v in _uri_options(uri).items() if k in _SECRET_OPTIONS]
    authority = uri.partition("://")[2]
    if "@" in authority:
        userinfo = authority.rpartition("@")[0]
        found += [userinfo, *re.split("[:@/?#]", userinfo)]
    every = {form for text in found for form in (text, unquote_plus(text)) if len(form) > 1}
    return sorted(every, key=len, reverse=True)


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
