"""Finds the root of this process's service: the process whose descendants are its workers.

A web server forks its workers, or makes them by `multiprocessing`. So a process belongs to its
parent's service if it runs the same program without `exec`, or if `multiprocessing` made it. A
program that a shell or systemd starts is a service of its own.
"""

import os
from pathlib import Path
from typing import Final, NamedTuple

_FORKED: Final = 0x40  # PF_FORKNOEXEC in Linux: no program was executed since the fork
_SPAWNED: Final = (b"--multiprocessing-fork", b"multiprocessing.forkserver")
_MAX_GENERATIONS: Final = 20
_PROC: Final = Path("/proc")


class _Process(NamedTuple):
    """What Linux knows of a process."""

    pid: int
    parent: int
    session: int
    flags: int
    started: int  # in ticks since the system's start


class Service(NamedTuple):
    """A service on this host.

    Attributes:
        name: A file name that no other service has, before or after a restart.
        is_root: Whether this process is the root itself.
    """

    name: str
    is_root: bool


def service() -> Service:
    """Return the service of this process."""
    pid = os.getpid()
    own = root = _read(pid)
    if own is None or root is None:  # not Linux
        import multiprocessing  # here, because it costs 10 ms

        parent = multiprocessing.parent_process()
        number = pid if parent is None or parent.pid is None else parent.pid
        return Service(f"0-{number}-0", is_root=parent is None)
    for _ in range(_MAX_GENERATIONS):
        if (parent_of_root := _parent(root)) is None:
            break
        root = parent_of_root
    return Service(f"{_namespace()}-{root.pid}-{root.started}", is_root=root.pid == own.pid)


def may_live(name: str) -> bool:
    """Return whether the root of a service lives, or can't be seen from here."""
    namespace, _, rest = name.partition("-")
    pid, _, started = rest.partition("-")
    if namespace != str(_namespace()) or not (pid.isdecimal() and started.isdecimal()):
        return True
    found = _read(int(pid))
    return found is not None and found.started == int(started)


def _namespace() -> int:
    """Return the number of the namespace of process ids: each container has its own."""
    try:
        return (_PROC / "self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _read(pid: int) -> _Process | None:
    try:
        # The name in parentheses may contain spaces and parentheses.
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        return _Process(pid, int(fields[1]), int(fields[3]), int(fields[6]), int(fields[19]))
    except (OSError, ValueError, IndexError):
        return None


def _parent(one: _Process) -> _Process | None:
    """Return the process that belongs to the same service and started this one."""
    parent = _read(one.parent)
    if parent is None:
        return None
    if one.flags & _FORKED:
        # Another program adopts a process whose parent has ended; a daemon has a session of its
        # own, too.
        ours, theirs = _program(one.pid), _program(parent.pid)
        same = one.session == parent.session and (not theirs or ours == theirs)
        return parent if same else None
    return parent if any(word in _command(one.pid) for word in _SPAWNED) else None


def _program(pid: int) -> str:
    """Return the program of a process; empty if its owner keeps that from us."""
    try:
        return str((_PROC / str(pid) / "exe").readlink())
    except OSError:
        return ""


def _command(pid: int) -> bytes:
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""
