"""Ends of checkouts and connections that PyMongo never reports, concluded from other facts.

A task that is cancelled while it opens a connection, checks it in or closes it publishes no further
event for it (PyMongo 4.20). `PoolState` notices that the task has finished, and what is presumed
here is corrected as soon as an event contradicts it. The caller holds the pool's lock.
"""

from typing import Final

from pool_telemetry.state.actor import Actor
from pool_telemetry.state.connections import (
    MAX_TRACKED,
    Checkout,
    Opener,
    ReportedConnections,
)

STALE_SECONDS: Final = 1.0
"""Idle connections are presumed closed this many seconds after a clear.

PyMongo closes them right after the clear's event; a task cancelled meanwhile reports no close.
"""


class Connections(ReportedConnections):
    """A pool's connections, by PyMongo's events and by what follows where it publishes none."""

    def abandon_opening(self, conn_id: int, opener: Opener, now: float) -> None:
        """Close a connection whose opener has finished."""
        if self.opening.get(conn_id) == opener:
            self._note_full(now)
            del self.opening[conn_id]
            self.closed["error"] += 1

    def discard_opened_for(self, actor: Actor) -> None:
        """Presume closed the connection that an actor opened for itself, but did not get."""
        conn_id = self._opened_for.pop(actor, None)
        if conn_id in self._ready and conn_id not in self.held:
            self._presume_closed({conn_id}, "error")

    def presume_returned(self, conn_id: int, checkout: Checkout, now: float) -> None:
        """End a checkout whose task has finished, if it is still the current one."""
        if self.held.get(conn_id) == checkout:
            stale = self._ready[conn_id] < self._generation  # PyMongo closes it at check-in
            if stale:
                self._note_full(now)  # a waiter can open another connection only after that
            del self.held[conn_id]
            self._record_use(conn_id, checkout, now)
            if stale:
                self._presume_closed({conn_id}, "stale")
            if len(self.presumed_returned) >= MAX_TRACKED:
                del self.presumed_returned[next(iter(self.presumed_returned))]
            self.presumed_returned[conn_id] = checkout, now

    def is_reinstated(self, checkout: Checkout) -> bool:
        """Return whether a finished task still holds its connection through an open cursor."""
        return checkout in self._reinstated

    def reinstate(self, missing: int, before: float) -> bool:
        """Reinstate the `missing` latest checkouts that were presumed returned by `before`.

        Change nothing and return False if there are fewer.
        """
        found = [i for i, (_, at) in reversed(self.presumed_returned.items()) if at <= before]
        if len(found) < missing:
            return False
        for conn_id in found[:missing]:
            if conn_id not in self._ready:
                self._reopen(conn_id)
            checkout, _ = self.presumed_returned.pop(conn_id)
            self.held[conn_id] = checkout
            self._reinstated.add(checkout)
        return True

    def undo_reinstate(self, now: float) -> None:
        """Undo `reinstate()`: with these checkouts the pool would exceed `max_size`."""
        doubtful = {
            i: checkout for i, checkout in self.held.items() if checkout in self._reinstated
        }
        for conn_id, checkout in doubtful.items():
            del self.held[conn_id]
            self._reinstated.discard(checkout)
            self.presumed_returned[conn_id] = checkout, now
        self._presume_closed(set(doubtful), "error")

    def presume_stale_closed(self, now: float) -> None:
        """Presume closed what was idle at a clear, STALE_SECONDS after it."""
        if self._cleared_at is not None and now - self._cleared_at >= STALE_SECONDS:
            self._cleared_at = None
            stale = {i for i, generation in self._ready.items() if generation < self._generation}
            self._presume_closed(stale - self.held.keys(), "stale")
