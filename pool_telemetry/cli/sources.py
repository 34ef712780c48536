"""Where the command line has its numbers from: a service's endpoint, a Prometheus, a server.

Only what the user named is asked, and what goes wrong is a SourceError of one line.
"""

import base64
import json
import operator
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError, ServerSelectionTimeoutError

from pool_telemetry import catalog
from pool_telemetry.catalog import CATALOG, Value
from pool_telemetry.cli.prometheus_text import histogram_of, read
from pool_telemetry.diagnosis import Diagnosis, Finding, worst_first
from pool_telemetry.diagnosis.thresholds import EXHAUSTED_SHARE
from pool_telemetry.errors import PoolTelemetryError
from pool_telemetry.monitoring.promql import POOL, PROCESS, Promql
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.stats import ClientStats, HistogramStats
from pool_telemetry.telemetry import PoolTelemetry
from pool_telemetry.uri import check_credentials, mask_uri, without_secrets

TIMEOUT_SECONDS: Final = 10.0
REACH_SECONDS: Final = 5.0
_PINGS: Final = 20
_NOT_AUTHENTICATED: Final = (18, 8000)
_DIAGNOSIS: Final = "/pool/diagnosis"
_ROUTES: Final = (
    *(_DIAGNOSIS, "/pool/holders", "/metrics/mongodb"),
    *("/health", "/health/live", "/health/ready"),
)
_HOST: Final = re.compile(r"([^\s:@/?#\[\]]+|\[[0-9A-Fa-f:.%]+\])(:\d+)?")
_SAME_START_SECONDS: Final = 0.1
"""Starts so close are one: what a process says of its start has steps of 10 ms."""


class SourceError(PoolTelemetryError, RuntimeError):
    """A source does not answer, or has not what is asked for."""


# What an address is


def address_of(target: str) -> str:
    """Return what a user named as an address: `HOST:PORT` becomes one by HTTP.

    Raises:
        SourceError: It is none.
    """
    target = target.strip()
    if is_server(target):
        return target
    address = target if "://" in target else f"http://{target}"
    try:
        parts = urllib.parse.urlsplit(address)
        host = parts.netloc.rpartition("@")[2] if target == address else parts.netloc
        usable = parts.scheme in ("http", "https") and _HOST.fullmatch(host) and parts.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        usable = False
    if not usable:
        raise SourceError(
            "that is no address: use HOST:PORT or http://HOST:PORT of a service (or its /health or "
            "/metrics), https://HOST, or mongodb://HOST:PORT"
        )
    return parts.geturl()


def is_server(target: str) -> bool:
    """Return whether it is MongoDB's address, rather than one to ask by HTTP."""
    return target.startswith(("mongodb://", "mongodb+srv://"))


def routes_of(url: str) -> str:
    """Return where a service's routes begin, by the address of any; they may have a prefix."""
    parts = urllib.parse.urlsplit(url)
    path = parts.path.rstrip("/")
    route = next(filter(path.endswith, _ROUTES), "")
    return parts._replace(path=path.removesuffix(route), query="", fragment="").geturl()


def _is_metrics(url: str) -> bool:
    """Return whether it is the page of the metrics itself, whatever it is called."""
    return urllib.parse.urlsplit(url).path.rstrip("/").endswith("metrics")


# A service


def scrape(url: str, seconds: float) -> list[list[ClientStats]]:
    """Return the clients of a service as its /metrics shows them, so many seconds apart.

    Each client has two samples, or the second alone if it counts anew since the first.

    Raises:
        SourceError: It does not answer, shows no pool, or counts anew and does not say since when.
    """
    first = {client.name: client for client in _scrape(url)}
    began = max(client.at for client in first.values())
    time.sleep(seconds)
    return [_samples(first.get(now.name), now, began, url) for now in _scrape(url)]


def _samples(
    before: ClientStats | None, now: ClientStats, began: float, url: str
) -> list[ClientStats]:
    if before is None:
        return [replace(now, since=now.since or began)]
    known = before.since and now.since
    same = not known or abs(now.since - before.since) <= _SAME_START_SECONDS
    if same and not _fell(before, now):
        since = before.since or now.since
        return [replace(before, since=since), replace(now, since=since)]
    if not now.since:
        raise SourceError(
            f"{mask_uri(url)} counts anew since the first look, and does not say since when "
            "(process_start_time_seconds): look again, at one process only"
        )
    return [now]


def _fell(before: ClientStats, now: ClientStats) -> bool:
    """Return whether a counter fell: then another process counts, or the same one anew."""
    for metric in CATALOG:
        if metric.instrument in ("counter", "histogram"):
            known = dict(metric.read(before))
            for labels, value in metric.read(now):
                if labels in known and _count(value) < _count(known[labels]):
                    return True
    return False


def _count(value: Value) -> float:
    return value.count if isinstance(value, HistogramStats) else value


def _scrape(url: str) -> list[ClientStats]:
    page = url if _is_metrics(url) else routes_of(url) + "/metrics"
    try:
        clients = read(_get(page), time.time())
    except ValueError as error:
        raise SourceError(f"{mask_uri(page)} is not in Prometheus' text format") from error
    if not clients:
        raise SourceError(
            f"{mask_uri(page)} tells of no pool: was a client used there? (Of what a Prometheus "
            "has, pool-telemetry size tells.)"
        )
    return clients


def own_diagnosis(url: str) -> tuple[Diagnosis, list[str]] | None:
    """Return what a service says of itself at /pool/diagnosis, and of its pools, a line each.

    None if it has no such route.

    Raises:
        SourceError: It does not answer, or in terms of another version.
    """
    if _is_metrics(url):
        return None
    try:
        answer = json.loads(_get(routes_of(url) + _DIAGNOSIS))
    except (ValueError, _NotFoundError):
        return None
    return _told(answer) if isinstance(answer, dict) and "findings" in answer else None


def _told(own: Mapping[str, Any]) -> tuple[Diagnosis, list[str]]:
    known = {field.name for field in fields(Finding)}
    try:
        kept = ({k: v for k, v in one.items() if k in known} for one in own["findings"])
        found = worst_first(Finding(**one) for one in kept)
        for one in found.findings:
            str.split(one.because + one.advice), dict(one.change)
        return found, [str(line) for line in own.get("pools", ())]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SourceError("its /pool/diagnosis is of a version that is not understood") from error


# A Prometheus


@dataclass(frozen=True, slots=True)
class Busiest:
    """The process of a pool that asks for most connections, by Prometheus: at its busiest minute.

    Attributes:
        pool: Its name.
        process: `job instance`.
        processes: How many have the pool.
        rate: Callers per second.
        max_size: maxPoolSize; None when unlimited.
        at_least: Who had or wanted a connection at once, where all were taken for a whole minute
            and few timed out: those come again as soon as they are served. Where all were taken
            for a part of a minute, one more than there are; else 1.
    """

    pool: str
    process: str
    processes: int
    rate: float
    use_time: HistogramStats
    max_size: int | None
    at_least: int

    def demand(self) -> float:
        """Return the connections that were asked for."""
        return max(self.at_least, self.rate * (self.use_time.mean or 0.0))


def is_prometheus(url: str) -> bool:
    """Return whether a Prometheus answers there.

    Raises:
        SourceError: Nothing does.
    """
    try:
        return bool(_query(url, "vector(1)"))
    except (_NotFoundError, ValueError, KeyError, TypeError):
        return False


def busiest(url: str, window: str = "1h") -> list[Busiest]:
    """Return, for each pool that a Prometheus knows, the process that asks for most.

    Raises:
        SourceError: It does not answer, or knows no pool.
    """
    ask = Promql(window="1m")
    by = ", ".join((*PROCESS, POOL))

    def most(question: str, when: str = "") -> dict[tuple[str, ...], float]:
        """Return the highest that this was, by process."""
        asked = f"max_over_time((sum by ({by}) ({question}){when})[{window}:15s])"
        return _by_process(_query(url, asked))

    size, smallest = ask.of(catalog.MAX_SIZE), f"min_over_time({ask.over(catalog.MAX_SIZE)})"
    sizes = _by_process(_query(url, f"max by ({by}) ({size})"))
    # What the pool was short of when it was smaller says nothing of the size that it has.
    so_large = (
        f" and on ({by}) (max by ({by}) ({smallest}) >= on ({by}) max by ({by}) ({size} @ end()))"
    )
    rates, timeouts = most(ask.rate(catalog.CHECKOUTS)), most(ask.rate(catalog.TIMEOUTS), so_large)
    dry = most(ask.rate(catalog.EXHAUSTED_SECONDS), so_large)
    queues = most(ask.of(catalog.PEAK_WAITING), so_large)
    used = ask.increase(catalog.USE_SECONDS, part="_bucket", window=window)
    buckets = _query(url, f"sum by (le, {by}) ({used})")
    spent = ask.increase(catalog.USE_SECONDS, part="_sum", window=window)
    sums = _by_process(_query(url, f"sum by ({by}) ({spent})"))
    below: dict[tuple[str, ...], list[tuple[float, float]]] = defaultdict(list)
    for one in buckets:
        below[_process(one)].append((float(one["metric"]["le"]), float(one["value"][1])))

    def at_least(process: tuple[str, ...]) -> int:
        share, size = dry.get(process, 0.0), int(sizes.get(process, 0))
        if share >= 0.9 and timeouts.get(process, 0.0) < 0.05 * rates[process]:
            return size + int(queues.get(process, 0))
        return size + 1 if share >= EXHAUSTED_SHARE else 1

    found: dict[str, list[Busiest]] = defaultdict(list)
    for process, rate in rates.items():
        if rate > 0.0 and process in below:
            one = Busiest(
                pool=process[-1],
                process=" ".join(filter(None, process[:-1])),
                processes=1,
                rate=rate,
                use_time=histogram_of(sorted(below[process]), sums.get(process, 0.0)),
                max_size=int(sizes[process]) if process in sizes else None,
                at_least=at_least(process),
            )
            found[one.pool].append(one)
    if not found:
        raise SourceError(f"the Prometheus at {mask_uri(url)} knows no pool in use in {window}")
    return [
        replace(max(every, key=Busiest.demand), processes=len(every))
        for _, every in sorted(found.items())
    ]


def _query(url: str, query: str) -> list[Any]:
    asked = urllib.parse.urlencode({"query": query})
    page = f"{urllib.parse.urljoin(url, '/api/v1/query')}?{asked}"
    answer = json.loads(_get(page))
    if answer["status"] != "success":
        raise SourceError(f"the Prometheus at {mask_uri(url)} does not understand: {query}")
    found: list[Any] = answer["data"]["result"]
    return found


def _by_process(result: list[Any]) -> dict[tuple[str, ...], float]:
    return {_process(one): float(one["value"][1]) for one in result}


def _process(one: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(one["metric"].get(label, "") for label in (*PROCESS, POOL))


class _NotFoundError(SourceError):
    """It answers, but not to this."""


def _get(page: str) -> str:
    try:
        with urllib.request.urlopen(_request(page), timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310  # by address_of()
            text: str = answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            raise _NotFoundError(f"{mask_uri(page)} answers with status {error.code}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        words = getattr(reason, "strerror", None) or type(reason).__name__
        raise SourceError(f"{mask_uri(page)} does not answer: {words}") from None
    return text


def _request(page: str) -> urllib.request.Request:
    """Return what asks for a page, with the credentials of its address as basic authentication."""
    parts = urllib.parse.urlsplit(page)
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl())  # noqa: S310
    if at:
        secret = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    return request


# A server


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a MongoDB server tells of itself, and how it answers from here.

    Attributes:
        ping_seconds: The median of some round trips.
        open_seconds: To open a connection, handshake included.
        current: Connections that it has.
        limit: Connections that it takes; None where it does not say.
        opened_per_second: New connections of all its clients.
        operations_per_second: Of all its clients.
        operation_seconds: How long one takes it; None where it does not say.
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
    """Return what a server tells, over so many seconds; a diagnosis when none can be reached.

    Raises:
        SourceError: The address is none, or it lets us not in.
        PoolConfigurationError: Its user name or password is not escaped.
    """
    check_credentials(uri)
    try:
        with without_secrets(uri, {}):
            return _ask_server(uri, seconds)
    except ServerSelectionTimeoutError as error:
        gone = Finding(
            id="server_unreachable.down",
            verdict="server unreachable",
            severity="critical",
            pool=mask_uri(uri),
            because=f"No server answered within {REACH_SECONDS:.0f} s ({type(error).__name__}).",
            advice="Check that the server runs and that the network and the address are right.",
        )
        return Diagnosis((gone,))
    except OperationFailure as error:
        ask = (
            "its user, password or authSource is wrong"
            if error.code in _NOT_AUTHENTICATED
            else "use a user with the role clusterMonitor"
        )
        raise SourceError(f"{mask_uri(uri)} refuses (code {error.code}): {ask}") from None
    except (PyMongoError, ValueError) as error:
        raise SourceError(f"{mask_uri(uri)} can't be used: {error}") from None


def _ask_server(uri: str, seconds: float) -> ServerFacts:
    telemetry = PoolTelemetry(options=TelemetryOptions(watch=False))
    with MongoClient[dict[str, Any]](
        uri,
        appname="pool-telemetry",
        maxPoolSize=1,
        serverSelectionTimeoutMS=int(1000 * REACH_SECONDS),
        event_listeners=telemetry.listeners,
    ) as client:
        pings = []
        for _ in range(_PINGS):
            began = time.monotonic()
            client.admin.command("ping")
            pings.append(time.monotonic() - began)
        before, began = client.admin.command("serverStatus"), time.monotonic()
        time.sleep(seconds)
        after, took = client.admin.command("serverStatus"), time.monotonic() - began
        pool = max(telemetry.stats().pools, key=lambda pool: pool.use_time.count)
    if began_anew(before, after):
        raise SourceError(f"{pool.address} restarted between two looks: look again")
    current, available = (after["connections"].get(key, 0) for key in ("current", "available"))
    operations, spent = (_latencies(after, key) - _latencies(before, key) for key in _LATENCIES)
    counted = sum(after["opcounters"].values()) - sum(before["opcounters"].values())
    opened = (one["connections"].get("totalCreated", 0) for one in (after, before))
    return ServerFacts(
        address=pool.address,
        ping_seconds=sorted(pings)[_PINGS // 2],
        open_seconds=pool.create_time.mean or 0.0,
        current=current,
        limit=current + available if available else None,
        opened_per_second=operator.sub(*opened) / took,
        operations_per_second=max(0, (operations or counted) - 1) / took,  # one was ours
        operation_seconds=spent / operations / 1e6 if operations else None,
    )


def began_anew(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return whether a server restarted between two answers to `serverStatus`: a counter fell."""

    def counters(status: Mapping[str, Any]) -> list[float]:
        opened = status["connections"].get("totalCreated", 0)
        commands = sum(status["opcounters"].values())
        return [
            status.get("uptime", 0),
            opened,
            commands,
            *(_latencies(status, k) for k in _LATENCIES),
        ]

    return any(map(operator.lt, counters(after), counters(before)))


_LATENCIES: Final = ("ops", "latency")


def _latencies(status: Mapping[str, Any], key: str) -> int:
    """Return the count, or the microseconds, of all operations that a server ever did."""
    return sum(kind[key] for kind in status.get("opLatencies", {}).values())
