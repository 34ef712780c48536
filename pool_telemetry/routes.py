"""The HTTP routes without a web framework: which there are, and the whole answer of each.

`fastapi`, `asgi`, `wsgi` and `django` hand a request over and send the answer; they decide nothing.
Each route's answers are made on a thread of its own, so that no route waits for another one, for an
event loop, or for the threads of a framework. Requests for the same answer share it.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from queue import Full
from types import MappingProxyType
from typing import Any, Final, Literal
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry
from prometheus_client.core import REGISTRY

from pool_telemetry import endpoints, prometheus
from pool_telemetry.endpoints import Pool
from pool_telemetry.errors import PoolConfigurationError
from pool_telemetry.health import HealthLimits
from pool_telemetry.log_lines import ProcessLog
from pool_telemetry.own_thread import OwnThread, Shared

Show = Literal["all", "probes", "details"]
Headers = tuple[tuple[str, str], ...]

METHODS: Final = ("GET", "HEAD")
LIMIT_SECONDS: Final = 30.0
"""A request waits at most this long, so that a collector that hangs does not pile requests up."""
RETRY_SECONDS: Final = 5
"""A client that is refused because of too many different requests is asked to wait so long."""
GZIP_BYTES: Final = 1_000
"""Smaller bodies are not compressed, because they fit into one packet."""
GZIP_LEVEL: Final = 1
"""Level 1 makes 35 kB of the 1.8 MB of 500 series in 5 ms, level 6 makes 28 kB in 15 ms."""

_log: Final = ProcessLog("pool_telemetry.routes")


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer. `body` is that of GET; HEAD has the same headers."""

    status: int
    headers: Headers
    body: bytes

    def body_for(self, method: str) -> bytes:
        """Return the body to send: none if the method is HEAD."""
        return b"" if method == "HEAD" else self.body


@dataclass(frozen=True, slots=True)
class _Made:
    """An answer before it is encoded."""

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class _Wish:
    """A request's wishes at `/metrics`; requests with equal wishes get the same answer."""

    content_type: str = ""
    names: tuple[str, ...] = ()
    accept: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Route:
    """One route.

    Attributes:
        name: Its name for a framework.
        description: One sentence for a framework's documentation.
        make: Makes its answer.
        is_probe: Whether it is for probes.
    """

    path: str
    name: str
    description: str
    make: "Callable[[Routes, _Wish], _Made]"
    is_probe: bool = False


class Routes:
    """The routes of an application.

    Args:
        pool: The singleton to report. By default the singleton that is initialized at the time of
            the request, the asynchronous one first.
        limits: The limits that decide when the pool is degraded or unhealthy.
        registry: The registry that `/metrics` shows; every client's metrics are added to it.
        holders: Whether to add `/pool/holders`.
        show: "probes" for `/health/live` and `/health/ready`, "details" for the others, or "all".
        is_brief: Whether `/health/ready` tells the status alone, without the reasons, which name
            hosts, and the process. By default it does so if the details are not shown.

    Raises:
        PoolConfigurationError: `show` is something else, or excludes `holders`.
    """

    def __init__(
        self,
        pool: Pool | None = None,
        *,
        limits: HealthLimits = HealthLimits(),  # noqa: B008  # frozen
        registry: CollectorRegistry = REGISTRY,
        holders: bool = False,
        show: Show = "all",
        is_brief: bool | None = None,
    ) -> None:
        if show not in ("all", "probes", "details"):
            raise PoolConfigurationError(
                f"show is {show!r}: it has to be 'all', 'probes' or 'details'"
            )
        if holders and show == "probes":
            raise PoolConfigurationError(
                "holders=True has no effect with show='probes': leave one of them out"
            )
        self.pool, self.limits, self.registry = pool, limits, registry
        self.is_brief = show == "probes" if is_brief is None else is_brief
        hidden = {"details": True, "probes": False}.get(show)
        self.by_path: Mapping[str, Route] = MappingProxyType(
            {
                one.path: one
                for one in ROUTES
                if one.is_probe is not hidden and (holders or one.path != "/pool/holders")
            }
        )
        self._failed = set[str]()  # the paths whose last answer could not be made
        if show != "probes":
            prometheus.add_to(registry)

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: str = "",
        accept: str = "",
        accept_encoding: str = "",
    ) -> Shared[Answer]:
        """Return the answer's future, and raise nothing. A caller that gives up leaves it.

        Args:
            method: The HTTP method.
            path: The path below the place of the application.
            query: The query, percent-encoded.
            accept: The header of that name; a malformed one counts as none.
            accept_encoding: The header of that name.
        """
        route = self.by_path.get(path.rstrip("/"))
        if route is None:
            return _at_once(_json({"routes": list(self.by_path)}, 404), ())
        if method not in METHODS:
            words = {"detail": f"allowed are {' and '.join(METHODS)}"}
            return _at_once(_json(words, 405), (("allow", ", ".join(METHODS)),))
        thread = _THREADS.get(route.path)
        if thread is None:
            return _at_once(route.make(self, _Wish()), ())
        wish = self._wish(query, accept) if route.path == "/metrics" else _Wish()
        is_gzip = takes_gzip(accept_encoding)
        key = (self, wish, is_gzip)
        try:
            return thread.ask(key, lambda: self._answer(route, wish, is_gzip=is_gzip))
        except Full:
            words = {"detail": "too many different requests at one time"}
            return _at_once(_json(words, 503), (("retry-after", str(RETRY_SECONDS)),))

    def wait(self, method: str, path: str, **more: str) -> Answer:
        """Return the answer when it is made. The arguments are those of `ask()`."""
        asked = self.ask(method, path, **more)
        try:
            return asked.result(LIMIT_SECONDS)
        except TimeoutError:
            asked.leave()
            return late()

    def _wish(self, query: str, accept: str) -> _Wish:
        names = parse_qs(query, errors="replace").get("name[]", ())
        chosen = tuple(sorted(prometheus.existing(names, self.registry)))
        if names and not chosen:
            chosen = ("",)  # no sample; without a name the answer would have all
        return _Wish(prometheus.choose_format(accept)[1], chosen, accept)

    def _answer(self, route: Route, wish: _Wish, *, is_gzip: bool) -> Answer:
        try:
            made = route.make(self, wish)
        except BaseException:  # noqa: BLE001  # SystemExit of a collector must not end the service
            if route.path not in self._failed:
                self._failed.add(route.path)
                _log.exception("%s could not be made; this is logged once", route.path)
            made = _json({"detail": "it could not be made; the log of the service says why"}, 500)
        else:
            self._failed.discard(route.path)
        vary = "Accept, Accept-Encoding" if route.path == "/metrics" else "Accept-Encoding"
        return _encoded(made, (("vary", vary),), is_gzip=is_gzip)


def late() -> Answer:
    """Return the answer to a request that has waited for LIMIT_SECONDS."""
    words = f"it is not made yet after {LIMIT_SECONDS:g} s"
    return _encoded(_json({"detail": words}, 503), (), is_gzip=False)


def malformed(status: int) -> Answer:
    """Return the answer to a request that is no valid HTTP."""
    return _encoded(_json({"detail": HTTPStatus(status).phrase}, status), (), is_gzip=False)


def takes_gzip(accept_encoding: str) -> bool:
    """Return whether a header Accept-Encoding allows gzip."""
    weights: dict[str, bool] = {}
    for part in accept_encoding.lower().split(","):
        coding, _, parameters = part.partition(";")
        weights[coding.strip()] = _is_positive(parameters)
    return weights.get("gzip", weights.get("*", False))


def _is_positive(parameters: str) -> bool:
    name, _, value = parameters.partition("=")
    if name.strip() != "q":
        return not parameters.strip()
    try:
        return float(value) > 0.0
    except ValueError:
        return False


def _at_once(made: _Made, headers: Headers) -> Shared[Answer]:
    future = Shared[Answer]()
    future.set_result(_encoded(made, headers, is_gzip=False))
    return future


def _encoded(made: _Made, headers: Headers, *, is_gzip: bool) -> Answer:
    body = made.body
    if is_gzip and len(body) >= GZIP_BYTES:
        body = zlib.compress(body, GZIP_LEVEL, wbits=31)  # 31 is gzip's format
        headers = (*headers, ("content-encoding", "gzip"))
    length = ("content-length", str(len(body)))
    return Answer(made.status, (("content-type", made.content_type), length, *headers), body)


def _json(values: Any, status: int = 200) -> _Made:
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A name may have lone surrogates, as os.fsdecode() makes them.
    return _Made(status, "application/json", text.encode(errors="replace"))


# The answer of each route


def _live(_: Routes, __: _Wish) -> _Made:
    return _json({"status": "alive"})


def _ready(routes: Routes, _: _Wish) -> _Made:
    values, status = endpoints.ready(routes.pool, routes.limits)
    return _json({"status": values["status"]} if routes.is_brief else values, status)


def _metrics(routes: Routes, wish: _Wish) -> _Made:
    body, content_type = prometheus.generate(wish.accept, routes.registry, names=wish.names)
    return _Made(200, content_type, body)


def _diagnosis(_: Routes, __: _Wish) -> _Made:
    return _json(*endpoints.diagnosis())


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "/health",
        "health",
        "Return the status of all processes, and this one's numbers; the HTTP status is 200.",
        lambda routes, _: _json(endpoints.health(routes.pool, routes.limits)),
    ),
    Route(
        "/health/live",
        "live",
        "Return 200 while the process answers, because a restart would not repair a database.",
        _live,
        is_probe=True,
    ),
    Route(
        "/health/ready",
        "ready",
        "Return whether to send requests to this process: 503 while unhealthy, otherwise 200.",
        _ready,
        is_probe=True,
    ),
    Route(
        "/metrics",
        "metrics",
        "Return the registry in Prometheus' text format, or as OpenMetrics if accepted.",
        _metrics,
    ),
    Route(
        "/metrics/mongodb",
        "metrics_mongodb",
        "Return the live numbers of the pool as JSON, with recommendations.",
        lambda routes, _: _json(endpoints.mongodb(routes.pool)),
    ),
    Route(
        "/pool/diagnosis",
        "pool_diagnosis",
        "Return the diagnosis of every pool of the service: problems, numbers, and changes.",
        _diagnosis,
    ),
    Route(
        "/pool/holders",
        "pool_holders",
        "Return the holders and waiters, the longest checkout and wait first.",
        lambda *_: _json(endpoints.holders()),
    ),
)

_THREADS: Final = {
    one.path: OwnThread(f"pool_telemetry-{one.name}")
    for one in ROUTES
    if one.path != "/health/live"  # which needs none
}
"""A thread for each route, so that a slow collector at `/metrics` delays no probe."""
