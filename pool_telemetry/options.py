"""The telemetry's own options.

MongoClient's options are in `client_options`; `DEFAULTS` is importable from here, too.
"""

import difflib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from pool_telemetry.client_options import DEFAULTS
from pool_telemetry.errors import PoolConfigurationError
from pool_telemetry.ranges import Range, check_number, shown
from pool_telemetry.stats import Episode, printable

__all__ = ["DEFAULTS", "OnEpisode", "TelemetryOptions"]

OnEpisode = Callable[[Episode], object]

PREFIX: Final = "POOL_TELEMETRY_"
_OTHER_VARIABLES: Final = ("DIR", "URL")  # of the workers' directory, and of the command line
_KNOWN: Final = [PREFIX + name for name in _OTHER_VARIABLES]
_SIMILARITY: Final = 0.6
"""How like a known variable another one is, 0.0 to 1.0, to be a misspelling of it.

Kubernetes makes variables for a service of the name pool-telemetry, such as POOL_TELEMETRY_PORT.
"""
_warned: Final = set[str]()
_log: Final = logging.getLogger("pool_telemetry.options")

_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}
_FLAGS_OR_AUTO: Final = {**_FLAGS, "auto": None}
_MAX_NAME: Final = 200
_MAX_SERIES: Final = 100_000
_SERIES: Final = Range(f"a whole number, 1 to {_MAX_SERIES:,}", 1, _MAX_SERIES + 1, whole=True)
_SECONDS: Final = Range("a number of seconds, 0.0 or more and below 86,400 (a day)", 0.0, 86_400.0)


def _from_env(name: str, default: Any, parse: Callable[[str], Any], expected: str) -> Any:
    """Return a field whose default is read from the environment when options are created."""
    variable = PREFIX + name
    _KNOWN.append(variable)

    def read() -> Any:
        text = os.environ.get(variable)
        if text is None:
            return default
        try:
            return parse(text)
        except (KeyError, ValueError):
            raise PoolConfigurationError(f"{variable} is {shown(text)}: use {expected}") from None

    return field(default_factory=read)


def _warn_of_misspelt_variables() -> None:
    """Log once for the process which variables look like one of this package, but are not."""
    for variable in os.environ:
        if variable.upper().startswith(PREFIX) and variable not in (*_KNOWN, *_warned):
            name = variable.upper().removeprefix(PREFIX)
            names = [one.removeprefix(PREFIX) for one in _KNOWN]
            near = difflib.get_close_matches(name, names, 1, _SIMILARITY)
            if near:
                _warned.add(variable)
                words = "%s in the environment is not known and has no effect: did you mean %s?"
                _log.warning(words, printable(variable), PREFIX + near[0])


def _flag_from_env(name: str, *, default: bool) -> Any:
    return _from_env(name, default, lambda text: _FLAGS[text.strip().lower()], "true or false")


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryOptions:
    """The telemetry's own options, all by keyword.

    An option that is not given is read from the environment, as `POOL_TELEMETRY_<NAME>`, except
    the functions. In the environment None is `auto`.

    Attributes:
        name: The pool's name in metrics, logs and spans, `NAME@host:port`. It has at most 200
            characters and no "@". If it is empty, it is the client's appName; without an appName
            the pool is called `host:port`. Default: empty.
        operations: Whether commands are timed. If false, no CommandListener is registered, and
            commands have no spans. Default: true.
        max_operation_series: Series of commands per client, 1 to 100,000; all further series share
            one. Default: 500.
        drain_seconds: Seconds that a replaced client has to finish its work, 0.0 or more and below
            a day. Default: 30.
        command_spans: Whether commands have spans while tracing is on. None (auto): only if neither
            opentelemetry-instrumentation-pymongo nor PyMongo itself makes them. Default: auto.
        query_text: Whether spans of commands have `db.query.text`: field names as they are, each
            value as `?`. Default: false.
        slow_checkout_seconds: Seconds; a checkout that waits this long has a span. 0.0 or more and
            below a day. Default: 0.01.
        watch: Whether a thread (one for the process) checks the pools twice a second. It logs
            exhaustions and recoveries, calls the functions below, and keeps the history for a
            diagnosis. Default: true.
        long_checkout_seconds: Seconds; a connection that is held this long is logged once, with
            its holder's stack, and counted. Below a day; 0.0 is never. Default: 60.
        notice_seconds: Seconds between two reports of one pool's exhaustion, below a day.
            Exhaustions between them are reported later, as a number. Default: 60.
        on_exhausted: A function that is called with an `Episode` when a pool is exhausted, on a
            thread of its own. An `async` function runs on the event loop on which the client was
            made, or else on a new one. Default: none.
        on_recovered: The same, for the end of each exhaustion that `on_exhausted` was called for:
            the pool has not been exhausted for a second, and connections are returned.
            Default: none.
        workers: Whether the processes of one service find each other, so that whoever is asked
            answers for all. It needs `watch`. If one client of a process says false, the process
            answers for itself only, and the others do not show it. Default: true.
        owner_metrics: Whether there are metrics for each `owner()`, at most 100. Default: false.

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
    workers: bool = _flag_from_env("WORKERS", default=True)
    owner_metrics: bool = _flag_from_env("OWNER_METRICS", default=False)

    @staticmethod
    def of(given: Any) -> "TelemetryOptions":
        """Return the given options, if they are TelemetryOptions.

        Raises:
            PoolConfigurationError: They are not.
        """
        if not isinstance(given, TelemetryOptions):
            words, kind = "use TelemetryOptions(name=..., ...)", f"of type {type(given).__name__}"
            raise PoolConfigurationError(f"the telemetry's options are {kind}: {words}")
        return given

    def __post_init__(self) -> None:
        _warn_of_misspelt_variables()
        name: Any = self.name  # without a type checker a caller may give any type
        fits = isinstance(name, str) and name.isprintable() and len(name) <= _MAX_NAME
        if not fits or "@" in name:
            words = f"a printable text of at most {_MAX_NAME} characters, without '@'"
            raise PoolConfigurationError(f"name is {shown(name)}: use {words}")
        for key in ("operations", "query_text", "watch", "workers", "owner_metrics"):
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
