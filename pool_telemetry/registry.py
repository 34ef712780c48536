"""Every client of this process: which are active, which have closed, their names, and forks.

`PoolTelemetry` adds itself here. An exporter that reads `active()` and `ClosedClients` covers every
client of the process with one registration.
"""

import itertools
import time
import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pool_telemetry import totals
from pool_telemetry.aging import Aging
from pool_telemetry.events.listeners import PoolListener
from pool_telemetry.process import ProcessLock, after_fork
from pool_telemetry.standstill import on_standstill
from pool_telemetry.state.pool_state import Clock
from pool_telemetry.stats import OVERFLOW, Address, ClientStats, printable

if TYPE_CHECKING:
    from pool_telemetry.telemetry import PoolTelemetry

MAX_NUMBERED: Final = 10
"""Open clients of one name that have a number each. All further ones share one name, in sums."""

MAX_NAMES: Final = 50
"""Open clients' names, and as many of ended ones: a name has some 300 series, 18 kB of text."""

LATELY_SECONDS: Final = 60.0
"""The seconds of `ClientStats.clients_made_lately`."""

_MAX_OUTER: Final = 180  # characters of its name in that of the inner client; 200 are allowed
_MAX_WANTED: Final = 1_000  # names that clients asked for; far above MAX_NAMES
_KEPT: Final = 10  # clients that closed last

_lock: Final = ProcessLock()
# Of the set of clients alone: a reader that holds the other lock may wait for the end of a
# standstill's hooks, and these read the set.
_clients_lock: Final = ProcessLock()
_clients: "weakref.WeakKeyDictionary[PoolTelemetry, None]"
_clients = weakref.WeakKeyDictionary()  # in the order in which they were added
_by_listener: "weakref.WeakKeyDictionary[PoolListener, PoolTelemetry]"
_by_listener = weakref.WeakKeyDictionary()
# Clients that closed last: kept alive so that exporters can report their last values.
_kept: "deque[PoolTelemetry]" = deque()
# The counts of clients that are kept no longer, and of renamed ones until then, by name.
_totals: dict[str, ClientStats] = {}
# A client's counts so far that are in the totals.
_in_totals: "weakref.WeakKeyDictionary[PoolTelemetry, ClientStats]" = weakref.WeakKeyDictionary()


class _Wanted:
    """The clients that asked for one name."""

    def __init__(self) -> None:
        self.made = 0
        self.made_at = deque[float](maxlen=1_000)
        self.open: weakref.WeakSet[PoolTelemetry] = weakref.WeakSet()


_by_wanted: dict[str, _Wanted] = {}


def active() -> list["PoolTelemetry"]:
    """Return the telemetry of every active client of this process, the oldest first."""
    return [telemetry for telemetry in _every() if telemetry.active]


def recently_closed() -> list["PoolTelemetry"]:
    """Return the telemetry of closed clients, the oldest first.

    The last ten are kept; older ones are included while something else refers to them.
    """
    return [telemetry for telemetry in _every() if not telemetry.active]


def telemetry_of(client: Any) -> "PoolTelemetry | None":
    """Return the telemetry whose listeners a client has; None if it has no listeners of ours."""
    ours = (one for one in client.options.event_listeners if isinstance(one, PoolListener))
    return next((_by_listener[one] for one in ours if one in _by_listener), None)


class ClosedClients:
    """The collections of one reader so far: of closed clients, and of each series' changes.

    The clients closed since the previous collection lacked their last values there. Without these
    the values of a short program would be lost. A closed client is reported by the first collection
    after its close, and by those of the next `keep_seconds`.

    Args:
        keep_seconds: How long collections repeat a client; 0.0 is one collection.
        clock: Monotonic seconds.

    Attributes:
        aging: The ages of the series in this reader's collections.
    """

    def __init__(self, keep_seconds: float = 0.0, *, clock: Clock = time.monotonic) -> None:
        self.aging = Aging(clock)
        self._keep_seconds = keep_seconds
        self._clock = clock
        self._first_at: weakref.WeakKeyDictionary[PoolTelemetry, float]
        self._first_at = weakref.WeakKeyDictionary()

    def to_report(self) -> list["PoolTelemetry"]:
        """Return the closed clients to report now, except if another client has their name."""
        now = self._clock()
        shown = list["PoolTelemetry"]()
        for one in recently_closed():
            first_at = self._first_at.setdefault(one, now)
            if first_at == now or now - first_at < self._keep_seconds:
                shown.append(one)
        taken = {telemetry.name for telemetry in active()}
        return list({one.name: one for one in shown if one.name not in taken}.values())


class Collected(NamedTuple):
    """All names at one moment, for exporters.

    Attributes:
        clients: One `ClientStats` for each name, without the unused series.
        everything: The same with these series.
    """

    clients: list[ClientStats]
    everything: list[ClientStats]


def clients_to_report(
    closed: ClosedClients, earlier: Iterable[ClientStats] = ()
) -> list[ClientStats]:
    """Return `collect(closed, earlier).clients`."""
    return collect(closed, earlier).clients


def collect(closed: ClosedClients, earlier: Iterable[ClientStats] = ()) -> Collected:
    """Return one `ClientStats` for each name, with the counts of its ended clients.

    So a name's counters never fall, whichever of its clients ends. A name that no open client has
    keeps its counts alone, in `ended`. `aging` decides which series are unused.

    Args:
        closed: The reader's collections so far.
        earlier: Counts of another process, from which the counts of this process go on.
    """
    with _lock:
        _move_oldest_to_totals()
        with_state = {*active(), *closed.to_report()}
        parts = dict[str, list[ClientStats]]()
        for one in (*earlier, *_totals.values()):
            parts.setdefault(one.name, []).append(one)
        for telemetry in _every():
            stats = _new_counts(telemetry)
            if telemetry not in with_state:
                stats = totals.counts_of(stats)
                if not stats.ended:  # it never had a pool
                    continue
            parts.setdefault(telemetry.name, []).append(stats)
        everything = [_with_clients(totals.total(one), name) for name, one in parts.items()]
        names = {telemetry.name for telemetry in with_state}
        return Collected(closed.aging.current(everything, names), everything)


def count_clients(stats: ClientStats, wanted: str) -> ClientStats:
    """Return stats with the numbers of clients that asked for a name."""
    found = _by_wanted.get(wanted)
    if found is None:
        return stats
    since = time.monotonic() - LATELY_SECONDS
    return replace(
        stats,
        clients_made=found.made,
        clients_made_lately=sum(at > since for at in tuple(found.made_at)),
        clients_open=len(found.open),
    )


def _with_clients(stats: ClientStats, name: str) -> ClientStats:
    none = replace(stats, clients_made=0, clients_made_lately=0, clients_open=0)
    return count_clients(none, name)


def _new_counts(telemetry: "PoolTelemetry") -> ClientStats:
    """Return a client's stats, with the counts that are not in the totals yet."""
    stats, before = telemetry.stats(), _in_totals.get(telemetry)
    return stats if before is None else totals.since(stats, before)


def _move_oldest_to_totals() -> None:
    """Move the counts of clients that are kept no longer, so that their memory is freed."""
    while len(_kept) > _KEPT:
        telemetry = _kept.popleft()
        if not telemetry.active:  # one that is used again will be kept again
            _move_to_totals(telemetry)
    names = {telemetry.name for telemetry in active()}
    ended = [name for name in _totals if name not in names]
    for name in ended[:-MAX_NAMES]:
        if name != OVERFLOW:  # so that the sum over all names never falls
            _add_to_totals(OVERFLOW, replace(_totals.pop(name), name=OVERFLOW))


def _move_to_totals(telemetry: "PoolTelemetry") -> None:
    name, stats, before = telemetry.name, telemetry.stats(), _in_totals.get(telemetry)
    _add_to_totals(name, stats if before is None else totals.since(stats, before))
    _in_totals[telemetry] = totals.counts_of(stats)


def _add_to_totals(name: str, stats: ClientStats) -> None:
    new = totals.counts_of(stats)
    so_far = _totals.pop(name, None)  # the name that changed last is the last
    _totals[name] = totals.bounded(new if so_far is None else totals.total((so_far, new)))


# Called by PoolTelemetry and the singletons


def add(telemetry: "PoolTelemetry") -> None:
    """Add a client. If an open client has its name, number it: `NAME#2`.

    A client without a name gets one with its first pool.
    """
    with _lock:
        _move_oldest_to_totals()
        wanted = telemetry.options.name
        telemetry.name = _free_name(wanted, active()) if wanted else ""
        with _clients_lock:
            _clients[telemetry] = None


def add_listener(listener: PoolListener, telemetry: "PoolTelemetry") -> None:
    """Let `telemetry_of()` find the telemetry of the client that gets this listener."""
    _by_listener[listener] = telemetry


def open_client(telemetry: "PoolTelemetry", address: Address, app_name: str | None) -> None:
    """Count a client that has its first pool, and name it if it has no name.

    Its name is the client's appName, or else empty, because a pool's name has the address. An
    unnamed client is numbered if another one has a pool at the same address.
    """
    with _lock:
        if not telemetry.options.name and not telemetry.states():
            telemetry.wanted = printable(app_name or "").replace("@", " ")[:_MAX_OUTER]
            others = [one for one in active() if one is not telemetry]
            if not telemetry.wanted:
                others = [one for one in others if address in one.open_addresses()]
            telemetry.name = _free_name(telemetry.wanted, others)
        found = _by_wanted.setdefault(telemetry.wanted, _Wanted())
        found.made += 1
        found.made_at.append(time.monotonic())
        found.open.add(telemetry)
        if len(_by_wanted) > _MAX_WANTED:
            del _by_wanted[next(name for name, one in _by_wanted.items() if not one.open)]


def keep_if_closed(telemetry: "PoolTelemetry") -> None:
    """Keep a client that is no longer active, because its last values are still to be reported."""
    if not telemetry.active:
        if (found := _by_wanted.get(telemetry.wanted)) is not None:
            found.open.discard(telemetry)
        if telemetry not in _kept:
            _kept.append(telemetry)


def take_over_name(new: "PoolTelemetry", old: "PoolTelemetry") -> None:
    """Give the name of a replaced client to its replacement, if both asked for the same name.

    Counts stay with the name under which they were counted.
    """
    with _lock:
        if new.wanted != old.wanted or new.name == old.name:
            return
        inner = [(one, one.inner) for one in (new, old) if one.inner is not None]
        for one in (new, old, *(one for _, one in inner)):
            _move_to_totals(one)
        new.name, old.name = old.name, new.name
        others = [one for one in active() if all(one is not renamed for _, renamed in inner)]
        for outer, one in inner:
            one.name = _free_name(inner_name(outer.name), others)
            others.append(one)


def inner_name(name: str) -> str:
    """Return the name of the client that PyMongo makes for another client's encryption."""
    return f"{name[:_MAX_OUTER]}/encryption" if name else "encryption"


def _every() -> list["PoolTelemetry"]:
    with _clients_lock:
        return list(_clients)


def _free_name(wanted: str, others: Iterable["PoolTelemetry"]) -> str:
    """Return a name that none of the others has, or the shared one beyond the limits."""
    taken = {one.name for one in others}
    numbered = (f"{wanted}#{number}" for number in range(2, MAX_NUMBERED + 1))
    free = (name for name in itertools.chain([wanted], numbered) if name not in taken)
    if len(taken) >= MAX_NAMES:
        return OVERFLOW
    return next(free, f"{wanted}#{OVERFLOW}")


@on_standstill
def _leave_out(seconds: float) -> None:
    for telemetry in active():
        telemetry.leave_out(seconds)


@after_fork
def _restart_in_child() -> None:
    _kept.clear()
    _totals.clear()
    _in_totals.clear()
    _by_wanted.clear()
    for telemetry in list(_clients):
        telemetry._after_fork()
