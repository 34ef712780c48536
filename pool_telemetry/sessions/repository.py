"""Strands' SessionRepository in MongoDB: `AsyncMongoDBSessionRepository` for who does not await."""

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

    What is missing reads as None, or as no messages. Threads may share it.

    Args:
        client: The application's; it is never closed here.
        database_name: Where the collections are.
        prefix: Of the collections' names.

    Raises:
        SessionException: As AsyncMongoDBSessionRepository does, which says more of each method.

    Attributes:
        asynchronous: The same as coroutines, which do not wait but block.
    """

    def __init__(
        self, client: MongoClient[Document], database_name: str = "strands", *, prefix: str = PREFIX
    ) -> None:
        check_client(client, MongoClient)
        self.asynchronous = AsyncMongoDBSessionRepository(
            client, database_name, prefix=prefix, _call_method=call_now
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
        """Return a session, and whether it is new: one command, two to create it."""
        return run_now(
            self.asynchronous.open_session(
                session_id, application=application, user=user, metadata=metadata, ttl=ttl
            )
        )

    def create_session(self, session: Session, **kwargs: Any) -> Session:
        """Create a session; SessionException if it exists."""
        return run_now(self.asynchronous.create_session(session))

    def read_session(self, session_id: str, **kwargs: Any) -> Session | None:
        """Return a session, or None."""
        return run_now(self.asynchronous.read_session(session_id))

    def delete_session(self, session_id: str, **kwargs: Any) -> None:
        """Delete a session with all that belongs to it; SessionException if there is none."""
        run_now(self.asynchronous.delete_session(session_id))

    # Agents

    def create_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Create an agent; SessionException if it exists, or its session does not."""
        run_now(self.asynchronous.create_agent(session_id, session_agent))

    def read_agent(self, session_id: str, agent_id: str, **kwargs: Any) -> SessionAgent | None:
        """Return an agent, or None."""
        return run_now(self.asynchronous.read_agent(session_id, agent_id))

    def update_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Replace an agent but for `created_at`; SessionException if there is none."""
        run_now(self.asynchronous.update_agent(session_id, session_agent))

    def list_agents(self, session_id: str) -> list[Document]:
        """Return the documents of a session's agents, graphs and swarms."""
        return run_now(self.asynchronous.list_agents(session_id))

    # Graphs and swarms

    def create_multi_agent(
        self, session_id: str, multi_agent: "MultiAgentBase", **kwargs: Any
    ) -> None:
        """Create the state of a graph or swarm; SessionException if it exists."""
        run_now(self.asynchronous.create_multi_agent(session_id, multi_agent))

    def read_multi_agent(
        self, session_id: str, multi_agent_id: str, **kwargs: Any
    ) -> Document | None:
        """Return the state of a graph or swarm, or None."""
        return run_now(self.asynchronous.read_multi_agent(session_id, multi_agent_id))

    def update_multi_agent(
        self, session_id: str, multi_agent: "MultiAgentBase", **kwargs: Any
    ) -> None:
        """Replace the state of a graph or swarm; SessionException if there is none."""
        run_now(self.asynchronous.update_multi_agent(session_id, multi_agent))

    # Messages

    def create_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any
    ) -> None:
        """Create a message; SessionException if that id is taken, or there is no such agent."""
        run_now(self.asynchronous.create_message(session_id, agent_id, session_message))

    def read_message(
        self, session_id: str, agent_id: str, message_id: int, **kwargs: Any
    ) -> SessionMessage | None:
        """Return a message, or None."""
        return run_now(self.asynchronous.read_message(session_id, agent_id, message_id))

    def update_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any
    ) -> None:
        """Replace a message but for `created_at`; SessionException if there is none."""
        run_now(self.asynchronous.update_message(session_id, agent_id, session_message))

    def list_messages(
        self,
        session_id: str,
        agent_id: str,
        limit: int | None = None,
        offset: int = 0,
        **kwargs: Any,
    ) -> list[SessionMessage]:
        """Return messages in the order of their ids, `limit` of them after the first `offset`."""
        return run_now(self.asynchronous.list_messages(session_id, agent_id, limit, offset))

    def last_messages(self, session_id: str, agent_id: str, limit: int) -> list[SessionMessage]:
        """Return the last messages, in the order of their ids, without reading the others."""
        return run_now(self.asynchronous.last_messages(session_id, agent_id, limit))

    def count_messages(self, session_id: str, agent_id: str) -> int:
        """Return how many messages an agent has."""
        return run_now(self.asynchronous.count_messages(session_id, agent_id))

    # What Strands does not ask for

    def get_metadata(self, session_id: str) -> Document:
        """Return a session's metadata; SessionException if there is no session."""
        return run_now(self.asynchronous.get_metadata(session_id))

    def update_metadata(self, session_id: str, values: Mapping[str, Any]) -> None:
        """Set values by their paths, and keep the others: `{"customer.plan": "pro"}`."""
        run_now(self.asynchronous.update_metadata(session_id, values))

    def delete_metadata(self, session_id: str, *paths: str) -> None:
        """Delete values by their paths. One that is not there is no error."""
        run_now(self.asynchronous.delete_metadata(session_id, *paths))

    def add_feedback(
        self, session_id: str, agent_id: str, message_id: int, feedback: Mapping[str, Any]
    ) -> None:
        """Add what somebody said of a message; SessionException if there is no such message."""
        run_now(self.asynchronous.add_feedback(session_id, agent_id, message_id, feedback))

    def latest_message(self, session_id: str, agent_id: str | None = None) -> tuple[str, int]:
        """Return the agent and the id of a session's latest message, or of one of its agents."""
        return run_now(self.asynchronous.latest_message(session_id, agent_id))

    def list_feedback(self, session_id: str, agent_id: str) -> list[Document]:
        """Return all feedback on an agent's messages, each with its `message_id`, in order."""
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
        """Return sessions, the one that was opened last first; `after` one, for the next page."""
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

    def usage(self, session_id: str) -> SessionUsage:
        """Return what models reported for all messages of a session, summed by the server."""
        return run_now(self.asynchronous.usage(session_id))
