"""Records that Strands itself does not use: metadata, feedback, lists of sessions, model usage."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from pymongo import ASCENDING, DESCENDING
from strands.types.exceptions import SessionException
from strands.types.session import Session

from pool_telemetry.sessions.collections import Store, log_others
from pool_telemetry.sessions.documents import (
    OF_MESSAGES,
    OF_SESSIONS,
    Document,
    Owner,
    SessionInfo,
    SessionUsage,
    agent_ids,
    check_dict,
    check_owner,
    check_session,
    decoded,
    describe,
    encoded,
    foreign_fault,
    message_ids,
    metadata_fields,
    now,
    of_metadata,
    others_filter,
    owner_of,
    session_fault,
    session_filter,
    through_values,
    validated_id,
    value_fault,
)
from pool_telemetry.sessions.values import decode

_MAX_LISTED: Final = 1_000
_USAGE: Final = {
    "input_tokens": "usage.inputTokens",
    "output_tokens": "usage.outputTokens",
    "total_tokens": "usage.totalTokens",
    "cache_read_input_tokens": "usage.cacheReadInputTokens",
    "cache_write_input_tokens": "usage.cacheWriteInputTokens",
    "latency_ms": "metrics.latencyMs",
}  # paths in a message's metadata; Strands keeps the model's report there
_CYCLES: Final = {"$sum": {"$cond": [{"$eq": ["$message.role", "assistant"]}, 1, 0]}}
_CALLS: Final = {"$eq": [{"$type": "$$block.toolUse"}, "object"]}
_TOOL_CALLS: Final = {
    "$sum": {
        "$cond": [
            {"$isArray": "$message.content"},
            {"$size": {"$filter": {"input": "$message.content", "as": "block", "cond": _CALLS}}},
            0,
        ]
    }
}


class Directory:
    """Reads and writes a session's metadata and feedback, lists sessions and sums their usage.

    Args:
        store: The collections.
        owner: The owner whose sessions alone it uses; empty if the caller named none.
    """

    def __init__(self, store: Store, owner: Owner) -> None:
        self._store = store
        self._owner = owner
        self._opened: Session | None = None
        self.counts = store.counts

    def _bind(self, session: Session) -> None:
        """Use no later session that gets the id of this session after its deletion."""
        self._opened = session

    async def get_metadata(self, session_id: str) -> Document:
        """Return a session's metadata; SessionException if there is no session."""
        found = await self._session(session_id)
        if found is None:
            raise self._no_session(session_id)
        ids, metadata = {"session_id": session_id}, found.get("metadata", {})
        return decoded(ids, metadata)

    async def get_application_name(self, session_id: str) -> str | None:
        """Return a session's application; None without one, or if there is no session."""
        found = await self._session(session_id)
        return None if found is None else found.get("application")

    async def get_user(self, session_id: str) -> str | None:
        """Return a session's user; None without one, or if there is no session."""
        found = await self._session(session_id)
        return None if found is None else found.get("user")

    async def update_metadata(self, session_id: str, values: Mapping[str, Any]) -> None:
        """Set values by their paths, such as `{"customer.plan": "pro"}`, and keep all others.

        Raises:
            SessionException: There is no session, or a path is invalid or leads through a value.
        """
        fields = of_metadata({"session_id": session_id}, values)
        await self._set_metadata(session_id, {"$set": fields}, through_values(values))

    async def delete_metadata(self, session_id: str, *paths: str) -> None:
        """Delete values by their paths; a missing path is no error."""
        await self._set_metadata(
            session_id, {"$unset": dict.fromkeys(metadata_fields(paths), "")}, {}
        )

    async def add_feedback(
        self, session_id: str, agent_id: str, message_id: int, feedback: Mapping[str, Any]
    ) -> None:
        """Add feedback to a message, with the current time as `created_at`.

        Raises:
            SessionException: There is no such message.
        """
        ids = message_ids(session_id, agent_id, message_id)
        check_dict("feedback", feedback)
        created_at = await self._permit(session_id)
        entry = {"created_at": now(), **encoded(ids, dict(feedback))}
        update = {"$push": {"feedback": {"$each": [entry]}}}
        which = others_filter(ids, created_at)
        done = await self._store.do(ids, self._store.messages.update_one, which, update)
        if not done.matched_count:
            raise await self._missing(ids)

    async def latest_message(self, session_id: str, agent_id: str | None = None) -> tuple[str, int]:
        """Return the agent and the id of the latest message of a session, or of one of its agents.

        The latest message has the highest id, because the clocks of several hosts differ. If
        several agents have that id, it is the message of the first agent in alphabetical order.

        Raises:
            SessionException: There is no message.
        """
        ids = {"session_id": validated_id("session", session_id)}
        if agent_id is not None:
            ids = agent_ids(session_id, agent_id)
        created_at = await self._permit(session_id)
        order = [("message_id", DESCENDING), ("agent_id", ASCENDING)]
        which = {**others_filter(ids, created_at), **OF_MESSAGES}
        found = await self._store.find_ours(
            ids,
            self._store.messages,
            which,
            ours=OF_MESSAGES,
            fault=foreign_fault,
            sort=order,
            limit=1,
            shown={"session_id": True, "agent_id": True, "message_id": True},
        )
        if not found:
            raise await self._missing(ids, "has no messages")
        return found[0]["agent_id"], int(found[0]["message_id"])

    async def list_feedback(self, session_id: str, agent_id: str | None = None) -> list[Document]:
        """Return all feedback on the messages of a session, or of one of its agents.

        Each has its message's `agent_id` and `message_id`, and they are in that order.
        """
        ids = {"session_id": validated_id("session", session_id)}
        if agent_id is not None:
            ids = agent_ids(session_id, agent_id)
        created_at = await self._permit(session_id)
        shown = {"_id": False, "agent_id": True, "message_id": True, "feedback": True}
        order = [("agent_id", ASCENDING), ("message_id", ASCENDING)]
        which = {**others_filter(ids, created_at), **OF_MESSAGES}
        which["feedback.created_at"] = {"$exists": True}
        found = await self._store.find_ours(
            ids,
            self._store.messages,
            which,
            ours={},
            fault=lambda _: "",
            sort=order,
            shown=shown,
        )
        entries = []
        for one in found:
            its = {key: one[key] for key in ("agent_id", "message_id")}
            feedback = one["feedback"] if isinstance(one["feedback"], list) else [None]
            for entry in feedback:
                # Another program may have written into the message.
                whole = None if value_fault({"feedback": entry}) else decode(entry)
                if isinstance(whole, dict):
                    entries.append({**whole, **its})
                else:
                    log_others(self._store.messages)
        return entries

    async def list_sessions(
        self,
        *,
        application: str | None = None,
        user: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
        after: SessionInfo | None = None,
    ) -> list[SessionInfo]:
        """Return sessions, the last opened session first.

        A session counts as opened when a turn uses it, at most once a minute. The repository's own
        `application=` and `user=` limit every list.

        Args:
            application: List only sessions of this application.
            user: List only sessions of this user.
            since: List only sessions opened at this time or later; it needs a time zone.
            until: List only sessions opened before this time; it needs a time zone.
            limit: The number of sessions at most, 1 to 1,000.
            after: List the sessions that follow this one, the last of the previous page.

        Raises:
            ValueError: The limit is out of range, or a time has no time zone.
            SessionOwnerError: The repository has another owner.
        """
        if not 1 <= limit <= _MAX_LISTED:
            raise ValueError(f"limit is {limit}: use 1 to {_MAX_LISTED}")
        if not isinstance(after, SessionInfo | None):
            raise TypeError(
                f"after is {type(after).__name__}: use the previous page's last session"
            )
        which: Document = {**self._owner_with(application, user)}
        times = {"$gte": _utc("since", since), "$lt": _utc("until", until)}
        if bounds := {key: value for key, value in times.items() if value is not None}:
            which["updated_at"] = bounds
        if after is not None:
            same = {"updated_at": after.updated_at, "_id": {"$gt": after.session_id}}
            which["$or"] = [{"updated_at": {"$lt": after.updated_at}}, same]
        found = await self._store.find_ours(
            {},
            self._store.sessions,
            which,
            ours=OF_SESSIONS,
            fault=lambda one: session_fault(one) or value_fault(one),
            sort=[("updated_at", DESCENDING), ("_id", ASCENDING)],
            limit=limit,
        )
        return [
            SessionInfo(
                one["_id"],
                one.get("application"),
                one.get("user"),
                decode(one.get("metadata", {})),
                one["created_at"],
                one["updated_at"],
            )
            for one in found
        ]

    async def usage(self, session_id: str, agent_id: str | None = None) -> SessionUsage:
        """Return the sums of the models' reports for the messages of a session, or of an agent.

        A report that is no whole or finite number counts as 0.
        """
        found = await self._usage(session_id, agent_id, None)
        return found.get(None, SessionUsage(0, 0, 0, 0, 0, 0, 0, 0, 0, None))

    async def usage_by_agent(self, session_id: str) -> dict[str, SessionUsage]:
        """Return the sums of the models' reports for each agent that has messages."""
        return await self._usage(session_id, None, "$agent_id")

    async def usage_by_message(self, session_id: str, agent_id: str) -> dict[int, SessionUsage]:
        """Return the models' reports for each message of an agent, in the messages' order."""
        return await self._usage(session_id, agent_id, "$message_id")

    async def _usage(
        self, session_id: str, agent_id: str | None, group: str | None
    ) -> dict[Any, SessionUsage]:
        """Return the sums of the models' reports by a field of the messages."""
        ids = {"session_id": validated_id("session", session_id)}
        if agent_id is not None:
            ids = agent_ids(session_id, agent_id)
        created_at = await self._permit(session_id)
        number = {"to": "long", "onError": 0, "onNull": 0}
        sums: Document = {
            key: {"$sum": {"$convert": {"input": f"$message.metadata.{path}", **number}}}
            for key, path in _USAGE.items()
        }
        sums |= {"messages": {"$sum": 1}, "cycles": _CYCLES, "tool_calls": _TOOL_CALLS}
        first_byte = {"$avg": "$message.metadata.metrics.timeToFirstByteMs"}  # of numbers only
        pipeline = [
            {"$match": {**others_filter(ids, created_at), **OF_MESSAGES}},
            {"$group": {"_id": group, **sums, "first_byte": first_byte}},
            {"$sort": {"_id": ASCENDING}},
        ]
        cursor = await self._store.do(ids, self._store.messages.aggregate, pipeline)
        return {
            one["_id"]: SessionUsage(
                **{key: int(one[key]) for key in sums}, time_to_first_byte_ms=one["first_byte"]
            )
            for one in await self._store.call(cursor.to_list)
        }

    def _owner_with(self, application: str | None, user: str | None) -> Owner:
        """Return the repository's owner with the names of one call."""
        owner = {**owner_of(application, user), **self._owner}
        check_owner("the repository", self._owner, owner_of(application, user))
        return owner

    async def _session(self, session_id: str, owner: Owner | None = None) -> Document | None:
        """Return the document of a session that the owner may use; None if there is none."""
        ids = {"session_id": validated_id("session", session_id)}
        method = self._store.sessions.find_one
        found: Document | None = await self._store.do(ids, method, {"_id": session_id})
        if found is None or self._is_later(found):
            return None
        return check_session(found, self._owner if owner is None else owner)

    def _created_at(self, session_id: str) -> str | None:
        """Return when the session was created that the repository is bound to; None for others."""
        opened = self._opened
        return opened.created_at if opened and opened.session_id == session_id else None

    def _is_later(self, session: Document) -> bool:
        """Return whether a session got the id of the bound session after its deletion."""
        return self._created_at(session["_id"]) not in (None, session.get("created_at"))

    def _no_session(self, session_id: str) -> SessionException:
        words = "does not exist" if self._created_at(session_id) is None else "was deleted"
        return SessionException(f"{describe({'session_id': session_id})} {words}")

    async def _missing(
        self, ids: Mapping[str, Any], words: str = "does not exist"
    ) -> SessionException:
        """Return the error for a missing agent or message; its session may be deleted."""
        session = ids["session_id"]
        if self._created_at(session) is not None and await self._session(session) is None:
            return self._no_session(session)
        return SessionException(f"{describe(ids)} {words}")

    async def _permit(self, session_id: str) -> str | None:
        """Refuse a session that the repository's owner may not use, or that does not exist.

        Agents and messages have no owner of their own. Return the time at which the session was
        created. Without an owner this asks nothing and returns None, except for a bound session.
        """
        raise NotImplementedError

    async def _set_metadata(self, session_id: str, update: Document, which: Document) -> None:
        validated_id("session", session_id)
        update = {key: fields for key, fields in update.items() if fields}
        update["$set"] = {**update.get("$set", {}), "updated_at": now()}
        created_at = self._created_at(session_id)
        if not await self._update_session(session_id, update, created_at, which):
            if which and await self._session(session_id) is not None:
                ids = {"session_id": session_id}
                raise SessionException(f"{describe(ids)}: a path leads through a value")
            raise self._no_session(session_id)

    async def _update_session(
        self,
        session_id: str,
        update: Document,
        created_at: str | None,
        also: Document | None = None,
    ) -> bool:
        """Update a session if the owner may use it, in one step; return whether it exists."""
        ids, method = {"session_id": session_id}, self._store.sessions.update_one
        which = {**session_filter(session_id, self._owner, created_at), **(also or {})}
        done = await self._store.do(ids, method, which, update)
        if not done.matched_count:
            await self._session(session_id)  # raises if the session is another owner's
        return bool(done.matched_count)


def _utc(name: str, time: datetime | None) -> str | None:
    if time is None:
        return None
    if not isinstance(time, datetime):
        raise TypeError(f"{name} is {type(time).__name__}: use a datetime with its time zone")
    if time.tzinfo is None:
        raise ValueError(f"{name} has no time zone: use datetime.now(UTC)")
    return time.astimezone(UTC).isoformat()
