"""Measure a real checkout and a real `find_one`, with a server behind TCP."""

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry
from pymongo import MongoClient

from pool_telemetry import PoolTelemetry, prometheus
from pool_telemetry.otel import Otlp, register, unregister
from tests.benchmarks import listeners
from tests.benchmarks.events import POOL_EVENTS_MICROSECONDS
from tests.benchmarks.measure import Effort, Goal, Turn, over, show, show_heading, take_turns

Client = MongoClient[dict[str, Any]]

OTLP_MICROSECONDS = 30.0
OTLP = "ours, configure_otlp(), sent once a second"
REPLAYED = "ours, register(provider), sent once a second"

DATABASE = "pool_telemetry_benchmark"
CHECKOUTS = 2_000
TURN_SECONDS = 0.05
TURNS = 20  # a round has a second of each variant, and in it one scrape


class Encoder(MetricExporter):
    """Makes the bytes of each export, and sends them nowhere."""

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any
    ) -> MetricExportResult:
        assert encode_metrics(metrics_data).SerializeToString()
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None: ...


@contextlib.contextmanager
def connected(uri: str, given: Sequence[Any], **options: Any) -> Iterator[Client]:
    """Yield a client with these listeners that has one connection open."""
    with MongoClient(uri, event_listeners=given, **options) as client:
        client.admin.command("ping")
        yield client


def pool_of(client: Client) -> Any:
    """Return PyMongo's private pool of the server that the client writes to."""
    topology: Any = client._topology
    return topology._servers[client.address].pool


def run_checkout(effort: Effort, uri: str) -> list[Goal]:
    """Measure (c)."""
    show_heading(
        "c",
        "A bare pool.checkout() and check-in on a real pool: CPU",
        f"ours at most {POOL_EVENTS_MICROSECONDS:g} µs over no-op listeners",
    )
    telemetry = PoolTelemetry()
    given = {"no listener": [], "no-op": listeners.noop(), "ours": telemetry.listeners}
    with clients_of(uri, given) as clients:
        variants = {name: _checkouts(pool_of(client)) for name, client in clients.items()}
        costs = take_turns(variants, effort.checkout_rounds)
    telemetry.close()
    show(costs, "no listener", "no-op")
    dearer = over(costs, "ours", "no-op")
    return [Goal("c", "a real checkout: over no-op", POOL_EVENTS_MICROSECONDS, dearer)]


def _checkouts(pool: Any) -> Turn:
    def turn() -> int:
        for _ in range(CHECKOUTS):
            with pool.checkout():
                pass
        return CHECKOUTS

    return turn


def run_find_one(effort: Effort, uri: str) -> list[Goal]:
    """Measure (d): the whole process's CPU time, so that a scrape's is in it."""
    show_heading(
        "d",
        "A real find_one over TCP: CPU of the client process",
        f"ours cheaper than the two others; by OTLP at most {OTLP_MICROSECONDS:g} µs over no-op",
    )
    telemetry = PoolTelemetry()
    registry = CollectorRegistry()
    prometheus.register(registry)
    handed_over = Otlp(Resource({}), Encoder)
    others = {
        "prometheus_client with .labels()": listeners.straightforward(),
        "OpenTelemetry's command spans": listeners.command_spans(),
    }
    given = {"no listener": [], "no-op": listeners.noop(), "ours": telemetry.listeners, **others}
    with clients_of(uri, given) as clients:
        variants = {}
        for name, client in clients.items():
            variants[name] = finds(client)
            if name == "ours":
                scraped = _scraped(variants[name], lambda: prometheus.generate("", registry))
                variants["ours, scraped once a second"] = scraped
                variants[OTLP] = _scraped(variants[name], handed_over.flush)
        costs = take_turns(variants, effort.find_rounds, turns=TURNS)
    prometheus.unregister(registry)
    handed_over.close()
    telemetry.close()
    show(costs, "no listener", "no-op")
    return [
        Goal("d", f"{OTLP}: over no-op", OTLP_MICROSECONDS, over(costs, OTLP, "no-op")),
        *(
            Goal("d", f"a real find_one: over {other}", 0.0, over(costs, "ours", other))
            for other in others
        ),
        *_run_replayed(effort, uri),
    ]


def _run_replayed(effort: Effort, uri: str) -> list[Goal]:
    """Measure the way through an application's own provider, which counts all once more."""
    telemetry = PoolTelemetry()
    provider = MeterProvider([PeriodicExportingMetricReader(Encoder(), math.inf)])
    register(provider)
    with clients_of(uri, {"no-op": listeners.noop(), "ours": telemetry.listeners}) as clients:
        variants = {
            "no-op": finds(clients["no-op"]),
            REPLAYED: _scraped(finds(clients["ours"]), provider.force_flush),
        }
        costs = take_turns(variants, effort.find_rounds, turns=TURNS)
    unregister(provider)
    provider.shutdown()
    telemetry.close()
    show(costs, "no-op")
    dearer = over(costs, REPLAYED, "no-op")
    return [Goal("d", f"{REPLAYED}: over no-op", OTLP_MICROSECONDS, dearer)]


@contextlib.contextmanager
def clients_of(uri: str, given: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Client]]:
    """Yield a client for each set of listeners, by its name."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(connected(uri, ones)) for name, ones in given.items()}


def finds(client: Client) -> Turn:
    collection = client[DATABASE]["messages"]
    collection.replace_one({"_id": 1}, {"_id": 1, "text": "hello"}, upsert=True)

    def turn() -> int:
        operations = 0
        end = time.monotonic() + TURN_SECONDS
        while time.monotonic() < end:
            for _ in range(20):
                collection.find_one({"_id": 1})
            operations += 20
        return operations

    return turn


def _scraped(turn: Turn, scrape: Callable[[], object]) -> Turn:
    """Return the turn, with a scrape from another thread amid one of TURNS."""
    numbers = itertools.count()

    def with_scrape() -> int:
        if next(numbers) % TURNS:
            return turn()
        timer = threading.Timer(TURN_SECONDS / 2, scrape)
        timer.start()
        try:
            return turn()
        finally:
            timer.join()

    return with_scrape
