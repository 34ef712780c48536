"""A proxy that makes its server a member of a replica set: a secondary, or the primary."""

import asyncio
import struct
from typing import Any

import bson

from tests.proxy import Proxy

_OP_REPLY, _OP_MSG = 1, 2013
SET_NAME = "secantus"  # of the embedded server
_HEADER = struct.Struct("<iiii")


class Demoted(Proxy):
    """Rewrites the server's answers to `hello` while `demoted` is true: false at first.

    The address in the answers is the proxy's own, so that a client may use the whole set: this
    proxy alone, or those of `members`, of which one is not demoted.
    """

    demoted = False
    members: "list[Demoted] | None" = None

    @property
    def address(self) -> str:
        """The host and the port by which the set knows this member."""
        return f"127.0.0.1:{self.port}"

    @property
    def uri(self) -> str:
        """The whole set, found by this member."""
        return f"mongodb://127.0.0.1:{self.port}/?replicaSet={SET_NAME}"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward the server's messages one by one."""
        try:
            while True:
                header = await reader.readexactly(_HEADER.size)
                length, request, answers, kind = _HEADER.unpack(header)
                body = self._rewritten(kind, await reader.readexactly(length - _HEADER.size))
                await self._flowing.wait()
                writer.write(_HEADER.pack(len(body) + _HEADER.size, request, answers, kind) + body)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        writer.close()

    def _rewritten(self, kind: int, body: bytes) -> bytes:
        skip = {_OP_REPLY: 20, _OP_MSG: 5}.get(kind)
        if skip is None or (b"setName" not in body):
            return body
        size = struct.unpack_from("<i", body, skip)[0]
        answer: dict[str, Any] = bson.decode(body[skip : skip + size])
        hosts = [member.address for member in self.members or [self]]
        answer |= {"me": self.address, "hosts": hosts}
        if self.demoted:
            answer |= {"secondary": True}
            answer.pop("primary", None)
            for name in ("isWritablePrimary", "ismaster"):
                if name in answer:
                    answer[name] = False
        else:
            answer["primary"] = self.address
        return body[:skip] + bson.encode(answer)
