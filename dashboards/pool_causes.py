"""The rows of the Pool dashboard that show causes: operations, checkouts, servers and agents.

`pool` calls one function for each row. Each panel has its title, meaning and queries here; how it
looks is decided in `panels`. Alerts and runbooks name panels by their titles.
"""

from typing import Final

from dashboards.board import POOLS, PROCESSES
from dashboards.panels import (
    CRITICAL,
    OK,
    WARNING,
    Panel,
    Query,
    legend,
    lines,
    mapping,
    number,
    states,
)
from pool_telemetry import catalog
from pool_telemetry.catalog import WORKER
from pool_telemetry.monitoring.promql import (
    COMMAND,
    ERROR,
    HOST,
    OUTCOME,
    POOL,
    PORT,
    REASON,
    SERVER_TYPE,
)
from pool_telemetry.monitoring.thresholds import Thresholds

_POOL: Final = legend(POOL, WORKER)
_COMMAND: Final = legend(COMMAND)
_SERVER: Final = f"{legend(HOST)}:{legend(PORT)}"
_TYPE: Final = legend(SERVER_TYPE)


def churn() -> list[Panel]:
    """Return the row of checkouts by outcome, and of connections opened and closed."""
    closed = f"sum by ({REASON}) ({POOLS.rate(catalog.CLOSED)})"
    return [
        lines(
            "Checkouts by outcome",
            "Checkouts per second, by how they ended, and retries. Normal: ok only.\n"
            "- timeout: the wait exceeded waitQueueTimeoutMS.\n"
            "- connection_error: no connection could be opened.\n"
            "- pool_closed: the pool was paused or closed.\n"
            "- cancelled: the caller stopped waiting.\n"
            "- retries: the caller had just timed out. PyMongo itself makes up to half of the "
            "retries.",
            Query(f"sum by ({OUTCOME}) ({POOLS.rate(catalog.CHECKOUTS)})", legend(OUTCOME)),
            Query(f"sum({POOLS.rate(catalog.RETRIES)})", "retries"),
            unit="reqps",
            colors={"ok": "green", "timeout": "red"},
        ),
        lines(
            "Connections opened and closed",
            "Connections that the pool opens and closes per second, with the reason, and how "
            "often it was cleared. Normal: near 0.\n"
            "- closed idle: maxIdleTimeMS is shorter than the pauses between requests.\n"
            "- closed stale, closed error: the server or the network cut the connections.\n"
            "- cleared: PyMongo discarded all connections after an error.",
            Query(f"sum({POOLS.rate(catalog.CREATED)})", "created"),
            Query(closed, f"closed {legend(REASON)}"),
            Query(f"sum({POOLS.rate(catalog.CLEARED)})", "cleared"),
            unit="cps",
            colors={"created": "blue", "cleared": "red"},
        ),
    ]


def operations() -> list[Panel]:
    """Return the row of commands: how many, how slow, how many failed."""
    errors = POOLS.rate(catalog.OPERATION_SECONDS, f'{ERROR}!=""', part="_count")
    every = POOLS.rate(catalog.OPERATION_SECONDS, part="_count")
    slowest = POOLS.quantile(0.99, catalog.OPERATION_SECONDS, COMMAND)
    return [
        lines(
            "Commands",
            "Commands per second. Normal: as usual at this hour. A rise: more load. A fall while "
            "callers wait: a slow server.",
            Query(f"sum by ({COMMAND}) ({every})", _COMMAND),
            unit="ops",
        ).span(8),
        lines(
            "Command time, p99",
            "The time from a command's first byte to its reply, without the wait for a "
            "connection. Normal: steady. If the use time rose, look at the command that rose with "
            "it: its query plan, its index, the size of its result.",
            # The quantile of a command that is not used now is NaN, and NaN >= 0 drops it.
            Query(f"{slowest} >= 0", _COMMAND, exemplar=True),
            unit="s",
        ).span(8),
        lines(
            "Command errors",
            "Commands per second that failed. Normal: 0. The error's code is in the metric's "
            "label db_response_status_code, and in the traces.",
            Query(f"sum by ({COMMAND}) ({errors}) or 0 * sum by ({COMMAND}) ({every})", _COMMAND),
            unit="ops",
        ).span(8),
    ]


def agents() -> list[Panel]:
    """Return the row of Strands agents whose sessions are stored."""
    turns, operations, conflicts = (
        f"sum({PROCESSES.rate(metric)})"
        for metric in (catalog.AGENT_TURNS, catalog.AGENT_OPERATIONS, catalog.AGENT_CONFLICTS)
    )
    return [
        lines(
            "Agent turns",
            "Turns per second of Strands agents whose sessions this service stores, and "
            "conflicts. Normal: turns as usual at this hour, and no conflicts. A conflict: a "
            "user's message was refused because two requests or processes had the same session "
            "open.",
            Query(turns, "turns"),
            Query(conflicts, "conflicts"),
            unit="ops",
            colors={"turns": "blue", "conflicts": "red"},
        ),
        lines(
            "Operations per turn",
            "Database operations per agent turn, with those that open the session. Normal: below "
            "10 and steady; 0 while there are no turns. A rise: agents write more messages in "
            "each turn.",
            Query(f"{operations} / ({turns} > 0) or 0 * {turns}", "operations per turn"),
        ),
    ]


def servers(limits: Thresholds) -> list[Panel]:
    """Return the row of servers, of callers that none serves, and of the telemetry's own errors."""
    waiting, failed, standstill = (
        PROCESSES.of(catalog.SELECTION_WAITING),
        PROCESSES.increase(catalog.SELECTION_FAILURES),
        PROCESSES.increase(catalog.STOOD_STILL),
    )
    return [
        states(
            "Servers",
            "Whether each server answers heartbeats, and whether its pool is ready, as seen by "
            "the process that is worst off; and the type of each server that answers. Normal: all "
            "green.\n"
            "- One server down while others are up: a failover.\n"
            "- No RSPrimary in a replica set: the set has no primary, and writes fail.\n"
            "- A paused pool while its server is up: an arbiter, or a member that serves no data "
            "now.",
            Query(
                f"min by ({HOST}, {PORT}) ({POOLS.of(catalog.SERVER_UP)})",
                f"server {_SERVER}",
            ),
            Query(f"2 + min by ({POOL}) ({POOLS.of(catalog.READY)})", f"pool {_POOL}"),
            Query(
                f"4 * max by ({SERVER_TYPE}, {HOST}, {PORT}) ({POOLS.of(catalog.SERVER_TYPE)})",
                f"{_TYPE} {_SERVER}",
            ),
            mappings=mapping(
                {
                    0: ("down", CRITICAL),
                    1: ("up", OK),
                    2: ("paused", WARNING),
                    3: ("ready", OK),
                    4: ("this type", OK),
                }
            ),
        ),
        lines(
            "Round-trip time",
            "The round-trip time to each server, measured by heartbeats. Normal: steady, and "
            "below a millisecond within one zone. A rise: a slow network or a busy server, which "
            "delays every command.",
            Query(f"max by ({HOST}, {PORT}) ({POOLS.of(catalog.SERVER_RTT)})", _SERVER),
            unit="s",
        ).span(8),
        number(
            "Telemetry errors",
            "Events that pool_telemetry failed to process, in the time range shown. Normal: 0. "
            "Above 0: do not trust the numbers, and report the traceback in the log: it is a bug "
            "in pool_telemetry.",
            Query(f"sum({PROCESSES.increase(catalog.TELEMETRY_ERRORS, window='$__range')})"),
            steps=[(1, CRITICAL)],
        ).height(8),
        lines(
            "Server selection",
            "Callers that wait until a server fits their operation, and callers that failed there. "
            "Normal: 0, or some that wait for moments during a failover. Above 0 while servers are "
            "up: no server fits, because the set has no primary or no server matches the read "
            "preference.",
            Query(f"sum({waiting})", "waiting"),
            Query(f"sum({failed})", "failed"),
            colors={"waiting": "orange", "failed": "red"},
        ).span(8),
        lines(
            "Nobody served",
            "For how long callers have waited or failed while none got a connection, by pool. "
            "Beside it: the age of the oldest connection that is being opened, and the longest "
            "wait in server selection. Normal: 0, or less than a second. An opening that grows as "
            "fast as the unserved time: handshakes stall.",
            Query(f"max by ({POOL}) ({POOLS.of(catalog.UNSERVED)})", f"unserved {_POOL}"),
            Query(f"max by ({POOL}) ({POOLS.of(catalog.OLDEST_OPENING)})", f"opening {_POOL}"),
            Query(f"max({PROCESSES.of(catalog.SELECTION_OLDEST_WAIT)})", "server selection"),
            unit="s",
            steps=[(limits.unserved_seconds, CRITICAL)],
        ).span(8),
        lines(
            "Silence and standstill",
            "For how long PyMongo's monitor of a server has published nothing, if that is too "
            "long, and the time for which a process was stopped or frozen. Normal: 0. Silence: "
            "the event loop is blocked, or threads are deadlocked. Standstill: the process, its "
            "container or its machine was paused.",
            Query(f"max by ({POOL}) ({POOLS.of(catalog.SERVER_SILENCE)})", f"silent {_POOL}"),
            Query(
                f"max by (job, instance, worker) ({standstill})",
                f"stood still {legend('instance', WORKER)}",
            ),
            unit="s",
        ).span(8),
    ]
