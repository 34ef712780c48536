"""Who runs an operation, and whether it still stands in a pool's queue.

An actor is the asyncio task if one is running, else the thread, or the greenlet where gevent took
the threads' place. PyMongo publishes nothing when a wait is cancelled, so the end of such a wait
is read off the actor itself: from its frames.
Called by listeners (`current_actor`, on the hot path) and by readers (`still_in_pool`).
"""

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable
from threading import RLock
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any

from pool_telemetry.process import after_fork, notice_fork, threads_are_known

_Matches = Callable[[object], bool]
_is_pool: _Matches = frozenset(
    {"pymongo.synchronous.pool", "pymongo.asynchronous.pool"}
).__contains__
_is_async_pool: _Matches = frozenset({"pymongo.asynchronous.pool"}).__contains__
# The links of a task's await chain, as (frame, what it awaits).
_LINKS: dict[type, tuple[str, str]] = {
    CoroutineType: ("cr_frame", "cr_await"),
    GeneratorType: ("gi_frame", "gi_yieldfrom"),
    AsyncGeneratorType: ("ag_frame", "ag_await"),
}
# An async generator's step, anext() and a coroutine's __await__: they have no names for what they
# hold, but the garbage collector knows it.
_NAMELESS = frozenset(
    {"async_generator_asend", "async_generator_athrow", "anext_awaitable", "coroutine_wrapper"}
)

_LOST = object()  # what it held until a moment ago
_ref = weakref.ref


class ThreadActor:
    """A thread that used a client, which may have ended.

    Its identifier would not do for a key: the next thread is given it again.
    """

    __slots__ = ("_name", "_thread")

    def __init__(self) -> None:
        thread = threading.current_thread()
        self._thread, self._name = _ref(thread), thread.name

    @property
    def ident(self) -> int | None:
        """Its identifier; None when it has ended."""
        thread = self._thread()
        return thread.ident if thread is not None and thread.is_alive() else None

    @property
    def name(self) -> str:
        """Its name, or the one that it had when it was first seen."""
        thread = self._thread()
        if thread is None or not thread.is_alive():
            return f"{self._name} (ended)"
        return thread.name


class _Here(threading.local):
    def __init__(self) -> None:  # in each thread anew
        self.actor = ThreadActor()


Actor = Hashable
"""A `ThreadActor`, or a weak reference to a task or greenlet; one object each, and so a key."""

_here = _Here()
_get_running_loop = asyncio._get_running_loop
_current_task = asyncio.current_task
_current_greenlet: Callable[[], Any] | None = None
_frames_lock = RLock()
_gc_is_paused = False


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
        return _here.actor if _current_greenlet is None else _ref(_current_greenlet())
    task = _current_task(loop)
    return _here.actor if task is None else _ref(task)


def is_called_by_async_pool() -> bool:
    """Return whether the pool of an AsyncMongoClient is among the callers of this function."""
    return _runs_in(_is_async_pool, sys._getframe())


def found_as(actor: Actor) -> Any:
    """Return the `ThreadActor`, task or greenlet; None if it is no more."""
    return actor() if isinstance(actor, weakref.ReferenceType) else actor


def still_in_pool(actors: Iterable[Actor]) -> set[Actor]:
    """Return those actors that are inside PyMongo's pool code at this moment.

    An actor in the wait queue always is: PyMongo publishes the start and the end of a checkout
    from within its pool module. About 3 µs an actor; no lock, no I/O. Where frames can't be looked
    at, a thread that lives counts as inside, until its next event.
    """
    everyone = set(actors)
    inside = _look_into(everyone)
    # What runs on another thread may go on between two steps of a look: look twice to say no.
    return inside | _look_into(everyone - inside)


def current_frames() -> dict[int, FrameType] | None:
    """Return each thread's frame; None where some may be a dead thread's, after a fork in C.

    Before 3.12 a garbage collection inside it may run Python code while the interpreter's own lock
    is held: another thread that needs that lock then stops the process for good.
    """
    global _gc_is_paused
    notice_fork()
    if not threads_are_known():
        return None
    if sys.version_info >= (3, 12):
        return sys._current_frames()
    with _frames_lock:
        _gc_is_paused = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames()
        finally:
            if _gc_is_paused:
                gc.enable()
            _gc_is_paused = False


@after_fork
def _begin_anew() -> None:
    """Begin neither locked nor without collections, as another thread's look left it."""
    global _frames_lock, _gc_is_paused
    _frames_lock = RLock()
    if _gc_is_paused:
        gc.enable()
        _gc_is_paused = False


def _look_into(actors: set[Actor]) -> set[Actor]:
    threads = current_frames() if actors else {}
    inside: set[Actor] = set()
    for actor in actors:
        if (one := found_as(actor)) is None:
            found = False
        elif isinstance(one, ThreadActor):
            ident = one.ident
            found = ident is not None and (
                threads is None or _runs_in(_is_pool, threads.get(ident))
            )
        elif _is_greenlet(one):
            found = not one.dead and _greenlet_in_pool(one, threads)
        else:
            found = not one.done() and _awaits(_is_pool, one)
        if found:
            inside.add(actor)
    return inside


def names_of(actors: Iterable[Actor]) -> dict[Actor, str]:
    """Return the names of threads, tasks and greenlets; empty for tasks that are no more."""
    return {actor: _name_of(found_as(actor)) for actor in actors}


def _name_of(one: Any) -> str:
    if one is None:
        return ""
    named = getattr(one, "get_name", None)
    return str(named() if named is not None else getattr(one, "name", "greenlet"))


def may_hold(actors: Iterable[Actor]) -> set[Actor]:
    """Return those actors that may hold a connection: all but tasks and greenlets that ended.

    One that lives may keep it anywhere, by an exhaust cursor. A thread may leave it to another.
    """
    return {actor for actor in actors if _may_hold(found_as(actor))}


def _may_hold(one: Any) -> bool:
    if one is None or isinstance(one, ThreadActor):
        return one is not None
    return not (one.dead if _is_greenlet(one) else one.done())


def _is_greenlet(one: Any) -> bool:
    return hasattr(one, "gr_frame")


def _greenlet_in_pool(greenlet: Any, threads: dict[int, FrameType] | None) -> bool:
    frame = greenlet.gr_frame
    if frame is None:  # it runs at this moment, on one of the threads
        return threads is None or any(_runs_in(_is_pool, stack) for stack in threads.values())
    return _runs_in(_is_pool, frame)


def _runs_in(module: _Matches, frame: FrameType | None) -> bool:
    while frame is not None:
        if _is_of(module, frame):
            return True
        frame = frame.f_back
    return False


def _is_of(module: _Matches, frame: FrameType) -> bool:
    return module(frame.f_globals.get("__name__"))


def _awaits(module: _Matches, task: Any) -> bool:
    """Return whether it stands in such a module, or in an awaitable that can't be looked into.

    By types alone: to read an attribute of another's object may run the application's code.
    """
    awaited: Any = task.get_coro()
    if type(awaited) is CoroutineType and awaited.cr_running:
        return _executes(module, awaited.cr_frame)  # type: ignore[arg-type]  # it runs: it has one
    frames, last = await_chain(awaited)
    if any(_is_of(module, frame) for frame in frames):
        return True
    return last is not None and type(last).__name__ != "FutureIter"  # where asyncio's chains end


def await_chain(awaited: Any) -> tuple[list[FrameType], Any]:
    """Return the frames of what is awaited, the innermost last, and what that one awaits itself."""
    frames = list[FrameType]()
    while True:
        if (link := _LINKS.get(type(awaited))) is not None:
            if (frame := getattr(awaited, link[0])) is not None:
                frames.append(frame)
            awaited = getattr(awaited, link[1])
        elif type(awaited).__name__ in _NAMELESS:
            awaited = _held_by(awaited)
        else:
            return frames, awaited


def _held_by(nameless: Any) -> Any:
    held = gc.get_referents(nameless)
    known = (o for o in held if type(o) in _LINKS or type(o).__name__ in _NAMELESS)
    return next(known, _LOST)


def _executes(module: _Matches, outermost: FrameType) -> bool:
    """Return whether the thread that runs this coroutine now runs such a module inside it.

    When no thread runs it any more, it went on while we looked: then it may be anywhere.
    """
    for stack in (current_frames() or {}).values():
        inside, frame = False, stack
        while frame is not None:
            inside = inside or _is_of(module, frame)
            if frame is outermost:
                return inside
            frame = frame.f_back  # type: ignore[assignment]  # None ends it
    return True
