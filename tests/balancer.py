"""A load balancer in front of one server, as far as a driver can see: its hello has a serviceId."""

import asyncio
import contextlib

import bson

from tests.proxy import Proxy

_OP_MSG = 2013
_BODY = 21  # header, flags, and the kind of the first section, which is the body
_SERVICE = bson.ObjectId()


class Balancer(Proxy):
    """Forwards as a Proxy does, message by message."""

    @property
    def uri(self) -> str:
        """The server behind it."""
        return f"mongodb://127.0.0.1:{self.port}/?loadBalanced=true"

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                start = await reader.readexactly(4)
                rest = await reader.readexactly(int.from_bytes(start, "little") - 4)
                writer.write(_with_service(start + rest))
                await writer.drain()
        writer.close()


def _with_service(message: bytes) -> bytes:
    if int.from_bytes(message[12:16], "little") != _OP_MSG:
        return message
    size = int.from_bytes(message[_BODY : _BODY + 4], "little")
    body = bson.decode(message[_BODY : _BODY + size])
    if "maxWireVersion" not in body:
        return message
    body["serviceId"] = _SERVICE
    changed = message[4:_BODY] + bson.encode(body) + message[_BODY + size :]
    return (len(changed) + 4).to_bytes(4, "little") + changed
