"""Strands' SessionRepository in MongoDB: the synchronous form of AsyncMongoDBSessionRepository."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pymongo import MongoClient
from strands.session.session_repository import SessionRepository
from strands.types.session import Session, SessionAgent, SessionMessage

from pool_telemetry.sessions.async_repository import AsyncMongoDBSessionRepository
from pool_telemetry.sessions.client_choice import check_client
from pool_telemetry.sessions.collections import indexing
from pool_telemetry.sessions.dispatch import call_now, run_now
from pool_telemetry.sessions.documents import PREFIX, Document, SessionInfo, SessionUsage

if TYPE_CHECKING:
    from strands.multiagent.base import MultiAgentBase


class MongoDBSessionRepository(SessionRepository):
    """Sessions, their agents and messages, in three collections of one database.

    A missing document reads as None, and missing messages as an empty list. Threads may share a
    repository.

    Args:
        client: The application's client; the repository never closes it.
        database_name: The database of the collections.
        prefix: The prefix of the collections' names.
        application: The application whose sessions alone the repository uses; None for any.
        user: The user whose sessions alone the repository uses; None for any.
        create_indexes: See AsyncMongoDBSessionRepository.

    Raises:
        SessionOwnerError: See AsyncMongoDBSessionRepository.
        SessionException: See AsyncMongoDBSessionRepository, which also documents each method.

    Attributes:
        asynchronous: The same repository as coroutines; they block instead of waiting.
    """

    def __init__(
        self,
        client: MongoClient[Document],
        database_name: str = "strands",
        *,
        prefix: str = PREFIX,
        application: str | None = None,
        user: str | None = None,
        create_indexes: bool = True,
    ) -> None:
        check_client(client, MongoClient)
        self.asynchronous = AsyncMongoDBSessionRepository(
            client,
            database_name,
            prefix=prefix,
            application=application,
            user=user,
            create_indexes=create_indexes,
            _call_method=call_now,
        )
        with indexing:
            run_now(self.asynchronous._prepare())

    # Sessions

    def open_session(
        self,
        session_id: str,
        *,
        application: str | None = None,
        user: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        ttl: timedelta | None = None,
    ) -> tuple[Session, bool]:
        """Return a session, and whether it is new: one command, or five to create it."""
        return run_now(
            self.asynchronous.open_session(
                session_id, application=application, user=user, metadata=metadata, ttl=ttl
            )
        )

    def create_session(self, session: Session, **kwargs: Any) -> Session:
        """Create a session; SessionException if it already exists."""
        _refuse_owner(kwargs)
        return run_now(self.asynchronous.create_session(session))

    def read_session(
        self,
        session_id: str,
        *,
        application: str | None = None,
        user: str | None = None,
        **kwargs: Any,
    ) -> Session | None:
        """Return a session; None if it does not exist."""
        return run_now(
            self.asynchronous.read_session(session_id, application=application, user=user)
        )

    def delete_session(
        self,
        session_id: str,
        *,
        application: str | None = None,
        user: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Delete a session with its agents and messages; SessionException if it does not exist."""
        run_now(self.asynchronous.delete_session(session_id, application=application, user=user))

    # Agents

    def create_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Create an agent; SessionException if it already exists or its session does not exist."""
        _refuse_owner(kwargs)
        run_now(self.asynchronous.create_agent(session_id, session_agent))

    def read_agent(self, session_id: str, agent_id: str, **kwargs: Any) -> SessionAgent | None:
        """Return an agent; None if it does not exist."""
        _refuse_owner(kwargs)
        return run_now(self.asynchronous.read_agent(session_id, agent_id))

    def update_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Replace an agent except `created_at`; SessionException if it does not exist."""
        _refuse_owner(kwargs)
        run_now(self.asynchronous.update_agent(session_id, session_agent))

    def list_agents(self, session_id: str) -> list[Document]:
        """Return the documents of a session's agents, graphs and swarms."""
        return run_now(self.asynchronous.list_agents(session_id))

    # Graphs and swarms

    def create_multi_agent(
        self, session_id: str, multi_agent: "MultiAgentBase", **kwargs: Any
    ) -> None:
        """Create the state of a graph or swarm; SessionException if it already exists."""
        _refuse_owner(kwargs)
        run_now(self.asynchronous.create_multi_agent(session_id, multi_agent))

    def read_multi_agent(
        self, session_id: str, multi_agent_id: str, **kwargs: Any
    ) -> Document | None:
        """Return the state of a graph or swarm; None if it does not exist."""
        _refuse_owner(kwargs)
        return run_now(self.asynchronous.read_multi_agent(session_id, multi_agent_id))

    def update_multi_agent(
        self, session_id: str, multi_agent: "MultiAgentBase", **kwargs: Any
    ) -> None:
        """Replace the state of a graph or swarm; SessionException if it does not exist."""
        _refuse_owner(kwargs)
        run_now(self.asynchronous.update_multi_agent(session_id, multi_agent))

    # Messages

    def create_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any
    ) -> None:
        """Create a message; SessionException if its id is in use or its agent does not exist."""
        _refuse_owner(kwargs)
        run_now(self.asynchronous.create_message(session_id, agent_id, session_message))

    def read_message(
        self, session_id: str, agent_id: str, message_id: int, **kwargs: Any
    ) -> SessionMessage | None:
        """Return a message; None if it does not exist."""
        _refuse_owner(kwargs)
        return run_now(self.asynchronous.read_message(session_id, agent_id, message_id))

    def update_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any
    ) -> None:
        """Replace a message except `created_at`; SessionException if it does not exist."""
        _refuse_owner(kwargs)
        run_now(self.asynchronous.update_message(session_id, agent_id, session_message))

    def list_messages(
        self,
        session_id: str,
        agent_id: str,
        limit: int | None = None,
        offset: int = 0,
        **kwargs: Any,
    ) -> list[SessionMessage]:
        """Return at most `limit` messages in the order of their ids, without the first `offset`."""
        _refuse_owner(kwargs)
        return run_now(self.asynchronous.list_messages(session_id, agent_id, limit, offset))

    def last_messages(self, session_id: str, agent_id: str, limit: int) -> list[SessionMessage]:
        """Return the last `limit` messages in the order of their ids; no others are read."""
        return run_now(self.asynchronous.last_messages(session_id, agent_id, limit))

    def count_messages(self, session_id: str, agent_id: str) -> int:
        """Return the number of an agent's messages."""
        return run_now(self.asynchronous.count_messages(session_id, agent_id))

    # Records that Strands itself does not use

    def get_metadata(self, session_id: str) -> Document:
        """Return a session's metadata; SessionException if there is no session."""
        return run_now(self.asynchronous.get_metadata(session_id))

    def get_application_name(self, session_id: str) -> str | None:
        """Return a session's application; None without one, or if there is no session."""
        return run_now(self.asynchronous.get_application_name(session_id))

    def get_user(self, session_id: str) -> str | None:
        """Return a session's user; None without one, or if there is no session."""
        return run_now(self.asynchronous.get_user(session_id))

    def update_metadata(self, session_id: str, values: Mapping[str, Any]) -> None:
        """Set values by their paths, such as `{"customer.plan": "pro"}`, and keep all others."""
        run_now(self.asynchronous.update_metadata(session_id, values))

    def delete_metadata(self, session_id: str, *paths: str) -> None:
        """Delete values by their paths; a missing path is no error."""
        run_now(self.asynchronous.delete_metadata(session_id, *paths))

    def add_feedback(
        self, session_id: str, agent_id: str, message_id: int, feedback: Mapping[str, Any]
    ) -> None:
        """Add feedback to a message; SessionException if the message does not exist."""
        run_now(self.asynchronous.add_feedback(session_id, agent_id, message_id, feedback))

    def latest_message(self, session_id: str, agent_id: str | None = None) -> tuple[str, int]:
        """Return the agent and id of the latest message of a session, or of one of its agents."""
        return run_now(self.asynchronous.latest_message(session_id, agent_id))

    def list_feedback(self, session_id: str, agent_id: str | None = None) -> list[Document]:
        """Return all feedback on the messages of a session, or of one of its agents."""
        return run_now(self.asynchronous.list_feedback(session_id, agent_id))

    def list_sessions(
        self,
        *,
        application: str | None = None,
        user: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
        after: SessionInfo | None = None,
    ) -> list[SessionInfo]:
        """Return sessions, the last opened session first; the next page follows `after`."""
        return run_now(
            self.asynchronous.list_sessions(
                application=application,
                user=user,
                since=since,
                until=until,
                limit=limit,
                after=after,
            )
        )

    def usage(self, session_id: str, agent_id: str | None = None) -> SessionUsage:
        """Return the sums of the models' reports for the messages of a session, or of an agent."""
        return run_now(self.asynchronous.usage(session_id, agent_id))

    def usage_by_agent(self, session_id: str) -> dict[str, SessionUsage]:
        """Return the sums of the models' reports for each agent that has messages."""
        return run_now(self.asynchronous.usage_by_agent(session_id))

    def usage_by_message(self, session_id: str, agent_id: str) -> dict[int, SessionUsage]:
        """Return the models' reports for each message of an agent, in the messages' order."""
        return run_now(self.asynchronous.usage_by_message(session_id, agent_id))


def _refuse_owner(kwargs: Mapping[str, Any]) -> None:
    """Raise TypeError for an owner that would not be compared."""
    if not kwargs.keys().isdisjoint(("application", "user")):
        raise TypeError("this method takes no application= and user=: give them to the repository")
