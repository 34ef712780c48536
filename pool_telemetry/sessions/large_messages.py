"""Messages and agents that are too large for one document, and messages that can't be stored.

A message above INLINE_BYTES is stored in parts: documents of the same collection, written before
the message, so that it is whole or absent. Parts that a crash leaves are never shown.

| key of a part | |
|---|---|
| `_id` | the message's ids, `content` (a hash of the whole message) and `part` (a number from 0) |
| `session_id`, `schema`, `session_created_at`, `expires_at` | as in the message |
| `data` | its bytes |

A part has no `agent_id` and no `message_id` outside its `_id`. So a query for messages finds no
part, and a session's deletion, expiry and renewal include its parts. The message's own document has
`parts` and a placeholder, which older releases show.

The state of a large agent, graph or swarm is stored the same way. Each write has parts of its own,
and a replacement deletes the earlier parts last, so that a reader or another writer never lacks
them. The document itself has an empty state.

A turn must not end because of a message that can't be stored: the tool already ran, and models
reject a toolUse without its toolResult. Such a message is stored as a placeholder, and a warning is
logged. A placeholder keeps the small blocks, and the id of each toolUse and toolResult.
"""

import contextlib
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import bson
from bson import ObjectId
from bson.codec_options import CodecOptions
from strands.types.exceptions import SessionException
from strands.types.session import SessionMessage

from pool_telemetry.sessions.documents import (
    SCHEMA,
    Document,
    check_written,
    describe,
    message_document,
    message_fault,
    unstorable,
)
from pool_telemetry.sessions.values import ENCODE_ERRORS, encode

INLINE_BYTES: Final = 15 * 1024 * 1024  # a document has 16 MB; the rest is for feedback
MAX_BYTES: Final = 256 * 1024 * 1024  # of a message with its redaction, or an agent: for memory
_KEPT_BYTES: Final = 1024 * 1024  # of the blocks that a placeholder keeps
_KEPT_KEYS: Final = ("toolUseId", "status")  # of a toolResult

_STATES: Final = ("state", "_internal_state")  # of an agent's document, stored in parts

_log = logging.getLogger("pool_telemetry.sessions")


def stored_form(
    ids: Mapping[str, Any], message: SessionMessage, options: "CodecOptions[Document]"
) -> tuple[Document, list[bytes]]:
    """Return the document to store for a message, and the data of its parts."""
    document: Document = {**ids, "schema": SCHEMA, **vars(message)}
    data = None
    with contextlib.suppress(SessionException, *ENCODE_ERRORS):
        document = message_document(ids, message)
        data = bson.encode(document, codec_options=options)
    check_written(ids, message_fault({"_id": ids, **document}))
    if data is None:
        reason = "has a value that can't be stored"
        _log.warning("%s %s; a placeholder was stored", describe(ids), reason)
        return _placeholder(ids, message, reason), []
    if len(data) <= INLINE_BYTES:
        return document, []
    if len(data) > MAX_BYTES:
        sizes = f"{len(data) >> 20} MB, at most {MAX_BYTES >> 20} MB"
        reason = "was too large to store"
        _log.warning("%s %s (%s); a placeholder was stored", describe(ids), reason, sizes)
        return _placeholder(ids, message, reason), []
    return _cut(_placeholder(ids, message, "is stored in parts"), data)


def stored_agent(
    ids: Mapping[str, Any], document: Document, options: "CodecOptions[Document]"
) -> tuple[Document, list[bytes]]:
    """Return the document to store for an agent, graph or swarm, and the data of its parts.

    Raises:
        SessionException: The document is larger than MAX_BYTES or has a value that can't be stored.
    """
    try:
        size = len(bson.encode(document, codec_options=options))
    except ENCODE_ERRORS as error:
        failed = unstorable(ids, error)
    else:
        if size <= INLINE_BYTES:
            return document, []
        if size <= MAX_BYTES:
            states: Document = {key: document[key] for key in _STATES if key in document}
            # The new id makes these parts no other writer's, which may delete its own.
            data = bson.encode({"_id": ObjectId(), **states}, codec_options=options)
            return _cut(document | {key: {} for key in states}, data)
        failed = SessionException(f"{describe(ids)} is larger than {MAX_BYTES >> 20} MB")
    raise failed  # here, because a chain of errors would show the value


def _cut(document: Document, data: bytes) -> tuple[Document, list[bytes]]:
    parts = [data[at : at + INLINE_BYTES] for at in range(0, len(data), INLINE_BYTES)]
    named = {"content": hashlib.sha256(data).hexdigest(), "count": len(parts)}
    return {**document, "parts": named}, parts


def part_ids(ids: Mapping[str, Any], parts: Mapping[str, Any]) -> list[Document]:
    """Return the `_id` of each part of a message or an agent."""
    return [{**ids, "content": parts["content"], "part": one} for one in range(parts["count"])]


def joined(
    ids: Mapping[str, Any], content: str, parts: list[bytes], options: "CodecOptions[Any]"
) -> Document:
    """Return what was stored in parts; SessionException if they were changed."""
    data = b"".join(parts)
    if hashlib.sha256(data).hexdigest() != content:
        raise SessionException(f"{describe(ids)} has damaged parts")
    return dict(bson.decode(data, codec_options=options))


def _placeholder(ids: Mapping[str, Any], message: SessionMessage, reason: str) -> Document:
    """Return the document of a message without what is large or can't be stored."""
    original, redacted = (
        None if one is None else _without_content(one, f"This content {reason}.")
        for one in (message.message, message.redact_message)
    )
    small = replace(message, message={"role": "user", "content": []}, redact_message=None)
    return {**message_document(ids, small), "message": original, "redact_message": redacted}


def _without_content(message: Any, words: str) -> Document:
    left = _KEPT_BYTES
    kept: Document = {}
    for key, value in message.items():
        if key != "content" and isinstance(key, str):
            stored, size = _small(value, left)
            left -= size
            if size:
                kept[key] = stored
    blocks = []
    for block in message["content"]:
        stored, size = _small(block, left)
        left -= size
        blocks.append(stored if size else _skeleton(block, words))
    return {**kept, "content": blocks}


def _small(value: Any, limit: int) -> tuple[Any, int]:
    """Return a value as it is stored, with its size; 0 if it is too large or can't be stored."""
    try:
        stored = encode(value)
        size = len(bson.encode({"": stored}))
    except ENCODE_ERRORS:
        return None, 0
    return (stored, size) if size <= limit else (None, 0)


def _skeleton(block: Any, words: str) -> Document:
    """Return a block that has the ids of a toolUse or toolResult, and words for its content."""
    if isinstance(block, dict) and isinstance(tool := block.get("toolUse"), dict):
        used = {key: encode(tool.get(key)) for key in ("toolUseId", "name")}
        return {"toolUse": {**used, "input": {}}}
    if isinstance(block, dict) and isinstance(tool := block.get("toolResult"), dict):
        done = {
            "status": "success",
            **{key: encode(tool[key]) for key in _KEPT_KEYS if key in tool},
        }
        return {"toolResult": {**done, "content": [{"text": words}]}}
    return {"text": words}
