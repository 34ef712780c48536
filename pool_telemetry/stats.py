"""What the readers read: frozen copies of the state.

Made by `PoolState`, `CommandState` and `PoolTelemetry`; pure values that any thread may keep.
Durations and ages are seconds; counters count since the client was made (or the process forked).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol

Address = tuple[str, int | None]
"""Host and port; the port is None for a Unix domain socket, whose path is the host."""


def validate_address(address: Address) -> Address:
    """Return an address that is one; what is read later must not be poisoned by an odd event.

    Raises:
        TypeError: It is none.
    """
    host, port = address
    if not isinstance(host, str) or not isinstance(port, int | None):
        raise TypeError(f"no address: {type(address).__name__}")
    return host, port


def printable(text: str) -> str:
    """Return names of others, which may be anything, as a log and a terminal can bear them."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def pool_name(client: str, address: Address) -> str:
    """Return `NAME@host:port`, or `host:port` for an unnamed client; IPv6 in brackets."""
    host, port = address
    place = host if port is None else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"{client}@{place}" if client else place


Phase = Literal["ready", "paused", "closed"]
"""A pool's phase, as CMAP names it."""

OUTCOMES: Final = ("ok", "timeout", "connection_error", "pool_closed", "cancelled")
"""How a checkout ends. `cancelled`: the caller was cancelled, interrupted or killed meanwhile. Of
one that stood in the queue PyMongo publishes nothing.
"""

CANCELLED: Final = "cancelled"
"""That outcome, and the error type of a command that ended so (by PyMongo from 4.20.1 on)."""

CLOSE_REASONS: Final = ("stale", "idle", "error", "pool_closed")
"""Why a connection closes, as CMAP names it."""


TraceLink = tuple[int, int]
"""The trace and the span in which something happened, by OpenTelemetry's ids."""

FindTraceLink = Callable[[], TraceLink | None]
"""Finds it out; None where it is in no trace, or in one that is not kept."""


class Exemplar(NamedTuple):
    """One of a bucket's durations, with the trace in which it can be looked at."""

    link: TraceLink
    seconds: float
    time: float  # Unix time, seconds


@dataclass(frozen=True, slots=True)
class HistogramStats:
    """Durations in buckets: `counts[i]` fell at or below `bounds[i]`, the last count above all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    max: float
    exemplars: Mapping[int, Exemplar] = field(default_factory=dict)  # by bucket; most have none

    @property
    def count(self) -> int:
        """Return how many durations were seen."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """Return the mean in seconds; None when nothing was seen."""
        return self.sum / count if (count := self.count) else None

    def since(self, before: "HistogramStats | None") -> "HistogramStats":
        """Return what is new; all of it, if it began anew. The maximum stays that of all."""
        if before is None or before.bounds != self.bounds:
            return self
        if any(map(int.__lt__, self.counts, before.counts)):
            return self
        counts = tuple(map(int.__sub__, self.counts, before.counts))
        new = {i: one for i, one in self.exemplars.items() if one != before.exemplars.get(i)}
        return HistogramStats(self.bounds, counts, self.sum - before.sum, self.max, new)

    def quantile(self, q: float) -> float | None:
        """Return the duration in seconds below which a share `q` (0.0 to 1.0) fell.

        Interpolated within its bucket, as Prometheus' `histogram_quantile` does, but never above
        the maximum seen. None when nothing was seen.
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
    """Return the sum of the histograms that share the last one's bounds; None without any.

    Other bounds are those of another version, which the process ran before it was restarted.
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


IDLE_SECONDS: Final = 1.0
"""Who holds a connection for so long without a command does not merely hand it back."""

OVERFLOW: Final = "_OTHER"
"""OpenTelemetry's name for what a bounded attribute leaves out."""


class OwnerStats(NamedTuple):
    """What happened on behalf of one owner; see `owner()`."""

    owner: str
    checkouts: int  # that are over
    seconds: float  # connections were held, those that are now included
    in_use: int


Activity = Literal["command", "exhaust cursor", "pinned cursor", "transaction", "waiting", ""]
"""What a caller does. Cursors of these kinds and (behind a load balancer) transactions hold a
connection between two commands, too; empty is between two commands without either.
"""


class Origin(NamedTuple):
    """What a caller is, by what it said when it came."""

    owner: str  # empty without one
    link: TraceLink | None  # where in a trace


NO_ORIGIN: Final = Origin("", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerStats:
    """Who has a connection, or waits for one. Names only, never values."""

    address: str
    seconds: float  # since it has it, or waits
    actor: str  # the thread's or task's name
    owner: str  # see `owner()`; empty without one
    doing: Activity
    operation: str  # of the command that runs, or was last; empty without one
    collection: str
    trace_id: str | None  # 32 hexadecimal digits
    idle_seconds: float | None = None  # since its last command ended; None while one runs

    @property
    def who(self) -> str:
        """Return its name, and on whose behalf it is here."""
        owner = f" ({self.owner})" if self.owner else ""
        return printable(f"{self.actor or 'somebody'}{owner}")

    def in_words(self) -> str:
        """Return who it is, for how long, and what it does."""
        command = " ".join(filter(None, (self.operation, self.collection)))
        doing = {"command": command, "waiting": "waiting", "": "no command"}.get(
            self.doing, f"{self.doing} of {command}" if command else self.doing
        )
        if self.idle_seconds is not None and self.idle_seconds >= IDLE_SECONDS:
            doing += f", idle for {self.idle_seconds:.2f} s"
        return printable(f"{self.who} for {self.seconds:.2f} s: {doing}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One exhaustion of a pool: what `on_exhausted` and `on_recovered` are called with.

    As in `PoolStats.exhaustions` those less than a second apart are one. So are those between
    which the pool did not recover: no connection came back, or its server was gone.
    """

    pool: str  # NAME@host:port
    max_size: int | None
    in_use: int  # this and `waiting`: at the moment of the call
    waiting: int
    seconds: float  # for which it has been, or was, exhausted; without the gaps
    peak_waiting: int
    timeouts: int  # checkouts that timed out meanwhile
    holders: tuple[CallerStats, ...]  # who held connections for longest when last looked at


class Occupancy(NamedTuple):
    """How full a pool is, of `PoolStats` the part that a span tells."""

    size: int
    in_use: int
    waiting: int
    max_size: int | None


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
    oldest_wait: float  # 0.0 when nobody waits
    longest_checkout: float  # of those still open; 0.0 when none is
    exhausted: bool  # callers stand in the queue because all of max_size is taken
    exhaustions: int  # those less than a second apart are one
    exhausted_time: float  # only while it was exhausted: the gaps within one do not count
    since_exhausted: float | None  # 0.0 while it lasts; None when it never was
    since_timeout: float | None  # age of the last checkout that timed out; None when none did
    stalled_time: float  # since a caller found all taken and nothing came back; 0.0 if it does
    checkouts: dict[str, int]  # by OUTCOMES
    created: int
    closed: dict[str, int]  # by CLOSE_REASONS
    cleared: int
    up: bool | None  # by the last heartbeat; None before the first, also where none ever comes
    since_up_changed: float
    outage: float  # how long the server is down, or was when it last was; 0.0 if it never was
    down_reason: str | None  # the error's class; never its text, which names hosts
    rtt: float | None
    wait_time: HistogramStats
    use_time: HistogramStats
    create_time: HistogramStats
    peak_waiting: int = 0  # of this exhaustion, or the last one
    long_checkouts: int = 0  # that were open for longer than `long_checkout_seconds`
    retries: int = 0  # checkouts of callers whose last one had timed out within a second before
    held_idle: int | None = None  # in use without a command for IDLE_SECONDS; None: unknown
    longest_idle: float = 0.0  # of these, since the last command; 0.0 when there is none
    held_by_cursors: int = 0  # in use by exhaust cursors or getMore, and not idle, as far as known
    owners: tuple[OwnerStats, ...] = ()  # who held connections for longest comes first

    @property
    def idle(self) -> int:
        """Return the connections that are ready and not in use."""
        return self.size - self.opening - self.in_use

    @property
    def outage_text(self) -> str:
        """Return in words since when it does not answer. Never an error's own text."""
        if self.up is None:
            return f"{self.address} has not answered yet"
        if self.up:
            return f"{self.address} answers since {self.since_up_changed:.1f} s only"
        if self.down_reason is None:  # read from metrics, which do not tell
            return f"{self.address} does not answer"
        return f"{self.address} down for {self.outage:.1f} s ({self.down_reason})"

    @property
    def address(self) -> str:
        """Return `host:port`, `[host]:port` for an IPv6 address, or the path of a socket."""
        return pool_name("", (self.host, self.port))


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationStats:
    """One series of commands. Empty strings where an attribute does not apply."""

    host: str
    port: int | None
    namespace: str
    collection: str
    operation: str
    error_type: str
    status_code: str
    duration: HistogramStats

    @property
    def series(self) -> tuple[object, ...]:
        """Return what tells it from the others."""
        place = (self.host, self.port, self.namespace, self.collection)
        return (*place, self.operation, self.error_type, self.status_code)


class AgentStats(NamedTuple):
    """What agents whose sessions are in this client's database did."""

    turns: int = 0  # invocations of agents, graphs and swarms that ended
    operations: int = 0  # asked of the database for their sessions
    conflicts: int = 0  # messages refused, for somebody else had continued the session


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStats:
    """All that is known of one client at one moment."""

    name: str  # empty for an unnamed client
    pools: tuple[PoolStats, ...]
    operations: tuple[OperationStats, ...]
    telemetry_errors: int  # failures inside our own listeners; anything but 0 is a bug of ours
    since: float = 0.0  # Unix time from which its counters count; 0.0 where it is not known
    server_version: str | None = None  # None while nobody learned it
    agents: AgentStats = field(default_factory=AgentStats)
    owner_metrics: bool = False  # whether metrics tell of owners
    at: float = 0.0  # Unix time when it was taken, which no change of the system's clock moves

    def pool_name(self, pool: PoolStats) -> str:
        """Return the name of one of its pools in metrics."""
        return pool_name(self.name, (pool.host, pool.port))

    @property
    def open_pools(self) -> list[PoolStats]:
        """Return the pools of the servers that the client knows now."""
        return [pool for pool in self.pools if pool.phase != "closed"]

    @property
    def connected(self) -> bool:
        """Return whether a server can be reached, by heartbeats; else by its pool's phase.

        A client that was not used yet in this process (a forked one) has nothing to complain of.
        """
        return not self.pools or any(
            pool.phase == "ready" if pool.up is None else pool.up for pool in self.open_pools
        )


class HasStats(Protocol):
    """What a reader takes in the place of stats: a `PoolTelemetry`."""

    def stats(self) -> ClientStats:
        """Return all that is known at this moment."""


def stats_of(given: ClientStats | HasStats) -> ClientStats:
    """Return the stats that a reader was given, or those of the telemetry that it was given.

    Raises:
        TypeError: It is neither.
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
