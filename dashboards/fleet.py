"""The Fleet dashboard: every process of every service, against the servers' connection limit.

`generate` writes it as fleet.json. Here are the rows, the titles, the queries and what each panel
means; how a panel looks is decided in `panels`.
"""

from typing import Final

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.board import PROCESSES, board, processes, text_box
from dashboards.panels import CRITICAL, Panel, Query, legend, lines, number, ranking, rows_of, warn
from pool_telemetry import catalog
from pool_telemetry.catalog import CLIENT_INFO
from pool_telemetry.monitoring.promql import HOST, POOL, PORT, PROCESS
from pool_telemetry.monitoring.thresholds import Thresholds
from pool_telemetry.prometheus import prometheus_label

UID: Final = "pool-telemetry-fleet"
CONNECTION_LIMIT: Final = 1500

_JOB: Final = legend("job")
_PROCESS: Final = legend(*PROCESS)
_POOL: Final = legend(*PROCESS, POOL)
_BY_POOL: Final = ", ".join((*PROCESS, POOL))
_COUNT: Final = f"count(count by ({', '.join(PROCESS)}) ({PROCESSES.of(CLIENT_INFO)}))"
_GROWN: Final = f"(1 + $more / {_COUNT})"
_OF_LIMIT: Final = warn(0.75, 1)
# The limit is per server. The server with the most connections reaches it first.
_SERVER: Final = f"{HOST}, {PORT}"
# PyMongo has two more connections to each server, to monitor it.
_MONITORING: Final = f"2 * count by ({_SERVER}) ({PROCESSES.of(catalog.SERVER_UP)})"
_EACH: Final = f"{PROCESSES.size(HOST, PORT)} + {_MONITORING}"
_FULLEST: Final = f"max({_EACH})"
_POSSIBLE: Final = f"max(sum by ({_SERVER}) ({PROCESSES.of(catalog.MAX_SIZE)}) + {_MONITORING})"


def fleet(limits: Thresholds, connection_limit: int = CONNECTION_LIMIT) -> Dashboard:
    """Return the dashboard, with these limits drawn as lines."""
    return board(
        "MongoDB connection pools: fleet",
        UID,
        "Every process of every service: how many connections they have and could open, against "
        "the connection limit of one server, set above. Also which pools are in trouble, and which "
        "processes differ from the others of their service.",
        [
            *processes(),
            text_box(
                "limit",
                "Connection limit",
                "How many connections one server accepts: the limit of your Atlas tier, or "
                "net.maxIncomingConnections of a mongod.",
                str(connection_limit),
            ),
            text_box(
                "more",
                "Additional processes",
                "How many more processes to assume in the row 'If more processes start'.",
                "10",
            ),
        ],
        [
            ("Overview", _overview()),
            ("Pools and processes to look at first", _first(limits)),
            ("By service", _services(limits)),
            ("If more processes start", _more()),
            ("Versions", _versions()),
        ],
    )


def _overview() -> list[Panel]:
    return [
        number(
            "Processes",
            "Processes that report a pool. Normal: as many as you deployed. A sudden change: a "
            "deployment, or metrics that no longer arrive.",
            Query(_COUNT),
        ),
        number(
            "Connections",
            "The connections of all pools, with those that are being opened. Normal: steady. Each "
            "client has two more connections to each server, to monitor it; this number leaves "
            "them out, the shares of the limit count them.",
            Query(PROCESSES.size()),
        ),
        number(
            "Share of the limit",
            "Open connections as a share of the connection limit above, for the server that has "
            "the most. Normal: low enough for a deployment, in which old and new processes run "
            "together. At 100 %: the server refuses connections.",
            Query(f"{_FULLEST} / $limit"),
            unit="percentunit",
            steps=_OF_LIMIT,
        ),
        number(
            "Share if all pools fill up",
            "The share of the connection limit if every pool grew to maxPoolSize, for the server "
            "that would have the most; without unlimited pools. Normal: below 100 %. Above: lower "
            "maxPoolSize or raise the limit, because a peak of all services at once would reach "
            "it.",
            Query(f"{_POSSIBLE} / $limit"),
            unit="percentunit",
            steps=_OF_LIMIT,
        ),
        number(
            "Exhausted pools",
            "Pools in which callers queue now because all connections are in use. Normal: 0.",
            Query(f"sum({PROCESSES.of(catalog.EXHAUSTED)})"),
            steps=[(1, CRITICAL)],
        ),
        number(
            "Timeouts",
            "Checkouts per second that timed out, in all services. Normal: 0.",
            Query(f"sum({PROCESSES.rate(catalog.TIMEOUTS)})"),
            unit="reqps",
            steps=[(1e-9, CRITICAL)],
        ),
    ]


def _first(limits: Thresholds) -> list[Panel]:
    wait = PROCESSES.quantile(0.99, catalog.WAIT_SECONDS, *PROCESS, POOL)
    mean = PROCESSES.mean(catalog.WAIT_SECONDS, *PROCESS)
    # An idle process has no mean (NaN). Waits below a millisecond count as equal.
    noticed = f"clamp_min(({mean}) >= 0, 0.001)"
    median = f"quantile by (job) (0.5, {noticed})"
    return [
        ranking(
            "Longest waits (p99)",
            "The ten pools whose callers wait longest. Normal: milliseconds. Open the Pool "
            "dashboard for the first pool.",
            Query(f"topk(10, {wait} >= 0)", _POOL),
            "s",
            warn(limits.wait_p99_seconds, limits.oldest_wait_seconds),
        ),
        ranking(
            "Fullest pools",
            "The ten pools with the largest share of maxPoolSize in use. Normal: below the orange "
            "line. Open the Pool dashboard for the first pool.",
            Query(f"topk(10, max by ({_BY_POOL}) ({PROCESSES.share_of_max()}))", _POOL),
            "percentunit",
            warn(limits.in_use_warning, limits.in_use_critical),
        ),
        ranking(
            "Outliers",
            "The mean wait of a process, as a multiple of the median process of its service. "
            "Normal: about 1. Far above: the load is uneven, or the process has a problem: "
            "restart it or take it out of rotation. With two processes, neither is an outlier.",
            Query(f"topk(10, {noticed} / on (job) group_left () {median})", _PROCESS),
            "none",
            warn(5),
        ),
    ]


def _services(limits: Thresholds) -> list[Panel]:
    return [
        lines(
            "Connections by server",
            "Open connections of each server, the connection limit of one server, and the most "
            "that one server would have if every pool grew to maxPoolSize. Normal: all are well "
            "below the limit.",
            Query(_EACH, f"{legend(HOST)}:{legend(PORT)}"),
            Query(_POSSIBLE, "possible"),
            Query("vector($limit)", "limit"),
            colors={"limit": "red", "possible": "orange"},
        ),
        lines(
            "Connections by service",
            "Open connections of each service, to all servers. Normal: steady. A step: a "
            "deployment or a burst.",
            Query(PROCESSES.size("job"), _JOB),
            stacked=True,
        ),
        lines(
            "Wait time by service (p99)",
            "The time to obtain a connection, by service. Normal: below a millisecond. If one "
            "service rises alone, the cause is in that service; if all rise together, it is in "
            "the server that they share.",
            Query(PROCESSES.quantile(0.99, catalog.WAIT_SECONDS, "job"), _JOB),
            unit="s",
            steps=warn(limits.wait_p99_seconds),
        ).span(8),
        lines(
            "Exhausted share of time by service",
            "The share of time in which the worst pool of each service was exhausted. Normal: 0 %.",
            Query(f"max by (job) ({PROCESSES.rate(catalog.EXHAUSTED_SECONDS)})", _JOB),
            unit="percentunit",
            steps=[(limits.exhausted_share, CRITICAL)],
        ).span(8),
        lines(
            "New connections by service",
            "Connections opened per second, by service. Normal: near 0, except during a "
            "deployment. A plateau: the service keeps reopening connections, and each costs the "
            "server a handshake.",
            Query(f"sum by (job) ({PROCESSES.rate(catalog.CREATED)})", _JOB),
            unit="cps",
        ).span(8),
    ]


def _more() -> list[Panel]:
    return [
        number(
            "Connections, at today's use",
            "Connections after the additional processes set above have started, if each has "
            "today's average. This row counts the chosen jobs only. Normal: a number that the "
            "servers can take.",
            Query(f"({PROCESSES.size()}) * {_GROWN}"),
        ).span(6),
        number(
            "Share of the limit, at today's use",
            "The same as a share of the connection limit, for the server that has the most. "
            "Normal: low enough for a deployment.",
            Query(f"{_FULLEST} * {_GROWN} / $limit"),
            unit="percentunit",
            steps=_OF_LIMIT,
        ).span(6),
        number(
            "Share of the limit, if all pools fill up",
            "The share of the connection limit if every pool of the old and the additional "
            "processes grew to maxPoolSize. Normal: below 100 %. Above: servers would refuse "
            "connections.",
            Query(f"{_POSSIBLE} * {_GROWN} / $limit"),
            unit="percentunit",
            steps=_OF_LIMIT,
        ).span(6),
        number(
            "Handshakes at the start",
            "The connections that open at once when the additional processes start: the sum of "
            "their minPoolSize. Normal: few. If there are many, start the processes one after "
            "another.",
            Query(f"$more * sum({PROCESSES.of(catalog.MIN_SIZE)}) / {_COUNT}"),
        ).span(6),
    ]


def _versions() -> list[Panel]:
    ours, drivers, servers = map(prometheus_label, CLIENT_INFO.attributes)
    by = ", ".join(("job", ours, drivers, servers))
    return [
        rows_of(
            "Versions",
            "The number of clients, by service and version. Normal: one line for each service. "
            "Several: a deployment is under way, or did not finish. The server's version is empty "
            "if no client has learned it.",
            Query(f"count by ({by}) ({PROCESSES.of(CLIENT_INFO)})"),
            {
                "job": "Service",
                ours: "pool_telemetry",
                drivers: "PyMongo",
                servers: "MongoDB",
                "Value": "Clients",
            },
        )
    ]
