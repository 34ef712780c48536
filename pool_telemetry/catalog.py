"""Every metric, one row each: its name, instrument, unit, meaning, attributes, and how to read it.

Names, units and attributes are OpenTelemetry's semantic conventions for database clients; what
they lack is under `mongodb.client.*`. No other file spells a metric's name. Exporters walk
`CATALOG` and translate; a new metric is one new row. Who asks for one metric takes its row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import pymongo

from pool_telemetry.histogram import OPERATION_BOUNDS, POOL_BOUNDS
from pool_telemetry.stats import AgentStats, ClientStats, HistogramStats, OwnerStats, PoolStats
from pool_telemetry.version import __version__

Instrument = Literal["counter", "updowncounter", "gauge", "histogram"]
Value = float | HistogramStats
Points = Iterator[tuple[tuple[str, ...], Value]]
"""Attributes' values, and the value."""

POOL_ATTRIBUTES: Final = (
    "db.client.connection.pool.name",
    "server.address",
    "server.port",
)
"""On every metric: `NAME@host:port` (`host:port` for an unnamed client), host, port.

Where a value belongs to the client as a whole: its NAME, and no host and port.
"""

DB_SYSTEM: Final = ("db.system.name", "mongodb")

WAIT_TIME: Final = "mongodb.client.pool.wait_time"
"""On a command's span: how long it waited for its connection, in seconds. Absent on a further
command over the same connection.
"""

CROWD_ATTRIBUTES: Final = (
    "mongodb.client.pool.size",
    "mongodb.client.pool.in_use",
    "mongodb.client.pool.waiting",
    "mongodb.client.pool.max_size",
)
"""On the span of a failed checkout, what `Crowd` has: connections, those in use, callers who still
wait, maxPoolSize (absent when unlimited).
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
class Metric:
    """One row. Unit is UCUM, where braces only annotate.

    `read` yields the values of POOL_ATTRIBUTES and of the metric's own attributes, in their order,
    and the value; nothing for "unknown". `bounds` are a histogram's.
    """

    name: str
    instrument: Instrument
    unit: str
    description: str
    read: Callable[[ClientStats], Points]
    attributes: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


def _pool_labels(client: ClientStats, pool: PoolStats) -> tuple[str, ...]:
    return client.pool_name(pool), pool.host, _port(pool.port)


def _port(port: int | None) -> str:
    return "" if port is None else str(port)


def _value(read: Callable[[PoolStats], Value | None]) -> Callable[[ClientStats], Points]:
    def points(client: ClientStats) -> Points:
        for pool in client.pools:
            if (value := read(pool)) is not None:
                yield _pool_labels(client, pool), value

    return points


def _while_open(read: Callable[[PoolStats], float | None]) -> Callable[[ClientStats], Points]:
    """Yield nothing once the pool is closed: its limits and its server's health are history."""
    return _value(lambda pool: None if pool.phase == "closed" else read(pool))


def _by(read: Callable[[PoolStats], dict[str, int]]) -> Callable[[ClientStats], Points]:
    def points(client: ClientStats) -> Points:
        for pool in client.pools:
            for key, value in read(pool).items():
                yield (*_pool_labels(client, pool), key), value

    return points


def _operations(client: ClientStats) -> Points:
    names = {(pool.host, pool.port): client.pool_name(pool) for pool in client.pools}
    for series in client.operations:
        name = names.get((series.host, series.port), client.name)
        yield (
            (
                name,
                series.host,
                _port(series.port),
                DB_SYSTEM[1],
                series.namespace,
                series.collection,
                series.operation,
                series.error_type,
                series.status_code,
            ),
            series.duration,
        )


def _info(client: ClientStats) -> Points:
    yield (client.name, "", "", __version__, pymongo.version, client.server_version or ""), 1


def _of_owners(read: Callable[[OwnerStats], float]) -> Callable[[ClientStats], Points]:
    def points(client: ClientStats) -> Points:
        for pool in client.pools if client.owner_metrics else ():
            for owner in pool.owners:
                yield (*_pool_labels(client, pool), owner.owner), read(owner)

    return points


def _of_agents(read: Callable[[AgentStats], int]) -> Callable[[ClientStats], Points]:
    def points(client: ClientStats) -> Points:
        yield (client.name, "", ""), read(client.agents)

    return points


def _telemetry_errors(client: ClientStats) -> Points:
    # A broken event may not even say which server it is from: so the client's name, and no server.
    yield (client.name, "", ""), client.telemetry_errors


CATALOG: Final = (
    CONNECTIONS := Metric(
        "db.client.connection.count",
        "updowncounter",
        "{connection}",
        "Connections that are ready, by state",
        _by(lambda pool: {"idle": pool.idle, "used": pool.in_use}),
        _STATE,
    ),
    MAX_SIZE := Metric(
        "db.client.connection.max",
        "updowncounter",
        "{connection}",
        "maxPoolSize, absent when unlimited",
        _while_open(lambda pool: pool.max_size),
    ),
    WAITING := Metric(
        "db.client.connection.pending_requests",
        "updowncounter",
        "{request}",
        "Callers waiting for a connection",
        _value(lambda pool: pool.waiting),
    ),
    TIMEOUTS := Metric(
        "db.client.connection.timeouts",
        "counter",
        "{timeout}",
        "Checkouts that timed out waiting for a connection",
        _value(lambda pool: pool.checkouts["timeout"]),
    ),
    WAIT_SECONDS := Metric(
        "db.client.connection.wait_time",
        "histogram",
        "s",
        "Time to obtain a connection",
        _value(lambda pool: pool.wait_time),
        bounds=POOL_BOUNDS,
    ),
    USE_SECONDS := Metric(
        "db.client.connection.use_time",
        "histogram",
        "s",
        "Time a connection was held",
        _value(lambda pool: pool.use_time),
        bounds=POOL_BOUNDS,
    ),
    CREATE_SECONDS := Metric(
        "db.client.connection.create_time",
        "histogram",
        "s",
        "Time to open a connection: TCP, TLS and authentication included",
        _value(lambda pool: pool.create_time),
        bounds=POOL_BOUNDS,
    ),
    OPERATION_SECONDS := Metric(
        "db.client.operation.duration",
        "histogram",
        "s",
        "Duration of one command, from first byte to reply",
        _operations,
        _OPERATION,
        OPERATION_BOUNDS,
    ),
    MIN_SIZE := Metric(
        "mongodb.client.pool.min",
        "updowncounter",
        "{connection}",
        "minPoolSize, which bounds the total of connections",
        _while_open(lambda pool: pool.min_size),
    ),
    OPENING := Metric(
        "mongodb.client.pool.opening",
        "updowncounter",
        "{connection}",
        "Connections being established",
        _value(lambda pool: pool.opening),
    ),
    CHECKOUTS := Metric(
        "mongodb.client.pool.checkouts",
        "counter",
        "{checkout}",
        "Checkouts that ended, by outcome",
        _by(lambda pool: pool.checkouts),
        ("outcome",),
    ),
    CREATED := Metric(
        "mongodb.client.pool.connections.created",
        "counter",
        "{connection}",
        "Connections created",
        _value(lambda pool: pool.created),
    ),
    CLOSED := Metric(
        "mongodb.client.pool.connections.closed",
        "counter",
        "{connection}",
        "Connections closed, by reason",
        _by(lambda pool: pool.closed),
        ("reason",),
    ),
    CLEARED := Metric(
        "mongodb.client.pool.cleared",
        "counter",
        "{clear}",
        "Times the pool was cleared",
        _value(lambda pool: pool.cleared),
    ),
    READY := Metric(
        "mongodb.client.pool.ready",
        "updowncounter",
        "{pool}",
        "1 while the pool is ready, 0 while it is paused",
        _while_open(lambda pool: int(pool.phase == "ready")),
    ),
    EXHAUSTED := Metric(
        "mongodb.client.pool.exhausted",
        "updowncounter",
        "{pool}",
        "1 while callers wait because all of maxPoolSize is taken",
        _value(lambda pool: int(pool.exhausted)),
    ),
    EXHAUSTIONS := Metric(
        "mongodb.client.pool.exhaustions",
        "counter",
        "{exhaustion}",
        "Exhaustions; those less than a second apart are one",
        _value(lambda pool: pool.exhaustions),
    ),
    EXHAUSTED_SECONDS := Metric(
        "mongodb.client.pool.exhausted_time",
        "counter",
        "s",
        "Time the pool was exhausted, without the gaps within an exhaustion",
        _value(lambda pool: pool.exhausted_time),
    ),
    OLDEST_WAIT := Metric(
        "mongodb.client.pool.oldest_wait",
        "gauge",
        "s",
        "Age of the oldest waiter, 0 when nobody waits",
        _value(lambda pool: pool.oldest_wait),
    ),
    LONGEST_CHECKOUT := Metric(
        "mongodb.client.pool.longest_checkout",
        "gauge",
        "s",
        "Age of the longest checkout still open, 0 when none is",
        _value(lambda pool: pool.longest_checkout),
    ),
    PEAK_WAITING := Metric(
        "mongodb.client.pool.peak_waiting",
        "gauge",
        "{request}",
        "Longest queue of this exhaustion, or of the last one",
        _value(lambda pool: pool.peak_waiting),
    ),
    HELD_IDLE := Metric(
        "mongodb.client.pool.held_idle",
        "updowncounter",
        "{connection}",
        "Connections in use on which no command ran for a second or more",
        _value(lambda pool: pool.held_idle),
    ),
    RETRIES := Metric(
        "mongodb.client.pool.retries",
        "counter",
        "{checkout}",
        "Checkouts of callers whose last one had timed out within a second before",
        _value(lambda pool: pool.retries),
    ),
    LONG_CHECKOUTS := Metric(
        "mongodb.client.pool.long_checkouts",
        "counter",
        "{checkout}",
        "Checkouts that were open for longer than long_checkout_seconds",
        _value(lambda pool: pool.long_checkouts),
    ),
    OWNER_SECONDS := Metric(
        "mongodb.client.pool.owner.held_time",
        "counter",
        "s",
        "Time connections were held on behalf of an owner, where owner_metrics is set",
        _of_owners(lambda owner: owner.seconds),
        ("mongodb.client.owner",),
    ),
    OWNER_CHECKOUTS := Metric(
        "mongodb.client.pool.owner.checkouts",
        "counter",
        "{checkout}",
        "Checkouts that ended on behalf of an owner, where owner_metrics is set",
        _of_owners(lambda owner: owner.checkouts),
        ("mongodb.client.owner",),
    ),
    AGENT_TURNS := Metric(
        "mongodb.client.agent.turns",
        "counter",
        "{turn}",
        "Turns that agents with sessions here ended",
        _of_agents(lambda agents: agents.turns),
    ),
    AGENT_OPERATIONS := Metric(
        "mongodb.client.agent.operations",
        "counter",
        "{operation}",
        "Operations for agents' sessions",
        _of_agents(lambda agents: agents.operations),
    ),
    AGENT_CONFLICTS := Metric(
        "mongodb.client.agent.conflicts",
        "counter",
        "{conflict}",
        "Messages refused, for somebody else had continued the session",
        _of_agents(lambda agents: agents.conflicts),
    ),
    CLIENT_INFO := Metric(
        "mongodb.client.info",
        "updowncounter",
        "{client}",
        "1 for each client, with its versions; the server's where it is known",
        _info,
        ("pool_telemetry.version", "pymongo.version", "mongodb.server.version"),
    ),
    TELEMETRY_ERRORS := Metric(
        "mongodb.client.pool.telemetry_errors",
        "counter",
        "{error}",
        "Failures inside the telemetry's own listeners; anything but 0 is a bug of ours",
        _telemetry_errors,
    ),
    SERVER_UP := Metric(
        "mongodb.client.server.up",
        "updowncounter",
        "{server}",
        "1 while the server answers heartbeats, 0 while it does not",
        _while_open(lambda pool: None if pool.up is None else int(pool.up)),
    ),
    SERVER_RTT := Metric(
        "mongodb.client.server.rtt",
        "gauge",
        "s",
        "Round-trip time to the server, by heartbeats",
        _while_open(lambda pool: pool.rtt),
    ),
)
