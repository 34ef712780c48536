"""The truth about pools: what PyMongo's events say, and what follows from it.

Events write here, through `pool_telemetry.events`; readers take frozen stats. A module here needs
the standard library and the ground floor only: no PyMongo, no exporter, no I/O, no log line.
"""

from pool_telemetry.state.pool_state import (
    LOOK_SECONDS_PER_WAITER,
    MOMENT,
    QUEUE_SECONDS,
    RETRY_SECONDS,
    PoolState,
)

__all__ = ["LOOK_SECONDS_PER_WAITER", "MOMENT", "QUEUE_SECONDS", "RETRY_SECONDS", "PoolState"]
