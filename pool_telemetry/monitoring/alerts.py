"""When to wake somebody: each alert with its question, limit and words; and what to record.

A row's `value` is PromQL; it alerts where that is above `limit`. `rules.py` writes them for
Prometheus and for Grafana. What each means and what to do is in `dashboards/runbooks.md`.
"""

import json
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from pool_telemetry import catalog
from pool_telemetry.catalog import Metric
from pool_telemetry.errors import PoolConfigurationError
from pool_telemetry.monitoring.promql import OUTCOME, POOL, PROCESS, REASON, Promql
from pool_telemetry.prometheus import prometheus_name

Unit = Literal["share", "seconds", "number"]

ALSO: Final = {"waiting": catalog.WAITING, "max_size": catalog.MAX_SIZE}


def _limit(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Where numbers are too high, for the alerts and as drawn in the dashboards.

    Shares are above 0 and below 1, all others above 0. A field's metadata
    has its `meaning`.

    Raises:
        PoolConfigurationError: One is out of range, or a warning is above what is critical.
    """

    exhausted_share: float = _limit(0.25, "share of two minutes in which the pool was exhausted")
    in_use_warning: float = _limit(0.8, "share of maxPoolSize in use, on average over 5 minutes")
    in_use_critical: float = _limit(0.95, "share of maxPoolSize in use that is critical")
    timeout_share: float = _limit(0.01, "share of the checkouts of 5 minutes that timed out")
    wait_p99_seconds: float = _limit(0.5, "seconds that 1 % waited, over 5 minutes")
    oldest_wait_seconds: float = _limit(3.0, "seconds that somebody has waited, for one minute")
    longest_checkout_seconds: float = _limit(60.0, "seconds that a connection has been out")
    created_per_second: float = _limit(2.0, "new connections of one pool, over 5 minutes")

    def __post_init__(self) -> None:
        for one in fields(self):
            value, share = getattr(self, one.name), one.metadata["meaning"].startswith("share")
            if not 0.0 < value < (1.0 if share else float("inf")):
                words = "a share, above 0 and below 1" if share else "a number above 0"
                example = f"such as {one.default:g}"
                raise PoolConfigurationError(f"{one.name} is {value!r}: use {words}, {example}")
        if self.in_use_warning >= self.in_use_critical:
            raise PoolConfigurationError(
                f"in_use_warning is {self.in_use_warning:g}: use less than in_use_critical, "
                f"{self.in_use_critical:g}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert.

    `summary` and `text` may name `{pool}`, `{process}`, `{job}`, `{value}`, `{limit}`, and of ALSO
    what the pool has at that moment.

    Attributes:
        value: PromQL; it alerts for each series above `limit`.
        hold: For how long it has to be so.
        panel: The panel of the Pool dashboard that shows it.
    """

    name: str
    severity: Literal["critical", "warning"]
    value: str
    limit: float
    unit: Unit = "number"
    hold: str
    summary: str
    text: str
    panel: str


def alerts(job: str = "", thresholds: Thresholds | None = None) -> tuple[Alert, ...]:
    """Return all alerts, for the jobs that match a regular expression; empty for every job."""
    limits = thresholds or Thresholds()
    promql = Promql(f"job=~{json.dumps(job, ensure_ascii=False)}" if job else "")
    used, process = promql.in_use(), ", ".join((*PROCESS, POOL))
    exhausted, still = (
        Promql(promql.where, window).rate(catalog.EXHAUSTED_SECONDS) for window in ("2m", "1m")
    )
    up, ready = promql.of(catalog.SERVER_UP), promql.of(catalog.READY)
    info = promql.of(catalog.CLIENT_INFO)
    lately = f"present_over_time({info}[1d])"
    nobody = json.dumps(job or "any job", ensure_ascii=False)
    waiting = promql.of(catalog.WAITING)
    # Of a pool that was there: the first minutes are no average.
    in_use = (
        f"{promql.share_of_max(f'avg_over_time({used}[5m])')} "
        f"and {promql.of(catalog.MAX_SIZE)} offset 5m"
    )
    failures = f'{OUTCOME}=~"connection_error|pool_closed"'
    every = f"sum without ({OUTCOME}) ({promql.rate(catalog.CHECKOUTS)})"
    errors = promql.of(catalog.TELEMETRY_ERRORS)
    smooth = f"avg_over_time({used}[10m])"
    return (
        Alert(
            name="MongoDBPoolExhausted",
            severity="critical",
            # Now, for some while, and so that it is felt: a burst is what the queue is for, and
            # a small pool that is used well has many waits of milliseconds.
            value=f"{exhausted} and {still} > 0 and "
            f"max_over_time({promql.of(catalog.OLDEST_WAIT)}[2m]) > 0.1",
            limit=limits.exhausted_share,
            unit="share",
            hold="0s",
            summary="Pool {pool} of {process} is exhausted",
            text="All {max_size} connections of pool {pool} in {process} ({job}) were taken, and "
            "callers queued, for {value} of the last 2 minutes (alert above {limit}). {waiting} "
            "wait now.",
            panel="Exhausted share of time",
        ),
        Alert(
            name="MongoDBPoolNearlyFull",
            severity="warning",
            value=in_use,
            limit=limits.in_use_warning,
            unit="share",
            hold="2m",
            summary="Pool {pool} of {process} is {value} full",
            text="Pool {pool} in {process} ({job}) had {value} of its {max_size} connections in "
            "use on average over 5 minutes (alert above {limit}): the next burst has to queue.",
            panel="Share of max in use",
        ),
        Alert(
            name="MongoDBPoolFull",
            severity="critical",
            # Where nobody waits it is just as large as it has to be.
            value=f"{in_use} and avg_over_time({waiting}[5m]) > 0.5",
            limit=limits.in_use_critical,
            unit="share",
            hold="2m",
            summary="Pool {pool} of {process} has no reserve: {value} in use",
            text="Pool {pool} in {process} ({job}) had {value} of its {max_size} connections in "
            "use on average over 5 minutes (alert above {limit}). {waiting} wait now.",
            panel="Share of max in use",
        ),
        Alert(
            name="MongoDBPoolCheckoutTimeouts",
            severity="critical",
            # Of a quiet pool's few checkouts one is a large share.
            value=f"{promql.rate(catalog.TIMEOUTS)} / {every} "
            f"and {promql.increase(catalog.TIMEOUTS)} > 2",
            limit=limits.timeout_share,
            unit="share",
            hold="1m",
            summary="{value} of the checkouts of pool {pool} of {process} time out",
            text="{value} of the callers of pool {pool} in {process} ({job}) gave up after "
            "waitQueueTimeoutMS in the last 5 minutes (alert above {limit}): users see errors.",
            panel="Checkouts by outcome",
        ),
        Alert(
            name="MongoDBPoolCheckoutFailures",
            severity="critical",
            value=f"sum without ({OUTCOME}) ({promql.rate(catalog.CHECKOUTS, failures)}) / {every} "
            f"and sum without ({OUTCOME}) ({promql.increase(catalog.CHECKOUTS, failures)}) > 2",
            limit=limits.timeout_share,
            unit="share",
            hold="1m",
            summary="{value} of the checkouts of pool {pool} of {process} fail",
            text="{value} of the callers of pool {pool} in {process} ({job}) got no connection in "
            "the last 5 minutes (alert above {limit}), as none could be opened or the pool was "
            "paused: users see errors.",
            panel="Checkouts by outcome",
        ),
        Alert(
            name="MongoDBPoolWaitHigh",
            severity="warning",
            value=f"histogram_quantile(0.99, {promql.rate(catalog.WAIT_SECONDS, part='_bucket')})",
            limit=limits.wait_p99_seconds,
            unit="seconds",
            hold="5m",
            summary="Callers of pool {pool} of {process} wait {value} (p99) for a connection",
            text="One in a hundred of those who got a connection of pool {pool} in {process} "
            "({job}) waited {value} or longer for it, over 5 minutes (alert above {limit}).",
            panel="Wait time",
        ),
        Alert(
            name="MongoDBPoolOldestWaiter",
            severity="warning",
            value=f"min_over_time({promql.of(catalog.OLDEST_WAIT)}[1m])",
            limit=limits.oldest_wait_seconds,
            unit="seconds",
            hold="30s",
            summary="A caller of pool {pool} of {process} has waited for {value}",
            text="For a minute there was always a caller of pool {pool} in {process} ({job}) who "
            "had waited {value} or longer (alert above {limit}).",
            panel="Oldest wait and longest checkout",
        ),
        Alert(
            name="MongoDBPoolCheckoutHeld",
            severity="warning",
            value=promql.of(catalog.LONGEST_CHECKOUT),
            limit=limits.longest_checkout_seconds,
            unit="seconds",
            hold="1m",
            summary="A connection of pool {pool} of {process} is out for {value}",
            text="Somebody in {process} ({job}) holds a connection of pool {pool} for {value} "
            "(alert above {limit}): an operation that is slow or hangs, or an exhaust cursor.",
            panel="Oldest wait and longest checkout",
        ),
        Alert(
            name="MongoDBPoolConnectionStorm",
            severity="warning",
            # Who grows opens many at once, and closes none.
            value=f"{promql.rate(catalog.CREATED)} and sum without ({REASON}) "
            f"({promql.rate(catalog.CLOSED)}) > {limits.created_per_second / 2:.12g}",
            limit=limits.created_per_second,
            hold="2m",
            summary="Pool {pool} of {process} opens {value} connections per second",
            text="Pool {pool} in {process} ({job}) opened {value} connections per second over 5 "
            "minutes (alert above {limit}): they do not live long, and each costs a handshake.",
            panel="Connections opened and closed",
        ),
        Alert(
            name="MongoDBPoolPaused",
            severity="critical",
            # An arbiter's pool is never ready, nor a new member's before it has its data.
            value=f"(1 - {ready}) and max_over_time({ready}[1d]) == 1 "
            f"unless on ({process}) {up} == 0",
            limit=0,
            hold="1m",
            summary="Pool {pool} of {process} is paused",
            text="Pool {pool} in {process} ({job}) is paused, though its server answers "
            "heartbeats: it takes no operations at the moment.",
            panel="Servers",
        ),
        Alert(
            name="MongoDBServerDown",
            severity="critical",
            value=f"1 - {up}",
            limit=0,
            hold="30s",
            summary="{process} can't reach the server of pool {pool}",
            text="The server of pool {pool} does not answer the heartbeats of {process} ({job}).",
            panel="Servers",
        ),
        Alert(
            name="MongoDBPoolTelemetryErrors",
            severity="warning",
            # At the start, too: what is there when a series begins is no increase.
            value=f"{promql.increase(catalog.TELEMETRY_ERRORS, window='15m')} > 0 "
            f"or ({errors} unless {errors} offset 15m)",
            limit=0,
            hold="0s",
            summary="The telemetry of pool {pool} of {process} fails",
            text="{value} events of pool {pool} in {process} ({job}) failed in the last 15 "
            "minutes: its numbers may be off. The application is not affected.",
            panel="Telemetry errors",
        ),
        Alert(
            name="MongoDBPoolExhaustionPredicted",
            severity="warning",
            # A trend of two hours that goes on, where it is busy already: neither noise, nor a step
            # from one level to another, nor a start.
            value=f"{promql.share_of_max(f'predict_linear({smooth}[2h:5m], 3600)')} "
            f"and {promql.share_of_max(f'deriv({smooth}[30m:5m])')} > 0.00001 "
            f"and {promql.share_of_max(smooth)} > 0.5 "
            f"and {promql.of(catalog.MAX_SIZE)} offset 2h",
            limit=1.0,
            unit="share",
            hold="10m",
            summary="Pool {pool} of {process} will be full within the hour",
            text="At the pace of the last two hours pool {pool} in {process} ({job}) will have "
            "{value} of its {max_size} connections in use in an hour.",
            panel="Share of max in use",
        ),
        Alert(
            name="MongoDBPoolNoData",
            severity="warning",
            value=f"(count by (job) ({lately}) unless count by (job) ({info})) or "
            f'label_replace(absent({info}) unless on () {lately}, "job", {nobody}, "", "")',
            limit=0,
            hold="5m",
            summary="No pool of {job} reports any more",
            text="No pool of {job} has reported for 5 minutes: its processes ended, or their "
            "metrics do not arrive. Every other alert is blind for it.",
            panel="Health",
        ),
    )


def recorded() -> dict[str, str]:
    """Return what to record of each job, by name: few series, for long ranges and federation."""
    promql = Promql()
    sums = (catalog.CONNECTIONS, catalog.MAX_SIZE, catalog.WAITING, catalog.EXHAUSTED)
    rates = (catalog.TIMEOUTS, catalog.CREATED, catalog.EXHAUSTED_SECONDS)
    quantiles = (catalog.WAIT_SECONDS, catalog.USE_SECONDS, catalog.OPERATION_SECONDS)
    return {
        **{f"job:{_name(m)}:sum": f"sum by (job) ({promql.of(m)})" for m in sums},
        **{f"job:{_name(m)}:rate5m": f"sum by (job) ({promql.rate(m)})" for m in rates},
        **{f"job:{_name(m)}:p99_5m": promql.quantile(0.99, m, "job") for m in quantiles},
    }


def _name(metric: Metric) -> str:
    return prometheus_name(metric).removesuffix("_total")  # as recording rules are named
