"""Unused series leave the exporters, and go on from their counts if they return."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import Counter as SdkCounter
from opentelemetry.sdk.metrics import Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from prometheus_client import CollectorRegistry
from pymongo import MongoClient
from pymongo.read_preferences import Secondary

from pool_telemetry import PoolTelemetry, otel, prometheus, registry, standstill
from pool_telemetry.aging import CLOSED_SECONDS, UNUSED_SECONDS
from pool_telemetry.catalog import CATALOG
from pool_telemetry.otel.exporter import HistogramExporter
from pool_telemetry.registry import ClosedClients, clients_to_report
from pool_telemetry.state.pool_state import PoolState
from pool_telemetry.totals import counts_of
from tests.demoted import Demoted
from tests.support import prometheus_families, wait_for

Client = MongoClient[dict[str, Any]]
Series = tuple[str, str, str]
"""A metric, a pool's name, and a collection."""

CHECKOUTS = "mongodb.client.pool.checkouts"
COMMANDS = "db.client.operation.duration"
HISTOGRAMS = {metric.name for metric in CATALOG if metric.bounds}


class Clock:
    """Real monotonic seconds, which a test may set forward."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A pool's name that no other test has, because a name keeps its counts."""
    return str(request.node.name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time by which series age."""
    clock = Clock()
    monkeypatch.setattr(ClosedClients.__init__, "__kwdefaults__", {"clock": clock})
    return clock


class Sent(MetricExporter):
    """Keeps the series of the last export, and the sum of all exports."""

    def __init__(self, temporality: AggregationTemporality) -> None:
        kinds: tuple[type[Any], ...] = (Histogram, SdkCounter, ObservableCounter)
        super().__init__(dict.fromkeys(kinds, temporality))
        self.latest = Counter[Series]()
        self.total = Counter[Series]()

    def export(self, metrics_data: MetricsData, *_: Any, **__: Any) -> MetricExportResult:
        self.latest = Counter()
        for resource in metrics_data.resource_metrics:
            for metric in (one for scope in resource.scope_metrics for one in scope.metrics):
                for point in metric.data.data_points:
                    attributes: Any = point.attributes or {}
                    pool = attributes["db.client.connection.pool.name"]
                    series = metric.name, pool, attributes.get("db.collection.name", "")
                    value: Any = point
                    self.latest[series] += value.count if hasattr(point, "count") else value.value
        self.total.update(self.latest)
        return MetricExportResult.SUCCESS

    def force_flush(self, *_: Any) -> bool:
        return True

    def shutdown(self, *_: Any, **__: Any) -> None: ...


class Exporter:
    """One way out for the metrics.

    Attributes:
        latest: The series of the last reading.
        forgets: Whether it leaves out what is not read any more. The SDK's own histograms stay.
        repeats: Whether it has a histogram without new durations. The SDK's own deltas do not.
    """

    latest: Counter[Series]
    forgets = True
    repeats = True

    def read(self) -> Counter[Series]:
        """Read all clients; return each series' count since its start."""
        raise NotImplementedError


class OfPrometheus(Exporter):
    def __init__(self, clock: Clock) -> None:
        self._registry = CollectorRegistry()
        self.collector = prometheus.PoolCollector(clock=clock)
        self._registry.register(self.collector)

    def read(self) -> Counter[Series]:
        self.latest = Counter()
        text = prometheus.generate(registry=self._registry)[0].decode()
        names = {name.replace(".", "_"): name for name in (CHECKOUTS, COMMANDS)}
        for family in prometheus_families(text):
            for sample in family.samples:
                bare = sample.name.removesuffix("_total").removesuffix("_seconds_count")
                if bare in names:
                    pool = sample.labels["db_client_connection_pool_name"]
                    collection = sample.labels.get("db_collection_name", "")
                    self.latest[names[bare], pool, collection] += int(sample.value)
        return self.latest


class OfOtlp(Exporter):
    def __init__(self, temporality: AggregationTemporality, *, replays: bool) -> None:
        self._is_delta = temporality is AggregationTemporality.DELTA
        self.forgets = self._is_delta or not replays
        self.repeats = not (self._is_delta and replays)
        self._sent = Sent(temporality)
        ours = None if replays else HistogramExporter(self._sent)
        self._reader = PeriodicExportingMetricReader(ours or self._sent, 3_600_000)
        self.provider = MeterProvider([self._reader], shutdown_on_exit=False)
        otel.register(self.provider, ours)

    def read(self) -> Counter[Series]:
        self._sent.latest = Counter()  # nothing is exported if there is no series
        self._reader.collect()
        self.latest = self._sent.latest
        return self._sent.total if self._is_delta else self.latest


@pytest.fixture(
    params=["prometheus", "cumulative", "delta", "replayed cumulative", "replayed delta"]
)
def exporter(request: pytest.FixtureRequest, clock: Clock) -> Iterator[Exporter]:
    """Each way out for the metrics."""
    kind: str = request.param
    if kind == "prometheus":
        yield OfPrometheus(clock)
        return
    delta = kind.endswith("delta")
    temporality = AggregationTemporality.DELTA if delta else AggregationTemporality.CUMULATIVE
    one = OfOtlp(temporality, replays=kind.startswith("replayed"))
    yield one
    otel.unregister(one.provider)
    one.provider.shutdown()


def of_pool(found: Counter[Series], pool: str) -> set[Series]:
    """Return the series of the pools whose names begin so."""
    return {series for series in found if series[1].startswith(pool)}


@contextlib.contextmanager
def set_of(members: int, server_uri: str) -> Iterator[list[Demoted]]:
    """Members of one replica set, the first of which is its primary; none has joined it."""
    port = int(server_uri.rpartition(":")[2].strip("/"))
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(Demoted(port)) for _ in range(members)]
        for member in found[1:]:
            member.demoted = True
        yield found


def test_pool_of_a_member_that_left_ages_out_and_returns(
    server_uri: str, clock: Clock, exporter: Exporter, name: str
) -> None:
    telemetry = PoolTelemetry(name, clock=clock)
    with set_of(3, server_uri) as (primary, old, new):

        def change(*now: Demoted) -> None:
            """Let these be the members, and use each secondary once."""
            primary.members = old.members = new.members = [primary, *now]
            known = {one.address for one in (primary, *now)}
            wait_for(lambda: {p.address for p in telemetry.stats().open_pools} == known)
            for one in now:
                read_from = Secondary([{}])
                wait_for(lambda: client.secondaries)
                client["aging"].get_collection("t", read_preference=read_from).find_one()
                assert one.address in telemetry.live_stats()["servers"]

        primary.members = [primary]
        with Client(
            primary.uri, heartbeatFrequencyMS=500, event_listeners=telemetry.listeners
        ) as client:
            client["aging"]["t"].find_one()
            change(old)
            left = f"{name}@{old.address}"
            before = Counter(exporter.read())
            checkouts, finds = (CHECKOUTS, left, ""), (COMMANDS, left, "t")
            assert before[checkouts] >= before[finds] == 1
            change(new)
            exporter.read()
            clock.ahead += CLOSED_SECONDS - 60.0
            last = Counter(exporter.read())
            assert of_pool(exporter.latest, left)  # still within its time
            servers = telemetry.live_stats()["servers"]
            assert servers[old.address]["state"] == "closed"
            total = telemetry.live_stats()["operations"]["find"]["count"]
            clock.ahead += 61.0
            now = exporter.read()
            assert not {one for one in of_pool(exporter.latest, left) if one[0] == CHECKOUTS}
            if exporter.forgets:
                assert not of_pool(exporter.latest, left)
            assert (COMMANDS, name, "t") not in exporter.latest  # nor under the client's name
            assert of_pool(exporter.latest, f"{name}@{new.address}")
            assert of_pool(exporter.latest, f"{name}@{primary.address}")
            assert old.address not in telemetry.live_stats()["servers"]
            assert telemetry.live_stats()["operations"]["find"]["count"] == total
            change(old)
            now = exporter.read()
            assert now[checkouts] > last[checkouts]
            assert now[finds] == last[finds] + 1
            assert old.address in telemetry.live_stats()["servers"]


def test_commands_that_nobody_runs_age_out_and_return(
    server_uri: str, clock: Clock, exporter: Exporter, name: str
) -> None:
    telemetry = PoolTelemetry(name, clock=clock)
    with Client(server_uri, event_listeners=telemetry.listeners) as client:
        database = client["aging"]
        for _ in range(2):
            database["rare"].find_one()
        database["often"].find_one()
        found = Counter(exporter.read())
        (rare,) = (one for one in of_pool(found, name) if one[2] == "rare")
        (often,) = (one for one in of_pool(found, name) if one[2] == "often")
        assert (found[rare], found[often]) == (2, 1)
        clock.ahead += UNUSED_SECONDS - 60.0
        database["often"].find_one()
        exporter.read()
        assert rare in exporter.latest or not exporter.repeats
        clock.ahead += 61.0
        exporter.read()
        assert (rare in exporter.latest) is not exporter.forgets
        assert often in exporter.latest or not exporter.repeats
        exporter.read()
        database["rare"].find_one()
        found = exporter.read()
        assert rare in exporter.latest
        assert (found[rare], found[often]) == (3, 2)
        assert telemetry.live_stats()["operations"]["find"]["count"] == 5


def test_counts_of_a_name_whose_clients_ended_age_out_and_return(
    server_uri: str, clock: Clock, exporter: Exporter, name: str
) -> None:
    def use() -> None:
        telemetry = PoolTelemetry(name, clock=clock)
        with Client(server_uri, event_listeners=telemetry.listeners) as client:
            client["aging"]["t"].find_one()

    for number in (1, 2):
        use()
        found = Counter(exporter.read())
        (finds,) = (one for one in of_pool(found, name) if one[2] == "t")
        assert found[finds] == number
        clock.ahead += CLOSED_SECONDS - 60.0
        exporter.read()
        assert of_pool(exporter.latest, name)
        clock.ahead += 61.0
        exporter.read()
        left = {series[0] for series in of_pool(exporter.latest, name)}
        assert left == (set() if exporter.forgets else HISTOGRAMS)


def test_pool_that_closed_in_use_is_shown_until_it_is_returned(
    server_uri: str, clock: Clock
) -> None:
    telemetry = PoolTelemetry("held", clock=clock)
    exporter = OfPrometheus(clock)
    with set_of(2, server_uri) as (primary, other):
        primary.members = other.members = [primary, other]
        with Client(
            primary.uri, heartbeatFrequencyMS=500, event_listeners=telemetry.listeners
        ) as client:
            wait_for(lambda: client.secondaries)
            secondaries = Secondary()
            collection = client["aging"].get_collection("t", read_preference=secondaries)
            collection.find_one()
            server: Any = client._topology._servers[("127.0.0.1", other.port)]
            with server.pool.checkout():
                primary.members = [primary]
                wait_for(lambda: len(telemetry.stats().open_pools) == 1)
                for _ in range(2):
                    clock.ahead += CLOSED_SECONDS + 1.0
                    assert of_pool(exporter.read(), f"held@{other.address}")
                    assert other.address in telemetry.live_stats()["servers"]
            assert of_pool(exporter.read(), f"held@{other.address}")  # its last values
            clock.ahead += CLOSED_SECONDS + 1.0
            assert not of_pool(exporter.read(), f"held@{other.address}")
            assert other.address not in telemetry.live_stats()["servers"]


def test_open_pool_that_nobody_uses_is_shown_for_ever(server_uri: str, clock: Clock) -> None:
    telemetry = PoolTelemetry("quiet", clock=clock)
    exporter = OfPrometheus(clock)
    with Client(server_uri, event_listeners=telemetry.listeners) as client:
        client["aging"]["t"].find_one()
        for _ in range(3):
            clock.ahead += UNUSED_SECONDS
            assert of_pool(exporter.read(), "quiet@")


def test_ages_of_series_that_exist_no_longer_are_forgotten(server_uri: str, clock: Clock) -> None:
    exporter = OfPrometheus(clock)
    for number in range(2 * registry.MAX_NAMES):
        telemetry = PoolTelemetry(f"name-{number}")
        with Client(server_uri, event_listeners=telemetry.listeners) as client:
            client.admin.command("ping")
    exporter.read()
    ages = exporter.collector._closed.aging._changed
    known = {key[0] for key in ages if key[0].startswith("name-")}
    assert f"name-{2 * registry.MAX_NAMES - 1}" in known
    assert "name-0" not in known


def test_each_exporter_has_its_own_ages(server_uri: str, clock: Clock) -> None:
    """An exporter that reads rarely shows the last values, too."""
    often, rarely = OfPrometheus(clock), OfPrometheus(clock)
    with Client(server_uri, event_listeners=PoolTelemetry("ages").listeners) as client:
        client["aging"]["t"].find_one()
        rarely.read()
    for _ in range(3):
        often.read()
        clock.ahead += CLOSED_SECONDS / 2.0 + 1.0
    assert not of_pool(often.read(), "ages@")
    assert of_pool(rarely.read(), "ages@")
    clock.ahead += CLOSED_SECONDS + 1.0
    assert not of_pool(rarely.read(), "ages@")


def test_counts_that_go_on_from_another_process_age_out(server_uri: str, clock: Clock) -> None:
    def finds() -> int:
        every = clients_to_report(reader, earlier)
        operations = (one for client in every if client.name == "heir" for one in client.operations)
        return sum(one.duration.count for one in operations if one.collection == "t")

    reader = ClosedClients()
    telemetry = PoolTelemetry("heir")
    with Client(server_uri, event_listeners=telemetry.listeners) as client:
        client["aging"]["t"].find_one()
        earlier = [counts_of(telemetry.stats())]
        client["aging"]["t"].find_one()
        assert finds() == 3
        clock.ahead += UNUSED_SECONDS + 1.0
        assert finds() == 0
        client["aging"]["t"].find_one()
        assert finds() == 4


def test_time_for_which_the_process_stood_still_ages_nothing(
    server_uri: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = OfPrometheus(clock)
    with Client(server_uri, event_listeners=PoolTelemetry("frozen").listeners) as client:
        client["aging"]["t"].find_one()
        exporter.read()
        clock.ahead += UNUSED_SECONDS + 1.0
        monkeypatch.setattr(standstill, "_total", standstill.total_seconds() + clock.ahead)
        assert "t" in {series[2] for series in of_pool(exporter.read(), "frozen@")}
    now = 0.0
    state = PoolState(("db", 27017), clock=lambda: now)
    assert state.stats().since_closed is None
    state.closed()
    now = 500.0
    assert state.stats().since_closed == 500.0
    state.leave_out(400.0)
    assert state.stats().since_closed == 100.0
    state.created(1, 0)
    assert state.stats().since_closed is None
