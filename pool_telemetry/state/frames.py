"""Where a thread, a task or a greenlet is at this moment, in places of code.

No source text and no values: a line of code may have a literal that is nobody's business.
"""

from types import CoroutineType, FrameType
from typing import Any, Final

from pool_telemetry.state.actor import Actor, ThreadActor, await_chain, current_frames, found_as

DEEPEST: Final = 30
"""Frames told, the innermost."""

UNKNOWN: Final = "(unknown: Python took no part in the fork of this process)"
"""Stands for a thread's frames where they can't be looked at."""


def stack_of(actor: Actor) -> list[str]:
    """Return its frames, the innermost last, each as `file:line in function`; none if it is gone.

    Of a task only what it awaits is known, and of an awaitable of a compiled library nothing.
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
    return [
        f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
        for frame in frames[-DEEPEST:]
    ]


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
