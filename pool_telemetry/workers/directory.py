"""The directory that the processes of one service share, on this host only.

It belongs to one user (mode 0700). Each member has a number and three files there: a lock, which
the kernel releases when the process ends, a socket, and its last answer.
"""

import contextlib
import os
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from pool_telemetry.workers import service

if sys.platform != "win32":
    import fcntl

VARIABLE: Final = "POOL_TELEMETRY_DIR"
"""Names a directory for processes that have no common parent: all that name it find each other."""

MAX_MEMBERS: Final = 1_000

_NAMED: Final = "named"


class UnusableError(Exception):
    """The directory can't be used; the text says why."""


def is_named() -> bool:
    """Return whether POOL_TELEMETRY_DIR names the folder; empty is as good as unset."""
    return bool(os.environ.get(VARIABLE))


def parent_folder() -> Path:
    """Return the folder that has the directories of all services of this user.

    Raises:
        UnusableError: There is no folder for temporary files, or the named one is relative.
    """
    named = os.environ.get(VARIABLE)
    if named and not Path(named).is_absolute():
        raise UnusableError(f"{VARIABLE} is {named!r}: use an absolute path")
    try:
        return Path(named or tempfile.gettempdir()) / f"pool_telemetry-{os.geteuid()}"
    except FileNotFoundError:
        raise UnusableError("there is no folder for temporary files") from None


def path_of(found: service.Service) -> Path:
    """Return the directory of a service, which need not exist."""
    return parent_folder() / (_NAMED if is_named() else found.name)


def named(folder: str) -> Path:
    """Return the directory of the processes that have this folder in POOL_TELEMETRY_DIR."""
    return Path(folder).absolute() / f"pool_telemetry-{os.geteuid()}" / _NAMED


def other_users(folder: str) -> list[str]:
    """Return the ids of other users whose processes have this folder in POOL_TELEMETRY_DIR."""
    found = (one.name.rpartition("-")[2] for one in Path(folder).glob("pool_telemetry-*"))
    return sorted(one for one in found if one.isdecimal() and int(one) != os.geteuid())


def every_directory() -> list[Path]:
    """Return the directories of all services of this user."""
    try:
        return sorted(path for path in parent_folder().iterdir() if path.is_dir())
    except (OSError, UnusableError):
        return []


def prepare(path: Path) -> None:
    """Make a service's directory, and remove those of services that have ended.

    Raises:
        UnusableError: It can't be made, or belongs to another user, or others may use it.
    """
    try:
        if is_named():
            path.parent.parent.mkdir(parents=True, exist_ok=True)
        for folder in (path.parent, path):
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                if folder is path:
                    _sweep(path)
            check(folder)
    except OSError as error:
        raise UnusableError(f"{error.filename or path}: {error.strerror}") from None


def check(folder: Path) -> None:
    """Check that only this user can use a folder.

    Raises:
        UnusableError: It is a link, belongs to another user, or others may use it.
        OSError: It does not exist.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UnusableError(f"{folder} is no directory")
    if found.st_uid != os.geteuid():
        raise UnusableError(f"{folder} belongs to another user")
    if found.st_mode & 0o077:
        raise UnusableError(f"other users may use {folder}: set its mode to 0700")


def check_service(path: Path) -> None:
    """Check a service's directory, and the folder that has it, as `check()` does."""
    for folder in (path.parent, path):
        check(folder)


def take_number(path: Path) -> tuple[int, int]:
    """Return the lowest free number, and the open file that keeps it as long as this process lives.

    Raises:
        UnusableError: All numbers are taken.
        OSError: The files can't be made.
    """
    for number in range(MAX_MEMBERS):
        file = os.open(path / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if _lock(file):
            return number, file
        os.close(file)
    raise UnusableError(f"{path} has {MAX_MEMBERS:,} members")


def _lock(file: int) -> bool:
    """Lock a file for this process. A forked process does not inherit the lock."""
    assert sys.platform != "win32"
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def numbers(path: Path) -> list[int]:
    """Return every number that was ever taken there; none if the directory does not exist."""
    try:
        return sorted(int(one.stem) for one in path.glob("*.lock") if one.stem.isdecimal())
    except OSError:
        return []


def missed_seconds(path: Path, number: int) -> float:
    """Return for how long a member has answered nobody, who asked; note that it just did not."""
    noted = path / f"{number}.missed"
    try:
        with contextlib.suppress(FileExistsError):
            noted.touch(mode=0o600, exist_ok=False)
        return max(0.0, time.time() - noted.stat().st_mtime)
    except OSError:  # a full disk
        return 0.0


def note_answer(path: Path, number: int) -> None:
    """Note that a member answers again."""
    with contextlib.suppress(OSError):
        (path / f"{number}.missed").unlink(missing_ok=True)


def is_shared(path: Path) -> bool:
    """Return whether a directory has or had several members, so that they need names."""
    return numbers(path) not in ([], [0])


def is_complete(path: Path, number: int) -> bool:
    """Return whether others can still find a member."""
    return socket_of(path, number).exists() and (path / f"{number}.lock").exists()


def is_used(path: Path) -> bool:
    """Return whether a process has a number in a directory now."""
    return any(_is_taken(path, number) for number in numbers(path))


def socket_of(path: Path, number: int) -> Path:
    """Return the file of a member's socket."""
    return path / f"{number}.sock"


def write_answer(path: Path, number: int, data: bytes) -> None:
    """Replace a member's last answer."""
    new = path / f"{number}.new"
    new.touch(mode=0o600)
    new.write_bytes(data)
    new.replace(path / f"{number}.json")


def read_answer(path: Path, number: int) -> bytes:
    """Return a member's last answer; empty without one."""
    try:
        return (path / f"{number}.json").read_bytes()
    except OSError:
        return b""


def _sweep(ours: Path) -> None:
    """Remove the directories of services that have ended, with what crashes left there."""
    for path in every_directory():
        other = path.name not in (ours.name, _NAMED) and not service.may_live(path.name)
        if other and not is_used(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_taken(path: Path, number: int) -> bool:
    try:
        file = os.open(path / f"{number}.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _lock(file)
    finally:
        os.close(file)
