"""`pool-telemetry size`: what each size of a pool would mean for those who wait.

Arrivals and use times are measured, the queue is `diagnosis/queueing.py`'s. Nothing is advised
beyond what the server has for each process.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Final

from pool_telemetry.cli import sources
from pool_telemetry.cli.sources import SourceError
from pool_telemetry.diagnosis import Finding, diagnose
from pool_telemetry.diagnosis.intervals import intervals
from pool_telemetry.diagnosis.queueing import (
    Load,
    WaitPrediction,
    candidate_sizes,
    is_crowded,
    predict,
    recommend_size,
)
from pool_telemetry.diagnosis.thresholds import MAX_POOL_SIZE, TARGET_WAIT_PROBABILITY

MONITORING: Final = 3
"""Connections that each client has beside its pool, to watch a server."""
_BAR: Final = 30
_NO_MATTER_OF_SIZE: Final = ("server unreachable", "leak", "retry storm", "slow operations")


@dataclass(frozen=True, slots=True)
class Measured:
    """One pool's load, and what it has now.

    Attributes:
        pool: Its name.
        load: What is asked of it.
        max_size: maxPoolSize; None where it is not known, or unlimited.
        source: How it was measured, in words.
        at_least: What the callers who found all taken ask for; a rate alone says too little.
        waited: The p95 of the waits that were measured with `max_size`.
        enough: Nobody found all taken. By the queue's formula callers come at random: where they
            don't, what there is may suffice where it would say more.
        trouble: What the doctor says of this pool, and a size does not mend.
    """

    pool: str
    load: Load
    max_size: int | None
    source: str
    at_least: int = 1
    waited: float | None = None
    enough: bool = False
    trouble: str = ""

    @property
    def wanted(self) -> int:
        """Return the size that the load asks for."""
        best = recommend_size(self.load, at_least=self.at_least)
        return min(best, self.max_size) if self.enough and self.max_size else best


def run(
    target: str | None,
    *,
    seconds: float,
    rate: float | None = None,
    use_seconds: float | None = None,
    processes: int = 1,
    limit: int | None = None,
    as_json: bool = False,
) -> str:
    """Return what to print.

    Args:
        target: A service's address, a Prometheus', or MongoDB's; None where all is given.
        seconds: How long to look.
        rate: Callers per second of one process, instead of what is measured.
        use_seconds: How long each holds a connection, instead of what is measured.
        processes: How many share the server.
        limit: How many connections it takes; asked of MongoDB itself where that is the target.
        as_json: As JSON.

    Raises:
        SourceError: The target does not answer, or nobody uses the pool.
    """
    target = None if target is None else sources.address_of(target)
    most = None if limit is None else _for_each(limit, processes)
    given = None
    if rate is not None and use_seconds is not None:
        given = Load.exponential(rate, use_seconds)
    if target is None:
        if given is None:
            raise SourceError("without an address it needs --rate and --use-time")
        found = [Measured("the pool", given, None, "as given")]
    elif sources.is_server(target):
        facts = sources.ask_server(target, seconds)
        if not isinstance(facts, sources.ServerFacts):
            raise SourceError(facts.findings[0].because)
        if limit is None and facts.limit is not None:
            most = _for_each(facts.limit, processes)
        if not (rate or facts.operations_per_second):
            raise SourceError(f"nobody asked anything of the server for {seconds:g} s")
        if not (use_seconds or facts.operation_seconds):
            raise SourceError("the server tells no times of its operations: give --use-time")
        found = [_of_server(facts, rate, use_seconds, processes, seconds)]
    elif sources.is_prometheus(target):
        found = [_of_prometheus(one) for one in sources.busiest(target)]
    else:
        found = _of_service(target, seconds)
    if given is not None:
        found = [Measured(one.pool, given, one.max_size, "as given") for one in found]
    for one in found:
        if one.load.connections >= MAX_POOL_SIZE:
            raise SourceError(f"{one.load.connections:.0f} in use on average: no pool is so large")
    if as_json:
        return json.dumps([_as_dict(one, most) for one in found], indent=2)
    told = [in_words(one, most) for one in found]
    if most is None and processes > 1:
        told.append("How many connections the server takes is not known: give --connection-limit.")
    return "\n\n".join(told)


def _for_each(limit: int, processes: int) -> int:
    """Return the largest pool that each process may have."""
    most = limit // processes - MONITORING
    if most < 1:
        raise SourceError(
            f"{limit} connections are too few for {processes} processes: each has {MONITORING} "
            "that watch the server"
        )
    return most


def _of_service(target: str, seconds: float) -> list[Measured]:
    own = sources.own_diagnosis(target)
    found, every = list[Measured](), list[Finding]()
    for *history, client in sources.scrape(target, seconds):
        told = (own[0] if own else diagnose(client, history)).current
        every += told
        for pool in client.open_pools:
            window = intervals([*history, client], (pool.host, pool.port))[-1]
            name = client.pool_name(pool)
            if window.use_time.count and window.rate:
                mine = [one for one in told if one.pool == name]
                trouble = (one.verdict for one in mine if one.verdict in _NO_MATTER_OF_SIZE)
                # Who gave up or still waits is not among those whose waits were measured.
                few = TARGET_WAIT_PROBABILITY * window.ended_checkouts
                times = window.wait_time if window.checkouts["timeout"] <= few else None
                wait = times.quantile(1.0 - TARGET_WAIT_PROBABILITY) if times else None
                if wait is not None and pool.waiting > few:
                    wait = max(wait, pool.oldest_wait)
                found.append(
                    Measured(
                        name,
                        Load.from_histogram(window.rate, window.use_time),
                        pool.max_size,
                        source=f"measured for {window.seconds:.0f} s",
                        at_least=max((one.change.get("maxPoolSize", 1) for one in mine), default=1),
                        waited=wait,
                        enough=not window.exhausted_seconds,
                        trouble=", ".join(trouble),
                    )
                )
    if not found:
        why = f"; the doctor says: {every[0].verdict}" if every else ": look for longer"
        raise SourceError(f"nobody used a connection for {seconds:g} s{why}")
    return found


def _of_prometheus(busiest: sources.Busiest) -> Measured:
    source = (
        f"the busiest minute of the last hour of the busiest of {busiest.processes} processes "
        f"({busiest.process})"
    )
    load = Load.from_histogram(busiest.rate, busiest.use_time)
    return Measured(busiest.pool, load, busiest.max_size, source, busiest.at_least)


def _of_server(
    facts: sources.ServerFacts,
    rate: float | None,
    use_seconds: float | None,
    processes: int,
    seconds: float,
) -> Measured:
    if rate is None:
        rate = facts.operations_per_second / processes
    if use_seconds is None:
        use_seconds = facts.ping_seconds + (facts.operation_seconds or 0.0)
    source = f"the server's operations in {seconds:g} s, by {processes} process(es)"
    return Measured(facts.address, Load.exponential(rate, use_seconds), None, source)


# In words


def _as_dict(measured: Measured, most: int | None) -> dict[str, Any]:
    load, wanted = measured.load, measured.wanted
    waits = [predict(load, size) for size in candidate_sizes(load, measured.max_size)]
    return {
        "pool": measured.pool,
        "source": measured.source,
        "rate_per_second": load.rate,
        "use_seconds": load.use_seconds,
        "connections_in_use": load.connections,
        "max_pool_size": measured.max_size,
        "measured_p95": measured.waited,
        "recommended": wanted if most is None else min(wanted, most),
        "wanted": wanted,
        "trouble": measured.trouble,
        "sizes": [
            {k: None if v == math.inf else v for k, v in asdict(wait).items()} for wait in waits
        ],
    }


def in_words(measured: Measured, most: int | None) -> str:
    """Return a pool's sizes as a table, with the wait as a plot."""
    load, wanted = measured.load, measured.wanted
    sizes = {*candidate_sizes(load, measured.max_size), wanted} | (
        {most} if most and most < wanted else set()
    )
    waits = [predict(load, size) for size in sorted(sizes)]
    longest = max((wait.p95 for wait in waits if wait.p95 < math.inf), default=0.0)
    lines = [
        f"{measured.pool}: {load.rate:.1f} callers per second, each has a connection for "
        f"{load.use_seconds * 1e3:.1f} ms: {load.connections:.2f} in use on average",
        f"({measured.source})",
        "",
        f"{'size':>7}  {'busy':>6}  {'who wait':>8}  {'p95 wait':>10}",
    ]
    for wait in waits:
        notes = []
        if wait.size == measured.max_size:
            waited = measured.waited
            notes.append("now" if waited is None else f"now (p95 measured: {waited * 1e3:.1f} ms)")
        if most is not None and wait.size > most:
            notes.append("more than the server has")
        elif wait.size == wanted:
            notes.append("recommended")
        elif wait.size == most:
            notes.append("all that the server has")
        line = (
            f"{wait.size:>7}  {wait.utilization:>6.0%}  {wait.waiting_share:>8.1%}  "
            f"{_seconds(wait):>10}  {_bar(wait, longest):<{_BAR}}  {', '.join(filter(None, notes))}"
        )
        lines.append(line.rstrip())
    now = next((wait for wait in waits if wait.size == measured.max_size), None)
    if now and measured.waited and is_crowded(measured.waited, now.p95):
        lines.append(
            "They wait for longer than the table has it, which is for callers who come at random: "
            "these come in crowds, or again as soon as they are served."
        )
    if measured.trouble:
        lines.append(f"See to that first: {measured.trouble} (pool-telemetry doctor tells more).")
    if most is not None and wanted > most:
        lines.append(
            f"The load asks for {wanted}, and the server has {most} for each process, beside "
            f"{MONITORING} that watch it: shorten what holds a connection, or raise its limit."
        )
    elif measured.at_least >= wanted > recommend_size(load):
        lines.append(
            f"{wanted}, because callers found all taken for a while: a rate alone does not show it."
        )
    return "\n".join(lines)


def _seconds(wait: WaitPrediction) -> str:
    return "no end" if wait.p95 == math.inf else f"{wait.p95 * 1e3:.1f} ms"


def _bar(wait: WaitPrediction, longest: float) -> str:
    if wait.p95 == math.inf:
        return "█" * _BAR
    return "▇" * math.ceil(wait.p95 / longest * (_BAR - 4)) if longest else ""
