"""Zero-code: `opentelemetry-instrument python app.py` finds this module by its entry point.

It needs opentelemetry-instrumentation, which has that command; no other module here imports it.
"""

from collections.abc import Callable, Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]  # untyped
    BaseInstrumentor,
)
from opentelemetry.instrumentation.utils import unwrap
from pymongo import AsyncMongoClient, MongoClient
from wrapt import wrap_function_wrapper

from pool_telemetry.events import tracing
from pool_telemetry.events.listeners import PoolListener
from pool_telemetry.options import TelemetryOptions
from pool_telemetry.otel.metrics import register, unregister
from pool_telemetry.otel.spans import start_tracing, stop_tracing
from pool_telemetry.state.frames import is_called_for_encryption
from pool_telemetry.telemetry import PoolTelemetry

_CLIENTS = (MongoClient, AsyncMongoClient)


class PoolTelemetryInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # its base is untyped
    """Gives every client that is made from now on its listeners, metrics and spans.

    `instrument(tracer_provider=, meter_provider=)` uses the global providers by default;
    `TelemetryOptions` come from the environment. `uninstrument()` undoes it, except that clients
    made in between keep their listeners without a reader.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return the packages that have to be installed for this instrumentor to be used."""
        return ("pymongo >= 4.11.3",)

    def _instrument(
        self, *, tracer_provider: Any = None, meter_provider: Any = None, **_: Any
    ) -> None:
        TelemetryOptions()  # an invalid variable raises here, not when a client is made
        self._meter_provider = meter_provider
        self._registered = register(meter_provider)
        start_tracing(tracer_provider)
        self._spans = tracing.spans
        for client in _CLIENTS:
            wrap_function_wrapper(client, "__init__", _with_listeners)

    def _uninstrument(self, **_: Any) -> None:
        for client in _CLIENTS:
            unwrap(client, "__init__")
        if tracing.spans is self._spans:  # otherwise another start_tracing() replaced it
            stop_tracing()
        if self._registered:
            unregister(self._meter_provider)


def _with_listeners(
    make: Callable[..., None], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Make a client and add its own listeners, unless the caller passed ours.

    The client of mongocryptd, a helper program that PyMongo's encryption may do without, gets none.
    """
    given = kwargs.get("event_listeners") or ()
    ours = not isinstance(given, list | tuple) or any(isinstance(o, PoolListener) for o in given)
    if ours or is_called_for_encryption():
        return make(*args, **kwargs)
    telemetry = PoolTelemetry()
    try:
        make(*args, **{**kwargs, "event_listeners": [*given, *telemetry.listeners]})
    except BaseException:
        telemetry.close()
        raise
    telemetry.attach(client)
    return None
