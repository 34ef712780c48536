"""A TCP proxy in front of the server, to break the network with: latency, cut, freeze, refuse."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for 0 s


class Proxy:
    """Forwards a port of its own to a server's while the `with` block runs.

    Every method may be called from any thread, and has taken effect when it returns.

    Args:
        target: The server's port on loopback.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._latency = 0.0
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self.port = 0

    @property
    def uri(self) -> str:
        """The server through the proxy, and not by the name that it calls itself."""
        return f"mongodb://127.0.0.1:{self.port}/?directConnection=true"

    def delay(self, seconds: float) -> None:
        """Hold back each piece of data, both ways, for so long."""
        self._latency = seconds

    def cut(self) -> None:
        """Reset every connection."""
        self._run(self._cut)

    def freeze(self) -> None:
        """Let nothing through, and keep the connections open; new ones hang as well."""
        self._run(self._flowing.clear)

    def thaw(self) -> None:
        """Undo `freeze`: what was held back arrives."""
        self._run(self._flowing.set)

    def refuse(self) -> None:
        """Take no new connection."""
        self._wait_for(self._stop_listening())

    def accept(self) -> None:
        """Undo `refuse`, on the same port."""
        self._wait_for(self._listen())

    def heal(self) -> None:
        """Undo everything."""
        self.delay(0.0)
        self.thaw()
        self.accept()

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._wait_for(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._wait_for(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, call: Callable[[], None]) -> None:
        async def run() -> None:
            call()

        self._wait_for(run())

    def _wait_for(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    # On the loop

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _end(self) -> None:
        await self._stop_listening()
        self._flowing.set()
        await asyncio.sleep(0.05)  # who was let in the last moment has begun
        while self._tasks:  # each ends with its connections
            self._cut()
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # and every transport has heard that it is closed

    def _cut(self) -> None:
        for writer in self._writers:
            with contextlib.suppress(OSError):  # it may be closed already
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        ends = {writer}
        self._writers |= ends
        try:
            await self._flowing.wait()
            there, out = await asyncio.open_connection("127.0.0.1", self._target)
            ends.add(out)
            self._writers |= ends
            await asyncio.gather(self._pump(reader, out), self._pump(there, writer))
        except OSError:
            pass  # the server is gone, and so is the connection
        finally:
            for end in ends:
                end.transport.abort()
            self._writers -= ends
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if self._latency:
                    await asyncio.sleep(self._latency)
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
