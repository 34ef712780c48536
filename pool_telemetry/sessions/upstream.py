"""The sessions of mongodb-session-manager (0.9), read from its documents without its code.

That library keeps a session in one document: its agents by their ids, each with `agent_data` and
an array of `messages`, and beside them `metadata`, `feedbacks` and `application_name`. Times are
dates. Its reader skips the fields that Strands does not know; they are kept here as `rest`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from bson import Decimal128, ObjectId
from bson.datetime_ms import DatetimeMS
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from pool_telemetry.sessions.documents import (
    COUNTS,
    REMOVED,
    Document,
    InvalidIdError,
    owner_of,
    validated_id,
)

# Keys of a session's document that have a place of their own, or that are not copied: a password
# opens the session in another program.
_PLACED: Final = frozenset(
    (
        *("_id", "session_id", "created_at", "updated_at", "metadata", "feedbacks", "agents"),
        *("application_name", "session_viewer_password"),
    )
)
_OF_AGENT: Final = frozenset(
    (
        *("agent_id", "state", "conversation_manager_state", "_internal_state"),
        *("created_at", "updated_at"),
    )
)
_OF_MESSAGE: Final = ("event_loop_metrics", "guardrail_event")
# Early releases stored these numbers beside the message.
_EARLY_METRICS: Final = {
    "latency_ms": ("accumulated_metrics", "latencyMs"),
    "input_tokens": ("accumulated_usage", "inputTokens"),
    "output_tokens": ("accumulated_usage", "outputTokens"),
}
_REPORTS: Final = {"usage": "accumulated_usage", "metrics": "accumulated_metrics"}
_ROLES: Final = ("user", "assistant")
# The keys of blocks without which neither a model nor this library can read them.
_OF_BLOCK: Final[dict[str, dict[str, type]]] = {
    "toolUse": {"toolUseId": str, "name": str},
    "toolResult": {"toolUseId": str, "content": list},
}
# The state of Strands' default manager. Strands refuses to restore an agent without a state.
_DEFAULT_MANAGER: Final = {
    "__name__": "SlidingWindowConversationManager",
    "removed_message_count": 0,
}


class OddDocumentError(ValueError):
    """A document is not a session of that library. The message has no value of the document."""


@dataclass(frozen=True, slots=True)
class UpstreamAgent:
    """An agent with its messages in order.

    Attributes:
        agent: The agent.
        messages: Its messages, numbered from 0.
        feedback: The feedback on its messages, by their numbers.
        rest: Its fields that Strands does not know, such as the model's name.
    """

    agent: SessionAgent
    messages: list[SessionMessage]
    feedback: dict[int, list[Document]]
    rest: Document


@dataclass(frozen=True, slots=True)
class UpstreamSession:
    """A session as it will be stored.

    Attributes:
        session: The session.
        owner: Its application, and its user if the caller named the key of its metadata.
        metadata: Its metadata.
        agents: Its agents.
        rest: Its fields that have no place of their own, and feedback without any message.
    """

    session: Session
    owner: dict[str, str]
    metadata: Document
    agents: list[UpstreamAgent]
    rest: Document


def session_of(document: Mapping[str, Any], *, user_key: str | None = None) -> UpstreamSession:
    """Return the session of a document.

    Args:
        document: The document.
        user_key: The key of the metadata that names the session's user; None for no user.

    Raises:
        OddDocumentError: The document has another form.
        InvalidIdError: An id or a name is not valid here.
    """
    session_id = validated_id("session", document.get("_id"))
    _require("agents" in document, "it has no agents: it is no session of mongodb-session-manager")
    _require("schema" not in document, "it is already a session of pool_telemetry")
    _require(document.get("session_id", session_id) == session_id, "its session_id is not its _id")
    metadata = _dict("metadata", document.get("metadata"))
    created_at = _time("created_at", document.get("created_at"))
    session = Session(
        session_id,
        SessionType.AGENT,
        created_at,
        _time("updated_at", document.get("updated_at"), created_at),
    )
    agents = [
        _agent(validated_id("agent", name), one, created_at)
        for name, one in _dict("agents", document["agents"]).items()
    ]
    user = None if user_key is None else metadata.get(user_key)
    # That library stores an empty text for a key of the metadata that it indexes.
    user = str(int(user)) if isinstance(user, int) and not isinstance(user, bool) else user or None
    owner = owner_of(document.get("application_name") or None, None)
    try:
        owner |= owner_of(None, user)
    except InvalidIdError as error:
        raise OddDocumentError(f"its metadata has no user in {user_key!r}: {error}") from None
    rest = {key: value for key, value in document.items() if key not in _PLACED}
    numbers = {name: _numbers(one) for name, one in document["agents"].items()}
    if unplaced := _place_feedback(document.get("feedbacks"), agents, numbers, created_at):
        rest["feedbacks"] = unplaced
    return UpstreamSession(session, owner, metadata, agents, rest)


def _agent(name: str, found: object, session_created_at: str) -> UpstreamAgent:
    container = _dict(f"agent {name!r}", found)
    where = f"agent {name!r}"
    data = container.get("agent_data")
    if not isinstance(data, Mapping):
        raise OddDocumentError(f"{where} has no agent_data")
    created_at = _time(
        f"{where}: created_at",
        container.get("created_at", data.get("created_at")),
        session_created_at,
    )
    agent = SessionAgent(
        name,
        _plain(_dict(f"{where}: state", data.get("state"))),
        _manager_state(where, data.get("conversation_manager_state")),
        _plain(_dict(f"{where}: internal state", data.get("_internal_state"))),
        created_at,
        _time(f"{where}: updated_at", container.get("updated_at"), created_at),
    )
    messages = container.get("messages", [])
    _require(isinstance(messages, list), f"{where}: messages is {type(messages).__name__}")
    before, found_messages = created_at, []
    for number, one in enumerate(messages):
        message = _message(f"message {number} of {where}", one, number, before)
        before = message.created_at
        found_messages.append(message)
    rest = {key: value for key, value in data.items() if key not in _OF_AGENT}
    return UpstreamAgent(agent, found_messages, {}, rest)


def _manager_state(where: str, found: object) -> Document:
    """Return a conversation manager's state with whole counts; the mongo shell stores doubles."""
    state: Document = _plain(_dict(f"{where}: state of its manager", found))
    state = {REMOVED: 0, **(state or _DEFAULT_MANAGER)}
    for key in COUNTS:
        count = state.get(key)
        if isinstance(count, float) and count.is_integer():
            state[key] = count = int(count)
        if key in state and (count is None or (isinstance(count, int) and count < 0)):
            state[key] = 0
    return state


def _message(where: str, found: object, number: int, before: str) -> SessionMessage:
    """Return a message. Its number is its place, because two messages may have one message_id."""
    document = _dict(where, found)
    message = document.get("message", {key: document.get(key) for key in ("role", "content")})
    redacted = document.get("redact_message")
    created_at = _time(f"{where}: created_at", document.get("created_at"), before)
    return SessionMessage(
        _content(where, message, document),
        number,
        None if redacted is None else _content(f"{where}: redact_message", redacted, document),
        created_at,
        _time(f"{where}: updated_at", document.get("updated_at"), created_at),
    )


def _content(where: str, found: object, document: Mapping[str, Any]) -> Any:
    """Return a message as Strands has it, with the reports of the model as its metadata."""
    message: Document = _plain(_dict(where, found))
    _require(message.get("role") in _ROLES, f"{where}: role is neither user nor assistant")
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content = [{"text": content}]
    _require(
        isinstance(content, list) and all(isinstance(block, dict) for block in content),
        f"{where}: content is no list of blocks",
    )
    for block in message["content"]:
        for kind in _OF_BLOCK.keys() & block.keys():
            value = _dict(f"{where}: {kind}", block[kind])
            for key, form in _OF_BLOCK[kind].items():
                _require(isinstance(value.get(key), form), f"{where}: a {kind} has no valid {key}")
    extra: Document = _plain({key: document[key] for key in _OF_MESSAGE if document.get(key)})
    reports = _dict(f"{where}: event_loop_metrics", extra.get("event_loop_metrics"))
    for key, (kind, name) in _EARLY_METRICS.items():
        if key in document:
            reports.setdefault(kind, {})[name] = document[key]
            extra["event_loop_metrics"] = reports
    if extra:
        metadata = _dict(f"{where}: metadata", message.get("metadata"))
        # Newer releases of Strands report each call of the model in the message itself.
        theirs = {key: reports[name] for key, name in _REPORTS.items() if name in reports}
        custom = _dict(f"{where}: custom metadata", metadata.get("custom"))
        message["metadata"] = {**theirs, **metadata, "custom": {**custom, **extra}}
    return message


def _place_feedback(
    found: object,
    agents: list[UpstreamAgent],
    numbers: Mapping[str, Mapping[int, int]],
    session_created_at: str,
) -> list[Document]:
    """Add feedback to the message that it names, or else to the latest message before it.

    That library adds feedback to a session, and applications may store ids with it. Return the
    feedback of a session without messages.
    """
    feedbacks = found or []
    if not isinstance(feedbacks, list):
        raise OddDocumentError(f"feedbacks is {type(feedbacks).__name__}")
    unplaced: list[Document] = []
    for index, one in enumerate(feedbacks):
        entry = dict(_dict(f"feedback {index}", one))
        at = _time(f"feedback {index}: created_at", entry.get("created_at"), session_created_at)
        entry = {**entry, "created_at": at}
        named = [each for each in agents if each.agent.agent_id == entry.get("agent_id")]
        among = [each for each in named or agents if each.messages]
        if not among:
            unplaced.append(entry)
            continue
        number = entry.get("message_id")
        by_number = [
            (each, numbers[each.agent.agent_id][number])
            for each in among
            if isinstance(number, int) and number in numbers[each.agent.agent_id]
        ]
        agent, place = by_number[0] if len(by_number) == 1 else _latest(among, at)
        agent.feedback.setdefault(place, []).append(entry)
    return unplaced


def _latest(agents: list[UpstreamAgent], at: str) -> tuple[UpstreamAgent, int]:
    """Return the latest message at a time, or the first message if all are later."""
    every = [(one.created_at, each, one.message_id) for each in agents for one in each.messages]
    before = [each for each in every if each[0] <= at]
    _, agent, place = (max if before else min)(before or every, key=lambda one: (one[0], one[2]))
    return agent, place


def _numbers(container: Any) -> dict[int, int]:
    """Return the place of each message by its stored message_id, if only one message has it."""
    ids = [one.get("message_id") for one in container.get("messages", [])]
    times = Counter(one for one in ids if isinstance(one, int))
    return {one: place for place, one in enumerate(ids) if times.get(one) == 1}


def _require(is_so: bool, words: str) -> None:
    if not is_so:
        raise OddDocumentError(words)


def _dict(what: str, found: object) -> Document:
    _require(found is None or isinstance(found, Mapping), f"{what} is {type(found).__name__}")
    return dict(found) if isinstance(found, Mapping) else {}


def _time(what: str, found: object, default: str | None = None) -> str:
    """Return a time as Strands writes it."""
    if found is None and default is not None:
        return default
    try:
        time = datetime.fromisoformat(found) if isinstance(found, str) else found
    except ValueError:
        time = None
    if not isinstance(time, datetime):
        raise OddDocumentError(f"{what} is {'missing' if found is None else 'no time'}")
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC).isoformat()


def _plain(value: Any) -> Any:
    """Return a value without BSON's own types, because Strands' values are JSON and bytes."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, datetime):
        return _time("", value)
    if isinstance(value, ObjectId | Decimal128 | DatetimeMS):
        return str(value)
    return value
