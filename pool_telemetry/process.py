"""Notices that the process was forked, by Python or in C, and runs our hooks in the child.

The hooks of `os.register_at_fork` run only where Python forks. uWSGI forks in C: there no hook
runs, neither ours nor those of `threading` and PyMongo. So the first event of an operation and
every reader ask here first. This module imports no other module of ours.
"""

import mmap
import os
import sys
from _thread import start_new_thread
from collections.abc import Callable
from threading import RLock, Thread
from typing import Any, Final

_MADV_WIPEONFORK: Final = 18  # since Linux 4.14; the module mmap has no name for it


class _ProcessId:
    """Replaces memory that forks wipe; each read is a system call of 0.1 to 0.5 µs."""

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
    except OSError:  # an older kernel, or an emulated one
        return _ProcessId()
    page[0] = 1
    return page


unforked: Final = _memory()
"""`unforked[0]` is false in a forked process until its hooks have run: 0.02 µs on the hot path."""

_hooks: Final[list[Callable[[], None]]] = []
_locks: Final[
    dict[int, RLock]
] = {}  # by process id: a thread of the parent may hold the parent's for ever
_beginning: int | None = None
_threads_are_known = True


def after_fork(hook: Callable[[], None]) -> Callable[[], None]:
    """Register a hook that runs once in every forked process, before all other code of ours."""
    _hooks.append(hook)
    return hook


def notice_fork() -> None:
    """Run the hooks if this process was forked since the last call. Takes no lock of the parent."""
    if not unforked[0]:
        _begin_anew(threads_are_known=False)


class ProcessLock:
    """A reentrant lock of a module, which is unlocked at the start of every forked process.

    Not for the hot path, because entering it checks for a fork.
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
    """Return whether the interpreter knows which threads exist, and PyMongo knows of the fork.

    False after a fork in C: the interpreter's list keeps the threads of the parent for ever. Their
    `is_alive()` is true, and reading their frames ends the process (SIGSEGV).
    """
    return _threads_are_known


def start_thread(run: Callable[[], None], *, name: str) -> Thread | None:
    """Return a daemon thread that runs a function; None if there are no more threads."""
    thread = Thread(target=run, name=name, daemon=True)
    try:
        if _threads_are_known:
            thread.start()
        else:
            # start() waits for the new thread, which may need a lock that a thread of the parent
            # held at the fork. So another thread calls it, and not the caller.
            start_new_thread(thread.start, ())
    except RuntimeError:  # no more threads, or the process ends
        return None
    return thread


def _begin_anew(*, threads_are_known: bool) -> None:
    global _beginning, _threads_are_known
    pid = os.getpid()
    with _locks.setdefault(pid, RLock()):
        if _beginning == pid or (unforked[0] and not threads_are_known):
            return  # a hook calls this, or another thread has run the hooks
        _beginning, _threads_are_known = pid, threads_are_known
        try:
            for hook in _hooks:
                hook()
        finally:
            unforked[0] = 1
            _beginning = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _begin_anew(threads_are_known=True))
