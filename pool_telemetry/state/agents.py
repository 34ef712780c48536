"""What agents do through one client: counted by `sessions`, one method an event.

The same rules as in `state.py`: one leaf lock, nothing that grows, read through `stats()` only.
"""

from threading import RLock

from pool_telemetry.stats import AgentStats


class AgentCounts:
    """The counts of one client's agents."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: in a forked child, with a fresh lock."""
        self._lock = RLock()
        self._stats = AgentStats()

    def add(self, *, turns: int = 0, operations: int = 0, conflicts: int = 0) -> None:
        """Count what happened."""
        with self._lock:
            before = self._stats
            self._stats = AgentStats(
                before.turns + turns, before.operations + operations, before.conflicts + conflicts
            )

    def stats(self) -> AgentStats:
        """Return the counts."""
        return self._stats
