"""Every metric, one row each: its name, instrument, unit, meaning, attributes, and how to read it.

Names, units and attributes follow OpenTelemetry's semantic conventions for database clients; what
the conventions lack is named `mongodb.client.*`. Exporters walk `CATALOG` and translate each row,
and the parser of their text walks it, too. So a new metric is one new row. Code that needs one
metric imports its row: no other file spells a metric's name.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import pymongo

from pool_telemetry.state.histogram import OPERATION_BOUNDS, POOL_BOUNDS
from pool_telemetry.stats import (
    AgentStats,
    ClientStats,
    HistogramStats,
    PoolStats,
    ServerSelectionStats,
)
from pool_telemetry.version import __version__

Instrument = Literal["counter", "updowncounter", "gauge", "histogram"]
Value = float | HistogramStats
Points = Iterator[tuple[tuple[str, ...], Value]]
"""The attributes' values, and the metric's value."""
Fields = dict[str, Any]
"""Fields of stats by name, as they are read back."""

POOL_ATTRIBUTES: Final = (
    "db.client.connection.pool.name",
    "server.address",
    "server.port",
)
"""On every metric: `NAME@host:port` (`host:port` for an unnamed client), host, port.

A value of the client as a whole has the client's NAME, and an empty host and port.
"""

DB_SYSTEM: Final = ("db.system.name", "mongodb")

WAIT_TIME: Final = "mongodb.client.pool.wait_time"
"""On a command's span: how long the command waited for its connection, in seconds.

Absent on later commands of the same checkout.
"""

OCCUPANCY_ATTRIBUTES: Final = (
    "mongodb.client.pool.size",
    "mongodb.client.pool.in_use",
    "mongodb.client.pool.waiting",
    "mongodb.client.pool.max_size",
)
"""On the span of a failed checkout: how many connections there are, how many are in use, how many
callers still wait, and maxPoolSize (absent when unlimited).
"""

_STATE: Final = ("db.client.connection.state",)
_OPERATION: Final = (
    DB_SYSTEM[0],
    "db.namespace",
    "db.collection.name",
    "db.operation.name",
    "error.type",
    "db.response.status_code",
)


@dataclass(frozen=True, slots=True)
class Reading:
    """How a metric's values come out of stats, and how one of them is put back.

    Attributes:
        read: Yields one point for each series: the values of POOL_ATTRIBUTES and then of the
            metric's own attributes, in order, and the value. It yields none for an unknown value.
        put: Stores a scraped value among the fields of its pool or client, by the values of the
            metric's own attributes.
    """

    read: Callable[[ClientStats], Points]
    put: Callable[[Fields, tuple[str, ...], Any], None]


@dataclass(frozen=True, slots=True)
class Metric:
    """One row.

    Attributes:
        unit: In UCUM's notation, in which a word in braces is only an annotation.
        description: One sentence; Prometheus shows it as HELP.
        attributes: The metric's own attributes, besides POOL_ATTRIBUTES.
        bounds: The upper bounds of a histogram's buckets; empty for other instruments.
    """

    name: str
    instrument: Instrument
    unit: str
    description: str
    reading: Reading
    attributes: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    def read(self, client: ClientStats) -> Points:
        """Yield the values of all attributes, and the value."""
        return self.reading.read(client)


def _pool_labels(client: ClientStats, pool: PoolStats) -> tuple[str, ...]:
    return client.pool_name(pool), pool.host, _port(pool.port)


def _port(port: int | None) -> str:
    return "" if port is None else str(port)


def _nothing(*_: Any) -> None:
    """Put nothing back: another metric has it, or the text has only a part of it."""


def _of_no_client(_: ClientStats) -> Points:
    yield from ()


def _value(
    field: str,
    kind: Callable[[Any], Any] = int,
    *,
    while_open: bool = False,
    of_ended: bool = False,
) -> Reading:
    """Return the reading of a field of PoolStats; None there is "unknown".

    Args:
        field: Its name.
        kind: Makes its type of a number; for a histogram `_same`.
        while_open: Nothing once the pool is closed: its limits and its server's health are history.
        of_ended: Whether the field is a count, which stays when the client has ended.
    """

    def points(client: ClientStats) -> Points:
        for pool in client.all_pools if of_ended else client.pools:
            value = getattr(pool, field)
            if value is not None and not (while_open and pool.phase == "closed"):
                yield _pool_labels(client, pool), int(value) if kind is bool else value

    def put(fields: Fields, _: tuple[str, ...], value: Any) -> None:
        fields[field] = kind(value)

    return Reading(points, put)


def _same(value: Any) -> Any:
    return value


def _by(field: str) -> Reading:
    """Return the reading of a field of PoolStats that has a number for each key."""

    def points(client: ClientStats) -> Points:
        for pool in client.all_pools:
            for key, value in getattr(pool, field).items():
                yield (*_pool_labels(client, pool), key), value

    def put(fields: Fields, of: tuple[str, ...], value: Any) -> None:
        fields.setdefault(field, {})[of[0]] = int(value)

    return Reading(points, put)


def _states() -> Reading:
    states = {"idle": "idle", "used": "in_use"}

    def points(client: ClientStats) -> Points:
        for pool in client.pools:
            for state, field in states.items():
                yield (*_pool_labels(client, pool), state), getattr(pool, field)

    def put(fields: Fields, of: tuple[str, ...], value: Any) -> None:
        fields[states[of[0]]] = int(value)

    return Reading(points, put)


def _timeouts() -> Reading:
    def points(client: ClientStats) -> Points:
        for pool in client.all_pools:
            yield _pool_labels(client, pool), pool.checkouts["timeout"]

    return Reading(points, _nothing)  # CHECKOUTS has them


def _ready() -> Reading:
    def points(client: ClientStats) -> Points:
        for pool in client.open_pools:
            yield _pool_labels(client, pool), int(pool.phase == "ready")

    def put(fields: Fields, _: tuple[str, ...], value: Any) -> None:
        fields["phase"] = "ready" if value else "paused"

    return Reading(points, put)


def _operations() -> Reading:
    own = ("namespace", "collection", "operation", "error_type", "status_code")

    def points(client: ClientStats) -> Points:
        pools = client.all_pools
        names = {(pool.host, pool.port): client.pool_name(pool) for pool in pools}
        for series in client.operations:
            name = names.get((series.host, series.port), client.name)
            of = (getattr(series, field) for field in own)
            place = series.host, _port(series.port)
            yield (name, *place, DB_SYSTEM[1], *of), series.duration

    def put(fields: Fields, of: tuple[str, ...], value: Any) -> None:
        series = {**dict(zip(own, of[1:], strict=True)), "duration": value}
        fields.setdefault("operations", []).append(series)

    return Reading(points, put)


def _info() -> Reading:
    def points(client: ClientStats) -> Points:
        if client.pools or not client.ended:
            versions = __version__, pymongo.version, client.server_version or ""
            yield (client.name, "", "", *versions), 1

    def put(fields: Fields, of: tuple[str, ...], _: Any) -> None:
        fields["server_version"] = of[2] or None

    return Reading(points, put)


def _of_owners(field: str) -> Reading:
    def points(client: ClientStats) -> Points:
        for pool in client.all_pools if client.owner_metrics else ():
            for owner in pool.owners:
                yield (*_pool_labels(client, pool), owner.owner), getattr(owner, field)

    return Reading(points, _nothing)  # what an owner has in use is in no metric


def _of_client(
    field: str, kind: Callable[[Any], Any] = int, *, only_counted: bool = False
) -> Reading:
    """Return the reading of a field of ClientStats.

    Args:
        field: Its name.
        kind: Makes its type of a number.
        only_counted: Whether only the series without a number has it, which counts the clients.
    """

    def points(client: ClientStats) -> Points:
        if client.clients_made or not only_counted:
            yield (client.name, "", ""), getattr(client, field)

    def put(fields: Fields, _: tuple[str, ...], value: Any) -> None:
        fields[field] = kind(value)

    return Reading(points, put)


def _of_part(
    part: Literal["agents", "server_selection"],
    field: str,
    kind: Callable[[Any], Any] = int,
    *,
    of_ended: bool = True,
) -> Reading:
    """Return the reading of a field of a named tuple that ClientStats has.

    Args:
        part: The name of the tuple.
        field: The name in it.
        kind: Makes its type of a number.
        of_ended: Whether it is a count, which stays when the client has ended.
    """
    empty = {"agents": AgentStats(), "server_selection": ServerSelectionStats()}[part]

    def points(client: ClientStats) -> Points:
        if of_ended or client.pools or not client.ended:
            yield (client.name, "", ""), getattr(getattr(client, part), field)

    def put(fields: Fields, _: tuple[str, ...], value: Any) -> None:
        fields[part] = fields.get(part, empty)._replace(**{field: kind(value)})

    return Reading(points, put)


def _server_types() -> Reading:
    def points(client: ClientStats) -> Points:
        for pool in client.open_pools:
            if pool.server_type is not None:
                yield (*_pool_labels(client, pool), pool.server_type), 1

    def put(fields: Fields, of: tuple[str, ...], _: Any) -> None:
        fields["server_type"] = of[0]

    return Reading(points, put)


CATALOG: Final = (
    CONNECTIONS := Metric(
        "db.client.connection.count",
        "updowncounter",
        "{connection}",
        "The number of ready connections, by state: used, or idle in the pool.",
        _states(),
        _STATE,
    ),
    MAX_SIZE := Metric(
        "db.client.connection.max",
        "updowncounter",
        "{connection}",
        "The most connections that the pool may have (maxPoolSize); absent when unlimited.",
        _value("max_size", while_open=True),
    ),
    WAITING := Metric(
        "db.client.connection.pending_requests",
        "updowncounter",
        "{request}",
        "The number of callers that are waiting for a connection.",
        _value("waiting"),
    ),
    TIMEOUTS := Metric(
        "db.client.connection.timeouts",
        "counter",
        "{timeout}",
        "The number of checkouts that failed because no connection was free in time.",
        _timeouts(),
    ),
    WAIT_SECONDS := Metric(
        "db.client.connection.wait_time",
        "histogram",
        "s",
        "The time that it took a caller to obtain a connection.",
        _value("wait_time", _same, of_ended=True),
        bounds=POOL_BOUNDS,
    ),
    USE_SECONDS := Metric(
        "db.client.connection.use_time",
        "histogram",
        "s",
        "The time that a caller held a connection before it was checked in.",
        _value("use_time", _same, of_ended=True),
        bounds=POOL_BOUNDS,
    ),
    CREATE_SECONDS := Metric(
        "db.client.connection.create_time",
        "histogram",
        "s",
        "The time that it took to open a connection, with TCP, TLS and authentication.",
        _value("create_time", _same, of_ended=True),
        bounds=POOL_BOUNDS,
    ),
    OPERATION_SECONDS := Metric(
        "db.client.operation.duration",
        "histogram",
        "s",
        "The time from the first byte of a command to the server's reply.",
        _operations(),
        _OPERATION,
        OPERATION_BOUNDS,
    ),
    MIN_SIZE := Metric(
        "mongodb.client.pool.min",
        "updowncounter",
        "{connection}",
        "The fewest connections that the pool keeps open (minPoolSize).",
        _value("min_size", while_open=True),
    ),
    OPENING := Metric(
        "mongodb.client.pool.opening",
        "updowncounter",
        "{connection}",
        "The number of connections that are being established.",
        _value("opening"),
    ),
    CHECKOUTS := Metric(
        "mongodb.client.pool.checkouts",
        "counter",
        "{checkout}",
        "The number of checkouts that ended, by outcome.",
        _by("checkouts"),
        ("outcome",),
    ),
    CREATED := Metric(
        "mongodb.client.pool.connections.created",
        "counter",
        "{connection}",
        "The number of connections that the pool created.",
        _value("created", of_ended=True),
    ),
    CLOSED := Metric(
        "mongodb.client.pool.connections.closed",
        "counter",
        "{connection}",
        "The number of connections that the pool closed, by reason.",
        _by("closed"),
        ("reason",),
    ),
    CLEARED := Metric(
        "mongodb.client.pool.cleared",
        "counter",
        "{clear}",
        "The number of times that PyMongo cleared the pool, after an error.",
        _value("cleared", of_ended=True),
    ),
    READY := Metric(
        "mongodb.client.pool.ready",
        "updowncounter",
        "{pool}",
        "1 while the pool is ready for checkouts, 0 while PyMongo has paused it.",
        _ready(),
    ),
    EXHAUSTED := Metric(
        "mongodb.client.pool.exhausted",
        "updowncounter",
        "{pool}",
        "1 while callers wait because all maxPoolSize connections are in use, else 0.",
        _value("exhausted", bool),
    ),
    EXHAUSTIONS := Metric(
        "mongodb.client.pool.exhaustions",
        "counter",
        "{exhaustion}",
        "The number of exhaustions; those less than a second apart count as one.",
        _value("exhaustions", of_ended=True),
    ),
    EXHAUSTED_SECONDS := Metric(
        "mongodb.client.pool.exhausted_time",
        "counter",
        "s",
        "The total time that the pool was exhausted, without gaps within an exhaustion.",
        _value("exhausted_time", float, of_ended=True),
    ),
    OLDEST_WAIT := Metric(
        "mongodb.client.pool.oldest_wait",
        "gauge",
        "s",
        "The time that the longest waiting caller has waited, 0 when no caller waits.",
        _value("oldest_wait", float),
    ),
    LONGEST_CHECKOUT := Metric(
        "mongodb.client.pool.longest_checkout",
        "gauge",
        "s",
        "The age of the oldest open checkout that does not await data, 0 when none is.",
        _value("longest_checkout", float),
    ),
    OLDEST_OPENING := Metric(
        "mongodb.client.pool.oldest_opening",
        "gauge",
        "s",
        "The age of the oldest connection that is being established, 0 when none is.",
        _value("oldest_opening", float),
    ),
    UNSERVED := Metric(
        "mongodb.client.pool.unserved_time",
        "gauge",
        "s",
        "The time for which callers have waited or failed and none got a connection, else 0.",
        _value("unserved_time", float),
    ),
    PEAK_WAITING := Metric(
        "mongodb.client.pool.peak_waiting",
        "gauge",
        "{request}",
        "The most callers that waited at once in the current or the last exhaustion.",
        _value("peak_waiting"),
    ),
    HELD_IDLE := Metric(
        "mongodb.client.pool.held_idle",
        "updowncounter",
        "{connection}",
        "The number of connections in use that ran no command for a second or more.",
        _value("held_idle"),
    ),
    RETRIES := Metric(
        "mongodb.client.pool.retries",
        "counter",
        "{checkout}",
        "The number of checkouts that began within a second of the same caller's timeout.",
        _value("retries", of_ended=True),
    ),
    LONG_CHECKOUTS := Metric(
        "mongodb.client.pool.long_checkouts",
        "counter",
        "{checkout}",
        "The number of checkouts that stayed open longer than long_checkout_seconds.",
        _value("long_checkouts", of_ended=True),
    ),
    OWNER_SECONDS := Metric(
        "mongodb.client.pool.owner.held_time",
        "counter",
        "s",
        "The total time that an owner held connections; only with owner_metrics.",
        _of_owners("seconds"),
        ("mongodb.client.owner",),
    ),
    OWNER_CHECKOUTS := Metric(
        "mongodb.client.pool.owner.checkouts",
        "counter",
        "{checkout}",
        "The number of checkouts of an owner that ended; only with owner_metrics.",
        _of_owners("checkouts"),
        ("mongodb.client.owner",),
    ),
    AGENT_TURNS := Metric(
        "mongodb.client.agent.turns",
        "counter",
        "{turn}",
        "The number of turns that ended, of agents whose sessions this client stores.",
        _of_part("agents", "turns"),
    ),
    AGENT_OPERATIONS := Metric(
        "mongodb.client.agent.operations",
        "counter",
        "{operation}",
        "The number of operations that the client ran for agents' sessions.",
        _of_part("agents", "operations"),
    ),
    AGENT_CONFLICTS := Metric(
        "mongodb.client.agent.conflicts",
        "counter",
        "{conflict}",
        "The number of messages refused because another writer continued the session.",
        _of_part("agents", "conflicts"),
    ),
    CLIENT_INFO := Metric(
        "mongodb.client.info",
        "updowncounter",
        "{client}",
        "1 for each client, with its versions; the server's is empty until it is known.",
        _info(),
        ("pool_telemetry.version", "pymongo.version", "mongodb.server.version"),
    ),
    CLIENTS_CREATED := Metric(
        "mongodb.client.clients.created",
        "counter",
        "{client}",
        "The number of clients that the process made under this name, numbered ones included.",
        _of_client("clients_made", only_counted=True),
    ),
    CLIENTS_OPEN := Metric(
        "mongodb.client.clients.open",
        "updowncounter",
        "{client}",
        "The number of these clients that are open; only the series without a number.",
        _of_client("clients_open", only_counted=True),
    ),
    TELEMETRY_ERRORS := Metric(
        "mongodb.client.pool.telemetry_errors",
        "counter",
        "{error}",
        "The number of events that pool_telemetry failed to process; normally 0.",
        # A malformed event may not name its server, so the errors are counted by client.
        _of_client("telemetry_errors"),
    ),
    SERVER_UP := Metric(
        "mongodb.client.server.up",
        "updowncounter",
        "{server}",
        "1 while the server answers heartbeats, 0 while it does not.",
        _value("up", bool, while_open=True),
    ),
    SERVER_RTT := Metric(
        "mongodb.client.server.rtt",
        "gauge",
        "s",
        "The round-trip time to the server, measured by heartbeats.",
        _value("rtt", float, while_open=True),
    ),
    SERVER_TYPE := Metric(
        "mongodb.client.server.type",
        "updowncounter",
        "{server}",
        "1 for each server that answers heartbeats, with its type by SDAM, such as RSPrimary.",
        _server_types(),
        ("mongodb.server.type",),
    ),
    SERVER_SILENCE := Metric(
        "mongodb.client.server.silent_time",
        "gauge",
        "s",
        "The time without an event of PyMongo's monitor of the server, if too long, else 0.",
        _value("silent_time", float, while_open=True),
    ),
    SELECTION_WAITING := Metric(
        "mongodb.client.server_selection.waiting",
        "updowncounter",
        "{request}",
        "The number of callers that wait in server selection, because no server fits.",
        _of_part("server_selection", "waiting", of_ended=False),
    ),
    SELECTION_OLDEST_WAIT := Metric(
        "mongodb.client.server_selection.oldest_wait",
        "gauge",
        "s",
        "The time that the longest waiting caller has waited in server selection.",
        _of_part("server_selection", "oldest_wait", float, of_ended=False),
    ),
    SELECTION_FAILURES := Metric(
        "mongodb.client.server_selection.failures",
        "counter",
        "{failure}",
        "The number of callers that were seen to fail in server selection.",
        _of_part("server_selection", "failures"),
    ),
    STOOD_STILL := Metric(
        "mongodb.client.stood_still_time",
        "counter",
        "s",
        "The total time for which this process was stopped, frozen or suspended.",
        _of_client("stood_still", float),
    ),
)

WORKER: Final = "worker"
"""On every metric of a scrape, if the service has several processes: the number of the process.

The conventions have no attribute for it. Over OTLP each process has a `service.instance.id`.
"""

PROCESS_UP: Final = Metric(
    "mongodb.client.process.up",
    "updowncounter",
    "{process}",
    "1 if this process of the service answers the others, 0 if it is silent or gone.",
    Reading(_of_no_client, _nothing),
    ("service.instance.id", "process.pid"),
)
"""In a scrape only, without POOL_ATTRIBUTES. Only samples of one instance can be compared."""
