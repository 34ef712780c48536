"""Looks for the callers of every client that wait in server selection.

Each look reads every thread and task, so looks are rare while every client has a server.
"""

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from pool_telemetry.registry import active, telemetry_of
from pool_telemetry.state.server_selection import Selection, selections

if TYPE_CHECKING:
    from pool_telemetry.telemetry import PoolTelemetry

LOOK_SECONDS: Final = 0.25
"""The time between two looks at server selection while a client may lack a server."""
RARE_LOOK_SECONDS: Final = 1.0
"""The same while every client has a server for writes: a caller may want one with certain tags."""
LOOK_SHARE: Final = 0.1
"""The share of a core that looks may take while a client may lack a server."""
RARE_LOOK_SHARE: Final = 0.005
"""The same while every client has one. A look takes 10 µs for a task, 150 µs for one that waits."""
_looked_at = float("-inf")  # monotonic seconds
_look_took = 0.0


def look_at_server_selection(*, rarely: bool) -> None:
    """Look for callers that wait in server selection, if a client may lack a server.

    Args:
        rarely: Look also if no client may, every RARE_LOOK_SECONDS. The watching thread does so,
            because a reader on an event loop should not read thousands of tasks.
    """
    global _looked_at, _look_took
    now = time.monotonic()
    pause = now - _looked_at
    if pause < max(LOOK_SECONDS, _look_took / LOOK_SHARE):
        return
    clients = active()
    is_due = rarely and pause >= max(RARE_LOOK_SECONDS, _look_took / RARE_LOOK_SHARE)
    if not is_due and not any(one.may_lack_a_server for one in clients):
        return
    _looked_at = now
    loops = {one.callbacks.loop for one in clients}
    found = defaultdict["PoolTelemetry | None", list[Selection]](list)
    for one in selections([loop for loop in loops if loop and not loop.is_closed()], now):
        found[telemetry_of(one.client)].append(one)
    for telemetry in clients:
        lacks_server = telemetry.lacks_writable_server
        telemetry.server_selection.update(found.get(telemetry, ()), now, lacks_server=lacks_server)
    _look_took = time.monotonic() - now
