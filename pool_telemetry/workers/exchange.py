"""Asks all processes of the service one question, and waits for none that does not answer."""

import contextlib
import os
import selectors
import socket
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar

from pool_telemetry.process import ProcessLock, after_fork
from pool_telemetry.workers import directory, membership, wire
from pool_telemetry.workers.membership import GONE_SECONDS, REQUEST_SECONDS, STATS

SILENT_SECONDS: Final = 2.0
"""A process that computes, or whose machine is busy, may be late for so long, in seconds."""

MOST_SECONDS: Final = 5.0
"""The limit for all answers, while they come in, in seconds."""

_CHUNK: Final = 1024 * 1024

T = TypeVar("T")
State = Literal["answers", "late", "silent", "gone", "ended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Generic[T]):
    """The answer of one process of the service.

    Attributes:
        worker: Its number; None if this process has none, because it is alone.
        pid: Its process id; 0 if unknown.
        instance: Its identity; empty if unknown.
        state: Whether it answers. If not, but it exists, it is late, and silent after
            SILENT_SECONDS. If it does not exist, it is ended after an orderly end, else gone.
        silent_seconds: For how long it has answered nobody, if it is late or silent; else 0.0.
        body: Its answer, or its last one (only to the question for stats); None if unknown.
    """

    worker: int | None
    pid: int
    instance: str
    state: State
    silent_seconds: float
    body: T | None

    @property
    def label(self) -> str:
        """Return the process's name in a text."""
        if self.worker is None:
            return f"a process without a number (pid {self.pid})"
        return f"worker {self.worker} (pid {self.pid or 'unknown'})"


_lock: Final = ProcessLock()
_asking: dict[str, "Future[list[Part[Any]]]"] = {}


def own_identity() -> Part[Any]:
    """Return which process this is, without an answer."""
    return Part(
        worker=membership.number(),
        pid=os.getpid(),
        instance=membership.identity(),
        state="answers",
        silent_seconds=0.0,
        body=None,
    )


def own_part(question: str) -> Part[Any]:
    """Return this process's own answer. It needs no other process."""
    return replace(own_identity(), body=membership.answer_of(question))


def ask(question: str, kind: Any) -> list[Part[Any]]:
    """Return the answers of all processes of this service, by number, with this one's own.

    Callers that ask the same at the same time share the answers.

    Args:
        question: A name that `membership.answers()` registered.
        kind: The type of an answer's body.
    """
    path = membership.folder()
    if path is None:
        return [own_part(question)]
    with _lock:
        running = _asking.get(question)
        mine = Future[list[Part[Any]]]() if running is None else None
        if mine is not None:
            _asking[question] = mine
    if mine is None:
        assert running is not None
        return running.result()
    try:
        own = [] if membership.is_observer() else [own_part(question)]
        others = parts_of(path, question, kind, without=membership.number())
        # This process may have had another number, and its last answer is still there.
        parts = [*own, *(one for one in others if one.instance != membership.identity())]
        mine.set_result(sorted(parts, key=_order))
    except BaseException as error:
        mine.set_exception(error)
        raise
    finally:
        with _lock:
            _asking.pop(question, None)
    return mine.result()


def parts_of(
    path: Path, question: str, kind: Any, *, without: int | None = None
) -> list[Part[Any]]:
    """Return the answers of the processes that share a directory, by number.

    Args:
        path: The directory.
        question: A name that `membership.answers()` registered there.
        kind: The type of an answer's body.
        without: The number of a process to leave out.
    """
    numbers = [one for one in directory.numbers(path) if one != without]
    answered, silent = _collect(path, numbers, question)
    parts = []
    for number in numbers:
        known = answered.get(number)
        document = known or membership.read_document(directory.read_answer(path, number))
        state: State = "answers"
        missed = 0.0
        if known:
            directory.note_answer(path, number)
        elif number in silent:
            missed = directory.missed_seconds(path, number)
            state = "silent" if missed >= SILENT_SECONDS else "late"
        elif document is None or time.time() - document.at > GONE_SECONDS:
            continue
        else:
            state = "ended" if document.ended else "gone"
        body = None
        if document is not None and (known or question == STATS):
            with contextlib.suppress(ValueError):  # of another version
                body = wire.convert(document.body, kind)
        parts.append(
            Part(
                worker=number,
                pid=document.pid if document else 0,
                instance=document.instance if document else "",
                state=state,
                silent_seconds=missed,
                body=body,
            )
        )
    return parts


def _order(part: Part[Any]) -> int:
    return -1 if part.worker is None else part.worker


def _collect(
    path: Path, numbers: list[int], question: str
) -> tuple[dict[int, wire.Document], set[int]]:
    """Return the answers by number, and the numbers of those that exist but do not answer."""
    answered: dict[int, wire.Document] = {}
    silent = set[int]()
    received: dict[int, list[bytes]] = {}
    began = time.monotonic()
    with contextlib.ExitStack() as opened, selectors.DefaultSelector() as selector:
        for number in numbers:
            try:
                connection = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                connection.setblocking(False)
                with membership.address_of(path, number) as address:
                    connection.connect(address)
                connection.sendall(f"{question}\n".encode())
            except (ConnectionRefusedError, FileNotFoundError):  # it has ended
                continue
            except OSError:  # many wait there already, or this process has too many open files
                silent.add(number)
            else:
                selector.register(connection, selectors.EVENT_READ, number)
                received[number] = []
        until = began + REQUEST_SECONDS
        while received and (left := min(until, began + MOST_SECONDS) - time.monotonic()) > 0.0:
            for key, _ in selector.select(left):
                number = key.data
                try:
                    chunk = key.fileobj.recv(_CHUNK)  # type: ignore[union-attr]  # a socket
                except BlockingIOError:
                    continue
                except OSError:
                    chunk = b""
                until = time.monotonic() + REQUEST_SECONDS
                if chunk and sum(map(len, received[number])) <= wire.MAX_BYTES:
                    received[number].append(chunk)
                    continue
                selector.unregister(key.fileobj)
                document = membership.read_document(b"".join(received.pop(number)))
                if document is None:
                    silent.add(number)
                else:
                    answered[number] = document
    return answered, silent | received.keys()


@after_fork
def _restart_in_child() -> None:
    _asking.clear()
