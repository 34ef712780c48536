"""What is stored of a session: three collections, ids as values, and the form of `to_dict()`.

| collection | one document for | id, unique |
|---|---|---|
| `sessions` | each session | `_id` is the session's id |
| `agents` | each agent, graph or swarm of a session | `session_id`, `kind`, `agent_id` |
| `messages` | each message | `session_id`, `agent_id`, `message_id` |

A document carries `schema`, the version of this form.
"""

from collections.abc import Mapping
from typing import Any, Final

from strands.types.exceptions import SessionException
from strands.types.session import SessionAgent, SessionMessage

SCHEMA: Final = 1
MAX_ID_BYTES: Final = 512

Document = dict[str, Any]


class InvalidIdError(SessionException, ValueError):
    """An id that no document can have; Strands' own managers raise ValueError for some."""


def checked(kind: str, value: object) -> str:
    """Return an id of a session or an agent.

    Raises:
        InvalidIdError: It is no string, is empty or longer than 512 bytes, has a slash, a backslash
            or a null byte, or begins with `$`.
    """
    if not isinstance(value, str):
        reason = f"is {type(value).__name__}, not str"
    elif not value:
        reason = "is empty"
    elif len(value.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        reason = f"{value[:20]!r}… has more than {MAX_ID_BYTES} bytes"
    elif found := next((c for c in "/\\\0" if c in value), ""):
        reason = f"{value!r} has {found!r}"
    elif value.startswith("$"):
        reason = f"{value!r} begins with '$'"
    else:
        return value
    raise InvalidIdError(f"{kind}_id {reason}")


def of_agent(session_id: str, agent: SessionAgent) -> Document:
    """Return an agent's document."""
    return {"session_id": session_id, "kind": "agent", "schema": SCHEMA, **agent.to_dict()}


def of_message(session_id: str, agent_id: str, message: SessionMessage) -> Document:
    """Return a message's document."""
    ids = {"session_id": session_id, "agent_id": agent_id}
    return {**ids, "schema": SCHEMA, **message.to_dict()}


def replacing(document: Mapping[str, Any]) -> list[Document]:
    """Return the update that sets all but `created_at`.

    A pipeline's literals, for a tool's input may have keys like `$ref` and `a.b`.
    """
    kept = {key: value for key, value in document.items() if key != "created_at"}
    return [{"$set": {key: {"$literal": value} for key, value in kept.items()}}]
