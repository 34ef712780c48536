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
SHARE = 0.8


class Memory(SpanExporter):
    """Keeps the last batch."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans = spans
        return SpanExportResult.SUCCESS


def provider_in_memory() -> TracerProvider:
    """Return one whose spans go nowhere, in batches."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Memory()))
    return provider


def run_spans(effort: Effort, uri: str) -> list[Goal]:
    """Measure (h): what spans add, to no-op listeners there, to our metrics here."""
    show_heading(
        "h",
        "The same find_one in a request's span, with command spans, a batch processor and an "
        "exporter in memory: CPU",
        f"ours add {SHARE:.0%} at most, to our metrics, of what the others' add to no-op listeners",
    )
    provider = provider_in_memory()
    telemetry = PoolTelemetry()
    *others, _ = listeners.noop()  # the pool's events are made and heard in each variant
    given = {
        "no-op": listeners.noop(),
        THEIRS: [*others, *listeners.command_spans(provider)],
        "ours": telemetry.listeners,
    }
    with clients_of(uri, given) as clients:
        turns = {name: finds(client) for name, client in clients.items()}
        turns[OURS] = traced(turns["ours"], provider)
        variants = {name: _in_request(turn, provider) for name, turn in turns.items()}
        costs = take_turns(variants, effort.find_rounds, turns=TURNS)
    telemetry.close()
    provider.shutdown()
    show(costs, "no-op", "ours")
    theirs, ours = over(costs, THEIRS, "no-op"), over(costs, OURS, "ours")
    limit = round(SHARE * theirs, 2)
    return [
        Goal("h", f"our spans over our metrics; {SHARE:g} of the others over no-op", limit, ours)
    ]


def _in_request(turn: Turn, provider: TracerProvider) -> Turn:
    tracer = provider.get_tracer("application")

    def in_request() -> int:
        with tracer.start_as_current_span("request"):
            return turn()

    return in_request


def traced(turn: Turn, provider: TracerProvider) -> Turn:
    """Return the turn with tracing on."""

    def with_spans() -> int:
        start_tracing(provider)
        try:
            return turn()
        finally:
            stop_tracing()

    return with_spans
