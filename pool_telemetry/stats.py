"""Frozen copies of the state, which all readers use.

`PoolState`, `CommandState` and `PoolTelemetry` make them; any thread may keep them. Durations and
ages are seconds; counters count from the start of the client, or from the fork of the process.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol

MAX_NAME: Final = 255
"""Characters of a name from outside, in every output: of a collection, a host, a thread, and so on.

MongoDB's names and hosts have no more, so only a mistake or an attack is cut. A name has at most
four times as many bytes.
"""

Address = tuple[str, int | None]
"""Host and port; the port is None for a Unix domain socket, whose path is the host."""


def validate_address(address: Address) -> Address:
    """Return the address of an event, if it is well-formed: a wrong one would break every reader.

    Raises:
        TypeError: It is not a host and a port.
    """
    host, port = address
    if not isinstance(host, str) or not isinstance(port, int | None):
        raise TypeError(f"not an address: {type(address).__name__}")
    return host, port


def bounded(name: str, most: int = MAX_NAME) -> str:
    """Return a name from outside as every output has it: short, and valid Unicode.

    A name that is cut ends with an ellipsis and a digest, so different names stay different.

    Args:
        name: The name.
        most: The characters that it may have.
    """
    if len(name) <= most and name.isascii():
        return name
    text = name.encode("utf-8", "replace").decode()  # without lone surrogates
    if len(name) <= most and text == name:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{text[: most - len(digest) - 1]}…{digest}"


def bounded_address(address: Address) -> Address:
    """Return an address whose host is bounded."""
    host, port = address
    return bounded(host), port


def printable(text: str) -> str:
    """Return a text with a space for each unprintable character, safe for logs and terminals."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def pool_name(client: str, address: Address) -> str:
    """Return `NAME@host:port`, or `host:port` for an unnamed client; IPv6 in brackets."""
    host, port = address
    place = host if port is None else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"{client}@{place}" if client else place


Phase = Literal["ready", "paused", "closed"]
"""A pool's phase, as CMAP names it."""

OUTCOMES: Final = ("ok", "timeout", "connection_error", "pool_closed", "cancelled")
"""How a checkout ends. `cancelled`: the caller was cancelled, interrupted or killed meanwhile. If
it was in the wait queue, PyMongo publishes no event of that.
"""

CANCELLED: Final = "cancelled"
"""This outcome, also the error type of a cancelled command (PyMongo publishes it from 4.20.1)."""

CLOSE_REASONS: Final = ("stale", "idle", "error", "pool_closed")
"""Why a connection closes, as CMAP names it."""


TraceLink = tuple[int, int]
"""OpenTelemetry's ids of a trace and of a span in it."""

FindTraceLink = Callable[[], TraceLink | None]
"""Returns the current trace and span; None without a trace, or if the trace is not sampled."""


class Exemplar(NamedTuple):
    """One of a bucket's durations, with the trace that shows it."""

    link: TraceLink
    seconds: float
    time: float  # Unix time, seconds


@dataclass(frozen=True, slots=True)
class HistogramStats:
    """Durations in buckets: `counts[i]` are at most `bounds[i]`, the last count is above all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    max: float
    exemplars: Mapping[int, Exemplar] = field(default_factory=dict)  # by bucket; most have none

    @property
    def count(self) -> int:
        """Return the number of durations."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """Return the mean in seconds; None if there are no durations."""
        return self.sum / count if (count := self.count) else None

    def since(self, before: "HistogramStats | None") -> "HistogramStats":
        """Return the durations added since an earlier copy; all of them if the counts restarted.

        The maximum stays that of all durations.
        """
        if before is None or before.bounds != self.bounds:
            return self
        if any(map(int.__lt__, self.counts, before.counts)):
            return self
        counts = tuple(map(int.__sub__, self.counts, before.counts))
        new = {i: one for i, one in self.exemplars.items() if one != before.exemplars.get(i)}
        return HistogramStats(self.bounds, counts, self.sum - before.sum, self.max, new)

    def quantile(self, q: float) -> float | None:
        """Return the duration in seconds below which a share `q` (0.0 to 1.0) of all durations is.

        Interpolated within its bucket, as Prometheus' `histogram_quantile` does, but never above
        the maximum. None if there are no durations.
        """
        rank, below, lower = q * self.count, 0, 0.0
        for bound, count in zip((*self.bounds, self.max), self.counts, strict=True):
            upper = min(bound, self.max)
            if count and below + count >= rank:
                return lower + max(0.0, upper - lower) * (rank - below) / count
            below += count
            lower = upper
        return None


def merge(histograms: Iterable[HistogramStats]) -> HistogramStats | None:
    """Return the sum of all histograms with the bounds of the last one; None without histograms.

    Histograms with other bounds are from another version, which ran before a restart.
    """
    every = list(histograms)
    if not every:
        return None
    bounds = every[-1].bounds
    every = [one for one in every if one.bounds == bounds]
    return HistogramStats(
        bounds,
        tuple(map(sum, zip(*(h.counts for h in every), strict=True))),
        sum(h.sum for h in every),
        max(h.max for h in every),
    )


SELECTION_SECONDS: Final = 1.0
"""A caller may wait this long for a server: a new client discovers its servers meanwhile."""

LOST_SECONDS: Final = 3.0
"""Callers that were not served for this long, while PyMongo may open a connection for them and does
not, prove that it has lost slots of its pool.
"""

IDLE_SECONDS: Final = 1.0
"""Seconds without a command after which a held connection is idle, not just being returned."""

OVERFLOW: Final = "_OTHER"
"""OpenTelemetry's value for everything that a bounded attribute leaves out."""


class OwnerStats(NamedTuple):
    """The connections used on behalf of one owner; see `owner()`."""

    owner: str
    checkouts: int  # that have ended
    seconds: float  # that connections were held, until now
    in_use: int


Activity = Literal[
    "command", "awaiting data", "exhaust cursor", "pinned cursor", "transaction", "waiting", ""
]
"""The activity of a caller. These cursors and (behind a load balancer) transactions hold a
connection between two commands, too. Awaiting data is a getMore that waits for news, no longer than
its cursor's `max_await_time_ms`. Empty: between two commands, without a cursor or transaction.
"""


class Origin(NamedTuple):
    """The owner and the trace of a caller when it entered the queue."""

    owner: str  # empty without one
    find_link: FindTraceLink | None  # None without a trace


NO_ORIGIN: Final = Origin("", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerStats:
    """One holder of a connection, or one waiter. Names only, never values."""

    address: str
    seconds: float  # that it has held the connection, or waited
    actor: str  # the thread's or task's name
    owner: str  # see `owner()`; empty without one
    doing: Activity
    operation: str  # the command that runs, or else the last one; empty without a command
    collection: str
    trace_id: str | None  # 32 hexadecimal digits
    idle_seconds: float | None = None  # since its last command ended; None while one runs

    @property
    def label(self) -> str:
        """Return the name of the caller's thread or task, with its owner."""
        owner = f" ({self.owner})" if self.owner else ""
        return printable(f"{self.actor or 'somebody'}{owner}")

    def describe(self) -> str:
        """Return the caller's label, its seconds and its activity, as a text."""
        command = " ".join(filter(None, (self.operation, self.collection)))
        doing = {
            "command": command,
            "awaiting data": f"{command}, which awaits data",
            "waiting": "waiting",
            "": "no command",
        }.get(self.doing, f"{self.doing} of {command}" if command else self.doing)
        if self.idle_seconds is not None and self.idle_seconds >= IDLE_SECONDS:
            doing += f", idle for {self.idle_seconds:.2f} s"
        return printable(f"{self.label} for {self.seconds:.2f} s: {doing}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One exhaustion of a pool: the argument of `on_exhausted` and `on_recovered`.

    As in `PoolStats.exhaustions`, exhaustions less than a second apart are one. So are exhaustions
    between which the pool did not recover: no connection was returned, or its server was down.
    """

    pool: str  # NAME@host:port
    max_size: int | None
    in_use: int  # in_use and waiting: at the moment of the call
    waiting: int
    seconds: float  # that the pool has been or was exhausted; without the gaps
    peak_waiting: int
    timeouts: int  # checkouts that timed out during the exhaustion
    holders: tuple[CallerStats, ...]  # the longest holders, at the last check


class Occupancy(NamedTuple):
    """How full a pool is, as in `PoolStats`: of one server, or the sum over a client's servers."""

    size: int  # connections, opening ones included
    in_use: int
    waiting: int  # callers between the start of a checkout and its end
    max_size: int | None  # None is unlimited


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """One server's pool at one moment.

    Always: 0 <= in_use, opening, idle; in_use + opening + idle == size.
    """

    host: str
    port: int | None  # None for a Unix domain socket
    phase: Phase
    max_size: int | None  # None is unlimited
    min_size: int
    size: int  # connections, opening ones included
    in_use: int
    opening: int  # being established
    waiting: int  # callers between the start of a checkout and its end
    oldest_wait: float  # 0.0 if no caller waits
    longest_checkout: float  # of the open checkouts that await no data; 0.0 without one
    exhausted: bool  # callers wait because all connections that max_size allows are in use
    exhaustions: int  # exhaustions less than a second apart are one
    exhausted_time: float  # total, without the gaps within an exhaustion
    since_exhausted: float | None  # 0.0 while exhausted; None if the pool never was
    since_timeout: float | None  # age of the last checkout that timed out; None without one
    stalled_time: float  # since a caller found all in use, if none was returned; else 0.0
    checkouts: dict[str, int]  # by OUTCOMES
    created: int
    closed: dict[str, int]  # by CLOSE_REASONS
    cleared: int
    up: bool | None  # by the last heartbeat; None before the first, and without heartbeats
    since_up_changed: float
    outage: float  # duration of the present outage, or else of the last; 0.0 without one
    down_reason: str | None  # the error's class; never its text, which names hosts
    rtt: float | None
    wait_time: HistogramStats
    use_time: HistogramStats
    create_time: HistogramStats
    peak_waiting: int = 0  # of the present exhaustion, or else of the last one
    long_checkouts: int = 0  # checkouts that were open for `long_checkout_seconds` or more
    retries: int = 0  # checkouts by callers whose last one had timed out less than 1 s before
    held_idle: int | None = None  # in use without a command for IDLE_SECONDS; None: unknown
    longest_idle: float = 0.0  # of these, since the last command; 0.0 without one
    held_by_cursors: int = 0  # in use by exhaust cursors or getMore, and not idle, as far as known
    owners: tuple[OwnerStats, ...] = ()  # the owner with the longest total hold first
    oldest_opening: float = 0.0  # age of the oldest connection that is being established
    unserved_time: float = 0.0  # for which callers waited or failed, and none got a connection
    since_served: float | None = None  # since a reading found a new checkout or check-in
    lost: bool = False  # callers wait although PyMongo may open connections, and it opens none
    server_type: str | None = None  # as SDAM names it, by the last answer; None while unknown
    silent_time: float = 0.0  # without an event of the server's monitor, if that is too long
    self_blocked: int = 0  # in use by callers that wait for another connection themselves
    self_blocked_by: str = ""  # the name of the first of them
    since_closed: float | None = None  # age of the pool's close; None while it is open

    @property
    def idle(self) -> int:
        """Return the number of connections that are ready and not in use."""
        return self.size - self.opening - self.in_use

    @property
    def unserved_text(self) -> str:
        """Return in words that callers wait or fail, and what the connections do meanwhile."""
        busy = f"{self.in_use} of {'any number' if self.max_size is None else self.max_size} in use"
        if self.opening:
            busy += f", {self.opening} opening, the oldest for {self.oldest_opening:.1f} s"
        text = f"{self.address} has served no caller for {self.unserved_time:.1f} s"
        text = f"{text}: {self.waiting} waiting, {busy}"
        if self.lost:
            text += (
                "; all slots are taken and nobody holds them, because PyMongo has lost them: "
                "restart the process, update PyMongo"
            )
        return text

    @property
    def silence_text(self) -> str:
        """Return in words for how long the server's monitor has been silent."""
        return (
            f"PyMongo's monitor of {self.address} has been silent for {self.silent_time:.1f} s: "
            "the driver stands still, because its event loop or a lock of its pool is blocked"
        )

    @property
    def outage_text(self) -> str:
        """Return in words how long the server has been down. Never an error's own text."""
        if self.silent_time:
            return self.silence_text
        if self.up is None:
            return f"{self.address} has not answered yet"
        if self.up:
            return f"{self.address} has answered for {self.since_up_changed:.1f} s only"
        if self.down_reason is None:  # read from metrics, which have no reason
            return f"{self.address} does not answer"
        return f"{self.address} down for {self.outage:.1f} s ({self.down_reason})"

    @property
    def address(self) -> str:
        """Return `host:port`, `[host]:port` for an IPv6 address, or the path of a socket."""
        return pool_name("", (self.host, self.port))


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationStats:
    """One series of commands. An attribute that does not apply is an empty string."""

    host: str
    port: int | None
    namespace: str
    collection: str
    operation: str
    error_type: str
    status_code: str
    duration: HistogramStats
    overloaded: bool = False  # whether the server failed them because it was overloaded

    @property
    def series(self) -> tuple[object, ...]:
        """Return the attributes that identify the series."""
        place = (self.host, self.port, self.namespace, self.collection)
        return (*place, self.operation, self.error_type, self.status_code)


class ServerSelectionStats(NamedTuple):
    """The callers of one client that wait until a server fits their operation.

    PyMongo publishes no event of server selection, so the callers are found by their frames, at
    most twice a second. A caller that waits for less time may not be counted.
    """

    waiting: int = 0
    oldest_wait: float = 0.0  # 0.0 if no caller waits
    failures: int = 0  # callers that were seen to wait until their serverSelectionTimeoutMS
    since_failure: float | None = None  # age of the last failure; None without one


class RefusalStats(NamedTuple):
    """The commands that an overloaded server refused (SystemOverloadedError), by readings."""

    since: float | None = None  # age of the last refusals; None without any
    lasting: float = 0.0  # seconds of refusals during which no command succeeded


class AgentStats(NamedTuple):
    """Counts of the agents whose sessions are in this client's database."""

    turns: int = 0  # invocations of agents, graphs and swarms that ended
    operations: int = 0  # of the database, for their sessions
    conflicts: int = 0  # messages refused because another writer had continued the session


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStats:
    """Everything that is known of one client at one moment."""

    name: str  # empty for an unnamed client
    pools: tuple[PoolStats, ...]
    operations: tuple[OperationStats, ...]
    telemetry_errors: int  # failures inside our own listeners; anything but 0 is a bug of ours
    since: float = 0.0  # Unix time from which the counters count; 0.0 if unknown
    server_version: str | None = None  # None while unknown
    agents: AgentStats = field(default_factory=AgentStats)
    owner_metrics: bool = False  # whether there are metrics for each owner
    at: float = 0.0  # Unix time of the sample; a change of the system's clock does not move it
    server_selection: ServerSelectionStats = field(default_factory=ServerSelectionStats)
    refusals: RefusalStats = field(default_factory=RefusalStats)
    topology_type: str | None = None  # as SDAM names it; None while unknown
    has_no_server: bool = False  # each server has left, but the client is open
    stood_still: float = 0.0  # seconds for which this process was stopped, frozen or suspended
    ended: tuple[PoolStats, ...] = ()  # counts of ended clients with this name, without a state
    # The next three count all clients that asked for the same name, also `NAME#2`.
    clients_made: int = 0  # by this process
    clients_made_lately: int = 0  # of these, in the last 60 s; at most 1,000
    clients_open: int = 0

    def pool_name(self, pool: PoolStats) -> str:
        """Return the name that a pool of this client has in metrics."""
        return pool_name(self.name, (pool.host, pool.port))

    @property
    def all_pools(self) -> tuple[PoolStats, ...]:
        """Return the pools, and the counts of ended clients' pools."""
        return (*self.pools, *self.ended)

    @property
    def open_pools(self) -> list[PoolStats]:
        """Return the pools of the servers that the client knows now."""
        return [pool for pool in self.pools if pool.phase != "closed"]

    @property
    def selection_text(self) -> str:
        """Return in words that no server fits, the callers, and the servers there are."""
        selection, callers = self.server_selection, list[str]()
        if self.has_no_server:
            text = "no server is left, because none belongs to the client's replica set"
        else:
            text = "no server is the primary" if self.lacks_primary else "no server fits"
        if selection.waiting:
            callers.append(
                f"{selection.waiting} waiting, the oldest for {selection.oldest_wait:.1f} s"
            )
        if selection.failures:
            callers.append(f"{selection.failures} failed")
        if callers:
            text += f"; callers in server selection: {', '.join(callers)}"
        types = (f"{one.address} is {one.server_type or 'unknown'}" for one in self.open_pools)
        servers = ", ".join(types)
        return f"{text} ({servers})" if servers else text

    @property
    def lacks_primary(self) -> bool:
        """Return whether members of a replica set answer, and none of them is the primary."""
        types = {pool.server_type for pool in self.open_pools if pool.up}
        members = any(one is not None and one.startswith("RS") for one in types)
        of_set = self.topology_type in (None, "ReplicaSetNoPrimary")  # not a single secondary
        return members and of_set and "RSPrimary" not in types

    @property
    def connected(self) -> bool:
        """Return whether a server answers heartbeats; without heartbeats, whether a pool is ready.

        False if PyMongo's monitors are silent: their last answers say nothing of the present. True
        for a client that was not used yet in this process, as after a fork.
        """
        if not self.pools:
            return not self.has_no_server
        return any(
            pool.phase == "ready" if pool.up is None else pool.up and not pool.silent_time
            for pool in self.open_pools
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStats:
    """All clients of one process, one for each name."""

    main: str | None  # the name of the singleton's client; None before `initialize()`
    clients: tuple[ClientStats, ...]

    @property
    def judged(self) -> tuple[ClientStats, ...]:
        """Return the singleton's client, or else every client that is open."""
        main = tuple(one for one in self.clients if one.name == self.main)
        return main or tuple(one for one in self.clients if one.open_pools or one.has_no_server)


class HasStats(Protocol):
    """A source of stats that readers accept in their place: a `PoolTelemetry`."""

    def stats(self) -> ClientStats:
        """Return everything that is known of the client now."""

    def history(self) -> Sequence["ClientStats"]:
        """Return samples of the last minutes, the oldest first."""


def stats_of(given: ClientStats | HasStats) -> ClientStats:
    """Return the given stats, or the stats of a given telemetry.

    Raises:
        TypeError: The argument is neither.
    """
    if isinstance(given, ClientStats):
        return given
    stats = getattr(given, "stats", None)
    found = stats() if callable(stats) else None
    if not isinstance(found, ClientStats):
        raise TypeError(
            f"neither ClientStats nor a PoolTelemetry, but {type(given).__name__}: "
            "use telemetry.stats() (get_telemetry() is None before initialize())"
        )
    return found
