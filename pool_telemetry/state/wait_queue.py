"""The wait queue of one server's pool: which callers wait, and how each wait ended.

Used by `PoolState` only, which holds its lock, except where a caller enters.
"""

from typing import Final

from pool_telemetry.state.actor import Actor
from pool_telemetry.state.connections import MAX_TRACKED
from pool_telemetry.state.histogram import POOL_BOUNDS, Histogram
from pool_telemetry.stats import OUTCOMES, Origin

Wait = tuple[float, Origin]
"""When a caller entered the queue (monotonic seconds), its owner and trace."""

RETRY_SECONDS: Final = 1.0
"""A checkout is a retry if the same caller's last one timed out less than this before.

PyMongo retries at once, and an application that retries rarely waits longer.
"""


class WaitQueue:
    """The callers that wait for a connection, and the counts of the waits that ended.

    Attributes:
        waiters: The wait of each caller in the queue; always the same dict.
        timed_out: The time of the last timeout, for each caller that has not entered the queue
            again; always the same dict.
        ended: Waits that ended without a connection, by outcome.
        retries: Checkouts that began within RETRY_SECONDS of the caller's timeout.
        wait_time: The durations of the waits that ended with a connection.
        last_timeout_at: When a wait last timed out; None if none did.
    """

    def __init__(self) -> None:
        self.waiters: dict[Actor, Wait] = {}
        self.timed_out: dict[Actor, float] = {}
        self.ended = dict.fromkeys(OUTCOMES, 0)
        self.retries = 0
        self.wait_time = Histogram(POOL_BOUNDS)
        self.last_timeout_at: float | None = None

    def fail(self, actor: Actor, outcome: str, now: float) -> Wait | None:
        """End a caller's wait without a connection; return the wait if it is known."""
        self.ended[outcome] += 1
        if outcome == "timeout":
            self.last_timeout_at = now
            if len(self.timed_out) < MAX_TRACKED:
                self.timed_out[actor] = now
        return self.waiters.pop(actor, None)

    def cancel(self, actor: Actor, wait: Wait) -> bool:
        """End a wait that no event will end; return whether the caller was still in it."""
        if self.waiters.get(actor) != wait:
            return False
        del self.waiters[actor]
        self.ended["cancelled"] += 1
        return True

    def cancel_all(self) -> None:
        """End every wait: PyMongo publishes no event of this pool any more."""
        self.ended["cancelled"] += len(self.waiters)
        self.waiters.clear()

    def record_reentry(self, actor: Actor, now: float) -> bool:
        """Count a checkout as a retry if the caller's last one just timed out.

        An earlier wait of the caller that no event ended counts as cancelled; return whether there
        was one.
        """
        cancelled = self.waiters.pop(actor, None) is not None
        self.ended["cancelled"] += cancelled
        failed_at = self.timed_out.pop(actor, None)
        if failed_at is not None and now - failed_at < RETRY_SECONDS:
            self.retries += 1
        if len(self.timed_out) == MAX_TRACKED:  # callers that never enter again
            self.timed_out.clear()
        return cancelled
