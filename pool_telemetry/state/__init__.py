"""The state of pools: what PyMongo's events report, and what follows from it.

Events write here, through `pool_telemetry.events`; readers take frozen stats. A module here needs
the standard library and the ground floor only: no PyMongo, no exporter, no I/O, no log line.
"""

from pool_telemetry.state.pool_state import (
    GRACE_SECONDS,
    INSPECTION_SECONDS_PER_WAITER,
    NO_IDLE_PROOF_SECONDS,
    PoolState,
)
from pool_telemetry.state.wait_queue import RETRY_SECONDS

__all__ = [
    "GRACE_SECONDS",
    "INSPECTION_SECONDS_PER_WAITER",
    "NO_IDLE_PROOF_SECONDS",
    "RETRY_SECONDS",
    "PoolState",
]
