"""The hook by which the listeners report to a tracer; `otel` sets it and makes the spans.

`spans` is None while nothing is traced; an event then costs one comparison and no call.
"""

import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from pool_telemetry.options import TelemetryOptions
from pool_telemetry.state.commands import CommandKey, Trace
from pool_telemetry.stats import Address, FindTraceLink, Occupancy, TraceLink

span_attributes: ContextVar[Mapping[str, str] | None] = ContextVar(
    "pool_telemetry_span_attributes", default=None
)
"""Extra attributes of every span that this thread or task makes, such as the session's id."""

PoolName = Callable[[Address], str]


class Spans(Protocol):
    """The events that a tracer receives, on the caller's own thread or task.

    A tracer takes no pool's lock.
    """

    def link(self) -> TraceLink | None:
        """Return the trace and span that are current; None without a sampled span."""

    def link_of_now(self) -> FindTraceLink | None:
        """Return what finds the trace and span that are current now; None without a trace."""

    def checked_out(
        self,
        address: Address,
        conn_id: int,
        seconds: float,
        options: TelemetryOptions,
        name: PoolName,
    ) -> None:
        """Record that a caller got a connection after waiting this many seconds."""

    def checkout_failed(
        self, address: Address, outcome: str, seconds: float, crowd: Occupancy, name: PoolName
    ) -> None:
        """Record that a checkout failed."""

    def connection_created(
        self, address: Address, conn_id: int, waited: float, name: PoolName
    ) -> None:
        """Record that a caller begins to open a connection after waiting this many seconds."""

    def connection_ready(self, conn_id: int) -> None:
        """Record that a connection is open."""

    def connection_closed(self, conn_id: int, reason: str) -> None:
        """Record that a connection is closed, perhaps while it was opening or ran a command."""

    def command_started(
        self,
        series: CommandKey,
        command: Mapping[str, Any],
        options: TelemetryOptions,
        other: "Instrumentor | None",
    ) -> Trace | None:
        """Record that a command is sent; another instrumentor may already make its span."""


spans: Spans | None = None


class Instrumentor(Protocol):
    """The part of OpenTelemetry's instrumentors that is read here."""

    @property
    def is_instrumented_by_opentelemetry(self) -> bool:
        """Return whether the instrumentor is active."""


def other_instrumentor() -> Instrumentor | None:
    """Return the instrumentor of opentelemetry-instrumentation-pymongo while it is active.

    It is not imported here, because an application that uses it has imported it already.
    """
    module = sys.modules.get("opentelemetry.instrumentation.pymongo")
    if module is None:
        return None
    instrumentor: Instrumentor = module.PymongoInstrumentor()  # a singleton
    return instrumentor if instrumentor.is_instrumented_by_opentelemetry else None
