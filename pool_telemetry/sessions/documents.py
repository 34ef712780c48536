"""The documents of a session: three collections, ids as values, and the form of `to_dict()`.

| collection | one document for | id, unique |
|---|---|---|
| `sessions` | each session | `_id` is the session's id |
| `agents` | each agent, graph or swarm of a session | `session_id`, `kind`, `agent_id` |
| `messages` | each message | `session_id`, `agent_id`, `message_id` |

`large_messages.py` describes the parts of large messages, which are in `messages`, too, and the
parts of large agents, graphs and swarms, which are in `agents`.

The collections' names begin with a prefix, `strands_` by default. The fields that make a document
unique are also its `_id`, so that uniqueness needs no other index.

Every document has `schema`, the version of this form: 1 since the first release. A version may get
new keys. It rises when a key changes its meaning; then a newer library reads both versions, and an
older library refuses the session. `values.py` describes the values. Its forms did not raise the
version: an older library reads all other values, and sees the form of such a value as a dict. If a
session expires, all its documents have one `expires_at`.

Agents and messages have the `created_at` of their session as `session_created_at`. It separates
them from leftovers: documents that a process wrote after the session was deleted, perhaps when
another session had its id. Documents of older releases lack it and belong to any session. The
writer that creates a session deletes the leftovers of its id.

No order and no decision depends on the clocks of several hosts, except a session's end. A host
computes `expires_at` with its own clock and MongoDB deletes by the server's, so a time to live has
to be longer than the clocks' differences. `updated_at` only orders the list of sessions.

An agent's document has the count of its messages that its conversation manager has removed. If the
count changes within a turn, the next message carries it as `conversation_manager_state`, so that a
killed turn is restored as it was; the end of the turn writes the agent. The document also has the
id of the agent's last message at that time as `_last_message_id`: the count that the last message
carries holds only if its id is higher.

An agent that was restored with `restore_last` leaves this count as it is. If it removes messages,
`_kept_from` is the id of the first message that it kept, and `_kept_of` its `restore_last`. A later
open that asks for at most as many messages begins there or with its last messages, whichever is
later; any other open ignores both.

A session's id is a capability: a caller that names no owner reads, writes and deletes any session
whose id it knows. Errors and spans contain the id, so readers of logs and traces know it, too.

If a caller names an owner (`application`, `user`, or both), each name has to be the stored name, or
SessionOwnerError is raised. A session that was stored without that name, such as an older session,
has nothing to compare: its id opens it, and no later caller becomes its owner.

Lists skip documents of another form, which another program wrote or which were damaged. Any other
method raises SessionException with the key that is missing or has another type, never with a value,
and no method changes or deletes documents of other programs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from strands.types.exceptions import SessionException
from strands.types.session import SessionAgent, SessionMessage

from pool_telemetry.errors import SessionOwnerError
from pool_telemetry.sessions.values import (
    BASE64,
    DECODE_ERRORS,
    ENCODE_ERRORS,
    MARK,
    decode,
    encode,
)

SCHEMA: Final = 1
PREFIX: Final = "strands_"
MAX_ID_BYTES: Final = 512

REMOVED: Final = "removed_message_count"
KEPT_FROM: Final = "_kept_from"  # these three are this library's own
KEPT_OF: Final = "_kept_of"
LATEST: Final = "_last_message_id"
# The counts in a conversation manager's state that a message may carry.
COUNTS: Final = (REMOVED, "model_call_count", KEPT_FROM, KEPT_OF)

# Filters for the form of this library's documents, as far as the server checks it.
_TEXTS: Final = ("session_id", "created_at", "updated_at")
OF_SESSIONS: Final = {
    **{key: {"$type": "string"} for key in ("_id", *_TEXTS)},
    "schema": {"$type": "number"},
}
OF_OTHERS: Final = {  # agents and messages
    "_id.session_id": {"$type": "string"},
    "schema": {"$type": "number"},
}
OF_MESSAGES: Final = {**OF_OTHERS, "message_id": {"$type": ["int", "long"]}}

_MESSAGE_IDS: Final = ("session_id", "agent_id", "message_id")
_MAX_PARTS: Final = 1_000  # of a large message or agent
_MAX_SECONDS: Final = 2 * timedelta(days=36_500).total_seconds()  # a time to live has at most half
_NOT_OURS: Final = (
    "pool_telemetry did not write the document like this; use another prefix= beside other programs"
)

# The share of its time to live after which a session's end is moved: few turns have to move it.
_SLACK: Final = 0.1

Document = dict[str, Any]
Kinds = dict[str, Any]  # the types of a document's keys
Owner = Mapping[str, str]  # `application` and `user`, those that a caller named


class InvalidIdError(SessionException, ValueError):
    """An id that no document can have; a ValueError too, as in some of Strands' own managers."""


class SessionConflictError(SessionException):
    """Another process or task stored the same document first, because it has the session open."""


class Lease(NamedTuple):
    """A session's time to live after its last use, and the time at which it expires."""

    ttl: timedelta
    expires_at: datetime

    @classmethod
    def of(cls, ttl: timedelta) -> "Lease":
        """Return a lease that begins now.

        It ends later than `ttl` from now. So a session lives at least `ttl` after any use, even by
        a process that does not know of a later end.
        """
        return cls(ttl, datetime.now(UTC) + ttl * (1 + 2 * _SLACK))

    @classmethod
    def in_document(cls, document: Mapping[str, Any]) -> "Lease | None":
        """Return the lease in a session's or an agent's document; None if it never expires."""
        if "expires_at" not in document:
            return None
        expires_at = document["expires_at"]
        if expires_at.tzinfo is None:  # unless the client is tz_aware
            expires_at = expires_at.replace(tzinfo=UTC)
        return cls(timedelta(seconds=document["ttl_seconds"]), expires_at)

    @property
    def is_stale(self) -> bool:
        """Return whether the lease has to be renewed."""
        return self.expires_at - datetime.now(UTC) < self.ttl * (1 + _SLACK)

    @property
    def is_over(self) -> bool:
        """Return whether the session has expired, though MongoDB may not have deleted it yet."""
        return self.expires_at <= datetime.now(UTC)

    @property
    def fields(self) -> Document:
        """Return the fields that the documents of a session and its agents store."""
        return {"ttl_seconds": self.ttl.total_seconds(), "expires_at": self.expires_at}


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session in a list. Times are ISO 8601 in UTC."""

    session_id: str
    application: str | None
    user: str | None
    metadata: Mapping[str, Any]
    created_at: str
    updated_at: str  # the time when it was last opened or its metadata last changed


@dataclass(frozen=True, slots=True)
class SessionUsage:
    """The sums of the models' reports for some messages, in tokens and milliseconds.

    The messages are those of a session, or of one of its agents, or a single one.
    """

    messages: int  # all messages, also those without a report
    input_tokens: int
    output_tokens: int
    total_tokens: int
    cache_read_input_tokens: int
    cache_write_input_tokens: int
    latency_ms: int
    cycles: int  # messages of the model; each call of the model ends with one
    tool_calls: int  # calls of tools in these messages
    time_to_first_byte_ms: float | None  # the mean of the calls that report it; None without any


def now() -> str:
    """Return the time as Strands writes it: ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat()


def validated_id(kind: str, value: object) -> str:
    """Return a valid id of a session or an agent, or a valid name of an application or user.

    Raises:
        InvalidIdError: The value is not a string, is empty or longer than 512 bytes, contains a
            slash, a backslash or a null byte, begins with `$`, or is not valid Unicode.
    """
    if not isinstance(value, str):
        reason = f"is {type(value).__name__}, not str"
    elif not value:
        reason = "is empty"
    elif len(value.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        reason = f"{value[:20]!r}… has more than {MAX_ID_BYTES} bytes"
    elif found := next((c for c in value if c in "/\\\0" or "\ud800" <= c <= "\udfff"), ""):
        reason = f"{value!r} contains {found!r}"
    elif value.startswith("$"):
        reason = f"{value!r} begins with '$'"
    else:
        return value
    raise InvalidIdError(f"{kind if kind in ('application', 'user') else f'{kind}_id'} {reason}")


def owner_of(application: object, user: object) -> dict[str, str]:
    """Return the names of an owner that are given, validated."""
    names = {"application": application, "user": user}
    return {key: validated_id(key, name) for key, name in names.items() if name is not None}


def owned_by(owner: Owner) -> Document:
    """Return the filter for documents of an owner and documents without one."""
    return {
        key: {"$in": [None, name], "$not": {"$type": "array"}}  # `$in` looks into arrays, too
        for key, name in owner.items()
    }


def session_filter(session_id: str, owner: Owner, created_at: str | None = None) -> Document:
    """Return the filter for a session that this library wrote and an owner may use.

    With `created_at` it matches no later session of the same id.
    """
    created = {} if created_at is None else {"created_at": created_at}
    known = {"schema": {"$type": "number", "$lte": SCHEMA}}
    ids = {"_id": session_id, "session_id": session_id}
    return {**OF_SESSIONS, **ids, **known, **created, **owned_by(owner)}


def of_session(created_at: str | None) -> Document:
    """Return the filter for agents or messages of the session created then; None for any."""
    return {} if created_at is None else {"session_created_at": {"$in": [None, created_at]}}


def others_filter(ids: Mapping[str, Any], created_at: str | None = None) -> Document:
    """Return the filter for agents or messages that this library wrote for a session."""
    form = {**OF_OTHERS, "_id.session_id": ids["session_id"]}
    return {**ids, **form, **of_session(created_at)}


def check_owner(what: str, document: Mapping[str, Any], owner: Owner) -> None:
    """Raise SessionOwnerError if a document is stored with another name than the owner's."""
    if any(document.get(key) not in (None, name) for key, name in owner.items()):
        raise SessionOwnerError(
            f"{what} belongs to another application or user: name its owner, or use another id"
        )


def session_fault(document: Mapping[str, Any]) -> str:
    """Return why a document is no session that this library can read; empty if it can."""
    if "schema" not in document and isinstance(document.get("agents"), Mapping):
        return (
            "is a session of mongodb-session-manager: `pool-telemetry import-sessions` copies it, "
            "or use another prefix="
        )
    if "schema" not in document and "imported" in document:
        return "is not wholly imported yet: run `pool-telemetry import-sessions` again"
    needed: Kinds = {"_id": str, "schema": int, "session_type": str, **dict.fromkeys(_TEXTS, str)}
    optional: Kinds = {"metadata": dict, "application": str | None, "user": str | None}
    if fault := _fault(document, needed, optional) or _lease_fault(document):
        return fault
    return "" if document["_id"] == document["session_id"] else f"has another `_id`: {_NOT_OURS}"


def agent_fault(document: Mapping[str, Any]) -> str:
    """Return why a document is no agent, graph or swarm that this library can read, or ""."""
    ids = {key: document.get(key) for key in ("session_id", "kind", "agent_id")}
    needed: Kinds = {"_id": dict, "schema": int, **dict.fromkeys(ids, str), "state": dict}
    optional: Kinds = {"session_created_at": str, "parts": dict | None}
    if ids["kind"] == "agent":
        needed |= {"conversation_manager_state": dict, "created_at": str, "updated_at": str}
        optional |= {"_internal_state": dict}
    faults = _fault(document, needed, optional) or _lease_fault(document)
    if fault := faults or _parts_fault(document.get("parts")):
        return fault
    counts = document.get("conversation_manager_state", {})
    for key in (*COUNTS, LATEST):
        if not isinstance(count := counts.get(key, 0), int) or count < 0:
            return f"has a wrong `conversation_manager_state.{key}`: {_NOT_OURS}"
    if document["_id"] != ids or ids["kind"] not in ("agent", "multi_agent"):
        return f"has another `_id`: {_NOT_OURS}"
    return ""


def foreign_fault(document: Mapping[str, Any]) -> str:
    """Return why a list of messages skips a document, or "".

    A damaged message is not skipped: a conversation must not lose a message unnoticed.
    """
    ids = document.get("_id")
    ours = isinstance(ids, Mapping) and [*ids] == [*_MESSAGE_IDS]
    return "" if ours else f"has another `_id`: {_NOT_OURS}"


def message_fault(document: Mapping[str, Any]) -> str:
    """Return why a document is no message that this library can read, or ""."""
    if document.get("_id") != {key: document.get(key) for key in _MESSAGE_IDS}:
        return f"has another `_id`: {_NOT_OURS}"
    needed: Kinds = {
        "schema": int,
        "session_id": str,
        "agent_id": str,
        "message_id": int,
        "message": dict,
        "created_at": str,
        "updated_at": str,
    }
    optional: Kinds = {
        "redact_message": dict | None,
        "session_created_at": str,
        "parts": dict | None,
        "conversation_manager_state": dict,
    }
    if fault := _fault(document, needed, optional):
        return fault
    counts = document.get("conversation_manager_state", {}).values()
    if not all(isinstance(one, int) and one >= 0 for one in counts):
        return f"has a wrong `conversation_manager_state`: {_NOT_OURS}"
    return (
        _parts_fault(document.get("parts"))
        or _content_fault(document, "message")
        or (_content_fault(document, "redact_message") if document.get("redact_message") else "")
    )


def _fault(document: Mapping[str, Any], needed: Kinds, optional: Kinds) -> str:
    """Return the first key that is missing or has a value of another type, in words."""
    for key, kind in {**needed, **optional}.items():
        value = document.get(key)
        if key not in document:
            if key in needed:
                return f"has no `{key}`: {_NOT_OURS}"
        elif not isinstance(value, kind) or isinstance(value, bool):
            return f"has `{key}` of type {type(value).__name__}: {_NOT_OURS}"
        elif key == "schema" and value > SCHEMA:
            words = f"has schema {value}, but this pool_telemetry reads only {SCHEMA}"
            return f"{words}: upgrade pool_telemetry"
        elif key == "schema" and value < 1:
            return f"has schema {value}: {_NOT_OURS}"
    return ""


def _lease_fault(document: Mapping[str, Any]) -> str:
    if "expires_at" not in document:
        return ""
    if fault := _fault(document, {"expires_at": datetime, "ttl_seconds": int | float}, {}):
        return fault
    in_range = 0 < document["ttl_seconds"] <= _MAX_SECONDS  # False for NaN
    return "" if in_range else f"has `ttl_seconds` out of range: {_NOT_OURS}"


def _parts_fault(parts: Document | None) -> str:
    if parts and (fault := _fault(parts, {"content": str, "count": int}, {})):
        return fault.replace("`", "`parts.", 1)
    if parts and not 1 <= parts["count"] <= _MAX_PARTS:
        return f"has a wrong `parts.count`: {_NOT_OURS}"
    return ""


def _content_fault(document: Mapping[str, Any], key: str) -> str:
    message = document[key]
    optional: Kinds = {"tracking_id": str | None, "metadata": dict | None}
    if fault := _fault(message, {"content": list, "role": str}, optional):
        return fault.replace("`", f"`{key}.", 1)
    for block in message["content"]:
        if not isinstance(block, dict):
            return f"has a block of type {type(block).__name__} in `{key}.content`: {_NOT_OURS}"
        if fault := _fault(block, {}, {"toolUse": dict, "toolResult": dict}):
            return fault.replace("`", f"`{key}.content.", 1)
    return ""


def check_form(ids: Mapping[str, Any], fault: str) -> None:
    """Raise SessionException if a document with an id of ours has a fault."""
    if fault:
        raise SessionException(f"{describe(ids)} {fault}")


def check_written(ids: Mapping[str, Any], fault: str) -> None:
    """Raise SessionException if no read would accept a document that is to be written."""
    check_form(ids, fault.removesuffix(f": {_NOT_OURS}"))


def check_session(session: Document, owner: Owner) -> Document:
    """Return a session's document if this library may read it and the owner may use it.

    Raises:
        SessionException: Another program or a newer version wrote the document.
        SessionOwnerError: The session has another owner.
    """
    ids = {"session_id": session["_id"]}
    check_form(ids, session_fault(session))
    check_owner(describe(ids), session, owner)
    return session


def agent_ids(session_id: str, agent_id: str) -> Document:
    """Return the ids that all messages of an agent have in common."""
    return {
        "session_id": validated_id("session", session_id),
        "agent_id": validated_id("agent", agent_id),
    }


def message_ids(session_id: str, agent_id: str, message_id: int) -> Document:
    """Return the ids of one message."""
    if isinstance(message_id, bool) or not isinstance(message_id, int):
        words = f"message_id is {message_id!r}: use a whole number"
        raise ValueError(words)  # noqa: TRY004  # Strands' own repositories raise ValueError
    return {**agent_ids(session_id, agent_id), "message_id": message_id}


def describe(ids: Mapping[str, Any]) -> str:
    """Return a session, agent or message in words, for an error message."""
    shown = {
        "message": ids.get("message_id"),
        ids.get("kind", "agent"): ids.get("agent_id"),
        "session": ids.get("session_id"),
    }
    return " of ".join(f"{key} {value!r}" for key, value in shown.items() if value is not None)


def agent_document(ids: Mapping[str, Any], agent: SessionAgent) -> Document:
    """Return the document to store for an agent."""
    return {**ids, "schema": SCHEMA, **_fields(ids, agent)}


def message_document(ids: Mapping[str, Any], message: SessionMessage) -> Document:
    """Return the document to store for a message."""
    return {**ids, "schema": SCHEMA, **_fields(ids, message)}


def agent_in(document: Mapping[str, Any]) -> SessionAgent:
    """Return the agent in a document whose values are decoded."""
    return SessionAgent(**_parameters(SessionAgent, document))


def message_in(document: Mapping[str, Any]) -> SessionMessage:
    """Return the message in a stored document."""
    ids = {key: document[key] for key in _MESSAGE_IDS}
    return SessionMessage(**decoded(ids, _parameters(SessionMessage, document)))


def encoded(ids: Mapping[str, Any], value: Any) -> Any:
    """Return a value as it is stored; SessionException without the value if that can't be."""
    try:
        return encode(value)
    except ENCODE_ERRORS as error:
        failed = unstorable(ids, error)
    raise failed  # here, because a chain of errors would show the value


def decoded(ids: Mapping[str, Any], values: Mapping[str, Any]) -> Document:
    """Return the values of a stored document's keys; SessionException if one can't be read."""
    found = {}
    for key, value in values.items():
        try:
            found[key] = decode(value)
        except DECODE_ERRORS as error:
            kind = type(error).__name__
            failed = SessionException(f"{describe(ids)} has a damaged value in `{key}` ({kind})")
        else:
            continue
        raise failed  # here, because a chain of errors would show the value
    return found


def value_fault(document: Mapping[str, Any]) -> str:
    """Return why the values of a stored document can't be read, or ""."""
    try:
        decoded({}, document)
    except SessionException as error:
        return str(error).strip()
    return ""


def unstorable(ids: Mapping[str, Any], error: Exception) -> SessionException:
    """Return the error for a value that can't be stored, without the value."""
    kind = type(error).__name__
    return SessionException(f"{describe(ids)} has a value that BSON can't store ({kind})")


def _fields(ids: Mapping[str, Any], record: SessionAgent | SessionMessage) -> Document:
    # Not `to_dict()`: it stores bytes as base64, and takes two frames for each level of a value.
    return {one.name: encoded(ids, getattr(record, one.name)) for one in fields(record)}


def _parameters(record: type, document: Mapping[str, Any]) -> Document:
    return {one.name: document[one.name] for one in fields(record) if one.name in document}


def replacement(document: Mapping[str, Any]) -> list[Document]:
    """Return the update that sets all fields except `created_at`, and removes earlier parts.

    It is a pipeline of literals, because a tool's input may have keys like `$ref` and `a.b`.
    """
    kept = {key: value for key, value in document.items() if key != "created_at"}
    update: list[Document] = [{"$set": {key: {"$literal": one} for key, one in kept.items()}}]
    return update if "parts" in kept else [*update, {"$unset": "parts"}]


def check_dict(name: str, value: object) -> None:
    """Raise TypeError for a value that is no dict, without its text, which may be a secret."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is {type(value).__name__}: use a dict")


def metadata_fields(paths: Iterable[str]) -> list[str]:
    """Return the fields of a session's document for metadata paths such as `customer.plan`.

    Raises:
        SessionException: A path is empty, has an empty part or a null byte, or a part of it begins
            with `$`.
    """
    found = []
    for path in paths:
        parts = path.split(".") if isinstance(path, str) else [""]
        if any(
            not part or part.startswith("$") or "\0" in part or part in (MARK, BASE64)
            for part in parts
        ):
            raise SessionException(
                f"metadata path {str(path)[:40]!r}: use names separated by dots, none empty, "
                "none beginning with '$'"
            )
        found.append(f"metadata.{path}")
    return found


def through_values(paths: Iterable[str]) -> Document:
    """Return the filter that refuses metadata paths through a value in one of our own forms.

    The server itself refuses a path through any other value.
    """
    parts = [path.split(".") for path in paths]
    parents = {".".join(each[:end]) for each in parts for end in range(1, len(each))}
    return {f"metadata.{parent}.{MARK}": {"$not": {"$type": "object"}} for parent in parents}


def nested(ids: Mapping[str, Any], values: Mapping[str, Any]) -> Document:
    """Return metadata as a stored document, from values by their paths.

    Raises:
        SessionException: A path is invalid, or leads through a value.
    """
    metadata_fields(values)
    metadata: Document = {}
    for path, value in values.items():
        *parents, name = path.split(".")
        place = metadata
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict) or isinstance(place.get(MARK), dict):
                raise SessionException(f"metadata path {path[:40]!r} leads through a value")
        place[name] = encoded(ids, value)
    return metadata


def of_metadata(ids: Mapping[str, Any], values: Mapping[str, Any]) -> Document:
    """Return the fields to set for values by their paths."""
    check_dict("metadata", values)
    stored = [encoded(ids, value) for value in values.values()]
    return dict(zip(metadata_fields(values), stored, strict=True))
