"""The view that the watching thread and its reporters have of one client: a `PoolTelemetry`."""

from typing import Final, Protocol

from pool_telemetry.options import TelemetryOptions
from pool_telemetry.state.connections import Checkout
from pool_telemetry.state.pool_state import PoolState
from pool_telemetry.state.server_selection import ServerSelection
from pool_telemetry.stats import CallerStats, ClientStats
from pool_telemetry.watch.callbacks import Callbacks

TOP_HOLDERS: Final = 5
"""Holders that one log line names: more would hide its beginning."""


class Watched(Protocol):
    """One client's telemetry."""

    name: str
    options: TelemetryOptions
    callbacks: Callbacks
    server_selection: ServerSelection

    @property
    def active(self) -> bool:
        """Return whether its client is in use."""

    def now(self) -> float:
        """Return monotonic seconds, by the clock of its pools."""

    def stats(self) -> ClientStats:
        """Return everything that is known of the client now."""

    def states(self) -> list[PoolState]:
        """Return the states of all pools of this client."""

    def holders_by_connection(
        self, state: PoolState
    ) -> tuple[dict[int, Checkout], dict[int, CallerStats]]:
        """Return a pool's open checkouts and a description of each holder, by connection id."""

    def record_sample(self, *, at_once: bool) -> None:
        """Add a sample to the history if it is due, or `at_once`."""

    def on_error(self, error: Exception) -> None:
        """Count and log a failure of ours."""
