"""Values of messages, states, metadata and feedback as BSON stores them, read back equal.

Ordinary values are stored as they are, bytes as binary data, and a tuple as a list. Values that
BSON or a server would refuse or change have a form with the key MARK:

| value | stored as |
|---|---|
| an integer outside 64 bits | `{MARK: {"int": "0x…"}}` |
| a datetime, with its microseconds and its time zone's offset | `{MARK: {"datetime": "2026-…"}}` |
| a text with lone surrogates | `{MARK: {"str": binary}}` |
| a dict or list that is nested too deeply | `{MARK: {"deep": binary}}`, a document of its own |
| a dict with odd keys | its other keys, and `MARK: [[key, value], …]` |

A key is odd if it is a number, a boolean or None, has a null byte or lone surrogates, is a key of
these forms itself, or begins with `$`, because servers refuse such keys in some updates and drivers
take a dict with `$ref` for a reference. Documents of older releases have bytes as Strands' base64.
"""

import base64
import dataclasses
from datetime import datetime
from typing import Any, Final

import bson
from bson.errors import BSONError, InvalidDocument
from bson.int64 import Int64

MARK: Final = "__pool_telemetry__"
BASE64: Final = "__bytes_encoded__"  # the key of Strands' own form of bytes

# What `encode` and PyMongo raise for a value that can't be stored, and `decode` for one that can't
# be read. Their messages may contain a document's values.
ENCODE_ERRORS: Final = (BSONError, OverflowError, ValueError, RecursionError)
DECODE_ERRORS: Final = (*ENCODE_ERRORS, TypeError, KeyError, AttributeError)

# Servers take 100 levels of nesting. The rest is for the document around a value and the command.
_LEVELS: Final = 80
_INT64: Final = 2**63


def encode(value: Any, levels: int = _LEVELS) -> Any:
    """Return a value as it is stored; `decode` returns it again.

    Raises:
        ValueError: A key of a dict is neither a text, a number, a boolean nor None. Values of types
            that BSON lacks are kept; PyMongo refuses them.
        RecursionError: The value contains itself, or has hundreds of levels.
    """
    if isinstance(value, str):
        is_valid = value.isascii() or not _has_surrogates(value)
        return value if is_valid else {MARK: {"str": value.encode("utf-8", "surrogatepass")}}
    if isinstance(value, int):
        fits = -_INT64 <= value < _INT64
        return value if fits else {MARK: {"int": hex(value)}}
    if isinstance(value, datetime):
        return {MARK: {"datetime": value.isoformat()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    if not isinstance(value, dict | list | tuple):
        return value
    if levels < 1:
        return {MARK: {"deep": bson.encode({"value": encode(value)})}}
    # Loops, because before Python 3.12 a comprehension takes a second frame for each level.
    if not isinstance(value, dict):
        items = []
        for one in value:
            items.append(encode(one, levels - 1))  # noqa: PERF401
        return items
    stored, odd = {}, []
    for key, one in value.items():
        if isinstance(key, str) and not _is_odd(key):
            stored[key] = encode(one, levels - 1)
        elif isinstance(key, str | int | float | None):
            odd.append([encode(key), encode(one, levels - 3)])
        else:
            raise InvalidDocument(f"a key is {type(key).__name__}")
    if odd:
        stored[MARK] = odd
    return stored


def decode(value: Any) -> Any:
    """Return the value that was stored; one of DECODE_ERRORS if another program changed it."""
    if isinstance(value, Int64):
        return int(value)
    if isinstance(value, list):
        items = []
        for one in value:
            items.append(decode(one))  # noqa: PERF401
        return items
    if not isinstance(value, dict):
        return value
    if value.get(BASE64) is True and "data" in value:
        return base64.b64decode(value["data"], validate=True)
    marked = value.get(MARK, [])
    if isinstance(marked, dict):
        return _unmarked(marked)
    found = {}
    for key, one in value.items():
        if key != MARK:
            found[key] = decode(one)
    for key, one in marked:
        found[decode(key)] = decode(one)
    return found


def _is_odd(key: str) -> bool:
    return (
        key.startswith("$")
        or key in (MARK, BASE64)
        or "\0" in key
        or not (key.isascii() or not _has_surrogates(key))
    )


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _unmarked(marked: dict[str, Any]) -> Any:
    ((kind, value),) = marked.items()
    if kind == "int":
        return int(value, 16)
    if kind == "datetime":
        return datetime.fromisoformat(value)
    if kind == "str":
        return value.decode("utf-8", "surrogatepass")
    if kind == "deep":
        return decode(bson.decode(value)["value"])
    raise ValueError(f"unknown kind of value {kind[:20]!r}")
