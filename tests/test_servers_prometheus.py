"""A real Prometheus scrapes four workers behind one port for three minutes."""

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pool_telemetry.monitoring import files
from tests.grafana import Prometheus
from tests.needs import needs
from tests.servers.load import Load
from tests.servers.ways import Service, start
from tests.support import free_port, prometheus_families, wait_for
from tests.web import Web

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(
        not Path("/proc/self/stat").exists(), reason="it finds a server's processes in /proc"
    ),
]

CALM_SECONDS = 120.0
SCRAPE_SECONDS = 2
FINDS = 'db_client_operation_duration_seconds_count{db_operation_name="find"}'
ALERT = "MongoDBPoolExhausted"


@contextlib.contextmanager
def prometheus(service: Service, folder: Path) -> Iterator[Prometheus]:
    """Run a Prometheus with our rules that scrapes the service's one port."""
    needs("prometheus", package="prometheus")
    assert service.web
    port = free_port()
    for name, text in files.rules().items():
        (folder / name).write_text(text)
    every = f"{SCRAPE_SECONDS}s"
    config = {  # JSON is YAML
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": [str(folder / "rules.yml")],
        "scrape_configs": [
            {
                "job_name": "shop",
                "static_configs": [{"targets": [f"127.0.0.1:{service.web.port}"]}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/series",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with subprocess.Popen(command) as process:
        try:
            wait_for(lambda: _is_ready(port), "Prometheus")
            yield Prometheus(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()


def _is_ready(port: int) -> bool:
    with contextlib.suppress(OSError):
        return Web(port).get("/-/ready").status == 200
    return False


def our_counters(text: str) -> set[str]:
    """Return the names of our counters on a page; the application's differ by worker."""
    return {
        sample.name
        for family in prometheus_families(text)
        if family.type in ("counter", "histogram") and "_client_" in family.name
        for sample in family.samples
    }


def alerts(found: Prometheus) -> list[dict[str, str]]:
    """Return the labels of the alerts that fire."""
    return [one["labels"] for one in found.get("alerts")["alerts"] if one["state"] == "firing"]


def test_prometheus_sees_the_load_no_reset_and_the_true_alert(
    server_uri: str, tmp_path: Path, figures: list[str]
) -> None:
    with (
        start("uvicorn", server_uri, tmp_path) as service,
        prometheus(service, tmp_path) as found,
        Load(service, callers=4, pause=0.2) as load,
    ):
        # The two ends of the window are times at which the counts are known.
        wait_for(lambda: len(load.answered) == len(service.pids), "a find of each worker")
        series = f"count({FINDS})"
        wait_for(lambda: found.value(series) == len(service.pids), "a scrape of each", pause=0.2)
        began, before = time.time(), load.answered.total()
        false = []
        while time.time() < began + CALM_SECONDS:
            false += alerts(found)
            time.sleep(SCRAPE_SECONDS)
        ended, after = time.time(), load.answered.total()
        window = f"[{ended - began:.0f}s]"
        shown = found.value(f"sum(rate({FINDS}{window}))", ended)
        real = (after - before) / (ended - began)
        assert shown is not None
        figures.append(
            f"Prometheus saw {shown:.2f} finds a second of four workers, {real:.2f} were made"
        )
        assert shown == pytest.approx(real, rel=0.02)
        assert service.web
        counters = our_counters(service.web.get("/metrics").text)
        assert len(counters) > 20
        for name in counters:
            assert found.value(f"sum(resets({name}{window}))", ended) in (0, None), name
        assert load.unanswered == 0
        assert false == []

        pid = service.call("hold", seconds=120)
        held = {"alertname": ALERT}
        fired = wait_for(
            lambda: [one for one in alerts(found) if one.items() >= held.items()],
            "the alert",
            seconds=120,
            pause=0.2,
        )
        (up,) = found.get("query", query=f'mongodb_client_process_up{{process_pid="{pid}"}}')[
            "result"
        ]
        assert [one["worker"] for one in fired] == [up["metric"]["worker"]]
        exhausted = found.get("query", query="mongodb_client_pool_exhausted == 1")["result"]
        assert [one["metric"]["worker"] for one in exhausted] == [up["metric"]["worker"]]
        service.release(pid)
