"""A Prometheus as a source: the load of the busiest process of each pool."""

import math
import urllib.parse
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from pool_telemetry import catalog
from pool_telemetry.cli.prometheus_text import MAX_VALUE, bound_of, histogram_of
from pool_telemetry.cli.sources.http import NotFoundError, SourceError, get_json, shown
from pool_telemetry.diagnosis.thresholds import EXHAUSTED_SHARE
from pool_telemetry.monitoring.promql import POOL, PROCESS, Promql
from pool_telemetry.stats import HistogramStats

_Series = tuple[dict[str, str], float]
"""The labels and the value of one series; the value is from 0.0 to MAX_VALUE."""

_ALWAYS_EXHAUSTED_SHARE: Final = 0.9
"""A pool that is exhausted for this share of a minute counts as exhausted for all of it."""
_FEW_TIMEOUTS_SHARE: Final = 0.05
"""Below this share of timeouts, the same callers are in the queue all the time."""


@dataclass(frozen=True, slots=True)
class BusiestProcess:
    """The process that needs most connections of a pool, in its busiest minute.

    Attributes:
        pool: The name of the pool.
        process: `job instance`.
        processes: The number of processes that have this pool.
        rate: Callers per second.
        use_time: How long callers hold a connection, in seconds.
        max_size: maxPoolSize; None when unlimited.
        at_least: The lower bound of the demand in connections. If the pool was exhausted for the
            whole minute with few timeouts, it is the connections in use plus the queue, because
            each caller returns as soon as it is served. If the pool was exhausted for a part of
            the minute, it is max_size + 1; otherwise 1.
    """

    pool: str
    process: str
    processes: int
    rate: float
    use_time: HistogramStats
    max_size: int | None
    at_least: int

    def demand(self) -> float:
        """Return how many connections the callers need at once."""
        return max(self.at_least, self.rate * (self.use_time.mean or 0.0))


def is_prometheus(url: str) -> bool:
    """Return whether the host at a URL is a Prometheus.

    Raises:
        SourceError: The host does not answer.
    """
    try:
        return bool(_query(url, "vector(1)"))
    except NotFoundError:
        return False


def busiest_processes(url: str, window: str = "1h") -> list[BusiestProcess]:
    """Return the busiest process of each pool that a Prometheus knows.

    Raises:
        SourceError: The Prometheus does not answer in its format, or knows no pool that was in use.
    """
    try:
        return _busiest_processes(url, window)
    except ValueError:
        raise SourceError(f"the Prometheus at {shown(url)} has odd buckets of use times") from None


def _busiest_processes(url: str, window: str) -> list[BusiestProcess]:
    ask = Promql(window="1m")
    by = ", ".join((*PROCESS, POOL))

    def highest(question: str, when: str = "") -> dict[tuple[str, ...], float]:
        """Return the maximum of a query in the window, by process."""
        query = f"max_over_time((sum by ({by}) ({question}){when})[{window}:15s])"
        return _by_process(_query(url, query))

    size, smallest = ask.of(catalog.MAX_SIZE), f"min_over_time({ask.over(catalog.MAX_SIZE)})"
    sizes = _by_process(_query(url, f"max by ({by}) ({size})"))
    # A shortage from the time when the pool was smaller says nothing about its present size.
    at_present_size = (
        f" and on ({by}) (max by ({by}) ({smallest}) >= on ({by}) max by ({by}) ({size} @ end()))"
    )
    rates = highest(ask.rate(catalog.CHECKOUTS))
    timeouts = highest(ask.rate(catalog.TIMEOUTS), at_present_size)
    exhausted = highest(ask.rate(catalog.EXHAUSTED_SECONDS), at_present_size)
    queues = highest(ask.of(catalog.PEAK_WAITING), at_present_size)
    used = ask.increase(catalog.USE_SECONDS, part="_bucket", window=window)
    buckets = _query(url, f"sum by (le, {by}) ({used})")
    spent = ask.increase(catalog.USE_SECONDS, part="_sum", window=window)
    sums = _by_process(_query(url, f"sum by ({by}) ({spent})"))
    below: dict[tuple[str, ...], list[tuple[float, float]]] = defaultdict(list)
    for labels, count in buckets:
        below[_process(labels)].append((bound_of(labels), count))

    def at_least(process: tuple[str, ...]) -> int:
        share, size = exhausted.get(process, 0.0), int(sizes.get(process, 0))
        few_timeouts = timeouts.get(process, 0.0) < _FEW_TIMEOUTS_SHARE * rates[process]
        if share >= _ALWAYS_EXHAUSTED_SHARE and few_timeouts:
            return size + int(queues.get(process, 0))
        return size + 1 if share >= EXHAUSTED_SHARE else 1

    found: dict[str, list[BusiestProcess]] = defaultdict(list)
    for process, rate in rates.items():
        if rate > 0.0 and process in below:
            candidate = BusiestProcess(
                pool=process[-1],
                process=" ".join(filter(None, process[:-1])),
                processes=1,
                rate=rate,
                use_time=histogram_of(sorted(below[process]), sums.get(process, 0.0)),
                max_size=int(sizes[process]) if process in sizes else None,
                at_least=at_least(process),
            )
            found[candidate.pool].append(candidate)
    if not found:
        raise SourceError(
            f"the Prometheus at {shown(url)} has no pool that was in use in the last {window}: "
            "check that it scrapes the service's /metrics"
        )
    return [
        replace(max(candidates, key=BusiestProcess.demand), processes=len(candidates))
        for _, candidates in sorted(found.items())
    ]


def _query(url: str, query: str) -> list[_Series]:
    parameters = urllib.parse.urlencode({"query": query})
    page = urllib.parse.urljoin(url, "/api/v1/query")
    answer = get_json(f"{page}?{parameters}")
    try:
        refused = answer["status"] != "success"
        found = [] if refused else [_series(one) for one in answer["data"]["result"]]
    except (AttributeError, LookupError, TypeError, ValueError):
        raise NotFoundError(f"{shown(page)} does not answer as a Prometheus does") from None
    if refused:
        raise SourceError(f"the Prometheus at {shown(url)} refuses the query: {query}")
    return [(labels, value) for labels, value in found if not math.isnan(value)]


def _series(answer: Mapping[str, Any]) -> _Series:
    labels = dict(answer["metric"])
    if not all(isinstance(value, str) for value in labels.values()):
        raise TypeError
    number = float(answer["value"][1])
    if number < 0.0 or number > MAX_VALUE:
        raise ValueError(number)
    return labels, number


def _by_process(result: list[_Series]) -> dict[tuple[str, ...], float]:
    return {_process(labels): value for labels, value in result}


def _process(labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(labels.get(label, "") for label in (*PROCESS, POOL))
