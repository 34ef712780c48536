"""The alerts: one small function for each, and the table that lists them in order.

`files` asks for them, and `rule_files` writes them for Prometheus and for Grafana. An alert's limit
comes from `thresholds`, its queries from `promql`. `dashboards/runbooks.md` says what each alert
means and what to do. No file format belongs here.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from pool_telemetry import catalog
from pool_telemetry.monitoring.model import Alert
from pool_telemetry.monitoring.promql import OUTCOME, POOL, PROCESS, REASON, Promql
from pool_telemetry.monitoring.thresholds import Thresholds

_SAME_POOL: Final = f"on ({', '.join((*PROCESS, POOL))})"


@dataclass(frozen=True, slots=True)
class _Scope:
    """The material of each alert: the limits, the queries, and the jobs as the user gave them."""

    limits: Thresholds
    promql: Promql
    job: str


def _exhausted(scope: _Scope) -> Alert:
    now, last_minute = (
        replace(scope.promql, window=window).rate(catalog.EXHAUSTED_SECONDS)
        for window in ("2m", "1m")
    )
    # The pool is exhausted now, was so for much of the window, and callers notice the waits. The
    # queue is meant for bursts, and a small, busy pool normally has waits of a few milliseconds.
    longest_wait = f"max_over_time({scope.promql.of(catalog.OLDEST_WAIT)}[2m])"
    return Alert(
        name="MongoDBPoolExhausted",
        severity="critical",
        value=f"{now} and {last_minute} > 0 and {longest_wait} > 0.1",
        limit=scope.limits.exhausted_share,
        unit="share",
        pending_for="0s",
        summary="Pool {pool} of {process} is exhausted",
        description="All {max_size} connections of pool {pool} in {process} ({job}) were in use, "
        "and callers queued, for {value} of the last 2 minutes (alert above {limit}). Callers "
        "waiting now: {waiting}.",
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
        description="On average over 5 minutes, {value} of the {max_size} connections of pool "
        "{pool} in {process} ({job}) were in use (alert above {limit}). Callers will queue in the "
        "next burst.",
        panel="Share of max in use",
    )


def _full(scope: _Scope) -> Alert:
    # A full pool without a queue is exactly large enough.
    queue = f"avg_over_time({scope.promql.of(catalog.WAITING)}[5m])"
    return Alert(
        name="MongoDBPoolFull",
        severity="critical",
        value=f"{scope.promql.average_share_of_max()} and {queue} > 0.5",
        limit=scope.limits.in_use_critical,
        unit="share",
        pending_for="2m",
        summary="Pool {pool} of {process} is full: {value} in use",
        description="On average over 5 minutes, {value} of the {max_size} connections of pool "
        "{pool} in {process} ({job}) were in use (alert above {limit}). Callers waiting now: "
        "{waiting}.",
        panel="Share of max in use",
    )


def _checkout_timeouts(scope: _Scope) -> Alert:
    timeouts, total = (f(catalog.TIMEOUTS) for f in (scope.promql.rate, scope.promql.increase))
    return Alert(
        name="MongoDBPoolCheckoutTimeouts",
        severity="critical",
        # In a quiet pool with few checkouts, a single timeout would exceed the share.
        value=f"{timeouts} / {scope.promql.all_checkouts()} and {total} > 2",
        limit=scope.limits.timeout_share,
        unit="share",
        pending_for="1m",
        summary="{value} of the checkouts from pool {pool} of {process} time out",
        description="Over the last 5 minutes, {value} of the checkouts from pool {pool} in "
        "{process} ({job}) timed out after waitQueueTimeoutMS (alert above {limit}). Users see "
        "these errors.",
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
        summary="{value} of the checkouts from pool {pool} of {process} fail",
        description="Over the last 5 minutes, {value} of the checkouts from pool {pool} in "
        "{process} ({job}) failed because no connection could be opened or the pool was paused "
        "(alert above {limit}). Users see these errors.",
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
        description="Over the last 5 minutes, 1 in 100 checkouts from pool {pool} in {process} "
        "({job}) took {value} or longer (alert above {limit}).",
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
        summary="A caller of pool {pool} of {process} has waited {value} for a connection",
        description="Throughout the last minute, some caller of pool {pool} in {process} ({job}) "
        "had waited {value} or longer for a connection (alert above {limit}).",
        panel="Oldest wait and longest checkout",
    )


def _nobody_served(scope: _Scope) -> Alert:
    # Callers can't be served while the server is down or PyMongo stands still: one alert each.
    is_down = f"{scope.promql.of(catalog.SERVER_UP)} == 0"
    is_silent = f"{scope.promql.of(catalog.SERVER_SILENCE)} > 0"
    unserved = scope.promql.of(catalog.UNSERVED)
    return Alert(
        name="MongoDBPoolNobodyServed",
        severity="critical",
        value=f"{unserved} unless {_SAME_POOL} ({is_down} or {is_silent})",
        limit=scope.limits.unserved_seconds,
        unit="seconds",
        pending_for="30s",
        summary="Pool {pool} of {process} has served no caller for {value}",
        description="Callers asked pool {pool} in {process} ({job}) for connections, and none got "
        "one for {value} (alert above {limit}), although the server answers heartbeats. Callers "
        "waiting now: {waiting}.",
        panel="Nobody served",
    )


def _checkout_held(scope: _Scope) -> Alert:
    return Alert(
        name="MongoDBPoolCheckoutHeld",
        severity="warning",
        value=scope.promql.of(catalog.LONGEST_CHECKOUT),
        limit=scope.limits.longest_checkout_seconds,
        unit="seconds",
        pending_for="1m",
        summary="A connection of pool {pool} of {process} has been checked out for {value}",
        description="A caller in {process} ({job}) has held a connection of pool {pool} for "
        "{value} (alert above {limit}). Its operation is slow or hangs, or it keeps an exhaust "
        "cursor open.",
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
        description="Over the last 5 minutes, pool {pool} in {process} ({job}) opened {value} "
        "connections per second (alert above {limit}) and closed others. Each new connection "
        "costs a handshake.",
        panel="Connections opened and closed",
    )


def _paused(scope: _Scope) -> Alert:
    ready, up = (scope.promql.of(metric) for metric in (catalog.READY, catalog.SERVER_UP))
    # An arbiter's pool is never ready; a new member's is not until the member has its data.
    was_ready = f"max_over_time({ready}[1d]) == 1"
    return Alert(
        name="MongoDBPoolPaused",
        severity="critical",
        value=f"(1 - {ready}) and {was_ready} unless {_SAME_POOL} {up} == 0",
        limit=0,
        pending_for="1m",
        summary="Pool {pool} of {process} is paused",
        description="Pool {pool} in {process} ({job}) is paused although its server answers "
        "heartbeats. The pool takes no operations.",
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


def _no_server_fits(scope: _Scope) -> Alert:
    promql = scope.promql
    up = promql.of(catalog.SERVER_UP)
    waiting = promql.of(catalog.SELECTION_WAITING)
    waits = f"{promql.of(catalog.SELECTION_OLDEST_WAIT)} > {scope.limits.unserved_seconds:.12g}"
    failed = f"round({promql.increase(catalog.SELECTION_FAILURES)})"
    # Callers that failed while all servers were down still count in `failed` after the outage.
    down, down_lately = (f"{promql.by_client(f)} == 0" for f in (up, f"min_over_time({up}[5m])"))
    return Alert(
        name="MongoDBNoServerFits",
        severity="critical",
        # An increase outlives its process; added to a gauge, it ends with the process.
        value=f"({waiting} + {failed}) and (({waits} unless {_SAME_POOL} {down}) "
        f"or ({failed} > 0 unless {_SAME_POOL} {down_lately}))",
        limit=0,
        pending_for="30s",
        summary="No server fits the operations of client '{pool}' in {process}",
        description="Callers of client '{pool}' in {process} ({job}) that wait in server selection "
        "or failed there in the last 5 minutes: {value}. The set has no primary, no server matches "
        "the operations, or the client has no server left. Users see errors.",
        panel="Server selection",
    )


def _driver_silent(scope: _Scope) -> Alert:
    return Alert(
        name="MongoDBDriverSilent",
        severity="critical",
        value=scope.promql.of(catalog.SERVER_SILENCE),
        limit=0,
        unit="seconds",
        pending_for="30s",
        summary="PyMongo stands still in {process}: its monitor for pool {pool} is silent",
        description="PyMongo's monitor of the server of pool {pool} in {process} ({job}) has "
        "published nothing for {value}. The event loop is blocked, or threads are deadlocked. "
        "Callers are probably not served.",
        panel="Silence and standstill",
    )


def _telemetry_errors(scope: _Scope) -> Alert:
    errors = scope.promql.of(catalog.TELEMETRY_ERRORS)
    rise = scope.promql.increase(catalog.TELEMETRY_ERRORS, window="15m")
    return Alert(
        name="MongoDBPoolTelemetryErrors",
        severity="warning",
        # PromQL sees no increase in a series that begins above 0: its first value counts instead.
        value=f"{rise} > 0 or ({errors} unless {errors} offset 15m)",
        limit=0,
        pending_for="0s",
        summary="The telemetry of pool {pool} of {process} fails",
        description="In the last 15 minutes, pool_telemetry failed to process {value} events of "
        "pool {pool} in {process} ({job}). The metrics may be wrong; the application is fine.",
        panel="Telemetry errors",
    )


def _exhaustion_predicted(scope: _Scope) -> Alert:
    promql = scope.promql
    used = f"avg_over_time({promql.in_use()}[10m])"
    # Four conditions, so that noise, a step to another level, and a start are no trend.
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
        description="At the pace of the last two hours, pool {pool} in {process} ({job}) will "
        "need {value} of its {max_size} connections in an hour.",
        panel="Share of max in use",
    )


def _no_data(scope: _Scope) -> Alert:
    now = scope.promql.of(catalog.CLIENT_INFO)
    lately = f"present_over_time({now}[1d])"
    name = json.dumps(scope.job or "any job", ensure_ascii=False)
    return Alert(
        name="MongoDBPoolNoData",
        severity="warning",
        # A job that stopped is reported for a day; if none ever reported, the label is made here.
        value=f"(count by (job) ({lately}) unless count by (job) ({now})) or "
        f'label_replace(absent({now}) unless on () {lately}, "job", {name}, "", "")',
        limit=0,
        pending_for="5m",
        summary="No pool of {job} reports metrics any more",
        description="No pool of {job} has reported metrics for 5 minutes. Its processes ended, or "
        "their metrics do not arrive. No other alert can fire for it.",
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
    _nobody_served,
    _checkout_held,
    _connection_storm,
    _paused,
    _server_down,
    _no_server_fits,
    _driver_silent,
    _telemetry_errors,
    _exhaustion_predicted,
    _no_data,
)


def alerts(job: str = "", thresholds: Thresholds | None = None) -> tuple[Alert, ...]:
    """Return all alerts, for the jobs that match the regular expression `job`; empty for all."""
    where = f"job=~{json.dumps(job, ensure_ascii=False)}" if job else ""
    scope = _Scope(thresholds or Thresholds(), Promql(where), job)
    return tuple(build(scope) for build in _ALERTS)
