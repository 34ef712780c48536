"""Where a thread, a task or a greenlet is at this moment, in places of code.

A stack has the application's frames. A frame is the application's unless its module belongs to the
standard library, to PyMongo or to this library, or its file is in a folder of installed packages
(site-packages, dist-packages). An application may be installed there itself, so a stack without
frames of the application has the innermost frames of installed packages, else the innermost frames.

No source text and no values: a line of code may have a literal that is nobody's business.
"""

import re
import sys
from types import CoroutineType, FrameType
from typing import Any, Final

from pool_telemetry.state.actor import Actor, ThreadActor, await_chain, current_frames, found_as

DEEPEST: Final = 30
"""Frames of the application in a stack, the innermost."""

FEW: Final = 5
"""Frames in a stack that has none of the application's."""

_OURS: Final = __name__.partition(".")[0]
_BELOW_APPLICATIONS: Final = sys.stdlib_module_names | {
    *("pymongo", "gridfs", "bson", "motor"),
    _OURS,
}
_INSTALLED: Final = re.compile(r"[\\/](site|dist)-packages[\\/]")

UNKNOWN: Final = "(unknown: Python took no part in the fork of this process)"
"""Stands for a thread's frames where they can't be looked at."""


def stack_of(actor: Actor) -> list[str]:
    """Return an actor's stack, the innermost frame last; empty if the actor has ended.

    Each frame is `file:line in function`. Of a task only what it awaits is known, and of an
    awaitable of a compiled library nothing.
    """
    if (one := found_as(actor)) is None:
        frames = []
    elif isinstance(one, ThreadActor):
        if (threads := current_frames()) is None:
            return [UNKNOWN]
        frames = _outward(threads.get(one.ident or 0))
    elif hasattr(one, "gr_frame"):
        frames = _outward(one.gr_frame)
    else:
        frames = _of_coroutine(one.get_coro())
    return [_place(frame) for frame in _worth_showing(frames)]


def call_site() -> str:
    """Return the application's innermost frame of this thread: the place that called us."""
    callers = [frame for frame in _outward(sys._getframe()) if not _is_ours(frame)]
    return _place(_worth_showing(callers)[-1]) if callers else "an unknown place"


def is_application(frame: FrameType) -> bool:
    """Return whether a frame runs the application's code, as the module describes it."""
    return _package(frame) not in _BELOW_APPLICATIONS and not _INSTALLED.search(
        frame.f_code.co_filename
    )


def _is_ours(frame: FrameType) -> bool:
    return _package(frame) == _OURS


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__") or "").partition(".")[0]


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"


def _worth_showing(frames: list[FrameType]) -> list[FrameType]:
    if ours := [frame for frame in frames if is_application(frame)]:
        return ours[-DEEPEST:]
    packages = [frame for frame in frames if _package(frame) not in _BELOW_APPLICATIONS]
    return (packages or frames)[-FEW:]


def _of_coroutine(outermost: Any) -> list[FrameType]:
    if type(outermost) is CoroutineType and outermost.cr_running:
        for innermost in (current_frames() or {}).values():
            frames = _outward(innermost)
            if outermost.cr_frame in frames:
                return frames[frames.index(outermost.cr_frame) :]
    return await_chain(outermost)[0]


def _outward(frame: FrameType | None) -> list[FrameType]:
    found = []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back
    return found[::-1]
