"""Who runs an operation, and whether it still stands in a pool's queue.

An actor is the asyncio task if one is running, else the thread, or the greenlet where gevent took
the threads' place. PyMongo publishes nothing when a wait is cancelled, so the end of such a wait
is read off the actor itself: from its frames.
Called by listeners (`current_actor`, on the hot path) and by readers (`still_in_pool`).
"""

import asyncio
import gc
import sys
import weakref
from collections.abc import Callable, Iterable
from threading import get_ident
from types import FrameType
from typing import Any

Actor = int | weakref.ReferenceType[Any]
"""A thread's identifier, or a weak reference to a task or greenlet (one object each: a key)."""

_POOL_MODULES = frozenset({"pymongo.synchronous.pool", "pymongo.asynchronous.pool"})
# The links of a task's await chain, as (frame, what it awaits).
_LINKS = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))

_get_running_loop = asyncio._get_running_loop
_current_task = asyncio.current_task
_ref = weakref.ref
_current_greenlet: Callable[[], Any] | None = None


def notice_greenlets() -> None:
    """See whether gevent took the threads' place. Called when a client is about to be made."""
    global _current_greenlet
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        _current_greenlet = sys.modules["greenlet"].getcurrent


def current_actor() -> Actor:
    """Return who is running now."""
    loop = _get_running_loop()
    if loop is None:
        return get_ident() if _current_greenlet is None else _ref(_current_greenlet())
    task = _current_task(loop)
    return get_ident() if task is None else _ref(task)


def still_in_pool(actors: Iterable[Actor]) -> set[Actor]:
    """Return those actors that are inside PyMongo's pool code at this moment.

    An actor in the wait queue always is: PyMongo publishes the start and the end of a checkout
    from within its pool module. About 3 µs an actor; no lock, no I/O.
    """
    threads = sys._current_frames()
    inside: set[Actor] = set()
    for actor in actors:
        if isinstance(actor, int):
            found = _in_pool(threads.get(actor))
        elif (one := actor()) is None:
            found = False
        elif isinstance(one, asyncio.Future):
            found = not one.done() and _task_in_pool(one, threads)
        else:
            found = not one.dead and _greenlet_in_pool(one, threads)
        if found:
            inside.add(actor)
    return inside


def _greenlet_in_pool(greenlet: Any, threads: dict[int, FrameType]) -> bool:
    frame = greenlet.gr_frame
    if frame is None:  # it runs at this moment, on one of the threads
        return any(_in_pool(stack) for stack in threads.values())
    return _in_pool(frame)


def _in_pool(frame: FrameType | None, outermost: FrameType | None = None) -> bool:
    """Return whether a stack, from here out to a frame of its own, runs through the pool."""
    inside = False
    while frame is not None:
        inside = inside or frame.f_globals.get("__name__") in _POOL_MODULES
        if frame is outermost or (inside and outermost is None):
            return inside
        frame = frame.f_back
    return False


def _task_in_pool(task: Any, threads: dict[int, FrameType]) -> bool:
    awaited: Any = task.get_coro()
    if getattr(awaited, "cr_running", False):
        # It runs at this moment, and then the stack of the thread that has it is the truth.
        return any(_in_pool(stack, awaited.cr_frame) for stack in threads.values())
    while awaited is not None:
        link = next((link for link in _LINKS if hasattr(awaited, link[0])), None)
        if link is None:
            # An async generator's step, anext() or a coroutine's __await__ wrapper: opaque objects
            # of the interpreter, but the garbage collector knows what they hold.
            held = gc.get_referents(awaited)
            awaited = next((o for o in held if hasattr(o, "throw") or hasattr(o, "athrow")), None)
            continue
        frame = getattr(awaited, link[0])
        if frame is not None and frame.f_globals.get("__name__") in _POOL_MODULES:
            return True
        awaited = getattr(awaited, link[1])
    return False
