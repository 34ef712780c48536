"""A service as a source: its own diagnosis, or two scrapes of its metrics."""

import contextlib
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, get_args

from pool_telemetry.catalog import CATALOG, Value
from pool_telemetry.cli.prometheus_text import MAX_VALUE, ScrapedProcess, read
from pool_telemetry.cli.sources.http import (
    NotFoundError,
    RefusedError,
    SourceError,
    get,
    get_json,
    shown,
    time_limit,
)
from pool_telemetry.diagnosis import Diagnosis, Finding, Severity, worst_first
from pool_telemetry.stats import ClientStats, HistogramStats

_DIAGNOSIS: Final = "/pool/diagnosis"
_ROUTES: Final = (
    *(_DIAGNOSIS, "/pool/holders", "/metrics/mongodb"),
    *("/health", "/health/live", "/health/ready"),
)
_MAX_WORDS: Final = 100
_MAX_NUMBERS: Final = 100  # of one finding
_SCRAPES: Final = 8  # one of two processes answers all of them once in 128 times
_SCRAPES_SECONDS: Final = 5.0
"""The limit of these scrapes, in seconds: the answer that they explain is already there."""
_FIELDS: Final = frozenset(field.name for field in fields(Finding))
_SAME_START_SECONDS: Final = 0.1
"""Two start times that differ by less, in seconds, belong to one process: steps are of 10 ms."""


def base_url(url: str) -> str:
    """Return the address below which a service has its routes, from the address of any of them."""
    parts = urllib.parse.urlsplit(url)
    path = parts.path.rstrip("/")
    route = next(filter(path.endswith, _ROUTES), "")
    return parts._replace(path=path.removesuffix(route), query="", fragment="").geturl()


def _is_metrics(url: str) -> bool:
    """Return whether a URL names the metrics page itself, such as `/metrics` or `/app-metrics`."""
    return urllib.parse.urlsplit(url).path.rstrip("/").endswith("metrics")


@dataclass(frozen=True, slots=True)
class Measured:
    """Samples of one client of one process, the oldest first.

    Attributes:
        worker: The number of the process; None if the service has only one.
    """

    worker: int | None
    samples: list[ClientStats]


def scrape(url: str, seconds: float) -> list[Measured]:
    """Return two samples of each client of a service, or the second alone after a restart.

    Samples of two processes are never compared. A worker that began between the two is left out.

    Args:
        url: The address of the service, or of its metrics page.
        seconds: The time between the two scrapes.

    Raises:
        SourceError: The service does not answer or shows no pool; or its counters restarted and
            it does not report when; or several processes of an older version answer.
    """
    first = {(one.worker, one.instance): one for one in _scrape(url)}
    began = max(client.at for one in first.values() for client in one.clients)
    time.sleep(seconds)
    found = list[Measured]()
    for one in _scrape(url):
        known = first.get((one.worker, one.instance))
        if known is None and one.worker:
            continue
        before = {client.name: client for client in known.clients} if known else {}
        for now in one.clients:
            if known is None and one.instance and not now.since >= began:
                raise SourceError(_several(url))
            samples = _samples(before.get(now.name), now, began, url, is_known=bool(one.instance))
            found.append(Measured(int(one.worker) if one.worker else None, samples))
    if not found:
        raise SourceError(
            f"every process of {shown(url)} was replaced between two scrapes: run the command again"
        )
    return found


def _samples(
    before: ClientStats | None, now: ClientStats, began: float, url: str, *, is_known: bool
) -> list[ClientStats]:
    if before is None:
        return [replace(now, since=now.since or began)]
    both_known = before.since and now.since
    same_start = not both_known or abs(now.since - before.since) <= _SAME_START_SECONDS
    if is_known or (same_start and not _any_counter_fell(before, now)):
        since = before.since or now.since
        return [replace(before, since=since), replace(now, since=since)]
    if now.since and now.since < began:
        raise SourceError(_several(url))
    if not now.since:
        raise SourceError(
            f"the counters of {shown(url)} restarted between two scrapes, and it does not "
            "report when (process_start_time_seconds): run the command again, on one process only"
        )
    return [now]


def _several(url: str) -> str:
    return (
        f"several processes answer at {shown(url)}, each for itself: their version of "
        "pool_telemetry is too old, or they have workers=False or watch=False. Update it, or ask "
        "each process at an address of its own"
    )


def _any_counter_fell(before: ClientStats, now: ClientStats) -> bool:
    """Return whether a counter fell: the process restarted, or another process answered."""
    for metric in CATALOG:
        if metric.instrument in ("counter", "histogram"):
            known = dict(metric.read(before))
            for labels, value in metric.read(now):
                if labels in known and _count(value) < _count(known[labels]):
                    return True
    return False


def _count(value: Value) -> float:
    return value.count if isinstance(value, HistogramStats) else value


def _scrape(url: str) -> list[ScrapedProcess]:
    page = url if _is_metrics(url) else base_url(url) + "/metrics"
    try:
        found = read(get(page), time.time())
    except RefusedError:
        raise
    except NotFoundError as error:
        raise NotFoundError(
            f"{error}: give the address of a service that serves /metrics"
        ) from None
    except ValueError as error:
        raise SourceError(
            f"{shown(page)} is not in Prometheus' text format ({str(error)[:_MAX_WORDS]}): give "
            "the address of a service that serves /metrics"
        ) from error
    if not found:
        raise SourceError(
            f"{shown(page)} has no metrics of a pool: check that the service uses "
            "pool_telemetry and has run an operation (for a Prometheus use pool-telemetry size)"
        )
    return found


def own_diagnosis(url: str) -> tuple[Diagnosis, list[str]] | None:
    """Return a service's answer at /pool/diagnosis: its diagnosis, and a line for each pool.

    Returns None if the service has no such route, or if the URL names the metrics page.

    Raises:
        SourceError: The service does not answer, or its answer has another version's format.
    """
    if _is_metrics(url):
        return None
    page = base_url(url) + _DIAGNOSIS
    try:
        answer = get_json(page)
    except NotFoundError:
        return None
    if not isinstance(answer, dict) or "findings" not in answer:
        return None
    diagnosis, lines = _parse(answer, page)
    if (summary := _processes(answer.get("workers"))) is not None:
        lines.append(summary)
    if "instance" not in answer and _have_several_starts(base_url(url) + "/metrics"):
        lines.append(f"{_several(url)}. This is the answer of one of them.")
    return diagnosis, lines


def _processes(workers: Any) -> str | None:
    """Return how many processes a service has, and how many do not answer; None: only one."""
    if not isinstance(workers, list):
        return None
    states = [one.get("state") for one in workers if isinstance(one, dict)]
    counts = {state: states.count(state) for state in ("silent", "gone")}
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    total = len(states) - states.count("ended")
    return ", ".join([f"{total} process{'es' if total > 1 else ''} of this service", *parts])


def _have_several_starts(page: str) -> bool:
    """Return whether processes with different starts answer, as far as a few scrapes show."""
    starts = list[float]()
    with contextlib.suppress(SourceError, ValueError), time_limit(_SCRAPES_SECONDS):
        for _ in range(_SCRAPES):
            starts += [client.since for one in read(get(page), 0.0) for client in one.clients]
    return bool(starts) and max(starts) - min(starts) > _SAME_START_SECONDS


def _parse(answer: Mapping[str, Any], page: str) -> tuple[Diagnosis, list[str]]:
    try:
        diagnosis = worst_first(_finding(one) for one in answer["findings"])
        return diagnosis, [str(line) for line in answer.get("pools", ())]
    except (AttributeError, KeyError, TypeError) as error:
        raise SourceError(
            f"{shown(page)} has the format of another version: use the version of "
            "pool-telemetry that the service has"
        ) from error


def _finding(answer: Mapping[str, Any]) -> Finding:
    """Return a finding as the service gave it; a field that is not known here is left out.

    Raises:
        AttributeError, TypeError: A field is missing, or has a value of another type.
    """
    finding = Finding(**{key: value for key, value in answer.items() if key in _FIELDS})
    texts = (finding.verdict, finding.pool, finding.because, finding.advice)
    numbers = (finding.ended, finding.worker, finding.pid)
    values = [
        *(one for one in numbers if one is not None),
        *finding.evidence.values(),
        *finding.change.values(),
    ]
    if not all(isinstance(one, str) for one in (*texts, finding.id, finding.runbook)):
        raise TypeError
    if not all(type(one) in (int, float) and abs(one) <= MAX_VALUE for one in values):
        raise TypeError
    if finding.ended is not None and finding.ended < 0.0:
        raise TypeError
    names = (*finding.evidence, *finding.change)
    if len(names) > _MAX_NUMBERS or any(len(name) > _MAX_WORDS for name in names):
        raise TypeError
    if finding.severity not in get_args(Severity):
        raise TypeError
    return finding
