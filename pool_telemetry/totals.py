"""Stats of several clients with one name, added up, so that the name's counters never fall.

The clients are open or ended. Of an ended client only the counts stay.
"""

import operator
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import reduce
from typing import Any, Final, TypeVar

from pool_telemetry.stats import (
    OVERFLOW,
    Address,
    AgentStats,
    ClientStats,
    HistogramStats,
    OperationStats,
    OwnerStats,
    PoolStats,
    RefusalStats,
    ServerSelectionStats,
)

COUNTS: Final = (
    *("created", "cleared", "exhaustions", "exhausted_time", "long_checkouts", "retries"),
    *("checkouts", "closed", "wait_time", "use_time", "create_time"),
)
"""Fields of PoolStats that only grow. A new counter in the catalog belongs here."""

_ADDED: Final = (
    *("min_size", "size", "in_use", "opening", "waiting"),
    *("held_idle", "held_by_cursors", "self_blocked"),
)
_HIGHEST: Final = (
    *("oldest_wait", "longest_checkout", "stalled_time", "peak_waiting", "longest_idle"),
    *("oldest_opening", "unserved_time", "silent_time", "exhausted", "lost"),
)
_MAX_POOLS: Final = 50  # of ended clients of one name: a service's servers may change for ever
_MAX_SERIES: Final = 500  # of commands, as many as one client has by default
_MAX_OWNERS: Final = 100

_DURATIONS: Final = ("wait_time", "use_time", "create_time")

_Operator = Callable[[Any, Any], Any]
_Counted = TypeVar("_Counted", PoolStats, OperationStats)


def total(clients: Iterable[ClientStats]) -> ClientStats:
    """Return the sum of clients of one name, the oldest first; there is at least one."""
    return reduce(_plus, clients)


def counts_of(client: ClientStats) -> ClientStats:
    """Return the counts of an ended client, without a state and without exemplars."""
    return replace(
        client,
        pools=(),
        ended=tuple(map(_without_exemplars, client.all_pools)),
        operations=tuple(map(_without_exemplars, client.operations)),
        server_selection=ServerSelectionStats(failures=client.server_selection.failures),
        refusals=RefusalStats(),
        has_no_server=False,
    )


def bounded(counts: ClientStats) -> ClientStats:
    """Return the counts of a name's ended clients in bounded memory."""
    operations = _operations(counts.operations, _MAX_SERIES)
    return replace(counts, ended=counts.ended[-_MAX_POOLS:], operations=operations)


def of_predecessor(clients: Iterable[ClientStats], max_names: int) -> tuple[ClientStats, ...]:
    """Return the counts of another process's clients in bounded memory.

    Jobs may each have a name of their own, and pass the counts on for ever: the first names beyond
    the limit share one.
    """
    counts = [bounded(counts_of(one)) for one in clients]
    first, kept = counts[:-max_names], counts[-max_names:]
    if not first:
        return tuple(kept)
    return (bounded(total(replace(one, name=OVERFLOW) for one in first)), *kept)


def since(client: ClientStats, before: ClientStats) -> ClientStats:
    """Return a client's stats with the counts since an earlier sample, and its present state."""
    pools = {one.address: one for one in before.all_pools}
    series = {one.series: one for one in before.operations}
    return replace(
        client,
        pools=tuple(_counted(operator.sub, one, pools.get(one.address)) for one in client.pools),
        operations=tuple(
            replace(one, duration=_histogram(operator.sub, one.duration, was.duration))
            if (was := series.get(one.series)) is not None
            else one
            for one in client.operations
        ),
        agents=AgentStats(*map(operator.sub, client.agents, before.agents)),
        server_selection=client.server_selection._replace(
            failures=client.server_selection.failures - before.server_selection.failures
        ),
        telemetry_errors=client.telemetry_errors - before.telemetry_errors,
    )


def _plus(one: ClientStats, other: ClientStats) -> ClientStats:
    pools: dict[Address, PoolStats] = {}
    for pool in (*one.pools, *other.pools):
        address = pool.host, pool.port
        pools[address] = _joined(pools[address], pool) if address in pools else pool
    ended: dict[Address, PoolStats] = {}
    for pool in (*one.ended, *other.ended):
        address = pool.host, pool.port
        if address in pools:
            pools[address] = _counted(operator.add, pools[address], pool)
        else:
            ended[address] = _counted(operator.add, pool, ended.get(address))
    return replace(
        one,
        pools=tuple(pools.values()),
        ended=tuple(ended.values()),
        operations=_operations((*one.operations, *other.operations)),
        telemetry_errors=one.telemetry_errors + other.telemetry_errors,
        since=min(one.since, other.since),
        server_version=other.server_version or one.server_version,
        agents=AgentStats(*map(operator.add, one.agents, other.agents)),
        owner_metrics=one.owner_metrics or other.owner_metrics,
        at=max(one.at, other.at),
        server_selection=_selection(one.server_selection, other.server_selection),
        has_no_server=one.has_no_server or other.has_no_server,
        stood_still=max(one.stood_still, other.stood_still),  # of one process
    )


def _selection(one: ServerSelectionStats, other: ServerSelectionStats) -> ServerSelectionStats:
    ages = [age for age in (one.since_failure, other.since_failure) if age is not None]
    return ServerSelectionStats(
        waiting=one.waiting + other.waiting,
        oldest_wait=max(one.oldest_wait, other.oldest_wait),
        failures=one.failures + other.failures,
        since_failure=min(ages, default=None),
    )


def _joined(one: PoolStats, other: PoolStats) -> PoolStats:
    """Return one server's pool in two clients: its counts, and the state of the open pools."""
    both = [pool for pool in (one, other) if pool.phase != "closed"] or [other]
    state: dict[str, Any] = {
        name: sum(getattr(pool, name) or 0 for pool in (one, other)) for name in _ADDED
    }
    state |= {name: max(getattr(pool, name) for pool in both) for name in _HIGHEST}
    sizes = [pool.max_size for pool in both]
    state["max_size"] = None if None in sizes else sum(filter(None, sizes))
    if any(pool.phase == "ready" for pool in both):
        state["phase"] = "ready"
    counted = _counted(operator.add, both[-1], one if both[-1] is other else other)
    return replace(counted, **state)


def _counted(how: _Operator, pool: PoolStats, other: PoolStats | None) -> PoolStats:
    """Return a pool's state with its counts plus or minus those of another sample."""
    if other is None:
        return pool
    counts = {name: _count(how, getattr(pool, name), getattr(other, name)) for name in COUNTS}
    return replace(pool, **counts, owners=_owners(how, pool.owners, other.owners))


def _count(how: _Operator, one: Any, other: Any) -> Any:
    if isinstance(one, HistogramStats):
        return _histogram(how, one, other)
    if isinstance(one, dict):
        return {key: how(one.get(key, 0), other.get(key, 0)) for key in {**one, **other}}
    return how(one, other)


def _histogram(how: _Operator, one: HistogramStats, other: HistogramStats) -> HistogramStats:
    return replace(
        one,
        counts=tuple(map(how, one.counts, other.counts)),
        sum=how(one.sum, other.sum),
        max=max(one.max, other.max),
        exemplars={**other.exemplars, **one.exemplars} if how is operator.add else one.exemplars,
    )


def _owners(
    how: _Operator, ours: tuple[OwnerStats, ...], others: tuple[OwnerStats, ...]
) -> tuple[OwnerStats, ...]:
    found = {one.owner: one for one in ours}
    for other in others:
        owner = other.owner
        if owner not in found and len(found) >= _MAX_OWNERS:
            owner = OVERFLOW
        one = found.get(owner, OwnerStats(owner, 0, 0.0, 0))
        checkouts, seconds = how(one.checkouts, other.checkouts), how(one.seconds, other.seconds)
        found[owner] = OwnerStats(owner, checkouts, seconds, one.in_use)
    return tuple(sorted(found.values(), key=lambda one: one.seconds, reverse=True))


def _operations(
    every: Iterable[OperationStats], limit: int | None = None
) -> tuple[OperationStats, ...]:
    found: dict[tuple[object, ...], OperationStats] = {}
    for given in every:
        one = given
        if one.series not in found and limit is not None and len(found) >= limit:
            one = _overflow(one)
        if (before := found.get(one.series)) is not None:
            one = replace(one, duration=_histogram(operator.add, one.duration, before.duration))
        found[one.series] = one
    return tuple(found.values())


def _overflow(one: OperationStats) -> OperationStats:
    """Return the series that all further series share, as in `CommandState`."""
    return OperationStats(
        host="",
        port=None,
        namespace="",
        collection="",
        operation=OVERFLOW,
        error_type=OVERFLOW if one.error_type else "",
        status_code="",
        duration=one.duration,
    )


def _without_exemplars(one: _Counted) -> _Counted:
    fields = ("duration",) if isinstance(one, OperationStats) else _DURATIONS
    bare = {name: replace(getattr(one, name), exemplars={}) for name in fields}
    return replace(one, **bare)
