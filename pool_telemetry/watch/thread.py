"""One sleeping thread that checks every pool, because no event reports that time passes.

It calls the reporters of each pool and keeps the history that a diagnosis reads. Between two checks
it answers the other processes of the service. It starts with the first pool and ends with the last,
except if others may ask; a forked child that uses its client has a thread of its own. Nothing here
is on the hot path.
"""

import atexit
import contextlib
import threading
import weakref
from typing import Final

from pool_telemetry import workers
from pool_telemetry.process import (
    ProcessLock,
    after_fork,
    notice_fork,
    start_thread,
    threads_are_known,
)
from pool_telemetry.process_end import on_end
from pool_telemetry.standstill import on_standstill
from pool_telemetry.state.pool_state import PoolState
from pool_telemetry.watch.exhaustion_log import ExhaustionLog
from pool_telemetry.watch.long_checkouts import LongCheckouts
from pool_telemetry.watch.service_log import SelectionLog, ServiceLog
from pool_telemetry.watch.watched import Watched

CHECK_SECONDS: Final = 0.5
"""Seconds between two checks of every pool: a report is at most this late."""


class _PoolReports:
    """The reporters of one pool."""

    def __init__(self) -> None:
        self.exhaustion = ExhaustionLog()
        self.long_checkouts = LongCheckouts()
        self.service = ServiceLog()


_lock: Final = ProcessLock()
_watched: "weakref.WeakSet[Watched]" = weakref.WeakSet()
_reports: "weakref.WeakKeyDictionary[PoolState, _PoolReports]" = weakref.WeakKeyDictionary()
_selections: "weakref.WeakKeyDictionary[Watched, SelectionLog]" = weakref.WeakKeyDictionary()
_thread: threading.Thread | None = None
_is_used = False  # a client has or had a pool
_is_unwatched = False  # a client wants no thread


def watch(watched: Watched) -> None:
    """Watch a client's pools from now on if its options say so; a second call changes nothing."""
    global _is_used, _is_unwatched
    _is_used = True
    if not watched.options.workers:
        workers.turn_off()
    workers.go_on()
    if watched.options.watch:
        with _lock:
            _watched.add(watched)
        _begin()
    else:
        _is_unwatched = True


def take_part() -> None:
    """Answer the other processes of this service from now on, if there are any."""
    if not _is_unwatched:
        workers.join()
        if workers.is_member():
            _begin()


@atexit.register
@on_end
def keep_last_counts() -> None:
    """Keep this process's counts for the other processes of its service, if it used a client."""
    notice_fork()
    if _is_used and not _is_unwatched:
        workers.join()  # a short process ends before its watching thread could
        workers.keep_last()


def _begin() -> None:
    """Start the watching thread, except if it runs already."""
    global _thread
    with _lock:
        if _thread is None or (threads_are_known() and not _thread.is_alive()):
            # Without a thread the next pool tries again.
            _thread = start_thread(_run, name="pool_telemetry-watch")


def _run() -> None:
    global _thread
    while True:
        workers.wait(CHECK_SECONDS)
        with contextlib.suppress(Exception):  # a log handler of the application may fail
            check_all()
        with _lock:
            if not _watched and not workers.is_member():
                _thread = None
                return


def check_all() -> None:
    """Check every client's pools once; a closed client is checked for the last time."""
    with _lock:
        every = list(_watched)
    for watched in every:
        if not watched.active:
            with _lock:
                if not watched.active:  # a new pool may have opened meanwhile
                    _watched.discard(watched)
        check(watched)


def check(watched: Watched) -> None:
    """Check one client's pools once."""
    begins = False
    try:
        for state in watched.states():
            if state.pulse is not None:
                state.pulse.ask()
            stats, reports = state.stats(), _reports.setdefault(state, _PoolReports())
            before = reports.exhaustion.exhausted
            reports.exhaustion.check(watched, state, stats)
            begins |= reports.exhaustion.exhausted and not before
            reports.long_checkouts.check(watched, state, stats)
            reports.service.check(watched, stats)
        _selections.setdefault(watched, SelectionLog()).check(watched)
        watched.record_sample(at_once=begins)
    except Exception as error:
        watched.on_error(error)


@on_standstill
def _leave_out(seconds: float) -> None:
    for reports in list(_reports.values()):
        reports.long_checkouts.leave_out(seconds)


@after_fork
def _restart_in_child() -> None:
    global _thread, _is_used
    _thread, _is_used = None, False
    _watched.clear()
    _reports.clear()
    _selections.clear()
