"""Problems of pools, made to happen on a real server, each with what is to be found.

Each scenario has a time when all is well and then its trouble, and is sampled all the time.
`make scenarios` plays and diagnoses them. `make record-scenarios` keeps their histories as text,
which `test_recordings.py` diagnoses without a server.
"""

import asyncio
import contextlib
import itertools
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pymongo
from pymongo import AsyncMongoClient, MongoClient
from pymongo.cursor import CursorType
from pymongo.errors import PyMongoError
from pymongo.read_preferences import Secondary

from pool_telemetry import ClientStats, PoolTelemetry
from pool_telemetry.demo.embedded import EmbeddedServer
from tests.balancer import Balancer
from tests.demoted import Demoted
from tests.proxy import Proxy
from tests.support import failing, pool_of, slow, wait_for

Client = MongoClient[dict[str, Any]]
SAMPLE_SECONDS = 0.125
CALM_SECONDS = 2.0
TROUBLE_SECONDS = 2.5

_numbers = itertools.count()


@dataclass
class Case:
    """One client under observation, and what load it bears."""

    server: EmbeddedServer
    proxy: Proxy | None
    telemetry: PoolTelemetry
    app_name: str
    options: dict[str, Any]
    client: Client = field(init=False)
    history: list[ClientStats] = field(default_factory=list)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def callers(self, count: int, think: float = 0.0, *, leave: bool = False) -> None:
        """So many threads find again and again from now on, with a pause between.

        An error makes them try again at once, or, with `leave`, after a pause of 0.2 s.
        """

        def run() -> None:
            while not over.wait(think) if think else not over.is_set():
                try:
                    self.client["shop"]["orders"].find_one()
                except PyMongoError:
                    if leave:
                        over.wait(0.2)

        over = threading.Event()
        threads = [threading.Thread(target=run) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            self.stack.callback(thread.join)
        self.stack.callback(over.set)

    def arrivals(self, rate: float, seed: int = 1) -> None:
        """So many callers a second come from now on, at random, whatever happens to the others."""

        def find() -> None:
            with contextlib.suppress(PyMongoError):
                self.client["shop"]["orders"].find_one()

        def run() -> None:
            chance, due = random.Random(seed), time.monotonic()
            while not over.wait(max(0.0, due - time.monotonic())):
                pool.submit(find)
                due += chance.expovariate(rate)

        over, pool = threading.Event(), ThreadPoolExecutor(400)
        thread = threading.Thread(target=run)
        thread.start()
        self.stack.callback(pool.shutdown, cancel_futures=True)
        self.stack.callback(thread.join)
        self.stack.callback(over.set)

    def beside(self, runs: list[Callable[[], None]], over: threading.Event) -> None:
        """Run these, each in a thread, until they are told that it is over."""
        threads = [threading.Thread(target=run) for run in runs]
        for thread in threads:
            thread.start()
            self.stack.callback(thread.join)
        self.stack.callback(over.set)

    def slow(self, milliseconds: int, *commands: str) -> None:
        """The server takes its time from now on."""
        self.stack.enter_context(slow(self.server.uri, self.app_name, milliseconds, *commands))

    def hesitate(self) -> None:
        """Each new connection takes its time from now on."""
        assert self.proxy
        self.proxy.hesitate(0.4)

    def failing(self, **how: Any) -> None:
        """The server fails finds from now on."""
        self.stack.enter_context(failing(self.server.uri, self.app_name, **how))

    def leak(self, count: int) -> list[Any]:
        """So many exhaust cursors stay open, if nobody closes them."""
        find = self.client["shop"]["orders"].find
        cursors = [find(cursor_type=CursorType.EXHAUST, batch_size=10) for _ in range(count)]
        for cursor in cursors:
            next(cursor)
            self.stack.callback(cursor.close)
        return cursors

    def go_on(self, seconds: float) -> None:
        """Let it last for a time."""
        time.sleep(seconds)

    @contextlib.contextmanager
    def sampled(self) -> Iterator[None]:
        """Sample the client every SAMPLE_SECONDS while the block runs."""

        def run() -> None:
            due = time.monotonic()
            while not over.wait(max(0.0, due - time.monotonic())):
                self.history.append(self.telemetry.stats())
                due += SAMPLE_SECONDS

        over, thread = threading.Event(), threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


Play = Callable[[Case], None]


@dataclass(frozen=True)
class Scenario:
    """What happens, and the verdicts that are right: the first, and any further ones."""

    name: str
    verdict: str
    play: Play
    options: dict[str, Any] = field(default_factory=dict)
    also: frozenset[str] = frozenset()  # further findings that must be there
    maybe: frozenset[str] = frozenset()  # that may
    behind: type[Proxy] | None = None
    asynchronous: bool = False  # it makes a client of its own


def provide_documents(server: EmbeddedServer) -> None:
    """Fill the collection that scenarios read, unless it is filled: a killed server forgets."""
    with Client(server.uri) as client:
        orders = client["shop"]["orders"]
        if not orders.count_documents({}):
            orders.insert_many([{"number": number} for number in range(200)])


@contextlib.contextmanager
def playing(scenario: Scenario, server: EmbeddedServer) -> Iterator[tuple[Case, ClientStats]]:
    """Play a scenario and hand it over, with how the client is at its end."""
    telemetry = PoolTelemetry()
    app_name = f"scenario-{next(_numbers)}"
    with contextlib.ExitStack() as outer:
        uri, proxy = server.uri, None
        if scenario.behind is not None:
            proxy = outer.enter_context(scenario.behind(server.port))
            uri = proxy.uri
        case = Case(server, proxy, telemetry, app_name, scenario.options)
        if not scenario.asynchronous:
            case.client = Client(
                uri,
                appName=app_name,
                event_listeners=telemetry.listeners,
                heartbeatFrequencyMS=500,
                serverSelectionTimeoutMS=2_000,
                **scenario.options,
            )
            telemetry.attach(case.client)
            outer.callback(case.client.close)
            case.client.admin.command("ping")
            wait_for(lambda: all(p.size >= p.min_size for p in telemetry.stats().open_pools))
        outer.callback(case.stack.close)
        with case.sampled():
            scenario.play(case)
        yield case, telemetry.stats()


# What happens


def calm(case: Case) -> None:
    case.callers(2, think=0.02)
    case.go_on(CALM_SECONDS + TROUBLE_SECONDS)


def busy(case: Case) -> None:
    """All of the pool in use at times, and nobody waits for long."""
    case.slow(10)
    case.callers(5, think=0.01)
    case.go_on(CALM_SECONDS + TROUBLE_SECONDS)


def too_many_callers(case: Case) -> None:
    case.slow(20)
    case.callers(2, think=0.02)
    case.go_on(CALM_SECONDS)
    case.callers(20)
    case.go_on(TROUBLE_SECONDS)


def too_many_arrivals(case: Case) -> None:
    case.slow(80)
    case.arrivals(10)
    case.go_on(CALM_SECONDS)
    case.arrivals(60, seed=532)  # without a lull or a burst in its first seconds
    case.go_on(TROUBLE_SECONDS)


def a_burst(case: Case) -> None:
    case.slow(20)
    case.callers(2, think=0.02)
    case.go_on(CALM_SECONDS)
    threads = [threading.Thread(target=case.client["shop"]["orders"].find_one) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    case.go_on(1.0)


def slow_server(case: Case) -> None:
    case.callers(6, think=0.05)
    case.go_on(CALM_SECONDS)
    case.slow(600)
    case.go_on(TROUBLE_SECONDS)


def slow_from_the_start(case: Case) -> None:
    case.slow(400)
    case.callers(8)
    case.go_on(TROUBLE_SECONDS)


def hanging_server(case: Case) -> None:
    case.callers(6, think=0.02)
    case.go_on(CALM_SECONDS)
    case.slow(4_000)
    case.go_on(TROUBLE_SECONDS)
    case.stack.callback(case.client.close)


def forgotten_cursors(case: Case) -> None:
    case.callers(3, think=0.02, leave=True)
    case.go_on(CALM_SECONDS)
    case.leak(4)
    case.go_on(TROUBLE_SECONDS)


def forgotten_by_who_goes_on(case: Case) -> None:
    """Threads that each keep a cursor open, and do other things meanwhile."""

    def forget() -> None:
        orders = case.client["shop"]["orders"]
        with orders.find(cursor_type=CursorType.EXHAUST, batch_size=10) as cursor:
            next(cursor)
            while not over.wait(0.05):
                orders.find_one()

    over = threading.Event()
    case.callers(2, think=0.02)
    case.go_on(CALM_SECONDS)
    case.beside([forget] * 4, over)
    case.go_on(5.5)


def slow_readers(case: Case) -> None:
    """Threads that take their time with each batch of an exhaust cursor."""

    def read() -> None:
        orders = case.client["shop"]["orders"]
        while not over.is_set():
            with (
                contextlib.suppress(PyMongoError),
                orders.find(cursor_type=CursorType.EXHAUST, batch_size=20) as cursor,
            ):
                for i, _ in enumerate(cursor):
                    if i % 20 == 0 and over.wait(0.4):
                        return

    over = threading.Event()
    case.callers(2, think=0.02, leave=True)
    case.go_on(CALM_SECONDS)
    case.beside([read] * 3, over)
    case.go_on(TROUBLE_SECONDS)


def waits_for_news(case: Case) -> None:
    """Threads that tail a capped collection in which nothing happens."""

    def tail() -> None:
        with news.find(cursor_type=CursorType.TAILABLE_AWAIT).max_await_time_ms(1_500) as cursor:
            while not over.is_set():
                with contextlib.suppress(StopIteration, PyMongoError):
                    next(cursor)

    over = threading.Event()
    case.client["shop"].drop_collection("news")
    news = case.client["shop"].create_collection("news", capped=True, size=100_000)
    news.insert_one({})
    case.callers(2, think=0.02)
    case.go_on(CALM_SECONDS)
    case.beside([tail] * 3, over)
    case.go_on(TROUBLE_SECONDS)


def no_trouble_any_more(case: Case) -> None:
    case.callers(2, think=0.02, leave=True)
    case.go_on(1.0)
    cursors = case.leak(3)
    case.go_on(TROUBLE_SECONDS)
    for cursor in cursors:
        cursor.close()
    case.go_on(5.0)


def one_slow_command(case: Case) -> None:
    """Among many that are as quick as ever."""

    def count() -> None:
        while not over.wait(0.02):
            case.client["shop"]["orders"].count_documents({})

    over = threading.Event()
    case.beside([count], over)
    case.callers(4, think=0.01)
    case.go_on(CALM_SECONDS)
    case.slow(300, "aggregate")
    case.go_on(TROUBLE_SECONDS)


def one_forgotten_cursor(case: Case) -> None:
    case.callers(2, think=0.02)
    case.go_on(CALM_SECONDS)
    case.leak(1)
    case.go_on(5.5)


def sleeps_in_a_transaction(case: Case) -> None:
    """Behind a load balancer a transaction keeps its connection, and so does a cursor."""
    case.callers(3, think=0.02, leave=True)
    case.go_on(CALM_SECONDS)
    session = case.stack.enter_context(case.client.start_session())
    case.stack.enter_context(session.start_transaction())
    orders = case.client["shop"]["orders"]
    orders.find_one({}, session=session)
    cursor = case.stack.enter_context(orders.find(batch_size=10))
    next(cursor)
    case.go_on(TROUBLE_SECONDS)


def cold_start(case: Case) -> None:
    case.slow(60)
    case.hesitate()
    case.callers(40, think=0.02)
    case.go_on(TROUBLE_SECONDS)


def storm_after_calm(case: Case) -> None:
    case.slow(60)
    case.callers(2, think=0.02)
    case.go_on(CALM_SECONDS)
    case.hesitate()
    case.callers(40, think=0.02)
    case.go_on(TROUBLE_SECONDS)


def dead_server(case: Case) -> None:
    case.callers(4, think=0.02, leave=True)
    case.go_on(CALM_SECONDS)
    case.server.stop(kill=True)
    wait_for(lambda: case.telemetry.stats().pools[0].up is False)
    case.go_on(TROUBLE_SECONDS)
    case.stack.callback(case.server.start)


def server_that_came_back(case: Case) -> None:
    case.callers(4, think=0.02, leave=True)
    case.go_on(CALM_SECONDS)
    case.server.stop(kill=True)
    wait_for(lambda: case.telemetry.stats().pools[0].up is False)
    case.server.start()
    wait_for(lambda: case.telemetry.stats().pools[0].up is True)
    case.go_on(CALM_SECONDS + TROUBLE_SECONDS)


def few_open_for_many(case: Case) -> None:
    """PyMongo opens two at once, and thirty callers stand behind them for a moment."""
    case.callers(1, think=0.05)
    case.go_on(CALM_SECONDS)
    case.hesitate()
    find = case.client["shop"]["orders"].find_one
    threads = [threading.Thread(target=find) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    case.go_on(1.0)


def hardly_used_connections(case: Case) -> None:
    """Each caller comes when the connection of the last one was closed for idleness."""
    case.callers(2, think=0.15)
    case.go_on(CALM_SECONDS + TROUBLE_SECONDS)


def idle_connections(case: Case) -> None:
    case.callers(2, think=0.02)
    case.go_on(CALM_SECONDS + TROUBLE_SECONDS)


def failing_commands(case: Case) -> None:
    case.callers(4, think=0.02)
    case.go_on(CALM_SECONDS)
    case.failing(errorCode=91)
    case.go_on(TROUBLE_SECONDS)


def failing_slowly(case: Case) -> None:
    """A larger pool would only fail more."""
    case.callers(6, think=0.02)
    case.go_on(CALM_SECONDS)
    case.failing(errorCode=91, blockConnection=True, blockTimeMS=300)
    case.go_on(TROUBLE_SECONDS)


def broken_connections(case: Case) -> None:
    case.callers(4, think=0.02)
    case.go_on(CALM_SECONDS)
    case.failing(closeConnection=True)
    case.go_on(TROUBLE_SECONDS)


def slower_while_undersized(case: Case) -> None:
    case.slow(20)
    case.callers(9)
    case.go_on(CALM_SECONDS + 1.0)
    case.slow(300)
    case.go_on(TROUBLE_SECONDS)


def slower_and_retried(case: Case) -> None:
    case.callers(3, think=0.02)
    case.go_on(CALM_SECONDS)
    case.slow(800)
    case.callers(20)
    case.go_on(TROUBLE_SECONDS)


def impatient_callers(case: Case) -> None:
    """A caller that times out retries at once."""
    case.slow(20)
    case.callers(30, think=0.4)
    case.go_on(CALM_SECONDS)
    case.leak(2)
    case.callers(40)
    case.go_on(TROUBLE_SECONDS)


def leak_and_slow(case: Case) -> None:
    case.callers(6, think=0.05)
    case.go_on(CALM_SECONDS)
    case.leak(2)
    case.slow(500)
    case.go_on(TROUBLE_SECONDS)


def leak_and_hanging(case: Case) -> None:
    case.callers(4, think=0.02)
    case.go_on(CALM_SECONDS)
    case.leak(1)
    case.slow(4_000)
    case.go_on(3.5)
    case.stack.callback(case.client.close)


def more_callers_and_slower(case: Case) -> None:
    case.slow(20)
    case.arrivals(20)
    case.go_on(CALM_SECONDS)
    case.arrivals(300)
    case.slow(100)
    case.go_on(TROUBLE_SECONDS)


AsyncClient = AsyncMongoClient[dict[str, Any]]
Task = Callable[[AsyncClient, threading.Event], Coroutine[Any, Any, None]]


def run_tasks(case: Case, task: Task, count: int) -> None:
    """So many tasks run beside from now on, with an asynchronous client of the scenario."""

    async def play() -> None:
        async with AsyncClient(
            case.server.uri,
            appName=case.app_name,
            event_listeners=case.telemetry.listeners,
            **case.options,
        ) as client:
            await asyncio.gather(*(task(client, over) for _ in range(count)))

    over = threading.Event()
    case.beside([lambda: asyncio.run(play())], over)


async def impatient(client: AsyncClient, over: threading.Event) -> None:
    """Give up after half a second, again and again."""
    while not over.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await client["shop"]["orders"].find_one()
        await asyncio.sleep(0.05)


async def hanging_up(client: AsyncClient, over: threading.Event) -> None:
    """Find again and again; two of three requests are cancelled in the middle of it."""
    for number in itertools.count():
        if over.is_set():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02 if number % 3 else None):
                await client["shop"]["orders"].find_one()
        await asyncio.sleep(0.02)


def callers_who_hang_up(case: Case) -> None:
    """Tasks that give up on a server that hangs: each cancels its command, and none has an error.

    That is no connection storm, though each cancelled command costs a connection.
    """
    run_tasks(case, impatient, 8)
    case.go_on(CALM_SECONDS)
    case.slow(3_000)
    case.go_on(TROUBLE_SECONDS)


def no_server_fits(case: Case) -> None:
    """Readers want a secondary, and the set has none."""

    def read() -> None:
        orders = case.client["shop"].get_collection("orders", read_preference=Secondary())
        while not over.is_set():
            with contextlib.suppress(PyMongoError):
                orders.find_one()

    case.callers(2, think=0.02)
    case.go_on(CALM_SECONDS)
    over = threading.Event()
    case.beside([read] * 4, over)
    case.go_on(4.0)


def no_primary(case: Case) -> None:
    assert isinstance(case.proxy, Demoted)
    case.callers(4, think=0.02, leave=True)
    case.go_on(CALM_SECONDS)
    case.proxy.demoted = True
    wait_for(lambda: case.telemetry.stats().lacks_primary)
    case.go_on(4.0)


def stalled_handshakes(case: Case) -> None:
    """Every new connection hangs; heartbeats have connections of their own."""
    assert case.proxy
    case.go_on(CALM_SECONDS)
    case.proxy.hesitate(20.0)
    case.callers(5)
    case.go_on(5.0)
    case.stack.callback(case.proxy.cut)
    case.stack.callback(case.proxy.hesitate, 0.0)


def driver_stands_still(case: Case) -> None:
    """A call without await stops the event loop, and the client's monitors with it."""

    async def play() -> None:
        async with AsyncMongoClient[dict[str, Any]](
            case.server.uri,
            event_listeners=case.telemetry.listeners,
            heartbeatFrequencyMS=500,
            connectTimeoutMS=1_000,
        ) as client:
            case.telemetry.attach(client)
            started = time.monotonic()
            while time.monotonic() - started < CALM_SECONDS:
                await client["shop"]["orders"].find_one()
                await asyncio.sleep(0.02)
            over.wait()

    over = threading.Event()
    case.beside([lambda: asyncio.run(play())], over)
    case.go_on(CALM_SECONDS + 8.0)


def lost_pool(case: Case) -> None:
    """PyMongo counts slots that nobody holds, as 4.18.3 does after greenlets were killed."""
    case.callers(2, think=0.02, leave=True)
    case.go_on(CALM_SECONDS)
    pool = pool_of(case.client)
    with pool.lock:
        pool.requests += case.client.options.pool_options.max_pool_size
    case.callers(6, leave=True)
    case.go_on(5.0)
    case.stack.callback(case.client.close)


def frozen_process(case: Case) -> None:
    """The process is stopped for some seconds, with commands in flight."""
    case.slow(50)
    case.callers(4, think=0.02)
    case.go_on(CALM_SECONDS)
    frozen = case.telemetry.stats().stood_still
    code = (
        "import os, signal, sys, time; pid = int(sys.argv[1]); os.kill(pid, signal.SIGSTOP); "
        "time.sleep(5); os.kill(pid, signal.SIGCONT)"
    )
    subprocess.run([sys.executable, "-c", code, str(os.getpid())], check=True)
    wait_for(lambda: case.telemetry.stats().stood_still > frozen)
    case.go_on(TROUBLE_SECONDS)


def clients_that_hang_up(case: Case) -> None:
    """The server is as quick as ever, and most callers do not wait for its answer."""
    case.slow(40)
    run_tasks(case, hanging_up, 8)
    case.go_on(CALM_SECONDS + TROUBLE_SECONDS)


def a_handshake_for_each_request(case: Case) -> None:
    """Seldom, and yet each caller opens a connection."""
    case.callers(1, think=0.6)
    case.go_on(9.0)


def deadlines_while_opening(case: Case) -> None:
    """Callers whose own deadline ends before a connection is open for them."""

    def find() -> None:
        while not over.wait(0.02):
            with contextlib.suppress(PyMongoError), pymongo.timeout(0.25):
                case.client["shop"]["orders"].find_one()

    over = threading.Event()
    case.slow(60)
    case.callers(1)
    case.go_on(CALM_SECONDS)
    case.hesitate()
    case.beside([find] * 8, over)
    case.go_on(TROUBLE_SECONDS)


def quiet_change_streams(case: Case) -> None:
    """Nothing happens in what three threads tail, and meanwhile a find returns each second."""

    def tail() -> None:
        with (
            contextlib.suppress(PyMongoError),
            news.find(cursor_type=CursorType.TAILABLE_AWAIT).max_await_time_ms(90_000) as cursor,
        ):
            while not over.is_set():
                with contextlib.suppress(StopIteration):
                    next(cursor)

    over = threading.Event()
    case.client["shop"].drop_collection("news")
    news = case.client["shop"].create_collection("news", capped=True, size=100_000)
    news.insert_one({})
    case.callers(1, think=1.0)
    case.beside([tail] * 3, over)
    case.stack.callback(news.insert_one, {})
    case.go_on(11.0)


def steady_long_commands(case: Case) -> None:
    """Each takes seconds, as ever, and there are connections for all."""
    case.slow(3_000)
    case.callers(8)
    case.go_on(11.0)


def overloaded_server(case: Case) -> None:
    """It refuses what it can't bear, and asks to try again later."""
    case.callers(4, think=0.02)
    case.go_on(CALM_SECONDS)
    case.failing(errorCode=462, errorLabels=["SystemOverloadedError", "RetryableError"])
    case.go_on(TROUBLE_SECONDS)


def client_per_request(case: Case) -> None:
    """Each request makes a client of its own, and closes it, beside the one that is shared."""
    case.callers(2, think=0.02)
    case.go_on(CALM_SECONDS)
    for _ in range(40):
        listeners = PoolTelemetry().listeners
        with Client(case.server.uri, appName=case.app_name, event_listeners=listeners) as client:
            client["shop"]["orders"].find_one()


def deadlock(case: Case) -> None:
    """Threads that each keep a connection, and wait for one more."""

    def nested() -> None:
        orders = case.client["shop"]["orders"]
        with orders.find(cursor_type=CursorType.EXHAUST, batch_size=10) as cursor:
            cursors.append(cursor)
            next(cursor)
            all_hold.wait()
            orders.find_one()

    cursors, all_hold, over = list[Any](), threading.Barrier(4), threading.Event()
    case.callers(2, think=0.02)
    case.go_on(CALM_SECONDS)
    case.beside([nested] * 4, over)
    case.go_on(TROUBLE_SECONDS)
    case.stack.callback(lambda: cursors[0].close())  # the others follow


SCENARIOS = (
    Scenario("calm", "healthy", calm, {"maxPoolSize": 10}),
    Scenario("busy", "healthy", busy, {"maxPoolSize": 5}),
    Scenario("too many callers", "undersized", too_many_callers, {"maxPoolSize": 5}),
    Scenario(
        "too many arrivals",
        "undersized",
        too_many_arrivals,
        {"maxPoolSize": 4, "waitQueueTimeoutMS": 500},
    ),
    Scenario("a burst", "undersized", a_burst, {"maxPoolSize": 4}),
    Scenario("slow server", "slow operations", slow_server, {"maxPoolSize": 3}),
    Scenario("slow server, room left", "slow operations", slow_server, {"maxPoolSize": 50}),
    Scenario("slow from the start", "slow operations", slow_from_the_start, {"maxPoolSize": 3}),
    Scenario(
        "hanging server",
        "slow operations",
        hanging_server,
        {"maxPoolSize": 3, "waitQueueTimeoutMS": 1_000},
    ),
    Scenario(
        "forgotten cursors",
        "leak",
        forgotten_cursors,
        {"maxPoolSize": 4, "waitQueueTimeoutMS": 500},
    ),
    Scenario(
        "slow readers",
        "undersized",
        slow_readers,
        {"maxPoolSize": 3, "waitQueueTimeoutMS": 500},
        maybe=frozenset({"retry storm"}),
    ),
    Scenario("waits for news", "undersized", waits_for_news, {"maxPoolSize": 3}),
    Scenario("cursors of busy threads", "leak", forgotten_by_who_goes_on, {"maxPoolSize": 10}),
    Scenario(
        "no trouble any more",
        "healthy",
        no_trouble_any_more,
        {"maxPoolSize": 3},
        also=frozenset({"leak"}),
    ),
    Scenario("one slow command", "slow operations", one_slow_command, {"maxPoolSize": 20}),
    Scenario("one forgotten cursor", "leak", one_forgotten_cursor, {"maxPoolSize": 10}),
    Scenario(
        "sleeps in a transaction",
        "leak",
        sleeps_in_a_transaction,
        {"maxPoolSize": 2, "waitQueueTimeoutMS": 500},
        behind=Balancer,
    ),
    Scenario("cold start", "connection storm", cold_start, {"maxPoolSize": 50}, behind=Proxy),
    Scenario(
        "storm after calm",
        "connection storm",
        storm_after_calm,
        {"maxPoolSize": 100},
        behind=Proxy,
    ),
    Scenario(
        "few open for many",
        "connection storm",
        few_open_for_many,
        {"maxPoolSize": 60},
        behind=Proxy,
    ),
    Scenario(
        "hardly used connections",
        "connection storm",
        hardly_used_connections,
        {"maxPoolSize": 10, "maxIdleTimeMS": 50},
    ),
    Scenario("dead server", "server unreachable", dead_server, {"maxPoolSize": 5}),
    Scenario(
        "server that came back",
        "healthy",
        server_that_came_back,
        {"maxPoolSize": 5},
        also=frozenset({"server unreachable"}),
    ),
    Scenario("idle connections", "oversized", idle_connections, {"minPoolSize": 30}),
    Scenario("failing commands", "retry storm", failing_commands, {"maxPoolSize": 10}),
    Scenario("failing slowly", "retry storm", failing_slowly, {"maxPoolSize": 4}),
    Scenario("broken connections", "retry storm", broken_connections, {"maxPoolSize": 10}),
    Scenario(
        "leak and slow",
        "leak",
        leak_and_slow,
        {"maxPoolSize": 4},
        also=frozenset({"slow operations"}),
    ),
    Scenario(
        "leak and hanging server",
        "leak",
        leak_and_hanging,
        {"maxPoolSize": 3},
        also=frozenset({"slow operations"}),
    ),
    Scenario(
        "more callers, and slower",
        "slow operations",
        more_callers_and_slower,
        {"maxPoolSize": 3},
        also=frozenset({"undersized"}),
    ),
    Scenario(
        "slower while undersized",
        "slow operations",
        slower_while_undersized,
        {"maxPoolSize": 3},
        also=frozenset({"undersized"}),
    ),
    Scenario(
        "slower, and retried",
        "slow operations",
        slower_and_retried,
        {"maxPoolSize": 4, "waitQueueTimeoutMS": 100},
        also=frozenset({"retry storm"}),
    ),
    Scenario(
        "impatient callers",
        "leak",
        impatient_callers,
        {"maxPoolSize": 3, "waitQueueTimeoutMS": 20},
        also=frozenset({"retry storm"}),
        maybe=frozenset({"undersized"}),
    ),
    Scenario("no server fits", "no server fits", no_server_fits, {"maxPoolSize": 10}),
    Scenario("no primary", "no server fits", no_primary, {"maxPoolSize": 10}, behind=Demoted),
    Scenario(
        "stalled handshakes",
        "handshakes stall",
        stalled_handshakes,
        {"maxPoolSize": 10, "maxIdleTimeMS": 500},
        behind=Proxy,
    ),
    Scenario("driver stands still", "driver stands still", driver_stands_still, asynchronous=True),
    Scenario("lost pool", "lost pool", lost_pool, {"maxPoolSize": 4, "waitQueueTimeoutMS": 800}),
    Scenario("frozen process", "healthy", frozen_process, {"maxPoolSize": 10}),
    Scenario(
        "callers who hang up",
        "slow operations",
        callers_who_hang_up,
        {"maxPoolSize": 5},
        asynchronous=True,
    ),
    Scenario(
        "clients that hang up",
        "callers hang up",
        clients_that_hang_up,
        {"maxPoolSize": 20},
        asynchronous=True,
    ),
    Scenario(
        "clients that hang up, small pool",
        "callers hang up",
        clients_that_hang_up,
        {"maxPoolSize": 6},
        maybe=frozenset({"undersized"}),
        asynchronous=True,
    ),
    Scenario(
        "a handshake for each request",
        "connection storm",
        a_handshake_for_each_request,
        {"maxIdleTimeMS": 100},
    ),
    Scenario(
        "kept open, and closed",
        "connection storm",
        a_handshake_for_each_request,
        {"minPoolSize": 5, "maxIdleTimeMS": 100},
    ),
    Scenario(
        "deadlines while opening",
        "connection storm",
        deadlines_while_opening,
        {"maxPoolSize": 10},
        behind=Proxy,
    ),
    Scenario("quiet change streams", "healthy", quiet_change_streams, {"maxPoolSize": 10}),
    Scenario("steady long commands", "healthy", steady_long_commands, {"maxPoolSize": 50}),
    Scenario("overloaded server", "retry storm", overloaded_server, {"maxPoolSize": 10}),
    Scenario("deadlock", "deadlock", deadlock, {"maxPoolSize": 4}),
    Scenario("client per request", "client per request", client_per_request),
)
