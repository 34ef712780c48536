"""A TCP proxy in front of the server, to break the network with: latency, cut, freeze, refuse."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Self

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
        self._greeting = 0.0
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listening: socket.socket | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self.port = 0

    @property
    def uri(self) -> str:
        """The server through the proxy, and not by the name that it calls itself."""
        return f"mongodb://127.0.0.1:{self.port}/?directConnection=true"

    def delay(self, seconds: float) -> None:
        """Hold back each piece of data, both ways, for so long."""
        self._latency = seconds

    def hesitate(self, seconds: float) -> None:
        """Let each new connection wait for so long, as a slow handshake does."""
        self._greeting = seconds

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
        self._run(self._stop_listening)

    def accept(self) -> None:
        """Undo `refuse`, on the same port."""
        self._run(self._listen)

    def heal(self) -> None:
        """Undo everything."""
        self.delay(0.0)
        self.thaw()
        self.accept()

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen)
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

    # Not by asyncio.Server, which loses what it accepts while it is closed (CPython 3.11).

    def _listen(self) -> None:
        if self._listening is None:
            self._listening = listening = socket.create_server(("127.0.0.1", self.port))
            listening.setblocking(False)
            self.port = listening.getsockname()[1]
            self._loop.add_reader(listening, self._let_in, listening)

    def _stop_listening(self) -> None:
        if self._listening is not None:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None

    def _let_in(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):  # who asked may be gone again
            task = self._loop.create_task(self._serve(listening.accept()[0]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _end(self) -> None:
        self._stop_listening()
        self._flowing.set()
        while self._tasks:  # each ends with its connections
            self._cut()
            for task in self._tasks:  # one may hesitate
                task.cancel()
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # and every transport has heard that it is closed

    def _cut(self) -> None:
        for writer in self._writers:
            with contextlib.suppress(OSError):  # it may be closed already
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()

    async def _serve(self, accepted: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=accepted)
        ends = {writer}
        self._writers |= ends
        try:
            await self._flowing.wait()
            await asyncio.sleep(self._greeting)
            there, out = await asyncio.open_connection("127.0.0.1", self._target)
            ends.add(out)
            self._writers |= ends
            await asyncio.gather(self._pump(reader, out), self._answer(there, writer))
        except OSError:
            pass  # the server is gone, and so is the connection
        finally:
            for end in ends:
                end.transport.abort()
            self._writers -= ends

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward what the server says."""
        await self._pump(reader, writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if self._latency:
                    await asyncio.sleep(self._latency)
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
