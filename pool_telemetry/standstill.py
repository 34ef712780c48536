"""Notices that this process stood still: stopped, frozen with its container, or suspended.

`time.monotonic()` goes on meanwhile, so every age would include time in which no caller could do
anything. The watching thread sleeps for half a second at a time. If it overslept although the
process used little CPU, the process stood still. Modules that keep ages register a hook that leaves
the time out.
"""

from collections.abc import Callable
from time import monotonic, process_time
from typing import Final, TypeVar

from pool_telemetry.log_lines import ProcessLog
from pool_telemetry.process import ProcessLock, after_fork

T = TypeVar("T")

STANDSTILL_SECONDS: Final = 2.0
"""A shorter delay of the watching thread is no standstill: a busy machine delays threads, too."""
MAX_CPU_SHARE: Final = 0.25
"""A process that used more of a CPU was busy: one of its threads kept Python's lock."""

_log: Final = ProcessLog("pool_telemetry.watch")
_lock: Final = ProcessLock()
_hooks: Final[list[Callable[[float], None]]] = []
# When the watching thread should wake up, and the CPU seconds of the process when it fell asleep;
# None while it is awake, for example in a log handler that blocks.
_asleep: tuple[float, float] | None = None
_total = 0.0
_trusted = True


def total_seconds() -> float:
    """Return for how long this process has stood still since its start, or its fork."""
    return _total


def trust_no_sleep() -> None:
    """Notice no standstill any more: a greenlet that sleeps oversleeps while another one blocks."""
    global _trusted
    _trusted = False


def on_standstill(hook: Callable[[float], None]) -> Callable[[float], None]:
    """Register a hook that is called with the seconds for which the process stood still."""
    _hooks.append(hook)
    return hook


def sleep(pause: Callable[[float], T], seconds: float) -> T:
    """Call a function that waits for so long at most, and notice a standstill meanwhile."""
    global _asleep
    _asleep = monotonic() + seconds, process_time()
    found = pause(seconds)
    notice_standstill()
    _asleep = None
    return found


def notice_standstill() -> None:
    """Call the hooks if the watching thread should have woken up long ago.

    Readers call this, too, because one of them may run before the watching thread does.
    """
    global _asleep, _total
    if not unnoticed_seconds():
        return
    with _lock:
        seconds = unnoticed_seconds()
        _asleep = None
        if not seconds:
            return
        _total += seconds
        for hook in _hooks:
            hook(seconds)
    _log.warning(
        "this process stood still for %.1f s: it was stopped, frozen or suspended, so its pools' "
        "ages leave this time out",
        seconds,
    )


def unnoticed_seconds() -> float:
    """Return for how long the process stood still, if that was not noticed yet; else 0.0.

    For an age that ends now. It takes no lock and calls no hook.
    """
    if (asleep := _asleep) is None or not _trusted:
        return 0.0
    seconds = monotonic() - asleep[0]
    if seconds < STANDSTILL_SECONDS:
        return 0.0
    busy = process_time() - asleep[1] > MAX_CPU_SHARE * seconds
    return 0.0 if busy else seconds


def later(at: float, seconds: float, now: float) -> float:
    """Return an instant of before a standstill, moved by its seconds so that its age leaves it out.

    An instant of after the standstill becomes now, which is a moment later only.
    """
    return min(at + seconds, now)


@after_fork
def _restart_in_child() -> None:
    global _asleep, _total
    _asleep, _total = None, 0.0
