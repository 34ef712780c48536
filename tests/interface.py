"""Everything by which users reach the library, as text: imports, options, keys, names, exit codes.

`python -m tests.interface` prints it. `tests/golden/interface.txt` has it as it was released, and a
test holds the present against it: additions are free, a line that is gone needs a changelog entry.
"""

import argparse
import ast
import dataclasses
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pool_telemetry
from pool_telemetry import MongoDBConnectionPool, TelemetryOptions, assess, diagnose
from pool_telemetry.catalog import CATALOG
from pool_telemetry.cli.main import parser as program
from pool_telemetry.diagnosis import recommend
from tests.everything import replay

ROOT = Path(__file__).parents[1]
MODULES = (
    *("catalog", "cli", "demo", "diagnosis", "errors", "fastapi", "health", "options", "otel"),
    *("pool", "async_pool", "presets", "prometheus", "report", "sessions", "state", "stats"),
    *("telemetry", "watch", "asgi", "django", "serving", "wsgi"),
)
"""Modules that users import by these paths."""


def interface() -> list[str]:
    """Return the interface, a fact a line, sorted."""
    facts = [*_names(), *_keys(), *_metrics(), *_commands(), *_options(), *_installed(), *_logs()]
    return sorted(set(facts))


def _names() -> Iterator[str]:
    for name in pool_telemetry.__all__:
        yield f"import pool_telemetry.{name}"
    for module in MODULES:
        found = importlib.import_module(f"pool_telemetry.{module}")
        tree = ast.parse(inspect.getsource(found))
        assigned = {one.target.id for one in tree.body if isinstance(one, ast.AnnAssign)}  # type: ignore[union-attr]
        for name in getattr(found, "__all__", vars(found)):
            home = getattr(getattr(found, name), "__module__", "") or ""
            ours = home.startswith(found.__name__) or name in assigned
            if ours and not name.startswith("_"):
                yield f"import {found.__name__}.{name}"


def _keys() -> Iterator[str]:
    telemetry, _listeners = replay()
    stats = telemetry.stats()
    # One thread is every caller of the replay, which would be a deadlock.
    pools = tuple(dataclasses.replace(one, self_blocked=0) for one in stats.pools)
    found = diagnose(dataclasses.replace(stats, pools=pools))
    answers = {
        "get_pool_stats": {**MongoDBConnectionPool.get_pool_stats(), **telemetry.live_stats()},
        "health": dataclasses.asdict(assess(stats)),
        "diagnosis": found.as_dict(),
        "recommendations": recommend(found),
        "client_stats": dataclasses.asdict(stats),
    }
    for answer, value in answers.items():
        for path in _paths(value):
            yield f"key {answer}{path}"


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield f".{key}"
            for path in _paths(below):
                yield f".{key}{path}"
    elif isinstance(value, list | tuple):
        for below in value:
            for path in _paths(below):
                yield f"[]{path}"


def _metrics() -> Iterator[str]:
    for metric in CATALOG:
        attributes = ", ".join(metric.attributes)
        yield f"metric {metric.name} {metric.instrument} {metric.unit} [{attributes}]"


def _commands() -> Iterator[str]:
    (commands,) = (
        cast("dict[str, argparse.ArgumentParser]", action.choices)
        for action in program()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    for name, command in commands.items():
        yield f"command {name}"
        for action in command._actions:
            for option in action.option_strings or (action.dest,):
                yield f"command {name} {option} (default {action.default})"


def _options() -> Iterator[str]:
    for field in dataclasses.fields(TelemetryOptions):
        yield f"option {field.name}, POOL_TELEMETRY_{field.name.upper()}"


def _installed() -> Iterator[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, target in project["scripts"].items():
        yield f"program {name} = {target}"
    for group, targets in project["entry-points"].items():
        for name, target in targets.items():
            yield f"entry point {group} {name} = {target}"
    for extra in project["optional-dependencies"]:
        yield f"extra {extra}"


def _logs() -> Iterator[str]:
    for file in (ROOT / "pool_telemetry").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for name in re.findall(r'(?:getLogger|ProcessLog)\("(pool_telemetry[\w.]*)"\)', text):
            yield f"logger {name}"
        for name in re.findall(r'name="(pool_telemetry-[\w-]+)"', text):
            yield f"thread {name}"


def gone(before: list[str]) -> list[str]:
    """Return which facts of an earlier interface no longer hold."""
    now = set(interface())
    return [fact for fact in before if fact not in now and not _can_import(fact)]


def _can_import(fact: str) -> bool:
    path = fact.removeprefix("import ")
    module, _, name = path.rpartition(".")
    return path != fact and hasattr(importlib.import_module(module), name)


if __name__ == "__main__":
    print("\n".join(interface()))
