"""The same singleton over an AsyncMongoClient, for applications on an event loop.

`initialize` and `close` are awaited, on the loop that uses the client; the rest does no I/O.
"""

import asyncio
import threading
from typing import Any, ClassVar, Final

import pymongo
from pymongo import AsyncMongoClient
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
from pool_telemetry.client_options import ASYNC_DEFAULTS, WAIT_LIMITS_BREAK_ASYNC_POOLS, wait_limits
from pool_telemetry.errors import PoolNotInitializedError
from pool_telemetry.log_lines import ProcessLog
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.process import after_fork, notice_fork
from pool_telemetry.process_end import end
from pool_telemetry.registry import take_over_name
from pool_telemetry.stats import bounded

_Client = AsyncMongoClient[dict[str, Any]]

# Seconds after which a client that is being closed is left behind: PyMongo's endSessions may take
# CLOSE_SECONDS, and what follows needs a moment.
LEAVE_SECONDS: Final = CLOSE_SECONDS + 1.0
# Seconds more that `close()` waits for replaced clients, which it closes at the same time.
DRAIN_SECONDS: Final = 1.0

_log: Final = ProcessLog("pool_telemetry.telemetry")
_closing: set["asyncio.Task[None]"] = set()  # a loop alone would let them be collected


class ManagedAsyncMongoClient(ManagedClient[_Client]):
    """The I/O of one managed client."""

    def __init__(self, settings: PoolSettings) -> None:
        super().__init__(settings, AsyncMongoClient)
        self._learning: asyncio.Task[None] | None = None
        limits = wait_limits(settings.uri, settings.kwargs)
        if limits and WAIT_LIMITS_BREAK_ASYNC_POOLS:
            self.telemetry.warn_of_wait_limits(limits)

    async def start(self) -> None:
        """Ping the server and learn its version; close the client where that fails."""
        try:
            with self.failing():
                # Where the application reads: a set may have no primary, and be of use.
                await self.client.admin.command("ping", read_preference=self.client.read_preference)
            if not await self._learn_version():
                self._learn_version_soon()
        except BaseException:
            await self.close()
            raise
        self.telemetry.on_reconnected = self._learn_version_soon

    async def close(self) -> None:
        """Close the client, or leave it behind after LEAVE_SECONDS.

        PyMongo's own close() may wait for a lock that was lost, or for a TLS connection to a server
        that is frozen. It runs in a task of its own, so that it ends also when the caller of this
        function is cancelled.
        """
        if self._learning is not None:
            self._learning.cancel()
        closing = asyncio.get_running_loop().create_task(self._close_client())
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)
        try:
            # Not by wait_for() or timeout(): they wait until a cancelled task has ended.
            await asyncio.wait([closing], timeout=LEAVE_SECONDS)
        finally:
            self.telemetry.close()
        if closing.done():
            await closing
        else:
            closing.cancel()
            _log.warning(
                "the client of pool %r could not be closed within %.0f s and is left behind: its "
                "connections stay open until the process ends. PyMongo waits for a lock that was "
                "lost, or for a server that does not answer",
                self.telemetry.name,
                LEAVE_SECONDS,
            )

    async def _close_client(self) -> None:
        with pymongo.timeout(CLOSE_SECONDS):
            await self.client.close()

    async def _learn_version(self) -> bool:
        try:
            # Not by pymongo.timeout(), see client_options.WAIT_LIMITS_BREAK_ASYNC_POOLS.
            async with asyncio.timeout(VERSION_SECONDS):
                info = await self.client.server_info()
        except (PyMongoError, TimeoutError):
            return False
        self.telemetry.server_version = bounded(str(info["version"]))
        return True

    def _learn_version_soon(self) -> None:
        """Ask for the version in a task of its own, when that takes no caller's place."""

        async def learn() -> None:
            for pause in VERSION_PAUSES:
                await asyncio.sleep(pause)
                if self.has_room() and await self._learn_version():
                    break

        if self._learning is None or self._learning.done():
            self._learning = asyncio.get_running_loop().create_task(learn())

    def drain(self) -> "asyncio.Task[None]":
        """Close the client when its users are done, in a task of its own."""

        async def wait_and_close() -> None:
            quiet = DrainMonitor(self)
            while not quiet.over() and not self.drain_now.is_set():
                await asyncio.sleep(POLL_SECONDS)
            await self.close()

        return asyncio.get_running_loop().create_task(wait_and_close())


class AsyncMongoDBConnectionPool(BaseConnectionPool[_Client]):
    """One AsyncMongoClient for the whole process, and what its pool is doing.

    The class is the singleton; call its methods on it. See `MongoDBConnectionPool`.
    """

    _initializing: ClassVar[asyncio.Lock] = asyncio.Lock()
    _loop_lock: ClassVar[threading.Lock] = threading.Lock()
    _loop: ClassVar[asyncio.AbstractEventLoop | None] = None
    _current: ClassVar[ManagedAsyncMongoClient | None] = None
    _draining: ClassVar[list[tuple[ManagedAsyncMongoClient, "asyncio.Task[None]"]]] = []
    _closes: ClassVar[int] = 0

    @classmethod
    async def initialize(
        cls,
        connection_string: str | None = None,
        *,
        telemetry: TelemetryOptions | None = None,
        **kwargs: Any,
    ) -> _Client:
        """Make the client, ping the server, and return the client.

        As `MongoDBConnectionPool.initialize`, with the same arguments, defaults and errors.

        On Python 3.11 there is no waitQueueTimeoutMS by default, as in PyMongo itself, and a
        WARNING if it or timeoutMS is set by a keyword argument, a preset or the connection string.
        With such a limit PyMongo's pool breaks for good there, if tasks that wait for a connection
        are cancelled repeatedly. Web frameworks do that when clients hang up. Use Python 3.12 or
        later, or bound the wait with `async with asyncio.timeout(seconds)`; `pymongo.timeout()`
        does the same harm. To take a preset without its limit:
        `initialize(uri, **{**presets.PRODUCTION, "waitQueueTimeoutMS": None})`. Callers that wait
        for a server can break a client on Python 3.11 in the same way, and no option avoids that.

        Raises:
            PoolNotInitializedError: Also when a client of another event loop is still there.
        """
        async with cls._enter_loop():
            current, closes = cls._current, cls._closes
            settings = PoolSettings.of(
                connection_string, telemetry, kwargs, current, ASYNC_DEFAULTS
            )
            if current is not None and current.is_usable(settings):
                return current.client
            new = ManagedAsyncMongoClient(settings)
            await new.start()
            if cls._closes == closes:
                old, cls._current = cls._current, new
                if old is not None:
                    take_over_name(new.telemetry, old.telemetry)
                    cls._draining = [one for one in cls._draining if not one[1].done()]
                    cls._draining.append((old, old.drain()))
                    new.log_replacement(old)
                return new.client
        await new.close()
        raise PoolNotInitializedError(f"{cls.__name__} was closed while it initialized")

    @classmethod
    def _enter_loop(cls) -> asyncio.Lock:
        """Make sure that the client is this loop's to change, and return its lock."""
        notice_fork()
        loop = asyncio.get_running_loop()
        with cls._loop_lock:
            if cls._loop is not loop:
                if cls._loop is not None and cls._loop.is_closed():
                    cls._forget()  # a client cannot leave its loop, and that ended without close()
                if cls._current is not None or cls._initializing.locked():
                    raise PoolNotInitializedError(
                        f"{cls.__name__} belongs to another event loop: close() it there first"
                    )
                cls._loop, cls._initializing = loop, asyncio.Lock()
            return cls._initializing

    @classmethod
    def _forget(cls) -> None:
        """Leave a client behind that no loop can close any more."""
        for pool in (cls._current, *(pool for pool, _ in cls._draining)):
            if pool is not None:
                pool.telemetry.close()
        cls._current, cls._draining, cls._initializing = None, [], asyncio.Lock()

    @classmethod
    async def close(cls) -> None:
        """Close the client within 5 s, whatever state its pool is in. Again is no error.

        A client that PyMongo can't close by then is left behind, with a WARNING. A client whose
        `close()` is cancelled is closed all the same.

        Then it sends what OpenTelemetry has not sent yet, on another thread, because atexit does
        not run in every process: 1 s more if no collector listens, 5 s if it hangs.

        Raises:
            PoolNotInitializedError: The client belongs to another event loop that still runs.
        """
        cls._enter_loop()
        current, cls._current = cls._current, None
        draining, cls._draining = cls._draining, []
        cls._closes += 1
        for pool, _ in draining:
            pool.drain_now.set()
        if current is not None:
            await current.close()
        if draining:
            await asyncio.wait([task for _, task in draining], timeout=DRAIN_SECONDS)
        if current is not None:
            await asyncio.to_thread(end)


@after_fork
def _begin_anew() -> None:
    # The client is bound to a loop that runs in the parent only: this process makes its own.
    AsyncMongoDBConnectionPool._loop_lock = threading.Lock()
    AsyncMongoDBConnectionPool._forget()
    AsyncMongoDBConnectionPool._loop = None
