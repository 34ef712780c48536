"""The cost of the import, the modules that it pulls in, and the errors without an extra."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pool_telemetry

HEAVY = (
    "fastapi",
    "starlette",
    "django",
    "strands",
    "grpc",
    "secantus",
    "rich",
    "uvicorn",
    "opentelemetry",
)


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_the_import_is_light() -> None:
    loaded = python("import sys, pool_telemetry; print(*sys.modules)").split()
    assert "pymongo" in loaded
    assert not [name for name in loaded if name.split(".")[0] in HEAVY]
    assert "prometheus_client" not in loaded


def test_the_import_adds_few_modules_to_pymongos() -> None:
    """Its time depends on the machine: `make bench` measures it."""
    code = (
        "import sys, pymongo, pymongo.asynchronous.mongo_client; known = set(sys.modules);"
        "import pool_telemetry; print(*set(sys.modules) - known)"
    )
    expected = "pool_telemetry", "msgspec", "typing_extensions"  # the last is msgspec's
    added = {name for name in python(code).split() if name.partition(".")[0] not in expected}
    assert {name.partition(".")[0] for name in added} <= sys.stdlib_module_names
    assert len(added) <= 5, added


@pytest.mark.parametrize(
    ("module", "missing", "words"),
    [
        ("pool_telemetry.fastapi", "fastapi", "pip install 'pool-telemetry[fastapi]'"),
        ("pool_telemetry.django", "django", "pip install django"),
    ],
)
def test_a_missing_extra_is_named(module: str, missing: str, words: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
try:
    import {module}
except ImportError as error:
    print(error)
"""
    assert words in python(code)


def test_everything_public_is_documented_and_exported() -> None:
    for name in pool_telemetry.__all__:
        assert getattr(pool_telemetry, name).__doc__, name
    package = Path(pool_telemetry.__file__).parent
    assert (package / "py.typed").exists()
    for path in package.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
