"""A repository's cache of sessions and agents that exist, so that a message needs one command."""

import math
import threading
import time
from collections import OrderedDict
from typing import Final, NamedTuple, TypeVar

from pool_telemetry.process import ProcessLock
from pool_telemetry.sessions.documents import Lease

T = TypeVar("T")

MAX_KNOWN: Final = 10_000  # sessions and agents in a cache; it bounds memory
# The age at which the cache is doubted: the next message then asks if the session still exists.
KNOWN_SECONDS: Final = 60.0

# The time at which this process deleted a session or set its time to live, by the collection and
# the session's id. Older answers are doubted in every repository of this process.
_changed_at: OrderedDict[tuple[str, str], float] = OrderedDict()
_lock: Final = ProcessLock()


class Known(NamedTuple):
    """A cached answer: a session or an agent exists."""

    lease: Lease | None
    created_at: str | None  # of the session; None if an older release stored the agent
    asked: float  # monotonic seconds


class Cache:
    """The sessions that exist, each as (session, ""), and their agents, as (session, agent).

    Args:
        collection: The full name of the sessions' collection.
    """

    def __init__(self, collection: str) -> None:
        self._collection = collection
        self._known: OrderedDict[tuple[str, str], Known] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, session_id: str, agent_id: str = "") -> Known | None:
        """Return the cached answer for a session or an agent; None if there is none."""
        return self._known.get((session_id, agent_id))

    def remember(
        self, session_id: str, agent_id: str, lease: Lease | None, created_at: str | None
    ) -> Known:
        """Cache that a session or an agent exists now."""
        known = Known(lease, created_at, time.monotonic())
        with self._lock:
            _put(self._known, (session_id, agent_id), known)
        return known

    def forget(self, session_id: str) -> None:
        """Remove a session and its agents."""
        with self._lock:
            for pair in [pair for pair in self._known if pair[0] == session_id]:
                del self._known[pair]

    def doubt(self, session_id: str) -> None:
        """Let every repository of this process doubt its answers about a session."""
        with _lock:
            _put(_changed_at, (self._collection, session_id), time.monotonic())

    def is_new(self, session_id: str, known: Known) -> bool:
        """Return whether an answer about a session or its agent need not be asked again."""
        changed_at = _changed_at.get((self._collection, session_id), -math.inf)
        return known.asked > changed_at and time.monotonic() - known.asked <= KNOWN_SECONDS


def _put(latest: "OrderedDict[tuple[str, str], T]", key: tuple[str, str], value: T) -> None:
    latest[key] = value
    latest.move_to_end(key)
    if len(latest) > MAX_KNOWN:
        latest.popitem(last=False)
