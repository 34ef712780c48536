"""Measure the listeners inside real operations: each call timed where PyMongo makes it.

A loop finds the interpreter's caches warm. After a reply from the network they are not, and the
same call takes two to three times as long; it is this that an application pays.
"""

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from pymongo.monitoring import CommandListener, ConnectionPoolListener

from pool_telemetry import PoolTelemetry
from tests.benchmarks import listeners
from tests.benchmarks.measure import Effort, show_heading, take_turns
from tests.benchmarks.spans import OURS, THEIRS, provider_in_memory, traced
from tests.benchmarks.traffic import connected, finds

EVENTS = {
    "connection_check_out_started": "check-out",
    "connection_checked_out": "out",
    "started": "command",
    "succeeded": "success",
    "connection_checked_in": "in",
}

Spent = dict[str, list[float]]
"""Seconds of every call, by the listener's method."""


def run_in_place(effort: Effort, uri: str) -> None:
    """Measure (d) again, from within."""
    show_heading(
        "d",
        "The same find_one from within: median time of each call of a listener",
        "none; unlike in the loop of (a) the caches are as cold as in an application",
    )
    telemetry, traced_too = PoolTelemetry(), PoolTelemetry()
    provider = provider_in_memory()
    spent: dict[str, Spent] = {}
    with contextlib.ExitStack() as stack:
        variants = {}
        for name, given in (
            ("no-op", listeners.noop()),
            ("ours", telemetry.listeners),
            ("prometheus_client with .labels()", listeners.straightforward()),
            (OURS, traced_too.listeners),
            (THEIRS, listeners.command_spans(provider)),
        ):
            spent[name] = defaultdict(list)
            timed = [_timed(listener, spent[name]) for listener in given]
            variants[name] = finds(stack.enter_context(connected(uri, timed)))
        variants[OURS] = traced(variants[OURS], provider)
        take_turns(variants, effort.in_place_rounds)
    telemetry.close()
    traced_too.close()
    provider.shutdown()
    print(f"    {'µs':42}" + "".join(f"{event:>11}" for event in (*EVENTS.values(), "all five")))
    for name, times in spent.items():
        calls = [statistics.median(times[method] or [0.0]) * 1e6 for method in EVENTS]
        cells = (f"{call:.2f}" if call else "" for call in (*calls, sum(calls)))
        print(f"    {name:42}" + "".join(f"{cell:>11}" for cell in cells))


def _timed(listener: Any, spent: Spent) -> Any:
    """Return a listener that measures the calls of another listener that concern a find."""
    kinds = (ConnectionPoolListener, CommandListener)
    kind = next((kind for kind in kinds if isinstance(listener, kind)), None)
    if kind is None:
        return listener
    methods = {
        name: _timed_method(getattr(listener, name), spent[name])
        for name in vars(kind)
        if not name.startswith("_")
    }
    return type("Timed", (kind,), methods)()


def _timed_method(method: Callable[[Any], None], seconds: list[float]) -> Callable[..., None]:
    def handle(self: object, event: Any) -> None:
        begin = time.perf_counter()
        method(event)
        seconds.append(time.perf_counter() - begin)

    return handle
