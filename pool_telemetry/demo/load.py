"""The demo's load: callers that chat, and a server that is told to be slow.

It knows nothing of what is shown; the pool's telemetry counts what happens here.
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

_CONTROL_SECONDS: Final = 1.0  # a server that is gone may not hold up the demo, nor its end
_PATIENT_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 2.0
_AFTER_ERROR_SECONDS: Final = 0.05
_MESSAGES_KEPT: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of the cycle.

    Attributes:
        callers: Who want a connection again and again.
        pause_seconds: What a caller waits after each operation.
        slow_ms: What an operation takes in the server; 0 is as long as it takes by itself.
    """

    name: str
    story: str
    seconds: float
    callers: int
    pause_seconds: float
    slow_ms: int


_CALM: Final = Phase(
    name="calm",
    story="a few chats: whoever asks for a connection gets one at once",
    seconds=6.0,
    callers=4,
    pause_seconds=0.06,
    slow_ms=30,
)

CYCLE: Final = (
    _CALM,
    Phase(
        name="rush",
        story="callers about match connections: all taken, some wait briefly",
        seconds=7.0,
        callers=MAX_POOL_SIZE + 2,
        pause_seconds=0.02,
        slow_ms=60,
    ),
    Phase(
        name="exhausted",
        story="callers pile up: no connection is free, and some give up",
        seconds=9.0,
        callers=3 * MAX_POOL_SIZE,
        pause_seconds=0.02,
        slow_ms=450,
    ),
    replace(
        _CALM,
        name="recovered",
        story="the queue is gone; the status is healthy again in a moment",
        seconds=8.0,
    ),
)
"""About 30 s, for a server that can be told to be slow."""

_CROWDS: Final = {"rush": MAX_POOL_SIZE + 2, "exhausted": 100}

CROWDED_CYCLE: Final = tuple(
    replace(phase, slow_ms=0, callers=_CROWDS[phase.name], pause_seconds=0.002)
    if phase.name in _CROWDS
    else replace(phase, slow_ms=0)
    for phase in CYCLE
)
"""The same for one that can't: nothing but a crowd makes the pool run dry."""


class Callers:
    """Threads that chat: each reads its conversation and adds a message, and again.

    Called by one thread. Errors are the load's daily bread, and the telemetry counts them.
    """

    def __init__(self, chats: Collection[dict[str, Any]]) -> None:
        self._chats = chats
        self._wanted = 0
        self._pause_seconds = 0.0
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def become(self, count: int, pause_seconds: float) -> None:
        """Have so many callers with such a pause; those too many rest when they are done."""
        for seat in range(len(self._threads), count):
            # A daemon: who waits for a server that is gone does not hold the end of the process up.
            thread = threading.Thread(
                target=self._chat, args=(seat,), name=f"caller-{seat}", daemon=True
            )
            thread.start()
            self._threads.append(thread)
        with self._changed:
            self._wanted, self._pause_seconds = count, pause_seconds
            self._changed.notify_all()

    def stop(self) -> None:
        """Stop all as soon as what they do in the server is done, and wait for that."""
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
        """Wait until this caller is wanted; return False when all have to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped.is_set() or seat < self._wanted)
        return not self._stopped.is_set()

    def take_a_turn(self, seat: int) -> None:
        """Do what one caller does, once: read the chat of this seat, and add to it."""
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
    """What is done to the server beside the load, with a client of its own.

    The pool under load could not do it: an exhausted pool has no connection to spare.

    Args:
        uri: The server's.
        app_name: Of the load: only its operations are slowed down.

    Raises:
        PyMongoError: The server can't be reached.
    """

    def __init__(self, uri: str, app_name: str) -> None:
        self._app_name = app_name
        self._client: MongoClient[dict[str, Any]] = MongoClient(
            uri, appName=f"{app_name}-control", maxPoolSize=1, minPoolSize=0
        )
        self.obeys = self._try_fail_points()

    def _try_fail_points(self) -> bool:
        try:
            self._configure(_PATIENT_SECONDS, mode="off")
        except OperationFailure:  # a MongoDB has them only with --setParameter enableTestCommands=1
            return False
        except BaseException:
            self.close()
            raise
        return True

    def take(self, milliseconds: int) -> None:
        """Make the server take so long for each operation of the load, if it obeys."""
        if self.obeys:
            slowness = {
                "failCommands": ["find", "update"],
                "blockConnection": True,
                "blockTimeMS": milliseconds,
                "appName": self._app_name,
            }
            # While the server is away nothing is slow in it, and the demo shows that it is away.
            with contextlib.suppress(PyMongoError):
                self._configure(_CONTROL_SECONDS, mode="alwaysOn", data=slowness)

    def quicken(self) -> None:
        """End all slowness."""
        if self.obeys:
            with contextlib.suppress(PyMongoError):  # as above: it ends with the server
                self._configure(_CONTROL_SECONDS, mode="off")

    def drop(self, database: str) -> None:
        """Drop the load's data.

        Raises:
            PyMongoError: It could not be dropped.
        """
        with pymongo.timeout(_PATIENT_SECONDS):
            self._client.drop_database(database)

    def close(self) -> None:
        """Close the client; the server stays."""
        with pymongo.timeout(_CONTROL_SECONDS):
            self._client.close()

    def _configure(self, seconds: float, **fail_point: Any) -> None:
        with pymongo.timeout(seconds):
            self._client.admin.command("configureFailPoint", "failCommand", **fail_point)
