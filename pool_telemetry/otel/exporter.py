"""Our histograms, added to what another exporter sends: aggregated once, by us, and handed over.

The SDK has no observable histogram; this spares it to count every duration once more.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

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
from pool_telemetry.otel.look import SCOPE, Look, attributes_of
from pool_telemetry.stats import HistogramStats


class HistogramExporter(MetricExporter):
    """Adds every client's histograms, of the same look as the other metrics, and passes it on.

    Use it where you make the reader, and give it to `register()`, which then spares the SDK the
    histograms:

        exporter = HistogramExporter(OTLPMetricExporter())
        provider = MeterProvider([PeriodicExportingMetricReader(exporter)])
        register(provider, exporter)

    Args:
        exporter: Who sends it. Ours are cumulative, whatever it prefers.

    Attributes:
        look: What the present collection saw.
    """

    def __init__(self, exporter: MetricExporter) -> None:
        super().__init__(exporter._preferred_temporality, exporter._preferred_aggregation)
        self._exporter = exporter
        self.look = Look()

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        """Send it with our histograms in our instruments' scope."""
        resources = [self._with_ours(one) for one in metrics_data.resource_metrics]
        return self._exporter.export(MetricsData(resources), timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Flush the exporter behind."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Shut the exporter behind down."""
        self._exporter.shutdown(timeout_millis, **kwargs)

    def _with_ours(self, resource: ResourceMetrics) -> ResourceMetrics:
        return replace(
            resource,
            scope_metrics=[
                replace(scope, metrics=[*scope.metrics, *self._histograms()])
                if scope.scope.name == SCOPE
                else scope
                for scope in resource.scope_metrics
            ],
        )

    def _histograms(self) -> Iterator[Metric]:
        now = time.time_ns()
        for metric in CATALOG:
            if metric.instrument != "histogram":
                continue
            points = [
                _point(value, attributes_of(metric, values), client.since, now)
                for client in self.look.clients
                for values, value in metric.read(client)
                if isinstance(value, HistogramStats)
            ]
            if points:
                data = Histogram(points, AggregationTemporality.CUMULATIVE)
                yield Metric(metric.name, metric.description, metric.unit, data)


def _point(
    histogram: HistogramStats, attributes: dict[str, str | int], since: float, now: int
) -> HistogramDataPoint:
    return HistogramDataPoint(
        attributes=attributes,
        start_time_unix_nano=int(since * 1e9),
        time_unix_nano=now,
        count=histogram.count,
        sum=histogram.sum,
        bucket_counts=histogram.counts,
        explicit_bounds=histogram.bounds,
        min=None,  # type: ignore[arg-type]  # not known; OTLP leaves it out
        max=histogram.max,
    )
