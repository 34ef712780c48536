"""The Pool dashboard: one service, from "is it healthy" down to the command that is slow."""

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
_ASK: Final = Promql(f'{PROCESSES}, {POOL}=~"$pool"', "$__rate_interval")
_ALL: Final = Promql(PROCESSES, "$__rate_interval")  # where a series is the client's, not a pool's


def pool(limits: Thresholds) -> Dashboard:
    """Return the dashboard, with these limits drawn."""
    return board(
        "MongoDB connection pool",
        UID,
        "One service: who waits for a connection, who holds one, for how long, and why it ran dry. "
        "Read it from the top: the rows go from the symptom to the cause.",
        [
            *processes(),
            choice("pool", "Pool", f"label_values({Promql(PROCESSES).of(catalog.READY)}, {POOL})"),
            constant("held", f"{limits.longest_checkout_seconds:g}"),
        ],
        [
            ("Now", _now(limits)),
            ("Connections and queue", _connections(limits)),
            ("Operations", _operations()),
            ("How long: waiting, working, connecting", _times(limits)),
            ("Checkouts and churn", _churn()),
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
    """Return a panel for each, so that a link can lead to one; Grafana drops headings' anchors."""
    texts = re.split(r"^## (\w+)\n", RUNBOOKS.read_text(), flags=re.MULTILINE)
    idents = {name: RUNBOOKS_PANEL + 1 + n for n, name in enumerate(texts[1::2])}

    def linked(text: str) -> str:
        places = {f"(#{name.lower()})": f"(?viewPanel={ident})" for name, ident in idents.items()}
        for ours, theirs in places.items():
            text = text.replace(ours, theirs)
        return text.strip()

    start = texts[0].removeprefix("# Runbooks\n")
    panels = [words("Runbooks", "How to read them.", linked(start), RUNBOOKS_PANEL).span(24)]
    return panels + [
        words(name, "What the alert means, and what to do.", linked(text), idents[name]).height(9)
        for name, text in zip(texts[1::2], texts[2::2], strict=True)
    ]


def _recent(metric: Metric) -> str:
    # An annotation is looked for once a minute, whatever the dashboard's interval is.
    return Promql(_ASK.where, "2m").rate(metric)


def _now(limits: Thresholds) -> list[Panel]:
    ready, waiting, exhausted = (
        _ASK.of(metric) for metric in (catalog.READY, catalog.WAITING, catalog.EXHAUSTED)
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
            "The worst of the clients. Normal: healthy; 'callers wait' for moments. Exhausted: "
            "look who holds connections (use time) before you raise maxPoolSize. No server: see "
            "the Servers row.",
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
            "Held for longer: the mean use time is more than twice that of the service's last day, "
            "or no connection came back: look at Operations. Not given back: one is out for longer "
            "than its alert allows. Slow to open: callers wait though connections are free to "
            "open, so look at Create time. More callers: none of these, so the load is too much "
            "for maxPoolSize. Normal: not exhausted.",
            Query(_why()),
            mappings=mapping(
                {
                    0: ("Not exhausted", OK),
                    1: ("More callers", WARNING),
                    2: ("Held for longer", WARNING),
                    **dict.fromkeys((3, 4), ("Not given back", CRITICAL)),
                    5: ("Slow to open", WARNING),
                }
            ),
        ).span(5),
        number(
            "In use, of max",
            "The share of maxPoolSize in use, of the fullest pool. Normal: below the orange line, "
            "so that a burst finds a connection. Above it: see what is slow, then raise "
            "maxPoolSize. No data: maxPoolSize is unlimited.",
            Query(f"max({_ASK.share_of_max()})"),
            unit="percentunit",
            steps=warn(limits.in_use_warning, limits.in_use_critical),
        ).span(3),
        number(
            "Waiting",
            "Callers in the queue, all pools together. Normal: 0, or a few for moments. If it "
            "stays: more callers than connections, or connections held for too long.",
            Query(f"sum({waiting})"),
            steps=warn(1),
        ).span(3),
        number(
            "Oldest wait",
            "How long the first in the queue has waited. Normal: milliseconds. Near "
            "waitQueueTimeoutMS: callers are about to get errors.",
            Query(f"max({_ASK.of(catalog.OLDEST_WAIT)})"),
            unit="s",
            steps=warn(limits.wait_p99_seconds, limits.oldest_wait_seconds),
        ).span(3),
        number(
            "Timeouts",
            "Callers per second who gave up after waitQueueTimeoutMS: each is an error that a user "
            "sees. Normal: 0.",
            Query(f"sum({_ASK.rate(catalog.TIMEOUTS)})"),
            unit="reqps",
            steps=[(1e-9, CRITICAL)],
        ).span(3),
        number(
            "Exhausted share of time",
            "For what share of the time all connections were taken while callers queued, in the "
            "worst pool. Normal: 0 %. A few percent are bursts; above the red line it is the rule.",
            Query(f"max({_ASK.rate(catalog.EXHAUSTED_SECONDS)})"),
            unit="percentunit",
            steps=[(1e-9, WARNING), (limits.exhausted_share, CRITICAL)],
        ).span(3),
    ]


def _why() -> str:
    """Return the cause of the pool that is worst off."""
    now = _ASK.rate(catalog.EXHAUSTED_SECONDS)
    total, count = (_ASK.rate(catalog.USE_SECONDS, part=part) for part in ("_sum", "_count"))
    # Of all its instances: after a deployment they have other names. Not of the last hour, which
    # may be this very trouble; but of a service that is younger, of all there is.
    days = (_usual(offset="1h"), _usual())
    longer = f"({total} / {count} > bool on (job, {POOL}) group_left () 2 * ({' or '.join(days)}))"
    none_back = f"({count} == bool 0)"  # then the mean is NaN
    kept = f"({_ASK.of(catalog.LONGEST_CHECKOUT)} > bool $held)"
    opening = f"({now} == bool 0) * (min_over_time({_ASK.of(catalog.WAITING)}[1m]) > bool 0)"
    return f"max(({now} > bool 0) * (1 + {longer} + {none_back} + 2 * {kept}) + 5 * {opening})"


def _usual(offset: str = "") -> str:
    """Return the mean use time of each service's pools over a day."""
    day = {"window": "1d", "offset": offset}
    total, count = (
        f"sum by (job, {POOL}) ({_ASK.increase(catalog.USE_SECONDS, part=part, **day)})"
        for part in ("_sum", "_count")
    )
    return f"{total} / {count}"


def _connections(limits: Thresholds) -> list[Panel]:
    by_state = f"sum by ({STATE}) ({_ASK.of(catalog.CONNECTIONS)})"
    return [
        lines(
            "Connections",
            "By state, all chosen pools together, against the sum of their maxPoolSize. Normal: "
            "used well below max, a steady floor of idle ones. Used at max: the pool is the limit. "
            "Opening for long: the server is slow to accept.",
            Query(by_state, f"{{{{{STATE}}}}}"),
            Query(f"sum({_ASK.of(catalog.OPENING)})", "opening"),
            Query(f"sum({_ASK.of(catalog.MAX_SIZE)})", "max"),
            stacked=True,
            colors={"used": "blue", "idle": "green", "opening": "yellow", "max": "red"},
        ).span(8),
        lines(
            "Queue",
            "Callers who wait for a connection. Normal: none, or spikes of one sample. A plateau "
            "says that the pool is too small for the load, or that connections are held for long.",
            Query(f"sum by ({POOL}) ({_ASK.of(catalog.WAITING)})", _POOL),
            Query(f"max by ({POOL}) ({_ASK.of(catalog.PEAK_WAITING)})", f"longest {_POOL}"),
        ).span(8),
        lines(
            "Waiting and working",
            "An average checkout, split: time in the queue, time in use. Normal: nearly all is "
            "working. If waiting is the larger part, the pool is what makes requests slow.",
            Query(_ASK.mean(catalog.WAIT_SECONDS), "waiting"),
            Query(_ASK.mean(catalog.USE_SECONDS), "working"),
            unit="s",
            stacked=True,
            colors={"waiting": "red", "working": "blue"},
        ).span(8),
        lines(
            "Share of max in use",
            "Of the fullest process of each pool. Normal: below the orange line. The alerts look "
            "at the average over 5 minutes.",
            Query(f"max by ({POOL}) ({_ASK.share_of_max()})", _POOL),
            unit="percentunit",
            steps=warn(limits.in_use_warning, limits.in_use_critical),
        ),
        lines(
            "Oldest wait and longest checkout",
            "The age of the first in the queue, and of the connection that is out for longest. "
            "Normal: both short. A checkout that grows with time is an operation that is slow or "
            "hangs, or an exhaust cursor (behind a load balancer any open cursor or transaction): "
            "find it in the traces.",
            Query(f"max by ({POOL}) ({_ASK.of(catalog.OLDEST_WAIT)})", f"wait {_POOL}"),
            Query(f"max by ({POOL}) ({_ASK.of(catalog.LONGEST_CHECKOUT)})", f"checkout {_POOL}"),
            unit="s",
            steps=warn(limits.oldest_wait_seconds, limits.longest_checkout_seconds),
        ),
        lines(
            "Kept connections",
            "In use, and no command ran on them for a second: cursors that were not closed, "
            "transactions that wait for something else. And how many were out for longer than "
            "`long_checkout_seconds`, of which the log has the stack. Normal: none of both.",
            Query(f"sum by ({POOL}) ({_ASK.of(catalog.HELD_IDLE)})", f"idle {_POOL}"),
            Query(f"sum by ({POOL}) ({_ASK.increase(catalog.LONG_CHECKOUTS)})", f"long {_POOL}"),
        ).span(8),
        lines(
            "Owners' connections",
            "In use on average, by the owner for whom; of clients with `owner_metrics`. Normal: "
            "as at this hour. One that grows takes them from the others.",
            Query(f"sum by ({OWNER}) ({_ASK.rate(catalog.OWNER_SECONDS)})", _OWNER),
        ).span(8),
        lines(
            "Owners' checkouts",
            "Per second, by the owner for whom. Normal: as at this hour. If his connections "
            "are more than usual and these are not, his operations take longer.",
            Query(f"sum by ({OWNER}) ({_ASK.rate(catalog.OWNER_CHECKOUTS)})", _OWNER),
            unit="ops",
        ).span(8),
    ]


def _times(limits: Thresholds) -> list[Panel]:
    kinds = (
        (
            "Wait time",
            catalog.WAIT_SECONDS,
            "How long those waited who got a connection. Normal: below a millisecond. Diamonds are "
            "single requests: click one for its trace. High with a short use time: too many "
            "callers, raise maxPoolSize. High with a long use time: operations are slow.",
            warn(limits.wait_p99_seconds),
        ),
        (
            "Use time",
            catalog.USE_SECONDS,
            "How long callers held a connection. Normal: that of your operations. If it rose, "
            "look at Operations: something is slow in the server, or reads a lot.",
            (),
        ),
        (
            "Create time",
            catalog.CREATE_SECONDS,
            "How long a new connection took: TCP, TLS and authentication; while none is opened, of "
            "all since the start. Normal: milliseconds. Long: network, DNS, or a server that is "
            "busy accepting.",
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
        buckets = f"sum by (le) ({_ASK.increase(metric, part='_bucket')})"
        panels += [
            lines(title, description, *quantiles, unit="s", steps=steps, colors=colors),
            heat_map(
                f"{title}, all",
                f"{title}, each one counted: the darker, the more. Normal: a narrow band, low "
                "down. Two bands are two kinds of callers; a band that moves up is everybody.",
                Query(buckets, "{{le}}"),
            ),
        ]
    return panels


def _quantile(q: float, metric: Metric) -> str:
    now = _ASK.quantile(q, metric)
    if metric is not catalog.CREATE_SECONDS:
        return now
    ever = f"histogram_quantile({q}, sum by (le) ({_ASK.of(metric, part='_bucket')}))"
    return f"{now} >= 0 or {ever}"  # a rate of nothing is NaN


def _churn() -> list[Panel]:
    closed = f"sum by ({REASON}) ({_ASK.rate(catalog.CLOSED)})"
    return [
        lines(
            "Checkouts by outcome",
            "How checkouts ended. Normal: ok. timeout: the queue was too long; connection_error: "
            "the server; pool_closed: the pool was paused or closed; cancelled: given up. "
            "Retries: callers who had just timed out; up to half of those are PyMongo's own.",
            Query(f"sum by ({OUTCOME}) ({_ASK.rate(catalog.CHECKOUTS)})", f"{{{{{OUTCOME}}}}}"),
            Query(f"sum({_ASK.rate(catalog.RETRIES)})", "retries"),
            unit="reqps",
            colors={"ok": "green", "timeout": "red"},
        ),
        lines(
            "Connections opened and closed",
            "Normal: near 0. closed idle: maxIdleTimeMS is shorter than the pauses of the load; "
            "stale and error: the server or the network cut them; cleared: the whole pool was "
            "thrown away after an error.",
            Query(f"sum({_ASK.rate(catalog.CREATED)})", "created"),
            Query(closed, f"closed {{{{{REASON}}}}}"),
            Query(f"sum({_ASK.rate(catalog.CLEARED)})", "cleared"),
            unit="cps",
            colors={"created": "blue", "cleared": "red"},
        ),
    ]


def _operations() -> list[Panel]:
    errors = _ASK.rate(catalog.OPERATION_SECONDS, f'{ERROR}!=""', part="_count")
    every = _ASK.rate(catalog.OPERATION_SECONDS, part="_count")
    slowest = _ASK.quantile(0.99, catalog.OPERATION_SECONDS, COMMAND)
    return [
        lines(
            "Commands",
            "Commands per second. Normal: as at this hour. A rise is load; a fall while callers "
            "wait is a slow server.",
            Query(f"sum by ({COMMAND}) ({every})", _COMMAND),
            unit="ops",
        ).span(8),
        lines(
            "Command time, p99",
            "From the first byte to the reply, without the wait for a connection. Normal: "
            "steady. The command that rose with the use time is the one to look at: its plan, "
            "its index, its result's size.",
            # Of one that nobody asks now the quantile is NaN.
            Query(f"{slowest} >= 0", _COMMAND, exemplar=True),
            unit="s",
        ).span(8),
        lines(
            "Command errors",
            "Commands per second that failed. Normal: 0. What failed is in the metric's "
            "db_response_status_code, and in the traces.",
            Query(f"sum by ({COMMAND}) ({errors}) or 0 * sum by ({COMMAND}) ({every})", _COMMAND),
            unit="ops",
        ).span(8),
    ]


def _agents() -> list[Panel]:
    turns, operations, conflicts = (
        f"sum({_ALL.rate(metric)})"
        for metric in (catalog.AGENT_TURNS, catalog.AGENT_OPERATIONS, catalog.AGENT_CONFLICTS)
    )
    return [
        lines(
            "Agents' turns",
            "Turns of Strands agents whose sessions are here. Normal: as at this hour, and no "
            "conflicts: each is a message of a user that was refused, for two requests, or two "
            "processes, had his session open at once.",
            Query(turns, "turns"),
            Query(conflicts, "conflicts"),
            unit="ops",
            colors={"turns": "blue", "conflicts": "red"},
        ),
        lines(
            "Operations per turn",
            "What a turn asks of the database, opening its session included. Normal: below 10, "
            "and steady; 0 while there is none. A rise is agents with more messages a turn.",
            Query(f"{operations} / ({turns} > 0) or 0 * {turns}", "operations per turn"),
        ),
    ]


def _servers() -> list[Panel]:
    return [
        states(
            "Servers",
            "Whether each server answers heartbeats, and whether its pool is ready. Normal: all "
            "green; shown as the process sees it that sees it worst. One server down while "
            "others are up is a failover. A paused pool of a server that is up belongs to an "
            "arbiter, or to a member that serves no data now.",
            Query(f"min by ({HOST}, {PORT}) ({_ASK.of(catalog.SERVER_UP)})", f"server {_SERVER}"),
            Query(f"2 + min by ({POOL}) ({_ASK.of(catalog.READY)})", f"pool {_POOL}"),
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
            "To each server. Normal: steady, below a millisecond in one zone. A rise is the "
            "network or a server that is busy: every command pays it.",
            Query(f"max by ({HOST}, {PORT}) ({_ASK.of(catalog.SERVER_RTT)})", _SERVER),
            unit="s",
        ).span(8),
        number(
            "Telemetry errors",
            "Failures inside the telemetry itself, in the time that is shown. Normal: 0. If not, "
            "do not trust the numbers, and report it: it is a bug of ours.",
            Query(f"sum({_ALL.increase(catalog.TELEMETRY_ERRORS, window='$__range')})"),
            steps=[(1, CRITICAL)],
        ).height(8),
    ]
