"""Command spans: ours, and those of opentelemetry-instrumentation-pymongo, in the same run."""

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from pool_telemetry import PoolTelemetry
from pool_telemetry.otel import start_tracing, stop_tracing
from tests.benchmarks import listeners
from tests.benchmarks.measure import (
    Effort,
    Goal,
    Turn,
    over,
    show,
    show_heading,
    take_turns,
)
from tests.benchmarks.traffic import TURNS, clients_of, finds

THEIRS = "opentelemetry-instrumentation-pymongo"
OURS = "ours, with command spans"


class Memory(SpanExporter):
    """Keeps the last batch."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans = spans
        return SpanExportResult.SUCCESS


def run_spans(effort: Effort, uri: str) -> list[Goal]:
    """Measure (h): what spans add, to no-op listeners there, to our metrics here."""
    show_heading(
        "h",
        "The same find_one with command spans, a batch processor and an exporter in memory: CPU",
        "ours add no more to our metrics than the others' to no-op listeners",
    )
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Memory()))
    telemetry = PoolTelemetry()
    *others, _ = listeners.noop()  # the pool's events are made and heard in each variant
    given = {
        "no-op": listeners.noop(),
        THEIRS: [*others, *listeners.command_spans(provider)],
        "ours": telemetry.listeners,
    }
    with clients_of(uri, given) as clients:
        variants = {name: finds(client) for name, client in clients.items()}
        variants[OURS] = _traced(variants["ours"], provider)
        costs = take_turns(variants, effort.find_rounds, turns=TURNS)
    telemetry.close()
    provider.shutdown()
    show(costs, "no-op", "ours")
    theirs, ours = over(costs, THEIRS, "no-op"), over(costs, OURS, "ours")
    return [Goal("h", "our spans over our metrics; theirs over no-op", round(theirs, 2), ours)]


def _traced(turn: Turn, provider: TracerProvider) -> Turn:
    def with_spans() -> int:
        start_tracing(provider)
        try:
            return turn()
        finally:
            stop_tracing()

    return with_spans
