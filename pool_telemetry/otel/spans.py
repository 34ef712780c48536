"""Spans of commands, and of checkouts that failed, were slow or opened a connection.

Spans are made on the application's thread or task, as children of its current span. Context
variables carry a checkout's data to its command; the current span is never changed.
"""

import gc
import logging
from collections.abc import Mapping
from contextvars import ContextVar
from functools import lru_cache, partial
from threading import get_ident
from time import time_ns
from typing import Any, Final

# The SDK sets this key while it exports, so that its own requests get no spans; no public name.
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, get_current
from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    TracerProvider,
    get_current_span,
    get_tracer,
    get_tracer_provider,
    set_span_in_context,
)
from opentelemetry.trace.propagation import _SPAN_KEY  # of the current span; no public name

from pool_telemetry.catalog import DB_SYSTEM, OCCUPANCY_ATTRIBUTES, POOL_ATTRIBUTES, WAIT_TIME
from pool_telemetry.events import tracing
from pool_telemetry.events.tracing import Instrumentor, PoolName
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.otel.collection import SCHEMA_URL, SCOPE
from pool_telemetry.otel.query_text import query_text
from pool_telemetry.process import ProcessLock
from pool_telemetry.state.commands import CommandKey
from pool_telemetry.stats import (
    CANCELLED,
    Address,
    FindTraceLink,
    Occupancy,
    TraceLink,
    bounded_address,
)

_log = logging.getLogger("pool_telemetry.otel")

_SUPPRESSED: Final = (_SUPPRESS_INSTRUMENTATION_KEY, "suppress_instrumentation")
_PYMONGO: Final = "PyMongo"  # the scope of PyMongo's own spans, which 4.20 does not make yet
_LATE: Final = 1_000_000_000  # ns by which an event may be later than the moment it reports
_BATCHES: Final = {
    "insert": "documents",
    "update": "updates",
    "delete": "deletes",
    "bulkWrite": "ops",
}


class _Opening:
    """A connection that a caller opens, with its span and the span of the checkout around it."""

    __slots__ = ("began", "checkout", "conn_id", "connect")

    def __init__(self, began: int, checkout: Span, conn_id: int, connect: Span) -> None:
        self.began = began
        self.checkout = checkout
        self.conn_id = conn_id
        self.connect: Span | None = connect


# The last events of this thread or task: its wait time, until a command's span has it; the
# connection that it opens; its command's span. A cancelled wait leaves them unchanged.
_waited: ContextVar[float | None] = ContextVar("pool_telemetry_waited", default=None)
_opening: ContextVar[_Opening | None] = ContextVar("pool_telemetry_opening", default=None)
_command: "ContextVar[_Command | None]" = ContextVar("pool_telemetry_command", default=None)


class _Spans:
    """See `tracing.Spans`."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._warned: set[str] = set()

    def link(self) -> TraceLink | None:
        return _link(get_current_span())

    def link_of_now(self) -> FindTraceLink | None:
        context = get_current()
        return partial(_link_in, context) if context else None

    # Checkouts

    def checked_out(
        self,
        address: Address,
        conn_id: int,
        seconds: float,
        options: TelemetryOptions,
        name: PoolName,
    ) -> None:
        if _is_collecting():
            return
        _waited.set(seconds)
        opening = _opening.get()
        if opening is None and seconds < options.slow_checkout_seconds:
            return
        _opening.set(None)
        now, span = time_ns(), None
        # An opening of another connection belongs to a checkout that was cancelled.
        if opening is not None and opening.conn_id == conn_id:
            span = opening.checkout
        elif seconds >= options.slow_checkout_seconds:
            span = self._checkout(address, now - int(seconds * 1e9), name)
        if span is not None:
            span.end(now)

    def checkout_failed(
        self, address: Address, outcome: str, seconds: float, crowd: Occupancy, name: PoolName
    ) -> None:
        if _is_collecting():
            return
        now, opening = time_ns(), _opening.get()
        began = now - int(seconds * 1e9)
        # An older opening belongs to a checkout that was cancelled.
        if opening is not None and opening.began > began - _LATE:
            span: Span | None = opening.checkout
        else:
            span = self._checkout(address, began, name)
        _opening.set(None)
        if span is None:
            return
        if span.is_recording():
            for key, value in zip(OCCUPANCY_ATTRIBUTES, crowd, strict=True):
                if value is not None:
                    span.set_attribute(key, value)
            _fail(span, outcome)
        span.end(now)

    # Connections

    def connection_created(
        self, address: Address, conn_id: int, waited: float, name: PoolName
    ) -> None:
        if _is_collecting():
            return
        now = time_ns()
        checkout = self._checkout(address, now - int(waited * 1e9), name)
        if checkout is not None:
            connect = self._tracer.start_span(
                "connect",
                set_span_in_context(checkout),
                attributes=_of_pool(address, name),
                start_time=now,
            )
            _opening.set(_Opening(now, checkout, conn_id, connect))

    def connection_ready(self, conn_id: int) -> None:
        _connected(conn_id, "")

    def connection_closed(self, conn_id: int, reason: str) -> None:
        _connected(conn_id, reason)
        if not _is_collecting() and (command := _command.get()) is not None:
            command.end_as_cancelled()

    def _checkout(self, address: Address, began: int, name: PoolName) -> Span | None:
        if _suppressed(get_current()):
            return None
        attributes = {**_of_pool(address, name), **(tracing.span_attributes.get() or {})}
        return self._tracer.start_span("checkout", attributes=attributes, start_time=began)

    # Commands

    def command_started(
        self,
        series: CommandKey,
        command: Mapping[str, Any],
        options: TelemetryOptions,
        other: Instrumentor | None,
    ) -> "_Command | _ForeignCommand | None":
        context = get_current()
        if (_collector and _is_collecting()) or (context and _suppressed(context)):
            return None
        waited, opening = _waited.get(), _opening.get()
        if opening is not None and opening.connect is not None:  # the connection's authentication
            context, waited = set_span_in_context(opening.connect, context), None
        elif waited is not None:
            _waited.set(None)
        if not options.command_spans:
            # A getter of OpenTelemetry's own would check the type of the span, which takes longer.
            parent: Span = context.get(_SPAN_KEY) or INVALID_SPAN  # type: ignore[assignment]  # any
            maker = self._other_maker(parent, other) if options.command_spans is None else ""
            if maker or options.command_spans is False:
                if waited is not None and maker == _PYMONGO:
                    parent.set_attribute(WAIT_TIME, waited)
                return _ForeignCommand(parent)
        name, described = _described(series)
        attributes = described.copy()
        if (extra := tracing.span_attributes.get()) is not None:
            attributes.update(extra)
        if waited is not None:
            attributes[WAIT_TIME] = waited
        operation = series[3]
        if operation in _BATCHES and (size := len(command.get(_BATCHES[operation], ()))) > 1:
            attributes["db.operation.batch.size"] = size
        if options.query_text:
            names = (operation, "collection") if series[2] else ()
            attributes["db.query.text"] = query_text(command, names)
        span = self._tracer.start_span(name, context, SpanKind.CLIENT, attributes)
        trace = _Command(span)
        _command.set(trace)
        return trace

    def _other_maker(self, parent: Span, other: Instrumentor | None) -> str:
        """Return the name of the library that already makes spans of commands; empty if none."""
        scope = getattr(parent, "instrumentation_scope", None)  # the SDK's spans have one
        if scope is not None and scope.name == _PYMONGO:
            maker = _PYMONGO
        elif other is not None and other.is_instrumented_by_opentelemetry:
            maker = "opentelemetry-instrumentation-pymongo"
        else:
            return ""
        if maker not in self._warned:
            self._warned.add(maker)
            _log.warning(
                "%s already makes command spans, so pool_telemetry makes none; checkout spans and "
                "all metrics stay (POOL_TELEMETRY_COMMAND_SPANS=true makes both command spans)",
                maker,
            )
        return maker


class _Command:
    """See `commands.Trace`."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def end(self, error_type: str, status_code: str) -> None:
        if _collector and _is_collecting():
            return
        span = self._span
        if error_type and span.is_recording():
            _fail(span, error_type)
            if status_code:
                span.set_attribute("db.response.status_code", status_code)
        span.end()

    def end_as_cancelled(self) -> None:
        """End the span of a cancelled command, because PyMongo before 4.20.1 publishes no end."""
        if self._span.is_recording():
            _fail(self._span, CANCELLED)
            self._span.end()
            # Frees the span: this object is kept for long, because the end event may still come.
            self._span = INVALID_SPAN

    def link(self) -> TraceLink | None:
        return _link(self._span)


class _ForeignCommand(_Command):
    """A command whose span another library makes; the span is the one around it."""

    __slots__ = ()

    def end(self, error_type: str, status_code: str) -> None:
        """Do nothing, because the span is not ours."""


def _connected(conn_id: int, error_type: str) -> None:
    opening = _opening.get()
    if opening is None or opening.connect is None or opening.conn_id != conn_id or _is_collecting():
        return
    connect, opening.connect = opening.connect, None
    if error_type:
        _fail(connect, error_type)
    connect.end()


def _fail(span: Span, error_type: str) -> None:
    # No description, because the server's message may contain a document's values.
    span.set_attribute("error.type", error_type)
    span.set_status(StatusCode.ERROR)


def _link(span: Span) -> TraceLink | None:
    if span is INVALID_SPAN:
        return None
    context = span.get_span_context()
    if not context.is_valid or not context.trace_flags.sampled:
        return None
    return context.trace_id, context.span_id


def _link_in(context: Context) -> TraceLink | None:
    return _link(get_current_span(context))


def _suppressed(context: Context) -> bool:
    return bool(context.get(_SUPPRESSED[0]) or context.get(_SUPPRESSED[1]))


@lru_cache(maxsize=1_000)
def _described(series: CommandKey) -> tuple[str, dict[str, str | int | float]]:
    """Return the name of a command's span, and the attributes that it always has."""
    address, namespace, collection, operation, *_ = series
    attributes: dict[str, str | int | float] = {
        **_server(address),
        "db.namespace": namespace,
        "db.operation.name": operation,
        **({"db.collection.name": collection} if collection else {}),
    }
    return f"{operation} {collection or namespace}", attributes


@lru_cache(maxsize=256)
def _server(address: Address) -> dict[str, str | int | float]:
    """Return the attributes that all spans of a server have.

    `network.peer.address` is not among them, because each attribute costs the SDK 0.7 µs, and
    PyMongo reports no other address than the server's.
    """
    host, port = bounded_address(address)
    attributes: dict[str, str | int | float] = {**dict([DB_SYSTEM]), "server.address": host}
    if port is None:
        return {**attributes, "network.transport": "unix"}
    return {**attributes, "server.port": port}


def _of_pool(address: Address, name: PoolName) -> dict[str, str | int | float]:
    return {**_server(address), POOL_ATTRIBUTES[0]: name(address)}


# A garbage collection may start inside one of the SDK's locks and run a finalizer that uses a
# client. A span of that use would wait for the same lock, so a garbage collection makes no span.
_collector = 0


def _is_collecting() -> bool:
    return _collector != 0 and _collector == get_ident()


def _note_collection(phase: str, _: dict[str, int]) -> None:
    global _collector
    _collector = get_ident() if phase == "start" else 0


_lock: Final = ProcessLock()
_provider: TracerProvider | None = None  # the provider of the spans; None for the global one


def start_tracing(tracer_provider: TracerProvider | None = None) -> None:
    """Make spans for every client's operations, and exemplars for their histograms, from now on.

    A command's span is a CLIENT span by the conventions; `mongodb.client.pool.wait_time` is its
    wait for the connection. A checkout gets a span if it fails, is slow or opens a connection,
    which gets a child span `connect`. `TelemetryOptions` has settings for each client. A repeated
    call with another provider sends the spans there.

    Args:
        tracer_provider: By default the global one, even if it is set later.
    """
    global _provider
    tracer = get_tracer(*SCOPE, tracer_provider, SCHEMA_URL)
    with _lock:
        _provider = tracer_provider
        tracing.spans = _Spans(tracer)
        if _note_collection not in gc.callbacks:
            gc.callbacks.append(_note_collection)


def stop_tracing(tracer_provider: TracerProvider | None = None) -> None:
    """Stop making spans, or only if they go to the given provider; without spans do nothing."""
    global _collector, _provider
    with _lock:
        if tracer_provider is not None and tracer_provider is not _provider:
            return
        _provider = tracing.spans = None
        if _note_collection in gc.callbacks:
            gc.callbacks.remove(_note_collection)
        _collector = 0


def current_provider() -> TracerProvider | None:
    """Return the provider of the spans; None without spans."""
    with _lock:
        if tracing.spans is None:
            return None
        return get_tracer_provider() if _provider is None else _provider
