"""Every Python snippet of the guide works, under this package's name, on a real server."""

import ast
import asyncio
import contextlib
import re
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from pymongo import MongoClient
from pymongo.errors import OperationFailure

import pool_telemetry
from pool_telemetry import MongoDBConnectionPool
from pool_telemetry.options import DEFAULTS
from tests.scripted import agent_with
from tests.web import serving

GUIDE = Path(__file__).parent / "guide" / "connection-pooling-guide.md"

Snippet = tuple[str, str]


def snippets() -> list[Any]:
    heading = ""
    found: list[Any] = []
    for part in re.finditer(
        r"^#+ ([^\n]+)$|^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL
    ):
        if part[1]:
            heading = part[1]
            continue
        code = part[2]
        name = re.sub(r"\W+", "-", heading).strip("-").lower()
        found.append(pytest.param(code, id=f"{len(found):02}-{name}"))
    return found


def test_the_guide_was_read_whole() -> None:
    assert len(snippets()) == 24


@pytest.fixture
def local(server_uri: str) -> str:
    """The server's host and port, with the user of the guide's replica-set example."""
    client: MongoClient[dict[str, Any]] = MongoClient(server_uri)
    try:
        client.admin.command("createUser", "user", pwd="pass", roles=["root"])
    except OperationFailure as error:
        if error.code != 51003:  # it exists
            raise
    name: str = client.admin.command("hello")["setName"]
    client.close()
    return server_uri.removeprefix("mongodb://").rstrip("/") + " " + name


@pytest.mark.filterwarnings("ignore:Wire protocol compression")
@pytest.mark.parametrize("code", snippets())
def test_snippet(
    code: str, local: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    host, replica_set = local.split()
    code = code.replace("mongodb_session_manager", "pool_telemetry")
    code = code.replace("replica1:27017,replica2:27017,replica3:27017", host)
    code = code.replace("localhost:27017", host).replace("=rs0", f"={replica_set}")
    code = code.replace(", ...)", ")")  # the guide's "and so on" is no syntax
    # The names that a snippet assumes from the prose or the snippets before it.
    names: dict[str, Any] = {
        "Agent": agent_with,  # an offline one
        "MongoClient": MongoClient,
        "MongoDBSessionManager": pool_telemetry.MongoDBSessionManager,
        "MongoDBConnectionPool": MongoDBConnectionPool,
        "app": FastAPI(),
    }
    if "get_pool_stats" in code or "get_client" in code:
        MongoDBConnectionPool.initialize(f"mongodb://{host}/")

    exec(compile(code, "guide", "exec"), names)
    with asyncio.Runner() as runner, contextlib.ExitStack() as running:
        if "lifespan" in names:
            application = names["lifespan"](names["app"])
            runner.run(application.__aenter__())
            running.callback(lambda: runner.run(application.__aexit__(None, None, None)))
        if "async def chat" in code:
            runner.run(names["chat"]("session-1", "hello"))
            with MongoClient[dict[str, Any]](f"mongodb://{host}/") as client:
                assert (
                    client["chat_db"]["strands_sessions"].count_documents({"_id": "session-1"}) == 1
                )
        look_at(code, names, capsys.readouterr().out)
    assert "Traceback" not in caplog.text
    if "lifespan" in names:
        assert MongoDBConnectionPool.get_pool_stats()["status"] == "not_initialized"


def look_at(code: str, names: dict[str, Any], printed: str) -> None:
    """Check what a snippet has done, while its application runs."""
    tree = ast.parse(code)
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".initialize"):
            last = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
    if "initialize(" in code:
        stats = MongoDBConnectionPool.get_pool_stats()
        assert stats["status"] == "connected"
        # The last call of the snippet is in force; what it does not name has the default.
        expected = {**DEFAULTS, **last}
        config = stats["pool_config"]
        assert {k: config[k] for k in DEFAULTS} == {k: expected[k] for k in DEFAULTS}
        options = MongoDBConnectionPool.get_client().options
        if "w" in last:
            assert options.write_concern.document["w"] == last["w"]
            assert options.write_concern.document["j"] == last["journal"]
        if "wtimeoutMS" in last:
            assert options.write_concern.document["wtimeout"] == last["wtimeoutMS"]
        if "readConcernLevel" in last:
            assert options.read_concern.level == last["readConcernLevel"]
        assert "pass@" not in str(stats)
    if "print(" in code:
        assert printed.strip()
    if 'print(f"Connection failed' in code:
        assert "Connection successful!" in printed
    if "@app.get" in code:
        (path,) = re.findall(r'@app.get\("(.+?)"\)', code)
        with serving(names["app"]) as web:
            answer = web.get(path)
        assert answer.status == 200
        if path == "/health":
            assert answer.json()["status"] == "healthy"
            assert answer.json()["mongodb"]["status"] == "connected"
        else:
            assert answer.json()["connection_pool"]["max_pool_size"] == 100
            assert answer.json()["recommendations"] == {
                "increase_pool": False,
                "check_connection": False,
            }


def test_the_guides_default_configuration_is_ours() -> None:
    text = GUIDE.read_text()
    block = text[text.index("### Default Configuration") :]
    literal = re.search(r"```python\n(\{.*?\})\n```", block, re.DOTALL)
    assert literal
    assert ast.literal_eval(literal[1]) == dict(DEFAULTS)


def test_the_guides_stats_are_a_part_of_ours(server_uri: str) -> None:
    text = GUIDE.read_text()
    comment = re.search(r"# Output:\n((?:# .*\n)+)", text)
    assert comment
    shown = ast.literal_eval(re.sub(r"^# ", "", comment[1], flags=re.MULTILINE))
    MongoDBConnectionPool.initialize(server_uri)
    stats: Any = MongoDBConnectionPool.get_pool_stats()
    assert shown.keys() <= stats.keys()
    assert shown["pool_config"].items() <= stats["pool_config"].items()


@pytest.mark.parametrize(
    ("heading", "preset"),
    [
        ("# Low traffic application", pool_telemetry.presets.LOW_TRAFFIC),
        ("# Medium traffic application", pool_telemetry.presets.MEDIUM_TRAFFIC),
        ("# High traffic application", pool_telemetry.presets.HIGH_TRAFFIC),
        ("# For Fargate with 1 vCPU or similar", pool_telemetry.presets.CONSTRAINED),
        ("# Local development", pool_telemetry.presets.DEVELOPMENT),
        ("    # Startup: Initialize connection pool", pool_telemetry.presets.PRODUCTION),
    ],
)
def test_presets_are_the_guides_sizings(heading: str, preset: Any) -> None:
    code = GUIDE.read_text().split(heading, 1)[1].split("```", 1)[0]
    call = code[code.index("MongoDBConnectionPool.initialize(") :]
    depth = list(accumulate((letter == "(") - (letter == ")") for letter in call))
    end = next(i for i, letter in enumerate(call) if letter == ")" and depth[i] == 0)
    tree = ast.parse(call[: end + 1], mode="eval").body
    assert isinstance(tree, ast.Call)
    shown = {k.arg: ast.literal_eval(k.value) for k in tree.keywords}
    del shown["connection_string"]
    given = {k: list(v) if isinstance(v, tuple) else v for k, v in preset.items()}
    assert given == shown
