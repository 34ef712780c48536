"""The processes of one service find each other, and each answers for all of them.

Every process that uses a pool takes a number in a directory that its service shares, and listens on
a socket there. The process that a user asks passes the question on, and shows all answers. Nothing
is exchanged while nobody asks. The hot path knows nothing of this.

`service` finds out to which service a process belongs, `directory` keeps the files, `membership`
answers, `exchange` asks, and `wire` is the format.
"""

from pool_telemetry.workers.directory import VARIABLE
from pool_telemetry.workers.exchange import Part, ask, own_identity, own_part, parts_of
from pool_telemetry.workers.membership import (
    REQUEST_SECONDS,
    STATS,
    answers,
    directory_of,
    folder,
    go_on,
    identity,
    is_member,
    is_observer,
    is_shared,
    join,
    keep_last,
    leave,
    observe,
    predecessor,
    service_name,
    turn_off,
    wait,
)
from pool_telemetry.workers.wire import convert

__all__ = [
    "REQUEST_SECONDS",
    "STATS",
    "VARIABLE",
    "Part",
    "answers",
    "ask",
    "convert",
    "directory_of",
    "folder",
    "go_on",
    "identity",
    "is_member",
    "is_observer",
    "is_shared",
    "join",
    "keep_last",
    "leave",
    "observe",
    "own_identity",
    "own_part",
    "parts_of",
    "predecessor",
    "service_name",
    "turn_off",
    "wait",
]
