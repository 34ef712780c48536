"""The demo's load: callers that chat, and a server that can be slowed down.

This module shows nothing and counts nothing; the pool's telemetry counts its operations.
"""

import contextlib
import random
import threading
import time
from dataclasses import dataclass, replace
from typing import Any, Final

import pymongo
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.errors import OperationFailure, PyMongoError

from pool_telemetry.owners import owner

MAX_POOL_SIZE: Final = 8
WAIT_QUEUE_TIMEOUT_MS: Final = 700

_CONTROL_SECONDS: Final = 1.0  # limit of a control command: a lost server must not delay the end
_PATIENT_SECONDS: Final = 5.0  # the time limit of the first control command and of the cleanup
_STOP_SECONDS: Final = 2.0  # the time limit for all callers to stop
_AFTER_ERROR_SECONDS: Final = 0.05  # a caller's pause after an error, so that it does not spin
_MESSAGES_KEPT: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase of the cycle.

    Attributes:
        callers: The number of callers that use the pool.
        pause_seconds: A caller's pause after each operation.
        slow_ms: The duration of an operation in the server, in ms; 0 slows nothing down.
    """

    name: str
    story: str
    seconds: float
    callers: int
    pause_seconds: float
    slow_ms: int


_CALM: Final = Phase(
    name="calm",
    story="a few chats: each caller gets a connection at once",
    seconds=6.0,
    callers=4,
    pause_seconds=0.06,
    slow_ms=30,
)

CYCLE: Final = (
    _CALM,
    Phase(
        name="rush",
        story="about as many callers as connections: some callers wait briefly",
        seconds=7.0,
        callers=MAX_POOL_SIZE + 2,
        pause_seconds=0.02,
        slow_ms=60,
    ),
    Phase(
        name="exhausted",
        story="callers queue up: all connections are in use, and some checkouts time out",
        seconds=9.0,
        callers=3 * MAX_POOL_SIZE,
        pause_seconds=0.02,
        slow_ms=450,
    ),
    replace(
        _CALM,
        name="recovered",
        story="the queue is empty; the status is healthy again in a moment",
        seconds=8.0,
    ),
)
"""The phases for a server with fail points, which can be slowed down; about 30 s."""

_CROWDS: Final = {"rush": MAX_POOL_SIZE + 2, "exhausted": 100}

CROWDED_CYCLE: Final = tuple(
    replace(phase, slow_ms=0, callers=_CROWDS[phase.name], pause_seconds=0.002)
    if phase.name in _CROWDS
    else replace(phase, slow_ms=0)
    for phase in CYCLE
)
"""The phases for a server without fail points: only many callers exhaust the pool."""


class Callers:
    """Threads that chat: each reads its conversation and adds a message, repeatedly.

    One thread uses this object. Errors are part of the load, and the telemetry counts them.
    """

    def __init__(self, chats: Collection[dict[str, Any]]) -> None:
        self._chats = chats
        self._wanted = 0
        self._pause_seconds = 0.0
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def scale_to(self, count: int, pause_seconds: float) -> None:
        """Run this many callers with this pause; surplus callers rest after their turn."""
        for seat in range(len(self._threads), count):
            # A daemon, so that a caller that waits for a lost server does not delay the exit.
            thread = threading.Thread(
                target=self._chat, args=(seat,), name=f"caller-{seat}", daemon=True
            )
            thread.start()
            self._threads.append(thread)
        with self._changed:
            self._wanted, self._pause_seconds = count, pause_seconds
            self._changed.notify_all()

    def stop(self) -> None:
        """Stop all callers after their current operation, and wait for their threads."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _chat(self, seat: int) -> None:
        while self._is_wanted(seat):
            with contextlib.suppress(PyMongoError), owner("chat"):
                self.take_a_turn(seat)
                continue
            self._stopped.wait(_AFTER_ERROR_SECONDS)

    def _is_wanted(self, seat: int) -> bool:
        """Wait until this caller has to run; return False when all callers have to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped.is_set() or seat < self._wanted)
        return not self._stopped.is_set()

    def take_a_turn(self, seat: int) -> None:
        """Read the chat of this seat once, and add a message to it."""
        chat = {"_id": seat}
        self._chats.find_one(chat)
        self._rest()
        if self._stopped.is_set():
            return
        message = {"role": "user", "text": "How is the pool?", "at": time.time()}
        newest = {"$each": [message], "$slice": -_MESSAGES_KEPT}
        self._chats.update_one(chat, {"$push": {"messages": newest}}, upsert=True)
        self._rest()

    def _rest(self) -> None:
        jitter = random.uniform(0.5, 1.5)  # noqa: S311  # callers out of step, not a secret
        self._stopped.wait(self._pause_seconds * jitter)


class Server:
    """Controls the server beside the load, with its own client.

    The pool under load can't do that, because an exhausted pool has no connection to spare.

    Args:
        uri: The server's URI.
        app_name: The appName of the load; only its operations are slowed down.

    Raises:
        PyMongoError: The server can't be reached.
    """

    def __init__(self, uri: str, app_name: str) -> None:
        self._app_name = app_name
        self._client: MongoClient[dict[str, Any]] = MongoClient(
            uri, appName=f"{app_name}-control", maxPoolSize=1, minPoolSize=0
        )
        self.has_fail_points = self._try_fail_points()

    def _try_fail_points(self) -> bool:
        try:
            self._configure(_PATIENT_SECONDS, mode="off")
        except OperationFailure:  # MongoDB needs --setParameter enableTestCommands=1 for them
            return False
        except BaseException:
            self.close()
            raise
        return True

    def slow_down(self, milliseconds: int) -> None:
        """Make each operation of the load take this long, if the server has fail points."""
        if self.has_fail_points:
            slowness = {
                "failCommands": ["find", "update"],
                "blockConnection": True,
                "blockTimeMS": milliseconds,
                "appName": self._app_name,
            }
            # A lost server can't be slowed down, and the demo shows that it is lost.
            with contextlib.suppress(PyMongoError):
                self._configure(_CONTROL_SECONDS, mode="alwaysOn", data=slowness)

    def speed_up(self) -> None:
        """End the slow operations."""
        if self.has_fail_points:
            with contextlib.suppress(PyMongoError):  # a lost server has no slow operations
                self._configure(_CONTROL_SECONDS, mode="off")

    def drop(self, database: str) -> None:
        """Drop the load's data.

        Raises:
            PyMongoError: It could not be dropped.
        """
        with pymongo.timeout(_PATIENT_SECONDS):
            self._client.drop_database(database)

    def close(self) -> None:
        """Close the control client; the server keeps running."""
        with pymongo.timeout(_CONTROL_SECONDS):
            self._client.close()

    def _configure(self, seconds: float, **fail_point: Any) -> None:
        with pymongo.timeout(seconds):
            self._client.admin.command("configureFailPoint", "failCommand", **fail_point)
