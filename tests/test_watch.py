"""The log lines of the watching thread: exhaustions and long checkouts; callbacks and history."""

import asyncio
import contextlib
import itertools
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.cursor import CursorType
from pymongo.uri_parser import parse_uri

from pool_telemetry import PoolTelemetry, TelemetryOptions, owner, watch
from pool_telemetry.state.actor import ThreadActor
from pool_telemetry.state.exhaustion import NOTEWORTHY_SECONDS
from pool_telemetry.stats import Episode
from tests.proxy import Proxy
from tests.support import Gate, aexhausted, logged, the_pool, until, wait_for

Client = MongoClient[dict[str, Any]]
WATCH = "pool_telemetry-watch"


@contextlib.contextmanager
def connected(
    uri: str, telemetry: PoolTelemetry, *further: Gate, **kwargs: Any
) -> Iterator[Client]:
    client = Client(uri, event_listeners=[*telemetry.listeners, *further], **kwargs)
    try:
        client.admin.command("ping")
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def callers(client: Client, count: int, gate: Gate) -> Iterator[None]:
    """Let `count` threads each run one find, whose filter is a secret, until the block ends.

    A gate among the client's listeners holds them up.
    """

    def ask() -> None:
        with owner("checkout-flow"):
            client["shop"]["orders"].find_one({"card": "s3cr3t"})

    threads = [threading.Thread(target=ask, name=f"caller-{n}") for n in range(count)]
    try:
        with gate.shut():
            for thread in threads:
                thread.start()
            yield
    finally:
        for thread in threads:
            thread.join()


def watching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == WATCH]


@pytest.fixture(autouse=True)
def info_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pool_telemetry")


def test_exhaustion_is_logged_at_its_beginning_and_its_end(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    episodes = list[tuple[str, Episode]]()

    async def recovered(episode: Episode) -> None:
        await asyncio.sleep(0)
        episodes.append(("recovered", episode))

    options = TelemetryOptions(
        name="chat",
        on_exhausted=lambda episode: episodes.append(("exhausted", episode)),
        on_recovered=recovered,
    )
    telemetry, gate = PoolTelemetry(options=options), Gate()
    with connected(server_uri, telemetry, gate, maxPoolSize=2, minPoolSize=2) as client:
        wait_for(lambda: the_pool(telemetry).idle == 2)
        with callers(client, 6, gate):
            wait_for(lambda: the_pool(telemetry).waiting == 4)
            wait_for(lambda: logged(caplog, "is exhausted"))
        wait_for(lambda: len(episodes) == 2)
        (pool,) = telemetry.stats().pools
        first, last = (episode for _, episode in episodes)
        assert [kind for kind, _ in episodes] == ["exhausted", "recovered"]
        assert first.pool == f"chat@{pool.address}"
        assert (first.max_size, first.in_use) == (2, 2)
        assert 1 <= first.waiting <= 6
        holder = first.holders[0]
        assert (holder.owner, holder.operation, holder.collection) == (
            ("checkout-flow", "find", "orders")
        )
        assert 4 <= last.peak_waiting == pool.peak_waiting <= 6
        assert last.seconds == pytest.approx(pool.exhausted_time)
        assert last.seconds > NOTEWORTHY_SECONDS
        assert last.timeouts == 0
        (warning,) = logged(caplog, "is exhausted")
        assert f"pool 'chat@{pool.address}' is exhausted: 2 of 2 in use, " in warning
        assert re.search(
            r"; held by caller-\d \(checkout-flow\) for \d+\.\d\d s: find orders; caller-", warning
        )
        (ending,) = logged(caplog, "has recovered")
        assert (
            f"after {last.seconds:.2f} s of exhaustion: at most {last.peak_waiting} waited, "
            "0 checkouts timed out" in ending
        )
        mine = [one.levelname for one in caplog.records if "'chat@" in one.getMessage()]
        assert mine == ["WARNING", "WARNING"]
        assert "s3cr3t" not in caplog.text + str(episodes)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


HOLDER, WAITER = ThreadActor(), ThreadActor()


class Replay:
    """A pool of one connection, with a clock that the test sets."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        given = TelemetryOptions(name="replay", watch=False, **options)
        self.telemetry = PoolTelemetry(options=given, clock=self.clock)
        self.telemetry._on_created(object(), ("db", 27017), 1, 0)
        (self.state,) = self.telemetry.states()
        self.state.ready()
        self.state.heartbeat(up=True)
        self.state._still_waiting = lambda actors: set(actors)  # no caller runs really
        self.state.connection_created(HOLDER, 1)
        self.state.connection_ready(1)

    def check_out(self, actor: ThreadActor = HOLDER) -> None:
        self.state.checkout_started(actor)
        self.state.checked_out(actor, 1, 0.0)

    def exhausted_for(self, seconds: float) -> None:
        self.check_out()
        self.state.checkout_started(WAITER)
        for _ in range(int(seconds / watch.CHECK_SECONDS)):
            self.check()
        self.clock.now += seconds % watch.CHECK_SECONDS
        self.state.checked_in(lambda: HOLDER, 1)
        self.state.checked_out(WAITER, 1, seconds)
        self.state.checked_in(lambda: WAITER, 1)

    def check(self, seconds: float = watch.CHECK_SECONDS) -> None:
        self.clock.now += seconds
        watch.check(self.telemetry)


def test_exhaustions_close_together_are_one(caplog: pytest.LogCaptureFixture) -> None:
    pool = Replay()
    for _ in range(20):
        pool.exhausted_for(0.6)
        pool.check(0.4)
    assert len(logged(caplog, "exhausted")) == 1
    assert logged(caplog, "recovered") == []
    for _ in range(3):
        pool.check()
    (recovered,) = logged(caplog, "recovered")
    assert "after 12.00 s of exhaustion" in recovered


def test_short_exhaustion_is_logged_only_if_a_caller_timed_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = Replay()
    pool.exhausted_for(0.02)
    pool.check()
    assert logged(caplog, "exhausted") == []
    pool.check_out()
    pool.state.checkout_started(WAITER)
    pool.clock.now += 0.02
    pool.state.checkout_failed(WAITER, "timeout")
    pool.state.checked_in(lambda: HOLDER, 1)
    pool.check()
    (warning,) = logged(caplog, "exhausted")
    assert "'replay@db:27017' was exhausted for 0.02 s" in warning
    assert "1 timeouts" in warning


def test_short_exhaustion_during_a_check_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    pool = Replay()
    for _ in range(20):
        pool.check_out()
        pool.clock.now += 0.48
        pool.state.checkout_started(WAITER)
        pool.check(0.02)
        pool.state.checked_in(lambda: HOLDER, 1)
        pool.state.checked_out(WAITER, 1, 0.02)
        pool.state.checked_in(lambda: WAITER, 1)
        pool.check()
    assert pool.telemetry.stats().pools[0].exhausted_time == pytest.approx(0.4)
    assert logged(caplog, "exhausted") == []


def test_pool_without_a_check_in_has_not_recovered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = Replay()
    pool.check_out()
    pool.state.checkout_started(WAITER)
    pool.check()
    pool.state.checkout_failed(WAITER, "timeout")
    for _ in range(20):  # the waiter timed out, and the connection is still in use
        pool.check()
    assert len(logged(caplog, "is exhausted")) == 1
    assert logged(caplog, "recovered") == []
    pool.state.checked_in(lambda: HOLDER, 1)
    pool.check()
    assert len(logged(caplog, "has recovered")) == 1


def test_pool_whose_server_is_down_has_not_recovered(caplog: pytest.LogCaptureFixture) -> None:
    pool = Replay()
    pool.check_out()
    pool.state.checkout_started(WAITER)
    pool.check()
    pool.state.heartbeat(up=False, reason="AutoReconnect")
    pool.state.cleared(pauses=True)
    pool.state.checkout_failed(WAITER, "connection_error")
    pool.state.checked_in(lambda: HOLDER, 1)
    pool.state.connection_closed(1, "stale")
    for _ in range(20):
        pool.check()
    assert len(logged(caplog, "is exhausted")) == 1
    assert logged(caplog, "recovered") == []
    pool.state.heartbeat(up=True)
    pool.state.ready()
    pool.check()
    assert len(logged(caplog, "has recovered")) == 1


def test_unreported_exhaustions_are_summed_up_later(caplog: pytest.LogCaptureFixture) -> None:
    pool = Replay(notice_seconds=30.0)
    for _ in range(3):
        pool.exhausted_for(1.0)
        for _ in range(4):
            pool.check()
    for _ in range(120):
        pool.check()
    (again,) = logged(caplog, "exhausted 2 more times")
    assert "'replay@db:27017' was exhausted 2 more times since the last report, for 2.00 s" in again


def test_exhaustions_of_one_pool_are_logged_at_a_limited_rate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = list[Episode]()
    pool = Replay(notice_seconds=30.0, on_exhausted=calls.append, on_recovered=calls.append)
    for _ in range(4):  # at 0, 10, 20, 30 seconds
        pool.exhausted_for(2.0)
        for _ in range(16):
            pool.check()
    assert len(logged(caplog, "is exhausted")) == len(logged(caplog, "recovered")) == 2
    assert "(exhausted 2 more times since the last report)" in logged(caplog, "is exhausted")[1]
    wait_for(lambda: len(calls) == 4)
    caplog.clear()
    pool.check_out()
    pool.state.checkout_started(WAITER)
    pool.check()
    assert logged(caplog, "exhausted") == []  # too soon after the last report
    for _ in range(60):
        pool.check()
    (warning,) = logged(caplog, "is exhausted")
    assert "the oldest for " in warning


def test_closed_pool_ends_its_exhaustion(caplog: pytest.LogCaptureFixture) -> None:
    pool = Replay()
    pool.check_out()
    pool.state.checkout_started(WAITER)
    pool.check()
    pool.state.closed()
    pool.check()
    assert len(logged(caplog, "was closed after 1.00 s")) == 1


def test_recovery_is_logged_under_the_name_of_the_exhaustion(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client's replacement takes its name over during the exhaustion."""
    pool = Replay()
    pool.check_out()
    pool.state.checkout_started(WAITER)
    pool.check()
    pool.telemetry.name = "replay#2"
    pool.state.closed()
    pool.check()
    assert len(logged(caplog, "pool 'replay@db:27017'")) == 2


def test_failing_or_hanging_callback_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    hangs, calls = threading.Event(), list[Episode]()

    def fails(episode: Episode) -> None:
        raise RuntimeError("the pager is out of order")

    def waits(episode: Episode) -> None:
        calls.append(episode)
        hangs.wait()

    pool = Replay(notice_seconds=0.0, on_exhausted=fails, on_recovered=waits)
    for _ in range(30):
        pool.exhausted_for(1.0)
        for _ in range(3):
            pool.check()
    wait_for(lambda: "the pager is out of order" in caplog.text and len(calls) == 1)
    assert "a callback of pool 'replay@db:27017' does not return" in caplog.text
    hangs.set()
    wait_for(lambda: not pool.telemetry.callbacks._busy)
    assert pool.telemetry.stats().telemetry_errors == 0


def test_cancelled_callback_does_not_prevent_the_next_one(caplog: pytest.LogCaptureFixture) -> None:
    calls = list[str]()

    async def cancelled(_: Episode) -> None:
        raise asyncio.CancelledError

    def leaves(_: Episode) -> None:
        raise SystemExit(3)

    for callback in (cancelled, leaves):
        pool = Replay(notice_seconds=0.0, on_exhausted=callback)
        pool.telemetry.callbacks.call(lambda episode: calls.append(episode.pool), an_episode("a"))
        pool.telemetry.callbacks.call(callback, an_episode("b"))
        wait_for(lambda: "a callback of pool 'b' failed" in caplog.text)
        pool.telemetry.callbacks.call(lambda episode: calls.append(episode.pool), an_episode("c"))
        wait_for(lambda: calls == ["a", "c"])
        calls.clear()
        caplog.clear()


def an_episode(pool: str) -> Episode:
    return Episode(
        pool=pool,
        max_size=1,
        in_use=1,
        waiting=1,
        seconds=1.0,
        peak_waiting=1,
        timeouts=0,
        holders=(),
    )


def test_failing_log_handler_does_not_end_the_watching_thread(server_uri: str) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("the disk is full")

    broken, log = Broken(), logging.getLogger("pool_telemetry")
    log.addHandler(broken)
    try:
        telemetry = PoolTelemetry("logless", options=TelemetryOptions(long_checkout_seconds=0.1))
        gate = Gate()
        with connected(server_uri, telemetry, gate) as client:
            with callers(client, 1, gate):
                wait_for(lambda: telemetry.stats().telemetry_errors)
            (thread,) = watching()
            assert thread.is_alive()
    finally:
        log.removeHandler(broken)


def test_coroutine_runs_on_the_loop_of_its_client(server_uri: str) -> None:
    async def use() -> None:
        loops = list[asyncio.AbstractEventLoop]()

        async def exhausted(_: Episode) -> None:
            loops.append(asyncio.get_running_loop())

        options = TelemetryOptions(on_exhausted=exhausted)
        telemetry = PoolTelemetry(options=options)
        client = AsyncMongoClient[dict[str, Any]](
            server_uri, maxPoolSize=1, event_listeners=telemetry.listeners
        )
        await client.admin.command("ping")
        async with aexhausted(client):
            waiting = asyncio.create_task(client["shop"]["orders"].find_one())
            await until(lambda: loops)
            assert loops == [asyncio.get_running_loop()]
        await waiting
        await client.close()

    asyncio.run(use())


def test_leaked_connection_is_logged_with_the_stack_of_its_holder(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = PoolTelemetry("leaky", options=TelemetryOptions(long_checkout_seconds=0.2))
    done = threading.Event()

    def read_and_forget_to_close(client: Client) -> None:
        find = client["shop"]["orders"].find
        with owner("export"), contextlib.closing(find(cursor_type=CursorType.EXHAUST)) as cursor:
            next(cursor, None)
            done.wait()

    with connected(server_uri, telemetry) as client, contextlib.ExitStack() as at_end:
        at_end.callback(done.set)
        client["shop"]["orders"].insert_many([{"card": "s3cr3t"} for _ in range(200)])
        holder = threading.Thread(target=read_and_forget_to_close, args=(client,), name="exporter")
        holder.start()
        (warning,) = wait_for(lambda: logged(caplog, "is held by"))
        place, _, stack = warning.partition("; now at\n")
        (pool,) = telemetry.stats().pools
        assert (
            f"a connection of pool 'leaky@{pool.address}' is held by exporter (export) for "
            in place
        )
        assert place.endswith(" s: exhaust cursor of find orders")
        # Only the application's frame, of the 6 frames of the thread.
        assert re.fullmatch(rf"  {__file__}:\d+ in \S+\.read_and_forget_to_close", stack)
        assert pool.long_checkouts == 1
        wait_for(lambda: telemetry.stats().pools[0].held_idle == 1)
        done.set()
        holder.join()
        wait_for(lambda: logged(caplog, "was returned after "))
        assert len(logged(caplog, "is held by")) == 1
        levels = {one.levelname for one in caplog.records if "'leaky@" in one.getMessage()}
        assert levels == {"WARNING"}
        assert telemetry.stats().pools[0].held_idle == 0
        client.drop_database("shop")


@pytest.mark.parametrize(
    ("document", "quiet"),
    [
        ({"maxTimeMS": 90_000}, 94.0),  # and its answer may take a while
        ({}, 9.0),
        ({"maxTimeMS": "odd"}, 9.0),
    ],
)
def test_an_awaited_get_more_is_long_only_after_its_await_time(
    document: dict[str, Any], quiet: float, caplog: pytest.LogCaptureFixture
) -> None:
    replay = Replay(long_checkout_seconds=10.0)
    replay.check_out()
    key = (("db", 27017), "shop", "news", "getMore", "", "")
    replay.telemetry.commands.started(1, key, None, HOLDER, document)
    replay.check(quiet)
    (pool,) = replay.telemetry.stats().pools
    assert (pool.long_checkouts, pool.held_idle) == (0, 0)
    assert pool.longest_checkout == pytest.approx(0.0 if quiet > 90.0 else quiet)
    assert not logged(caplog, "is held by")
    replay.check(10.0)
    (pool,) = replay.telemetry.stats().pools
    assert pool.long_checkouts == 1
    assert pool.longest_checkout == pytest.approx(quiet + 10.0)
    (line,) = logged(caplog, "is held by")
    assert ": getMore news; now" in line


def test_stack_of_a_holder_that_uses_another_connection_says_so(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The holder's stack is then not that of the checkout."""
    telemetry = PoolTelemetry(options=TelemetryOptions(long_checkout_seconds=0.3))
    with connected(server_uri, telemetry) as client:
        orders = client["shop"]["orders"]
        orders.insert_many([{} for _ in range(200)])
        with orders.find(cursor_type=CursorType.EXHAUST, batch_size=10) as cursor:
            next(cursor)
            orders.count_documents({})
            (warning,) = wait_for(lambda: logged(caplog, "is held by"))
        assert "; now, with another connection in use or waited for, at\n" in warning
        wait_for(lambda: logged(caplog, " that MainThread held was returned after "))
        client.drop_database("shop")


def test_stack_of_a_task_is_logged(server_uri: str, caplog: pytest.LogCaptureFixture) -> None:
    telemetry = PoolTelemetry(options=TelemetryOptions(long_checkout_seconds=0.2))

    async def look_it_up(client: AsyncMongoClient[dict[str, Any]]) -> AsyncIterator[Any]:
        yield await client["shop"]["orders"].find_one({"card": "s3cr3t"})

    async def show(client: AsyncMongoClient[dict[str, Any]]) -> None:
        async for _ in look_it_up(client):
            pass

    async def use(proxy: Proxy) -> None:
        client = AsyncMongoClient[dict[str, Any]](proxy.uri, event_listeners=telemetry.listeners)
        await client.admin.command("ping")
        proxy.freeze()
        task = asyncio.create_task(show(client), name="page")
        await until(lambda: logged(caplog, "is held by"))
        proxy.thaw()
        await task
        await client.close()

    with Proxy(parse_uri(server_uri)["nodelist"][0][1]) as proxy:
        asyncio.run(use(proxy))
    (warning,) = logged(caplog, "is held by")
    assert re.search(r" is held by page for \d+\.\d\d s: find orders; now at\n", warning)
    assert re.search(r"show\n.*look_it_up$", warning)
    assert "s3cr3t" not in warning


def test_long_checkouts_at_one_place_share_a_log_line(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = TelemetryOptions(long_checkout_seconds=0.1)
    telemetry, gate = PoolTelemetry("folded", options=options), Gate()

    def returned() -> int:
        others = logged(caplog, "more long-held connections")
        return len(logged(caplog, " was returned after ")) + sum(
            int(one.split()[0]) for one in others
        )

    with connected(server_uri, telemetry, gate, minPoolSize=12) as client:
        wait_for(lambda: the_pool(telemetry).idle == 12)  # so that all checkouts begin at once
        with callers(client, 12, gate):
            wait_for(lambda: the_pool(telemetry).long_checkouts == 12)
        wait_for(lambda: returned() == 12)
    assert len(logged(caplog, " was returned after ")) <= 2 * watch.TOP_HOLDERS
    folded = logged(caplog, " held by ")
    # A check may fall between the beginnings of the twelve.
    assert 1 <= len(folded) <= 2
    for warning in folded:
        frames = warning.partition(" at\n")[2].splitlines()
        assert re.fullmatch(rf"  {__file__}:\d+ in callers\.<locals>\.ask", frames[0])
        assert len(frames) <= 3  # the gate's own; no frame of PyMongo or the standard library
    counts = [re.match(r"(\d+|a) connections? of pool 'folded@", one) for one in folded]
    assert sum(1 if one[1] == "a" else int(one[1]) for one in counts if one) == 12
    named = re.findall(r"caller-\d+ \(checkout-flow\) for \d+\.\d\d s: find orders", folded[0])
    assert 1 <= len(named) <= watch.TOP_HOLDERS
    assert re.search(r"; \d+ more; now at\n", max(folded, key=len))


def test_one_thread_watches_and_ends_with_the_last_client(server_uri: str) -> None:
    wait_for(lambda: not watching())
    with connected(server_uri, PoolTelemetry(options=TelemetryOptions(watch=False))):
        assert not watching()
    with connected(server_uri, PoolTelemetry()), connected(server_uri, PoolTelemetry()):
        (thread,) = watching()
        assert thread.daemon
    wait_for(lambda: not watching())
    with connected(server_uri, PoolTelemetry()):  # the thread starts again
        assert len(watching()) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:UserWarning")
def test_forked_child_has_a_watching_thread_of_its_own(server_uri: str) -> None:
    telemetry = PoolTelemetry("forked")
    with connected(server_uri, telemetry) as client:
        assert len(watching()) == 1
        child = os.fork()
        if child == 0:
            idle = len(watching())
            client.admin.command("ping")
            os._exit(0 if (idle, len(watching())) == (0, 1) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(watching()) == 1


def test_history_is_kept_while_it_is_watched() -> None:
    """It has five minutes of samples: one each second of the last ten, else one each five."""
    pool = Replay()
    for _ in range(1_000):
        pool.check()
    history = pool.telemetry.history()
    ages = [history[-1].at - one.at for one in history]
    assert ages[0] == pytest.approx(300.0, abs=5.0)
    assert ages[-11:] == pytest.approx(range(10, -1, -1))
    apart = [before - after for before, after in itertools.pairwise(ages[:-11])]
    assert apart == pytest.approx([5.0] * len(apart))
    assert len(history) < 75


def test_history_has_the_beginning_of_each_exhaustion() -> None:
    pool = Replay()
    for _ in range(600):
        pool.exhausted_for(0.6)
        for _ in range(3):
            pool.check()
    history = pool.telemetry.history()
    assert 115 < len(history) <= 121  # at most as many samples as are kept
    assert sum(one.pools[0].exhausted for one in history) >= 60
    assert history[-1].at - history[0].at > 150.0


def test_history_keeps_only_the_beginning_of_a_flickering_exhaustion() -> None:
    """Otherwise such an exhaustion would push the time before it out of the history."""
    pool = Replay()
    for _ in range(400):
        pool.exhausted_for(0.6)
        pool.check(0.4)
    (last,) = pool.telemetry.stats().pools
    assert last.exhaustions == 1
    history = pool.telemetry.history()
    assert len(history) < 75
    assert history[-1].at - history[0].at == pytest.approx(300.0, abs=6.0)
