"""The alerts: one small function for each, and the table that lists them in order.

`rule_files` writes them for Prometheus and for Grafana, and `files` chooses their jobs and limits.
An alert's numbers come from `thresholds`, its queries from `promql`; what it means and what to do
is in `dashboards/runbooks.md`. No file format belongs here.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from pool_telemetry import catalog
from pool_telemetry.monitoring.model import Alert
from pool_telemetry.monitoring.promql import OUTCOME, POOL, PROCESS, REASON, Promql
from pool_telemetry.monitoring.thresholds import Thresholds


@dataclass(frozen=True, slots=True)
class _Scope:
    """What each alert is made from: the limits, the queries, and the jobs as the user gave them."""

    limits: Thresholds
    promql: Promql
    job: str


def _exhausted(scope: _Scope) -> Alert:
    now, last_minute = (
        replace(scope.promql, window=window).rate(catalog.EXHAUSTED_SECONDS)
        for window in ("2m", "1m")
    )
    # Exhausted now, for a good part of the time, and so long that callers notice. A burst is what
    # the queue is for, and a small pool that is used well has many waits of milliseconds.
    longest_wait = f"max_over_time({scope.promql.of(catalog.OLDEST_WAIT)}[2m])"
    return Alert(
        name="MongoDBPoolExhausted",
        severity="critical",
        value=f"{now} and {last_minute} > 0 and {longest_wait} > 0.1",
        limit=scope.limits.exhausted_share,
        unit="share",
        pending_for="0s",
        summary="Pool {pool} of {process} is exhausted",
        description="All {max_size} connections of pool {pool} in {process} ({job}) were taken, "
        "and callers queued, for {value} of the last 2 minutes (alert above {limit}). {waiting} "
        "wait now.",
        panel="Exhausted share of time",
    )


def _nearly_full(scope: _Scope) -> Alert:
    return Alert(
        name="MongoDBPoolNearlyFull",
        severity="warning",
        value=scope.promql.average_share_of_max(),
        limit=scope.limits.in_use_warning,
        unit="share",
        pending_for="2m",
        summary="Pool {pool} of {process} is {value} full",
        description="Pool {pool} in {process} ({job}) had {value} of its {max_size} connections in "
        "use on average over 5 minutes (alert above {limit}): the next burst has to queue.",
        panel="Share of max in use",
    )


def _full(scope: _Scope) -> Alert:
    # A full pool without a queue is just as large as it has to be.
    queue = f"avg_over_time({scope.promql.of(catalog.WAITING)}[5m])"
    return Alert(
        name="MongoDBPoolFull",
        severity="critical",
        value=f"{scope.promql.average_share_of_max()} and {queue} > 0.5",
        limit=scope.limits.in_use_critical,
        unit="share",
        pending_for="2m",
        summary="Pool {pool} of {process} has no reserve: {value} in use",
        description="Pool {pool} in {process} ({job}) had {value} of its {max_size} connections in "
        "use on average over 5 minutes (alert above {limit}). {waiting} wait now.",
        panel="Share of max in use",
    )


def _checkout_timeouts(scope: _Scope) -> Alert:
    timeouts, total = (f(catalog.TIMEOUTS) for f in (scope.promql.rate, scope.promql.increase))
    return Alert(
        name="MongoDBPoolCheckoutTimeouts",
        severity="critical",
        # One timeout is a large share of a quiet pool's few checkouts.
        value=f"{timeouts} / {scope.promql.all_checkouts()} and {total} > 2",
        limit=scope.limits.timeout_share,
        unit="share",
        pending_for="1m",
        summary="{value} of the checkouts of pool {pool} of {process} time out",
        description="{value} of the callers of pool {pool} in {process} ({job}) gave up after "
        "waitQueueTimeoutMS in the last 5 minutes (alert above {limit}): users see errors.",
        panel="Checkouts by outcome",
    )


def _checkout_failures(scope: _Scope) -> Alert:
    failed = f'{OUTCOME}=~"connection_error|pool_closed"'
    failures, total = (
        f"sum without ({OUTCOME}) ({f(catalog.CHECKOUTS, failed)})"
        for f in (scope.promql.rate, scope.promql.increase)
    )
    return Alert(
        name="MongoDBPoolCheckoutFailures",
        severity="critical",
        value=f"{failures} / {scope.promql.all_checkouts()} and {total} > 2",
        limit=scope.limits.timeout_share,
        unit="share",
        pending_for="1m",
        summary="{value} of the checkouts of pool {pool} of {process} fail",
        description="{value} of the callers of pool {pool} in {process} ({job}) got no connection "
        "in the last 5 minutes (alert above {limit}), as none could be opened or the pool was "
        "paused: users see errors.",
        panel="Checkouts by outcome",
    )


def _wait_high(scope: _Scope) -> Alert:
    buckets = scope.promql.rate(catalog.WAIT_SECONDS, part="_bucket")
    return Alert(
        name="MongoDBPoolWaitHigh",
        severity="warning",
        value=f"histogram_quantile(0.99, {buckets})",
        limit=scope.limits.wait_p99_seconds,
        unit="seconds",
        pending_for="5m",
        summary="Callers of pool {pool} of {process} wait {value} (p99) for a connection",
        description="One in a hundred of those who got a connection of pool {pool} in {process} "
        "({job}) waited {value} or longer for it, over 5 minutes (alert above {limit}).",
        panel="Wait time",
    )


def _oldest_waiter(scope: _Scope) -> Alert:
    return Alert(
        name="MongoDBPoolOldestWaiter",
        severity="warning",
        value=f"min_over_time({scope.promql.of(catalog.OLDEST_WAIT)}[1m])",
        limit=scope.limits.oldest_wait_seconds,
        unit="seconds",
        pending_for="30s",
        summary="A caller of pool {pool} of {process} has waited for {value}",
        description="For a minute there was always a caller of pool {pool} in {process} ({job}) "
        "who had waited {value} or longer (alert above {limit}).",
        panel="Oldest wait and longest checkout",
    )


def _checkout_held(scope: _Scope) -> Alert:
    return Alert(
        name="MongoDBPoolCheckoutHeld",
        severity="warning",
        value=scope.promql.of(catalog.LONGEST_CHECKOUT),
        limit=scope.limits.longest_checkout_seconds,
        unit="seconds",
        pending_for="1m",
        summary="A connection of pool {pool} of {process} is out for {value}",
        description="Somebody in {process} ({job}) holds a connection of pool {pool} for {value} "
        "(alert above {limit}): an operation that is slow or hangs, or an exhaust cursor.",
        panel="Oldest wait and longest checkout",
    )


def _connection_storm(scope: _Scope) -> Alert:
    # A pool that only grows opens many connections at once, and closes none.
    closed = f"sum without ({REASON}) ({scope.promql.rate(catalog.CLOSED)})"
    enough = f"{scope.limits.created_per_second / 2:.12g}"
    return Alert(
        name="MongoDBPoolConnectionStorm",
        severity="warning",
        value=f"{scope.promql.rate(catalog.CREATED)} and {closed} > {enough}",
        limit=scope.limits.created_per_second,
        pending_for="2m",
        summary="Pool {pool} of {process} opens {value} connections per second",
        description="Pool {pool} in {process} ({job}) opened {value} connections per second over 5 "
        "minutes (alert above {limit}): they do not live long, and each costs a handshake.",
        panel="Connections opened and closed",
    )


def _paused(scope: _Scope) -> Alert:
    ready, up = (scope.promql.of(metric) for metric in (catalog.READY, catalog.SERVER_UP))
    # An arbiter's pool is never ready; a new member's is not until the member has its data.
    was_ready = f"max_over_time({ready}[1d]) == 1"
    return Alert(
        name="MongoDBPoolPaused",
        severity="critical",
        value=f"(1 - {ready}) and {was_ready} unless on ({', '.join((*PROCESS, POOL))}) {up} == 0",
        limit=0,
        pending_for="1m",
        summary="Pool {pool} of {process} is paused",
        description="Pool {pool} in {process} ({job}) is paused, though its server answers "
        "heartbeats: it takes no operations at the moment.",
        panel="Servers",
    )


def _server_down(scope: _Scope) -> Alert:
    return Alert(
        name="MongoDBServerDown",
        severity="critical",
        value=f"1 - {scope.promql.of(catalog.SERVER_UP)}",
        limit=0,
        pending_for="30s",
        summary="{process} can't reach the server of pool {pool}",
        description="The server of pool {pool} does not answer the heartbeats of {process} "
        "({job}).",
        panel="Servers",
    )


def _telemetry_errors(scope: _Scope) -> Alert:
    errors = scope.promql.of(catalog.TELEMETRY_ERRORS)
    rise = scope.promql.increase(catalog.TELEMETRY_ERRORS, window="15m")
    return Alert(
        name="MongoDBPoolTelemetryErrors",
        severity="warning",
        # A series that begins above 0 has no increase, so its first 15 minutes count as a whole.
        value=f"{rise} > 0 or ({errors} unless {errors} offset 15m)",
        limit=0,
        pending_for="0s",
        summary="The telemetry of pool {pool} of {process} fails",
        description="{value} events of pool {pool} in {process} ({job}) failed in the last 15 "
        "minutes: its numbers may be off. The application is not affected.",
        panel="Telemetry errors",
    )


def _exhaustion_predicted(scope: _Scope) -> Alert:
    promql = scope.promql
    used = f"avg_over_time({promql.in_use()}[10m])"
    # A trend of two hours that still goes on, in a pool that is busy already: so neither noise,
    # nor a step from one level to another, nor a start.
    in_an_hour = promql.share_of_max(f"predict_linear({used}[2h:5m], 3600)")
    still_rising = f"{promql.share_of_max(f'deriv({used}[30m:5m])')} > 0.00001"
    is_busy = f"{promql.share_of_max(used)} > 0.5"
    is_old_enough = f"{promql.of(catalog.MAX_SIZE)} offset 2h"
    return Alert(
        name="MongoDBPoolExhaustionPredicted",
        severity="warning",
        value=f"{in_an_hour} and {still_rising} and {is_busy} and {is_old_enough}",
        limit=1.0,
        unit="share",
        pending_for="10m",
        summary="Pool {pool} of {process} will be full within the hour",
        description="At the pace of the last two hours pool {pool} in {process} ({job}) will have "
        "{value} of its {max_size} connections in use in an hour.",
        panel="Share of max in use",
    )


def _no_data(scope: _Scope) -> Alert:
    now = scope.promql.of(catalog.CLIENT_INFO)
    lately = f"present_over_time({now}[1d])"
    name = json.dumps(scope.job or "any job", ensure_ascii=False)
    return Alert(
        name="MongoDBPoolNoData",
        severity="warning",
        # A job that ended is missed for a day; without any job there is no series to alert for.
        value=f"(count by (job) ({lately}) unless count by (job) ({now})) or "
        f'label_replace(absent({now}) unless on () {lately}, "job", {name}, "", "")',
        limit=0,
        pending_for="5m",
        summary="No pool of {job} reports any more",
        description="No pool of {job} has reported for 5 minutes: its processes ended, or their "
        "metrics do not arrive. Every other alert is blind for it.",
        panel="Health",
    )


_ALERTS: Final[tuple[Callable[[_Scope], Alert], ...]] = (
    _exhausted,
    _nearly_full,
    _full,
    _checkout_timeouts,
    _checkout_failures,
    _wait_high,
    _oldest_waiter,
    _checkout_held,
    _connection_storm,
    _paused,
    _server_down,
    _telemetry_errors,
    _exhaustion_predicted,
    _no_data,
)


def alerts(job: str = "", thresholds: Thresholds | None = None) -> tuple[Alert, ...]:
    """Return all alerts, for the jobs that match a regular expression; empty for every job."""
    where = f"job=~{json.dumps(job, ensure_ascii=False)}" if job else ""
    scope = _Scope(thresholds or Thresholds(), Promql(where), job)
    return tuple(build(scope) for build in _ALERTS)
