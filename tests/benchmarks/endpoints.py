"""Measure the event loop while a service is scraped by many at once.

The loop's longest gap is the longest time between two turns of a task that sleeps for a
millisecond: a probe waits so long at most. First the application is called on its loop, then over
HTTP by another process; there FastAPI and its server take most of the time for 200 requests, as an
empty route shows.
"""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry
from pymongo.monitoring import CommandListener

from pool_telemetry import PoolTelemetry, asgi, prometheus
from pool_telemetry.fastapi import create_router
from tests.benchmarks.events import find
from tests.benchmarks.measure import Effort, Goal, show_heading
from tests.benchmarks.reading import SERIES, fill
from tests.benchmarks.traffic import connected
from tests.web import serving

SCRAPES = 200
GAP_MILLISECONDS = 20.0
ENCODINGS = ("identity", "gzip")

_LOAD = """
import asyncio, sys
port, path, encoding, count = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
request = f"GET {path} HTTP/1.1\\r\\nHost: a\\r\\nAccept-Encoding: {encoding}\\r\\n"
async def scrape():
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{request}Connection: close\\r\\n\\r\\n".encode())
    size = 0
    while piece := await reader.read(1 << 18):
        size += len(piece)
    writer.close()
    return size
async def main():
    print(min(await asyncio.gather(*(scrape() for _ in range(count)))))
asyncio.run(main())
"""


class _Gaps:
    """Measures the gaps between the turns of an event loop."""

    def __init__(self) -> None:
        self.longest = 0.0

    @contextlib.asynccontextmanager
    async def beating(self, _: object = None) -> AsyncIterator[None]:
        task = asyncio.create_task(self._beat())
        yield
        task.cancel()

    async def _beat(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            self.longest = max(self.longest, now - last)
            last = now


def run_endpoints(effort: Effort, uri: str) -> list[Goal]:
    """Measure (j)."""
    show_heading(
        "j",
        f"{SCRAPES} scrapes at once of {SERIES} series: the event loop's longest gap",
        f"at best {GAP_MILLISECONDS:g} ms in the application",
    )
    rounds = effort.endpoint_rounds
    telemetry, registry = PoolTelemetry(), CollectorRegistry()
    ours: list[Any] = list(telemetry.listeners)
    with connected(uri, ours) as client:
        client.admin.command("ping")
        fill(find(CommandListener, ours), client.address)
        best = {one: _in_the_application(registry, one, rounds) for one in ENCODINGS}
        _over_http(registry, rounds)
    prometheus.unregister(registry)
    telemetry.close()
    return [
        Goal("j", f"gap in the application, {one}", GAP_MILLISECONDS, gap, "ms")
        for one, gap in best.items()
    ]


def _in_the_application(registry: CollectorRegistry, encoding: str, rounds: int) -> float:
    app = asgi.create_app(registry=registry)
    sizes = dict[str, int]()
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/metrics",
        "query_string": b"",
        "headers": [(b"accept-encoding", encoding.encode())],
    }

    async def receive() -> Any:
        raise NotImplementedError

    async def send(message: Any) -> None:
        for name, value in message.get("headers", ()):
            if name == b"content-length":
                sizes[encoding] = int(value)

    async def scrape_at_once() -> float:
        gaps = _Gaps()
        async with gaps.beating():
            await asyncio.gather(*(app(dict(scope), receive, send) for _ in range(SCRAPES)))
        return gaps.longest * 1000

    found = [asyncio.run(scrape_at_once()) for _ in range(rounds)]
    _show(f"in the application, {encoding}", found, sizes[encoding])
    return min(found)


def _over_http(registry: CollectorRegistry, rounds: int) -> None:
    gaps = _Gaps()
    app = FastAPI(lifespan=gaps.beating)
    app.include_router(create_router(registry=registry))

    @app.get("/on-the-loop")
    async def on_the_loop(request: Request) -> Response:
        body, kind = prometheus.generate(request.headers.get("accept", ""), registry)
        return Response(body, media_type=kind)

    @app.get("/empty")
    async def empty() -> Response:
        return Response(b"")

    with serving(app) as web:
        for name, path, encoding, times in (
            ("an empty route", "/empty", "gzip", rounds),
            ("text made on the loop", "/on-the-loop", "identity", 1),
            ("/metrics, identity", "/metrics", "identity", rounds),
            ("/metrics, gzip", "/metrics", "gzip", rounds),
        ):
            found = []
            for _ in range(times):
                time.sleep(0.1)  # the round before has connections to close
                gaps.longest = 0.0
                load = [sys.executable, "-c", _LOAD, str(web.port), path, encoding, str(SCRAPES)]
                done = subprocess.run(load, capture_output=True, text=True, check=True)
                found.append(gaps.longest * 1000)
            _show(f"over HTTP, {name}", found, int(done.stdout))


def _show(name: str, gaps: list[float], size: int) -> None:
    shown = ", ".join(f"{one:,.1f}" for one in gaps)
    print(f"    {name:38}{shown} ms; {size / 1024:,.0f} KiB")
