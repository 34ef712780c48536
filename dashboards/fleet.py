"""The Fleet dashboard: every process of every service, against what the servers can take."""

from typing import Final

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.panels import (
    CRITICAL,
    PROCESSES,
    Panel,
    Query,
    board,
    given,
    lines,
    number,
    processes,
    ranking,
    rows_of,
    warn,
)
from pool_telemetry import catalog
from pool_telemetry.catalog import CLIENT_INFO
from pool_telemetry.monitoring.promql import HOST, POOL, PORT, PROCESS, Promql
from pool_telemetry.monitoring.thresholds import Thresholds
from pool_telemetry.prometheus import prometheus_label

UID: Final = "pool-telemetry-fleet"
CONNECTION_LIMIT: Final = 1500

_ASK: Final = Promql(PROCESSES, "$__rate_interval")
_JOB: Final = "{{job}}"
_PROCESS: Final = "{{job}} {{instance}}"
_POOL: Final = f"{_PROCESS} {{{{{POOL}}}}}"
_BY_POOL: Final = ", ".join((*PROCESS, POOL))
_COUNT: Final = f"count(count by ({', '.join(PROCESS)}) ({_ASK.of(CLIENT_INFO)}))"
_GROWN: Final = f"(1 + $more / {_COUNT})"
_OF_LIMIT: Final = warn(0.75, 1)
# A limit is one server's: of several, the one with the most connections is the first to reach it.
_SERVER: Final = (HOST, PORT)
# Beside the pool's, each client has two connections to each server, to watch it.
_WATCHING: Final = f"2 * count by ({', '.join(_SERVER)}) ({_ASK.of(catalog.SERVER_UP)})"
_EACH: Final = f"{_ASK.size(*_SERVER)} + {_WATCHING}"
_FULLEST: Final = f"max({_EACH})"
_POSSIBLE: Final = f"max(sum by ({', '.join(_SERVER)}) ({_ASK.of(catalog.MAX_SIZE)}) + {_WATCHING})"


def fleet(limits: Thresholds, connection_limit: int = CONNECTION_LIMIT) -> Dashboard:
    """Return the dashboard, with these limits drawn."""
    return board(
        "MongoDB connection pools: fleet",
        UID,
        "Every process of every service: how many connections they have and may open, against the "
        "limit of one server, set above; which pools suffer, and who differs from his peers.",
        [
            *processes(),
            given(
                "limit",
                "Connection limit",
                "How many connections one server takes: the tier's limit in Atlas, "
                "net.maxIncomingConnections of a mongod.",
                str(connection_limit),
            ),
            given("more", "More processes", "What if so many more processes start?", "10"),
        ],
        [
            ("All", _all()),
            ("Which pools", _which(limits)),
            ("By service", _services(limits)),
            ("What if more processes start", _more()),
            ("Versions", _versions()),
        ],
    )


def _all() -> list[Panel]:
    return [
        number(
            "Processes",
            "Processes that report a pool. Normal: as many as were deployed. A sudden change is "
            "a deployment, or metrics that do not arrive.",
            Query(_COUNT),
        ),
        number(
            "Connections",
            "All connections of all pools, those being opened included. Normal: steady. Each "
            "client has two more to each server, to watch it; the shares count them.",
            Query(_ASK.size()),
        ),
        number(
            "Share of the limit",
            "Open connections of the limit above, of the server that has the most. Normal: with "
            "room for a deployment, when old and new processes run together. At the limit the "
            "server refuses connections.",
            Query(f"{_FULLEST} / $limit"),
            unit="percentunit",
            steps=_OF_LIMIT,
        ),
        number(
            "Share if all fill up",
            "If every pool grows to maxPoolSize, of the limit, of the server that has the most; "
            "unlimited pools are left out. Normal: below 100 %. Above, a bad moment of all "
            "services at once would reach the limit: lower maxPoolSize, or raise the tier.",
            Query(f"{_POSSIBLE} / $limit"),
            unit="percentunit",
            steps=_OF_LIMIT,
        ),
        number(
            "Exhausted pools",
            "Pools in which callers queue now because all is taken. Normal: 0.",
            Query(f"sum({_ASK.of(catalog.EXHAUSTED)})"),
            steps=[(1, CRITICAL)],
        ),
        number(
            "Timeouts",
            "Callers per second who gave up waiting, in all services. Normal: 0.",
            Query(f"sum({_ASK.rate(catalog.TIMEOUTS)})"),
            unit="reqps",
            steps=[(1e-9, CRITICAL)],
        ),
    ]


def _which(limits: Thresholds) -> list[Panel]:
    wait = _ASK.quantile(0.99, catalog.WAIT_SECONDS, *PROCESS, POOL)
    mine = _ASK.mean(catalog.WAIT_SECONDS, *PROCESS)
    # Of the idle it is NaN; and below a millisecond all are equal.
    felt = f"clamp_min(({mine}) >= 0, 0.001)"
    median = f"quantile by (job) (0.5, {felt})"
    return [
        ranking(
            "Longest waits (p99)",
            "The ten pools whose callers wait longest. Normal: milliseconds. Open the Pool "
            "dashboard for the first.",
            Query(f"topk(10, {wait} >= 0)", _POOL),
            "s",
            warn(limits.wait_p99_seconds, limits.oldest_wait_seconds),
        ),
        ranking(
            "Fullest pools",
            "The ten pools with the largest share of maxPoolSize in use. Normal: below the orange "
            "line. Open the Pool dashboard for the first.",
            Query(f"topk(10, max by ({_BY_POOL}) ({_ASK.share_of_max()}))", _POOL),
            "percentunit",
            warn(limits.in_use_warning, limits.in_use_critical),
        ),
        ranking(
            "Outliers",
            "How many times longer a process waits on average than the median one of its service. "
            "Normal: about 1. Far above: uneven load, or a process that is ill; restart or drain "
            "that one. Of two processes neither is an outlier.",
            Query(f"topk(10, {felt} / on (job) group_left () {median})", _PROCESS),
            "none",
            warn(5),
        ),
    ]


def _services(limits: Thresholds) -> list[Panel]:
    return [
        lines(
            "Connections by server",
            "Open connections of each server, against the limit of one, and what the one with the "
            "most would have if every pool grew to maxPoolSize. Normal: all well below the limit.",
            Query(_EACH, f"{{{{{HOST}}}}}:{{{{{PORT}}}}}"),
            Query(_POSSIBLE, "possible"),
            Query("vector($limit)", "limit"),
            colors={"limit": "red", "possible": "orange"},
        ),
        lines(
            "Connections by service",
            "Open connections of each service, to all servers. Normal: steady; a step is a "
            "deployment or a burst.",
            Query(_ASK.size("job"), _JOB),
            stacked=True,
        ),
        lines(
            "Wait time by service (p99)",
            "Normal: below a millisecond. One that rises alone has a problem of its own; all "
            "together have one server in common.",
            Query(_ASK.quantile(0.99, catalog.WAIT_SECONDS, "job"), _JOB),
            unit="s",
            steps=warn(limits.wait_p99_seconds),
        ).span(8),
        lines(
            "Exhausted share of time by service",
            "Of the worst pool of each service. Normal: 0 %.",
            Query(f"max by (job) ({_ASK.rate(catalog.EXHAUSTED_SECONDS)})", _JOB),
            unit="percentunit",
            steps=[(limits.exhausted_share, CRITICAL)],
        ).span(8),
        lines(
            "New connections by service",
            "Connections opened per second. Normal: near 0, but for a deployment. A plateau is "
            "churn, and costs the servers a handshake each.",
            Query(f"sum by (job) ({_ASK.rate(catalog.CREATED)})", _JOB),
            unit="cps",
        ).span(8),
    ]


def _more() -> list[Panel]:
    return [
        number(
            "Connections, at today's use",
            "If as many processes start as are set above, each with today's average of the chosen "
            "jobs, of which alone this row speaks. Normal: a number that the servers can take.",
            Query(f"({_ASK.size()}) * {_GROWN}"),
        ).span(6),
        number(
            "Share of the limit, at today's use",
            "The same, of the limit, of the server that has the most. Normal: with room for a "
            "deployment.",
            Query(f"{_FULLEST} * {_GROWN} / $limit"),
            unit="percentunit",
            steps=_OF_LIMIT,
        ).span(6),
        number(
            "Share of the limit, if all fill up",
            "If every pool of the old and the new processes grows to maxPoolSize. Normal: below "
            "100 %. Above, servers would refuse some.",
            Query(f"{_POSSIBLE} * {_GROWN} / $limit"),
            unit="percentunit",
            steps=_OF_LIMIT,
        ).span(6),
        number(
            "Handshakes at the start",
            "minPoolSize of the new processes: connections that open at once when they start. "
            "Normal: few; else start the processes one after the other.",
            Query(f"$more * sum({_ASK.of(catalog.MIN_SIZE)}) / {_COUNT}"),
        ).span(6),
    ]


def _versions() -> list[Panel]:
    ours, drivers, servers = map(prometheus_label, CLIENT_INFO.attributes)
    by = ", ".join(("job", ours, drivers, servers))
    return [
        rows_of(
            "Versions",
            "Clients by service and version. Normal: one line a service. Several: a deployment is "
            "under way, or one did not finish. The server's is empty where nobody learned it.",
            Query(f"count by ({by}) ({_ASK.of(CLIENT_INFO)})"),
            {
                "job": "Service",
                ours: "pool_telemetry",
                drivers: "PyMongo",
                servers: "MongoDB",
                "Value": "Clients",
            },
        )
    ]
