"""A MongoDB server as a source: its connections, its operations, and how fast it answers."""

import operator
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pymongo
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError, ServerSelectionTimeoutError

from pool_telemetry.cli.sources.http import DEADLINE_SECONDS, SourceError
from pool_telemetry.diagnosis import Diagnosis, Finding
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.telemetry import PoolTelemetry
from pool_telemetry.uri import check_credentials, mask_uri, without_secrets

REACH_SECONDS: Final = 5.0
"""A server that does not answer within this time, in seconds, is reported as unreachable."""
_MAX_CAUSE: Final = 300
_PINGS: Final = 20
_AUTHENTICATION_CODES: Final = (18, 8000)
_LATENCY_FIELDS: Final = ("ops", "latency")


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The report of a MongoDB server about itself, and how fast it answers this machine.

    Attributes:
        address: `host:port`.
        ping_seconds: The median of several round trips.
        open_seconds: The mean time to open a connection, including the handshake.
        current: The open connections of the server.
        limit: The connections that the server accepts; None when it does not report that.
        opened_per_second: New connections per second, of all clients.
        operations_per_second: Operations per second, of all clients.
        operation_seconds: The mean time of an operation; None when the server does not report it.
    """

    address: str
    ping_seconds: float
    open_seconds: float
    current: int
    limit: int | None
    opened_per_second: float
    operations_per_second: float
    operation_seconds: float | None


def ask_server(uri: str, seconds: float) -> ServerFacts | Diagnosis:
    """Return the facts of a server, or a diagnosis when no server can be reached.

    Args:
        uri: A connection string.
        seconds: The time between the two answers that are compared.

    Raises:
        SourceError: The connection string is invalid, or the server refuses access.
        PoolConfigurationError: The user name or password is not escaped.
    """
    check_credentials(uri)
    try:
        with without_secrets(uri, {}):
            return _ask_server(uri, seconds)
    except ServerSelectionTimeoutError as error:
        cause = str(error).partition(" (configured timeouts:")[0].partition(", Timeout:")[0]
        unreachable = Finding(
            id="server_unreachable.down",
            verdict="server unreachable",
            severity="critical",
            pool=mask_uri(uri),
            because=f"No server answered within {REACH_SECONDS:g} s ({cause[:_MAX_CAUSE]}).",
            advice="Check that the server runs and that the network and the address are right.",
        )
        return Diagnosis((unreachable,))
    except OperationFailure as error:
        advice = (
            "check the user name, the password and authSource"
            if error.code in _AUTHENTICATION_CODES
            else "use a user that has the role clusterMonitor"
        )
        message = f"{mask_uri(uri)} refuses access (code {error.code}): {advice}"
        raise SourceError(message) from None
    except (PyMongoError, OSError, TypeError, ValueError) as error:
        if isinstance(error, PyMongoError) and error.timeout:
            raise SourceError(
                f"{mask_uri(uri)} did not answer in time ({DEADLINE_SECONDS:g} s): its process "
                "may be stopped or overloaded"
            ) from None
        raise SourceError(f"{mask_uri(uri)} can't be used: {error}") from None
    except (AttributeError, LookupError):
        raise SourceError(f"{mask_uri(uri)} does not report what a MongoDB server does") from None


def _ask_server(uri: str, seconds: float) -> ServerFacts:
    telemetry = PoolTelemetry(options=TelemetryOptions(watch=False))
    # Without a limit, also of close(), a server that was stopped meanwhile would hold the command
    # forever. The measurement itself sleeps for `seconds`.
    limit = pymongo.timeout(seconds + DEADLINE_SECONDS)
    with (
        limit,
        MongoClient[dict[str, Any]](
            uri,
            appname="pool-telemetry",
            maxPoolSize=1,
            connectTimeoutMS=int(REACH_SECONDS * 1e3),  # also that of an SRV record's look-up
            event_listeners=telemetry.listeners,
        ) as client,
    ):
        with pymongo.timeout(REACH_SECONDS):  # it overrides serverSelectionTimeoutMS
            client.admin.command("ping")
        pings = []
        for _ in range(_PINGS):
            began = time.monotonic()
            client.admin.command("ping")
            pings.append(time.monotonic() - began)
        before, began = client.admin.command("serverStatus"), time.monotonic()
        time.sleep(seconds)
        after, took = client.admin.command("serverStatus"), time.monotonic() - began
        pool = max(telemetry.stats().pools, key=lambda pool: pool.use_time.count)
    if has_restarted(before, after):
        raise SourceError(f"{pool.address} restarted during the measurement: run the command again")
    current, available = (after["connections"].get(key, 0) for key in ("current", "available"))
    operations, spent = (_latencies(after, f) - _latencies(before, f) for f in _LATENCY_FIELDS)
    counted = sum(after["opcounters"].values()) - sum(before["opcounters"].values())
    opened = (one["connections"].get("totalCreated", 0) for one in (after, before))
    return ServerFacts(
        address=pool.address,
        ping_seconds=sorted(pings)[_PINGS // 2],
        open_seconds=pool.create_time.mean or 0.0,
        current=current,
        limit=current + available if available else None,
        opened_per_second=operator.sub(*opened) / took,
        # One operation is the first `serverStatus` itself.
        operations_per_second=max(0, (operations or counted) - 1) / took,
        operation_seconds=spent / operations / 1e6 if operations else None,
    )


def has_restarted(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return whether a counter fell between two answers to `serverStatus`."""

    def counters(status: Mapping[str, Any]) -> list[float]:
        opened = status["connections"].get("totalCreated", 0)
        commands = sum(status["opcounters"].values())
        latencies = (_latencies(status, field) for field in _LATENCY_FIELDS)
        return [status.get("uptime", 0), opened, commands, *latencies]

    return any(map(operator.lt, counters(after), counters(before)))


def _latencies(status: Mapping[str, Any], field: str) -> int:
    """Return the count, or the total microseconds, of all operations since the server started."""
    return sum(kind[field] for kind in status.get("opLatencies", {}).values())
