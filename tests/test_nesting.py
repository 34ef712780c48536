"""The spans of a request or an agent and ours are one trace; the two examples that show it."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.otlp import Received, attributes, receiver
from tests.support import free_port, wait_for

ROOT = Path(__file__).parent.parent


def ancestors(received: Received, span: Any) -> Iterator[str]:
    """Yield the names of a span's parents, the nearest first."""
    by_id = {one.span_id: one for one in received.spans}
    while span.parent_span_id:
        span = by_id[span.parent_span_id]
        yield span.name


def test_a_request_and_its_commands_are_one_trace(server_uri: str) -> None:
    port = free_port()
    with receiver("grpc") as received:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "examples.traced_app:app", "--port", str(port)],
            cwd=ROOT,
            env={
                **os.environ,
                "MONGODB_URI": server_uri,
                "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint,
                "OTEL_BSP_SCHEDULE_DELAY": "100",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            url = f"http://127.0.0.1:{port}/chat/7?message=hello"
            request = urllib.request.Request(url, method="POST")

            def asked() -> bytes:
                try:
                    with urllib.request.urlopen(request, timeout=20) as answer:
                        return bytes(answer.read())
                except OSError:
                    assert process.poll() is None, process.stderr and process.stderr.read()
                    return b""

            assert b'"messages":' in wait_for(asked)
            served = "POST /chat/{session_id}"
            wait_for(lambda: any(span.name == served for span in received.spans))
        finally:
            process.terminate()
            process.communicate()
        (root,) = (span for span in received.spans if span.name == served)
        mine = [span for span in received.spans if span.trace_id == root.trace_id]
        commands = [span for span in mine if span.name.endswith(" messages")]
        assert [span.name for span in commands] == ["insert messages", "aggregate messages"]
        for span in commands:
            assert served in ancestors(received, span)
            assert attributes(span.attributes)["mongodb.client.pool.wait_time"] < 20.0
        assert received.resource["service.name"] == "chat"


AGENT = '''
import sys
from strands import Agent, tool
from strands.models import Model
from pool_telemetry import MongoDBConnectionPool
from pool_telemetry.otel import configure_otlp

configure_otlp("agent")


class Scripted(Model):
    """Calls the tool, then answers."""

    def update_config(self, **_):
        pass

    def get_config(self):
        return {}

    async def structured_output(self, *_, **__):
        yield {}

    async def stream(self, messages, *_, **__):
        called = any("toolResult" in block for block in messages[-1]["content"])
        yield {"messageStart": {"role": "assistant"}}
        if called:
            yield {"contentBlockStart": {"start": {}}}
            yield {"contentBlockDelta": {"delta": {"text": "one"}}}
        else:
            use = {"toolUseId": "1", "name": "count_orders"}
            yield {"contentBlockStart": {"start": {"toolUse": use}}}
            yield {"contentBlockDelta": {"delta": {"toolUse": {"input": "{}"}}}}
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "end_turn" if called else "tool_use"}}
        usage = {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}
        yield {"metadata": {"usage": usage, "metrics": {"latencyMs": 1}}}


client = MongoDBConnectionPool.initialize(sys.argv[1])


@tool
def count_orders() -> int:
    """Count the orders."""
    return client["shop"]["orders"].count_documents({})


agent = Agent(model=Scripted(), tools=[count_orders], callback_handler=None, name="clerk")
print(agent("how many?"))
MongoDBConnectionPool.close()
'''


def test_an_agents_command_spans_are_children_of_its_tool_call(server_uri: str) -> None:
    pytest.importorskip("strands")  # the extra `dev` has it, so CI never skips
    with receiver("grpc") as received:
        done = subprocess.run(
            [sys.executable, "-c", AGENT, server_uri],
            env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint},
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "one"
        (count,) = (span for span in received.spans if span.name == "aggregate orders")
        above = list(ancestors(received, count))
        assert above[0] == "execute_tool count_orders"
        assert above[-1] == "invoke_agent clerk"


def test_the_zero_code_example_runs(server_uri: str) -> None:
    with receiver("grpc") as received:
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "opentelemetry-instrument"),
                sys.executable,
                str(ROOT / "examples" / "zero_code.py"),
                server_uri,
            ],
            env={
                **os.environ,
                "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint,
                "OTEL_SERVICE_NAME": "unchanged",
                # The tests' environment also has opentelemetry-instrumentation-pymongo.
                "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "pymongo",
            },
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("orders\n")
        assert not done.stderr
        names = [span.name for span in received.spans]
        assert names.count("insert orders") == 30
        assert "connect" in names
        points = received.latest["mongodb.client.pool.checkouts"].sum.data_points
        assert max(point.as_int for point in points) > 30
        assert received.resource["service.name"] == "unchanged"
