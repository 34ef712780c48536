"""A MongoDB server as a source: its connections, its operations, and how fast it answers."""

import contextlib
import operator
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pymongo
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError, ServerSelectionTimeoutError

from pool_telemetry.cli.prometheus_text import MAX_VALUE
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
_NO_SERVER: Final = (
    "does not answer as a MongoDB server does: check that the address is that of one"
)


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


def _ask_server(uri: str, seconds: float) -> ServerFacts:
    telemetry = PoolTelemetry(options=TelemetryOptions(watch=False))
    # Without a limit, also of close(), a server that was stopped meanwhile would hold the command
    # forever. The measurement itself sleeps for `seconds`.
    limit = pymongo.timeout(seconds + DEADLINE_SECONDS)
    with (
        _quiet_monitor() as errors,
        limit,
        _client(uri, telemetry) as client,
    ):
        try:
            return _measure(client, telemetry, seconds)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            raise SourceError(f"{mask_uri(uri)} {_NO_SERVER}") from None
        except PyMongoError:
            if errors:
                raise SourceError(f"{mask_uri(uri)} {_NO_SERVER}") from None
            raise


def _client(uri: str, telemetry: PoolTelemetry) -> MongoClient[dict[str, Any]]:
    with warnings.catch_warnings(action="ignore"):  # each has the path of PyMongo's source
        return MongoClient(
            uri,
            appname="pool-telemetry",
            maxPoolSize=1,
            connectTimeoutMS=int(REACH_SECONDS * 1e3),  # also that of an SRV record's look-up
            event_listeners=telemetry.listeners,
        )


@contextlib.contextmanager
def _quiet_monitor() -> Iterator[list[str]]:
    """Print no traceback of PyMongo's monitor, which an odd `hello` ends; yield a list of them."""
    errors, hook = list[str](), threading.excepthook

    def note(ended: threading.ExceptHookArgs) -> None:
        if ended.thread and ended.thread.name.startswith("pymongo_"):
            errors.append(ended.exc_type.__name__)
        else:
            hook(ended)

    threading.excepthook = note
    try:
        yield errors
    finally:
        threading.excepthook = hook


def _measure(
    client: MongoClient[dict[str, Any]], telemetry: PoolTelemetry, seconds: float
) -> ServerFacts:
    with pymongo.timeout(REACH_SECONDS):  # it overrides serverSelectionTimeoutMS
        client.admin.command("ping")
    pings = []
    for _ in range(_PINGS):
        began = time.monotonic()
        client.admin.command("ping")
        pings.append(time.monotonic() - began)
    before, began = Status.of(client.admin.command("serverStatus")), time.monotonic()
    time.sleep(seconds)
    after, took = Status.of(client.admin.command("serverStatus")), time.monotonic() - began
    pool = max(telemetry.stats().pools, key=lambda pool: pool.use_time.count)
    if has_restarted(before, after):
        raise SourceError(f"{pool.address} restarted during the measurement: run the command again")
    operations = after.operations - before.operations
    counted = after.commands - before.commands
    return ServerFacts(
        address=pool.address,
        ping_seconds=sorted(pings)[_PINGS // 2],
        open_seconds=pool.create_time.mean or 0.0,
        current=after.current,
        limit=after.current + after.available if after.available else None,
        opened_per_second=(after.created - before.created) / took,
        # One operation is the first `serverStatus` itself.
        operations_per_second=max(0, (operations or counted) - 1) / took,
        operation_seconds=(after.latency - before.latency) / operations / 1e6
        if operations
        else None,
    )


@dataclass(frozen=True, slots=True)
class Status:
    """What `serverStatus` reports: counters since the server started, and its connections now.

    Attributes:
        created: The connections that were opened.
        commands: The commands by `opcounters`, which every server has.
        operations: The operations by `opLatencies`; 0 when the server does not report them.
        latency: The total time of these, in microseconds.
    """

    uptime: int
    current: int
    available: int
    created: int
    commands: int
    operations: int
    latency: int

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> "Status":
        """Return what a server answered.

        Raises:
            LookupError, TypeError, ValueError: It is not what a MongoDB server reports.
        """
        connections, latencies = answer["connections"], answer.get("opLatencies", {}).values()
        # MongoDB 5 and 6 also have the document `deprecated` in opcounters.
        commands = (one for one in answer["opcounters"].values() if not isinstance(one, Mapping))
        return cls(
            uptime=_count(answer.get("uptime", 0)),
            current=_count(connections.get("current", 0)),
            available=_count(connections.get("available", 0)),
            created=_count(connections.get("totalCreated", 0)),
            commands=sum(map(_count, commands)),
            operations=sum(_count(kind["ops"]) for kind in latencies),
            latency=sum(_count(kind["latency"]) for kind in latencies),
        )


def _count(value: Any) -> int:
    if not isinstance(value, int | float):
        raise TypeError
    if not 0 <= value <= MAX_VALUE:  # nor is a value that is no number
        raise ValueError
    return int(value)


def has_restarted(before: Status, after: Status) -> bool:
    """Return whether a counter fell between two answers to `serverStatus`."""
    counters = operator.attrgetter("uptime", "created", "commands", "operations", "latency")
    return any(map(operator.lt, counters(after), counters(before)))
