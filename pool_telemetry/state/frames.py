"""An actor's place in the code at this moment, and whether that is in PyMongo's pool.

PyMongo publishes nothing when a wait is cancelled, so the end of such a wait is read from the
actor's frames. Readers call this, never the hot path.

A stack has the application's frames. A frame is the application's unless its module belongs to the
standard library, to PyMongo or to this library, or its file is in a folder of installed packages
(site-packages, dist-packages). An application may be installed there itself, so a stack without
frames of the application has the innermost frames of installed packages, else the innermost frames.

It has no source text and no values: a line of code may contain a secret literal.
"""

import contextlib
import gc
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import dropwhile
from threading import RLock
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final

from pool_telemetry.process import after_fork, notice_fork, threads_are_known
from pool_telemetry.state.actor import Actor, ThreadActor, is_greenlet, referent

DEEPEST: Final = 30
"""The most frames of the application in a stack; the innermost ones are kept."""

FEW: Final = 5
"""The frames in a stack that has none of the application."""

UNKNOWN: Final = "(unknown: Python took no part in the fork of this process)"
"""Stands for a thread's frames if they can't be read."""

_OURS: Final = __name__.partition(".")[0]
_BELOW_APPLICATIONS: Final = sys.stdlib_module_names | {
    *("pymongo", "gridfs", "bson", "motor"),
    _OURS,
}
_INSTALLED: Final = re.compile(r"[\\/](site|dist)-packages[\\/]")

_Matches = Callable[[object], bool]
_is_pool: _Matches = frozenset(
    {"pymongo.synchronous.pool", "pymongo.asynchronous.pool"}
).__contains__
is_client: _Matches = frozenset(
    {"pymongo.synchronous.mongo_client", "pymongo.asynchronous.mongo_client"}
).__contains__
is_topology: _Matches = frozenset(
    {"pymongo.synchronous.topology", "pymongo.asynchronous.topology"}
).__contains__
_is_async_pool: _Matches = frozenset({"pymongo.asynchronous.pool"}).__contains__
_is_encryption: _Matches = frozenset(
    {"pymongo.synchronous.encryption", "pymongo.asynchronous.encryption"}
).__contains__
# The attributes of a link in a task's await chain: its frame, and the awaitable that it awaits.
_LINKS: dict[type, tuple[str, str]] = {
    CoroutineType: ("cr_frame", "cr_await"),
    GeneratorType: ("gi_frame", "gi_yieldfrom"),
    AsyncGeneratorType: ("ag_frame", "ag_await"),
}
# An async generator's step, anext() and a coroutine's __await__ have no attribute for the object
# that they hold, but the garbage collector knows it.
_NAMELESS = frozenset(
    {"async_generator_asend", "async_generator_athrow", "anext_awaitable", "coroutine_wrapper"}
)

_LOST = object()  # stands for an object that was held until a moment ago
_frames_lock = RLock()
_pauses = 0  # that are open, one inside the other
_is_paused = False  # and has to be enabled again


def still_in_pool(actors: Iterable[Actor]) -> set[Actor]:
    """Return the actors that are inside PyMongo's pool code at this moment.

    An actor in the wait queue always is: PyMongo publishes the start and the end of a checkout
    from within its pool module. About 3 µs an actor; no pool's lock, no I/O. If frames can't be
    read, a live thread counts as inside until its next event.
    """
    everyone = set(actors)
    with without_collections():
        inside = _inspect(_is_pool, everyone)
        # An actor may move during an inspection, so two of them have to find it outside.
        return inside | _inspect(_is_pool, everyone - inside)


def in_an_operation(actors: Iterable[Actor]) -> set[Actor]:
    """Return the actors that are inside an operation of a client; none if frames can't be read."""
    with without_collections():
        return _inspect(is_client, set(actors)) if threads_are_known() else set()


def calling_client() -> Any:
    """Return the MongoClient or AsyncMongoClient that called this function; None without one."""
    for frame in outward(sys._getframe()):
        if _is_of(is_client, frame):
            client = frame.f_locals.get("self")
            if hasattr(client, "topology_description") and hasattr(client, "options"):
                return client
    return None


def is_called_by_async_pool() -> bool:
    """Return whether the pool of an AsyncMongoClient is among the callers of this function."""
    return _runs_in(_is_async_pool, sys._getframe())


def is_called_for_encryption(*, while_made: bool = False) -> bool:
    """Return whether PyMongo's automatic encryption is among the callers of this function.

    Args:
        while_made: Only while PyMongo makes its inner client, from another client's arguments.
    """
    callers = outward(sys._getframe())
    if while_made:
        callers = dropwhile(lambda frame: frame.f_code.co_name != "_duplicate", callers)
    return any(_is_of(_is_encryption, frame) for frame in callers)


def stack_of(actor: Actor) -> list[str]:
    """Return an actor's stack, the innermost frame last; empty if the actor has ended.

    Each frame is `file:line in function`. The stack of a suspended task is its await chain, which
    ends at an awaitable of a compiled library.
    """
    with without_collections():
        if (one := referent(actor)) is None:
            frames = []
        elif isinstance(one, ThreadActor):
            if (threads := current_frames()) is None:
                return [UNKNOWN]
            frames = _stack(threads.get(one.ident or 0))
        elif is_greenlet(one):
            frames = _stack(one.gr_frame)
        else:
            frames = _of_coroutine(one.get_coro())
        return [_place(frame) for frame in _worth_showing(frames)]


def call_site() -> str:
    """Return the application's innermost frame of this thread: the place that called us."""
    callers = [frame for frame in _stack(sys._getframe()) if not _is_ours(frame)]
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
            frames = _stack(innermost)
            if outermost.cr_frame in frames:
                return frames[frames.index(outermost.cr_frame) :]
    return await_chain(outermost)[0]


def outward(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and the frames of its callers, the innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _stack(innermost: FrameType | None) -> list[FrameType]:
    return [*outward(innermost)][::-1]


def current_frames() -> dict[int, FrameType] | None:
    """Return each thread's frame; None if a fork in C may have left frames of dead threads.

    Walk from them inside `without_collections()`.
    """
    notice_fork()
    if not threads_are_known():
        return None
    with without_collections():
        return sys._current_frames()


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Pause the garbage collector while frames of other threads are read, before Python 3.12.

    There, each step from frame to frame may collect garbage, and run Python code meanwhile: the
    other thread goes on, and the step then reads a frame that is no more (SIGSEGV, seen on 3.11.7).
    A collection inside `sys._current_frames()` may stop the process for good.
    """
    global _pauses, _is_paused
    if sys.version_info >= (3, 12):
        yield
        return
    with _frames_lock:
        if not _pauses:
            _is_paused = gc.isenabled()
            gc.disable()
        _pauses += 1
        try:
            yield
        finally:
            _pauses -= 1
            if not _pauses and _is_paused:
                _is_paused = False
                gc.enable()


@after_fork
def _begin_anew() -> None:
    """Undo what a thread of the parent left behind: its lock, and the paused collections."""
    global _frames_lock, _pauses, _is_paused
    _frames_lock, _pauses = RLock(), 0
    if _is_paused:
        gc.enable()
        _is_paused = False


def _inspect(module: _Matches, actors: set[Actor]) -> set[Actor]:
    """Return the actors that are in such a module, by one reading of the frames."""
    threads = current_frames() if actors else {}
    inside: set[Actor] = set()
    for actor in actors:
        if (one := referent(actor)) is None:
            found = False
        elif isinstance(one, ThreadActor):
            ident = one.ident
            found = ident is not None and (threads is None or _runs_in(module, threads.get(ident)))
        elif is_greenlet(one):
            found = not one.dead and _greenlet_is_in(module, one, threads)
        else:
            ends = one.done() or one.get_loop().is_closed()  # it never runs again
            found = not ends and _awaits(module, one)
        if found:
            inside.add(actor)
    return inside


def _greenlet_is_in(module: _Matches, greenlet: Any, threads: dict[int, FrameType] | None) -> bool:
    frame = greenlet.gr_frame
    if frame is None:  # it runs at this moment, on one of the threads
        return threads is None or any(_runs_in(module, stack) for stack in threads.values())
    return _runs_in(module, frame)


def _runs_in(module: _Matches, frame: FrameType | None) -> bool:
    while frame is not None:
        if _is_of(module, frame):
            return True
        frame = frame.f_back
    return False


def _is_of(module: _Matches, frame: FrameType) -> bool:
    return module(frame.f_globals.get("__name__"))


def _awaits(module: _Matches, task: Any) -> bool:
    """Return whether a task is in such a module, or in an awaitable that can't be inspected.

    Types alone decide: reading an attribute of a foreign object may run the application's code.
    """
    awaited: Any = task.get_coro()
    if type(awaited) is CoroutineType and awaited.cr_running:
        return _executes(module, awaited.cr_frame)  # type: ignore[arg-type]  # it runs: it has one
    frames, last = await_chain(awaited)
    if any(_is_of(module, frame) for frame in frames):
        return True
    return last is not None and type(last).__name__ != "FutureIter"  # where asyncio's chains end


def await_chain(awaited: Any) -> tuple[list[FrameType], Any]:
    """Return the frames of an await chain, the innermost last, and the awaitable at its end."""
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
    """Return whether the thread that runs this coroutine is in such a module inside it.

    If no thread runs the coroutine any more, it moved on meanwhile and may be anywhere: True.
    """
    for stack in (current_frames() or {}).values():
        inside, frame = False, stack
        while frame is not None:
            inside = inside or _is_of(module, frame)
            if frame is outermost:
                return inside
            frame = frame.f_back  # type: ignore[assignment]  # None ends it
    return True
