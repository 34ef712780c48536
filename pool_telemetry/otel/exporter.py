"""An exporter that adds our ready-made histograms to the data of another exporter.

The SDK has no observable histogram. This exporter saves the SDK from counting each duration again.
"""

import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics import Histogram as SdkHistogram
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    ResourceMetrics,
)

from pool_telemetry.catalog import CATALOG
from pool_telemetry.otel.collection import SCOPE, Collection, SeriesKey, attributes_of
from pool_telemetry.process import after_fork
from pool_telemetry.stats import HistogramStats

_exporters: "weakref.WeakSet[HistogramExporter]" = weakref.WeakSet()


class HistogramExporter(MetricExporter):
    """Adds every client's histograms to the data, and passes it to another exporter.

    The histograms are of the same collection as the other metrics. Wrap the reader's exporter with
    it, and pass it to `register()`, which then records no durations in the SDK:

        exporter = HistogramExporter(OTLPMetricExporter())
        provider = MeterProvider([PeriodicExportingMetricReader(exporter)])
        register(provider, exporter)

    Args:
        exporter: The exporter that sends the data.

    Attributes:
        collection: The clients' stats at the current collection.
    """

    def __init__(self, exporter: MetricExporter) -> None:
        super().__init__(exporter._preferred_temporality, exporter._preferred_aggregation)
        self._exporter = exporter
        self._temporality = (self._preferred_temporality or {}).get(
            SdkHistogram, AggregationTemporality.CUMULATIVE
        )
        self._sent: dict[SeriesKey, tuple[HistogramStats, int]] = {}
        self.collection = Collection()
        _exporters.add(self)

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        """Send the data with our histograms in our instruments' scope."""
        resources = [self._with_ours(one) for one in metrics_data.resource_metrics]
        return self._exporter.export(MetricsData(resources), timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Flush the wrapped exporter."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Shut the wrapped exporter down."""
        self._exporter.shutdown(timeout_millis, **kwargs)

    def _with_ours(self, resource: ResourceMetrics) -> ResourceMetrics:
        return replace(
            resource,
            scope_metrics=[
                replace(scope, metrics=[*scope.metrics, *self._histograms()])
                if scope.scope.name == SCOPE[0]
                else scope
                for scope in resource.scope_metrics
            ],
        )

    def _histograms(self) -> Iterator[Metric]:
        now, sent = time.time_ns(), self.collection.of_known(self._sent)
        delta = self._temporality is AggregationTemporality.DELTA
        for metric in CATALOG:
            points = []
            for client in self.collection.clients if metric.bounds else ():
                for values, value in metric.read(client):
                    assert isinstance(value, HistogramStats)
                    sent[metric.name, values] = value, now
                    begin = int(client.since * 1e9)
                    longest: float | None = value.max
                    if delta:
                        before, begin = self._sent.get((metric.name, values), (None, begin))
                        value, longest = value.since(before), None
                    attributes = attributes_of(metric, values)
                    points.append(_point(value, attributes, begin, now, longest))
            if points:
                data = Histogram(points, self._temporality)
                yield Metric(metric.name, metric.description, metric.unit, data)
        self._sent = sent


@after_fork
def _begin_anew() -> None:
    for exporter in list(_exporters):
        exporter._sent = {}  # the next delta is not that to the parent's counts


def _point(
    histogram: HistogramStats,
    attributes: dict[str, str | int],
    begin: int,
    now: int,
    longest: float | None,
) -> HistogramDataPoint:
    unknown: Any = None  # OTLP leaves the field out
    exemplars = [
        Exemplar({}, one.seconds, int(one.time * 1e9), span_id=one.link[1], trace_id=one.link[0])
        for one in histogram.exemplars.values()
    ]
    return HistogramDataPoint(
        attributes=attributes,
        start_time_unix_nano=begin,
        time_unix_nano=now,
        count=histogram.count,
        sum=histogram.sum,
        bucket_counts=histogram.counts,
        explicit_bounds=histogram.bounds,
        min=unknown,
        max=unknown if longest is None else longest,
        exemplars=exemplars,
    )
