"""One sleeping thread that looks at every pool, for what no event can tell: that time passes.

It says when a pool is exhausted and when it has recovered, names who keeps a connection for too
long, and keeps the history that a diagnosis reads. It starts with the first pool, ends with the
last, and a forked child that uses its client has its own. Nothing here is on the hot path.
"""

import contextlib
import logging
import threading
import weakref
from _thread import start_new_thread
from typing import Final, Protocol

from pool_telemetry.options import TelemetryOptions
from pool_telemetry.process import ProcessLock, after_fork, threads_are_known
from pool_telemetry.state.connections import Checkout
from pool_telemetry.state.exhaustion import NOTEWORTHY_SECONDS, RECOVERED_SECONDS
from pool_telemetry.state.frames import stack_of
from pool_telemetry.state.pool_state import PoolState
from pool_telemetry.stats import CallerStats, Episode, PoolStats, pool_name
from pool_telemetry.watch.callbacks import Callbacks

LOOK_SECONDS: Final = 0.5
TOP_HOLDERS: Final = 5
# Stacks that one look reads: each takes some 0.1 ms, and thousands may be in use.
MAX_STACKS: Final = 100

_log = logging.getLogger("pool_telemetry.watch")


class Watched(Protocol):
    """What is watched: a client's telemetry."""

    name: str
    options: TelemetryOptions
    callbacks: Callbacks

    @property
    def active(self) -> bool:
        """Return whether its client is in use."""

    def now(self) -> float:
        """Return monotonic seconds, by the clock of its pools."""

    def states(self) -> list[PoolState]:
        """Return its pools."""

    def holding(self, state: PoolState) -> tuple[dict[int, Checkout], dict[int, CallerStats]]:
        """Return who has which connection of a pool: as it stands there, and in names."""

    def remember(self, *, at_once: bool) -> None:
        """Take a sample for the history, if it is time; a trouble's beginning makes it urgent."""

    def on_error(self, error: Exception) -> None:
        """Count and log a failure of ours."""


class _Seen:
    """What was seen of one pool."""

    def __init__(self) -> None:
        self.exhausted = False
        # Of the exhaustion that goes on; before it, where it will begin.
        self.pool = ""  # as it was called then: who took its client's place took its name
        self.time_before = 0.0
        self.timeouts_before = 0
        self.peak = 0
        self.holders: tuple[CallerStats, ...] = ()
        self.told = False
        self.may_tell = 0.0  # from when on one may be told again
        self.untold = 0  # exhaustions that are over, and their seconds
        self.untold_seconds = 0.0
        self.long: dict[int, tuple[Checkout, str]] = {}  # who has a connection, in names


_lock: Final = ProcessLock()
_watched: "weakref.WeakSet[Watched]" = weakref.WeakSet()
_seen: "weakref.WeakKeyDictionary[PoolState, _Seen]" = weakref.WeakKeyDictionary()
_thread: threading.Thread | None = None


def add(watched: Watched) -> None:
    """Watch a client's pools from now on, if its options say so. Again is no error."""
    global _thread
    if not watched.options.watch:
        return
    with _lock:
        _watched.add(watched)
        if _thread is None or (threads_are_known() and not _thread.is_alive()):
            thread = threading.Thread(target=_run, name="pool_telemetry-watch", daemon=True)
            try:
                if threads_are_known():
                    thread.start()
                else:  # a dead thread may hold a lock that it waits for: the caller must not
                    start_new_thread(thread.start, ())
            except RuntimeError:  # no room for a thread, or the process ends: the next pool tries
                return
            _thread = thread


def _run() -> None:
    global _thread
    pause = threading.Event()
    while not pause.wait(LOOK_SECONDS):
        with contextlib.suppress(Exception):  # a log handler of the application's that fails
            look_at_all()
        with _lock:
            if not _watched:
                _thread = None
                return


def look_at_all() -> None:
    """Look at every client's pools once, for the last time at those that are closed."""
    with _lock:
        every = list(_watched)
    for watched in every:
        if not watched.active:
            with _lock:
                if not watched.active:  # a pool that begins now adds it again
                    _watched.discard(watched)
        look_at(watched)


def look_at(watched: Watched) -> None:
    """Look at one client's pools once."""
    begins = False
    try:
        for state in watched.states():
            stats, seen = state.stats(), _seen.setdefault(state, _Seen())
            before = seen.exhausted
            _look_for_exhaustion(watched, state, stats, seen)
            begins |= seen.exhausted and not before
            _look_for_long_checkouts(watched, state, stats, seen)
        watched.remember(at_once=begins)
    except Exception as error:
        watched.on_error(error)


# Exhaustion


def _look_for_exhaustion(watched: Watched, state: PoolState, stats: PoolStats, seen: _Seen) -> None:
    now = watched.now()
    may_tell = now >= seen.may_tell
    if not seen.exhausted and not _begins(stats, seen):
        if seen.untold and may_tell:
            seen.may_tell = now + watched.options.notice_seconds
            _tell_untold(watched, stats, seen)
        if not stats.exhausted:
            _forget(seen, stats)
        return
    if not seen.exhausted:
        seen.exhausted, seen.peak, seen.holders = True, 0, ()
        seen.pool = pool_name(watched.name, state.address)
    seen.peak = max(seen.peak, stats.peak_waiting)
    if stats.exhausted or not seen.holders:
        seen.holders = _top_holders(watched, state)
    if not seen.told and may_tell:
        seen.told, seen.may_tell = True, now + watched.options.notice_seconds
        _tell_exhausted(watched, stats, seen)
    if stats.phase == "closed" or _is_over(stats):
        if seen.told:
            _tell_recovered(watched, stats, seen)
        else:
            seen.untold += 1
            seen.untold_seconds += stats.exhausted_time - seen.time_before
        seen.exhausted = seen.told = False
        _forget(seen, stats)


def _begins(stats: PoolStats, seen: _Seen) -> bool:
    if stats.phase == "closed":
        return False
    new = stats.exhausted_time - seen.time_before
    timed_out = stats.checkouts["timeout"] > seen.timeouts_before
    return new >= NOTEWORTHY_SECONDS or (new > 0.0 and timed_out)


def _is_over(stats: PoolStats) -> bool:
    # Where who waited just gave up, and nothing came back since, the next one finds none either;
    # nor where the server has gone.
    quiet = not stats.exhausted and not stats.stalled_time
    there = stats.up is not False and stats.phase == "ready"
    return quiet and there and (stats.since_exhausted or 0.0) >= RECOVERED_SECONDS


def _forget(seen: _Seen, stats: PoolStats) -> None:
    seen.time_before, seen.timeouts_before = stats.exhausted_time, stats.checkouts["timeout"]


def _top_holders(watched: Watched, state: PoolState) -> tuple[CallerStats, ...]:
    every = watched.holding(state)[1].values()
    return tuple(sorted(every, key=lambda one: one.seconds, reverse=True)[:TOP_HOLDERS])


def _episode(stats: PoolStats, seen: _Seen) -> Episode:
    return Episode(
        pool=seen.pool,
        max_size=stats.max_size,
        in_use=stats.in_use,
        waiting=stats.waiting,
        seconds=stats.exhausted_time - seen.time_before,
        peak_waiting=seen.peak,
        timeouts=stats.checkouts["timeout"] - seen.timeouts_before,
        holders=seen.holders,
    )


def _tell_exhausted(watched: Watched, stats: PoolStats, seen: _Seen) -> None:
    episode = _episode(stats, seen)
    _log.warning(
        "pool %r %s%s; held by %s%s",
        episode.pool,
        f"is exhausted: {stats.in_use} of {stats.max_size} in use, {stats.waiting} waiting, "
        f"the oldest for {stats.oldest_wait:.2f} s"
        if stats.exhausted
        else f"was exhausted for {episode.seconds:.2f} s: up to {episode.peak_waiting} waited for "
        f"one of {stats.max_size}",
        f", {episode.timeouts} timeouts" if episode.timeouts else "",
        _holders(episode),
        f" ({seen.untold} more since the last one that was told)" if seen.untold else "",
    )
    seen.untold, seen.untold_seconds = 0, 0.0
    watched.callbacks.call(watched.options.on_exhausted, episode)


def _tell_recovered(watched: Watched, stats: PoolStats, seen: _Seen) -> None:
    episode = _episode(stats, seen)
    # The end has the level of the beginning: a reader who saw the one needs the other.
    _log.warning(
        "pool %r %s after %.2f s of exhaustion: at most %d waited, %d checkouts timed "
        "out; it was held by %s",
        episode.pool,
        "was closed" if stats.phase == "closed" else "has recovered",
        episode.seconds,
        episode.peak_waiting,
        episode.timeouts,
        _holders(episode),
    )
    watched.callbacks.call(watched.options.on_recovered, episode)


def _tell_untold(watched: Watched, stats: PoolStats, seen: _Seen) -> None:
    _log.warning(
        "pool %r was exhausted again since that was told: %s, for %.2f s in all",
        pool_name(watched.name, (stats.host, stats.port)),
        "once" if seen.untold == 1 else f"{seen.untold} times",
        seen.untold_seconds,
    )
    seen.untold, seen.untold_seconds = 0, 0.0


def _holders(episode: Episode) -> str:
    return "; ".join(one.in_words() for one in episode.holders) or "nobody any more"


# Long checkouts


def _look_for_long_checkouts(
    watched: Watched, state: PoolState, stats: PoolStats, seen: _Seen
) -> None:
    limit = watched.options.long_checkout_seconds
    if not limit or (stats.longest_checkout < limit and not seen.long):
        return
    held, holders = watched.holding(state)
    name, now = pool_name(watched.name, state.address), watched.now()
    ended = [(i, *long) for i, long in seen.long.items() if held.get(i) != long[0]]
    how = "closed" if stats.phase != "ready" else "back"
    for number, (conn_id, holder, who) in enumerate(ended):
        del seen.long[conn_id]
        if number < TOP_HOLDERS:
            _log.warning(
                "the connection of pool %r that %s held is %s after %.2f s",
                name,
                who,
                how,
                now - holder[1],
            )
    if (others := len(ended) - TOP_HOLDERS) > 0:
        _log.warning("%d more connections of pool %r that were held are %s", others, name, how)
    new = [i for i, one in holders.items() if one.seconds >= limit and i not in seen.long]
    for conn_id in new:
        seen.long[conn_id] = held[conn_id], holders[conn_id].who
        state.count_long_checkout()
    if not new:
        return
    new.sort(key=lambda i: holders[i].seconds, reverse=True)
    waiters, elsewhere = state.waiters(), state.holders()[1]
    at_place: dict[tuple[bool, tuple[str, ...]], list[CallerStats]] = {}
    for conn_id in new[:MAX_STACKS]:
        actor = held[conn_id][0]
        gone_on = actor in waiters or conn_id in elsewhere
        at_place.setdefault((gone_on, tuple(stack_of(actor))), []).append(holders[conn_id])
    reported = list(at_place.items())[:TOP_HOLDERS]
    for (gone_on, stack), callers in reported:
        _log.warning(
            "%s of pool %r %s held by %s; now%s at\n  %s",
            "a connection" if len(callers) == 1 else f"{len(callers)} connections",
            name,
            "is" if len(callers) == 1 else "are",
            _in_words(callers),
            ", busy with something else," if gone_on else "",
            "\n  ".join(stack) or "(it is gone)",
        )
    if others := len(new) - sum(len(callers) for _, callers in reported):
        _log.warning(
            "%d more connections of pool %r are held for %g s or more", others, name, limit
        )


def _in_words(callers: list[CallerStats]) -> str:
    """Return the first callers in words, and the number of the others."""
    words = [one.in_words() for one in callers[:TOP_HOLDERS]]
    if others := len(callers) - len(words):
        words.append(f"{others} more")
    return "; ".join(words)


@after_fork
def _begin_anew() -> None:
    global _thread
    _thread = None
    _watched.clear()
    _seen.clear()
