"""The unused series, which exporters leave out.

The counts of such a series stay in the state, and the series goes on from them if it returns: no
counter falls. Ages come from the exporters' readings, so nothing of this is on the hot path. Each
exporter has its own ages: one begins when that exporter finds a new count, which it shows from then
on for some time.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from pool_telemetry.standstill import total_seconds
from pool_telemetry.stats import Address, ClientStats, OperationStats, PoolStats

CLOSED_SECONDS: Final = 300.0
"""Seconds for which a closed pool is shown: a scrape each minute has its last values five times."""

UNUSED_SECONDS: Final = 3_600.0
"""Seconds for which a series of commands is shown: most periodic jobs run at least once an hour."""


_Key = tuple[Any, ...]
"""A name; of a pool also its address, and of a series of commands its attributes."""


def is_shown(pool: PoolStats) -> bool:
    """Return whether `get_pool_stats()` lists a pool: it is open or in use, or it closed lately."""
    return pool.since_closed is None or pool.since_closed < CLOSED_SECONDS or _is_in_use(pool)


class Aging:
    """When the readings of one exporter last found each series changed.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # The counts of each series at the last reading, and when a reading first found them.
        self._changed: dict[_Key, tuple[object, float]] = {}

    def current(self, clients: Iterable[ClientStats], with_state: set[str]) -> list[ClientStats]:
        """Return the clients without their unused series, and without unused clients.

        Args:
            clients: Each name's stats, of all names.
            with_state: The names that have a client with a state to report.
        """
        now = self._clock() - total_seconds()  # nothing could change while the process stood still
        reading = _Reading(now, self._changed)
        found = [reading.current(client, with_state) for client in clients]
        self._changed = reading.changed
        return [client for client in found if client is not None]


class _Reading:
    def __init__(self, now: float, before: dict[_Key, tuple[object, float]]) -> None:
        self._now = now
        self._before = before
        self.changed: dict[_Key, tuple[object, float]] = {}

    def current(self, client: ClientStats, with_state: set[str]) -> ClientStats | None:
        """Return a client without its unused series; None if nothing of it is left."""
        name = client.name
        pools = tuple(one for one in client.pools if self._keeps(name, one, is_open=_is_open(one)))
        ended = tuple(one for one in client.ended if self._keeps(name, one, is_open=False))
        shown = {(pool.host, pool.port) for pool in (*pools, *ended)}
        operations = tuple(one for one in client.operations if self._uses(name, one, shown))
        counts = client.agents, client.server_selection.failures, client.telemetry_errors
        unchanged = self._unchanged_seconds((name,), counts)
        if name not in with_state and not shown and unchanged >= CLOSED_SECONDS:
            return None
        return replace(client, pools=pools, ended=ended, operations=operations)

    def _keeps(self, name: str, pool: PoolStats, *, is_open: bool) -> bool:
        checkouts, closed = sum(pool.checkouts.values()), sum(pool.closed.values())
        counts = is_open, checkouts, pool.use_time.count, pool.created, closed, pool.cleared
        seconds = self._unchanged_seconds((name, pool.host, pool.port), counts)
        return is_open or seconds < CLOSED_SECONDS

    def _uses(self, name: str, series: OperationStats, shown: set[Address]) -> bool:
        """Return whether a series was used lately and its pool is shown, which names it."""
        seconds = self._unchanged_seconds((name, series.series), series.duration.count)
        has_pool = not series.host or (series.host, series.port) in shown
        return has_pool and seconds < UNUSED_SECONDS

    def _unchanged_seconds(self, key: _Key, counts: object) -> float:
        before = self._before.get(key)
        if before is None or before[0] != counts:
            before = counts, self._now
        self.changed[key] = before
        return self._now - before[1]


def _is_open(pool: PoolStats) -> bool:
    return pool.phase != "closed" or _is_in_use(pool)


def _is_in_use(pool: PoolStats) -> bool:
    return bool(pool.size or pool.waiting)
