"""Calls for the workers of each server: find, return the process id, and hold the connections."""

import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from pool_telemetry import MongoDBConnectionPool
from tests.support import Gate, wait_for

SIZE: Final = 10
"""maxPoolSize of each worker: more than the tests call at once, so that only `hold` exhausts it."""

GATE: Final = Gate()
OPTIONS: Final[dict[str, Any]] = {
    "maxPoolSize": SIZE,
    "minPoolSize": 0,
    "waitQueueTimeoutMS": 60_000,
    "event_listeners": [GATE],
}


def initialize() -> None:
    """Initialize the pool by the address in SERVER_URI; a repeat changes nothing."""
    MongoDBConnectionPool.initialize(os.environ["SERVER_URI"], **OPTIONS)


def pid(pause: float = 0.0) -> int:
    """Return this process's id after a pause, in which other workers take the next requests."""
    time.sleep(pause)
    return os.getpid()


def find() -> int:
    """Find once, and return this process's id."""
    MongoDBConnectionPool.get_client()["shop"]["orders"].find_one()
    return os.getpid()


def hold(seconds: float) -> int:
    """Exhaust this process's pool until `release` or for a time, and return the process's id."""
    held = ExitStack()
    held.enter_context(GATE.shut())
    for number in range(SIZE + 4):
        threading.Thread(target=find, name=f"held-{number}", daemon=True).start()
    wait_for(lambda: MongoDBConnectionPool.get_pool_stats()["pool"]["exhausted"])

    def end() -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not release_file(os.getpid()).exists():
            time.sleep(0.02)
        held.close()

    threading.Thread(target=end, name="release", daemon=True).start()
    return os.getpid()


def release_file(process: int, folder: Path | None = None) -> Path:
    """Return the file that ends the hold of a process as soon as it exists."""
    return (folder or Path(os.environ["SERVERS_FOLDER"])) / f"release-{process}"
