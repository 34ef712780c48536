"""PyMongo's events, turned into changes of state. PyMongo's types and units end here.

PyMongo calls the listeners inline, on the application's threads and tasks, and partly while it
holds its pool lock. They take one leaf lock, touch no pool, and let no exception out.
"""

import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

from pymongo import monitoring as cmap
from pymongo.server_type import SERVER_TYPE

from pool_telemetry.client_options import WAIT_LIMITS_BREAK_ASYNC_POOLS
from pool_telemetry.events import tracing
from pool_telemetry.events.sharing import Sharing
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.owners import current_origin
from pool_telemetry.process import notice_fork, unforked
from pool_telemetry.state.actor import current_actor
from pool_telemetry.state.commands import CommandState, bounded_key
from pool_telemetry.state.frames import is_called_by_async_pool, is_topology, outward
from pool_telemetry.state.pool_state import PoolState
from pool_telemetry.stats import (
    CANCELLED,
    MAX_NAME,
    Address,
    Origin,
    bounded,
    validate_address,
)

OnError = Callable[[Exception], None]

_OUTCOMES: Final = {
    cmap.ConnectionCheckOutFailedReason.TIMEOUT: "timeout",
    cmap.ConnectionCheckOutFailedReason.POOL_CLOSED: "pool_closed",
    cmap.ConnectionCheckOutFailedReason.CONN_ERROR: "connection_error",  # also a paused pool
}
_CLOSE_REASONS: Final = {
    cmap.ConnectionClosedReason.STALE: "stale",
    cmap.ConnectionClosedReason.IDLE: "idle",
    cmap.ConnectionClosedReason.ERROR: "error",
    cmap.ConnectionClosedReason.POOL_CLOSED: "pool_closed",
}
_SERVER_TYPES: Final = dict(enumerate(SERVER_TYPE._fields))
_BROKEN_OFF: Final = "_OperationCancelled"  # an error that has no public name
# The field that names the collection, for each command that has one. Only these are read: in other
# commands the first value may be a user's name or other data, which must not become a label.
_OVERLOADED: Final = "SystemOverloadedError"
"""The label of errors by which a server refuses requests that it can't bear."""

_COLLECTION_FIELD: Final = {
    **{
        name: name
        for name in (
            *("aggregate", "collMod", "collStats", "count", "create", "createIndexes", "delete"),
            *("distinct", "drop", "dropIndexes", "find", "findAndModify", "insert", "killCursors"),
            *("listIndexes", "mapReduce", "update", "validate"),
        )
    },
    "getMore": "collection",
}


class Pools(dict[Address, PoolState]):
    """A client's pools by address.

    Attributes:
        inherit: Returns the state of a pool that is absent. Late events of a forgotten pool count
            nowhere, but after a fork PyMongo may keep using the pool.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inherit: Callable[[Address], PoolState] = PoolState

    def __missing__(self, address: Address) -> PoolState:
        return self.inherit(address)


class ShortRepr:
    """A listener that is short in `repr(client)`."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class PoolListener(ShortRepr, cmap.ConnectionPoolListener):
    """Feeds pool events to the PoolState of their server.

    Args:
        pools: The states by address; `on_created` adds to them.
        on_created: Called with a new pool's address, maxPoolSize (None: unlimited), minPoolSize.
        on_reconnected: Called when a cleared pool is ready again; PyMongo's pool lock is held.
        on_closed: Called when a pool is closed, with whether its client is, too.
        on_wait_limit: Called with the milliseconds that an asynchronous client may wait for a
            connection, if that can break its pool.
        on_error: Called with a failure of ours; it never reaches the application.
        pool_name: Returns the name that a pool has in spans.
        options: Which checkouts get a span.
        sharing: Finds the client of a new pool.
    """

    def __init__(
        self,
        pools: Pools,
        on_created: Callable[[Address, int | None, int], None],
        on_reconnected: Callable[[], None],
        on_closed: Callable[[bool], None],
        on_error: OnError,
        *,
        on_wait_limit: Callable[[float], None],
        pool_name: tracing.PoolName,
        options: TelemetryOptions,
        sharing: Sharing,
    ) -> None:
        self._pools = pools
        self._sharing = sharing
        self._pool_name = pool_name
        self._options = options
        self._on_created = on_created
        self._on_reconnected = on_reconnected
        self._on_closed = on_closed
        self._on_wait_limit = on_wait_limit
        self._on_error = on_error

    @staticmethod
    def address_of(event: Any) -> Any:
        """Return the address object of an event."""
        return event.address

    def connection_check_out_started(self, event: cmap.ConnectionCheckOutStartedEvent) -> None:
        """A caller enters the queue."""
        try:
            if not unforked[0]:
                notice_fork()
            origin, spans = current_origin(), tracing.spans
            if spans is not None:
                origin = Origin(origin.owner, spans.link_of_now())
            self._pools[event.address].checkout_started(current_actor(), origin)
        except Exception as error:
            self._on_error(error)

    def connection_checked_out(self, event: cmap.ConnectionCheckedOutEvent) -> None:
        """A caller has its connection."""
        try:
            spans, seconds = tracing.spans, float(event.duration or 0.0)
            link = None if spans is None else spans.link
            address, conn_id = event.address, event.connection_id
            self._pools[address].checked_out(current_actor(), conn_id, seconds, link)
            if spans is not None:
                spans.checked_out(address, conn_id, seconds, self._options, self._pool_name)
        except Exception as error:
            self._on_error(error)

    def connection_checked_in(self, event: cmap.ConnectionCheckedInEvent) -> None:
        """A connection is checked in; from PyMongo 4.19 on, another caller may already have it."""
        try:
            spans = tracing.spans
            link = None if spans is None else spans.link
            self._pools[event.address].checked_in(current_actor, event.connection_id, link)
        except Exception as error:
            self._on_error(error)

    def connection_check_out_failed(self, event: cmap.ConnectionCheckOutFailedEvent) -> None:
        """A caller leaves the queue without a connection. A retryable read does so twice."""
        try:
            pool, spans = self._pools[event.address], tracing.spans
            outcome = _OUTCOMES.get(event.reason, "connection_error")
            if outcome == "connection_error" and _interrupted():
                outcome = CANCELLED
            pool.checkout_failed(current_actor(), outcome)
            if spans is not None:
                seconds = float(event.duration or 0.0)
                occupancy = pool.occupancy()
                spans.checkout_failed(event.address, outcome, seconds, occupancy, self._pool_name)
        except Exception as error:
            self._on_error(error)

    def connection_created(self, event: cmap.ConnectionCreatedEvent) -> None:
        """A connection begins to open."""
        try:
            pool, actor = self._pools[event.address], current_actor()
            pool.connection_created(actor, event.connection_id)
            spans = tracing.spans
            # Without a waiter it gets no span: PyMongo fills the pool up to minPoolSize.
            if spans is not None and (waited := pool.wait_seconds_of(actor)) is not None:
                conn_id = event.connection_id
                spans.connection_created(event.address, conn_id, waited, self._pool_name)
        except Exception as error:
            self._on_error(error)

    def connection_ready(self, event: cmap.ConnectionReadyEvent) -> None:
        """A connection is open and authenticated, or authenticated again."""
        try:
            self._pools[event.address].connection_ready(event.connection_id)
            if (spans := tracing.spans) is not None:
                spans.connection_ready(event.connection_id)
        except Exception as error:
            self._on_error(error)

    def connection_closed(self, event: cmap.ConnectionClosedEvent) -> None:
        """A connection is closed."""
        try:
            notice_fork()
            reason = _CLOSE_REASONS.get(event.reason, "error")
            self._pools[event.address].connection_closed(event.connection_id, reason)
            if (spans := tracing.spans) is not None:
                spans.connection_closed(event.connection_id, reason)
        except Exception as error:
            self._on_error(error)

    def pool_created(self, event: cmap.PoolCreatedEvent) -> None:
        """A server joins the topology; its pool begins paused."""
        try:
            notice_fork()
            (self._sharing.listener_of_another(event) or self).add_pool(event)
        except Exception as error:
            self._on_error(error)

    def add_pool(self, event: cmap.PoolCreatedEvent) -> None:
        """Begin the state of a pool of this listener's client."""
        self._on_created(validate_address(event.address), *_sizes(event.options))
        limit = event.options.get("waitQueueTimeoutMS")
        if limit and WAIT_LIMITS_BREAK_ASYNC_POOLS and is_called_by_async_pool():
            self._on_wait_limit(limit)

    def pool_ready(self, event: cmap.PoolReadyEvent) -> None:
        """The server answered; checkouts are possible."""
        try:
            if self._pools[event.address].ready():
                self._on_reconnected()
        except Exception as error:
            self._on_error(error)

    def pool_cleared(self, event: cmap.PoolClearedEvent) -> None:
        """The server failed; connections in use are closed at their check-in."""
        try:
            notice_fork()
            # PyMongo noticed a fork, and drops the parent's connections. Two threads that notice it
            # at the same time publish two clears. But no server has failed, and no pool is paused.
            is_failure = not _is_called_by("reset_without_pause")
            pauses = event.service_id is None
            self._pools[event.address].cleared(pauses=pauses, is_failure=is_failure)
        except Exception as error:
            self._on_error(error)

    def pool_closed(self, event: cmap.PoolClosedEvent) -> None:
        """The server left the topology, or the client was closed. Events still follow."""
        try:
            notice_fork()
            self._pools[event.address].closed()
            # PyMongo closes the pool of a server that leaves the topology, which stays open.
            self._on_closed(not _is_called_by("_update_servers", is_topology))
        except Exception as error:
            self._on_error(error)


def _is_called_by(function: str, is_module: Callable[[object], bool] | None = None) -> bool:
    """Return whether a function is among our callers; of certain modules if these are given."""
    return any(
        frame.f_code.co_name == function
        and (is_module is None or is_module(frame.f_globals.get("__name__")))
        for frame in outward(sys._getframe())
    )


def _sizes(options: dict[str, Any]) -> tuple[int | None, int]:
    """Return (max, min) size; the event has only options that differ from PyMongo's defaults."""
    max_size = options.get("maxPoolSize", 100)
    min_size = int(options.get("minPoolSize") or 0)
    if min(float(max_size or 0), float(min_size)) < 0.0:  # or too large to be read later
        raise ValueError("a pool's sizes are negative")
    unlimited = not max_size or max_size == float("inf")
    return (None if unlimited else int(max_size)), min_size


def _duration(seconds: Any) -> float:
    duration = float(seconds)
    if not 0.0 <= duration < float("inf"):
        raise ValueError("a duration is negative or not finite")
    return duration


def _interrupted() -> bool:
    """Return whether an interruption, rather than an error, ended what PyMongo reports as failed.

    PyMongo publishes a failure from its `except` block. There a cancelled task, a killed greenlet
    or Ctrl-C is handled, too, and none of these is a failure. But the application may handle its
    own cancellation, and PyMongo fails in that handler: then none of PyMongo's frames handles it.
    """
    handled = sys.exception()
    if handled is None or isinstance(handled, Exception):
        return False
    callers = {
        frame
        for frame in outward(sys._getframe())
        if str(frame.f_globals.get("__name__")).startswith("pymongo.")
    }
    handling = (frame for frame, _ in traceback.walk_tb(handled.__traceback__))
    return not callers or any(frame in callers for frame in handling)


class OperationListener(ShortRepr, cmap.CommandListener):
    """Feeds command events to the client's CommandState."""

    def __init__(
        self, commands: CommandState, on_error: OnError, options: TelemetryOptions
    ) -> None:
        self._commands = commands
        self._on_error = on_error
        self._options = options
        self._other = tracing.other_instrumentor()

    @staticmethod
    def address_of(event: Any) -> Any:
        """Return the address object of an event."""
        return event.connection_id

    def started(self, event: cmap.CommandStartedEvent) -> None:
        """A command is sent. Only names are read from its document, which is not kept."""
        try:
            name, command = event.command_name, event.command
            collection = command.get(_COLLECTION_FIELD.get(name, ""))
            if not isinstance(collection, str):  # an aggregate over a database has 1
                collection = ""
            database = command.get("$db") or event.database_name  # the event's property is slower
            key = (event.connection_id, database, collection, name, "", "")
            spans, trace = tracing.spans, None
            try:
                if spans is not None:
                    if max(len(collection), len(database), len(name)) > MAX_NAME:
                        key = bounded_key(key)
                    trace = spans.command_started(key, command, self._options, self._other)
            finally:
                self._commands.started(event.request_id, key, trace, current_actor(), command)
        except Exception as error:
            self._on_error(error)

    def succeeded(self, event: cmap.CommandSucceededEvent) -> None:
        """The server answered with ok."""
        try:
            self._commands.ended(event.request_id, event.duration_micros / 1e6)
        except Exception as error:
            self._on_error(error)

    def failed(self, event: cmap.CommandFailedEvent) -> None:
        """The server answered with an error, or the network failed."""
        try:
            failure = event.failure
            code = failure.get("code")
            status = str(code) if isinstance(code, int) else ""
            error_type = status or bounded(str(failure.get("errtype") or "_OTHER"))
            if _interrupted():
                error_type = CANCELLED
            self._commands.ended(
                event.request_id,
                event.duration_micros / 1e6,
                error_type,
                status,
                overloaded=_OVERLOADED in (failure.get("errorLabels") or ()),
            )
        except Exception as error:
            self._on_error(error)


class HeartbeatListener(ShortRepr, cmap.ServerHeartbeatListener):
    """Feeds heartbeats to the PoolState of their server."""

    def __init__(self, pools: Pools, on_error: OnError) -> None:
        self._pools = pools
        self._on_error = on_error

    @staticmethod
    def address_of(event: Any) -> Any:
        """Return the address object of an event."""
        return event.connection_id

    def started(self, event: cmap.ServerHeartbeatStartedEvent) -> None:
        """A heartbeat begins: the monitor is alive."""
        try:
            self._pools[event.connection_id].heartbeat_started()
        except Exception as error:
            self._on_error(error)

    def succeeded(self, event: cmap.ServerHeartbeatSucceededEvent) -> None:
        """The server answered. The duration of an awaited heartbeat is no round-trip time."""
        try:
            rtt = None if event.awaited else _duration(event.duration)
            self._pools[event.connection_id].heartbeat(
                up=True,
                rtt=rtt,
                server_type=_SERVER_TYPES.get(getattr(event.reply, "server_type", -1)),
            )
        except Exception as error:
            self._on_error(error)

    def failed(self, event: cmap.ServerHeartbeatFailedEvent) -> None:
        """The server did not answer, or PyMongo broke off its check to repeat it at once.

        It breaks off a check when an application's connection fails, which is no failed heartbeat.
        """
        try:
            reason = type(event.reply).__name__
            if reason != _BROKEN_OFF:
                self._pools[event.connection_id].heartbeat(up=False, reason=reason)
        except Exception as error:
            self._on_error(error)
