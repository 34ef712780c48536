"""Listeners that PyMongo or the application gave to several clients: each client gets its own.

With `auto_encryption_opts` and a limited pool, PyMongo makes an inner client from the keyword
arguments of the outer client, listeners included. Connection ids begin at 1 in each pool, and an
event names a server and no client. But all events of a pool, of its connections' commands and of
its server's heartbeats have one address object, which no other client has. So the listeners of a
shared set pass an event of another client on, by the identity of that object.

A set that only one client has stays as it is: its events take no step more.
"""

import contextlib
import sys
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any, Final, Protocol

from pymongo.pool_options import PoolOptions

from pool_telemetry.process import ProcessLock
from pool_telemetry.state.frames import is_called_for_encryption, outward

_MAX_ADDRESSES: Final = 200
"""Addresses of one further client: far above a cluster's servers, and hosts come and go."""

_lock: Final = ProcessLock()


class Listener(Protocol):
    """A listener of ours."""

    @staticmethod
    def address_of(event: Any) -> Any:
        """Return the address object of an event."""


class _Another:
    """The listeners of a further client, and the addresses of its pools."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self.listeners = listeners
        self.addresses = deque[Any]()  # kept, so that no other object gets the identity of one


class Sharing:
    """The clients that have one set of listeners.

    Args:
        is_used: Returns whether another client uses the telemetry of this set now.
        listeners_for: Returns the listeners for a further client. Its argument is whether PyMongo
            made that client for automatic encryption.
    """

    def __init__(
        self, is_used: Callable[[], bool], listeners_for: Callable[[bool], Sequence[Listener]]
    ) -> None:
        self._is_used = is_used
        self._listeners_for = listeners_for
        self._set: list[weakref.ref[Any]] = []
        self._first: Callable[[], object] = lambda: None
        self._others: weakref.WeakKeyDictionary[object, _Another] = weakref.WeakKeyDictionary()
        self._by_address: weakref.WeakValueDictionary[int, _Another]
        self._by_address = weakref.WeakValueDictionary()

    def begin(self, listeners: Sequence[Listener]) -> None:
        """Take the set, before a client has it."""
        self._set = [weakref.ref(one) for one in listeners]

    def listener_of_another(self, event: Any) -> Any:
        """Return the pool listener of the client whose pool was created; None if it is this set's.

        Called while PyMongo publishes the event, because its caller is one object for each client.
        """
        client = _client()
        if client is None:
            return None
        with _lock:
            another = self._others.get(client)
            if another is None:
                if self._is_first(client):
                    return None
                another = self._add(client)
            another.addresses.append(event.address)
            if len(another.addresses) > _MAX_ADDRESSES:
                self._by_address.pop(id(another.addresses.popleft()), None)
            self._by_address[id(event.address)] = another
            return another.listeners[0]

    def _is_first(self, client: object) -> bool:
        if self._first() is client:
            return True
        if self._is_used() or is_called_for_encryption(while_made=True):
            return False
        self._first = weakref.ref(client)
        return True

    def _add(self, client: object) -> _Another:
        if not self._others:
            for position, listener in enumerate(self._set):
                self._pass_on(listener(), position)
        for_encryption = is_called_for_encryption(while_made=self._first() is None)
        another = self._others[client] = _Another(self._listeners_for(for_encryption))
        return another

    def _pass_on(self, listener: Any, position: int) -> None:
        """Let a listener of the set pass on the events of further clients, except PoolCreated."""
        for name in _events(listener):
            setattr(listener, name, partial(self._deliver, getattr(listener, name), name, position))

    def _deliver(self, own: Callable[[Any], None], name: str, position: int, event: Any) -> None:
        another = None
        with contextlib.suppress(AttributeError):  # a malformed event: a listener counts it
            another = self._by_address.get(id(own.__self__.address_of(event)))  # type: ignore[attr-defined]  # a method has it
        deliver = own if another is None else getattr(another.listeners[position], name)
        deliver(event)


def app_name_of_new_pool() -> str | None:
    """Return the appName of the client whose PoolCreated is handled; None if it has none."""
    for frame in outward(_publisher()):
        if isinstance(options := frame.f_locals.get("options"), PoolOptions):
            return options.appname
    return None


def _events(listener: object) -> set[str]:
    """Return the names of the methods that PyMongo calls."""
    bases = (base for base in type(listener).__mro__ if base.__module__ == "pymongo.monitoring")
    names = {name for base in bases for name in vars(base) if not name.startswith("_")}
    return names - {"pool_created"}


def _client() -> object:
    """Return the object that publishes PoolCreated, which PyMongo makes once for each client."""
    frame = _publisher()
    return None if frame is None else frame.f_locals.get("self")


def _publisher() -> FrameType | None:
    callers = outward(sys._getframe())
    return next((one for one in callers if one.f_code.co_name == "publish_pool_created"), None)
