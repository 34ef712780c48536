"""The whole exposition, compared with the recorded text."""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pymongo
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from pymongo import MongoClient

from pool_telemetry import PoolTelemetry, __version__, prometheus, standstill, workers
from pool_telemetry.catalog import CATALOG, Metric, Reading
from pool_telemetry.exposition import family_lines
from pool_telemetry.stats import Exemplar, HistogramStats
from tests.everything import replay
from tests.needs import needs
from tests.support import hide_other_clients, prometheus_families

GOLDEN = Path(__file__).parent / "golden" / "exposition.txt"


@pytest.fixture
def exposition(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a generator of the exposition of the replayed client, without other clients."""
    telemetry, listeners = replay()
    hide_other_clients(telemetry, monkeypatch)
    monkeypatch.setattr(standstill, "_total", 0.0)  # another test may have stopped this process
    registry = CollectorRegistry()
    prometheus.register(registry)

    def generate(accept: str = "", names: Sequence[str] = ()) -> tuple[str, str]:
        assert listeners
        body, content_type = prometheus.generate(accept, registry, names=names)
        return body.decode(), content_type

    return generate


def test_the_exposition_equals_the_recorded_text(exposition: Any) -> None:
    text, content_type = exposition()
    text = text.replace(__version__, "OURS").replace(pymongo.version, "PYMONGOS")
    own = workers.own_identity()
    text = text.replace(own.instance, "INSTANCE").replace(f'"{own.pid}"', '"PID"')
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert content_type.startswith("text/plain")
    assert text == GOLDEN.read_text()


def test_openmetrics_has_the_same_samples(exposition: Any) -> None:
    text, content_type = exposition("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")

    def samples(families: Any) -> set[tuple[str, frozenset[tuple[str, str]], float]]:
        return {
            (sample.name, frozenset(sample.labels.items()), sample.value)
            for family in families
            for sample in family.samples
        }

    found = samples(prometheus_families(text))
    assert found
    assert found == samples(prometheus_families(exposition()[0]))
    units = {family.name: family.unit for family in prometheus_families(text)}
    assert units["db_client_connection_wait_time_seconds"] == "seconds"
    assert units["db_client_connection_count"] == ""


LABELS = ("db_namespace", "server_address", "le_is_between")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERS = st.one_of(st.integers(0, 10**20), st.floats(allow_nan=True), st.booleans())
EXEMPLARS = st.builds(
    Exemplar,
    st.tuples(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1)),
    st.floats(0, 100),
    st.floats(0, 2e9),
)
HISTOGRAMS = st.builds(
    HistogramStats,
    st.just((0.00025, 0.5, 10.0)),
    st.tuples(*[st.integers(0, 10**9)] * 4),
    st.floats(0, 1e12),
    st.just(0.0),
    st.dictionaries(st.integers(0, 3), EXEMPLARS, max_size=2),
)


@given(st.data(), st.sampled_from(["counter", "gauge", "histogram"]), st.integers(0, 3))
def test_a_family_is_written_as_prometheus_client_writes_it(
    data: st.DataObject, instrument: Any, count: int
) -> None:
    metric = Metric(
        "a.b", instrument, "s", "The meaning.", Reading(lambda _: iter(()), lambda *_: None)
    )
    names = LABELS[:count]
    values = HISTOGRAMS if instrument == "histogram" else NUMBERS
    points = data.draw(st.lists(st.tuples(st.tuples(*[TEXT] * count), values), max_size=3))
    theirs = CollectorRegistry(auto_describe=False)
    theirs.register(Scripted(prometheus._filled(metric, names, points)))
    for openmetrics, encode in ((False, generate_latest), (True, generate_openmetrics)):
        lines = family_lines(
            prometheus._family(metric, names), names, points, openmetrics=openmetrics
        )
        expected = encode(theirs).decode().removesuffix("# EOF\n")
        assert "".join(lines) == expected


class Scripted(Collector):
    """Collects one family."""

    def __init__(self, family: Any) -> None:
        self._family = family

    def collect(self) -> Any:
        """Yield the family."""
        yield self._family


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=wild",
        "application/openmetrics-text; version=1.0.0.\u0661",
        "application/openmetrics-text; version=\u0661.0.0",
        "application/openmetrics-text; version=1.0.0\r\nset-cookie: a",
        f"application/openmetrics-text; version={'9' * 5_000}",
        "text/plain; version=.; escaping",
        ";;;,,,=",
        "\udcff",
    ],
)
def test_a_malformed_accept_header_gets_text(exposition: Any, accept: str) -> None:
    text, content_type = exposition(accept)
    assert content_type.startswith("text/plain")
    assert content_type.isascii()
    assert content_type.isprintable()
    assert text == exposition()[0]


@pytest.mark.parametrize("escaping", ["dots", "values", "underscores", "allow-utf-8"])
@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
def test_each_escaping_gives_the_same_series(exposition: Any, escaping: str, kind: str) -> None:
    text, _ = exposition(f"{kind}; version=1.0.0; escaping={escaping}")
    assert text.count("\n") - text.count("# ") == exposition()[0].count("\n") - exposition()[
        0
    ].count("# ")


def test_a_character_that_utf_8_lacks_breaks_no_text(exposition: Any) -> None:
    registry = CollectorRegistry()
    Gauge("torn", "An application's own.", ["name"], registry=registry).labels("\udcff").set(1)
    Gauge("whole", "Another.", registry=registry).set(2)
    prometheus.register(registry)
    for accept in ("", "application/openmetrics-text"):
        body, _ = prometheus.generate(accept, registry)
        text = body.decode()
        assert 'torn{name="?"} 1.0\n' in text
        assert "whole 2.0\n" in text
        assert text.count("# EOF\n") == text.endswith("# EOF\n") == bool(accept)
        ours = exposition(accept)[0].removesuffix("# EOF\n")
        assert ours
        assert ours in text


def test_names_choose_the_samples(exposition: Any) -> None:
    names = ["mongodb_client_pool_waits", "db_client_connection_max"]
    text, _ = exposition(names=names)
    assert {line.split("{")[0] for line in text.splitlines() if line[0] != "#"} == {names[1]}


def test_every_row_of_the_catalog_is_a_family(exposition: Any) -> None:
    text, _ = exposition()
    families = {family.name: family for family in prometheus_families(text)}
    for metric in CATALOG:
        name = prometheus.prometheus_name(metric)
        family = families[name.removesuffix("_total")]
        assert family.samples, name
        assert family.documentation == metric.description
        expected = {"counter": "counter", "histogram": "histogram"}.get(metric.instrument, "gauge")
        assert family.type == expected


def test_promtool_objects_only_to_a_name_of_the_conventions(exposition: Any) -> None:
    needs("promtool", package="prometheus")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=exposition()[0], capture_output=True, text=True
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line]
    # The conventions' name for this gauge ends in a suffix that Prometheus reserves for histograms.
    assert lines == [
        "db_client_connection_count non-histogram and non-summary metrics "
        'should not have "_count" suffix'
    ]


def test_one_registration_covers_every_client(server_uri: str) -> None:
    registry = CollectorRegistry()
    collector = prometheus.register(registry)
    assert prometheus.register(registry) is collector
    one, two = PoolTelemetry("one"), PoolTelemetry("two")

    def pools() -> set[str]:
        text = prometheus.generate(registry=registry)[0].decode()
        (family,) = (f for f in prometheus_families(text) if f.name == "mongodb_client_pool_ready")
        return {sample.labels["db_client_connection_pool_name"] for sample in family.samples}

    address = server_uri.removeprefix("mongodb://").rstrip("/")
    with MongoClient[dict[str, Any]](server_uri, event_listeners=one.listeners) as first:
        first.admin.command("ping")
        assert f"one@{address}" in pools()
        with MongoClient[dict[str, Any]](server_uri, event_listeners=two.listeners) as second:
            second.admin.command("ping")
            assert {f"one@{address}", f"two@{address}"} <= pools()
        assert f"two@{address}" not in pools()
    prometheus.unregister(registry)
    prometheus.unregister(registry)
    assert prometheus.generate(registry=registry)[0] == b""


PUSHED = """
import sys
from prometheus_client import CollectorRegistry, push_to_gateway
from pool_telemetry import MongoDBConnectionPool, PoolTelemetry, TelemetryOptions, prometheus
from pymongo import MongoClient

registry = CollectorRegistry()
if sys.argv[3] == "before":
    prometheus.register(registry)
options = TelemetryOptions(name="job")
client = MongoDBConnectionPool.initialize(sys.argv[1], telemetry=options)
client["pushed"]["t"].find_one()
MongoDBConnectionPool.close()
with MongoClient(sys.argv[1], event_listeners=PoolTelemetry("other").listeners) as other:
    other["pushed"]["t"].find_one()
prometheus.register(registry)
for _ in range(2):  # a push is tried again
    push_to_gateway(sys.argv[2], job="nightly", registry=registry)
"""


@pytest.mark.parametrize("registered", ["before", "after"])
def test_a_push_after_close_has_the_last_values(server_uri: str, registered: str) -> None:
    pushed = list[str]()

    class Gateway(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:  # http.server's name
            pushed.append(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            program = [sys.executable, "-c", PUSHED, server_uri, address, registered]
            subprocess.run(program, check=True)
        finally:
            server.shutdown()
            thread.join()
    assert len(pushed) == 2
    for text in pushed:
        found = [line for line in text.splitlines() if line.startswith("mongodb_client_pool_check")]
        for name in ("job", "other"):
            ok = [one for one in found if f'name="{name}@' in one and 'outcome="ok"' in one]
            assert [float(one.split()[-1]) > 0 for one in ok] == [True], name


def test_a_closed_clients_state_is_not_scraped_for_ever(server_uri: str) -> None:
    now = [0.0]
    registry = CollectorRegistry()
    registry.register(prometheus.PoolCollector(clock=lambda: now[0]))

    def is_shown() -> bool:
        return (
            'pool_opening{db_client_connection_pool_name="gone@'
            in prometheus.generate(registry=registry)[0].decode()
        )

    telemetry = PoolTelemetry("gone")
    with MongoClient[dict[str, Any]](server_uri, event_listeners=telemetry.listeners) as client:
        client.admin.command("ping")
        assert is_shown()
    shown = []
    for now[0] in (100.0, 110.0, 115.0, 130.0):
        shown.append(is_shown())
    assert shown == [True, True, False, False]


def test_a_closed_client_makes_room_for_the_next_of_its_name(server_uri: str) -> None:
    prometheus.register(registry := CollectorRegistry())
    for _ in range(3):
        telemetry = PoolTelemetry("next")
        with MongoClient[dict[str, Any]](server_uri, event_listeners=telemetry.listeners) as client:
            client.admin.command("ping")
            text = prometheus.generate(registry=registry)[0].decode()
            ready = [
                one for one in text.splitlines() if one.startswith("mongodb_client_pool_ready")
            ]
            assert [one.split()[-1] for one in ready if 'name="next@' in one] == ["1.0"]


def test_clients_without_a_name_never_share_a_series(server_uri: str) -> None:
    registry = CollectorRegistry()
    prometheus.register(registry)
    telemetries = [PoolTelemetry() for _ in range(3)]
    clients = [
        MongoClient[dict[str, Any]](server_uri, event_listeners=telemetry.listeners)
        for telemetry in telemetries
    ]
    for client in clients:
        client["shop"]["orders"].find_one()
    text = prometheus.generate(registry=registry)[0].decode()
    series = [line.rsplit(" ", 1)[0] for line in text.splitlines() if line[0] != "#"]
    assert len(series) == len(set(series))
    for client in clients:
        client.close()
