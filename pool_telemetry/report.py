"""The dict that `get_pool_stats()` returns: its schema, and its values from frozen stats.

Durations and ages are seconds. Within a major version keys are added, never renamed or removed.
"""

from collections.abc import Iterable
from typing import Any, Final, Literal, TypedDict

from pool_telemetry.aging import is_shown
from pool_telemetry.stats import (
    CLOSE_REASONS,
    OUTCOMES,
    Activity,
    CallerStats,
    ClientStats,
    HistogramStats,
    OperationStats,
    Phase,
    PoolStats,
    merge,
)

TOP_OWNERS: Final = 10


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
    """The pool now. `utilization` is in_use / max_size, 0.0 when unlimited.

    For `unserved_seconds` callers have waited or failed, and none got a connection.
    """

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
    oldest_opening_seconds: float
    unserved_seconds: float


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


class Agents(TypedDict):
    """Strands' agents with sessions here: turns, operations for them, refused writes."""

    turns: int
    operations: int
    conflicts: int


class Owner(TypedDict):
    """The connections used on behalf of an owner: see `stats.OwnerStats`."""

    checkouts: int
    held_seconds: float
    in_use: int


class _Live(TypedDict):
    pool: PoolCounts
    checkouts: Checkouts
    connections: Connections
    wait_time: Durations
    use_time: Durations
    create_time: Durations


class Server(_Live):
    """One server's part. `up`, `type` and `rtt_seconds` come from heartbeats; None while unknown.

    `type` is as SDAM names it, such as RSPrimary. `silent_seconds` is above 0.0 only if PyMongo's
    monitor of the server has published nothing for several periods.
    """

    state: Phase
    up: bool | None
    type: str | None
    rtt_seconds: float | None
    silent_seconds: float


class Selection(TypedDict):
    """Callers that wait until a server fits their operation, and callers that failed so."""

    waiting: int
    oldest_wait_seconds: float
    failures: int


class Caller(TypedDict):
    """A holder or a waiter: see `stats.CallerStats`. Names only, never values."""

    server: str
    seconds: float
    actor: str
    owner: str
    doing: Activity
    operation: str
    collection: str
    trace_id: str | None
    idle_seconds: float | None


class LiveStats(_Live):
    """The part that comes from telemetry alone: totals over the servers, and each server.

    `stood_still_seconds` is the time for which this process was stopped, frozen or suspended.
    """

    operations: dict[str, Operation]
    servers: dict[str, Server]
    server_selection: Selection
    stood_still_seconds: float
    agents: Agents
    top_owners: dict[str, Owner]


class _PoolReport(LiveStats):
    status: Literal["not_initialized", "connected", "disconnected"]
    connection_string: str | None
    server_version: str | None
    pool_config: dict[str, Any]


class PoolReport(_PoolReport, total=False):
    """The answer of get_pool_stats(), ready for JSON, always with the same keys.

    `connection_string` has its credentials masked; `server_version` is None while unknown;
    `pool_config` has every effective pool setting under PyMongo's names (None: no limit; but for
    maxPoolSize 0 is no limit). `error` says why the client is disconnected, and is absent while it
    is connected. `holders` and `waiters`, the longest first, are there only with `detail`.
    """

    error: str
    holders: list[Caller]
    waiters: list[Caller]


def callers(stats: Iterable[CallerStats]) -> list[Caller]:
    """Return callers as dicts for JSON."""
    return [
        {
            "server": one.address,
            "seconds": one.seconds,
            "actor": one.actor,
            "owner": one.owner,
            "doing": one.doing,
            "operation": one.operation,
            "collection": one.collection,
            "trace_id": one.trace_id,
            "idle_seconds": one.idle_seconds,
        }
        for one in stats
    ]


def pool_lines(stats: ClientStats) -> list[str]:
    """Return a line of text for each open pool."""
    return [
        f"{stats.pool_name(pool)}: {pool.in_use} in use, {pool.waiting} waiting, {pool.size} open, "
        f"maxPoolSize {'none' if pool.max_size is None else pool.max_size}"
        for pool in stats.open_pools
    ]


def live_stats(stats: ClientStats) -> LiveStats:
    """Return the live part of `get_pool_stats()`.

    Totals are sums over servers, also over those that left and are in `servers` no longer;
    `max_size` sums the servers with an open pool, None if unlimited; `exhausted` is true if any
    server's pool is exhausted; ages are the longest.
    """
    return {
        **_live(stats.pools),
        "operations": _operations(stats.operations),
        "servers": {
            pool.address: {
                "state": pool.phase,
                "up": pool.up,
                "type": pool.server_type,
                "rtt_seconds": pool.rtt,
                "silent_seconds": pool.silent_time,
                **_live((pool,)),
            }
            for pool in stats.pools
            if is_shown(pool)
        },
        "server_selection": {
            "waiting": stats.server_selection.waiting,
            "oldest_wait_seconds": stats.server_selection.oldest_wait,
            "failures": stats.server_selection.failures,
        },
        "stood_still_seconds": stats.stood_still,
        "top_owners": _top_owners(stats.pools),
        "agents": Agents(**stats.agents._asdict()),  # type: ignore[typeddict-item]  # its fields
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
            "oldest_opening_seconds": max((pool.oldest_opening for pool in pools), default=0.0),
            "unserved_seconds": max((pool.unserved_time for pool in pools), default=0.0),
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


def _top_owners(pools: tuple[PoolStats, ...]) -> dict[str, Owner]:
    """Return the owners with the longest total hold of connections, over all servers."""
    owners: dict[str, Owner] = {}
    for one in (one for pool in pools for one in pool.owners):
        owner = owners.setdefault(one.owner, {"checkouts": 0, "held_seconds": 0.0, "in_use": 0})
        owner["checkouts"] += one.checkouts
        owner["held_seconds"] += one.seconds
        owner["in_use"] += one.in_use
    top = sorted(owners.items(), key=lambda item: item[1]["held_seconds"], reverse=True)
    return dict(top[:TOP_OWNERS])


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
