"""The catalog for Prometheus: one collector covers every client of the process, or of the service.

Names are the standard translation of OpenTelemetry's: dots become underscores, `_seconds` and
`_total` are appended. The collector reads at scrape time; between scrapes it costs nothing.
"""

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import REGISTRY
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import (
    Metric as Family,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from pool_telemetry import stats, totals, watch, workers
from pool_telemetry.catalog import CATALOG, POOL_ATTRIBUTES, PROCESS_UP, WORKER, Metric
from pool_telemetry.exposition import Point, family_lines
from pool_telemetry.log_lines import ProcessLog
from pool_telemetry.own_thread import paced
from pool_telemetry.process import ProcessLock
from pool_telemetry.registry import ClosedClients, clients_to_report
from pool_telemetry.stats import HistogramStats, ProcessStats
from pool_telemetry.workers import STATS, Part

# A push that failed is repeated in this time, and two Prometheus may scrape the process.
LAST_SECONDS: Final = 15.0

_registered: "weakref.WeakKeyDictionary[CollectorRegistry, PoolCollector]"
_registered = weakref.WeakKeyDictionary()
_lock: Final = ProcessLock()
_log: Final = ProcessLog("pool_telemetry.prometheus")
_MULTIPROCESS: Final = "PROMETHEUS_MULTIPROC_DIR"
_OPENMETRICS: Final = "application/openmetrics-text"
_END: Final = b"# EOF\n"
_of_all: ContextVar[bool] = ContextVar("pool_telemetry_of_all", default=False)
"""Whether collections in this context show all processes of the service."""
_of_others: ContextVar[bool] = ContextVar("pool_telemetry_of_others", default=False)
"""Whether collections in this context leave out the pools' metrics."""


class PoolCollector(Collector):
    """Yields one family per catalog row, with the samples of all active clients.

    A closed client's counts stay in those of its name. Its last state is in the first collection
    after its close, and in those of the next 15 s, so that a job may close its pool and then push.
    Unused series are left out, as `aging` describes.

    Args:
        workers: Whether it shows all processes of the service, and not in `generate()` only.
        clock: Monotonic seconds.
    """

    def __init__(
        self, *, workers: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._workers = workers
        self._closed = ClosedClients(LAST_SECONDS, clock=clock)

    def describe(self) -> Iterator[Family]:
        """Yield the families without samples, so that registering reads no client."""
        return (_family(metric) for metric in (*CATALOG, PROCESS_UP))

    def collect(self) -> Iterator[Family]:
        """Yield the families with samples; each client is read once."""
        if _of_others.get():
            return
        for metric, names, points in self._read():
            yield _filled(metric, names, points)

    def lines(self, *, openmetrics: bool) -> Iterator[str]:
        """Yield the text of all families, in parts."""
        for metric, names, points in self._read():
            family = _family(metric, names)
            yield from family_lines(family, names, points, openmetrics=openmetrics)

    def _read(self) -> Iterator[tuple[Metric, tuple[str, ...], Iterator[Point]]]:
        """Yield each metric, the names of its labels, and its series."""
        parts, shared = self._parts()
        for metric in CATALOG:
            yield metric, _label_names(metric, shared=shared), _points(metric, parts, shared=shared)
        running = (
            ((part.instance, str(part.pid), *_worker(part, shared=shared)), _is_up(part))
            for part in parts
            if part.state != "ended"
        )
        yield PROCESS_UP, _label_names(PROCESS_UP, shared=shared), running

    def _parts(self) -> tuple[list[Part[ProcessStats]], bool]:
        """Return the processes to show, and whether they need names."""
        if self._workers or _of_all.get():
            watch.take_part()
            if workers.is_shared():
                return [_counts_of_ended(part) for part in workers.ask(STATS, ProcessStats)], True
        clients = tuple(clients_to_report(self._closed))
        return [
            replace(workers.own_identity(), body=ProcessStats(main=None, clients=clients))
        ], False


def _points(
    metric: Metric, parts: Sequence[Part[ProcessStats]], *, shared: bool
) -> Iterator[Point]:
    for part in parts:
        own = _worker(part, shared=shared)
        for client in part.body.clients if part.body else ():
            for labels, value in metric.read(client):
                yield (*labels, *own), value


def _worker(part: Part[Any], *, shared: bool) -> tuple[str, ...]:
    if not shared:
        return ()
    return ("" if part.worker is None else str(part.worker),)


def _is_up(part: Part[Any]) -> int:
    return int(part.state in ("answers", "late"))


def _counts_of_ended(part: Part[ProcessStats]) -> Part[ProcessStats]:
    """Return a process without the state of its pools, if it has ended."""
    if part.state not in ("ended", "gone") or part.body is None:
        return part
    counts = tuple(map(totals.counts_of, part.body.clients))
    return replace(part, body=replace(part.body, clients=counts))


def register(registry: CollectorRegistry = REGISTRY, *, workers: bool = False) -> PoolCollector:
    """Add every client's metrics, present and future, to a registry; a repeat changes nothing.

    Args:
        registry: The registry.
        workers: Whether the registry shows all processes of the service, whoever generates its
            text. Do that only if they share the port on which the text is served; otherwise each
            process would be counted several times. `generate()` shows all in any case.
    """
    with _lock:
        is_new = registry not in _registered
        collector = add_to(registry, workers=workers)
        if is_new and registry is REGISTRY and _is_multiprocess():
            _log.warning(
                "%s is set: the pools' metrics are not among those of a MultiProcessCollector. "
                "create_router() and pool_telemetry.prometheus.generate() show both. So does a "
                "registry that has a MultiProcessCollector after register(registry, workers=True)",
                _MULTIPROCESS,
            )
        return collector


def add_to(registry: CollectorRegistry, *, workers: bool = False) -> PoolCollector:
    """Do what `register()` does, without a word about multiprocess mode: for `generate()`."""
    with _lock:
        if (collector := _registered.get(registry)) is not None:
            _restore(registry, collector)
            return collector
        collector = PoolCollector(workers=workers)
        registry.register(collector)
        _registered[registry] = collector
        return collector


def unregister(registry: CollectorRegistry = REGISTRY) -> None:
    """Remove the clients' metrics from a registry; without them nothing changes."""
    with _lock:
        collector = _registered.pop(registry, None)
        if collector is not None:
            registry.unregister(collector)


def generate(
    accept: str = "",
    registry: CollectorRegistry = REGISTRY,
    *,
    workers: bool = True,
    names: Iterable[str] = (),
) -> tuple[bytes, str]:
    """Return the registry's text and its content type, as the Accept header asks.

    The format is OpenMetrics if the header accepts it, otherwise Prometheus' text format. With
    PROMETHEUS_MULTIPROC_DIR the default registry's text has the application's metrics of all
    processes, too. A character that UTF-8 lacks becomes a question mark.

    Args:
        accept: The request's Accept header; one that nobody understands asks for text.
        registry: The registry, to which `register()` added the pools' metrics.
        workers: Whether the pools' metrics are those of all processes of the service.
        names: The samples to return, as `name[]` asks for; empty is all.
    """
    encode, content_type = choose_format(accept)
    shown: Any = registry
    with _lock:
        if (collector := _registered.get(registry)) is not None:
            _restore(registry, collector)
            if registry is REGISTRY and _is_multiprocess():
                shown = CollectorRegistry()
                MultiProcessCollector(shown)  # type: ignore[no-untyped-call]  # untyped
                shown.register(collector)
    if names:
        shown = shown.restricted_registry(names)
    all_workers = _of_all.set(workers)
    quickly = collector is not None and not names and _keeps_names(encode)
    only_others = _of_others.set(quickly)
    try:
        text = _encoded(encode, shown)
        if collector is not None and quickly:
            openmetrics = content_type.startswith(_OPENMETRICS)
            text = text.removesuffix(_END)
            ours = "".join(paced(collector.lines(openmetrics=openmetrics)))
            text += ours.encode("utf-8", "replace") + (_END if openmetrics else b"")
        return text, content_type
    finally:
        _of_others.reset(only_others)
        _of_all.reset(all_workers)


def existing(names: Iterable[str], registry: CollectorRegistry) -> set[str]:
    """Return those of the names that the registry's collectors describe.

    Names may be unknown because a collector describes none. `generate()` finds such a sample only
    if the registry supports collectors without names; then each name is returned.
    """
    # The registry's public methods tell names only by collecting every sample.
    if getattr(registry, "_collectors_without_names", True):
        return set(names)
    return {one for one in names if one in registry._names_to_collectors}


def choose_format(accept: str) -> tuple[Callable[[Any], bytes], str]:
    """Return prometheus_client's encoder for an Accept header, and its content type.

    A malformed header counts as none.
    """
    with contextlib.suppress(TypeError, ValueError):  # of a version that is no version
        encode, content_type = choose_encoder(accept)
        if content_type.isascii() and content_type.isprintable():  # it repeats the version
            return encode, content_type
    return choose_encoder("")


def _keeps_names(encode: Callable[[Any], bytes]) -> bool:
    """Return whether this encoder writes the names of the catalog as they are."""
    return getattr(encode, "keywords", {}).get("escaping") not in ("dots", "values")


def _encoded(encode: Callable[[Any], bytes], registry: Any) -> bytes:
    try:
        return encode(registry)
    except UnicodeEncodeError as error:  # a lone surrogate in a label of the application
        return error.object.encode("utf-8", "replace")


def _restore(registry: CollectorRegistry, collector: PoolCollector) -> None:
    """Register a collector again if the application has emptied the registry."""
    with contextlib.suppress(ValueError):  # it is there
        registry.register(collector)


def _is_multiprocess() -> bool:
    """Return whether prometheus_client's metrics are files in a directory, and it is there."""
    return Path(os.environ.get(_MULTIPROCESS) or "/dev/null").is_dir()


def prometheus_name(metric: Metric) -> str:
    """Return a metric's name in Prometheus, with `_total` if it is a counter."""
    return _family_name(metric) + ("_total" if metric.instrument == "counter" else "")


def prometheus_label(attribute: str) -> str:
    """Return an attribute's name in Prometheus."""
    return attribute.replace(".", "_")


def _family_name(metric: Metric) -> str:
    return metric.name.replace(".", "_") + ("_seconds" if metric.unit == "s" else "")


def _label_names(metric: Metric, *, shared: bool) -> tuple[str, ...]:
    of_pool = () if metric is PROCESS_UP else POOL_ATTRIBUTES
    worker = (WORKER,) if shared else ()
    return tuple(map(prometheus_label, (*of_pool, *metric.attributes, *worker)))


def _family(metric: Metric, names: Sequence[str] = ()) -> Any:
    kind: Any = {
        "counter": CounterMetricFamily,
        "histogram": HistogramMetricFamily,
    }.get(metric.instrument, GaugeMetricFamily)
    unit = "seconds" if metric.unit == "s" else ""
    return kind(_family_name(metric), metric.description, labels=names, unit=unit)


def _filled(metric: Metric, names: Sequence[str], points: Iterable[Point]) -> Any:
    family = _family(metric, names)
    for labels, value in points:
        if isinstance(value, HistogramStats):
            family.add_metric(labels, _buckets(value), value.sum)
        else:
            family.add_metric(labels, value)
    return family


def _buckets(histogram: HistogramStats) -> list[tuple[str, float, Exemplar | None]]:
    """Return each bucket's bound, count and exemplar; only OpenMetrics shows exemplars."""
    bounds = (*map(str, histogram.bounds), "+Inf")
    exemplars = (_exemplar(histogram.exemplars.get(i)) for i in range(len(bounds)))
    return list(zip(bounds, accumulate(histogram.counts), exemplars, strict=True))


def _exemplar(found: stats.Exemplar | None) -> Exemplar | None:
    if found is None:
        return None
    trace_id, span_id = found.link
    labels = {"trace_id": f"{trace_id:032x}", "span_id": f"{span_id:016x}"}
    return Exemplar(labels, found.seconds, found.time)
