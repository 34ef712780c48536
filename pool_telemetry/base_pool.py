"""The common part of the two singletons: one client with its telemetry, and the reports about it.

There is no I/O here; `pool.py` and `async_pool.py` add it.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, Generic, TypeVar

from pymongo.errors import ConnectionFailure

from pool_telemetry.client_options import DEFAULT_URI, DEFAULTS, client_kwargs, pool_config
from pool_telemetry.errors import PoolConfigurationError, PoolNotInitializedError
from pool_telemetry.log_lines import ProcessLog
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.process import notice_fork
from pool_telemetry.ranges import shown
from pool_telemetry.report import PoolReport, callers, live_stats
from pool_telemetry.scrubbing import without_pieces
from pool_telemetry.state.frames import call_site
from pool_telemetry.stats import ClientStats, Occupancy
from pool_telemetry.telemetry import PoolTelemetry
from pool_telemetry.uri import (
    check_credentials,
    differences,
    identity,
    mask_uri,
    secrets_of,
    without_secrets,
)

ClientT = TypeVar("ClientT")

# MongoClient.close() checks a connection out for endSessions, without a time limit: on an exhausted
# pool it would wait for ever.
CLOSE_SECONDS: Final = 2.0
VERSION_SECONDS: Final = 1.0
# Seconds before each request for the version of a server that is back; the first answer ends them.
VERSION_PAUSES: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
# A replaced client is closed when it has been idle this long: its last users may be between two
# steps, such as two batches of a cursor.
QUIET_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.05

_log: Final = ProcessLog("pool_telemetry.telemetry")

_EMPTY: Final = ClientStats(name="", pools=(), operations=(), telemetry_errors=0)


@dataclass(frozen=True, repr=False)  # a repr would show the password
class PoolSettings:
    """The effective settings of `initialize()`: its arguments, the defaults and the environment.

    Attributes:
        assumed: Whether the default address is used: none was given, and MONGODB_URI is not set.
    """

    uri: str
    kwargs: dict[str, Any]
    options: TelemetryOptions
    assumed: bool = False

    @classmethod
    def of(
        cls,
        uri: str | None,
        options: TelemetryOptions | None,
        kwargs: dict[str, Any],
        current: "ManagedClient[Any] | None",
        defaults: Mapping[str, Any] = DEFAULTS,
    ) -> "PoolSettings":
        """Apply MONGODB_URI, the defaults and the environment."""
        if not uri and ("host" in kwargs or "port" in kwargs):  # MongoClient accepts these, too
            uri = kwargs.pop("host", None) or "localhost"
        if uri is not None and not isinstance(uri, str):
            raise PoolConfigurationError(
                f"connection_string is {shown(uri)}: use a text, for several hosts "
                "'mongodb://one,two/'"
            )
        given = uri or os.environ.get("MONGODB_URI")
        uri = given or DEFAULT_URI
        check_credentials(uri, kwargs)
        if not kwargs.get("event_listeners", True):
            del kwargs["event_listeners"]
        if options is None:
            options = TelemetryOptions() if current is None else current.settings.options
        with without_secrets(uri, kwargs):
            kwargs = client_kwargs(uri, kwargs, defaults)
            return cls(uri, kwargs, TelemetryOptions.of(options), assumed=not given)

    def differences(self, new: "PoolSettings") -> list[str]:
        """Return the differences from new settings in words, without secrets."""
        ours = [
            f"telemetry.{one.name}"
            for one in fields(TelemetryOptions)
            if getattr(self.options, one.name) != getattr(new.options, one.name)
        ]
        names = {name.lower(): name for name in (*DEFAULTS, *self.kwargs, *new.kwargs)}
        before, after = (identity(one.uri, one.kwargs) for one in (self, new))
        secrets = [*secrets_of(self.uri, {}), *secrets_of(new.uri, {})]
        return [without_pieces(one, secrets) for one in differences(before, after, names)] + ours

    def same_as(self, other: "PoolSettings") -> bool:
        """Return whether both settings make the same client."""
        return self.options == other.options and (
            identity(self.uri, self.kwargs) == identity(other.uri, other.kwargs)
        )


class ManagedClient(Generic[ClientT]):
    """A client that belongs to a singleton, with its telemetry.

    Attributes:
        call_site: Where the application initialized it, as `file:line in function`.
        drain_now: Set to close a replaced client without waiting for its users.
    """

    def __init__(self, settings: PoolSettings, client_class: type[Any]) -> None:
        self.settings = settings
        self.call_site = call_site()
        self.telemetry = PoolTelemetry(options=settings.options)
        self.drain_now = threading.Event()
        kwargs = dict(settings.kwargs)
        theirs = list(kwargs.pop("event_listeners", None) or ())
        listeners = [*theirs, *self.telemetry.listeners]
        with self.failing():
            self.client: ClientT = client_class(settings.uri, **kwargs, event_listeners=listeners)
        self.telemetry.attach(self.client)

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Let errors of a start pass as PyMongo raises them, but without secrets in their texts."""
        try:
            with without_secrets(self.settings.uri, self.settings.kwargs):
                yield
        except Exception as error:
            self.telemetry.close()
            if self.settings.assumed and isinstance(error, ConnectionFailure):
                uri = self.settings.uri
                error.args = (
                    f"no address was given and MONGODB_URI is not set, so {uri} was tried, and no "
                    "server answered there: pass an address to initialize(), or set MONGODB_URI",
                )
            raise

    def is_usable(self, settings: PoolSettings) -> bool:
        """Return whether this client has these settings and was not closed."""
        return self.settings.same_as(settings) and self.telemetry.active

    def log_replacement(self, old: "ManagedClient[ClientT]") -> None:
        """Log which settings differ from those of the replaced client."""
        changed = old.settings.differences(self.settings)
        drain_seconds = old.settings.options.drain_seconds
        idle = f"when it has been idle for {QUIET_SECONDS:g} s, at the latest "
        if changed:  # else the application closed the old client itself
            _log.warning(
                "initialize() at %s replaced the client of pool %r, which was initialized at %s "
                "with other settings: %s. The old client is closed %safter %g s; its operations "
                "fail from then on",
                self.call_site,
                old.settings.options.name or mask_uri(old.settings.uri),
                old.call_site,
                ", ".join(changed),
                idle if drain_seconds > QUIET_SECONDS else "",
                drain_seconds,
            )

    def has_room(self) -> bool:
        """Return whether every ready pool has a connection to spare for a command of ours."""
        ready = [p for p in self.telemetry.pool_stats() if p.phase == "ready"]
        return bool(ready) and all(
            p.max_size is None or p.in_use + p.waiting < p.max_size for p in ready
        )

    def report(self, stats: ClientStats) -> PoolReport:
        """Return the answer of `get_pool_stats()` for this client."""
        report: PoolReport = {
            "status": "connected" if stats.connected else "disconnected",
            "connection_string": mask_uri(self.settings.uri),
            "server_version": stats.server_version,
            "pool_config": pool_config(self.client.options),  # type: ignore[attr-defined]  # both kinds of client have it
            **live_stats(stats),  # type: ignore[typeddict-item]  # mypy misses the optional `error`
        }
        if not stats.connected:
            down = "; ".join(pool.outage_text for pool in stats.open_pools)
            down = stats.selection_text if stats.has_no_server else down
            report["error"] = f"no server answers heartbeats: {down or 'the client is closed'}"
        return report

    def traffic(self) -> tuple[int, int]:
        """Return the checkouts so far, and the number of waiters and holders now."""
        pools = self.telemetry.pool_stats()
        return (
            sum(sum(pool.checkouts.values()) for pool in pools),
            sum(pool.waiting + pool.in_use for pool in pools),
        )


class BaseConnectionPool(Generic[ClientT]):
    """The answers of both singletons that need no I/O, at any time and from any thread."""

    _current: ClassVar[ManagedClient[Any] | None] = None
    _adopted: ClassVar[ManagedClient[Any] | None] = None

    @classmethod
    def get_client(cls) -> ClientT:
        """Return the client.

        Raises:
            PoolNotInitializedError: Before `initialize()` or after `close()`.
        """
        current = cls._shown()
        if current is None:
            raise PoolNotInitializedError(
                f"{cls.__name__} has no client: call {cls.__name__}.initialize(connection_string) "
                "first, when the application starts (close() undoes it)"
            )
        client: ClientT = current.client
        return client

    @classmethod
    def get_pool_stats(cls, *, detail: bool = False) -> PoolReport:
        """Return the pool's settings and live numbers, as `report.PoolReport` describes them.

        No I/O and no wait: it answers within milliseconds when the pool is exhausted or the
        server is gone. Safe to show: credentials are masked.

        Args:
            detail: Whether to list the holders of connections and the waiters, by name.
        """
        report, current = cls.read()[0], cls._shown()
        if detail:
            holders, waiters = ([], []) if current is None else current.telemetry.callers()
            report["holders"], report["waiters"] = callers(holders), callers(waiters)
        return report

    @classmethod
    def get_occupancy(cls) -> Occupancy:
        """Return how full the pool is, for load shedding; zeros without a client.

        It takes some microseconds however many callers wait. `PoolTelemetry.occupancy` describes
        the callers that it leaves out, and those that it counts for too long.
        """
        telemetry = cls.get_telemetry()
        return Occupancy(0, 0, 0, 0) if telemetry is None else telemetry.occupancy()

    @classmethod
    def read(cls) -> tuple[PoolReport, ClientStats | None]:
        """Return `get_pool_stats()` and the stats it was made from; None without a client."""
        current = cls._shown()
        if current is not None:
            stats = current.telemetry.stats()
            return current.report(stats), stats
        return {
            "status": "not_initialized",
            "connection_string": None,
            "server_version": None,
            "pool_config": {},
            **live_stats(_EMPTY),  # type: ignore[typeddict-item]  # mypy misses the optional `error`
        }, None

    @classmethod
    def get_telemetry(cls) -> PoolTelemetry | None:
        """Return the telemetry of the current client, for `health.assess`; None without one."""
        current = cls._shown()
        return None if current is None else current.telemetry

    @classmethod
    def _shown(cls) -> ManagedClient[Any] | None:
        """Return the singleton's own client, or the adopted one without it."""
        notice_fork()
        return cls._current or cls._adopted


class DrainMonitor:
    """Decides when a replaced client may be closed: it has been idle for QUIET_SECONDS."""

    def __init__(self, managed: ManagedClient[Any]) -> None:
        self._managed = managed
        self._deadline = time.monotonic() + managed.settings.options.drain_seconds
        self._since = time.monotonic()
        self._seen: tuple[int, int] | None = None

    def over(self) -> bool:
        """Return whether the client has been idle long enough, or the drain limit has passed."""
        now, traffic = time.monotonic(), self._managed.traffic()
        if traffic[1] or traffic != self._seen:
            self._since, self._seen = now, traffic
        return now - self._since >= QUIET_SECONDS or now >= self._deadline
