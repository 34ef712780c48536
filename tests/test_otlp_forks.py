"""Over OTLP the counts of forked processes begin at 0, whoever made the provider.

The parent has exported before the forks, as the master of a pre-fork server that recycles workers.
"""

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.otlp import Received, attributes, receiver

pytestmark = pytest.mark.workers

PARENT, CHILDREN = 100, (20, 130)  # finds: fewer and more than the parent's
PROVIDERS = {
    "configure_otlp": "otel.configure_otlp()",
    "register": """
provider = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])
metrics.set_meter_provider(provider)
otel.register(provider)
""",
    "HistogramExporter": """
exporter = otel.HistogramExporter(OTLPMetricExporter())
provider = MeterProvider([PeriodicExportingMetricReader(exporter)])
metrics.set_meter_provider(provider)
otel.register(provider, exporter)
""",
    "opentelemetry-instrument": "",
}
PROGRAM = """
import os, sys
from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from pool_telemetry import MongoDBConnectionPool, otel
from tests.c_fork import fork_in_c
{provider}
meter = metrics.get_meter("theirs")
meter.create_observable_gauge("pid", [lambda _: [metrics.Observation(os.getpid())]])
counter = meter.create_counter("theirs")

def find(times):
    for _ in range(times):
        MongoDBConnectionPool.get_client()["otlp"]["t"].find_one()
    counter.add(times)
    otel.flush()

MongoDBConnectionPool.initialize(sys.argv[1], minPoolSize=0)
find({parent})
for times in {children}:
    pid = {fork}()
    if pid == 0:
        find(times)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


def sums(received: Received, metric_name: str, temporality: str) -> list[int]:
    """Return how often each process counted a metric, as the receiver of its exports has it."""
    counts: dict[str, list[int]] = defaultdict(list)
    for scopes, process in exports(received):
        points = [
            p for scope in scopes for one in scope.metrics for p in points_of(one)[metric_name]
        ]
        if points:
            counts[process].append(sum(points))
    assert min(min(one) for one in counts.values()) >= 0
    of_process = sum if temporality == "delta" else list.pop
    return sorted(of_process(one) for one in counts.values())


def exports(received: Received) -> Iterator[tuple[Any, str]]:
    """Return the exported scopes, with the process that they are of."""
    for request in received.metrics:
        for resource in request.resource_metrics:
            scopes = resource.scope_metrics
            pids = [p for scope in scopes for one in scope.metrics for p in points_of(one)["pid"]]
            # In a child of configure_otlp() another provider has the application's metrics.
            yield scopes, str(pids[0] if pids else instance_of(resource))


def instance_of(resource: Any) -> Any:
    return attributes(resource.resource.attributes).get("service.instance.id")


def points_of(metric: Any) -> dict[str, list[int]]:
    """Return the counts of a metric by its name; of finds only, if it counts operations."""
    found: dict[str, list[int]] = defaultdict(list)
    for point in getattr(metric, metric.WhichOneof("data")).data_points:
        is_histogram = metric.HasField("histogram")
        if attributes(point.attributes).get("db.operation.name", "find") == "find":
            found[metric.name].append(point.count if is_histogram else point.as_int)
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    ("fork", "temporality"),
    [("os.fork", "cumulative"), ("os.fork", "delta"), ("fork_in_c", "delta")],
)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_counts_of_a_forked_process_begin_at_zero(
    server_uri: str, provider: str, temporality: str, fork: str
) -> None:
    program = PROGRAM.format(
        provider=PROVIDERS[provider], parent=PARENT, children=CHILDREN, fork=fork
    )
    zero_code = provider == "opentelemetry-instrument"
    command = [sys.executable, "-c", program, server_uri]
    if zero_code:
        command.insert(0, str(Path(sys.executable).with_name(provider)))
    with receiver("http/protobuf") as received:
        done = subprocess.run(
            command,
            env={
                **os.environ,
                "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": temporality,
                "POOL_TELEMETRY_COMMAND_SPANS": "true",
                "PYTHONWARNINGS": "ignore",  # PyMongo's, of forks
            },
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr
        own = sorted([PARENT, *CHILDREN])
        assert sums(received, "db.client.operation.duration", temporality) == own
        *children, parent = sums(received, "mongodb.client.pool.checkouts", temporality)
        few, many = CHILDREN
        assert sorted([*children, parent])[::2] == [few, many]
        if provider != "configure_otlp" or fork == "os.fork":  # else nothing sends these
            inherited = 0 if temporality == "delta" else PARENT  # as the SDK does
            theirs = sorted([PARENT, *(inherited + finds for finds in CHILDREN)])
            assert sums(received, "theirs", temporality) == theirs
        if provider == "configure_otlp":
            resources = [one for request in received.metrics for one in request.resource_metrics]
            assert len({instance_of(one) for one in resources}) == 1 + len(CHILDREN)
        spans = [span.name for span in received.spans].count("find t")
        assert spans == (sum(own) if provider == "configure_otlp" or zero_code else 0)
