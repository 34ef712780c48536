"""Every client of this process: which are active, which have closed, their names, and forks.

`PoolTelemetry` adds itself here. An exporter that reads `active()` and `ClosedClients` covers every
client of the process with one registration.
"""

import itertools
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from pool_telemetry.events.listeners import PoolListener
from pool_telemetry.process import ProcessLock, after_fork
from pool_telemetry.state.pool_state import Clock

if TYPE_CHECKING:
    from pool_telemetry.telemetry import PoolTelemetry

_MAX_OUTER: Final = 180  # characters of its name in that of the inner client; 200 are allowed

_lock: Final = ProcessLock()
_clients: "weakref.WeakKeyDictionary[PoolTelemetry, None]"
_clients = weakref.WeakKeyDictionary()  # in the order in which they were added
_by_listener: "weakref.WeakKeyDictionary[PoolListener, PoolTelemetry]"
_by_listener = weakref.WeakKeyDictionary()
# Clients that closed last: kept alive so that exporters can report their last values.
_kept: "deque[PoolTelemetry]" = deque(maxlen=10)


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
    """The clients closed since a reader's previous collection, which lacked their last values.

    Without these the values of a short program would be lost. A closed client is reported by the
    first collection after its close, and by those of the next `keep_seconds`.

    Args:
        keep_seconds: How long collections repeat a client; 0.0 is one collection.
        clock: Monotonic seconds.
    """

    def __init__(self, keep_seconds: float = 0.0, *, clock: Clock = time.monotonic) -> None:
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


# Called by PoolTelemetry and the singletons


def add(telemetry: "PoolTelemetry") -> None:
    """Add a client. If an active client has its name, number it: `NAME#2`."""
    with _lock:
        telemetry.name = _free_name(telemetry.options.name)
        _clients[telemetry] = None


def add_listener(listener: PoolListener, telemetry: "PoolTelemetry") -> None:
    """Let `telemetry_of()` find the telemetry of the client that gets this listener."""
    _by_listener[listener] = telemetry


def keep_if_closed(telemetry: "PoolTelemetry") -> None:
    """Keep a client that is no longer active, because its last values are still to be reported."""
    if not telemetry.active and telemetry not in _kept:
        _kept.append(telemetry)


def take_over_name(new: "PoolTelemetry", old: "PoolTelemetry") -> None:
    """Give the name of a replaced client to its replacement, if both asked for the same name."""
    with _lock:
        if new.options.name == old.options.name:
            new.name, old.name = old.name, new.name
            inner = [(one.inner, one.name) for one in (new, old) if one.inner is not None]
            for one, _ in inner:
                one.name = ""
            for one, name in inner:
                one.name = _free_name(inner_name(name))


def inner_name(name: str) -> str:
    """Return the name of the client that PyMongo makes for another client's encryption."""
    return f"{name[:_MAX_OUTER]}/encryption" if name else "encryption"


def _every() -> list["PoolTelemetry"]:
    with _lock:
        return list(_clients)


def _free_name(wanted: str) -> str:
    taken = {telemetry.name for telemetry in active()}
    return next(
        name
        for name in itertools.chain([wanted], (f"{wanted}#{n}" for n in itertools.count(2)))
        if name not in taken
    )


@after_fork
def _restart_in_child() -> None:
    _kept.clear()
    for telemetry in list(_clients):
        telemetry._after_fork()
