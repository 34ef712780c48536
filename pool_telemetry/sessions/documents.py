"""The documents of a session: three collections, ids as values, and the form of `to_dict()`.

| collection | one document for | id, unique |
|---|---|---|
| `sessions` | each session | `_id` is the session's id |
| `agents` | each agent, graph or swarm of a session | `session_id`, `kind`, `agent_id` |
| `messages` | each message | `session_id`, `agent_id`, `message_id` |

The collections' names begin with a prefix, `strands_` by default. The fields that make a document
unique are also its `_id`, so that uniqueness needs no other index.

Every document has `schema`, the version of this form: 1 since the first release. A version may get
new keys. It rises when a key changes its meaning; then a newer library reads both versions, and an
older library refuses the session. If a session expires, all its documents have one `expires_at`.

Agents and messages have the `created_at` of their session as `session_created_at`. It separates
them from leftovers: documents that a process wrote after the session was deleted, perhaps when
another session had its id. Documents of older releases lack it and belong to any session.

A session's id is a capability: a caller that names no owner reads, writes and deletes any session
whose id it knows. Errors and spans contain the id, so readers of logs and traces know it, too.

If a caller names an owner (`application`, `user`, or both), each name has to be the stored name, or
SessionOwnerError is raised. A session that was stored without that name, such as an older session,
has nothing to compare: its id opens it, and no later caller becomes its owner.

Lists skip documents of another form, which another program wrote; no method changes or deletes
them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from strands.types.exceptions import SessionException
from strands.types.session import SessionAgent, SessionMessage, encode_bytes_values

from pool_telemetry.errors import SessionOwnerError

SCHEMA: Final = 1
PREFIX: Final = "strands_"
MAX_ID_BYTES: Final = 512

# Filters for the form of this library's documents, as far as the server checks it.
OF_SESSIONS: Final = {
    key: {"$type": "string"} for key in ("_id", "session_id", "created_at", "updated_at")
}
OF_OTHERS: Final = {  # agents and messages
    "_id.session_id": {"$type": "string"},
    "schema": {"$type": "number"},
}

# The share of its time to live after which a session's end is moved: few turns have to move it.
_SLACK: Final = 0.1

Document = dict[str, Any]
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
    known = {"schema": {"$not": {"$gt": SCHEMA}}}
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


def is_session(document: Mapping[str, Any]) -> bool:
    """Return whether a document has the form of a session's."""
    texts = [document.get(key) for key in OF_SESSIONS]
    names = [document.get(key, "") for key in ("application", "user")]
    return (
        all(isinstance(text, str) for text in texts)
        and document["_id"] == document["session_id"]
        and all(isinstance(name, str | None) for name in names)
        and isinstance(document.get("metadata", {}), dict)
        and _has_common_form(document)
    )


def is_agent(document: Mapping[str, Any]) -> bool:
    """Return whether a document has the form of an agent's, a graph's or a swarm's."""
    keys = ("session_id", "kind", "agent_id")
    ids = {key: document.get(key) for key in keys}
    dicts = {"agent": ("state", "conversation_manager_state"), "multi_agent": ("state",)}
    kind = ids["kind"]
    return (
        document.get("_id") == ids
        and "schema" in document
        and all(isinstance(one, str) for one in ids.values())
        and kind in dicts
        and all(isinstance(document.get(key), dict) for key in dicts[kind])
        and _has_common_form(document)
    )


def is_message(document: Mapping[str, Any]) -> bool:
    """Return whether a document has the form of a message."""
    ids = {key: document.get(key) for key in ("session_id", "agent_id", "message_id")}
    message = document.get("message")
    return (
        document.get("_id") == ids
        and "schema" in document
        and isinstance(ids["message_id"], int)
        and isinstance(message, dict)
        and isinstance(message.get("content"), list)
        and isinstance(message.get("role"), str)
    )


def _has_common_form(document: Mapping[str, Any]) -> bool:
    expires = "expires_at" not in document or (
        isinstance(document["expires_at"], datetime)
        and isinstance(document.get("ttl_seconds"), int | float)
    )
    return expires and isinstance(document.get("schema", SCHEMA), int)


def check_form(ids: Mapping[str, Any], is_ours: bool) -> None:
    """Raise SessionException if a document with an id of ours has another form."""
    if not is_ours:
        raise SessionException(
            f"pool_telemetry did not write the document of {describe(ids)}: use another prefix="
        )


def check_session(session: Document, owner: Owner) -> Document:
    """Return a session's document if this library may read it and the owner may use it.

    Raises:
        SessionException: Another program or a newer version wrote the document.
        SessionOwnerError: The session has another owner.
    """
    ids = {"session_id": session["_id"]}
    check_form(ids, is_session(session))
    if session.get("schema", SCHEMA) > SCHEMA:
        raise SessionException(
            f"{describe(ids)} has schema {session['schema']}, but this pool_telemetry "
            f"reads only {SCHEMA}: upgrade pool_telemetry"
        )
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
    return {**ids, "schema": SCHEMA, **agent.to_dict()}


def message_document(ids: Mapping[str, Any], message: SessionMessage) -> Document:
    """Return the document to store for a message."""
    return {**ids, "schema": SCHEMA, **message.to_dict()}


def replacement(document: Mapping[str, Any]) -> list[Document]:
    """Return the update that sets all fields except `created_at`.

    It is a pipeline of literals, because a tool's input may have keys like `$ref` and `a.b`.
    """
    kept = {key: value for key, value in document.items() if key != "created_at"}
    return [{"$set": {key: {"$literal": value} for key, value in kept.items()}}]


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
        if any(not part or part.startswith("$") or "\0" in part for part in parts):
            raise SessionException(
                f"metadata path {str(path)[:40]!r}: use names separated by dots, none empty, "
                "none beginning with '$'"
            )
        found.append(f"metadata.{path}")
    return found


def nested(values: Mapping[str, Any]) -> Document:
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
            if not isinstance(place, dict):
                raise SessionException(f"metadata path {path[:40]!r} leads through a value")
        place[name] = encode_bytes_values(value)
    return metadata


def of_metadata(values: Mapping[str, Any]) -> Document:
    """Return the fields to set for values by their paths; bytes are encoded like Strands' own."""
    check_dict("metadata", values)
    return dict(
        zip(metadata_fields(values), map(encode_bytes_values, values.values()), strict=True)
    )
