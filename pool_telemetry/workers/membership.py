"""This process among those of its service: its number, its identity, and its answers.

The watching thread calls `wait()` instead of sleeping. A process joins if it is a worker of some
other process, if POOL_TELEMETRY_DIR names a directory, or as soon as one of its workers has joined.
So a process that is alone makes no file.
"""

import contextlib
import logging
import math
import os
import secrets
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

from pool_telemetry.errors import PoolTelemetryError
from pool_telemetry.log_lines import ProcessLog, set_prefix
from pool_telemetry.process import ProcessLock, after_fork, notice_fork
from pool_telemetry.standstill import sleep
from pool_telemetry.version import __version__
from pool_telemetry.workers import directory, wire
from pool_telemetry.workers.service import Service, service

STATS: Final = "stats"
"""The question whose answers are kept: they are what is known of a process that answers no more."""

REQUEST_SECONDS: Final = 0.2
"""The longest time that one member holds another one up, in seconds."""

GONE_SECONDS: Final = 300.0
"""A process that has ended is shown this long, with its last counts, in seconds."""

_PREDECESSOR_SECONDS: Final = 8 * 24 * 3_600.0
"""Counts go on from a last answer that is at most so old: of a job that runs once a week."""

_RETRY_SECONDS: Final = 30.0
"""A process that could not join tries again after so long, in seconds: a full disk may be freed."""

_BACKLOG: Final = 128
_MAX_QUESTION: Final = 64  # bytes
_MAX_ADDRESS: Final = 100  # bytes of a socket's address; Linux has room for 107

_log: Final = ProcessLog("pool_telemetry.workers")
_lock: Final = ProcessLock()
_keeping: Final = ProcessLock()
_answers: Final[dict[str, Callable[[], Any]]] = {}


@dataclass(frozen=True, slots=True)
class _Member:
    """The place of this process in the directory."""

    path: Path
    number: int
    lock_file: int
    listener: socket.socket


_member: _Member | None = None
_instance = ""
_predecessor: wire.Document | None = None
_observed: Path | None = None
_is_off = False
_is_ending = False
_failed_at = -math.inf  # to join, monotonic
_said = set[str]()  # what is said once


def answers(question: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register the function that answers a question with dataclasses and JSON's values."""

    def register(answer: Callable[[], Any]) -> Callable[[], Any]:
        _answers[question] = answer
        return answer

    return register


def answer_of(question: str) -> Any:
    """Return this process's own answer.

    An answer to STATS is kept for others, because a count that was shown must not fall if this
    process is silent or gone at the next question.
    """
    if question == STATS and (member := _member) is not None:
        return _keep(member)[0]
    return _answers[question]()


def identity() -> str:
    """Return a text that no other process has or had: 16 random hexadecimal digits.

    A forked process has a new identity, because its counters begin anew.
    """
    global _instance
    notice_fork()
    if not _instance:
        _instance = secrets.token_hex(8)
    return _instance


def is_member() -> bool:
    """Return whether other processes can ask this one."""
    return _member is not None


def number() -> int | None:
    """Return this process's number among those of its service; None without one."""
    notice_fork()
    return None if (member := _member) is None else member.number


def predecessor() -> wire.Document | None:
    """Return the last answer to STATS of the process that had this one's number before.

    None without one, and if that answer is older than 8 days.
    """
    return _predecessor


def folder() -> Path | None:
    """Return the directory of this process's service; None if it has none yet, or is turned off."""
    if _observed is not None:
        return _observed
    if _is_off:
        return None
    if (member := _member) is not None:
        return member.path
    try:
        path = directory.path_of(_service(os.getpid()))
        directory.check_service(path)
    except (OSError, directory.UnusableError):
        return None
    return path


def service_name() -> str:
    """Return a text that the processes of this service share with no other service."""
    found = _service(os.getpid())
    try:
        return str(directory.path_of(found))
    except directory.UnusableError:
        return found.name


def is_shared() -> bool:
    """Return whether this service has or had several processes, so that answers name them."""
    return _observed is not None or ((path := folder()) is not None and directory.is_shared(path))


def observe(path: Path) -> None:
    """Ask the processes that share a directory, without being one of them."""
    global _observed
    _observed = path


def directory_of(named: str | None) -> Path:
    """Return the directory of the processes that an observer may ask.

    Args:
        named: The value of POOL_TELEMETRY_DIR of these processes; None or empty: the only service
            of this user.

    Raises:
        PoolTelemetryError: Several services run, or none, or another user's.
    """
    if named:
        try:
            return _named(named)
        except (OSError, ValueError) as error:  # the latter for a null character
            reason = getattr(error, "strerror", None) or error
            raise PoolTelemetryError(f"can't use the folder {named!r}: {reason}") from None
    running = [path for path in directory.every_directory() if directory.is_used(path)]
    if len(running) == 1:
        return _checked(running[0])
    words = "set POOL_TELEMETRY_DIR to one folder there and here"
    if not running:
        raise PoolTelemetryError(f"no service of this user has several processes: {words}")
    raise PoolTelemetryError(
        f"{len(running)} services of this user have several processes, and their workers have the "
        f"same numbers: {words}"
    )


def _named(folder: str) -> Path:
    path = directory.named(folder)
    if not path.exists() and (others := directory.other_users(folder)):
        raise PoolTelemetryError(
            f"the processes in {folder} have the user id {' and '.join(others)}, and this one "
            f"has {os.geteuid()}: run it as the same user"
        )
    return _checked(path)


def _checked(path: Path) -> Path:
    try:
        directory.check_service(path)
    except FileNotFoundError:
        pass  # no process has joined yet
    except directory.UnusableError as error:
        raise PoolTelemetryError(str(error)) from None
    return path


def is_observer() -> bool:
    """Return whether this process only asks others."""
    return _observed is not None


def turn_off() -> None:
    """Answer no other process, and ask none, as long as this process lives."""
    global _is_off
    _is_off = True
    leave()


def join() -> None:
    """Join the processes of this service, if there is a reason to; a repeat changes nothing."""
    global _member, _predecessor, _failed_at
    notice_fork()
    if _is_off or _observed is not None or _member is not None:
        return
    if not hasattr(socket, "AF_UNIX") or time.monotonic() - _failed_at < _RETRY_SECONDS:
        return
    try:
        found = _service(os.getpid())
        path = directory.path_of(found)
        alone = found.is_root and not directory.is_named()
        if alone and not path.is_dir():
            return
        with _lock:
            if _member is None:
                directory.prepare(path)
                member = _new_member(path)
                # First, because another thread keeps an answer as soon as it finds the member.
                _predecessor = _predecessor or _predecessor_of(member)
                _member = member
            member = _member
        _keep(member)
    except Exception as error:
        _say_once(
            logging.WARNING,
            "the processes of this service can't find each other, so each one answers for itself "
            "only: %s",
            error,
        )
        _failed_at = time.monotonic()


def keep_last() -> None:
    """Keep the counts of this process, which are its last ones if it ends now.

    It keeps its number, because it may go on all the same: see `go_on()`.
    """
    global _is_ending
    _is_ending = True
    if (member := _member) is not None:
        with contextlib.suppress(Exception):  # whatever fails, the process ends
            _keep(member)


def go_on() -> None:
    """Take back that this process may end now: it has a new pool."""
    global _is_ending
    _is_ending = False


def leave() -> None:
    """Keep the counts of this process, and free its number."""
    global _member
    keep_last()
    with _lock:
        member, _member = _member, None
        if member is not None:
            with contextlib.suppress(OSError):
                directory.socket_of(member.path, member.number).unlink()
            _close(member)


def wait(seconds: float) -> None:
    """Wait as long, and answer other processes meanwhile. Only the watching thread calls this."""
    _forget_removed_files()
    join()
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0.0:
        member = _member
        if member is None:
            sleep(time.sleep, left)
        elif (asked := sleep(partial(_accept, member), left)) is not None:
            try:
                with asked:
                    _answer(asked, member)
            except OSError:  # the other process does not wait any more
                pass
            except Exception as error:
                words = "this process can't answer the others of its service"
                _say_once(logging.ERROR, words, exc_info=error)


def read_document(data: bytes) -> wire.Document | None:
    """Return a document; None if it is cut off or damaged."""
    try:
        return wire.decode(data) if len(data) <= wire.MAX_BYTES else None
    except ValueError:
        return None


@contextlib.contextmanager
def address_of(path: Path, member: int) -> Iterator[str]:
    """Yield the address of a member's socket, which is short enough for the system."""
    whole = str(directory.socket_of(path, member))
    if len(os.fsencode(whole)) <= _MAX_ADDRESS or sys.platform != "linux":
        yield whole
        return
    opened = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{opened}/{member}.sock"
    finally:
        os.close(opened)


def document(body: Any, worker: int) -> wire.Document:
    """Return an answer of this process, with what tells it from all others.

    Others read `ended` if it answers no more: an answer may be asked for while it ends.
    """
    return wire.Document(
        worker=worker,
        pid=os.getpid(),
        instance=identity(),
        version=__version__,
        at=time.time(),
        ended=_is_ending,
        body=body,
    )


@cache
def _service(_: int) -> Service:
    """Return the service of the process with this id."""
    return service()


def _forget_removed_files() -> None:
    """End the membership if its files were removed, as temporary files are at times."""
    global _member
    member = _member
    if member is not None and not directory.is_complete(member.path, member.number):
        with _lock:
            _member = None
            _close(member)


def _say_once(level: int, text: str, *values: object, exc_info: Exception | None = None) -> None:
    if text not in _said:
        _said.add(text)
        _log.log(level, text, *values, exc_info=exc_info)


def _new_member(path: Path) -> _Member:
    taken, lock_file = directory.take_number(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        directory.socket_of(path, taken).unlink(missing_ok=True)  # of a process that crashed
        with address_of(path, taken) as address:
            listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        os.close(lock_file)
        raise
    return _Member(path, taken, lock_file, listener)


def _predecessor_of(member: _Member) -> wire.Document | None:
    before = read_document(directory.read_answer(member.path, member.number))
    if before is None or before.instance == identity():  # this process has come back
        return None
    return before if time.time() - before.at <= _PREDECESSOR_SECONDS else None


def _accept(member: _Member, seconds: float) -> socket.socket | None:
    try:
        member.listener.settimeout(seconds)
        asked, _ = member.listener.accept()
    except TimeoutError:
        return None
    except OSError:  # the process leaves the directory just now, or has too many open files
        time.sleep(seconds)
        return None
    return asked


def _answer(asked: socket.socket, member: _Member) -> None:
    asked.settimeout(REQUEST_SECONDS)
    if not _is_our_user(asked):
        return
    question = asked.recv(_MAX_QUESTION).decode(errors="replace").strip()
    if question not in _answers:  # of another version
        return
    if question == STATS:
        asked.sendall(_keep(member)[1])
    else:
        asked.sendall(wire.encode(document(answer_of(question), member.number)))


def _keep(member: _Member) -> tuple[Any, bytes]:
    """Return this process's answer to STATS, also as others read it. It becomes its last one."""
    with _keeping:  # or an older answer of another thread would replace this one
        body = _answers[STATS]()
        data = wire.encode(document(body, member.number))
        try:
            directory.write_answer(member.path, member.number, data)
        except OSError as error:  # such as a full disk: it answers all the same
            _say_once(
                logging.WARNING,
                "the last counts of this process can't be kept, so they are lost at its end: %s",
                error,
            )
    return body, data


def _is_our_user(asked: socket.socket) -> bool:
    """Return whether this user's process asks. The directory's mode keeps all others out, too."""
    if sys.platform != "linux":
        return True
    credentials = asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return user in (os.geteuid(), 0)


def _close(member: _Member) -> None:
    member.listener.close()
    os.close(member.lock_file)


def _log_prefix() -> str:
    """Return `worker N (pid P): `, or nothing if the service has one process only."""
    member = _member
    if member is None or not directory.is_shared(member.path):
        return ""
    return f"worker {member.number} (pid {os.getpid()}): "


set_prefix(_log_prefix)


@after_fork
def _restart_in_child() -> None:
    global _member, _predecessor, _instance, _is_ending, _failed_at
    member, _member, _predecessor, _instance = _member, None, None, ""
    _is_ending, _failed_at = False, -math.inf
    _said.clear()
    if member is not None:
        with contextlib.suppress(OSError):
            _close(member)
