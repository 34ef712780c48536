"""The Pool dashboard: one service, from "is it healthy" down to the command that is slow.

`generate` writes it as pool.json. Here are the rows, the titles, the queries and what each panel
means; how a panel looks is decided in `panels`. Alerts and runbooks name panels by their titles.
"""

import re
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.panels import (
    CRITICAL,
    OK,
    PROCESSES,
    RUNBOOKS_PANEL,
    WARNING,
    Panel,
    Query,
    board,
    choice,
    constant,
    heat_map,
    lines,
    mapping,
    number,
    processes,
    states,
    warn,
    words,
)
from pool_telemetry import catalog
from pool_telemetry.catalog import Metric
from pool_telemetry.monitoring.promql import (
    COMMAND,
    ERROR,
    HOST,
    OUTCOME,
    OWNER,
    POOL,
    PORT,
    REASON,
    STATE,
    Promql,
)
from pool_telemetry.monitoring.thresholds import Thresholds

UID: Final = "pool-telemetry-pool"
RUNBOOKS: Final = Path(__file__).parent / "runbooks.md"

_POOL: Final = f"{{{{{POOL}}}}}"  # a legend: {{label}}
_COMMAND: Final = f"{{{{{COMMAND}}}}}"
_OWNER: Final = f"{{{{{OWNER}}}}}"
_SERVER: Final = f"{{{{{HOST}}}}}:{{{{{PORT}}}}}"
_CHOSEN: Final = Promql(f'{PROCESSES}, {POOL}=~"$pool"', "$__rate_interval")
# The series of a client as a whole have no pool's name.
_CHOSEN_CLIENTS: Final = Promql(PROCESSES, "$__rate_interval")


def pool(limits: Thresholds) -> Dashboard:
    """Return the dashboard, with these limits drawn as lines."""
    return board(
        "MongoDB connection pool",
        UID,
        "One service: how many callers wait for a connection, how long connections are held, and "
        "why a pool is exhausted. Read it from the top: the rows go from the symptom to the cause.",
        [
            *processes(),
            choice("pool", "Pool", f"label_values({Promql(PROCESSES).of(catalog.READY)}, {POOL})"),
            constant("held", f"{limits.longest_checkout_seconds:g}"),
        ],
        [
            ("Now", _now(limits)),
            ("Connections and queue", _connections(limits)),
            ("Operations", _operations()),
            ("Wait, use and create time", _times(limits)),
            ("Checkouts, opened and closed connections", _churn()),
            ("Servers", _servers()),
            ("Agents", _agents()),
            ("Runbooks", _runbooks()),
        ],
        [
            ("Exhausted", CRITICAL, f"max by ({POOL}) ({_recent(catalog.EXHAUSTED_SECONDS)}) > 0"),
            ("Pool cleared", WARNING, f"max by ({POOL}) ({_recent(catalog.CLEARED)}) > 0"),
        ],
    )


def _runbooks() -> list[Panel]:
    """Return a panel for each runbook, so that a link can lead to it.

    Grafana removes the anchors of headings, so one panel with all runbooks would not do.
    """
    texts = re.split(r"^## (\w+)\n", RUNBOOKS.read_text(), flags=re.MULTILINE)
    idents = {name: RUNBOOKS_PANEL + 1 + n for n, name in enumerate(texts[1::2])}

    def linked(text: str) -> str:
        for name, ident in idents.items():
            text = text.replace(f"(#{name.lower()})", f"(?viewPanel={ident})")
        return text.strip()

    start = texts[0].removeprefix("# Runbooks\n")
    panels = [words("Runbooks", "How to use the runbooks.", linked(start), RUNBOOKS_PANEL).span(24)]
    return panels + [
        words(
            name,
            "What the alert means, what to look at first, and what to do.",
            linked(text),
            idents[name],
        ).height(9)
        for name, text in zip(texts[1::2], texts[2::2], strict=True)
    ]


def _recent(metric: Metric) -> str:
    # Grafana queries annotations once a minute, whatever the dashboard's interval is.
    return Promql(_CHOSEN.where, "2m").rate(metric)


def _now(limits: Thresholds) -> list[Panel]:
    ready, waiting, exhausted = (
        _CHOSEN.of(metric) for metric in (catalog.READY, catalog.WAITING, catalog.EXHAUSTED)
    )
    client = f'label_replace({ready}, "client", "$1", "{POOL}", "(.*)@.*")'
    health = (
        f"4 * (min(max by (job, instance, client) ({client})) == bool 0) "
        f"+ 2 * max({exhausted}) + (max({waiting}) > bool 0)"
    )
    no_server = ("No server", CRITICAL)
    return [
        number(
            "Health",
            "The state of the client that is worst off. Normal: Healthy, or Callers wait for "
            "moments.\n"
            "- Exhausted: find out what holds the connections (Why callers wait) before you raise "
            "maxPoolSize.\n"
            "- No server: go to the row Servers.",
            Query(health),
            mappings=mapping(
                {
                    0: ("Healthy", OK),
                    1: ("Callers wait", WARNING),
                    2: ("Exhausted", CRITICAL),
                    3: ("Exhausted", CRITICAL),
                    **dict.fromkeys(range(4, 8), no_server),
                }
            ),
        ),
        number(
            "Why callers wait",
            "The cause, for the pool that is worst off. Normal: Not exhausted.\n"
            "- Held for longer: the mean use time is more than twice that of the last day, or no "
            "connection was returned. Go to the row Operations.\n"
            "- Not returned: a checkout is older than its alert allows. See Oldest wait and "
            "longest checkout.\n"
            "- Slow to open: callers wait although the pool may open more connections. See Create "
            "time.\n"
            "- More callers: none of these. The load is too high for maxPoolSize.",
            Query(_why()),
            mappings=mapping(
                {
                    0: ("Not exhausted", OK),
                    1: ("More callers", WARNING),
                    2: ("Held for longer", WARNING),
                    **dict.fromkeys((3, 4), ("Not returned", CRITICAL)),
                    5: ("Slow to open", WARNING),
                }
            ),
        ).span(5),
        number(
            "Fullest pool",
            "The share of maxPoolSize in use, in the fullest pool. Normal: below the orange line, "
            "so that a burst finds free connections. Above it: find the slow operation; if there "
            "is none, raise maxPoolSize. No data: maxPoolSize is unlimited.",
            Query(f"max({_CHOSEN.share_of_max()})"),
            unit="percentunit",
            steps=warn(limits.in_use_warning, limits.in_use_critical),
        ).span(3),
        number(
            "Callers waiting",
            "The number of callers in the queue, summed over all pools. Normal: 0, or a few for "
            "moments. Above 0 for longer: there are too few connections for the callers, or each "
            "is held for too long.",
            Query(f"sum({waiting})"),
            steps=warn(1),
        ).span(3),
        number(
            "Oldest wait",
            "How long the first caller in the queue has waited. Normal: milliseconds. Near "
            "waitQueueTimeoutMS: callers are about to get errors.",
            Query(f"max({_CHOSEN.of(catalog.OLDEST_WAIT)})"),
            unit="s",
            steps=warn(limits.wait_p99_seconds, limits.oldest_wait_seconds),
        ).span(3),
        number(
            "Timeouts",
            "Checkouts per second that timed out after waitQueueTimeoutMS. Normal: 0. Above 0: "
            "users see errors.",
            Query(f"sum({_CHOSEN.rate(catalog.TIMEOUTS)})"),
            unit="reqps",
            steps=[(1e-9, CRITICAL)],
        ).span(3),
        number(
            "Exhausted share of time",
            "The share of time in which all connections were in use while callers queued, in the "
            "worst pool. Normal: 0 %, or a few percent in bursts. Above the red line: bursts do "
            "not explain it.",
            Query(f"max({_CHOSEN.rate(catalog.EXHAUSTED_SECONDS)})"),
            unit="percentunit",
            steps=[(1e-9, WARNING), (limits.exhausted_share, CRITICAL)],
        ).span(3),
    ]


def _why() -> str:
    """Return the number of the cause, as mapped in the panel, of the pool that is worst off."""
    now = _CHOSEN.rate(catalog.EXHAUSTED_SECONDS)
    total, count = (_CHOSEN.rate(catalog.USE_SECONDS, part=part) for part in ("_sum", "_count"))
    # The baseline covers all instances, because a deployment renames them. It ends an hour ago, so
    # that it leaves this trouble out; a service younger than an hour is compared with all it has.
    days = (_baseline(offset="1h"), _baseline())
    longer = f"({total} / {count} > bool on (job, {POOL}) group_left () 2 * ({' or '.join(days)}))"
    none_returned = f"({count} == bool 0)"  # the mean use time is NaN then
    too_old = f"({_CHOSEN.of(catalog.LONGEST_CHECKOUT)} > bool $held)"
    opening = f"({now} == bool 0) * (min_over_time({_CHOSEN.of(catalog.WAITING)}[1m]) > bool 0)"
    exhausted = f"({now} > bool 0) * (1 + {longer} + {none_returned} + 2 * {too_old})"
    return f"max({exhausted} + 5 * {opening})"


def _baseline(offset: str = "") -> str:
    """Return the mean use time of each service's pools, over a day."""
    day = {"window": "1d", "offset": offset}
    total, count = (
        f"sum by (job, {POOL}) ({_CHOSEN.increase(catalog.USE_SECONDS, part=part, **day)})"
        for part in ("_sum", "_count")
    )
    return f"{total} / {count}"


def _connections(limits: Thresholds) -> list[Panel]:
    by_state = f"sum by ({STATE}) ({_CHOSEN.of(catalog.CONNECTIONS)})"
    return [
        lines(
            "Connections",
            "Connections by state, summed over the chosen pools, and the sum of their "
            "maxPoolSize. Normal: used is well below max, and some are idle. Used at max: the "
            "pool limits the service. Opening for long: the server accepts connections slowly.",
            Query(by_state, f"{{{{{STATE}}}}}"),
            Query(f"sum({_CHOSEN.of(catalog.OPENING)})", "opening"),
            Query(f"sum({_CHOSEN.of(catalog.MAX_SIZE)})", "max"),
            stacked=True,
            colors={"used": "blue", "idle": "green", "opening": "yellow", "max": "red"},
        ).span(8),
        lines(
            "Queue",
            "The number of callers that wait for a connection, and the longest queue of the last "
            "exhaustion. Normal: 0, or spikes of one sample. A plateau: the pool is too small for "
            "the load, or connections are held for too long.",
            Query(f"sum by ({POOL}) ({_CHOSEN.of(catalog.WAITING)})", _POOL),
            Query(f"max by ({POOL}) ({_CHOSEN.of(catalog.PEAK_WAITING)})", f"longest {_POOL}"),
        ).span(8),
        lines(
            "Waiting and working",
            "How an average checkout spends its time: waiting in the queue, then working. Normal: "
            "nearly all is working. Mostly waiting: the pool is what makes requests slow.",
            Query(_CHOSEN.mean(catalog.WAIT_SECONDS), "waiting"),
            Query(_CHOSEN.mean(catalog.USE_SECONDS), "working"),
            unit="s",
            stacked=True,
            colors={"waiting": "red", "working": "blue"},
        ).span(8),
        lines(
            "Share of max in use",
            "The share of maxPoolSize in use, in the fullest process of each pool. Normal: below "
            "the orange line. The alerts use the average over 5 minutes.",
            Query(f"max by ({POOL}) ({_CHOSEN.share_of_max()})", _POOL),
            unit="percentunit",
            steps=warn(limits.in_use_warning, limits.in_use_critical),
        ),
        lines(
            "Oldest wait and longest checkout",
            "The age of the oldest wait and of the oldest open checkout. Normal: both are short. "
            "A checkout that grows steadily is one slow or hanging operation, or an exhaust "
            "cursor; behind a load balancer it can be any open cursor or transaction. Find it in "
            "the traces.",
            Query(f"max by ({POOL}) ({_CHOSEN.of(catalog.OLDEST_WAIT)})", f"wait {_POOL}"),
            Query(f"max by ({POOL}) ({_CHOSEN.of(catalog.LONGEST_CHECKOUT)})", f"checkout {_POOL}"),
            unit="s",
            steps=warn(limits.oldest_wait_seconds, limits.longest_checkout_seconds),
        ),
        lines(
            "Idle and long checkouts",
            "Connections in use that ran no command for a second, because a cursor was not closed "
            "or a transaction waits for something else; and checkouts that became older than "
            "`long_checkout_seconds`, whose stacks are in the log. Normal: none of either.",
            Query(f"sum by ({POOL}) ({_CHOSEN.of(catalog.HELD_IDLE)})", f"idle {_POOL}"),
            Query(f"sum by ({POOL}) ({_CHOSEN.increase(catalog.LONG_CHECKOUTS)})", f"long {_POOL}"),
        ).span(8),
        lines(
            "Connections by owner",
            "Connections in use on average, by owner; only of clients with `owner_metrics`. "
            "Normal: as usual at this hour. One owner that grows takes connections from the "
            "others.",
            Query(f"sum by ({OWNER}) ({_CHOSEN.rate(catalog.OWNER_SECONDS)})", _OWNER),
        ).span(8),
        lines(
            "Checkouts by owner",
            "Checkouts per second, by owner; only of clients with `owner_metrics`. Normal: as "
            "usual at this hour. If an owner has more connections in use but not more checkouts, "
            "its operations take longer.",
            Query(f"sum by ({OWNER}) ({_CHOSEN.rate(catalog.OWNER_CHECKOUTS)})", _OWNER),
            unit="ops",
        ).span(8),
    ]


def _times(limits: Thresholds) -> list[Panel]:
    kinds = (
        (
            "Wait time",
            catalog.WAIT_SECONDS,
            "The time to obtain a connection, of the checkouts that succeeded. Each diamond is "
            "one request: click it for its trace. Normal: below a millisecond.\n"
            "- High while the use time is short: too many callers. Raise maxPoolSize.\n"
            "- High while the use time is long: operations are slow.",
            warn(limits.wait_p99_seconds),
        ),
        (
            "Use time",
            catalog.USE_SECONDS,
            "The time that callers held a connection. Normal: the time of your operations. A "
            "rise: go to Operations, because a command is slow in the server or reads too much.",
            (),
        ),
        (
            "Create time",
            catalog.CREATE_SECONDS,
            "The time to open a connection, with TCP, TLS and authentication. While none is "
            "opened, the panel shows all connections since the start. Normal: milliseconds. Long: "
            "the network, DNS, or a server that is slow to accept connections.",
            (),
        ),
    )
    panels = []
    for title, metric, description, steps in kinds:
        quantiles = [
            Query(_quantile(q, metric), name, exemplar=name == "p99")
            for name, q in {"p50": 0.5, "p95": 0.95, "p99": 0.99}.items()
        ]
        colors = {"p50": "green", "p95": "yellow", "p99": "red"}
        buckets = f"sum by (le) ({_CHOSEN.increase(metric, part='_bucket')})"
        panels += [
            lines(title, description, *quantiles, unit="s", steps=steps, colors=colors),
            heat_map(
                f"{title}, distribution",
                f"How often each {title.lower()} occurred; a darker cell counts more. "
                "Normal: a narrow band near the bottom.\n"
                "- Two bands: two kinds of callers.\n"
                "- A band that moves up: all callers are affected.",
                Query(buckets, "{{le}}"),
            ),
        ]
    return panels


def _quantile(q: float, metric: Metric) -> str:
    now = _CHOSEN.quantile(q, metric)
    if metric is not catalog.CREATE_SECONDS:
        return now
    since_start = f"histogram_quantile({q}, sum by (le) ({_CHOSEN.of(metric, part='_bucket')}))"
    return f"{now} >= 0 or {since_start}"  # without new connections the quantile is NaN


def _churn() -> list[Panel]:
    closed = f"sum by ({REASON}) ({_CHOSEN.rate(catalog.CLOSED)})"
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
            Query(f"sum by ({OUTCOME}) ({_CHOSEN.rate(catalog.CHECKOUTS)})", f"{{{{{OUTCOME}}}}}"),
            Query(f"sum({_CHOSEN.rate(catalog.RETRIES)})", "retries"),
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
            Query(f"sum({_CHOSEN.rate(catalog.CREATED)})", "created"),
            Query(closed, f"closed {{{{{REASON}}}}}"),
            Query(f"sum({_CHOSEN.rate(catalog.CLEARED)})", "cleared"),
            unit="cps",
            colors={"created": "blue", "cleared": "red"},
        ),
    ]


def _operations() -> list[Panel]:
    errors = _CHOSEN.rate(catalog.OPERATION_SECONDS, f'{ERROR}!=""', part="_count")
    every = _CHOSEN.rate(catalog.OPERATION_SECONDS, part="_count")
    slowest = _CHOSEN.quantile(0.99, catalog.OPERATION_SECONDS, COMMAND)
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


def _agents() -> list[Panel]:
    turns, operations, conflicts = (
        f"sum({_CHOSEN_CLIENTS.rate(metric)})"
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


def _servers() -> list[Panel]:
    return [
        states(
            "Servers",
            "Whether each server answers heartbeats, and whether its pool is ready, as seen by "
            "the process that is worst off. Normal: all green.\n"
            "- One server down while others are up: a failover.\n"
            "- A paused pool while its server is up: an arbiter, or a member that serves no data "
            "now.",
            Query(
                f"min by ({HOST}, {PORT}) ({_CHOSEN.of(catalog.SERVER_UP)})",
                f"server {_SERVER}",
            ),
            Query(f"2 + min by ({POOL}) ({_CHOSEN.of(catalog.READY)})", f"pool {_POOL}"),
            mappings=mapping(
                {
                    0: ("down", CRITICAL),
                    1: ("up", OK),
                    2: ("paused", WARNING),
                    3: ("ready", OK),
                }
            ),
        ),
        lines(
            "Round-trip time",
            "The round-trip time to each server, measured by heartbeats. Normal: steady, and "
            "below a millisecond within one zone. A rise: a slow network or a busy server, which "
            "delays every command.",
            Query(f"max by ({HOST}, {PORT}) ({_CHOSEN.of(catalog.SERVER_RTT)})", _SERVER),
            unit="s",
        ).span(8),
        number(
            "Telemetry errors",
            "Events that pool_telemetry failed to process, in the time range shown. Normal: 0. "
            "Above 0: do not trust the numbers, and report the traceback in the log: it is a bug "
            "in pool_telemetry.",
            Query(f"sum({_CHOSEN_CLIENTS.increase(catalog.TELEMETRY_ERRORS, window='$__range')})"),
            steps=[(1, CRITICAL)],
        ).height(8),
    ]
