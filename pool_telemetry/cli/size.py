"""`pool-telemetry size`: how long callers would wait in pools of several sizes.

Arrivals and use times are measured; `diagnosis/queueing.py` predicts the waits. No advice exceeds
the connections that the server has for each process.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from pool_telemetry.cli import sources
from pool_telemetry.cli.output import as_json as as_json_text
from pool_telemetry.cli.output import as_text
from pool_telemetry.cli.sources import SourceError
from pool_telemetry.diagnosis import Finding, diagnose
from pool_telemetry.diagnosis.intervals import Interval, intervals
from pool_telemetry.diagnosis.queueing import (
    Load,
    WaitPrediction,
    candidate_sizes,
    is_crowded,
    predict,
    recommend_size,
)
from pool_telemetry.diagnosis.thresholds import MAX_POOL_SIZE, TARGET_WAIT_PROBABILITY
from pool_telemetry.stats import PoolStats

MONITORING: Final = 3
"""Connections that each client opens besides the pool, to monitor a server."""
_BAR: Final = 30
_NOT_MENDED_BY_SIZE: Final = ("server unreachable", "leak", "retry storm", "slow operations")


class NothingFitsError(SourceError):
    """The server accepts fewer connections than the processes need for a pool of one each."""


@dataclass(frozen=True, slots=True)
class SizingInput:
    """The load and the present size of one pool.

    Attributes:
        pool: The pool's name.
        load: Arrivals and use times.
        max_size: maxPoolSize; None when it is not known, or unlimited.
        source: How the load was measured, for people.
        at_least: The lower bound of the demand, from the callers that queued: a rate alone does
            not show them.
        measured_p95: The p95 of the measured waits with `max_size`, in seconds.
        never_exhausted: Whether the pool was never exhausted. The queue's formula assumes random
            arrivals; with regular ones the present size may suffice although the formula asks
            for more.
        trouble: The doctor's verdicts on this pool that a larger pool does not mend.
        processes: How many processes have such a pool; the load is that of the busiest.
    """

    pool: str
    load: Load
    max_size: int | None
    source: str
    at_least: int = 1
    measured_p95: float | None = None
    never_exhausted: bool = False
    trouble: str = ""
    processes: int = 1

    @property
    def required_size(self) -> int:
        """Return the size that the load requires."""
        best = recommend_size(self.load, at_least=self.at_least)
        return min(best, self.max_size) if self.never_exhausted and self.max_size else best


def run(
    target: str | None,
    *,
    seconds: float,
    rate: float | None = None,
    use_seconds: float | None = None,
    processes: int | None = None,
    limit: int | None = None,
    as_json: bool = False,
) -> tuple[str, bool]:
    """Return the text to print, and whether the server allows the recommended sizes.

    Args:
        target: The address of a service, a Prometheus or MongoDB, as `sources.validate_target`
            returns it; None if the load is given.
        seconds: How long to measure.
        rate: Callers per second of one process, instead of the measured value.
        use_seconds: How long a caller holds a connection, instead of the measured value.
        processes: The number of processes that share the server; None: those that a service
            names, or else one.
        limit: The connections that the server accepts; a MongoDB target is asked for it.
        as_json: Whether the text is JSON.

    Raises:
        SourceError: The target does not answer, or the pool was not used.
        NothingFitsError: The server does not allow a pool in each process.
    """
    given = None
    if rate is not None and use_seconds is not None:
        given = Load.exponential(rate, use_seconds)
    if target is None:
        if given is None:
            raise SourceError("the load is not known: give an address, or --rate and --use-time")
        found = [SizingInput("the pool", given, None, "as given")]
    elif sources.is_server(target):
        facts = sources.ask_server(target, seconds)
        if not isinstance(facts, sources.ServerFacts):
            raise SourceError(f"{facts.findings[0].because} {facts.findings[0].advice}")
        limit = facts.limit if limit is None else limit
        if not (rate or facts.operations_per_second):
            raise SourceError(f"the server ran no operation for {seconds:g} s: give --rate")
        if not (use_seconds or facts.operation_seconds):
            raise SourceError(
                "the server does not report how long operations take: give --use-time"
            )
        found = [_of_server(facts, rate, use_seconds, processes or 1, seconds)]
    elif sources.is_prometheus(target):
        found = [_of_prometheus(one) for one in sources.busiest_processes(target)]
    else:
        found, seen = _of_service(target, seconds)
        processes = processes or seen
    processes = processes or 1
    budget = None if limit is None else _per_process(limit, processes)
    if given is not None:
        found = [SizingInput(one.pool, given, one.max_size, "as given") for one in found]
    for one in found:
        if one.load.connections >= MAX_POOL_SIZE:
            raise SourceError(
                f"{one.load.connections:.0f} connections would be in use on average, and no pool "
                f"is larger than {MAX_POOL_SIZE}: check the rate and the use time"
            )
        if max(one.at_least, one.max_size or 0) > MAX_POOL_SIZE:
            raise SourceError(
                f"{one.pool} would have {max(one.at_least, one.max_size or 0)} connections, and no "
                f"pool is larger than {MAX_POOL_SIZE}: check that the numbers are those of a pool"
            )
    fits = budget is None or all(one.required_size <= budget for one in found)
    if as_json:
        return as_json_text([_as_dict(one, budget) for one in found]), fits
    told = [describe(one, budget) for one in found]
    if budget is None and processes > 1:
        told.append("The server's connection limit is not known: give --connection-limit.")
    return "\n\n".join(told), fits


def _per_process(limit: int, processes: int) -> int:
    """Return the largest pool that each process may have."""
    budget = limit // processes - MONITORING
    if budget < 1:
        raise NothingFitsError(
            f"{limit} connections are too few for {processes} processes, because each opens "
            f"{MONITORING} more to monitor the server: raise the limit or run fewer processes"
        )
    return budget


def _of_service(target: str, seconds: float) -> tuple[list[SizingInput], int]:
    """Return the load of each pool in its busiest process, and the number of processes."""
    own = sources.own_diagnosis(target)
    found, every = defaultdict[str, list[SizingInput]](list), list[Finding]()
    workers = set[int | None]()
    for measured in sources.scrape(target, seconds):
        *history, client = measured.samples
        workers.add(measured.worker)
        told = [
            one
            for one in (own[0] if own else diagnose(client, history)).current
            if not own or one.worker == measured.worker
        ]
        every += told
        for pool in client.open_pools:
            window = intervals([*history, client], (pool.host, pool.port))[-1]
            name = client.pool_name(pool)
            if window.use_time.count and window.rate:
                mine = [one for one in told if one.pool == name]
                found[name].append(_of_pool(name, pool, window, mine))
    if not found:
        why = (
            f", and the doctor reports: {every[0].verdict}"
            if every
            else ": give a longer --seconds"
        )
        raise SourceError(f"no connection was used for {seconds:g} s{why}")
    return [_busiest(one, len(workers)) for one in found.values()], len(workers)


def _of_pool(
    name: str, pool: PoolStats, window: Interval, findings: Sequence[Finding]
) -> SizingInput:
    trouble = (one.verdict for one in findings if one.verdict in _NOT_MENDED_BY_SIZE)
    # The measured waits lack the callers that timed out and those that still wait.
    few = TARGET_WAIT_PROBABILITY * window.ended_checkouts
    times = window.wait_time if window.checkouts["timeout"] <= few else None
    wait = times.quantile(1.0 - TARGET_WAIT_PROBABILITY) if times else None
    if wait is not None and pool.waiting > few:
        wait = max(wait, pool.oldest_wait)
    return SizingInput(
        name,
        Load.from_histogram(window.rate, window.use_time),
        pool.max_size,
        source=f"measured for {window.seconds:.0f} s",
        at_least=max((one.change.get("maxPoolSize", 1) for one in findings), default=1),
        measured_p95=wait,
        never_exhausted=not window.exhausted_seconds,
        trouble=", ".join(trouble),
    )


def _busiest(processes: Sequence[SizingInput], count: int) -> SizingInput:
    """Return the process that needs most connections: every process has the same settings."""
    busiest = max(processes, key=lambda one: one.required_size)
    if count == 1:
        return busiest
    rate = sum(one.load.rate for one in processes)
    source = (
        f"{busiest.source} in the busiest of {count} processes, which have {rate:.1f} callers per "
        "second together"
    )
    return replace(busiest, source=source, processes=count)


def _of_prometheus(busiest: sources.BusiestProcess) -> SizingInput:
    source = (
        f"{busiest.process}, the busiest of {busiest.processes} processes, in its busiest minute "
        "of the last hour"
    )
    load = Load.from_histogram(busiest.rate, busiest.use_time)
    return SizingInput(
        busiest.pool,
        load,
        busiest.max_size,
        source,
        busiest.at_least,
        processes=busiest.processes,
    )


def _of_server(
    facts: sources.ServerFacts,
    rate: float | None,
    use_seconds: float | None,
    processes: int,
    seconds: float,
) -> SizingInput:
    if rate is None:
        rate = facts.operations_per_second / processes
    if use_seconds is None:
        use_seconds = facts.ping_seconds + (facts.operation_seconds or 0.0)
    source = f"the server's operations in {seconds:g} s, shared by {processes} process(es)"
    return SizingInput(facts.address, Load.exponential(rate, use_seconds), None, source)


# The output


def _as_dict(measured: SizingInput, budget: int | None) -> dict[str, Any]:
    load, required = measured.load, measured.required_size
    waits = [predict(load, size) for size in candidate_sizes(load, measured.max_size)]
    return {
        "pool": measured.pool,
        "source": measured.source,
        "processes": measured.processes,
        "rate_per_second": load.rate,
        "use_seconds": load.use_seconds,
        "connections_in_use": load.connections,
        "max_pool_size": measured.max_size,
        "measured_p95": measured.measured_p95,
        "recommended": required if budget is None else min(required, budget),
        "wanted": required,
        "trouble": measured.trouble,
        "sizes": [
            {k: None if v == math.inf else v for k, v in asdict(wait).items()} for wait in waits
        ],
    }


def describe(measured: SizingInput, budget: int | None) -> str:
    """Return the sizes of a pool as a table, with a bar for each wait, and remarks below it."""
    load, required = measured.load, measured.required_size
    sizes = {*candidate_sizes(load, measured.max_size), required} | (
        {budget} if budget and budget < required else set()
    )
    waits = [predict(load, size) for size in sorted(sizes)]
    longest = max((wait.p95 for wait in waits if wait.p95 < math.inf), default=0.0)
    lines = [
        f"{measured.pool}: {load.rate:.1f} callers per second hold a connection for "
        f"{load.use_seconds * 1e3:.1f} ms each: {load.connections:.2f} in use on average",
        f"({measured.source})",
        "",
        f"{'size':>7}  {'busy':>6}  {'waiting':>8}  {'p95 wait':>10}",
    ]
    for wait in waits:
        notes = []
        if wait.size == measured.max_size:
            waited = measured.measured_p95
            notes.append("now" if waited is None else f"now (p95 measured: {waited * 1e3:.1f} ms)")
        if budget is not None and wait.size > budget:
            notes.append("more than the server allows")
        elif wait.size == required:
            notes.append("recommended")
        elif wait.size == budget:
            notes.append("the most that the server allows")
        line = (
            f"{wait.size:>7}  {wait.utilization:>6.0%}  {wait.waiting_share:>8.1%}  "
            f"{_seconds(wait):>10}  {_bar(wait, longest):<{_BAR}}  {', '.join(filter(None, notes))}"
        )
        lines.append(line.rstrip())
    now = next((wait for wait in waits if wait.size == measured.max_size), None)
    if now and measured.measured_p95 and is_crowded(measured.measured_p95, now.p95):
        lines.append(
            "Callers wait longer than the table predicts. The table assumes random arrivals; these "
            "callers arrive in bursts, or each returns as soon as it is served."
        )
    if measured.processes > 1:
        lines.append(f"Each size is that of one process's pool, of {measured.processes}.")
    if measured.trouble:
        lines.append(f"Mend this first: {measured.trouble} (see pool-telemetry doctor).")
    if budget is not None and required > budget:
        lines.append(
            f"The load requires {required} connections. The server allows {budget} in each "
            f"process's pool, besides {MONITORING} that monitor the server. Shorten the "
            "operations, or raise the server's limit."
        )
    elif measured.at_least >= required > recommend_size(load):
        lines.append(
            f"{required} is recommended because the pool was exhausted for a while; the measured "
            "rate alone does not show that."
        )
    return as_text(lines)


def _seconds(wait: WaitPrediction) -> str:
    return "endless" if wait.p95 == math.inf else f"{wait.p95 * 1e3:.1f} ms"


def _bar(wait: WaitPrediction, longest: float) -> str:
    if wait.p95 == math.inf:
        return "█" * _BAR
    return "▇" * math.ceil(wait.p95 / longest * (_BAR - 4)) if longest else ""
