"""Strands' SessionRepository in MongoDB: a message is one command, once its agent is known."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from bson.errors import InvalidDocument
from pymongo import ASCENDING, DESCENDING, MongoClient
from pymongo.collection import Collection
from pymongo.errors import DocumentTooLarge, DuplicateKeyError
from strands.session.session_repository import SessionRepository
from strands.types.exceptions import SessionException
from strands.types.session import Session, SessionAgent, SessionMessage

from pool_telemetry.sessions.documents import (
    SCHEMA,
    Document,
    checked,
    of_agent,
    of_message,
    replacing,
)

if TYPE_CHECKING:
    from strands.multiagent.base import MultiAgentBase

KNOWN_AGENTS: Final = 10_000  # that a repository remembers to exist

_NO_ID: Final = {"_id": False}
_indexed: "WeakKeyDictionary[MongoClient[Any], set[str]]" = WeakKeyDictionary()
_indexing = threading.Lock()


class MongoDBSessionRepository(SessionRepository):
    """Sessions, their agents and messages, in three collections of one database.

    What is missing reads as None, or as no messages. Threads may share it.

    Args:
        client: The application's; it is never closed here.
        database_name: Where the collections are.
        prefix: Of the collections' names, which are `sessions`, `agents` and `messages`.

    Raises:
        SessionException: Something is written twice, or below what is missing; a document is larger
            than 16 MB or has what BSON has not. InvalidIdError, which is one, for an id that can't
            be. Errors of the server and the network are PyMongo's.
    """

    def __init__(
        self, client: MongoClient[Document], database_name: str = "strands", *, prefix: str = ""
    ) -> None:
        database = client[database_name]
        self._sessions: Collection[Document] = database[f"{prefix}sessions"]
        self._agents: Collection[Document] = database[f"{prefix}agents"]
        self._messages: Collection[Document] = database[f"{prefix}messages"]
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lock = threading.Lock()
        self._create_indexes(client)

    def _create_indexes(self, client: MongoClient[Document]) -> None:
        """Create them once for each client and collection."""
        name = self._messages.full_name
        with _indexing:
            if name in (done := _indexed.setdefault(client, set())):
                return
            agent = [("session_id", ASCENDING), ("kind", ASCENDING), ("agent_id", ASCENDING)]
            message = [(key, ASCENDING) for key in ("session_id", "agent_id", "message_id")]
            self._agents.create_index(agent, unique=True)
            self._messages.create_index(message, unique=True)
            done.add(name)

    # Sessions

    def create_session(self, session: Session, **kwargs: Any) -> Session:
        """Create a session; SessionException if it exists."""
        name = checked("session", session.session_id)
        with _refused(f"session {name!r}"):
            self._sessions.insert_one({"_id": name, "schema": SCHEMA, **session.to_dict()})
        return session

    def read_session(self, session_id: str, **kwargs: Any) -> Session | None:
        """Return a session, or None."""
        found = self._sessions.find_one({"_id": checked("session", session_id)})
        return None if found is None else Session.from_dict(found)

    def delete_session(self, session_id: str, **kwargs: Any) -> None:
        """Delete a session with all that belongs to it; SessionException if there is none."""
        of_session = {"session_id": checked("session", session_id)}
        with self._lock:
            for pair in [pair for pair in self._known if pair[0] == session_id]:
                del self._known[pair]
        self._messages.delete_many(of_session)
        self._agents.delete_many(of_session)
        # At last, so that one that fails half-way can be repeated.
        if not self._sessions.delete_one({"_id": session_id}).deleted_count:
            raise SessionException(f"session {session_id!r} does not exist")

    # Agents

    def create_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Create an agent; SessionException if it exists, or its session does not."""
        self._create(session_id, session_agent.agent_id, of_agent(session_id, session_agent))
        self._remember(session_id, session_agent.agent_id)

    def read_agent(self, session_id: str, agent_id: str, **kwargs: Any) -> SessionAgent | None:
        """Return an agent, or None."""
        found = self._agents.find_one(_agent(session_id, agent_id), _NO_ID)
        if found is None:
            return None
        self._remember(session_id, agent_id)
        return SessionAgent.from_dict(found)

    def update_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Replace an agent but for `created_at`; SessionException if there is none."""
        session_agent.created_at = self._replace(
            self._agents,
            _agent(session_id, session_agent.agent_id),
            of_agent(session_id, session_agent),
            f"agent {session_agent.agent_id!r} of session {session_id!r}",
        )

    # Graphs and swarms

    def create_multi_agent(
        self, session_id: str, multi_agent: "MultiAgentBase", **kwargs: Any
    ) -> None:
        """Create the state of a graph or swarm; SessionException if it exists."""
        document = {**_agent(session_id, multi_agent.id, "multi_agent"), "schema": SCHEMA}
        self._create(
            session_id, multi_agent.id, document | {"state": multi_agent.serialize_state()}
        )

    def read_multi_agent(
        self, session_id: str, multi_agent_id: str, **kwargs: Any
    ) -> dict[str, Any] | None:
        """Return the state of a graph or swarm, or None."""
        found = self._agents.find_one(_agent(session_id, multi_agent_id, "multi_agent"))
        state: dict[str, Any] | None = None if found is None else found["state"]
        return state

    def update_multi_agent(
        self, session_id: str, multi_agent: "MultiAgentBase", **kwargs: Any
    ) -> None:
        """Replace the state of a graph or swarm; SessionException if there is none."""
        self._replace(
            self._agents,
            _agent(session_id, multi_agent.id, "multi_agent"),
            {"state": multi_agent.serialize_state()},
            f"multi-agent {multi_agent.id!r} of session {session_id!r}",
        )

    # Messages

    def create_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any
    ) -> None:
        """Create a message; SessionException if that id is taken, or there is no such agent."""
        agent = _agent(session_id, agent_id)
        if (session_id, agent_id) not in self._known:
            if self._agents.find_one(agent, {"_id": True}) is None:
                raise SessionException(f"agent {agent_id!r} of session {session_id!r} is missing")
            self._remember(session_id, agent_id)
        with _refused(_named(session_id, agent_id, session_message.message_id)):
            self._messages.insert_one(of_message(session_id, agent_id, session_message))

    def read_message(
        self, session_id: str, agent_id: str, message_id: int, **kwargs: Any
    ) -> SessionMessage | None:
        """Return a message, or None."""
        found = self._messages.find_one(_message(session_id, agent_id, message_id), _NO_ID)
        return None if found is None else SessionMessage.from_dict(found)

    def update_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any
    ) -> None:
        """Replace a message but for `created_at`; SessionException if there is none."""
        session_message.created_at = self._replace(
            self._messages,
            _message(session_id, agent_id, session_message.message_id),
            of_message(session_id, agent_id, session_message),
            _named(session_id, agent_id, session_message.message_id),
        )

    def list_messages(
        self,
        session_id: str,
        agent_id: str,
        limit: int | None = None,
        offset: int = 0,
        **kwargs: Any,
    ) -> list[SessionMessage]:
        """Return messages in the order of their ids, `limit` of them after the first `offset`."""
        if limit == 0:
            return []  # to MongoDB 0 is no limit
        found = self._messages.find(_messages(session_id, agent_id), _NO_ID)
        found = found.sort("message_id", ASCENDING).skip(offset).limit(limit or 0)
        return [SessionMessage.from_dict(one) for one in found]

    def last_messages(self, session_id: str, agent_id: str, limit: int) -> list[SessionMessage]:
        """Return the last messages, in the order of their ids, without reading the others.

        Raises:
            ValueError: The limit is below 1.
        """
        if limit < 1:
            raise ValueError(f"limit is {limit}: use 1 or more")
        found = self._messages.find(_messages(session_id, agent_id), _NO_ID)
        found = found.sort("message_id", DESCENDING).limit(limit)
        return [SessionMessage.from_dict(one) for one in found][::-1]

    def count_messages(self, session_id: str, agent_id: str) -> int:
        """Return how many messages an agent has."""
        return self._messages.count_documents(_messages(session_id, agent_id))

    # What several do

    def _create(self, session_id: str, agent_id: str, document: Document) -> None:
        checked("agent", agent_id)
        if self._sessions.find_one({"_id": checked("session", session_id)}, {"_id": True}) is None:
            raise SessionException(f"session {session_id!r} does not exist")
        with _refused(f"{document['kind']} {agent_id!r} of session {session_id!r}"):
            self._agents.insert_one(document)

    def _replace(
        self, collection: Collection[Document], which: Document, document: Document, name: str
    ) -> str:
        """Replace all but `created_at`, which is returned."""
        with _refused(name):
            before = collection.find_one_and_update(
                which, replacing(document), {"created_at": True}
            )
        if before is None:
            raise SessionException(f"{name} does not exist")
        return str(before.get("created_at", ""))

    def _remember(self, session_id: str, agent_id: str) -> None:
        with self._lock:
            self._known[session_id, agent_id] = None
            if len(self._known) > KNOWN_AGENTS:
                self._known.popitem(last=False)


def _agent(session_id: str, agent_id: str, kind: str = "agent") -> Document:
    return {**_messages(session_id, agent_id), "kind": kind}


def _messages(session_id: str, agent_id: str) -> Document:
    return {"session_id": checked("session", session_id), "agent_id": checked("agent", agent_id)}


def _message(session_id: str, agent_id: str, message_id: int) -> Document:
    if isinstance(message_id, bool) or not isinstance(message_id, int):
        words = f"message_id is {message_id!r}: use a whole number"
        raise ValueError(words)  # noqa: TRY004  # what Strands' own repositories raise
    return {**_messages(session_id, agent_id), "message_id": message_id}


def _named(session_id: str, agent_id: str, message_id: int) -> str:
    return f"message {message_id} of agent {agent_id!r} of session {session_id!r}"


@contextmanager
def _refused(name: str) -> Iterator[None]:
    """Turn what can't be written into SessionException; its words have no values."""
    try:
        yield
    except DuplicateKeyError as error:
        raise SessionException(f"{name} exists: somebody else wrote it") from error
    except DocumentTooLarge as error:
        raise SessionException(f"{name} is larger than MongoDB's 16 MB") from error
    except (InvalidDocument, OverflowError) as error:
        # PyMongo's words have the whole document.
        kind = type(error).__name__
        raise SessionException(f"{name} has a value that BSON has not ({kind})") from None
