"""Sessions, agents and messages: what is read and written, once for both kinds of client."""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from pymongo import ASCENDING, DESCENDING, AsyncMongoClient, MongoClient
from strands.types.exceptions import SessionException
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from pool_telemetry.sessions.client_choice import AnyClient, check_client
from pool_telemetry.sessions.collections import Store
from pool_telemetry.sessions.dispatch import CallMethod, call_method_for
from pool_telemetry.sessions.documents import (
    PREFIX,
    SCHEMA,
    Document,
    Lease,
    SessionConflictError,
    agent_document,
    agent_ids,
    check_schema,
    describe,
    message_document,
    message_ids,
    nested,
    now,
    replacement,
    validated_id,
)
from pool_telemetry.sessions.records import Directory

if TYPE_CHECKING:
    from strands.multiagent.base import MultiAgentBase

KNOWN: Final = 10_000  # sessions and agents that a repository remembers to exist
KNOWN_SECONDS: Final = 60.0  # for so long: then a message asks whether the session still does

MAX_TTL: Final = timedelta(days=36_500)

_NO_ID: Final = {"_id": False}
_LEASE: Final = {"_id": False, "ttl_seconds": True, "expires_at": True}


class AsyncMongoDBSessionRepository(Directory):
    """Sessions, their agents and messages, in three collections of one database.

    What is missing reads as None, or as no messages. Tasks may share it; with a MongoClient each
    call runs in a thread.

    Args:
        client: The application's; it is never closed here.
        database_name: Where the collections are.
        prefix: Of the collections' names.

    Raises:
        SessionException: Something is written below what is missing; a document is larger than
            16 MB or has what BSON has not. SessionConflictError, which is one, if it exists
            already; InvalidIdError for an id that can't be. Errors of the server and the network
            are PyMongo's.
    """

    def __init__(
        self,
        client: AnyClient,
        database_name: str = "strands",
        *,
        prefix: str = PREFIX,
        _call_method: CallMethod | None = None,  # how the synchronous repository makes its calls
    ) -> None:
        check_client(client, AsyncMongoClient, MongoClient)
        super().__init__(
            Store(client, database_name, prefix, _call_method or call_method_for(client))
        )
        self._indexing = asyncio.Lock() if _call_method is None else None
        # (session, "") and (session, agent) that exist; how long they do, and when that was asked.
        self._known: OrderedDict[tuple[str, str], tuple[Lease | None, float]] = OrderedDict()
        self._lock = threading.Lock()

    # Sessions

    async def open_session(
        self,
        session_id: str,
        *,
        application: str | None = None,
        user: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        ttl: timedelta | None = None,
    ) -> tuple[Session, bool]:
        """Return a session, and whether it is new: one command, four to create it.

        Args:
            session_id: Its id.
            application: Whose session it is, for lists; kept as it was if the session exists.
            user: As `application`.
            metadata: What a new session begins with; as in `update_metadata`.
            ttl: How long it lives, with all that belongs to it, after it was last used. None leaves
                an existing session's as it is, and a new one lives for ever. To move the end takes
                three commands more, once in a tenth of it.
        """
        if ttl is not None and not (isinstance(ttl, timedelta) and timedelta() < ttl <= MAX_TTL):
            raise ValueError(
                f"ttl is {ttl!r}: use a timedelta above 0, at most {MAX_TTL.days} days"
            )
        whose = {"application": application, "user": user}
        whose = {key: validated_id(key, name) for key, name in whose.items() if name is not None}
        await self._prepare()
        ids = {"session_id": validated_id("session", session_id)}
        session = Session(session_id, SessionType.AGENT)
        touched = {"$set": {"updated_at": session.updated_at}}
        method = self._store.sessions.find_one_and_update
        while (before := await self._store.do(ids, method, {"_id": session_id}, touched)) is None:
            lease = None if ttl is None else Lease.of(ttl)
            document = {
                "_id": session_id,
                "schema": SCHEMA,
                **session.to_dict(),
                **whose,
                "metadata": nested(metadata or {}),
                **(lease.fields if lease else {}),
            }
            # Left by one that expired, or was deleted while somebody still wrote to it.
            before_it = {**ids, "created_at": {"$lt": session.created_at}}
            await self._store.do(ids, self._store.messages.delete_many, before_it)
            await self._store.do(ids, self._store.agents.delete_many, before_it)
            try:
                await self._store.do(ids, self._store.sessions.insert_one, document)
            except SessionConflictError:
                continue  # somebody else was first
            self._remember(session_id, "", lease)
            return session, True
        found = Lease.in_document(check_schema(before))
        if found is not None and found.is_over:
            await self._delete_expired(ids)
            return await self.open_session(
                session_id, application=application, user=user, metadata=metadata, ttl=ttl
            )
        self._remember(session_id, "", await self._renew(ids, found, ttl))
        return Session.from_dict(before), False

    async def create_session(self, session: Session) -> Session:
        """Create a session; SessionConflictError if it exists."""
        await self._prepare()
        ids = {"session_id": validated_id("session", session.session_id)}
        document = {"_id": session.session_id, "schema": SCHEMA, **session.to_dict()}
        await self._store.do(ids, self._store.sessions.insert_one, {**document, "metadata": {}})
        return session

    async def read_session(self, session_id: str) -> Session | None:
        """Return a session, or None."""
        found = await self._session(session_id)
        return None if found is None else Session.from_dict(found)

    async def delete_session(self, session_id: str) -> None:
        """Delete a session with all that belongs to it; SessionException if there is none."""
        ids = {"session_id": validated_id("session", session_id)}
        if not await self._delete(ids):
            raise SessionException(f"{describe(ids)} does not exist")

    # Agents

    async def create_agent(self, session_id: str, session_agent: SessionAgent) -> None:
        """Create an agent; SessionException if it exists, or its session does not."""
        ids = _agent(session_id, session_agent.agent_id)
        await self._create(ids, agent_document(ids, session_agent))

    async def read_agent(self, session_id: str, agent_id: str) -> SessionAgent | None:
        """Return an agent, or None."""
        ids = _agent(session_id, agent_id)
        found = await self._store.do(ids, self._store.agents.find_one, ids, _NO_ID)
        if found is None:
            return None
        self._remember(session_id, agent_id, Lease.in_document(found))
        return SessionAgent.from_dict(found)

    async def update_agent(self, session_id: str, session_agent: SessionAgent) -> None:
        """Replace an agent but for `created_at`; SessionException if there is none."""
        ids = _agent(session_id, session_agent.agent_id)
        document = agent_document(ids, session_agent)
        session_agent.created_at = await self._replace(self._store.agents, ids, document)

    async def list_agents(self, session_id: str) -> list[Document]:
        """Return the documents of a session's agents, graphs and swarms."""
        ids = {"session_id": validated_id("session", session_id)}
        found = await self._store.do(ids, self._store.agents.find(ids, _NO_ID).to_list)
        for one in found:
            if one["kind"] == "agent":
                self._remember(session_id, one["agent_id"], Lease.in_document(one))
        agents: list[Document] = found
        return agents

    # Graphs and swarms

    async def create_multi_agent(self, session_id: str, multi_agent: "MultiAgentBase") -> None:
        """Create the state of a graph or swarm; SessionException if it exists."""
        ids = _agent(session_id, multi_agent.id, "multi_agent")
        document = {**ids, "schema": SCHEMA, "created_at": now()}
        await self._create(ids, document | {"state": multi_agent.serialize_state()})

    async def read_multi_agent(self, session_id: str, multi_agent_id: str) -> Document | None:
        """Return the state of a graph or swarm, or None."""
        ids = _agent(session_id, multi_agent_id, "multi_agent")
        found = await self._store.do(ids, self._store.agents.find_one, ids)
        state: Document | None = None if found is None else found["state"]
        return state

    async def update_multi_agent(self, session_id: str, multi_agent: "MultiAgentBase") -> None:
        """Replace the state of a graph or swarm; SessionException if there is none."""
        ids = _agent(session_id, multi_agent.id, "multi_agent")
        await self._replace(self._store.agents, ids, {"state": multi_agent.serialize_state()})

    # Messages

    async def create_message(
        self,
        session_id: str,
        agent_id: str,
        session_message: SessionMessage,
        *,
        again: bool = False,
    ) -> None:
        """Create a message; SessionException if that id is taken, or there is no such agent.

        Args:
            session_id: Of which session.
            agent_id: Of which agent.
            session_message: The message.
            again: An earlier try failed, and may have arrived nevertheless: then it is taken for
                this one.
        """
        ids = message_ids(session_id, agent_id, session_message.message_id)
        lease = await self._lease_of(session_id, agent_id)
        document = {"_id": ids, **message_document(ids, session_message)}
        if lease is not None:
            document["expires_at"] = lease.expires_at
        try:
            await self._store.do(ids, self._store.messages.insert_one, document)
        except SessionConflictError:
            stored = await self.read_message(*ids.values()) if again else None
            if stored is None or stored.created_at != session_message.created_at:
                self._store.counts.add(conflicts=1)
                raise
            if stored != session_message:  # it was changed since
                await self.update_message(session_id, agent_id, session_message)

    async def read_message(
        self, session_id: str, agent_id: str, message_id: int
    ) -> SessionMessage | None:
        """Return a message, or None."""
        ids = message_ids(session_id, agent_id, message_id)
        found = await self._store.do(ids, self._store.messages.find_one, ids, _NO_ID)
        return None if found is None else SessionMessage.from_dict(found)

    async def update_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage
    ) -> None:
        """Replace a message but for `created_at`; SessionException if there is none."""
        ids = message_ids(session_id, agent_id, session_message.message_id)
        document = message_document(ids, session_message)
        session_message.created_at = await self._replace(self._store.messages, ids, document)

    async def list_messages(
        self, session_id: str, agent_id: str, limit: int | None = None, offset: int = 0
    ) -> list[SessionMessage]:
        """Return messages in the order of their ids, `limit` of them after the first `offset`."""
        if (limit is not None and limit < 0) or offset < 0:
            raise ValueError(f"limit is {limit}, offset is {offset}: use 0 or more")
        if limit == 0:
            return []  # to MongoDB 0 is no limit
        return await self._find(agent_ids(session_id, agent_id), ASCENDING, offset, limit or 0)

    async def messages_from(
        self, session_id: str, agent_id: str, message_id: int
    ) -> list[SessionMessage]:
        """Return the messages from this id on."""
        ids = agent_ids(session_id, agent_id)
        return await self._find({**ids, "message_id": {"$gte": message_id}}, ASCENDING, 0, 0)

    async def last_messages(
        self, session_id: str, agent_id: str, limit: int
    ) -> list[SessionMessage]:
        """Return the last messages, in the order of their ids, without reading the others.

        Raises:
            ValueError: The limit is below 1.
        """
        if limit < 1:
            raise ValueError(f"limit is {limit}: use 1 or more")
        return (await self._find(agent_ids(session_id, agent_id), DESCENDING, 0, limit))[::-1]

    async def last_prompt(self, session_id: str, agent_id: str, before: int) -> int | None:
        """Return the id of the last message before this one that a user said; None without one."""
        ids = agent_ids(session_id, agent_id)
        prompt = {
            "message_id": {"$lt": before},
            "message.role": "user",
            "message.content.toolResult": {"$exists": False},
        }
        method, order = self._store.messages.find_one, [("message_id", DESCENDING)]
        found = await self._store.do(ids, method, {**ids, **prompt}, {"message_id": 1}, sort=order)
        return None if found is None else int(found["message_id"])

    async def count_messages(self, session_id: str, agent_id: str) -> int:
        """Return how many messages an agent has."""
        ids = agent_ids(session_id, agent_id)
        count: int = await self._store.do(ids, self._store.messages.count_documents, ids)
        return count

    # What several do

    async def _prepare(self) -> None:
        if self._store.is_indexed:
            return
        if self._indexing is None:
            await self._store.create_indexes()
            return
        async with self._indexing:
            await self._store.create_indexes()

    async def _find(
        self, which: Document, direction: int, offset: int, limit: int
    ) -> list[SessionMessage]:
        cursor = self._store.messages.find(which, _NO_ID)
        cursor = cursor.sort("message_id", direction).skip(offset).limit(limit)
        ids = {key: which[key] for key in ("session_id", "agent_id")}
        return [SessionMessage.from_dict(one) for one in await self._store.do(ids, cursor.to_list)]

    async def _create(self, ids: Document, document: Document) -> None:
        """Create an agent, graph or swarm in its session."""
        session = ids["session_id"]
        await self._prepare()
        if (session, "") not in self._known:
            found = await self._session(session)
            if found is None:
                raise SessionException(f"session {session!r} does not exist")
            self._remember(session, "", Lease.in_document(found))
        lease, _ = self._known.get((session, ""), (None, 0.0))
        lease = await self._renew({"session_id": session}, lease, None)
        document = {"_id": ids, **document, **(lease.fields if lease else {})}
        await self._store.do(ids, self._store.agents.insert_one, document)
        if ids["kind"] == "agent":
            self._remember(session, ids["agent_id"], lease)

    async def _replace(self, collection: Any, ids: Document, document: Document) -> str:
        """Replace all but `created_at`, which is returned."""
        method = collection.find_one_and_update
        before = await self._store.do(ids, method, ids, replacement(document), {"created_at": True})
        if before is None:
            raise SessionException(f"{describe(ids)} does not exist")
        return str(before.get("created_at", ""))

    async def _delete(self, ids: Document) -> bool:
        """Delete a session and what belongs to it; return whether it was there."""
        session = ids["session_id"]
        self._forget(session)
        await self._store.do(ids, self._store.messages.delete_many, ids)
        await self._store.do(ids, self._store.agents.delete_many, ids)
        # At last, so that one that fails half-way can be repeated.
        gone = await self._store.do(ids, self._store.sessions.delete_one, {"_id": session})
        return bool(gone.deleted_count)

    # How long a session lives

    async def _delete_expired(self, ids: Document) -> None:
        """Delete what has expired of this id, and nothing newer: MongoDB takes its time for it."""
        over = {"expires_at": {"$lte": datetime.now(UTC)}}
        await self._store.do(ids, self._store.messages.delete_many, {**ids, **over})
        await self._store.do(ids, self._store.agents.delete_many, {**ids, **over})
        session = {"_id": ids["session_id"], **over}
        await self._store.do(ids, self._store.sessions.delete_one, session)

    async def _lease_of(self, session_id: str, agent_id: str) -> Lease | None:
        """Return until when an agent lives, at least. Mostly it is known."""
        ids = _agent(session_id, agent_id)
        if (session_id, agent_id) not in self._known:
            found = await self._store.do(ids, self._store.agents.find_one, ids, _LEASE)
            if found is None:
                raise SessionException(f"{describe(ids)} is missing")
            self._remember(session_id, agent_id, Lease.in_document(found))
        session = {"session_id": session_id}
        lease, asked = self._known.get((session_id, agent_id), (None, time.monotonic()))
        if time.monotonic() - asked > KNOWN_SECONDS:
            touched = {"$set": {"updated_at": now()}}
            method = self._store.sessions.update_one
            done = await self._store.do(session, method, {"_id": session_id}, touched)
            if not done.matched_count:
                self._forget(session_id)
                raise SessionException(f"session {session_id!r} was deleted")
            self._remember(session_id, agent_id, lease)
        if lease is not None and lease.is_stale:
            lease = await self._renew(session, lease, None)
            self._remember(session_id, agent_id, lease)
        return lease

    async def _renew(
        self, ids: Document, lease: Lease | None, ttl: timedelta | None
    ) -> Lease | None:
        """Move the end of a session and of all that belongs to it, if it is time to."""
        if lease is not None and (ttl is None or ttl == lease.ttl) and not lease.is_stale:
            return lease
        ttl = ttl or (lease and lease.ttl)
        if ttl is None:
            return None
        new = Lease.of(ttl)
        for collection, which in (
            (self._store.messages, ids),
            (self._store.agents, ids),
            (self._store.sessions, {"_id": ids["session_id"]}),
        ):
            await self._store.do(ids, collection.update_many, which, {"$set": new.fields})
        self._remember(ids["session_id"], "", new)
        return new

    def _remember(self, session_id: str, agent_id: str, lease: Lease | None) -> None:
        with self._lock:
            self._known[session_id, agent_id] = lease, time.monotonic()
            self._known.move_to_end((session_id, agent_id))
            if len(self._known) > KNOWN:
                self._known.popitem(last=False)

    def _forget(self, session_id: str) -> None:
        with self._lock:
            for pair in [pair for pair in self._known if pair[0] == session_id]:
                del self._known[pair]


def _agent(session_id: str, agent_id: str, kind: str = "agent") -> Document:
    return {**agent_ids(session_id, agent_id), "kind": kind}
