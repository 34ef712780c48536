"""Processes that are forked in C, as uWSGI does it: no hook of Python's runs in them.

`python -m tests.forked_in_c SCENARIO URI` prints what the child said, as JSON. A child that hangs
is ended by the time limit of the test.
"""

import asyncio
import gc
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from pool_telemetry import (
    AsyncMongoDBConnectionPool,
    MongoDBConnectionPool,
    PoolNotInitializedError,
    PoolTelemetry,
    assess,
    process,
    prometheus,
)
from pool_telemetry.otel import metrics as otel
from pool_telemetry.state import frames
from pool_telemetry.state.frames import UNKNOWN, stack_of
from pool_telemetry.watch import thread as watch
from tests.c_fork import fork_in_c
from tests.prefork import find, in_child, telemetry
from tests.support import Gate, drivers, ours, the_pool, wait_for

FINDS = 5
SIZE = 2
CALLERS = 7
GATE = Gate()


def in_c_child(call: Callable[[], Any]) -> Any:
    """Return what a child says whose fork Python does not notice."""
    return in_child(call, fork_in_c)


def counts() -> dict[str, Any]:
    """Return the report of this process about itself."""
    stats = telemetry().stats()
    registry = CollectorRegistry()
    prometheus.register(registry)
    return {
        "health": assess(stats).status,
        "status": MongoDBConnectionPool.get_pool_stats()["status"],
        "pools": len(stats.pools),
        "checkouts": sum(pool.checkouts["ok"] for pool in stats.pools),
        "closed": sum(sum(pool.closed.values()) for pool in stats.pools),
        "cleared": sum(pool.cleared for pool in stats.pools),
        "up": [pool.up for pool in stats.pools],
        "phases": [pool.phase for pool in stats.pools],
        "max_sizes": [pool.max_size for pool in stats.pools],
        "finds": sum(one.duration.count for one in stats.operations if one.operation == "find"),
        "errors": stats.telemetry_errors,
        "watched": sum(map(lives, threading.enumerate())),
        "exported": {
            sample.name: sample.value
            for family in registry.collect()
            for sample in family.samples
            if sample.name == "db_client_connection_wait_time_seconds_count"
        },
    }


def lives(thread: threading.Thread) -> bool:
    """Return whether it is the watching thread of this process; `is_alive()` lies after a fork."""
    ours = thread.name == "pool_telemetry-watch"
    return ours and os.path.exists(f"/proc/self/task/{thread.native_id}")  # noqa: PTH110  # quick


def own_numbers(uri: str) -> Any:
    """A worker of a parent that used its client and failed once: unused, used, and its child's."""

    def child() -> Any:
        before = counts()
        find(1)
        wait_for(lambda: any(map(lives, threading.enumerate())), "the watching thread")
        after = counts()
        return before, after, in_child(lambda: grandchild(find))

    def grandchild(find: Callable[[int], None]) -> Any:
        before = counts()
        find(2)
        return before, counts(), process.threads_are_known()

    find(FINDS)
    broken: Any = None
    telemetry().listeners[0].pool_created(broken)
    return in_c_child(child), counts()


def queue(uri: str) -> Any:
    """Callers of a worker queue, whose parent had threads; nobody looks at frames."""

    def child() -> Any:
        looked = list[str]()
        sys.addaudithook(lambda event, _: looked.append(event) if "_frames" in event else None)
        threads = [threading.Thread(target=find, args=(1,)) for _ in range(CALLERS)]
        with GATE.shut():
            for thread in threads:
                thread.start()
            wait_for(lambda: the_pool(telemetry()).waiting == CALLERS - SIZE)
            pool = the_pool(telemetry())
            holders, waiters = telemetry().callers()
            (state,) = telemetry().states()
            stacks = {stack_of(holder[0])[0] for holder in state.holders()[0].values()}
        for thread in threads:
            thread.join()
        quiet = the_pool(telemetry())
        return {
            "queue": (pool.in_use, pool.waiting, pool.exhausted, len(holders), len(waiters)),
            "stacks": stacks == {UNKNOWN},
            "after": (quiet.in_use, quiet.waiting, quiet.checkouts),
            "agreed": ours(quiet) == drivers(MongoDBConnectionPool.get_client()),
            "looked": looked,
        }

    find(1)
    return in_c_child(child)


def all_at_once(uri: str) -> Any:
    """Many threads of a worker are the first to use the client; each is counted."""

    def child() -> Any:
        ready = threading.Barrier(CALLERS)

        def use() -> None:
            ready.wait()
            find(FINDS)

        threads = [threading.Thread(target=use) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return counts()

    find(1)
    return in_c_child(child)


def clears(uri: str) -> Any:
    """PyMongo drops the parent's connections, once more than needed; then the server fails."""

    def child() -> Any:
        find(1)
        (server,) = MongoDBConnectionPool.get_client()._topology._servers.values()
        server.pool.reset_without_pause()
        said = [counts()]
        server.pool.reset()
        return [(one["cleared"], one["phases"]) for one in (*said, counts())]

    find(1)
    return in_c_child(child)


@contextmanager
def held_by_another_thread(locks: list[Any]) -> Iterator[None]:
    """Hold locks on a thread that no child has."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    yield
    over.set()
    thread.join()


def locks(uri: str) -> Any:
    """A thread of the parent holds every lock of ours, and has collections off."""

    def child() -> Any:
        find(1)
        said = counts()
        MongoDBConnectionPool.close()
        MongoDBConnectionPool.initialize(uri)
        find(1)
        PoolTelemetry("another").close()
        otel.register()
        otel.unregister()
        return said, counts(), gc.isenabled()

    find(1)
    one = telemetry()
    (state,) = one.states()
    modules = (prometheus, otel, watch, sys.modules["pool_telemetry.otel.configure"])
    every: list[Any] = [module._lock for module in modules]
    every += [frames._frames_lock, state._lock, one._lock, one.commands._lock, one.agents._lock]
    every += [one._history._lock, one.callbacks._lock]
    every += [MongoDBConnectionPool._initializing, MongoDBConnectionPool._lock]
    every += [sys.modules["pool_telemetry.registry"]._lock]
    with held_by_another_thread(every):
        gc.disable()
        frames._is_paused = True
        try:
            return in_c_child(child)
        finally:
            gc.enable()
            frames._is_paused = False


def unused(uri: str) -> Any:
    """A worker closes the client that only its parent used."""

    def child() -> Any:
        MongoDBConnectionPool.get_client().close()
        return [(pool.phase, pool.size, pool.closed) for pool in telemetry().stats().pools]

    find(1)
    return in_c_child(child)


def asynchronous(uri: str) -> Any:
    """An AsyncMongoClient belongs to a loop of the parent: a worker makes its own."""

    def child() -> Any:
        try:
            AsyncMongoDBConnectionPool.get_client()
        except PoolNotInitializedError:
            return asyncio.run(own())
        return "the parent's"

    async def own() -> Any:
        client = await AsyncMongoDBConnectionPool.initialize(uri, maxPoolSize=SIZE)
        await client["fork"]["t"].find_one()
        said = AsyncMongoDBConnectionPool.get_pool_stats()
        await AsyncMongoDBConnectionPool.close()
        return said["status"], said["checkouts"]["ok"]

    async def main() -> Any:
        await AsyncMongoDBConnectionPool.initialize(uri)
        said = in_c_child(in_a_thread(child))
        await AsyncMongoDBConnectionPool.close()
        return said

    return asyncio.run(main())


def in_a_thread(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return the call, made on a thread: one without the parent's running loop."""

    def made() -> Any:
        said = list[Any]()
        thread = threading.Thread(target=lambda: said.append(call()))
        thread.start()
        thread.join()
        return said[0]

    return made


def by_number(uri: str) -> Any:
    """Where memory can't be wiped by forks, the process id tells."""
    number = process._ProcessId()

    def child() -> Any:
        before = bool(number[0])
        number[0] = 1
        return before, bool(number[0])

    return bool(number[0]), in_c_child(child), in_child(child)


SCENARIOS = {
    call.__name__: call
    for call in (own_numbers, queue, all_at_once, clears, locks, unused, asynchronous, by_number)
}


def main() -> None:
    scenario, uri = sys.argv[1:]
    MongoDBConnectionPool.initialize(
        uri, maxPoolSize=SIZE, minPoolSize=0, waitQueueTimeoutMS=60_000, event_listeners=[GATE]
    )
    said = SCENARIOS[scenario](uri)
    MongoDBConnectionPool.close()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
