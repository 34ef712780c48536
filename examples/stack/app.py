"""The stack's service: its load goes from calm to rush to exhausted and back, again and again.

Prometheus scrapes `/metrics`. If OTEL_EXPORTER_OTLP_ENDPOINT is set, metrics and traces also go to
a collector. `PUT /load/exhausted` stays in one phase, and `PUT /load/cycle` continues the cycle.
Alertmanager posts to `/alerts`, which prints each alert.

Needs `pool-telemetry[demo]`, and MONGODB_URI. Run it:  uvicorn --app-dir examples/stack app:app
"""

import itertools
import os
import threading
import uuid
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

from fastapi import FastAPI, HTTPException
from opentelemetry import trace

from pool_telemetry import MongoDBConnectionPool, TelemetryOptions
from pool_telemetry.demo.load import (
    CROWDED_CYCLE,
    CYCLE,
    MAX_POOL_SIZE,
    WAIT_QUEUE_TIMEOUT_MS,
    Callers,
    Server,
)
from pool_telemetry.fastapi import create_router, pool_lifespan
from pool_telemetry.otel import configure_otlp

NAME: Final = "chat"
PROCESS: Final = f"{NAME}-{uuid.uuid4().hex[:8]}"  # so that only this process is slowed down
SLOWER: Final = 10  # times slower than the demo, so that alerts have time to fire and resolve

tracer = trace.get_tracer("chat")
alerts: deque[dict[str, Any]] = deque(maxlen=100)


class Chats(Callers):
    """Callers that trace each turn."""

    def take_a_turn(self, seat: int) -> None:
        """Run one turn in a span of its own."""
        with tracer.start_as_current_span("chat"):
            super().take_a_turn(seat)


class Load:
    """Plays the phases in its own thread while the `with` block runs."""

    def __init__(self) -> None:
        self._server = Server(os.environ["MONGODB_URI"], PROCESS)
        self._callers = Chats(MongoDBConnectionPool.get_client()[NAME].chats)
        cycle = CYCLE if self._server.obeys else CROWDED_CYCLE
        self._cycle = [replace(phase, seconds=SLOWER * phase.seconds) for phase in cycle]
        self.held = self._known(os.environ.get("LOAD", "cycle"))
        self._changed = threading.Event()
        self._over = False
        self._player = threading.Thread(target=self._play)

    def hold(self, name: str) -> None:
        """Go to the named phase and stay there; `cycle` plays all phases again."""
        self.held = self._known(name)
        self._changed.set()

    def _known(self, name: str) -> str:
        names = ["cycle", *(phase.name for phase in self._cycle)]
        if name not in names:
            raise HTTPException(404, f"there is no phase {name!r}: use {', '.join(names)}")
        return name

    def _play(self) -> None:
        named = {phase.name: phase for phase in self._cycle}
        ahead = itertools.cycle(self._cycle)
        while not self._over:
            phase = named.get(self.held) or next(ahead)
            self._server.take(phase.slow_ms)
            self._callers.become(phase.callers, phase.pause_seconds)
            self._changed.wait(phase.seconds if self.held == "cycle" else None)
            self._changed.clear()

    def __enter__(self) -> "Load":
        self._player.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._changed.set()
        self._player.join()
        self._server.quicken()
        self._callers.stop()
        self._server.close()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the pool and play the load while the service runs."""
    pool = pool_lifespan(
        telemetry=TelemetryOptions(name=NAME, owner_metrics=True),
        appName=PROCESS,
        maxPoolSize=MAX_POOL_SIZE,
        minPoolSize=2,
        waitQueueTimeoutMS=WAIT_QUEUE_TIMEOUT_MS,
    )
    async with pool(app):
        with Load() as app.state.load:
            yield


if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ:
    configure_otlp(NAME)
app = FastAPI(lifespan=lifespan)
app.include_router(create_router())


@app.put("/load/{phase}")
def load(phase: str) -> None:
    """Stay in a phase, or continue the cycle."""
    app.state.load.hold(phase)


@app.post("/alerts")
def alert(message: dict[str, Any]) -> None:
    """Keep and print the alerts that Alertmanager sends."""
    alerts.append(message)
    for one in message["alerts"]:
        text = one["annotations"]
        print(f"ALERT {one['status']}: {text['summary']}\n  {text['description']}", flush=True)


@app.get("/alerts")
def received_alerts() -> list[dict[str, Any]]:
    """Return the latest messages from Alertmanager."""
    return list(alerts)
