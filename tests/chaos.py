"""Threads and tasks on one server whose network breaks all the time: do our counts stay true?

After each storm everything is healed, and at that quiet moment our counts have to be PyMongo's own
private ones, and the server's. Run it by `make soak`; `test_chaos.py` runs a short one.
"""

import argparse
import asyncio
import contextlib
import gc
import inspect
import itertools
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymongo
from pymongo import AsyncMongoClient, CursorType, MongoClient
from pymongo.errors import PyMongoError

from pool_telemetry import PoolTelemetry
from pool_telemetry.demo.embedded import EmbeddedServer
from pool_telemetry.stats import PoolStats
from tests.proxy import Proxy
from tests.support import Started, drivers, monitors, ours, the_pool, wait_for

THREADS = 16
TASKS = 40
MAX_SIZE = 8
OPTIONS: dict[str, Any] = {
    "maxPoolSize": MAX_SIZE,
    "minPoolSize": 1,
    "maxIdleTimeMS": 2_000,
    "waitQueueTimeoutMS": 400,
    "serverSelectionTimeoutMS": 800,
    "connectTimeoutMS": 500,
    "socketTimeoutMS": 1_000,
    "heartbeatFrequencyMS": 500,
}


@dataclass
class Report:
    """What happened, in numbers."""

    operations: int = 0
    quiet_points: int = 0
    doubts: int = 0
    reads: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    checkouts: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    cleared: int = 0
    before: "Footprint | None" = None
    after: "Footprint | None" = None

    def __str__(self) -> str:
        def listed(counts: Counter[str]) -> str:
            return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())

        return "\n".join(
            (
                f"operations     {self.operations:,} in {self.seconds:.0f} s",
                f"ended          {listed(self.ends)}",
                f"faults         {listed(self.faults)}",
                f"checkouts      {listed(self.checkouts)}",
                f"connections    {self.connections:,} opened; pools cleared {self.cleared:,} times",
                f"quiet points   {self.quiet_points}: ours were the driver's and the server's",
                f"doubts         {self.doubts}: a size was one off till the pool opened one more",
                f"reads          {self.reads:,} in the storm: no count negative, no counter fell",
                f"before         {self.before}",
                f"after          {self.after}",
            )
        )


@dataclass(frozen=True)
class Footprint:
    """The objects and threads that a run must not leave behind."""

    threads: int
    descriptors: int
    mebibytes: float

    @classmethod
    def now(cls) -> "Footprint":
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            threads=threading.active_count(),
            descriptors=len(os.listdir("/proc/self/fd")),  # noqa: PTH208
            mebibytes=resident * os.sysconf("SC_PAGE_SIZE") / 2**20,
        )

    def __str__(self) -> str:
        return f"{self.threads} threads, {self.descriptors} descriptors, {self.mebibytes:.1f} MiB"


class Watch(threading.Thread):
    """Reads all the time, and notes what can't be."""

    def __init__(self, telemetries: list[PoolTelemetry]) -> None:
        super().__init__(name="watch")
        self._telemetries = telemetries
        self._over = threading.Event()
        self.reads = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        last: dict[str, list[float]] = {}
        while not self._over.wait(0.01):
            for telemetry in self._telemetries:
                for pool in telemetry.stats().pools:
                    self.reads += 1
                    self._check(pool, last, telemetry.name)

    def _check(self, pool: PoolStats, last: dict[str, list[float]], name: str) -> None:
        counters: list[float] = [
            *pool.checkouts.values(),
            *pool.closed.values(),
            pool.created,
            pool.cleared,
        ]
        counters += [pool.exhaustions, pool.exhausted_time, *pool.wait_time.counts]
        counters += [*pool.use_time.counts, *pool.create_time.counts]
        before = last.setdefault(name, counters)
        possible = (
            0 <= pool.in_use + pool.opening <= pool.size
            and min(pool.idle, pool.waiting, pool.oldest_wait, pool.longest_checkout) >= 0
            and pool.wait_time.count == pool.checkouts["ok"]
            and all(new >= old for old, new in zip(before, counters, strict=True))
        )
        if not possible:
            self.wrong.append(f"{name}: {ours(pool)}, {before} then {counters}")
        last[name] = counters

    def end(self) -> None:
        self._over.set()
        self.join()


class Chaos:
    """One run.

    Args:
        operations: How many, at least.
        storm: How many between two quiet points.
        seed: Of every choice; what the network makes of it differs each time.
        say: Called with a line after each storm.
    """

    def __init__(
        self, operations: int, storm: int, seed: int, say: Callable[[str], object] = print
    ) -> None:
        self._operations = operations
        self._storm_size = storm
        self._chance = random.Random(seed)
        self._say = say
        self._report = Report()
        self._over = threading.Event()
        self._left = 0
        self._lock = threading.Lock()

    def run(self) -> Report:
        """Run, and raise AssertionError if a number is wrong."""
        began = time.monotonic()
        with EmbeddedServer() as server:
            self._server = server
            self._report.before = Footprint.now()
            with Proxy(server.port) as proxy:
                self._proxy = proxy
                self._run_clients()
            try:
                wait_for(self._nothing_left)
            except AssertionError:
                left = [thread.name for thread in threading.enumerate()]
                raise AssertionError(
                    f"{self._report.before} before, {self._report.after} after; threads {left}"
                ) from None
        self._report.seconds = time.monotonic() - began
        return self._report

    def _nothing_left(self) -> bool:
        self._report.after = after = Footprint.now()
        before = self._report.before
        assert before is not None
        return after.threads <= before.threads and after.descriptors <= before.descriptors

    def _run_clients(self) -> None:
        telemetries = [PoolTelemetry("threads"), PoolTelemetry("tasks")]
        counts = [Started(), Started()]
        watch = Watch(telemetries)
        watch.start()
        client: MongoClient[dict[str, Any]] = MongoClient(
            self._proxy.uri,
            appName="chaos-threads",
            event_listeners=[counts[0], *telemetries[0].listeners],
            **OPTIONS,
        )
        loop = LoopThread()
        tasks: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            self._proxy.uri,
            appName="chaos-tasks",
            event_listeners=[counts[1], *telemetries[1].listeners],
            **{**OPTIONS, "waitQueueTimeoutMS": None},  # see `may_be_cancelled`
        )
        clients: list[Any] = [client, tasks]
        try:
            self._fill()
            while self._report.operations < self._operations:
                self._storm(client, tasks, loop)
                for one, telemetry, started in zip(clients, telemetries, counts, strict=True):
                    quiet = on_its_loop(loop if one is tasks else None)
                    self._compare(one, telemetry, started, quiet)
                self._report.quiet_points += 1
                self._say(
                    f"{self._report.operations:9,} operations, quiet point "
                    f"{self._report.quiet_points}: "
                    + "; ".join(f"{t.name} {ours(the_pool(t))}" for t in telemetries)
                )
        finally:
            self._proxy.heal()
            loop.run(tasks.close())
            assert loop.close() == [], "tasks are left over"
            with pymongo.timeout(5):
                client.close()
            watch.end()
        for telemetry in telemetries:
            self._assert_nothing_is_left(telemetry)
        self._report.reads = watch.reads
        assert watch.wrong == []

    def _storm(
        self, client: MongoClient[Any], tasks: AsyncMongoClient[Any], loop: "LoopThread"
    ) -> None:
        self._over.clear()
        self._left = self._storm_size
        seeds = iter(self._chance.sample(range(10**9), THREADS + TASKS + 2))
        threads = [
            threading.Thread(target=self._caller, args=(client, next(seeds)))
            for _ in range(THREADS)
        ]
        running = loop.start(self._callers(tasks, [next(seeds) for _ in range(TASKS + 1)]))
        breaking = threading.Thread(target=self._break, args=(random.Random(next(seeds)),))
        for thread in (*threads, breaking):
            thread.start()
        for thread in threads:
            thread.join()
        running.result()
        self._over.set()
        breaking.join()

    def _next(self) -> bool:
        """Return whether there is one more operation to do, and count it."""
        with self._lock:
            self._left -= 1
            self._report.operations += 1
            return self._left > 0

    def _ended(self, how: str) -> None:
        with self._lock:
            self._report.ends[how] += 1

    # What breaks

    def _break(self, chance: random.Random) -> None:
        faults = [self._slow, self._cut, self._freeze, self._refuse, self._restart, self._fail_over]
        while not self._over.wait(chance.uniform(0.0, 0.4)):
            (fault,) = chance.choices(faults, weights=[4, 6, 3, 3, 1, 1])
            self._report.faults[fault.__name__[1:]] += 1
            fault()
        self._proxy.heal()

    def _slow(self) -> None:
        self._proxy.delay(0.02)
        self._over.wait(0.5)
        self._proxy.delay(0.0)

    def _cut(self) -> None:
        self._proxy.cut()

    def _freeze(self) -> None:
        self._proxy.freeze()
        self._over.wait(0.3)
        self._proxy.thaw()

    def _refuse(self) -> None:
        self._proxy.refuse()
        self._proxy.cut()
        self._over.wait(0.3)
        self._proxy.accept()

    def _restart(self) -> None:
        self._proxy.refuse()
        self._server.stop(kill=True)
        self._proxy.cut()
        self._server.start()
        # A transaction that makes the collection, and is cut off, would block all others.
        self._fill()
        self._proxy.accept()

    def _fill(self) -> None:
        with MongoClient[dict[str, Any]](self._server.uri, directConnection=True) as control:
            control["chaos"]["messages"].insert_many({"_id": i} for i in range(50))

    def _fail_over(self) -> None:
        with contextlib.suppress(PyMongoError):
            control: MongoClient[Any]
            with MongoClient(self._server.uri, directConnection=True, timeoutMS=2_000) as control:
                control.admin.command("replSetStepDown", 1, force=True)

    # The users of the pool

    def _caller(self, client: MongoClient[Any], seed: int) -> None:
        chance = random.Random(seed)
        collection = client["chaos"]["messages"]
        while self._next():
            limit = chance.choice([None, None, None, 0.002, 0.02, 0.2])
            try:
                with pymongo.timeout(limit) if limit else contextlib.nullcontext():
                    self._operation(client, collection, chance)
                self._ended("ok")
            except PyMongoError as error:
                self._ended(type(error).__name__)

    def _operation(self, client: Any, collection: Any, chance: random.Random) -> None:
        kind = chance.random()
        if kind < 0.6:
            collection.find_one({"_id": chance.randrange(50)})
        elif kind < 0.75:
            collection.insert_one({})
        elif kind < 0.9:
            with collection.find({}, batch_size=5).limit(20) as cursor:
                for _ in itertools.islice(cursor, chance.randrange(20)):
                    pass
        elif kind < 0.95:
            with collection.find({}, batch_size=5, cursor_type=CursorType.EXHAUST) as cursor:
                for _ in itertools.islice(cursor, chance.randrange(20)):
                    pass
        else:
            with client.start_session() as session, session.start_transaction():
                collection.insert_one({}, session=session)

    async def _callers(self, client: AsyncMongoClient[Any], seeds: list[int]) -> None:
        chance = random.Random(seeds.pop())
        running = {asyncio.create_task(self._task(client, random.Random(seed))) for seed in seeds}
        while running:
            await asyncio.sleep(0.005)
            for task in [task for task in running if task.done()]:
                running.discard(task)
                if not task.cancelled():
                    task.result()
                elif not self._last():  # another caller takes the place
                    again = self._task(client, random.Random(chance.random()))
                    running.add(asyncio.create_task(again))
            if running and may_be_cancelled(task := chance.choice(list(running))):
                task.cancel()
                self._ended("cancelled")

    def _last(self) -> bool:
        return self._left <= 0

    async def _task(self, client: AsyncMongoClient[Any], chance: random.Random) -> None:
        collection = client["chaos"]["messages"]
        while self._next():
            limit = chance.choice([None, None, None, 0.002, 0.02, 0.2])
            operation = self._operation_async(client, collection, chance)
            try:
                if limit is None:
                    await operation
                elif chance.random() < 0.5:
                    async with asyncio.timeout(limit):
                        await operation
                else:
                    await within(limit, operation)
                self._ended("ok")
            except (PyMongoError, TimeoutError) as error:
                self._ended(type(error).__name__)

    async def _operation_async(self, client: Any, collection: Any, chance: random.Random) -> None:
        kind = chance.random()
        if kind < 0.6:
            await collection.find_one({"_id": chance.randrange(50)})
        elif kind < 0.75:
            await collection.insert_one({})
        elif kind < 0.95:
            async with collection.find({}, batch_size=5).limit(20) as cursor:
                await cursor.to_list(chance.randrange(1, 20))
        else:
            async with client.start_session() as session, await session.start_transaction():
                await collection.insert_one({}, session=session)

    # The promises to check

    def _compare(
        self,
        client: Any,
        telemetry: PoolTelemetry,
        started: Started,
        call: Callable[[Callable[[], Any]], Any],
    ) -> None:
        """Wait for the driver to be quiet and for the server to have noticed; then compare."""
        doubted = False

        def agreed() -> bool:
            nonlocal doubted
            theirs, mine = call(lambda: drivers(client)), ours(the_pool(telemetry))
            quiet = theirs.in_use == theirs.opening == theirs.waiting == 0
            doubtful = any(
                pool._connections.presumed_returned for pool in telemetry._pools.values()
            )
            if quiet and doubtful and mine.size > theirs.size and theirs.idle < MAX_SIZE:
                # Closed or idle? PyMongo will tell when a caller finds none idle.
                doubted = True
                with contextlib.suppress(PyMongoError):
                    call(lambda: take(client, theirs.idle + 1))
            return bool(quiet and mine == theirs)

        def servers() -> int:
            gc.collect()  # a task cancelled while it connects drops its socket unclosed
            return len(connections(self._server.uri, f"chaos-{telemetry.name}"))

        def counted() -> bool:
            there: int = call(lambda: drivers(client).size + monitors(client))
            return there == servers()

        def state() -> str:
            pool, beside = the_pool(telemetry), monitors(client)
            there = connections(self._server.uri, f"chaos-{telemetry.name}")
            return (
                f"{telemetry.name}: {ours(pool)}, the driver has {drivers(client)} and {beside} "
                f"beside, the server {there}; {pool}"
            )

        try:
            wait_for(agreed)
            wait_for(counted)
            pool = the_pool(telemetry)
            ended = sum(pool.checkouts.values())
            assert ended + pool.waiting == started.count, f"{started.count} started, {ended} ended"
            left = pool.created - sum(pool.closed.values())
            assert left == pool.size, f"{left} of those created are not closed"
            uses = pool.use_time.count
            assert uses == pool.checkouts["ok"] - pool.in_use, f"{uses} uses ended"
            assert not pool.exhausted, "exhausted"
            self._report.doubts += doubted
        except AssertionError as error:
            raise AssertionError(f"{error}: {state()}") from None

    def _assert_nothing_is_left(self, telemetry: PoolTelemetry) -> None:
        stats = telemetry.stats()
        assert stats.telemetry_errors == 0
        for pool in stats.pools:
            assert (pool.size, pool.in_use, pool.waiting) == (0, 0, 0), pool
            self._report.checkouts.update(pool.checkouts)
            self._report.connections += pool.created
            self._report.cleared += pool.cleared
        for state in telemetry._pools.values():
            books = state._connections
            left = [books.opening, books.held, books._ready, books._carried_over, state._waiters]
            assert not any(left), left


def on_its_loop(loop: "LoopThread | None") -> Callable[[Callable[[], Any]], Any]:
    """Return how to read a client's private counters: on the loop that changes them, if any."""
    if loop is None:
        return lambda read: read()

    def call(read: Callable[[], Any]) -> Any:
        async def on_loop() -> Any:
            found = read()
            return await found if inspect.isawaitable(found) else found

        return loop.run(on_loop())

    return call


def take(client: Any, count: int) -> Any:
    """Check so many connections out at once, and in again; awaitable for a client of tasks."""
    (server,) = client._topology._servers.values()
    if isinstance(client, MongoClient):
        with contextlib.ExitStack() as held:
            for _ in range(count):
                held.enter_context(server.pool.checkout())
        return None

    async def on_loop() -> None:
        async with contextlib.AsyncExitStack() as held:
            for _ in range(count):
                await held.enter_async_context(server.pool.checkout())

    return on_loop()


async def within(limit: float, operation: Coroutine[Any, Any, None]) -> None:
    with pymongo.timeout(limit):
        await operation


def may_be_cancelled(task: asyncio.Task[Any]) -> bool:
    """Return whether a cancellation of this task leaves PyMongo itself whole.

    A cancellation while the task handles another makes PyMongo lose count. On Python 3.11 a
    second cancellation in `asyncio.wait_for(condition.wait(), seconds)` loses the condition's lock
    for good (python/cpython#86766); its own time limit is a cancellation, too. So no task is
    cancelled twice, and none that has a time limit or waits for a server.
    """
    if task.cancelling():
        return False
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None)
        if frame is not None:
            module, function = frame.f_globals.get("__name__"), frame.f_code.co_name
            if module == "pymongo.asynchronous.topology" or function in ("within", "wait_for"):
                return False
            if function == "_task" and frame.f_locals.get("limit") is not None:
                return False
        awaited = getattr(awaited, "cr_await", None)
    return True


def connections(uri: str, app_name: str) -> list[dict[str, Any]]:
    """Return what the server says of its connections with this application."""
    client: MongoClient[dict[str, Any]]
    with MongoClient(uri, directConnection=True, appName="chaos-control") as client:
        operations = client.admin.command("currentOp", {"$all": True})["inprog"]
    return [
        one
        for one in operations
        if one.get("clientMetadata", {}).get("application", {}).get("name") == app_name
    ]


class LoopThread:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop")
        self._thread.start()

    def start(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Any) -> Any:
        return self.start(work).result(30)

    def close(self) -> list[str]:
        """End the loop, and return what still runs on it."""

        async def left() -> list[str]:
            await asyncio.sleep(0.1)
            me = asyncio.current_task()
            return [str(task) for task in asyncio.all_tasks() if task is not me]

        found: list[str] = self.run(left())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--operations", type=int, default=150_000)
    parser.add_argument("--storm", type=int, default=5_000, help="operations per storm")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    given = parser.parse_args()
    print(
        f"chaos: {given.operations:,} operations, seed {given.seed}, "
        f"CPython {sys.version.split()[0]}, PyMongo {pymongo.version}"
    )
    print(Chaos(given.operations, given.storm, given.seed).run())


if __name__ == "__main__":
    main()
