"""Whether this is still the same process, and what begins anew in a forked one, whoever forked.

The hooks of `os.register_at_fork` run only where Python forks. uWSGI forks in C: there no hook
runs, neither ours nor those of `threading` and PyMongo. So the first event of an operation and
every reader ask here first. The ground floor: it knows nothing of what is above.
"""

import mmap
import os
import sys
from collections.abc import Callable
from threading import RLock
from typing import Any, Final

_MADV_WIPEONFORK: Final = 18  # since Linux 4.14; the module mmap has no name for it


class _ProcessId:
    """Stands in for memory that forks wipe; each look is a system call of 0.1 to 0.5 µs."""

    def __init__(self) -> None:
        self[0] = 1

    def __getitem__(self, _: int) -> bool:
        return self._pid == os.getpid()

    def __setitem__(self, _: int, value: int) -> None:
        self._pid = os.getpid()


def _memory() -> Any:
    """Return memory whose first byte is 1 here and 0 in each process that is forked from here."""
    if sys.platform != "linux":
        return _ProcessId()
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except OSError:  # an older kernel, or an imitation of one
        return _ProcessId()
    page[0] = 1
    return page


unforked: Final = _memory()
"""`unforked[0]` is false until a forked process has begun anew: 0.02 µs for the hot path."""

_hooks: Final[list[Callable[[], None]]] = []
_locks: Final[dict[int, RLock]] = {}  # by process id: a dead thread may hold a parent's for ever
_beginning: int | None = None
_threads_are_known = True


def after_fork(hook: Callable[[], None]) -> Callable[[], None]:
    """Have this called once in every forked process, before anything else of ours runs there."""
    _hooks.append(hook)
    return hook


def notice_fork() -> None:
    """Begin anew if this process was forked since the last call. Takes none of a parent's locks."""
    if not unforked[0]:
        _begin_anew(threads_are_known=False)


class ProcessLock:
    """A reentrant lock of a module, which every forked process begins with unlocked.

    Not for the hot path: to enter it is to ask whether the process was forked.
    """

    def __init__(self) -> None:
        self._renew()
        after_fork(self._renew)

    def _renew(self) -> None:
        self._lock = RLock()

    def __enter__(self) -> None:
        notice_fork()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def threads_are_known() -> bool:
    """Return whether the interpreter knows which threads there are, and PyMongo that it forked.

    False after a fork in C: the interpreter's list of threads has the parent's for ever. Their
    `is_alive()` is true, and to look at their frames ends the process (SIGSEGV).
    """
    return _threads_are_known


def _begin_anew(*, threads_are_known: bool) -> None:
    global _beginning, _threads_are_known
    pid = os.getpid()
    with _locks.setdefault(pid, RLock()):
        if _beginning == pid or (unforked[0] and not threads_are_known):
            return  # a hook asks, or another thread was here first
        _beginning, _threads_are_known = pid, threads_are_known
        try:
            for hook in _hooks:
                hook()
        finally:
            unforked[0] = 1
            _beginning = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _begin_anew(threads_are_known=True))
