"""`pool-telemetry size`: what each size of a pool would mean for those who wait.

Arrivals and use times are measured, the queue is `sizing.py`'s. Nothing is advised beyond what the
server has for each process.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Final

from pool_telemetry import sources
from pool_telemetry.diagnosis import diagnose
from pool_telemetry.sizing import Load, Wait, predict, recommend_size, sizes_around
from pool_telemetry.sources import SourceError
from pool_telemetry.window import windows

MONITORING: Final = 3
"""Connections that each client has beside its pool, to watch a server."""
_BAR: Final = 30


@dataclass(frozen=True, slots=True)
class Measured:
    """One pool's load, and what it has now.

    Attributes:
        pool: Its name.
        load: What is asked of it.
        max_size: maxPoolSize; None where it is not known, or unlimited.
        source: How it was measured, in words.
        at_least: Who waited at once, so that a rate alone says too little.
    """

    pool: str
    load: Load
    max_size: int | None
    source: str
    at_least: int = 1


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
    given = None
    if rate is not None and use_seconds is not None:
        given = Load.evenly(rate, use_seconds)
    if target is None:
        if given is None:
            raise SourceError("without an address it needs --rate and --use-time")
        found = [Measured("the pool", given, None, "as given")]
    elif sources.is_server(target):
        facts = sources.ask_server(target, seconds)
        if not isinstance(facts, sources.ServerFacts):
            raise SourceError(facts.findings[0].because)
        limit = facts.limit if limit is None else limit
        if not (rate or facts.operations_per_second):
            raise SourceError(f"nobody asked anything of the server for {seconds:g} s")
        found = [_of_server(facts, rate, use_seconds, processes, seconds)]
    elif sources.is_prometheus(target):
        found = [_of_prometheus(one) for one in sources.busiest(target)]
    else:
        found = _of_service(target, seconds)
    if given is not None:
        found = [Measured(one.pool, given, one.max_size, "as given") for one in found]
    most = None if limit is None else max(1, limit // processes - MONITORING)
    if as_json:
        return json.dumps([_as_dict(one, most) for one in found], indent=2)
    return "\n\n".join(in_words(one, most) for one in found)


def _of_service(target: str, seconds: float) -> list[Measured]:
    before, now = sources.scrape(target, seconds)
    earlier = {client.name: client for client in before}
    found = list[Measured]()
    for client in now:
        history = [one for one in (earlier.get(client.name),) if one is not None]
        needs = {one.pool: one.change for one in diagnose(client, history).findings}
        for pool in client.open_pools:
            window = windows([*history, client], (pool.host, pool.port))[-1]
            name = client.pool_name(pool)
            if window.use_time is not None and window.rate:
                load = Load.of(window.rate, window.use_time)
                least = needs.get(name, {}).get("maxPoolSize", 1)
                source = f"measured for {window.seconds:.0f} s"
                found.append(Measured(name, load, pool.max_size, source, least))
    if not found:
        raise SourceError(f"nobody used a connection for {seconds:g} s: look for longer")
    return found


def _of_prometheus(busiest: sources.Busiest) -> Measured:
    source = (
        f"the busiest minute of the last hour of the busiest of {busiest.processes} processes "
        f"({busiest.process})"
    )
    load = Load.of(busiest.rate, busiest.use_time)
    return Measured(busiest.pool, load, busiest.max_size, source, max(1, busiest.at_once))


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
    took = "and their times there" if facts.operation_seconds else "and pings: it tells no times"
    source = f"by the server's operations {took}, for {seconds:g} s, by {processes} process(es)"
    return Measured(facts.address, Load.evenly(rate, use_seconds), None, source)


# In words


def _advice(measured: Measured, most: int | None) -> tuple[int, int]:
    """Return the size to have, and the one that the load asks for."""
    wanted = recommend_size(measured.load, at_least=measured.at_least)
    return (wanted if most is None else min(wanted, most)), wanted


def _as_dict(measured: Measured, most: int | None) -> dict[str, Any]:
    advised, wanted = _advice(measured, most)
    load = measured.load
    waits = [predict(load, size) for size in sizes_around(load, measured.max_size)]
    return {
        "pool": measured.pool,
        "source": measured.source,
        "rate_per_second": load.rate,
        "use_seconds": load.use_seconds,
        "connections_in_use": load.connections,
        "max_pool_size": measured.max_size,
        "recommended": advised,
        "wanted": wanted,
        "sizes": [
            {k: None if v == math.inf else v for k, v in asdict(wait).items()} for wait in waits
        ],
    }


def in_words(measured: Measured, most: int | None) -> str:
    """Return a pool's sizes as a table, with the wait as a plot."""
    load, (advised, wanted) = measured.load, _advice(measured, most)
    sizes = {*sizes_around(load, measured.max_size), advised, wanted}
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
        notes = [
            "now" if wait.size == measured.max_size else "",
            "recommended" if wait.size == advised else "",
            "more than the server has" if most is not None and wait.size > most else "",
        ]
        line = (
            f"{wait.size:>7}  {wait.utilization:>6.0%}  {wait.waiting_share:>8.1%}  "
            f"{_seconds(wait):>10}  {_bar(wait, longest):<{_BAR}}  {', '.join(filter(None, notes))}"
        )
        lines.append(line.rstrip())
    if wanted > advised:
        lines.append(
            f"the load asks for {wanted}, and the server has {most} for each process: run more "
            "processes elsewhere, or shorten what holds a connection"
        )
    elif measured.at_least >= wanted > recommend_size(load):
        lines.append(f"{wanted}, because that many came at once: a rate alone does not show it")
    return "\n".join(lines)


def _seconds(wait: Wait) -> str:
    return "no end" if wait.p95 == math.inf else f"{wait.p95 * 1e3:.1f} ms"


def _bar(wait: Wait, longest: float) -> str:
    if wait.p95 == math.inf:
        return "█" * _BAR
    return "▇" * math.ceil(wait.p95 / longest * (_BAR - 4)) if longest else ""
