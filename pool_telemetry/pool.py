"""The guide's singleton over a MongoClient: one pool for a process, with its live numbers.

Threads may call anything at any time. Only `initialize` and `close` do I/O.
"""

import threading
import time
from typing import Any, ClassVar

import pymongo
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from pool_telemetry.base_pool import (
    CLOSE_SECONDS,
    POLL_SECONDS,
    VERSION_PAUSES,
    VERSION_SECONDS,
    BaseConnectionPool,
    DrainMonitor,
    ManagedClient,
    PoolSettings,
)
from pool_telemetry.errors import PoolNotInitializedError
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.process import after_fork, notice_fork
from pool_telemetry.process_end import end
from pool_telemetry.registry import take_over_name
from pool_telemetry.stats import bounded

_Client = MongoClient[dict[str, Any]]


class ManagedMongoClient(ManagedClient[_Client]):
    """The I/O of one managed client."""

    def __init__(self, settings: PoolSettings) -> None:
        super().__init__(settings, MongoClient)
        self._learning = threading.Thread()  # which asks for the version; a fork ends it
        self._over = threading.Event()
        try:
            with self.failing():
                # Where the application reads: a set may have no primary, and be of use.
                self.client.admin.command("ping", read_preference=self.client.read_preference)
            if not self._learn_version():
                self._learn_version_soon()
        except BaseException:
            self.close()
            raise
        self.telemetry.on_reconnected = self._learn_version_soon

    def close(self) -> None:
        """Close the client within CLOSE_SECONDS, whatever state its pool is in."""
        self._over.set()
        try:
            with pymongo.timeout(CLOSE_SECONDS):
                self.client.close()
        finally:
            self.telemetry.close()

    def _learn_version(self) -> bool:
        try:
            with pymongo.timeout(VERSION_SECONDS):
                info = self.client.server_info()
        except PyMongoError:
            return False
        self.telemetry.server_version = bounded(str(info["version"]))
        return True

    def _learn_version_soon(self) -> None:
        """Ask for the version on a thread of its own, when that takes no caller's place."""

        def learn() -> None:
            for pause in VERSION_PAUSES:
                if self._over.wait(pause) or (self.has_room() and self._learn_version()):
                    break

        if not self._learning.is_alive():
            self._learning = threading.Thread(
                target=learn, name="pool_telemetry-version", daemon=True
            )
            self._learning.start()

    def drain(self) -> threading.Thread:
        """Close the client when its users are done, on a thread of its own."""

        def wait_and_close() -> None:
            quiet = DrainMonitor(self)
            while not quiet.over() and not self.drain_now.wait(POLL_SECONDS):
                pass
            self.close()

        thread = threading.Thread(target=wait_and_close, name="pool_telemetry-drain", daemon=True)
        thread.start()
        return thread


class MongoDBConnectionPool(BaseConnectionPool[_Client]):
    """One MongoClient for the whole process, and what its pool is doing.

    The class is the singleton; call its methods on it.
    """

    # Taken in this order. The first is held while a new client is pinged, the second for a moment.
    _initializing: ClassVar[threading.Lock] = threading.Lock()
    _lock: ClassVar[threading.Lock] = threading.Lock()
    _current: ClassVar[ManagedMongoClient | None] = None
    _adopted: ClassVar[ManagedMongoClient | None] = None
    _draining: ClassVar[list[tuple[ManagedMongoClient, threading.Thread]]] = []
    _closes: ClassVar[int] = 0

    @classmethod
    def initialize(
        cls,
        connection_string: str | None = None,
        *,
        telemetry: TelemetryOptions | None = None,
        **kwargs: Any,
    ) -> _Client:
        """Make the client, ping the server, and return the client.

        The same effective settings return the client that is there. Others make a new one; when
        that answers it takes the old one's place. The old one is closed when it was quiet for 5 s
        (nothing checked out, nobody asking), at the latest after `telemetry.drain_seconds`; a
        WARNING has both places in the application that initialized, and what differs.

        Args:
            connection_string: By default the environment's MONGODB_URI, else localhost.
            telemetry: The telemetry's own options; by default those of the client that is there.
            **kwargs: MongoClient's, with its names and units. They go before options in the
                connection string, and those before `options.DEFAULTS`.

        Raises:
            PoolConfigurationError: An option of ours, or minPoolSize above maxPoolSize.
            PyMongoError: No server answered within serverSelectionTimeoutMS, or PyMongo refuses
                an option. Nothing is left behind, and a client that was there stays.
            PoolNotInitializedError: `close()` was called meanwhile.
        """
        notice_fork()
        with cls._initializing:
            current, closes = cls._current, cls._closes
            settings = PoolSettings.of(connection_string, telemetry, kwargs, current)
            if current is not None and current.is_usable(settings):
                return current.client
            with cls._lock:
                adopted = None if current else cls._adopted
                if adopted is not None and adopted.is_usable(settings):
                    cls._current, cls._adopted = adopted, None
                    return adopted.client
            new = ManagedMongoClient(settings)
            with cls._lock:
                if is_open := cls._closes == closes:
                    old, cls._current = cls._current, new
                    if old is not None:
                        take_over_name(new.telemetry, old.telemetry)
                        cls._draining = [one for one in cls._draining if one[1].is_alive()]
                        cls._draining.append((old, old.drain()))
            if is_open:
                if old is not None:
                    new.log_replacement(old)
                return new.client
        new.close()
        raise PoolNotInitializedError(f"{cls.__name__} was closed while it initialized")

    @classmethod
    def close(cls) -> None:
        """Close the client, within 5 s even when its pool is exhausted. Again is no error.

        Then it sends what OpenTelemetry has not sent yet, because atexit does not run in every
        process: 1 s more if no collector listens, 5 s if it hangs.
        """
        notice_fork()
        deadline = time.monotonic() + 2 * CLOSE_SECONDS
        with cls._lock:
            current, cls._current = cls._current, None
            draining, cls._draining = cls._draining, []
            cls._closes += 1
        for pool, _ in draining:
            pool.drain_now.set()
        if current is not None:
            current.close()
        for _, thread in draining:
            thread.join(max(0.0, deadline - time.monotonic()))
        if current is not None:
            end()

    @classmethod
    def adopt(cls, managed: ManagedMongoClient) -> None:
        """Answer for a client that its maker closes, while the singleton has none of its own.

        The latest adopted client counts. `initialize()` with its settings makes it the singleton's
        own.
        """
        with cls._lock:
            cls._adopted = managed

    @classmethod
    def release(cls, managed: ManagedMongoClient) -> bool:
        """End an adoption; return whether the maker closes the client, not the singleton."""
        with cls._lock:
            if cls._adopted is managed:
                cls._adopted = None
            return cls._current is not managed


@after_fork
def _begin_anew() -> None:
    # A thread of the parent may have held them; and its drain threads do not exist here.
    MongoDBConnectionPool._initializing = threading.Lock()
    MongoDBConnectionPool._lock = threading.Lock()
    MongoDBConnectionPool._draining = []
    for managed in (MongoDBConnectionPool._current, MongoDBConnectionPool._adopted):
        if managed is not None:
            managed._learning = threading.Thread()
