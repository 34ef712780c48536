"""The answers of the HTTP routes, for every web framework: of one process, or of a whole service.

A question goes to every process of the service. A process that does not answer holds nobody up for
longer than 0.2 s. Each function returns values for JSON.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from pool_telemetry import totals, watch, workers
from pool_telemetry.async_pool import AsyncMongoDBConnectionPool
from pool_telemetry.diagnosis import Diagnosis, Finding, diagnose, recommend, worst_first
from pool_telemetry.diagnosis.rules import silent_worker
from pool_telemetry.health import Health, HealthLimits, assess, worst
from pool_telemetry.pool import MongoDBConnectionPool
from pool_telemetry.registry import (
    MAX_NAMES,
    ClosedClients,
    Collected,
    active,
    collect,
    recently_closed,
)
from pool_telemetry.report import Caller, PoolReport, callers, live_stats, pool_lines
from pool_telemetry.stats import ClientStats, ProcessStats
from pool_telemetry.workers import STATS, Part

Pool = type[MongoDBConnectionPool] | type[AsyncMongoDBConnectionPool]

DETAIL: Final = "detail"
"""The question for findings, holders and waiters."""
LAST_SECONDS: Final = 15.0
"""A closed client's last state is in the answers for so long."""

NOT_INITIALIZED: Final = Health("unhealthy", ("the pool is not initialized",))

_closed: Final = ClosedClients(LAST_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessDetail:
    """Findings, holders and waiters of one process, with its stats.

    Attributes:
        has_pools: Whether it has a client, or had one with a problem a moment ago.
        pools: A line of text for each open pool.
    """

    stats: ProcessStats
    has_pools: bool
    findings: tuple[Finding, ...]
    pools: tuple[str, ...]
    holders: tuple[Caller, ...]
    waiters: tuple[Caller, ...]


def current_pool() -> Pool:
    """Return the singleton that is initialized, the asynchronous one first."""
    asynchronous = AsyncMongoDBConnectionPool.get_telemetry()
    return AsyncMongoDBConnectionPool if asynchronous else MongoDBConnectionPool


def own_health(pool: Pool | None, limits: HealthLimits) -> tuple[Health, PoolReport]:
    """Return this process's health, and the report of its pool."""
    report, stats = (pool or current_pool()).read()
    return (assess(stats, limits) if stats else NOT_INITIALIZED), report


def health(pool: Pool | None, limits: HealthLimits) -> dict[str, Any]:
    """Return the status of the service: that of its worst process, and each process's own."""
    own, report = own_health(pool, limits)
    watch.take_part()
    answer = {**_identity(), "mongodb": report}
    if not workers.is_shared():
        return {"status": own.status, "reasons": own.reasons, **answer}
    parts = workers.ask(STATS, ProcessStats)
    found = [
        (one, own if _is_own(one) else _health_of(one, limits))
        for one in parts
        if one.state != "ended"
    ]
    found.sort(key=lambda pair: worst(pair[1].status))
    status, reasons = found[0][1].status if found else "healthy", ["no process runs now"]
    if found:
        reasons = [f"{one.label}: {text}" for one, judged in found for text in judged.reasons]
    return {
        "status": status,
        "reasons": reasons,
        **answer,
        "workers": [
            {**_state(one), "status": judged.status, "reasons": judged.reasons}
            for one, judged in found
        ],
    }


def ready(pool: Pool | None, limits: HealthLimits) -> tuple[dict[str, Any], int]:
    """Return whether to send requests to this process, and the HTTP status.

    An observer answers for the processes that it shows, because it has no pool.
    """
    if workers.is_observer():
        every = health(pool, limits)
        parts = every["workers"]
        is_ready = not parts or any(one["status"] != "unhealthy" for one in parts)
        answer = {"status": every["status"], "reasons": every["reasons"]}
        return answer, 200 if is_ready else 503
    own, _ = own_health(pool, limits)
    answer = {"status": own.status, "reasons": own.reasons, **_identity()}
    return answer, 503 if own.status == "unhealthy" else 200


def diagnosis() -> tuple[dict[str, Any], int]:
    """Return the diagnosis of every pool of the service, and the HTTP status."""
    parts = _ask(DETAIL, ProcessDetail)
    found = [*_findings(parts), *_silent(parts)]
    has_pools = any(one.has_pools for one in _details(parts)) or workers.is_observer()
    if not has_pools and not found:
        return {"detail": NOT_INITIALIZED.reasons[0], **_identity()}, 503
    several = workers.is_shared()
    lines = [
        f"{one.label}: {line}" if several else line
        for one in parts
        if one.body is not None
        for line in one.body.pools
    ]
    answer = {**worst_first(found).as_dict(), "pools": lines, **_identity()}
    if several:
        answer["workers"] = _states(parts)
    return answer, 200


def holders() -> dict[str, Any]:
    """Return the holders and waiters of every process, the longest first."""
    parts = _ask(DETAIL, ProcessDetail)
    answer: dict[str, Any] = {"pool": live_stats(_total(_details(parts)))["pool"], **_identity()}
    for key in ("holders", "waiters"):
        every = [
            {**caller, "worker": one.worker, "pid": one.pid}
            for one in parts
            if one.body is not None
            for caller in getattr(one.body, key)
        ]
        answer[key] = sorted(every, key=lambda caller: caller["seconds"], reverse=True)
    if workers.is_shared():
        answer["workers"] = _states(parts)
    return answer


def mongodb(pool: Pool | None) -> dict[str, Any]:
    """Return the numbers of the pool, summed over the service, with recommendations."""
    report, stats = (pool or current_pool()).read()
    config = report["pool_config"]
    watch.take_part()
    parts = workers.ask(DETAIL, ProcessDetail) if workers.is_shared() else []
    if parts:
        live = live_stats(_total(_details(parts)))
        found = worst_first(_findings(parts))
    else:
        live, found = report, _own_diagnosis(pool, stats)
    answer = {
        "connection_pool": {
            "status": report["status"],
            "server_version": report["server_version"],
            "max_pool_size": config.get("maxPoolSize"),
            "min_pool_size": config.get("minPoolSize"),
            **live["pool"],
            "checkouts": live["checkouts"],
            "wait_time": live["wait_time"],
            "use_time": live["use_time"],
        },
        "recommendations": recommend(found)
        if stats or found.findings
        else {
            "increase_pool": False,
            "check_connection": True,
            "reasons": list(NOT_INITIALIZED.reasons),
        },
        **_identity(),
    }
    if parts:
        answer["workers"] = [
            {**state, "pool": live_stats(_total([one.body]))["pool"] if one.body else None}
            for state, one in zip(_states(parts), parts, strict=True)
        ]
    return answer


# This process's answers


@workers.answers(STATS)
def process_stats() -> ProcessStats:
    """Return this process's clients. Their counts go on from those of its predecessor."""
    return _process_stats(_collect().clients)


def _collect() -> Collected:
    before = workers.predecessor()
    return collect(_closed, _counts_of(before.instance) if before else ())


def _process_stats(clients: Iterable[ClientStats]) -> ProcessStats:
    main = current_pool().get_telemetry()
    return ProcessStats(main=main.name if main else None, clients=tuple(clients))


@workers.answers(DETAIL)
def process_detail() -> ProcessDetail:
    """Return this process's findings, holders and waiters."""
    # Each request may have a client of its own, which is closed by now.
    every, closed = active(), recently_closed()[-1:]
    found, lines = list[Finding](), list[str]()
    for telemetry in (*every, *closed):
        stats = telemetry.stats()
        found += diagnose(stats, telemetry.history()).findings
        lines += pool_lines(stats)
    held = [telemetry.callers() for telemetry in every]
    return ProcessDetail(
        stats=_process_stats(_collect().everything),
        has_pools=bool(every) or bool(found),
        findings=tuple(found),
        pools=tuple(lines),
        holders=tuple(callers(one for holding, _ in held for one in holding)),
        waiters=tuple(callers(one for _, waiting in held for one in waiting)),
    )


@lru_cache(maxsize=1)
def _counts_of(_: str) -> tuple[ClientStats, ...]:
    """Return the counts of this process's predecessor, by its instance."""
    before = workers.predecessor()
    try:
        stats: ProcessStats = workers.convert(before.body if before else None, ProcessStats)
    except ValueError:  # of another version
        return ()
    return totals.of_predecessor(stats.clients, MAX_NAMES)


def _own_diagnosis(pool: Pool | None, stats: ClientStats | None) -> Diagnosis:
    telemetry = (pool or current_pool()).get_telemetry()
    if stats is None:
        return Diagnosis()
    return diagnose(stats, telemetry.history() if telemetry else ())


# Of several processes


def _ask(question: str, kind: Any) -> list[Part[Any]]:
    watch.take_part()
    return workers.ask(question, kind)


def _identity() -> dict[str, Any]:
    """Return which process answers: an answer is compared with another one of its instance only."""
    own = workers.own_identity()
    return {"worker": own.worker, "pid": own.pid, "instance": own.instance}


def _states(parts: Iterable[Part[Any]]) -> list[dict[str, Any]]:
    return list(map(_state, parts))


def _state(part: Part[Any]) -> dict[str, Any]:
    return {
        "worker": part.worker,
        "pid": part.pid,
        "instance": part.instance,
        "state": part.state,
    }


def _is_own(part: Part[ProcessStats]) -> bool:
    """Return whether a part is this process's, and its singleton is what health speaks of."""
    only_others = part.body is not None and part.body.main is None and part.body.judged
    return part.instance == workers.identity() and not only_others


def _health_of(part: Part[ProcessStats], limits: HealthLimits) -> Health:
    if part.state == "silent":
        words = f"it has not answered for {part.silent_seconds:.1f} s"
        return Health("degraded", (words,))
    if part.state == "gone":
        words = "it was killed or crashed, and no new process has its number"
        return Health("degraded", (words,))
    judged = [assess(one, limits) for one in part.body.judged] if part.body else []
    if not judged:
        return Health("healthy", ("it has no client",))
    judged.sort(key=lambda one: worst(one.status))
    return Health(judged[0].status, tuple(text for one in judged for text in one.reasons))


def _findings(parts: Iterable[Part[ProcessDetail]]) -> Iterator[Finding]:
    for part in parts:
        for one in part.body.findings if part.body else ():
            yield replace(one, worker=part.worker, pid=part.pid)


def _silent(parts: Iterable[Part[Any]]) -> Iterator[Finding]:
    for one in parts:
        if one.state == "silent":
            yield silent_worker.finding(one.label, one.worker, one.pid, one.silent_seconds)


def _details(parts: Iterable[Part[ProcessDetail]]) -> list[ProcessDetail]:
    return [one.body for one in parts if one.body is not None]


def _total(details: Iterable[ProcessDetail]) -> ClientStats:
    """Return the sum of the judged clients of some processes."""
    every = [client for one in details for client in one.stats.judged]
    return totals.total(every) if every else _NOTHING


_NOTHING: Final = ClientStats(name="", pools=(), operations=(), telemetry_errors=0)
