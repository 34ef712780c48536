"""One sleeping thread that inspects every pool, for what no event can report: that time passes.

It logs, calls the application back and keeps the history. Only `telemetry` imports this room, and
nothing here is on the hot path.
"""

from pool_telemetry.watch.thread import (
    LOOK_SECONDS,
    TOP_HOLDERS,
    Watched,
    add,
    look_at,
    look_at_all,
)

__all__ = ["LOOK_SECONDS", "TOP_HOLDERS", "Watched", "add", "look_at", "look_at_all"]
