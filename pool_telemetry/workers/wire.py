"""The format of what processes exchange: JSON, one document an answer.

It has names and values only, so that reading a document runs nothing. Fields that another version
added are left out, and fields that it lacks have their defaults.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

# Not on first use: a fork while the watching thread imports it would leave the child its lock.
import msgspec

MAX_BYTES: Final = 32 * 1024 * 1024
"""The largest document that is read: 5,000 series of commands are 2 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One process's answer to one question, in JSON's values.

    Attributes:
        worker: The process's number among those of its service.
        pid: Its process id.
        instance: Random for each process, also for each forked one.
        version: Its version of pool_telemetry.
        at: The Unix time of the answer.
        ended: Whether it is the process's last answer, of an orderly end.
        body: The answer.
    """

    worker: int
    pid: int
    instance: str
    version: str
    at: float
    ended: bool = False
    body: Any


def encode(document: Document) -> bytes:
    """Return a document as bytes; its body may contain the stats' dataclasses."""
    # The identities of traces have 128 bits: too many for the fast encoder.
    plain = msgspec.to_builtins(document, str_keys=True)
    return json.dumps(plain, separators=(",", ":")).encode()


def decode(data: bytes) -> Document:
    """Return the document; its body is in JSON's values.

    Raises:
        ValueError: It is cut off, or no document.
    """
    try:
        return msgspec.convert(json.loads(data), type=Document)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None


def convert(body: Any, kind: Any) -> Any:
    """Return a body as the type that it was before `encode()`.

    Raises:
        ValueError: It does not fit the type.
    """
    try:
        return msgspec.convert(body, type=kind, str_keys=True)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
