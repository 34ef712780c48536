"""Real PyMongo event objects, delivered to our listeners."""

import asyncio
import datetime
import gc
import json
import logging
import threading
import weakref
from typing import Any
from unittest import mock

import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from pymongo import monitoring
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandStartedEvent,
    CommandSucceededEvent,
    ConnectionCheckedInEvent,
    ConnectionCheckedOutEvent,
    ConnectionCheckOutFailedEvent,
    ConnectionCheckOutStartedEvent,
    ConnectionClosedEvent,
    ConnectionCreatedEvent,
    ConnectionReadyEvent,
    PoolClearedEvent,
    PoolClosedEvent,
    PoolCreatedEvent,
    PoolReadyEvent,
    ServerHeartbeatFailedEvent,
    ServerHeartbeatSucceededEvent,
)

from pool_telemetry import PoolTelemetry, TelemetryOptions, assess, prometheus
from pool_telemetry.stats import PoolStats
from tests.support import logged, unmeasured

ADDRESS = ("db.example", 27017)


class Replay:
    """One telemetry and its listeners, as a client would hold them."""

    def __init__(self, name: str = "replay", **options: Any) -> None:
        self.telemetry = PoolTelemetry(name, options=TelemetryOptions(**options))
        self.listeners = self.telemetry.listeners
        self.pool: Any = self.one(monitoring.ConnectionPoolListener)
        self.heartbeat: Any = self.one(monitoring.ServerHeartbeatListener)
        self.pool.pool_created(PoolCreatedEvent(ADDRESS, {"maxPoolSize": 2, "minPoolSize": 1}))
        self.pool.pool_ready(PoolReadyEvent(ADDRESS))

    def one(self, kind: type[Any]) -> Any:
        return next(one for one in self.listeners if isinstance(one, kind))

    @property
    def commands(self) -> Any:
        return self.one(monitoring.CommandListener)

    def stats(self) -> PoolStats:
        (stats,) = self.telemetry.stats().pools
        return stats

    def command(self, body: dict[str, Any], *, error: dict[str, Any] | None = None) -> None:
        name, took = next(iter(body)), datetime.timedelta(milliseconds=2)
        self.commands.started(CommandStartedEvent(body, "shop", 1, ADDRESS, 1))
        if error is None:
            self.commands.succeeded(CommandSucceededEvent(took, {"ok": 1}, name, 1, ADDRESS, 1))
        else:
            self.commands.failed(CommandFailedEvent(took, error, name, 1, ADDRESS, 1))


def test_every_pool_event_reaches_the_state() -> None:
    replay = Replay()
    pool = replay.pool
    assert (replay.stats().max_size, replay.stats().min_size) == (2, 1)
    pool.connection_created(ConnectionCreatedEvent(ADDRESS, 1))
    assert replay.stats().opening == 1
    pool.connection_ready(ConnectionReadyEvent(ADDRESS, 1, 0.001))
    pool.connection_check_out_started(ConnectionCheckOutStartedEvent(ADDRESS))
    assert replay.stats().waiting == 1
    pool.connection_checked_out(ConnectionCheckedOutEvent(ADDRESS, 1, 0.25))
    assert (replay.stats().in_use, replay.stats().wait_time.sum) == (1, 0.25)
    pool.connection_checked_in(ConnectionCheckedInEvent(ADDRESS, 1))
    for reason in ("timeout", "poolClosed", "connectionError", "newer"):
        pool.connection_check_out_started(ConnectionCheckOutStartedEvent(ADDRESS))
        pool.connection_check_out_failed(ConnectionCheckOutFailedEvent(ADDRESS, reason, 0.1))
    assert replay.stats().checkouts == {
        "ok": 1,
        "timeout": 1,
        "pool_closed": 1,
        "connection_error": 2,
        "cancelled": 0,
    }
    pool.pool_cleared(PoolClearedEvent(ADDRESS, service_id=ObjectId()))
    assert replay.stats().phase == "ready"
    pool.pool_cleared(PoolClearedEvent(ADDRESS))
    assert (replay.stats().phase, replay.stats().cleared) == ("paused", 2)
    for conn_id, reason in enumerate(("stale", "idle", "error", "poolClosed", "newer"), start=1):
        pool.connection_created(ConnectionCreatedEvent(ADDRESS, conn_id))
        pool.connection_closed(ConnectionClosedEvent(ADDRESS, conn_id, reason))
    assert replay.stats().closed == {"stale": 1, "idle": 1, "error": 2, "pool_closed": 1}
    pool.pool_closed(PoolClosedEvent(ADDRESS))
    assert replay.stats().phase == "closed"
    assert replay.telemetry.stats().telemetry_errors == 0


@pytest.mark.parametrize(
    ("options", "sizes"),
    [({}, (100, 0)), ({"maxPoolSize": float("inf")}, (None, 0)), ({"maxPoolSize": 0}, (None, 0))],
)
def test_what_the_event_does_not_name_is_pymongos_default(
    options: dict[str, Any], sizes: tuple[int | None, int]
) -> None:
    replay = Replay()
    replay.pool.pool_closed(PoolClosedEvent(ADDRESS))
    replay.pool.pool_created(PoolCreatedEvent(ADDRESS, options))
    assert (replay.stats().max_size, replay.stats().min_size) == sizes


def test_all_eleven_methods_are_defined() -> None:
    ours = vars(type(Replay().pool))
    wanted = {name for name in vars(monitoring.ConnectionPoolListener) if name[0] != "_"}
    assert len(wanted) == 11
    assert wanted <= ours.keys()


def test_heartbeats_reach_the_state_and_awaited_ones_are_no_round_trip() -> None:
    replay = Replay()
    reply: Any = object()
    replay.heartbeat.succeeded(ServerHeartbeatSucceededEvent(0.002, reply, ADDRESS, awaited=False))
    replay.heartbeat.succeeded(ServerHeartbeatSucceededEvent(10.0, reply, ADDRESS, awaited=True))
    assert (replay.stats().up, replay.stats().rtt) == (True, 0.002)
    error = ConnectionError("db.example:27017 said secret things")
    replay.heartbeat.failed(ServerHeartbeatFailedEvent(0.1, error, ADDRESS))
    assert (replay.stats().up, replay.stats().down_reason) == (False, "ConnectionError")


def test_events_of_an_unknown_server_count_nowhere() -> None:
    replay = Replay()
    replay.pool.connection_created(ConnectionCreatedEvent(("elsewhere", 1), 1))
    assert len(replay.telemetry.stats().pools) == 1
    assert replay.telemetry.stats().telemetry_errors == 0


@pytest.mark.parametrize(
    ("body", "collection"),
    [
        ({"find": "orders", "filter": {"card": "4111"}}, "orders"),
        ({"getMore": 77, "collection": "orders"}, "orders"),
        ({"aggregate": 1, "pipeline": []}, ""),
        ({"createUser": "bob", "pwd": "secret"}, ""),
        ({"grantRolesToUser": "bob"}, ""),
        ({"ping": 1}, ""),
    ],
)
def test_only_the_names_of_collections_become_labels(body: dict[str, Any], collection: str) -> None:
    replay = Replay()
    replay.command(body)
    (series,) = replay.telemetry.stats().operations
    assert (series.operation, series.collection) == (next(iter(body)), collection)
    assert (series.namespace, series.host, series.error_type) == ("shop", "db.example", "")
    assert series.duration.sum == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("failure", "error_type", "status"),
    [
        ({"code": 11000, "codeName": "DuplicateKey", "errmsg": "dup: 4111"}, "11000", "11000"),
        ({"errmsg": "gone", "errtype": "AutoReconnect"}, "AutoReconnect", ""),
        ({"errmsg": "odd"}, "_OTHER", ""),
    ],
)
def test_a_failure_is_named_by_its_code_or_its_class(
    failure: dict[str, Any], error_type: str, status: str
) -> None:
    replay = Replay()
    replay.command({"insert": "orders"}, error=failure)
    (series,) = replay.telemetry.stats().operations
    assert (series.error_type, series.status_code) == (error_type, status)
    live = replay.telemetry.live_stats()["operations"]["insert"]
    assert (live["count"], live["errors"]) == (1, 1)


def test_errors_of_an_overloaded_server_are_marked() -> None:
    replay = Replay()
    labels = ["SystemOverloadedError", "RetryableError"]
    replay.command({"find": "orders"}, error={"code": 462, "errorLabels": labels})
    replay.command({"find": "orders"}, error={"code": 91, "errorLabels": ["RetryableWriteError"]})
    marked = {one.error_type: one.overloaded for one in replay.telemetry.stats().operations}
    assert marked == {"462": True, "91": False}


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt, GeneratorExit])
def test_an_interrupted_caller_has_not_failed(kind: type[BaseException]) -> None:
    """PyMongo publishes a failure while it handles its exception."""
    replay = Replay()
    try:
        raise kind
    except kind:
        replay.pool.connection_check_out_started(ConnectionCheckOutStartedEvent(ADDRESS))
        failed = ConnectionCheckOutFailedEvent(ADDRESS, "connectionError", 0.1)
        replay.pool.connection_check_out_failed(failed)
        replay.command({"find": "orders"}, error={"errmsg": "", "errtype": kind.__name__})
        try:
            raise OSError
        except OSError:
            replay.command({"count": "orders"}, error={"errmsg": "", "errtype": "OSError"})
    assert replay.stats().checkouts["cancelled"] == 1
    assert replay.stats().checkouts["connection_error"] == 0
    cancelled, failed_ones = replay.telemetry.stats().operations
    assert (cancelled.error_type, failed_ones.error_type) == ("cancelled", "OSError")


def test_without_operations_no_command_listener_is_registered() -> None:
    listeners = PoolTelemetry(options=TelemetryOptions(operations=False)).listeners
    assert len(listeners) == 2
    assert not any(isinstance(one, monitoring.CommandListener) for one in listeners)


def test_a_command_document_is_not_kept() -> None:
    class Document(dict[str, Any]):
        pass

    replay = Replay()
    body = Document(find="orders", filter={"card": "4111"})
    kept = weakref.ref(body)
    replay.commands.started(CommandStartedEvent(body, "shop", 1, ADDRESS, 1))
    del body
    gc.collect()
    assert kept() is None


def test_a_bug_of_ours_is_logged_once_counted_and_hurts_nobody(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = Replay("buggy")
    broken: Any = object()  # an event without any of its properties
    listeners: list[tuple[Any, type[Any]]] = [
        (replay.pool, monitoring.ConnectionPoolListener),
        (replay.commands, monitoring.CommandListener),
        (replay.heartbeat, monitoring.ServerHeartbeatListener),
    ]
    calls = 0
    with caplog.at_level(logging.ERROR, logger="pool_telemetry"):
        for listener, kind in listeners:
            for name in vars(kind):
                if name[0] != "_":
                    getattr(listener, name)(broken)
                    calls += 1
    assert calls == 11 + 3 + 3
    assert replay.telemetry.stats().telemetry_errors == calls
    assert len(logged(caplog, "pool 'buggy'")) == 1


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.lists(st.none()),
    st.just({}),
)


@unmeasured()
@given(st.data())
def test_malformed_events_hurt_neither_the_application_nor_readers(data: st.DataObject) -> None:
    """Every property of an event may be anything; the numbers may be off, but they can be read."""
    replay = Replay("odd")
    registry = CollectorRegistry()
    for listener, kind in (
        (replay.pool, monitoring.ConnectionPoolListener),
        (replay.commands, monitoring.CommandListener),
        (replay.heartbeat, monitoring.ServerHeartbeatListener),
    ):
        for name in vars(kind):
            if name[0] != "_":
                event = MagicEvent({"address": ADDRESS, "connection_id": ADDRESS}, data.draw)
                getattr(listener, name)(event)
    json.dumps(replay.telemetry.live_stats())
    assess(replay.telemetry.stats())
    stats = [replay.telemetry.stats()]
    with mock.patch.object(prometheus, "clients_to_report", return_value=stats):
        prometheus.register(registry)
        prometheus.generate(registry=registry)


class MagicEvent:
    """Has every property, with a good value or an odd one."""

    def __init__(self, good: dict[str, Any], draw: Any) -> None:
        self._good, self._draw = good, draw

    def __getattr__(self, name: str) -> Any:
        return self._draw(st.just(self._good[name]) | odd if name in self._good else odd)


def test_an_event_that_is_odd_changes_nothing_by_halves() -> None:
    replay = Replay("halves")
    replay.pool.connection_created(ConnectionCreatedEvent(ADDRESS, 1))
    replay.pool.connection_ready(ConnectionReadyEvent(ADDRESS, 1, 0.1))
    replay.pool.connection_check_out_started(ConnectionCheckOutStartedEvent(ADDRESS))
    before = replay.telemetry.stats()
    odd: list[tuple[Any, Any]] = [
        (replay.pool.connection_checked_out, ConnectionCheckedOutEvent(ADDRESS, 1, "soon")),  # type: ignore[arg-type]  # odd it is
        (replay.pool.connection_checked_out, ConnectionCheckedOutEvent(ADDRESS, [], 0.1)),  # type: ignore[arg-type]  # odd it is
        (replay.pool.connection_created, ConnectionCreatedEvent(ADDRESS, [])),  # type: ignore[arg-type]  # odd it is
        (replay.pool.connection_closed, ConnectionClosedEvent(ADDRESS, 1, [])),  # type: ignore[arg-type]  # odd it is
        (replay.pool.pool_created, PoolCreatedEvent(("other", 1), {"maxPoolSize": -1})),
        (replay.pool.pool_created, PoolCreatedEvent(("other", 1), {"maxPoolSize": 10**400})),
        *(
            (replay.heartbeat.succeeded, ServerHeartbeatSucceededEvent(seconds, {}, ADDRESS))  # type: ignore[arg-type]  # no reply is read
            for seconds in (float("nan"), float("inf"), -5.0)
        ),
        (replay.pool.pool_created, PoolCreatedEvent(("other", 1), {"minPoolSize": -1})),
    ]
    for publish, event in odd:
        publish(event)
    after = replay.telemetry.stats()
    assert after.telemetry_errors == len(odd)
    (pool,), (was,) = after.pools, before.pools
    for name in (
        "rtt",
        "up",
        "size",
        "in_use",
        "opening",
        "waiting",
        "checkouts",
        "created",
        "closed",
    ):
        assert getattr(pool, name) == getattr(was, name), name
    assert pool.wait_time == was.wait_time


def test_a_finalizer_may_publish_while_an_event_is_handled() -> None:
    """A garbage collection inside our lock can run anything, on the same thread."""
    replay = Replay()
    (state,) = replay.telemetry._pools.values()
    done = threading.Event()

    def reenter() -> None:
        with state._lock:
            replay.pool.connection_created(ConnectionCreatedEvent(ADDRESS, 1))
            replay.pool.connection_closed(ConnectionClosedEvent(ADDRESS, 1, "idle"))
            replay.telemetry.stats()
        done.set()

    thread = threading.Thread(target=reenter, daemon=True)
    thread.start()
    assert done.wait(10), "an event inside an event waits for itself"
    thread.join()
