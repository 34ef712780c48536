"""The catalog for OpenTelemetry: one registration covers every client of the process.

All values are read when a reader collects; between collections the instruments cost nothing.
Nothing is recorded on the event path, because a garbage collection inside the SDK's locks may
publish an event, and recording it would deadlock.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from operator import mul
from typing import Any, Final

from opentelemetry import metrics as api
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

from pool_telemetry.catalog import CATALOG, Metric
from pool_telemetry.otel.collection import SCHEMA_URL, SCOPE, Collection, SeriesKey, attributes_of
from pool_telemetry.otel.exporter import HistogramExporter
from pool_telemetry.process import ProcessLock, after_fork, notice_fork
from pool_telemetry.stats import HistogramStats, TraceLink

# The caller of a collection may be in a span, which has nothing to do with the recorded values.
_NO_SPAN: Final = trace.set_span_in_context(trace.INVALID_SPAN)
_SAMPLED: Final = trace.TraceFlags(trace.TraceFlags.SAMPLED)


class _Global:
    """Stands for the global provider, because that is a placeholder object before it is set."""


_global: Final = _Global()
_registered: "weakref.WeakKeyDictionary[MeterProvider | _Global, _Instruments]"
_registered = weakref.WeakKeyDictionary()
_lock: Final = ProcessLock()


def register(
    meter_provider: MeterProvider | None = None, exporter: HistogramExporter | None = None
) -> bool:
    """Add every client's metrics, present and future, to a provider; a repeat changes nothing.

    Returns whether the metrics were added now. A forked process counts from 0, but SDKs before 1.44
    keep its parent's `service.instance.id`. With these, make the provider after the fork, such as
    in gunicorn's `post_fork`.

    Args:
        meter_provider: By default the global one, even if it is set later.
        exporter: The exporter of the provider's reader, if it adds the histograms. Without it the
            SDK records each duration again, which takes some 25 µs of CPU an operation. It also
            exports a cumulative histogram for ever, although the pool has left.
    """
    provider = api.get_meter_provider() if meter_provider is None else meter_provider
    with _lock:
        *_, key = keys = _keys(provider)
        collection = Collection() if exporter is None else exporter.collection
        found = next((_registered[one] for one in keys if one in _registered), None)
        if found is None:
            meter = provider.get_meter(*SCOPE, SCHEMA_URL)
            found = _registered[key] = _Instruments(meter)
        return found.begin(collection, replays=exporter is None)


def unregister(meter_provider: MeterProvider | None = None) -> None:
    """Stop reporting the clients' metrics to a provider; without them nothing changes."""
    provider = api.get_meter_provider() if meter_provider is None else meter_provider
    with _lock:
        for key in _keys(provider):
            if (found := _registered.get(key)) is not None:
                found.end()  # stays registered, because a meter makes each instrument only once


def registered_providers() -> list[MeterProvider]:
    """Return the providers to which the clients' metrics are reported."""
    with _lock:
        return [
            api.get_meter_provider() if isinstance(key, _Global) else key
            for key, found in _registered.items()
            if not found.is_off
        ]


def _keys(provider: MeterProvider) -> list[MeterProvider | _Global]:
    """Return the keys of a provider: it may have become the global one since `register()`."""
    return [provider, _global] if provider is api.get_meter_provider() else [provider]


class _Instruments:
    """The catalog's instruments on one meter.

    OpenTelemetry has no observable histogram. New durations are replayed into the SDK's histograms
    before it collects them: the right number in each bucket, spread so that their sum is right.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._collection = Collection()
        self._lock = threading.RLock()
        self.is_off = True
        self._replays = False
        self._replayed: dict[SeriesKey, HistogramStats] = {}
        self._histograms: dict[Metric, Any] = {}
        makers: dict[str, Callable[..., Any]] = {
            "counter": meter.create_observable_counter,
            "updowncounter": meter.create_observable_up_down_counter,
            "gauge": meter.create_observable_gauge,
        }
        for metric in CATALOG:
            if (make := makers.get(metric.instrument)) is not None:
                observe = partial(self._observe, metric)
                make(metric.name, [observe], unit=metric.unit, description=metric.description)

    def begin(self, collection: Collection, *, replays: bool) -> bool:
        """Report the clients of a collection from now on; return whether reporting was off."""
        began, self.is_off = self.is_off, False
        if began:
            self._collection, self._replays = collection, replays
            if replays and not self._histograms:
                self._histograms = {
                    metric: self._meter.create_histogram(
                        metric.name,
                        unit=metric.unit,
                        description=metric.description,
                        explicit_bucket_boundaries_advisory=metric.bounds,
                    )
                    for metric in CATALOG
                    if metric.bounds
                }
        return began

    def after_fork(self) -> None:
        """Make a new lock in a forked process, because no thread there would release the old one.

        The SDK's counts are those of the parent, so they begin anew, too.
        """
        self._lock = threading.RLock()
        self._replayed = {}

    def end(self) -> None:
        """Report nothing from now on, because the API can't remove an instrument."""
        self.is_off = True

    def _observe(self, metric: Metric, _: CallbackOptions) -> Iterator[Observation]:
        if self.is_off:
            return
        notice_fork()
        with self._lock:
            if self._collection.start_if_new(metric) and self._replays:
                self._replay()
            clients = self._collection.clients
        for client in clients:
            for values, value in metric.read(client):
                assert not isinstance(value, HistogramStats)
                yield Observation(value, attributes_of(metric, values))

    def _replay(self) -> None:
        replayed = self._collection.of_known(self._replayed)
        for metric, histogram in self._histograms.items():
            for client in self._collection.clients:
                for values, now in metric.read(client):
                    assert isinstance(now, HistogramStats)
                    key, attributes = (metric.name, values), attributes_of(metric, values)
                    for seconds, link in _durations(now.since(self._replayed.get(key))):
                        histogram.record(seconds, attributes, _in_span(link))
                    replayed[key] = now
        self._replayed = replayed


def _in_span(link: TraceLink | None) -> Context:
    """Return a context from which the SDK makes an exemplar; without a link it makes none."""
    if link is None:
        return _NO_SPAN
    span = trace.SpanContext(*link, is_remote=False, trace_flags=_SAMPLED)
    return trace.set_span_in_context(trace.NonRecordingSpan(span))


def _durations(new: HistogramStats) -> Iterator[tuple[float, TraceLink | None]]:
    """Yield durations with the histogram's count in each bucket, and with its sum.

    The exemplars come first, because their durations are known.
    """
    counts, rest = list(new.counts), new.sum
    for bucket, (link, seconds, _) in new.exemplars.items():
        if counts[bucket]:
            counts[bucket] -= 1
            rest -= seconds
            yield seconds, link
    lower = (0.0, *new.bounds)
    upper = (*new.bounds, max(new.max, new.bounds[-1]))
    least = sum(map(mul, counts, lower))
    most = sum(map(mul, counts, upper))
    share = (rest - least) / (most - least) if most > least else 1.0
    share = min(1.0, max(0.0, share))
    for count, low, high in zip(counts, lower, upper, strict=True):
        # A bucket's lower bound belongs to the one below it.
        seconds = min(high, max(low + share * (high - low), low * (1 + 1e-12)))
        for _ in range(count):
            yield seconds, None


def _forget(provider: Any) -> None:
    """Let the SDK forget what it counted for our instruments, and for no others.

    It would send the parent's histograms again, and with delta temporality negative counts. It has
    no public name for this (1.36 to 1.45). If a name is gone, nothing changes.
    """
    storages = getattr(getattr(provider, "_measurement_consumer", None), "_reader_storages", {})
    for storage in storages.values():
        counted = getattr(storage, "_instrument_view_instrument_matches", {})
        for instrument in list(counted):
            if instrument.instrumentation_scope.name == SCOPE[0]:
                del counted[instrument]  # the next value makes it anew


@after_fork
def _begin_anew() -> None:
    for key, instruments in list(_registered.items()):
        instruments.after_fork()
        _forget(api.get_meter_provider() if isinstance(key, _Global) else key)
