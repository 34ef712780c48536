"""The rows of the Pool dashboard that show symptoms: whether callers wait, why, and for how long.

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
    heat_map,
    legend,
    lines,
    mapping,
    number,
    warn,
)
from pool_telemetry import catalog
from pool_telemetry.catalog import WORKER, Metric
from pool_telemetry.monitoring.promql import OWNER, POOL, STATE
from pool_telemetry.monitoring.thresholds import Thresholds

_POOL: Final = legend(POOL, WORKER)
_OWNER: Final = legend(OWNER)


def now(limits: Thresholds) -> list[Panel]:
    """Return the row that shows at a glance whether callers wait, and why."""
    ready, waiting, exhausted = (
        POOLS.of(metric) for metric in (catalog.READY, catalog.WAITING, catalog.EXHAUSTED)
    )
    client = f'label_replace({ready}, "client", "$1", "{POOL}", "(.*)@.*")'
    unserved, selecting = POOLS.of(catalog.UNSERVED), PROCESSES.of(catalog.SELECTION_OLDEST_WAIT)
    # A client that has no server left has no pool that could be ready.
    health = (
        f"8 * (max({unserved} or {selecting}) > bool 1) "
        f"+ 4 * (min(max by (job, instance, worker, client) ({client})) == bool 0 or vector(0)) "
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
            "- Nobody served: callers have waited for a second or more, and none got a connection "
            "or a server. Go to Nobody served.\n"
            "- No server: go to the row Servers.",
            Query(health),
            mappings=mapping(
                {
                    0: ("Healthy", OK),
                    1: ("Callers wait", WARNING),
                    2: ("Exhausted", CRITICAL),
                    3: ("Exhausted", CRITICAL),
                    **dict.fromkeys((*range(4, 8), *range(12, 16)), no_server),
                    **dict.fromkeys((8, 9), ("Nobody served", CRITICAL)),
                    **dict.fromkeys((10, 11), ("Exhausted", CRITICAL)),
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
            Query(f"max({POOLS.share_of_max()})"),
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
            Query(f"max({POOLS.of(catalog.OLDEST_WAIT)})"),
            unit="s",
            steps=warn(limits.wait_p99_seconds, limits.oldest_wait_seconds),
        ).span(3),
        number(
            "Timeouts",
            "Checkouts per second that timed out after waitQueueTimeoutMS. Normal: 0. Above 0: "
            "users see errors.",
            Query(f"sum({POOLS.rate(catalog.TIMEOUTS)})"),
            unit="reqps",
            steps=[(1e-9, CRITICAL)],
        ).span(3),
        number(
            "Exhausted share of time",
            "The share of time in which all connections were in use while callers queued, in the "
            "worst pool. Normal: 0 %, or a few percent in bursts. Above the red line: bursts do "
            "not explain it.",
            Query(f"max({POOLS.rate(catalog.EXHAUSTED_SECONDS)})"),
            unit="percentunit",
            steps=[(1e-9, WARNING), (limits.exhausted_share, CRITICAL)],
        ).span(3),
    ]


def _why() -> str:
    """Return the number of the cause, as mapped in the panel, of the pool that is worst off."""
    now = POOLS.rate(catalog.EXHAUSTED_SECONDS)
    total, count = (POOLS.rate(catalog.USE_SECONDS, part=part) for part in ("_sum", "_count"))
    # The baseline covers all instances, because a deployment renames them. It ends an hour ago, so
    # that it leaves this trouble out; a service younger than an hour is compared with all it has.
    days = (_baseline(offset="1h"), _baseline())
    longer = f"({total} / {count} > bool on (job, {POOL}) group_left () 2 * ({' or '.join(days)}))"
    none_returned = f"({count} == bool 0)"  # the mean use time is NaN then
    too_old = f"({POOLS.of(catalog.LONGEST_CHECKOUT)} > bool $held)"
    opening = f"({now} == bool 0) * (min_over_time({POOLS.of(catalog.WAITING)}[1m]) > bool 0)"
    exhausted = f"({now} > bool 0) * (1 + {longer} + {none_returned} + 2 * {too_old})"
    return f"max({exhausted} + 5 * {opening})"


def _baseline(offset: str = "") -> str:
    """Return the mean use time of each service's pools, over a day."""
    day = {"window": "1d", "offset": offset}
    total, count = (
        f"sum by (job, {POOL}) ({POOLS.increase(catalog.USE_SECONDS, part=part, **day)})"
        for part in ("_sum", "_count")
    )
    return f"{total} / {count}"


def connections(limits: Thresholds) -> list[Panel]:
    """Return the row of connections and of the queue for them, over time."""
    by_state = f"sum by ({STATE}) ({POOLS.of(catalog.CONNECTIONS)})"
    return [
        lines(
            "Connections",
            "Connections by state, summed over the chosen pools, and the sum of their "
            "maxPoolSize. Normal: used is well below max, and some are idle. Used at max: the "
            "pool limits the service. Opening for long: the server accepts connections slowly.",
            Query(by_state, legend(STATE)),
            Query(f"sum({POOLS.of(catalog.OPENING)})", "opening"),
            Query(f"sum({POOLS.of(catalog.MAX_SIZE)})", "max"),
            stacked=True,
            colors={"used": "blue", "idle": "green", "opening": "yellow", "max": "red"},
        ).span(8),
        lines(
            "Queue",
            "The number of callers that wait for a connection, and the longest queue of the last "
            "exhaustion. Normal: 0, or spikes of one sample. A plateau: the pool is too small for "
            "the load, or connections are held for too long.",
            Query(f"sum by ({POOL}) ({POOLS.of(catalog.WAITING)})", _POOL),
            Query(f"max by ({POOL}) ({POOLS.of(catalog.PEAK_WAITING)})", f"longest {_POOL}"),
        ).span(8),
        lines(
            "Waiting and working",
            "How an average checkout spends its time: waiting in the queue, then working. Normal: "
            "nearly all is working. Mostly waiting: the pool is what makes requests slow.",
            Query(POOLS.mean(catalog.WAIT_SECONDS), "waiting"),
            Query(POOLS.mean(catalog.USE_SECONDS), "working"),
            unit="s",
            stacked=True,
            colors={"waiting": "red", "working": "blue"},
        ).span(8),
        lines(
            "Share of max in use",
            "The share of maxPoolSize in use, in the fullest process of each pool. Normal: below "
            "the orange line. The alerts use the average over 5 minutes.",
            Query(f"max by ({POOL}) ({POOLS.share_of_max()})", _POOL),
            unit="percentunit",
            steps=warn(limits.in_use_warning, limits.in_use_critical),
        ),
        lines(
            "Oldest wait and longest checkout",
            "The age of the oldest wait and of the oldest open checkout. Normal: both are short. "
            "A checkout that grows steadily is one slow or hanging operation, or an exhaust "
            "cursor; behind a load balancer it can be any open cursor or transaction. Find it in "
            "the traces.",
            Query(f"max by ({POOL}) ({POOLS.of(catalog.OLDEST_WAIT)})", f"wait {_POOL}"),
            Query(f"max by ({POOL}) ({POOLS.of(catalog.LONGEST_CHECKOUT)})", f"checkout {_POOL}"),
            unit="s",
            steps=warn(limits.oldest_wait_seconds, limits.longest_checkout_seconds),
        ),
        lines(
            "Idle and long checkouts",
            "Connections in use that ran no command for a second, because a cursor was not closed "
            "or a transaction waits for something else; and checkouts that became older than "
            "`long_checkout_seconds`, whose stacks are in the log. Normal: none of either.",
            Query(f"sum by ({POOL}) ({POOLS.of(catalog.HELD_IDLE)})", f"idle {_POOL}"),
            Query(f"sum by ({POOL}) ({POOLS.increase(catalog.LONG_CHECKOUTS)})", f"long {_POOL}"),
        ).span(8),
        lines(
            "Connections by owner",
            "Connections in use on average, by owner; only of clients with `owner_metrics`. "
            "Normal: as usual at this hour. One owner that grows takes connections from the "
            "others.",
            Query(f"sum by ({OWNER}) ({POOLS.rate(catalog.OWNER_SECONDS)})", _OWNER),
        ).span(8),
        lines(
            "Checkouts by owner",
            "Checkouts per second, by owner; only of clients with `owner_metrics`. Normal: as "
            "usual at this hour. If an owner has more connections in use but not more checkouts, "
            "its operations take longer.",
            Query(f"sum by ({OWNER}) ({POOLS.rate(catalog.OWNER_CHECKOUTS)})", _OWNER),
            unit="ops",
        ).span(8),
    ]


def times(limits: Thresholds) -> list[Panel]:
    """Return the row of the three histograms: wait, use and create time."""
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
        buckets = f"sum by (le) ({POOLS.increase(metric, part='_bucket')})"
        panels += [
            lines(title, description, *quantiles, unit="s", steps=steps, colors=colors),
            heat_map(
                f"{title}, distribution",
                f"How often each {title.lower()} occurred; a darker cell counts more. "
                "Normal: a narrow band near the bottom.\n"
                "- Two bands: two kinds of callers.\n"
                "- A band that moves up: all callers are affected.",
                Query(buckets, legend("le")),
            ),
        ]
    return panels


def _quantile(q: float, metric: Metric) -> str:
    now = POOLS.quantile(q, metric)
    if metric is not catalog.CREATE_SECONDS:
        return now
    since_start = f"histogram_quantile({q}, sum by (le) ({POOLS.of(metric, part='_bucket')}))"
    return f"{now} >= 0 or {since_start}"  # without new connections the quantile is NaN
