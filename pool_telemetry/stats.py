"""What the readers read: frozen copies of the state, and the dict that `get_pool_stats()` returns.

Made by `PoolState`, `CommandState` and `PoolTelemetry`; pure values that any thread may keep.
Durations and ages are seconds; counters count since the client was made (or the process forked).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict

Phase = Literal["ready", "paused", "closed"]
"""A pool's phase, as CMAP names it."""

OUTCOMES: Final = ("ok", "timeout", "connection_error", "pool_closed", "cancelled")
"""How a checkout ends. `cancelled`: the caller left the queue and PyMongo published nothing."""

CLOSE_REASONS: Final = ("stale", "idle", "error", "pool_closed")
"""Why a connection closes, as CMAP names it."""


@dataclass(frozen=True, slots=True)
class HistogramStats:
    """Durations in buckets: `counts[i]` fell at or below `bounds[i]`, the last count above all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    max: float

    @property
    def count(self) -> int:
        """Return how many durations were seen."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """Return the mean in seconds; None when nothing was seen."""
        return self.sum / count if (count := self.count) else None

    def quantile(self, q: float) -> float | None:
        """Return the duration in seconds below which a share `q` (0.0 to 1.0) fell.

        Interpolated within its bucket, as Prometheus' `histogram_quantile` does, but never above
        the maximum seen. None when nothing was seen.
        """
        rank, below, lower = q * self.count, 0, 0.0
        for bound, count in zip((*self.bounds, self.max), self.counts, strict=True):
            upper = min(bound, self.max)
            if count and below + count >= rank:
                return lower + max(0.0, upper - lower) * (rank - below) / count
            below += count
            lower = upper
        return None


def merge(histograms: Iterable[HistogramStats]) -> HistogramStats | None:
    """Return the sum of histograms that share their bounds; None when there are none."""
    every = list(histograms)
    if not every:
        return None
    return HistogramStats(
        every[0].bounds,
        tuple(map(sum, zip(*(h.counts for h in every), strict=True))),
        sum(h.sum for h in every),
        max(h.max for h in every),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """One server's pool at one moment.

    Always: 0 <= in_use, opening, idle; in_use + opening + idle == size.
    """

    host: str
    port: int | None  # None for a Unix domain socket
    phase: Phase
    max_size: int | None  # None is unlimited
    min_size: int
    size: int  # connections, opening ones included
    in_use: int
    opening: int  # being established
    waiting: int  # callers between the start of a checkout and its end
    oldest_wait: float  # 0.0 when nobody waits
    longest_checkout: float  # of those still open; 0.0 when none is
    exhausted: bool  # callers stand in the queue because all of max_size is taken
    exhaustions: int
    exhausted_time: float
    since_exhausted: float | None  # 0.0 while it lasts; None when it never was
    since_timeout: float | None  # age of the last checkout that timed out; None when none did
    stalled_time: float  # since exhausted or the last check-in, whichever is later; 0.0 otherwise
    checkouts: dict[str, int]  # by OUTCOMES
    created: int
    closed: dict[str, int]  # by CLOSE_REASONS
    cleared: int
    up: bool | None  # by the last heartbeat; None before the first and behind a load balancer
    since_up_changed: float
    was_down: bool  # a heartbeat failed at some time
    down_reason: str | None  # the error's class; never its text, which names hosts
    rtt: float | None
    wait_time: HistogramStats
    use_time: HistogramStats
    create_time: HistogramStats

    @property
    def idle(self) -> int:
        """Return the connections that are ready and not in use."""
        return self.size - self.opening - self.in_use

    @property
    def address(self) -> str:
        """Return `host:port`, `[host]:port` for an IPv6 address, or the path of a socket."""
        if self.port is None:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class OperationStats:
    """One series of commands. Empty strings where an attribute does not apply."""

    host: str
    port: int | None
    namespace: str
    collection: str
    operation: str
    error_type: str
    status_code: str
    duration: HistogramStats


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStats:
    """All that is known of one client at one moment."""

    name: str  # empty for an unnamed client
    pools: tuple[PoolStats, ...]
    operations: tuple[OperationStats, ...]
    telemetry_errors: int  # failures inside our own listeners; anything but 0 is a bug of ours

    def pool_name(self, pool: PoolStats) -> str:
        """Return `NAME@host:port`, or `host:port` for an unnamed client."""
        return f"{self.name}@{pool.address}" if self.name else pool.address

    @property
    def open_pools(self) -> list[PoolStats]:
        """Return the pools of the servers that the client knows now."""
        return [pool for pool in self.pools if pool.phase != "closed"]

    @property
    def connected(self) -> bool:
        """Return whether a server can be reached, by heartbeats; else by its pool's phase."""
        return any(
            pool.phase == "ready" if pool.up is None else pool.up for pool in self.open_pools
        )


# What get_pool_stats() returns. Keys are added, never renamed or removed, within a major version.


class Durations(TypedDict):
    """Seconds; None where `count` is 0. Percentiles are interpolated within histogram buckets."""

    count: int
    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    max: float | None


class Operation(Durations):
    """One command by name, over all collections; `errors` of `count` failed."""

    errors: int


class PoolCounts(TypedDict):
    """The pool now. `utilization` is in_use / max_size, 0.0 when unlimited."""

    size: int
    in_use: int
    idle: int
    opening: int
    waiting: int
    max_size: int | None
    min_size: int
    utilization: float
    exhausted: bool
    exhaustions: int
    exhausted_seconds: float
    oldest_wait_seconds: float
    longest_checkout_seconds: float


class Checkouts(TypedDict):
    """How checkouts ended; see OUTCOMES."""

    ok: int
    timeout: int
    connection_error: int
    pool_closed: int
    cancelled: int


class Closed(TypedDict):
    """Connections closed, by reason; see CLOSE_REASONS."""

    stale: int
    idle: int
    error: int
    pool_closed: int


class Connections(TypedDict):
    """Churn. `cleared` counts the times that PyMongo cleared the pool."""

    created: int
    closed: Closed
    cleared: int


class _Live(TypedDict):
    pool: PoolCounts
    checkouts: Checkouts
    connections: Connections
    wait_time: Durations
    use_time: Durations
    create_time: Durations


class Server(_Live):
    """One server's part. `up` and `rtt_seconds` come from heartbeats; None while unknown."""

    state: Phase
    up: bool | None
    rtt_seconds: float | None


class LiveStats(_Live):
    """What telemetry alone knows: totals over the servers, and each of them."""

    operations: dict[str, Operation]
    servers: dict[str, Server]


class _PoolReport(LiveStats):
    status: Literal["not_initialized", "connected", "disconnected"]
    connection_string: str | None
    server_version: str | None
    pool_config: dict[str, Any]


class PoolReport(_PoolReport, total=False):
    """What get_pool_stats() returns: JSON-able, the same keys always.

    `connection_string` has its credentials masked; `server_version` is None while unknown;
    `pool_config` holds every effective pool setting under PyMongo's names (None: no limit, except
    maxPoolSize, where 0 is none). `error`, why it is disconnected, is absent otherwise.
    """

    error: str


def live_stats(stats: ClientStats) -> LiveStats:
    """Return the live part of `get_pool_stats()`.

    Totals are sums over servers; `max_size` sums the servers that hold a pool, None when
    unlimited; `exhausted` is true where any server's pool is; ages are the longest.
    """
    return {
        **_live(stats.pools),
        "operations": _operations(stats.operations),
        "servers": {
            pool.address: {
                "state": pool.phase,
                "up": pool.up,
                "rtt_seconds": pool.rtt,
                **_live((pool,)),
            }
            for pool in stats.pools
        },
    }


def _live(pools: tuple[PoolStats, ...]) -> _Live:
    holding = [pool for pool in pools if pool.phase != "closed"]
    in_use = sum(pool.in_use for pool in pools)
    max_size: int | None = 0
    for pool in holding:
        max_size = None if max_size is None or pool.max_size is None else max_size + pool.max_size
    checkouts = {name: sum(pool.checkouts[name] for pool in pools) for name in OUTCOMES}
    closed = {name: sum(pool.closed[name] for pool in pools) for name in CLOSE_REASONS}
    return {
        "pool": {
            "size": sum(pool.size for pool in pools),
            "in_use": in_use,
            "idle": sum(pool.idle for pool in pools),
            "opening": sum(pool.opening for pool in pools),
            "waiting": sum(pool.waiting for pool in pools),
            "max_size": max_size,
            "min_size": sum(pool.min_size for pool in holding),
            "utilization": in_use / max_size if max_size else 0.0,
            "exhausted": any(pool.exhausted for pool in pools),
            "exhaustions": sum(pool.exhaustions for pool in pools),
            "exhausted_seconds": sum(pool.exhausted_time for pool in pools),
            "oldest_wait_seconds": max((pool.oldest_wait for pool in pools), default=0.0),
            "longest_checkout_seconds": max((pool.longest_checkout for pool in pools), default=0.0),
        },
        "checkouts": Checkouts(**checkouts),  # type: ignore[typeddict-item]  # keys are OUTCOMES
        "connections": {
            "created": sum(pool.created for pool in pools),
            "closed": Closed(**closed),  # type: ignore[typeddict-item]  # keys are CLOSE_REASONS
            "cleared": sum(pool.cleared for pool in pools),
        },
        "wait_time": _durations(merge(pool.wait_time for pool in pools)),
        "use_time": _durations(merge(pool.use_time for pool in pools)),
        "create_time": _durations(merge(pool.create_time for pool in pools)),
    }


def _operations(operations: tuple[OperationStats, ...]) -> dict[str, Operation]:
    by_name: dict[str, list[OperationStats]] = {}
    for series in operations:
        by_name.setdefault(series.operation, []).append(series)
    return {
        name: {
            **_durations(merge(one.duration for one in series)),
            "errors": sum(one.duration.count for one in series if one.error_type),
        }
        for name, series in sorted(by_name.items())
    }


def _durations(histogram: HistogramStats | None) -> Durations:
    if histogram is None or not histogram.count:
        return {"count": 0, "mean": None, "p50": None, "p95": None, "p99": None, "max": None}
    return {
        "count": histogram.count,
        "mean": histogram.mean,
        "p50": histogram.quantile(0.5),
        "p95": histogram.quantile(0.95),
        "p99": histogram.quantile(0.99),
        "max": histogram.max,
    }
