"""Every metric, one row each: its name, instrument, unit, meaning, attributes, and how to read it.

Names, units and attributes follow OpenTelemetry's semantic conventions for database clients; what
the conventions lack is named `mongodb.client.*`. The exporters walk `CATALOG` and translate each
row, so a new metric is one new row. Code that needs one metric imports its row: no other file
spells a metric's name, and no exporter's library belongs here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import pymongo

from pool_telemetry.state.histogram import OPERATION_BOUNDS, POOL_BOUNDS
from pool_telemetry.stats import AgentStats, ClientStats, HistogramStats, OwnerStats, PoolStats
from pool_telemetry.version import __version__

Instrument = Literal["counter", "updowncounter", "gauge", "histogram"]
Value = float | HistogramStats
Points = Iterator[tuple[tuple[str, ...], Value]]
"""The values of a metric's attributes, in order, and the metric's value."""

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
"""On a command's span: how long its caller waited for the connection, in seconds.

Absent on later commands of the same checkout.
"""

CROWD_ATTRIBUTES: Final = (
    "mongodb.client.pool.size",
    "mongodb.client.pool.in_use",
    "mongodb.client.pool.waiting",
    "mongodb.client.pool.max_size",
)
"""On the span of a failed checkout, the fields of `Crowd`: the pool's connections, how many are in
use, how many callers still wait, and maxPoolSize (absent when unlimited).
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
    """One metric.

    Attributes:
        unit: In UCUM's notation, in which a word in braces is only an annotation.
        description: One sentence; Prometheus shows it as HELP.
        read: Yields one point for each series: the values of POOL_ATTRIBUTES and then of
            `attributes`, in order, and the value. It yields nothing for an unknown value.
        attributes: The metric's own attributes, besides POOL_ATTRIBUTES.
        bounds: The upper bounds of a histogram's buckets; empty for other instruments.
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
    """Yield nothing once the pool is closed, because its limits and its server no longer count."""
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
    # A malformed event may not name its server, so the errors are counted by client.
    yield (client.name, "", ""), client.telemetry_errors


CATALOG: Final = (
    CONNECTIONS := Metric(
        "db.client.connection.count",
        "updowncounter",
        "{connection}",
        "The number of ready connections, by state: used, or idle in the pool.",
        _by(lambda pool: {"idle": pool.idle, "used": pool.in_use}),
        _STATE,
    ),
    MAX_SIZE := Metric(
        "db.client.connection.max",
        "updowncounter",
        "{connection}",
        "The most connections that the pool may have (maxPoolSize); absent when unlimited.",
        _while_open(lambda pool: pool.max_size),
    ),
    WAITING := Metric(
        "db.client.connection.pending_requests",
        "updowncounter",
        "{request}",
        "The number of callers that are waiting for a connection.",
        _value(lambda pool: pool.waiting),
    ),
    TIMEOUTS := Metric(
        "db.client.connection.timeouts",
        "counter",
        "{timeout}",
        "The number of checkouts that failed because no connection was free in time.",
        _value(lambda pool: pool.checkouts["timeout"]),
    ),
    WAIT_SECONDS := Metric(
        "db.client.connection.wait_time",
        "histogram",
        "s",
        "The time that it took a caller to obtain a connection.",
        _value(lambda pool: pool.wait_time),
        bounds=POOL_BOUNDS,
    ),
    USE_SECONDS := Metric(
        "db.client.connection.use_time",
        "histogram",
        "s",
        "The time that a caller held a connection before it was checked in.",
        _value(lambda pool: pool.use_time),
        bounds=POOL_BOUNDS,
    ),
    CREATE_SECONDS := Metric(
        "db.client.connection.create_time",
        "histogram",
        "s",
        "The time that it took to open a connection, with TCP, TLS and authentication.",
        _value(lambda pool: pool.create_time),
        bounds=POOL_BOUNDS,
    ),
    OPERATION_SECONDS := Metric(
        "db.client.operation.duration",
        "histogram",
        "s",
        "The time from the first byte of a command to the server's reply.",
        _operations,
        _OPERATION,
        OPERATION_BOUNDS,
    ),
    MIN_SIZE := Metric(
        "mongodb.client.pool.min",
        "updowncounter",
        "{connection}",
        "The fewest connections that the pool keeps open (minPoolSize).",
        _while_open(lambda pool: pool.min_size),
    ),
    OPENING := Metric(
        "mongodb.client.pool.opening",
        "updowncounter",
        "{connection}",
        "The number of connections that are being established.",
        _value(lambda pool: pool.opening),
    ),
    CHECKOUTS := Metric(
        "mongodb.client.pool.checkouts",
        "counter",
        "{checkout}",
        "The number of checkouts that ended, by outcome.",
        _by(lambda pool: pool.checkouts),
        ("outcome",),
    ),
    CREATED := Metric(
        "mongodb.client.pool.connections.created",
        "counter",
        "{connection}",
        "The number of connections that the pool created.",
        _value(lambda pool: pool.created),
    ),
    CLOSED := Metric(
        "mongodb.client.pool.connections.closed",
        "counter",
        "{connection}",
        "The number of connections that the pool closed, by reason.",
        _by(lambda pool: pool.closed),
        ("reason",),
    ),
    CLEARED := Metric(
        "mongodb.client.pool.cleared",
        "counter",
        "{clear}",
        "The number of times that PyMongo cleared the pool, after an error.",
        _value(lambda pool: pool.cleared),
    ),
    READY := Metric(
        "mongodb.client.pool.ready",
        "updowncounter",
        "{pool}",
        "1 while the pool is ready for checkouts, 0 while PyMongo has paused it.",
        _while_open(lambda pool: int(pool.phase == "ready")),
    ),
    EXHAUSTED := Metric(
        "mongodb.client.pool.exhausted",
        "updowncounter",
        "{pool}",
        "1 while callers wait because all maxPoolSize connections are in use, else 0.",
        _value(lambda pool: int(pool.exhausted)),
    ),
    EXHAUSTIONS := Metric(
        "mongodb.client.pool.exhaustions",
        "counter",
        "{exhaustion}",
        "The number of times that the pool became exhausted.",
        _value(lambda pool: pool.exhaustions),
    ),
    EXHAUSTED_SECONDS := Metric(
        "mongodb.client.pool.exhausted_time",
        "counter",
        "s",
        "The total time that the pool was exhausted.",
        _value(lambda pool: pool.exhausted_time),
    ),
    OLDEST_WAIT := Metric(
        "mongodb.client.pool.oldest_wait",
        "gauge",
        "s",
        "The time that the longest waiting caller has waited, 0 when no caller waits.",
        _value(lambda pool: pool.oldest_wait),
    ),
    LONGEST_CHECKOUT := Metric(
        "mongodb.client.pool.longest_checkout",
        "gauge",
        "s",
        "The age of the oldest checkout that is still open, 0 when none is.",
        _value(lambda pool: pool.longest_checkout),
    ),
    PEAK_WAITING := Metric(
        "mongodb.client.pool.peak_waiting",
        "gauge",
        "{request}",
        "The most callers that waited at once in the current or the last exhaustion.",
        _value(lambda pool: pool.peak_waiting),
    ),
    HELD_IDLE := Metric(
        "mongodb.client.pool.held_idle",
        "updowncounter",
        "{connection}",
        "The number of connections in use that ran no command for a second or more.",
        _value(lambda pool: pool.held_idle),
    ),
    RETRIES := Metric(
        "mongodb.client.pool.retries",
        "counter",
        "{checkout}",
        "The number of checkouts that began within a second of the same caller's timeout.",
        _value(lambda pool: pool.retries),
    ),
    LONG_CHECKOUTS := Metric(
        "mongodb.client.pool.long_checkouts",
        "counter",
        "{checkout}",
        "The number of checkouts that stayed open longer than long_checkout_seconds.",
        _value(lambda pool: pool.long_checkouts),
    ),
    OWNER_SECONDS := Metric(
        "mongodb.client.pool.owner.held_time",
        "counter",
        "s",
        "The total time that an owner held connections; only with owner_metrics.",
        _of_owners(lambda owner: owner.seconds),
        ("mongodb.client.owner",),
    ),
    OWNER_CHECKOUTS := Metric(
        "mongodb.client.pool.owner.checkouts",
        "counter",
        "{checkout}",
        "The number of checkouts of an owner that ended; only with owner_metrics.",
        _of_owners(lambda owner: owner.checkouts),
        ("mongodb.client.owner",),
    ),
    AGENT_TURNS := Metric(
        "mongodb.client.agent.turns",
        "counter",
        "{turn}",
        "The number of turns that ended, of agents whose sessions this client stores.",
        _of_agents(lambda agents: agents.turns),
    ),
    AGENT_OPERATIONS := Metric(
        "mongodb.client.agent.operations",
        "counter",
        "{operation}",
        "The number of operations that the client ran for agents' sessions.",
        _of_agents(lambda agents: agents.operations),
    ),
    AGENT_CONFLICTS := Metric(
        "mongodb.client.agent.conflicts",
        "counter",
        "{conflict}",
        "The number of messages refused because another writer continued the session.",
        _of_agents(lambda agents: agents.conflicts),
    ),
    CLIENT_INFO := Metric(
        "mongodb.client.info",
        "updowncounter",
        "{client}",
        "1 for each client, with its versions; the server's is empty until it is known.",
        _info,
        ("pool_telemetry.version", "pymongo.version", "mongodb.server.version"),
    ),
    TELEMETRY_ERRORS := Metric(
        "mongodb.client.pool.telemetry_errors",
        "counter",
        "{error}",
        "The number of events that pool_telemetry failed to process; normally 0.",
        _telemetry_errors,
    ),
    SERVER_UP := Metric(
        "mongodb.client.server.up",
        "updowncounter",
        "{server}",
        "1 while the server answers heartbeats, 0 while it does not.",
        _while_open(lambda pool: None if pool.up is None else int(pool.up)),
    ),
    SERVER_RTT := Metric(
        "mongodb.client.server.rtt",
        "gauge",
        "s",
        "The round-trip time to the server, measured by heartbeats.",
        _while_open(lambda pool: pool.rtt),
    ),
)
