"""Reads and writes of sessions, agents and messages, written once for both kinds of client."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pymongo import ASCENDING, DESCENDING, AsyncMongoClient, MongoClient
from strands.types.exceptions import SessionException
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from pool_telemetry.sessions.client_choice import AnyClient, check_client
from pool_telemetry.sessions.collections import ONE_BATCH, Store
from pool_telemetry.sessions.dispatch import CallMethod, call_method_for
from pool_telemetry.sessions.documents import (
    OF_OTHERS,
    PREFIX,
    SCHEMA,
    Document,
    Lease,
    Owner,
    SessionConflictError,
    agent_document,
    agent_fault,
    agent_ids,
    agent_in,
    check_dict,
    check_form,
    check_session,
    check_written,
    decoded,
    describe,
    encoded,
    foreign_fault,
    message_fault,
    message_ids,
    message_in,
    nested,
    now,
    of_session,
    others_filter,
    owner_of,
    replacement,
    session_fault,
    session_filter,
    validated_id,
    value_fault,
)
from pool_telemetry.sessions.known import Cache, Known
from pool_telemetry.sessions.large_messages import (
    joined,
    part_ids,
    stored_agent,
    stored_form,
)
from pool_telemetry.sessions.records import Directory

if TYPE_CHECKING:
    from strands.multiagent.base import MultiAgentBase

_log = logging.getLogger("pool_telemetry.sessions")

MAX_TTL: Final = timedelta(days=36_500)

# The number of agents whose last messages are read at once; MongoDB allows 1,000 stages.
_AT_ONCE: Final = 500


class Conversation(NamedTuple):
    """An agent's stored messages, in the order of their ids."""

    messages: list[SessionMessage]
    counts: Document  # the conversation manager's counts that the last message carries


class AsyncMongoDBSessionRepository(Directory):
    """Sessions, their agents and messages, in three collections of one database.

    A missing document reads as None, and missing messages as an empty list. Tasks may share a
    repository; with a MongoClient each call runs in a thread.

    Args:
        client: The application's client; the repository never closes it.
        database_name: The database of the collections.
        prefix: The prefix of the collections' names.
        application: The application whose sessions alone the repository uses; None for any.
        user: The user whose sessions alone the repository uses; None for any. With an owner the
            methods for agents and messages raise SessionException if the session is missing, skip
            leftovers of an earlier session of the same id, and take one more command.
        create_indexes: Whether to create missing indexes. With False, for an account that may not,
            another account creates those that `indexes()` lists; without them lists are slow, and
            expired sessions stay.

    Raises:
        PoolConfigurationError: The account may not create indexes.
        SessionOwnerError: The session has another owner than the repository, or than the call.
        SessionException: The session or agent of a write does not exist, or a document is larger
            than its limit or has a value that BSON can't store; such a message is stored as a
            placeholder instead (`large_messages.py`). Or a document that was read is not this
            library's, is damaged, or has a newer schema. The subclass SessionConflictError is
            raised if the document already exists, and InvalidIdError for an invalid id. Errors of
            the server and the network are PyMongo's own.
    """

    def __init__(
        self,
        client: AnyClient,
        database_name: str = "strands",
        *,
        prefix: str = PREFIX,
        application: str | None = None,
        user: str | None = None,
        create_indexes: bool = True,
        _call_method: CallMethod | None = None,  # given by the synchronous repository
    ) -> None:
        check_client(client, AsyncMongoClient, MongoClient)
        super().__init__(
            Store(
                client,
                database_name,
                prefix,
                _call_method or call_method_for(client),
                create_indexes=create_indexes,
            ),
            owner_of(application, user),
        )
        self._indexing = asyncio.Lock() if _call_method is None else None
        self._known = Cache(self._store.sessions.full_name)

    @property
    def uses_threads(self) -> bool:
        """Return whether calls run in threads, because the client is a MongoClient."""
        return self._store.call is asyncio.to_thread

    @property
    def full_name(self) -> str:
        """Return the name of the sessions' collection with its database."""
        name: str = self._store.sessions.full_name
        return name

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
        """Return a session, and whether it is new: one command, or five to create it.

        Args:
            session_id: The session's id.
            application: The application of a new session; an existing session's has to be the same.
            user: The user of a new session; an existing session's has to be the same.
            metadata: The metadata of a new session, as in `update_metadata`.
            ttl: The time to live of the session and all its documents after its last use. None
                keeps an existing session's; a new session then never expires. Moving the end takes
                three more commands, at most once in a tenth of this time. Another process that has
                the session open learns of it within a minute, with its next message. A document
                that it stores before, without another message, keeps its own end, or has none.
        """
        if ttl is not None and not (isinstance(ttl, timedelta) and timedelta() < ttl <= MAX_TTL):
            raise ValueError(
                f"ttl is {ttl!r}: use a timedelta above 0, at most {MAX_TTL.days} days"
            )
        if metadata is not None:
            check_dict("metadata", metadata)
        owner = self._owner_with(application, user)
        ids = {"session_id": validated_id("session", session_id)}
        await self._prepare()
        session = Session(session_id, SessionType.AGENT)
        touched = {"$set": {"updated_at": session.updated_at}}
        method = self._store.sessions.find_one_and_update
        which = session_filter(session_id, owner)
        while (before := await self._store.do(ids, method, which, touched)) is None:
            lease = None if ttl is None else Lease.of(ttl)
            document = {
                "_id": session_id,
                "schema": SCHEMA,
                **session.to_dict(),
                **owner,
                "metadata": nested(ids, metadata or {}),
                **(lease.fields if lease else {}),
            }
            await self._store.check_indexes()
            try:
                await self._store.do(ids, self._store.sessions.insert_one, document)
            except SessionConflictError:
                # Another writer was first, or the session is expired, or another owner's.
                await self._check_present(session_id, owner)
                continue
            # Documents of an expired session, or of one deleted while a process still wrote to it.
            # Only the writer that created the session deletes them, and it compares no clocks:
            # another host may already have stored its first turn in the new session.
            other = {"session_created_at": {"$ne": session.created_at}}
            leftovers = {**others_filter(ids), **other}
            await self._store.do(ids, self._store.messages.delete_many, leftovers)
            await self._store.do(ids, self._store.agents.delete_many, leftovers)
            self._known.remember(session_id, "", lease, session.created_at)
            return session, True
        found = Lease.in_document(check_session(before, owner))
        if found is not None and found.is_over:
            await self._delete_expired(ids)
            return await self.open_session(
                session_id, application=application, user=user, metadata=metadata, ttl=ttl
            )
        lease = await self._renew(ids, found, ttl, before["created_at"])
        self._known.remember(session_id, "", lease, before["created_at"])
        return Session.from_dict(before), False

    async def create_session(self, session: Session) -> Session:
        """Create a session; SessionConflictError if it already exists."""
        ids = {"session_id": validated_id("session", session.session_id)}
        await self._prepare()
        await self._store.check_indexes()
        document = {"_id": session.session_id, "schema": SCHEMA, **session.to_dict(), **self._owner}
        await self._store.do(ids, self._store.sessions.insert_one, {**document, "metadata": {}})
        return session

    async def read_session(
        self, session_id: str, *, application: str | None = None, user: str | None = None
    ) -> Session | None:
        """Return a session; None if it does not exist."""
        found = await self._session(session_id, self._owner_with(application, user))
        return None if found is None else Session.from_dict(found)

    async def delete_session(
        self, session_id: str, *, application: str | None = None, user: str | None = None
    ) -> None:
        """Delete a session with its agents and messages; SessionException if it does not exist."""
        ids = {"session_id": validated_id("session", session_id)}
        if not await self._delete(ids, self._owner_with(application, user)):
            raise self._no_session(session_id)

    # Agents

    async def create_agent(self, session_id: str, session_agent: SessionAgent) -> None:
        """Create an agent; SessionException if it already exists or its session does not exist."""
        ids = _agent(session_id, session_agent.agent_id)
        await self._create(ids, agent_document(ids, session_agent))

    async def read_agent(self, session_id: str, agent_id: str) -> SessionAgent | None:
        """Return an agent; None if it does not exist."""
        ids = _agent(session_id, agent_id)
        found = await self._read(self._store.agents, ids)
        if found is None:
            return None
        whole = await self._whole_agent(ids, found)
        self._remember_agent(whole)
        return agent_in(decoded(ids, whole))

    async def update_agent(
        self, session_id: str, session_agent: SessionAgent, *, conversation: bool = True
    ) -> None:
        """Replace an agent except `created_at`; SessionException if it does not exist.

        Args:
            session_id: The session's id.
            session_agent: The agent.
            conversation: Whether to replace the conversation manager's state, too.
        """
        ids = _agent(session_id, session_agent.agent_id)
        document = agent_document(ids, session_agent)
        left_out = () if conversation else ("conversation_manager_state",)
        session_agent.created_at = await self._replace_agent(ids, document, left_out)

    async def list_agents(
        self,
        session_id: str,
        agent_ids: Collection[str] | None = None,
        *,
        faults: dict[tuple[str, str], str] | None = None,
    ) -> list[Document]:
        """Return the documents of a session's agents, graphs and swarms, or of these ids only.

        Args:
            session_id: The session's id.
            agent_ids: The ids; None for all.
            faults: A dict to fill with the faults of skipped documents, by kind and id.
        """

        def fault(document: Document) -> str:
            words, its = agent_fault(document) or value_fault(document), document["_id"]
            if words and faults is not None and isinstance(its, dict):
                faults[str(its.get("kind")), str(its.get("agent_id"))] = words
            return words

        ids = {"session_id": validated_id("session", session_id)}
        # The kind excludes parts.
        kinds = {"kind": {"$type": "string"}}
        which = {**ids, **kinds, **of_session(await self._permit(session_id))}
        if agent_ids is not None:
            which["agent_id"] = {"$in": [validated_id("agent", one) for one in agent_ids]}
        agents = await self._store.find_ours(
            ids,
            self._store.agents,
            which,
            ours=OF_OTHERS,
            fault=fault,
        )
        wholes = [await self._whole_agent(one["_id"], one) for one in agents]
        for one in wholes:
            del one["_id"]
            if one["kind"] == "agent":
                self._remember_agent(one)
        return [decoded(ids, one) for one in wholes]

    # Graphs and swarms

    async def create_multi_agent(self, session_id: str, multi_agent: "MultiAgentBase") -> None:
        """Create the state of a graph or swarm; SessionException if it already exists."""
        ids = _agent(session_id, multi_agent.id, "multi_agent")
        document = {**ids, "schema": SCHEMA, "created_at": now()}
        await self._create(ids, document | {"state": encoded(ids, multi_agent.serialize_state())})

    async def read_multi_agent(self, session_id: str, multi_agent_id: str) -> Document | None:
        """Return the state of a graph or swarm; None if it does not exist."""
        ids = _agent(session_id, multi_agent_id, "multi_agent")
        found = await self._read(self._store.agents, ids)
        if found is None:
            return None
        whole = await self._whole_agent(ids, found)
        state: Document = decoded(ids, {"state": whole["state"]})["state"]
        return state

    async def update_multi_agent(self, session_id: str, multi_agent: "MultiAgentBase") -> None:
        """Replace the state of a graph or swarm; SessionException if it does not exist."""
        ids = _agent(session_id, multi_agent.id, "multi_agent")
        document = {**ids, "schema": SCHEMA, "state": encoded(ids, multi_agent.serialize_state())}
        await self._replace_agent(ids, document)

    # Messages

    async def create_message(
        self,
        session_id: str,
        agent_id: str,
        session_message: SessionMessage,
        *,
        again: bool = False,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """Create a message; SessionException if its id is in use or its agent does not exist.

        Args:
            session_id: The session's id.
            agent_id: The agent's id.
            session_message: The message.
            again: Whether an earlier try failed. If that try was stored nevertheless, it counts as
                this message and is no conflict.
            counts: The conversation manager's counts that the message carries for the next open,
                because the agent's document has older ones.
        """
        ids = message_ids(session_id, agent_id, session_message.message_id)
        agent = await self._agent_of(session_id, agent_id)
        options = self._store.messages.codec_options
        document, parts = stored_form(ids, session_message, options)
        if counts:
            document["conversation_manager_state"] = dict(counts)
        if agent.lease is not None:
            document["expires_at"] = agent.lease.expires_at
        await self._insert_parts(self._store.messages, ids, document, parts, agent.created_at)
        try:
            await self._insert(self._store.messages, ids, document, agent.created_at)
        except SessionConflictError:
            stored = await self.read_message(*ids.values()) if again else None
            if stored is None or stored.created_at != session_message.created_at:
                self._store.counts.add(conflicts=1)
                await self._delete_unused_parts(ids, document)
                raise
            if stored != session_message:  # the message was changed after the earlier try
                await self.update_message(session_id, agent_id, session_message)

    async def read_message(
        self, session_id: str, agent_id: str, message_id: int
    ) -> SessionMessage | None:
        """Return a message; None if it does not exist."""
        ids = message_ids(session_id, agent_id, message_id)
        found = await self._read(self._store.messages, ids)
        if found is None:
            return None
        return await self._whole(ids, found)

    async def update_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage
    ) -> None:
        """Replace a message except `created_at`; SessionException if it does not exist."""
        ids = message_ids(session_id, agent_id, session_message.message_id)
        options = self._store.messages.codec_options
        document, parts = stored_form(ids, session_message, options)
        await self._insert_parts_of(self._store.messages, ids, document, parts)
        # First, so that a redacted message's parts never stay behind.
        await self._delete_other_parts(ids, document.get("parts"))
        before = await self._replace(self._store.messages, ids, document)
        session_message.created_at = str(before.get("created_at", ""))

    async def list_messages(
        self, session_id: str, agent_id: str, limit: int | None = None, offset: int = 0
    ) -> list[SessionMessage]:
        """Return at most `limit` messages in the order of their ids, without the first `offset`."""
        if (limit is not None and limit < 0) or offset < 0:
            raise ValueError(f"limit is {limit}, offset is {offset}: use 0 or more")
        if limit == 0:
            return []  # MongoDB takes 0 for no limit
        return await self._find(agent_ids(session_id, agent_id), ASCENDING, offset, limit or 0)

    async def messages_from(
        self, session_id: str, agent_id: str, message_id: int
    ) -> list[SessionMessage]:
        """Return the messages with this id or a higher one, in the order of their ids."""
        ids = agent_ids(session_id, agent_id)
        return await self._find({**ids, **_from(message_id)}, ASCENDING, 0, 0)

    async def last_messages(
        self, session_id: str, agent_id: str, limit: int
    ) -> list[SessionMessage]:
        """Return the last `limit` messages in the order of their ids; no others are read.

        Raises:
            ValueError: The limit is below 1.
        """
        if limit < 1:
            raise ValueError(f"limit is {limit}: use 1 or more")
        return (await self._find(agent_ids(session_id, agent_id), DESCENDING, 0, limit))[::-1]

    async def conversations(
        self, session_id: str, firsts: Mapping[str, int], last: int | None = None
    ) -> dict[str, Conversation]:
        """Return the messages of several agents, with one command for all of them.

        An agent without a message from there on has its last message nevertheless, because the
        next id follows it; that is one command more for all such agents. The parts of all large
        messages are one more, in batches of 16 MB.

        Args:
            session_id: The session's id.
            firsts: The id of each agent's first message to read.
            last: The number of messages of an agent to read at most, the last ones; None for all.
        """
        ids = {"session_id": validated_id("session", session_id)}
        parts = [{**agent_ids(session_id, one), **_from(first)} for one, first in firsts.items()]
        created_at = await self._permit(session_id)
        if last is not None:
            found = await self._last(ids, parts, created_at, last)
        elif parts:
            which = parts[0] if len(parts) == 1 else {"$or": parts}
            order = [(key, ASCENDING) for key in ("session_id", "agent_id", "message_id")]
            found = await self._found(ids, which, created_at, order)
        else:
            found = []
        having = {one["agent_id"] for one in found}
        lacking = [
            agent_ids(session_id, one) for one in firsts if firsts[one] and one not in having
        ]
        found += await self._last(ids, lacking, created_at, 1)
        conversations = {one: Conversation([], {}) for one in firsts}
        for one, message in zip(found, await self._all_whole(ids, found), strict=True):
            messages = conversations[one["agent_id"]].messages
            messages.append(message)
            counts = one.get("conversation_manager_state", {})
            conversations[one["agent_id"]] = Conversation(messages, counts)
        return conversations

    async def last_prompts(self, session_id: str, before_ids: Mapping[str, int]) -> dict[str, int]:
        """Return the id of each agent's last user message before an id, if there is one."""
        ids = {"session_id": validated_id("session", session_id)}
        prompt = {"message.role": "user", "message.content.toolResult": {"$exists": False}}
        parts = [
            {**agent_ids(session_id, one), "message_id": {"$lt": before}, **prompt}
            for one, before in before_ids.items()
        ]
        found = await self._last(ids, parts, await self._permit(session_id), 1)
        return {one["agent_id"]: int(one["message_id"]) for one in found}

    async def count_messages(self, session_id: str, agent_id: str) -> int:
        """Return the number of an agent's messages."""
        ids = agent_ids(session_id, agent_id)
        created_at = await self._permit(session_id)
        method = self._store.messages.count_documents
        count: int = await self._store.do(ids, method, others_filter(ids, created_at))
        return count

    # Shared by the methods above

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
        ids = {key: which[key] for key in ("session_id", "agent_id")}
        created_at = await self._permit(ids["session_id"])
        order = [("message_id", direction)]
        found = await self._found(ids, which, created_at, order, skip=offset, limit=limit)
        return await self._all_whole(ids, found)

    async def _found(
        self,
        ids: Document,
        which: Document,
        created_at: str | None,
        order: list[tuple[str, int]],
        **page: Any,
    ) -> list[Document]:
        """Return the documents of messages; a damaged one is not left out."""
        return await self._store.find_ours(
            ids,
            self._store.messages,
            {**which, **of_session(created_at)},
            ours=OF_OTHERS,
            fault=foreign_fault,
            skips_undecodable=False,
            sort=order,
            **page,
        )

    async def _insert_parts_of(
        self, collection: Any, ids: Document, document: Document, parts: list[bytes]
    ) -> None:
        """Insert the parts of a document that is to be replaced, if it has any."""
        if parts:
            before = await self._read(collection, ids)
            if before is None:
                raise await self._missing(ids)
            if "expires_at" in before:
                document = {**document, "expires_at": before["expires_at"]}
            created_at = before.get("session_created_at")
            await self._insert_parts(collection, ids, document, parts, created_at)

    async def _insert_parts(
        self,
        collection: Any,
        ids: Document,
        document: Document,
        parts: list[bytes],
        created_at: str | None,
    ) -> None:
        """Insert the parts of a document; the parts of an earlier try of a message are kept."""
        keys = ("session_id", "schema", "expires_at")
        form: Document = {key: document[key] for key in keys if key in document}
        if created_at is not None:
            form["session_created_at"] = created_at
        names = part_ids(ids, document["parts"]) if parts else []
        for name, data in zip(names, parts, strict=True):
            with contextlib.suppress(SessionConflictError):
                part = {"_id": name, **form, "data": data}
                await self._store.do(ids, collection.insert_one, part)

    async def _delete_parts(self, collection: Any, ids: Document, content: Any) -> None:
        """Delete the parts of a message or an agent with this `content`."""
        session, names = ids["session_id"], [key for key in ids if key != "session_id"]
        which = {
            **others_filter({"session_id": session, **dict.fromkeys(names)}),
            **of_session(await self._permit(session)),
            **{f"_id.{key}": ids[key] for key in names},
            "_id.content": content,
        }
        await self._store.do(ids, collection.delete_many, which)

    async def _delete_other_parts(self, ids: Document, used: Document | None) -> None:
        """Delete the parts of a message, except the parts that it uses now."""
        content = {"$exists": True, "$ne": used and used["content"]}
        await self._delete_parts(self._store.messages, ids, content)

    async def _delete_unused_parts(self, ids: Document, document: Document) -> None:
        """Delete the parts of a message that another writer stored first with another content."""
        if document.get("parts"):
            stored = await self._read(self._store.messages, ids)
            await self._delete_other_parts(ids, stored and stored.get("parts"))

    async def _data(
        self, collection: Any, ids: Document, found: list[Document]
    ) -> dict[tuple[Any, ...], bytes]:
        """Return the data of all parts of stored documents, by the values of their ids."""
        names = [name for one in found for name in part_ids(one["_id"], one["parts"])]
        if not names:
            return {}
        which = {"_id": {"$in": names}}
        cursor = collection.find(which, {"data": True}, batch_size=ONE_BATCH)
        # By size, so that the last parts, which are small, share a batch.
        cursor = cursor.sort("_id.part").allow_disk_use(True)
        parts = await self._store.do(ids, cursor.to_list)
        return {tuple(one["_id"].values()): one["data"] for one in parts}

    async def _all_whole(self, ids: Document, found: list[Document]) -> list[SessionMessage]:
        """Return stored messages, with their parts, which are read together."""
        split = [one for one in found if one.get("parts") and not message_fault(one)]
        data = await self._data(self._store.messages, ids, split)
        return [await self._whole(one["_id"], one, data) for one in found]

    async def _whole(
        self, ids: Document, found: Document, data: Mapping[tuple[Any, ...], bytes] | None = None
    ) -> SessionMessage:
        """Return a stored message, with its parts; their data may be read already."""
        found, rest = await self._with_parts(self._store.messages, ids, found, message_fault, data)
        if rest is None:
            _log.warning("%s has lost its parts; a placeholder was read", describe(ids))
        created_at = {"created_at": found["created_at"]}  # an update keeps it
        return message_in({**found, **(rest or {}), **created_at})

    async def _whole_agent(self, ids: Document, found: Document) -> Document:
        """Return the stored document of an agent, graph or swarm, with its parts."""
        found, rest = await self._with_parts(self._store.agents, ids, found, agent_fault)
        if rest is None:  # an empty state would replace the lost one
            raise SessionException(f"{describe(ids)} has lost its parts")
        whole = {**found, **rest, "_id": ids}
        whole.pop("parts", None)
        return whole

    async def _with_parts(
        self,
        collection: Any,
        ids: Document,
        found: Document,
        fault: Callable[[Document], str],
        data: Mapping[tuple[Any, ...], bytes] | None = None,
    ) -> tuple[Document, Document | None]:
        """Return a stored document, and what its parts contain; None if they are lost."""
        while True:
            check_form(ids, fault(found))
            parts = found.get("parts")
            if not parts:
                return found, {}
            names = [tuple(one.values()) for one in part_ids(ids, parts)]
            data = await self._data(collection, ids, [found]) if data is None else data
            if all(name in data for name in names):
                each = [data[name] for name in names]
                return found, joined(ids, parts["content"], each, collection.codec_options)
            # Another writer replaced or deleted the document meanwhile, or a redaction was cut off.
            again = await self._read(collection, ids)
            if again is None or again.get("parts") == parts:
                return found, None
            found, data = again, None

    async def _last(
        self, ids: Document, parts: list[Document], created_at: str | None, limit: int
    ) -> list[Document]:
        """Return each part's last messages, `limit` at most, in the order of their ids."""
        order = {"$sort": {"message_id": DESCENDING}}
        each: list[list[Document]] = [
            [{"$match": others_filter(part, created_at)}, order, {"$limit": limit}]
            for part in parts
        ]
        messages, found = self._store.messages, []
        for index in range(0, len(each), _AT_ONCE):
            first, *others = each[index : index + _AT_ONCE]
            union = [{"$unionWith": {"coll": messages.name, "pipeline": one}} for one in others]
            pipeline = [*first, *union]
            cursor = await self._store.do(ids, messages.aggregate, pipeline, batchSize=ONE_BATCH)
            found += await self._store.call(cursor.to_list)
        return [one for one in reversed(found) if not foreign_fault(one)]

    async def _create(self, ids: Document, document: Document) -> None:
        """Create an agent, graph or swarm in its session."""
        session = ids["session_id"]
        check_written(ids, agent_fault({"_id": ids, **document}))
        agents = self._store.agents
        document, parts = stored_agent(ids, document, agents.codec_options)
        await self._prepare()
        known = self._known.get(session)
        if known is None or not self._may_trust(session, known):
            known = await self._ask(session)
        created_at = known.created_at
        lease = await self._renew({"session_id": session}, known.lease, None, created_at)
        document |= lease.fields if lease else {}
        await self._insert_parts(agents, ids, document, parts, created_at)
        try:
            await self._insert(agents, ids, document, created_at)
        except SessionConflictError:
            if parts:
                await self._delete_parts(agents, ids, document["parts"]["content"])
            found = await self._read(agents, ids)
            check_form(ids, "" if found is None else agent_fault(found))
            raise
        if ids["kind"] == "agent":
            self._known.remember(session, ids["agent_id"], lease, created_at)

    async def _insert(
        self, collection: Any, ids: Document, document: Document, created_at: str | None
    ) -> None:
        """Insert an agent or a message of a session; a leftover with its id gives way."""
        document = {"_id": ids, **document}
        if created_at is not None:
            document["session_created_at"] = created_at
        try:
            await self._store.do(ids, collection.insert_one, document)
        except SessionConflictError:
            if created_at is None:
                raise
            session = await self._session(ids["session_id"])
            if session is None or session["created_at"] != created_at:
                raise _deleted(ids) from None
            leftover = {"_id": ids, "session_created_at": {"$exists": True, "$ne": created_at}}
            done = await self._store.do(ids, collection.delete_one, leftover)
            if not done.deleted_count:
                raise
            await self._store.do(ids, collection.insert_one, document)

    async def _read(self, collection: Any, ids: Document) -> Document | None:
        """Return the document of an agent or a message; None if it does not exist."""
        which = {"_id": ids, **of_session(await self._permit(ids["session_id"]))}
        found: Document | None = await self._store.do(ids, collection.find_one, which)
        return found

    async def _replace_agent(
        self, ids: Document, document: Document, left_out: Collection[str] = ()
    ) -> str:
        """Replace an agent, graph or swarm except these keys; return its `created_at`."""
        check_written(ids, agent_fault({"_id": ids, **document}))
        agents = self._store.agents
        changed = {key: value for key, value in document.items() if key not in left_out}
        changed, parts = stored_agent(ids, changed, agents.codec_options)
        await self._insert_parts_of(agents, ids, changed, parts)
        before = await self._replace(agents, ids, changed)
        if isinstance(old := before.get("parts"), dict):
            await self._delete_parts(agents, ids, old.get("content"))
        return str(before.get("created_at", ""))

    async def _replace(self, collection: Any, ids: Document, document: Document) -> Document:
        """Replace a document except `created_at`, and return what it had of that and of parts."""
        method, shown = collection.find_one_and_update, {"created_at": True, "parts": True}
        which = {**ids, "_id": ids, **of_session(await self._permit(ids["session_id"]))}
        before: Document | None = await self._store.do(
            ids, method, which, replacement(document), shown
        )
        if before is None:
            raise await self._missing(ids)
        return before

    async def _delete(self, ids: Document, owner: Owner) -> bool:
        """Delete a session with its agents and messages; return whether the session existed."""
        session = ids["session_id"]
        found = await self._session(session, owner)  # raises before anything is deleted
        created_at = self._created_at(session)
        if found is None and created_at is not None:
            return False  # the documents may be those of a later session
        self._known.forget(session)
        await self._store.do(ids, self._store.messages.delete_many, others_filter(ids))
        await self._store.do(ids, self._store.agents.delete_many, others_filter(ids))
        # The session comes last, so that a deletion that fails half-way can be repeated.
        which = session_filter(session, owner, created_at)
        done = await self._store.do(ids, self._store.sessions.delete_one, which)
        self._known.doubt(session)
        return bool(done.deleted_count)

    async def _check_present(self, session_id: str, owner: Owner) -> None:
        """Refuse a present session that the owner may not use, or delete it if it is expired."""
        ids, method = {"session_id": session_id}, self._store.sessions.find_one
        found = await self._store.do(ids, method, {"_id": session_id})
        if found is None:
            return
        lease = None if session_fault(found) else Lease.in_document(found)
        if lease is not None and lease.is_over:  # its owner has no more claim to the id
            await self._delete_expired(ids)
        else:
            check_session(found, owner)

    async def _permit(self, session_id: str) -> str | None:
        """See Directory; a bound session's answer is cached for KNOWN_SECONDS."""
        known = self._known.get(session_id)
        if not self._owner or (known and self._may_trust(session_id, known)):
            return self._created_at(session_id)
        return (await self._ask(session_id)).created_at

    async def _ask(self, session_id: str) -> Known:
        """Return that a session exists that the owner may use, or raise."""
        found = await self._session(session_id)
        if found is None:
            raise self._no_session(session_id)
        return self._known.remember(session_id, "", Lease.in_document(found), found["created_at"])

    def _may_trust(self, session_id: str, known: Known) -> bool:
        """Return whether a cached answer of a bound session is new enough.

        For another session it may be wrong, because a later session may have the id by now.
        """
        return self._created_at(session_id) is not None and self._known.is_new(session_id, known)

    # A session's time to live

    async def _delete_expired(self, ids: Document) -> None:
        """Delete only the expired documents of a session, because MongoDB deletes them late."""
        expired = {"expires_at": {"$lte": datetime.now(UTC)}}
        which = {**others_filter(ids), **expired}
        await self._store.do(ids, self._store.messages.delete_many, which)
        await self._store.do(ids, self._store.agents.delete_many, which)
        session = {**session_filter(ids["session_id"], {}), **expired}
        await self._store.do(ids, self._store.sessions.delete_one, session)

    async def _agent_of(self, session_id: str, agent_id: str) -> Known:
        """Return an agent, usually from the cache; its stored lease may end later."""
        ids = _agent(session_id, agent_id)
        known = self._known.get(session_id, agent_id)
        if known is None:
            found = await self._read(self._store.agents, ids)
            if found is None:
                raise await self._missing(ids, "is missing")
            check_form(ids, agent_fault(found))
            known = self._remember_agent(found)
            # A process that did not know of the session's time to live may have stored the agent.
            opened = self._known.get(session_id)
            if known.lease is None and opened is not None and opened.lease is not None:
                known = await self._adopt(session_id, agent_id, known, opened.lease)
        elif not self._known.is_new(session_id, known):
            found = await self._touch(session_id, known.created_at)
            if found is None:
                self._known.forget(session_id)
                await self._delete_leftovers(session_id, known.created_at)
                raise _deleted(ids)
            lease = Lease.in_document(found)
            self._known.remember(session_id, "", lease, known.created_at)
            known = await self._adopt(session_id, agent_id, known, lease)
        if known.lease is not None and known.lease.is_stale:
            session = {"session_id": session_id}
            lease = await self._renew(session, known.lease, None, known.created_at)
            known = self._known.remember(session_id, agent_id, lease, known.created_at)
        return known

    async def _touch(self, session_id: str, created_at: str | None) -> Document | None:
        """Count a session as opened now, and return its document; None if it was deleted."""
        ids, method = {"session_id": session_id}, self._store.sessions.find_one_and_update
        which = session_filter(session_id, self._owner, created_at)
        touch = {"$set": {"updated_at": now()}}
        found: Document | None = await self._store.do(
            ids, method, which, touch, {"metadata": False}
        )
        if found is None:
            await self._session(session_id)  # raises if the session is another owner's
            return None
        check_form(ids, session_fault(found))
        return found

    async def _adopt(
        self, session_id: str, agent_id: str, known: Known, lease: Lease | None
    ) -> Known:
        """Cache the lease of an agent's session as the agent's.

        If the agent had another time to live, the session's was set meanwhile. Then all documents
        get it, because some of them were stored without it.
        """
        before = known.lease
        if lease is not None and (before is None or before.ttl != lease.ttl):
            ids = {"session_id": session_id}
            lease = await self._renew(ids, None, lease.ttl, known.created_at)
        return self._known.remember(session_id, agent_id, lease, known.created_at)

    async def _delete_leftovers(self, session_id: str, created_at: str | None) -> None:
        """Delete what was written for a session after its deletion."""
        ids = {"session_id": session_id}
        if created_at is not None:
            which = {**others_filter(ids), "session_created_at": created_at}
            await self._store.do(ids, self._store.messages.delete_many, which)
            await self._store.do(ids, self._store.agents.delete_many, which)

    async def _renew(
        self, ids: Document, lease: Lease | None, ttl: timedelta | None, created_at: str | None
    ) -> Lease | None:
        """Move the end of a session and its documents if its lease is stale or `ttl` differs."""
        if lease is not None and (ttl is None or ttl == lease.ttl) and not lease.is_stale:
            return lease
        ttl = ttl or (lease and lease.ttl)
        if ttl is None:
            return None
        new = Lease.of(ttl)
        for collection, which in (
            (self._store.messages, others_filter(ids, created_at)),
            (self._store.agents, others_filter(ids, created_at)),
            (self._store.sessions, session_filter(ids["session_id"], {}, created_at)),
        ):
            await self._store.do(ids, collection.update_many, which, {"$set": new.fields})
        if lease is None or lease.ttl != ttl:  # other repositories store documents without it
            self._known.doubt(ids["session_id"])
        self._known.remember(ids["session_id"], "", new, created_at)
        return new

    def _remember_agent(self, agent: Document) -> Known:
        """Cache that a bound repository's session, or any other, has an agent."""
        created_at = self._created_at(agent["session_id"]) or agent.get("session_created_at")
        lease = Lease.in_document(agent)
        return self._known.remember(agent["session_id"], agent["agent_id"], lease, created_at)


def _agent(session_id: str, agent_id: str, kind: str = "agent") -> Document:
    return {**agent_ids(session_id, agent_id), "kind": kind}


def _from(message_id: int) -> Document:
    """Return the filter for messages from an id on, and those whose id is damaged."""
    return {"message_id": {"$not": {"$lt": message_id}}}


def _deleted(ids: Mapping[str, Any]) -> SessionException:
    return SessionException(f"session {ids['session_id']!r} was deleted")
