"""The way from the listeners to the spans of a trace, which `otel` makes.

`spans` is None while nothing is traced: then an event costs a look at it, and no call.
"""

import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from pool_telemetry.options import TelemetryOptions
from pool_telemetry.state.commands import Series, Trace
from pool_telemetry.stats import Address, Crowd, Link

span_attributes: ContextVar[Mapping[str, str] | None] = ContextVar(
    "pool_telemetry_span_attributes", default=None
)
"""Attributes that the spans of what runs now have beside their own: of which session it is."""

PoolName = Callable[[Address], str]


class Spans(Protocol):
    """What a tracer is told, on the thread or task that it happens to. It takes no pool's lock."""

    def link(self) -> Link | None:
        """Return where in a trace the caller is; None outside of one, or if it is not kept."""

    def checked_out(
        self,
        address: Address,
        conn_id: int,
        seconds: float,
        options: TelemetryOptions,
        name: PoolName,
    ) -> None:
        """A caller has a connection, after so many seconds."""

    def checkout_failed(
        self, address: Address, outcome: str, seconds: float, crowd: Crowd, name: PoolName
    ) -> None:
        """A caller leaves without one."""

    def connection_created(
        self, address: Address, conn_id: int, waited: float, name: PoolName
    ) -> None:
        """A caller who has waited so many seconds begins to open a connection."""

    def connection_ready(self, conn_id: int) -> None:
        """It is open."""

    def connection_closed(self, conn_id: int, reason: str) -> None:
        """A connection is gone; maybe one that was to open, maybe amid a command."""

    def command_started(
        self,
        series: Series,
        command: Mapping[str, Any],
        options: TelemetryOptions,
        other: "Instrumentor | None",
    ) -> Trace | None:
        """A command is sent; another instrumentor may make its span."""


spans: Spans | None = None


class Instrumentor(Protocol):
    """What matters of an instrumentor of OpenTelemetry's."""

    @property
    def is_instrumented_by_opentelemetry(self) -> bool:
        """Return whether it is active."""


def other_instrumentor() -> Instrumentor | None:
    """Return opentelemetry-instrumentation-pymongo's, if clients that are made now have its spans.

    It is not imported for that: who uses it has done so.
    """
    module = sys.modules.get("opentelemetry.instrumentation.pymongo")
    if module is None:
        return None
    instrumentor: Instrumentor = module.PymongoInstrumentor()  # there is one in a process
    return instrumentor if instrumentor.is_instrumented_by_opentelemetry else None
