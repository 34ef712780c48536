"""A client with something of everything, at a time that stands still: exporters show it whole."""

import datetime
from typing import Any

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
    PoolCreatedEvent,
    PoolReadyEvent,
    ServerHeartbeatSucceededEvent,
)

from pool_telemetry import PoolTelemetry, TelemetryOptions, owner, registry

ADDRESS = ("db.example", 27017)


class Clock:
    now = 128.0  # and steps of powers of two, so that every number is exact

    def __call__(self) -> float:
        return self.now


def replay() -> tuple[PoolTelemetry, Any]:
    """A client with something of everything, at a time that stands still.

    The listeners have to be held, as a client does.
    """
    clock = Clock()
    registry._by_wanted.pop("golden", None)  # of this process, which has made others before
    options = TelemetryOptions(name="golden", owner_metrics=True, watch=False)
    telemetry = PoolTelemetry(options=options, clock=clock)
    pool, heartbeat, command = telemetry.listeners
    pool.pool_created(PoolCreatedEvent(ADDRESS, {"maxPoolSize": 2, "minPoolSize": 1}))
    pool.pool_ready(PoolReadyEvent(ADDRESS))
    pool.pool_cleared(PoolClearedEvent(ADDRESS))
    pool.pool_ready(PoolReadyEvent(ADDRESS))
    reply: Any = None
    heartbeat.succeeded(ServerHeartbeatSucceededEvent(0.0015, reply, ADDRESS))
    for conn_id in (1, 2, 3):
        pool.connection_created(ConnectionCreatedEvent(ADDRESS, conn_id))
        clock.now += 0.03125
        pool.connection_ready(ConnectionReadyEvent(ADDRESS, conn_id, 0.001))
    pool.connection_closed(ConnectionClosedEvent(ADDRESS, 3, "idle"))
    for conn_id, wait in ((1, 0.00006), (2, 0.3)):
        with owner("page"):
            pool.connection_check_out_started(ConnectionCheckOutStartedEvent(ADDRESS))
        pool.connection_checked_out(ConnectionCheckedOutEvent(ADDRESS, conn_id, wait))
    pool.connection_check_out_started(ConnectionCheckOutStartedEvent(ADDRESS))
    clock.now += 2.5
    pool.connection_check_out_failed(ConnectionCheckOutFailedEvent(ADDRESS, "timeout", 2.5))
    pool.connection_checked_in(ConnectionCheckedInEvent(ADDRESS, 1))
    body = {"find": "orders"}
    took = datetime.timedelta(milliseconds=4)
    for request_id in (1, 2):
        command.started(CommandStartedEvent(body, "shop", request_id, ADDRESS, None))
    command.succeeded(CommandSucceededEvent(took, {}, "find", 1, ADDRESS, None))
    command.failed(CommandFailedEvent(took, {"code": 50}, "find", 2, ADDRESS, None))
    pool.connection_check_out_started(ConnectionCheckOutStartedEvent(ADDRESS))
    pool.connection_checked_out(ConnectionCheckedOutEvent(ADDRESS, 1, 0.0))
    pool.connection_check_out_started(ConnectionCheckOutStartedEvent(ADDRESS))
    clock.now += 0.03125
    return telemetry, (pool, heartbeat, command)
