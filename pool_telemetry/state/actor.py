"""The actor that runs an operation: an asyncio task, a greenlet or a thread.

It is the task if one is running, else the greenlet if gevent or Eventlet replaced the threads, else
the thread. `current_actor()` is on the hot path.
"""

import asyncio
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from pool_telemetry.standstill import trust_no_sleep
from pool_telemetry.stats import bounded

_ref = weakref.ref


class ThreadActor:
    """A thread that used a client, and that may have ended.

    A thread's identifier is no key, because the next thread may get the same one.
    """

    __slots__ = ("_name", "_thread")

    def __init__(self) -> None:
        thread = threading.current_thread()
        self._thread, self._name = _ref(thread), thread.name

    @property
    def ident(self) -> int | None:
        """The thread's identifier; None after its end."""
        thread = self._thread()
        return thread.ident if thread is not None and thread.is_alive() else None

    @property
    def name(self) -> str:
        """The thread's name; after its end the name that it had at first."""
        thread = self._thread()
        if thread is None or not thread.is_alive():
            return f"{self._name} (ended)"
        return thread.name


class _Here(threading.local):
    def __init__(self) -> None:  # in each thread anew
        self.actor = ThreadActor()


Actor = Hashable
"""A `ThreadActor`, or a weak reference to a task or greenlet.

Python returns the same weak reference for the same object, so an actor can be a key.
"""

_here = _Here()
_get_running_loop = asyncio._get_running_loop
_current_task = asyncio.current_task
_current_greenlet: Callable[[], Any] | None = None


def notice_greenlets() -> None:
    """Use greenlets as actors if gevent or Eventlet replaced the threads.

    Called before a client is made.
    """
    global _current_greenlet
    gevent, eventlet = map(sys.modules.get, ("gevent.monkey", "eventlet.patcher"))
    if (gevent is not None and gevent.is_module_patched("threading")) or (
        eventlet is not None and eventlet.is_monkey_patched("thread")
    ):
        _current_greenlet = sys.modules["greenlet"].getcurrent
        trust_no_sleep()


def current_actor() -> Actor:
    """Return the actor that runs now."""
    loop = _get_running_loop()
    if loop is not None and (task := _current_task(loop)) is not None:
        return _ref(task)
    return _here.actor if _current_greenlet is None else _ref(_current_greenlet())


def referent(actor: Actor) -> Any:
    """Return the `ThreadActor`, task or greenlet of an actor; None if it no longer exists."""
    return actor() if isinstance(actor, weakref.ReferenceType) else actor


def names_of(actors: Iterable[Actor]) -> dict[Actor, str]:
    """Return the names of actors; empty for tasks that no longer exist."""
    return {actor: _name_of(referent(actor)) for actor in actors}


def _name_of(one: Any) -> str:
    if one is None:
        return ""
    named = getattr(one, "get_name", None)
    return bounded(str(named() if named is not None else getattr(one, "name", "greenlet")))


def may_hold(actors: Iterable[Actor]) -> set[Actor]:
    """Return the actors that may hold a connection: all except tasks and greenlets that ended.

    A live actor may keep a connection anywhere, through an exhaust cursor. A thread that ended may
    have left its connection to another thread.
    """
    return {actor for actor in actors if _may_hold(referent(actor))}


def _may_hold(one: Any) -> bool:
    if one is None or isinstance(one, ThreadActor):
        return one is not None
    return not (one.dead if is_greenlet(one) else one.done())


def is_greenlet(one: Any) -> bool:
    """Return whether an actor's object is a greenlet, without importing greenlet."""
    return hasattr(one, "gr_frame")
