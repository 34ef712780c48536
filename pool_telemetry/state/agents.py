"""The turns and operations of agents that use one client, counted by `sessions`.

The same rules hold as in `pool_state`: one leaf lock, nothing that grows, read by `stats()` only.
"""

from threading import RLock

from pool_telemetry.stats import AgentStats


class AgentCounts:
    """The counts of one client's agents."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything, with a new lock; a forked child needs both."""
        self._lock = RLock()
        self._stats = AgentStats()

    def add(self, *, turns: int = 0, operations: int = 0, conflicts: int = 0) -> None:
        """Add to the counts."""
        with self._lock:
            before = self._stats
            self._stats = AgentStats(
                before.turns + turns, before.operations + operations, before.conflicts + conflicts
            )

    def stats(self) -> AgentStats:
        """Return the counts."""
        return self._stats
