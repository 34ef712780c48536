"""`configure_otlp()` in a separate program, with the standard variables and all kinds of ends."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pool_telemetry import PoolConfigurationError
from pool_telemetry.otel import configure_otlp
from pool_telemetry.otel.endpoint import address_of
from tests.otlp import PROTOCOLS, receiver
from tests.support import UNMEASURED, rest_in_bulk

PROGRAM = """
import json, logging, os, statistics, sys, threading, time
from opentelemetry import metrics, trace
from pool_telemetry import MongoDBConnectionPool
from pool_telemetry.otel import configure_otlp

logging.basicConfig(level=logging.INFO)
{before}
began = time.monotonic()
otlp = configure_otlp({arguments})
assert configure_otlp() is otlp
made = time.monotonic() - began
client = MongoDBConnectionPool.initialize(sys.argv[1])
metrics.get_meter("theirs").create_counter("theirs").add(1)
with trace.get_tracer("theirs").start_as_current_span("theirs"):
    client["otlp"]["t"].insert_one({{}})
finds = []
for _ in range(100):
    began = time.monotonic()
    client["otlp"]["t"].find_one()
    finds.append(time.monotonic() - began)
{after}
MongoDBConnectionPool.close()
print(json.dumps({{"made": made, "find": statistics.median(finds)}}))
"""


def run(
    uri: str, arguments: str = "", before: str = "", after: str = "", **environ: str
) -> tuple[dict[str, Any], str]:
    """Return what the program printed and what it logged."""
    program = PROGRAM.format(arguments=arguments, before=before, after=after)
    done = subprocess.run(
        [sys.executable, "-c", program, uri],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_standard_variables_are_honoured(server_uri: str, protocol: str) -> None:
    with receiver(protocol) as received:
        run(
            server_uri,
            OTEL_EXPORTER_OTLP_ENDPOINT=received.endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            OTEL_EXPORTER_OTLP_HEADERS="x-token=abc",
            OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
            OTEL_SERVICE_NAME="shop",
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test,service.instance.id=one",
            after="from pool_telemetry import otel; otel.register()  # a repeat changes nothing",
        )
        # The client is closed before the last export, which still has its metrics.
        counted = received.latest["mongodb.client.pool.checkouts"].sum.data_points
        assert max(point.as_int for point in counted) > 100
        operations = received.latest["db.client.operation.duration"].histogram.data_points
        assert max(point.count for point in operations) == 100
        assert received.headers[-1]["x-token"] == "abc"
        assert received.resource["service.name"] == "shop"
        assert received.resource["deployment.environment.name"] == "test"
        assert received.resource["service.instance.id"] == "one"
        (point,) = received.latest["theirs"].sum.data_points
        assert point.as_int == 1  # the global provider was unset, so it is ours now
        names = [span.name for span in received.spans]
        assert names.count("find t") == 100
        (theirs,) = (span for span in received.spans if span.name == "theirs")
        (insert,) = (span for span in received.spans if span.name == "insert t")
        assert insert.parent_span_id == theirs.span_id
        (resource,) = {str(one.resource) for r in received.traces for one in r.resource_spans}
        assert "shop" in resource


def test_arguments_override_the_environment(server_uri: str) -> None:
    with receiver("http/protobuf") as received:
        arguments = f"'cart', endpoint={received.endpoint!r}, protocol='http/protobuf'"
        run(server_uri, arguments, OTEL_SERVICE_NAME="shop", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
        assert received.resource["service.name"] == "cart"
        # Without an instance id Prometheus would merge two processes' series.
        assert received.resource["service.instance.id"]


@pytest.mark.parametrize("off", ["OTEL_TRACES_EXPORTER", "traces=False", "OTEL_TRACES_SAMPLER"])
def test_traces_can_be_turned_off(server_uri: str, off: str) -> None:
    environ = {"OTEL_TRACES_EXPORTER": "none", "OTEL_TRACES_SAMPLER": "always_off"}
    with receiver("grpc") as received:
        run(
            server_uri,
            off if "=" in off else "",
            OTEL_EXPORTER_OTLP_ENDPOINT=received.endpoint,
            **{name: value for name, value in environ.items() if name == off},
        )
        assert received.spans == []
        assert "db.client.connection.wait_time" in received.latest


@pytest.mark.parametrize("off", ["OTEL_METRICS_EXPORTER", "metrics=False"])
def test_metrics_can_be_turned_off(server_uri: str, off: str) -> None:
    environ = {} if "=" in off else {off: "none"}
    with receiver("grpc") as received:
        run(
            server_uri,
            off if "=" in off else "",
            OTEL_EXPORTER_OTLP_ENDPOINT=received.endpoint,
            **environ,
        )
        assert received.metrics == []
        assert "find t" in [span.name for span in received.spans]


def test_global_provider_of_the_application_stays(server_uri: str) -> None:
    before = """
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
theirs = MeterProvider()
metrics.set_meter_provider(theirs)
trace.set_tracer_provider(TracerProvider())
"""
    after = "assert metrics.get_meter_provider() is theirs"
    with receiver("grpc") as received:
        _, logged = run(
            server_uri, before=before, after=after, OTEL_EXPORTER_OTLP_ENDPOINT=received.endpoint
        )
        assert "theirs" not in received.latest
        names = {span.name for span in received.spans}
        assert "theirs" not in names
        assert "find t" in names
        assert "db.client.connection.wait_time" in received.latest
        assert "Overriding" not in logged


def test_unknown_protocol_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "use grpc or http/protobuf"
    with pytest.raises(PoolConfigurationError, match=f"protocol is 'json': {words}"):
        configure_otlp(protocol="json")  # type: ignore[arg-type]  # the test needs a wrong value
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/json")
    with pytest.raises(PoolConfigurationError, match=f"protocol is 'http/json': {words}"):
        configure_otlp()


FORK = """
from tests.c_fork import fork_in_c
pid = {fork}()
client["otlp"]["parent" if pid else "child"].find_one()
if pid == 0:
    sys.exit()  # runs atexit
_, status = os.waitpid(pid, 0)
assert status == 0, status
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("fork", ["os.fork", "fork_in_c"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_forked_child_sends_its_own(server_uri: str, protocol: str, fork: str) -> None:
    with receiver(protocol) as received:
        run(
            server_uri,
            after=FORK.format(fork=fork),
            PYTHONWARNINGS="ignore",  # PyMongo's, of forks
            OTEL_EXPORTER_OTLP_ENDPOINT=received.endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        )
        names = [span.name for span in received.spans]
        assert names.count("find t") == 100  # the child does not send them again
        assert names.count("find parent") == names.count("find child") == 1
        finds = counted_finds(received)
        assert finds["parent"]
        assert finds["child"]
        assert finds["child"].isdisjoint(finds["parent"] | finds["t"])


ELSEWHERE = """
import os
from opentelemetry.sdk.trace import TracerProvider
from pool_telemetry import otel
otel.start_tracing(TracerProvider())
otel.unregister(otlp.meter_provider)
pid = os.fork()
if pid == 0:
    client["otlp"]["child"].find_one()
    otel.flush()
    os._exit(0)
os.waitpid(pid, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_reports_nothing_that_its_parent_turned_off(server_uri: str) -> None:
    with receiver("http/protobuf") as received:
        run(
            server_uri,
            after=ELSEWHERE,
            PYTHONWARNINGS="ignore",  # PyMongo's, of forks
            OTEL_EXPORTER_OTLP_ENDPOINT=received.endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        )
        assert "find t" in [span.name for span in received.spans]
        assert "find child" not in [span.name for span in received.spans]
        assert not counted_finds(received)["child"]


def counted_finds(received: Any) -> dict[str, set[str]]:
    """Return which instances have counted finds in each collection."""
    found: dict[str, set[str]] = {"t": set(), "parent": set(), "child": set()}
    for request in received.metrics:
        for resource in request.resource_metrics:
            names = {one.key: one.value.string_value for one in resource.resource.attributes}
            for metric in (one for scope in resource.scope_metrics for one in scope.metrics):
                if metric.name == "db.client.operation.duration":
                    for point in metric.histogram.data_points:
                        of = {one.key: one.value.string_value for one in point.attributes}
                        collection = of.get("db.collection.name", "")
                        if of["db.operation.name"] == "find" and collection in found:
                            found[collection].add(names["service.instance.id"])
    return found


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "http://ann:s3cr3t@127.0.0.1:4317"])
def test_endpoint_without_scheme_or_with_credentials_is_rejected(endpoint: str) -> None:
    with pytest.raises(PoolConfigurationError, match="without credentials") as raised:
        configure_otlp(endpoint=endpoint)
    assert "s3cr3t" not in str(raised.value)


@contextlib.contextmanager
def dead(how: str) -> Iterator[int]:
    """Yield the port of a collector that refuses connections, hangs, or cuts each export off."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))  # until it listens, the system refuses for it
    if how != "refuses":
        listening.listen()
    port: int = listening.getsockname()[1]

    def cut() -> None:
        with contextlib.suppress(OSError):  # the socket is closed at the end
            while True:
                taken, _ = listening.accept()
                with taken:
                    taken.recv(100)

    thread = threading.Thread(target=cut)
    if how == "cuts":
        thread.start()
    try:
        yield port
    finally:
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        if how == "cuts":
            thread.join()


BOUNDS = """
def took(call):
    began = time.monotonic()
    call(1.0)
    return time.monotonic() - began

assert took(otlp.flush) < 30.0
assert took(otlp.close) < 30.0
"""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_flush_and_close_respect_their_time_limit(server_uri: str, protocol: str) -> None:
    """The exporter's own time limit of 120 s has no say: a second, with a generous ceiling."""
    with dead("hangs") as port:
        run(
            server_uri,
            after=BOUNDS,
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            OTEL_EXPORTER_OTLP_TIMEOUT="120",
        )


ONCE = """
from pool_telemetry import process_end
otlp.flush(1.0)
began = time.monotonic()
process_end.end()  # else it would wait for 5 s
assert time.monotonic() - began < 4.0
"""


def test_a_process_with_several_ends_waits_once_for_a_collector_that_hangs(server_uri: str) -> None:
    with dead("hangs") as port:
        run(
            server_uri,
            after=ONCE,
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
            OTEL_EXPORTER_OTLP_TIMEOUT="120",
        )


PATIENT = """
began = time.monotonic()
otlp.flush(30.0)
otlp.close(30.0)
assert time.monotonic() - began < 15.0
"""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_collector_that_is_not_there_is_not_waited_for(server_uri: str, protocol: str) -> None:
    """An exporter retries for longer than both take here: a second, with a generous ceiling."""
    with dead("refuses") as port:
        run(
            server_uri,
            after=PATIENT,
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            OTEL_EXPORTER_OTLP_TIMEOUT="30",
        )


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY"])
def test_a_collector_behind_a_proxy_has_the_whole_time(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    given = ("http/protobuf", "METRICS", "https://collector.example/otlp")
    assert address_of(*given) == ("collector.example", 443)
    monkeypatch.setenv(name, "http://proxy.example:3128")
    assert address_of(*given) is None


MEASURE = """
def resident():
    pages = open("/proc/self/statm").read().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20

def work():
    for _ in range(150):  # more spans than the queue holds
        client["otlp"]["t"].find_one()
    time.sleep(1.0)  # ten exports

work()
before = resident()
work()
grown = resident() - before
print("grown", grown, file=sys.stderr)
assert grown < 20.0, grown
"""


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("how", rest_in_bulk(["hangs", "refuses", "cuts"]))
def test_dead_collector_costs_the_application_only_log_lines(
    server_uri: str, protocol: str, how: str
) -> None:
    """A find_one takes 1 ms, and one that waited for an export would take 1 s."""
    with dead(how) as port:
        said, logged = run(
            server_uri,
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer s3cr3t",
            OTEL_METRIC_EXPORT_INTERVAL="100",
            OTEL_BSP_SCHEDULE_DELAY="100",
            OTEL_BSP_MAX_QUEUE_SIZE="75",
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="25",
            OTEL_EXPORTER_OTLP_TIMEOUT="1",
            **UNMEASURED,
            after=MEASURE if Path("/proc/self/statm").exists() else "",
        )
    assert said["made"] < 30.0
    assert said["find"] < 0.5
    assert "s3cr3t" not in logged
