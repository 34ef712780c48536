"""The files of `examples/stack` agree with each other, checked without a container engine."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pool_telemetry.monitoring.alerts import alerts
from pool_telemetry.monitoring.recording_rules import recording_rules
from tests.grafana import ROOT
from tests.needs import needs

HERE = ROOT / "examples" / "stack"
COMPOSE: dict[str, Any] = yaml.safe_load((HERE / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PORTS = {
    "alertmanager:9093",
    "app:8000",
    "app-2:8000",
    "collector:4317",
    "collector:8889",
    "mongo:27017",
    "prometheus:9090",
    "tempo:3200",
    "tempo:4317",
}


def mounts() -> Iterator[tuple[Path, str]]:
    for service in SERVICES.values():
        for mount in service.get("volumes", ()):
            source, target, mode = mount.split(":")
            assert mode == "ro"
            yield (HERE / source).resolve(), target


def configured() -> str:
    """Return the text of compose.yaml and of all mounted files, without comments."""
    texts = [(HERE / "compose.yaml").read_text(), *(path.read_text() for path, _ in mounts())]
    return re.sub(r"(^| )#.*$", "", "\n".join(texts), flags=re.MULTILINE)


def test_every_mounted_file_exists() -> None:
    found = dict(mounts())
    assert len(found) == 10
    assert all(path.is_file() for path in found)
    configurations = {path for path in HERE.rglob("*.y*ml") if path.name != "compose.yaml"}
    assert configurations <= found.keys()


def test_ports_are_on_loopback_and_images_have_versions() -> None:
    (built,) = (service["image"] for service in SERVICES.values() if "build" in service)
    for name, service in SERVICES.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        if service["image"] != built:
            assert re.search(r":v?\d+\.\d+", service["image"]), name


def test_every_address_is_of_a_service_in_the_stack() -> None:
    hosts = "|".join(SERVICES)
    used = set(re.findall(rf"\b(?:{hosts}):\d{{4,5}}\b", configured()))
    assert used == PORTS
    listening = set(re.findall(r"0\.0\.0\.0:(\d+)", configured()))
    assert {"4317", "8889"} <= listening  # of the collector and Tempo, which others use


def test_dockerfile_copies_exactly_the_build_context() -> None:
    dockerfile = (HERE / "Dockerfile").read_text()
    copied = " ".join(re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE)).split()
    included = re.findall(r"^!(.+)$", (HERE / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(included)
    assert all((ROOT / source).exists() for source in copied)
    assert (HERE / SERVICES["app"]["build"]["context"]).resolve() == ROOT


def test_grafana_has_every_data_source_that_is_used() -> None:
    sources = yaml.safe_load((HERE / "grafana" / "datasources.yaml").read_text())["datasources"]
    by_uid = {source["uid"]: source for source in sources}
    (exemplars,) = by_uid["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert (exemplars["name"], by_uid[exemplars["datasourceUid"]]["type"]) == ("trace_id", "tempo")
    (group,) = json.loads((ROOT / "dashboards" / "grafana-alerts.json").read_text())["groups"]
    used = {query["datasourceUid"] for rule in group["rules"] for query in rule["data"]}
    assert used - {"__expr__"} <= by_uid.keys()
    (provider,) = yaml.safe_load((HERE / "grafana" / "dashboards.yaml").read_text())["providers"]
    boards = {path.name for path, at in mounts() if at.startswith(provider["options"]["path"])}
    assert boards == {"pool.json", "fleet.json"}


def test_promtool_and_amtool_accept_the_configurations(tmp_path: Path) -> None:
    needs("promtool", "amtool", package="prometheus prometheus-alertmanager")
    config = (HERE / "prometheus" / "prometheus.yml").read_text()
    rules = str(ROOT / "dashboards" / "rules.yml")
    path = tmp_path / "prometheus.yml"
    path.write_text(config.replace("/etc/prometheus/rules.yml", rules))
    said = checked("promtool", "check", "config", str(path))
    assert f"SUCCESS: {path} is valid" in said
    assert f"{len(alerts()) + len(recording_rules())} rules found" in said
    checked("amtool", "check-config", str(HERE / "alertmanager" / "alertmanager.yml"))


def checked(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("pipeline", ["metrics", "traces"])
def test_collector_declares_what_its_pipelines_use(pipeline: str) -> None:
    config = yaml.safe_load((HERE / "collector" / "collector.yaml").read_text())
    used = config["service"]["pipelines"][pipeline]
    assert set(used["receivers"]) <= config["receivers"].keys()
    assert set(used["exporters"]) <= config["exporters"].keys()
