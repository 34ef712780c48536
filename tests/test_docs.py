"""README, examples and dashboards say what is true: they are run, and held against the code."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pool_telemetry
import pool_telemetry.promises
from tests.otlp import receiver
from tests.support import UNMEASURED, free_port, prometheus_families, wait_for
from tests.web import Web, serving

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("code", blocks())
def test_every_python_block_of_the_readme_runs(code: str, server_uri: str, tmp_path: Path) -> None:
    code = code.replace("mongodb://localhost:27017/", server_uri)
    script = tmp_path / "block.py"
    script.write_text(code)
    with receiver("grpc") as received:
        done = subprocess.run(
            [sys.executable, "-W", "error", str(script)],
            env={
                **os.environ,
                **UNMEASURED,
                "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint,
            },
            capture_output=True,
            text=True,
            timeout=180,
        )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len(README.read_text().splitlines()) < 250


def test_the_changelog_knows_this_version() -> None:
    assert f"[{pool_telemetry.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_example_service_runs(server_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONGODB_URI", server_uri)
    names: dict[str, Any] = {"__name__": "example"}
    code = (ROOT / "examples" / "fastapi_app.py").read_text()
    exec(compile(code, "fastapi_app.py", "exec"), names)
    with serving(names["app"]) as web:
        assert web.get("/health").json()["status"] == "healthy"
        assert 'pool_name="chat@' in web.get("/metrics").text
    from pool_telemetry import prometheus

    prometheus.unregister()


def test_the_example_of_any_client_runs(server_uri: str) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "any_client.py"), server_uri, str(port)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "0 in use, 0 waiting\n"
        text = wait_for(lambda: Web(port).get("/metrics").text)
        names = {family.name for family in prometheus_families(text)}
        assert "mongodb_client_pool_exhausted" in names
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.load
def test_the_example_of_an_exhausted_pool_tells_the_five_steps(server_uri: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "exhausted.py"), server_uri],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second, third, fourth, fifth = re.split(r"^[1-5]\. ", done.stdout, flags=re.MULTILINE)[
        1:
    ]
    assert re.search(r"WARNING pool 'shop@.*' is exhausted: \d of 4 in use, \d+ waiting", first)
    assert re.search(r"^(WARNING|CRITICAL): undersized, shop@", second, re.MULTILINE)
    assert re.search(r"  worker-\d+ \(checkout-flow\): find orders\n", third)
    assert "maxPoolSize=12\n" in fourth
    assert re.search(
        r"WARNING .* has recovered after .* s of exhaustion: at most \d+ waited", fourth
    )
    assert "healthy: nothing is wrong" in fifth


def test_every_test_that_a_promise_names_is_there() -> None:
    promises = pool_telemetry.promises.__doc__ or ""
    files = set(re.findall(r"test_\w+\.py", promises))
    assert len(files) >= 10
    for name in files:
        assert (ROOT / "tests" / name).is_file(), name
    notes = (ROOT / "tests" / "test_field_notes.py").read_text()
    for number in [*range(1, 21), 22]:
        assert f"def test_{number:02}_" in notes, number
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", promises):
        assert f"\n{target}:" in makefile, target
