"""The catalog for Prometheus: one collector covers every client of the process.

Names are the standard translation of OpenTelemetry's: dots become underscores, `_seconds` and
`_total` are appended. The collector reads at scrape time; between scrapes it costs nothing.
"""

import time
import weakref
from collections.abc import Callable, Iterator
from itertools import accumulate
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
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from pool_telemetry import stats
from pool_telemetry.catalog import CATALOG, POOL_ATTRIBUTES, Metric
from pool_telemetry.process import ProcessLock
from pool_telemetry.registry import ClosedClients, clients_to_report
from pool_telemetry.stats import HistogramStats

# A push that failed is repeated in this time, and two Prometheus may scrape the process.
LAST_SECONDS: Final = 15.0

_registered: "weakref.WeakKeyDictionary[CollectorRegistry, PoolCollector]"
_registered = weakref.WeakKeyDictionary()
_lock: Final = ProcessLock()


class PoolCollector(Collector):
    """Yields one family per catalog row, with the samples of all active clients.

    A closed client's counts stay in those of its name. Its last state is in the first collection
    after its close, and in those of the next 15 s, so that a job may close its pool and then push.
    Unused series are left out, as `aging` describes.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._closed = ClosedClients(LAST_SECONDS, clock=clock)

    def describe(self) -> Iterator[Family]:
        """Yield the families without samples, so that registering reads no client."""
        return (_family(metric) for metric in CATALOG)

    def collect(self) -> Iterator[Family]:
        """Yield the families with samples; each client is read once."""
        clients = clients_to_report(self._closed)
        for metric in CATALOG:
            family = _family(metric)
            for client in clients:
                for labels, value in metric.read(client):
                    if isinstance(value, HistogramStats):
                        family.add_metric(labels, _buckets(value), value.sum)
                    else:
                        family.add_metric(labels, value)
            yield family


def register(registry: CollectorRegistry = REGISTRY) -> PoolCollector:
    """Add every client's metrics, present and future, to a registry; a repeat changes nothing."""
    with _lock:
        if registry not in _registered:
            collector = PoolCollector()
            registry.register(collector)
            _registered[registry] = collector
        return _registered[registry]


def unregister(registry: CollectorRegistry = REGISTRY) -> None:
    """Remove the clients' metrics from a registry; without them nothing changes."""
    with _lock:
        collector = _registered.pop(registry, None)
        if collector is not None:
            registry.unregister(collector)


def generate(accept: str = "", registry: CollectorRegistry = REGISTRY) -> tuple[bytes, str]:
    """Return the registry's text and its content type, as the Accept header asks.

    The format is OpenMetrics if the header accepts it, otherwise Prometheus' text format.
    """
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def prometheus_name(metric: Metric) -> str:
    """Return a metric's name in Prometheus, with `_total` if it is a counter."""
    return _family_name(metric) + ("_total" if metric.instrument == "counter" else "")


def prometheus_label(attribute: str) -> str:
    """Return an attribute's name in Prometheus."""
    return attribute.replace(".", "_")


def _family_name(metric: Metric) -> str:
    return metric.name.replace(".", "_") + ("_seconds" if metric.unit == "s" else "")


def _family(metric: Metric) -> Any:
    kind: Any = {"counter": CounterMetricFamily, "histogram": HistogramMetricFamily}.get(
        metric.instrument, GaugeMetricFamily
    )
    labels = [prometheus_label(name) for name in (*POOL_ATTRIBUTES, *metric.attributes)]
    unit = "seconds" if metric.unit == "s" else ""
    return kind(_family_name(metric), metric.description, labels=labels, unit=unit)


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
