"""An actor's place: whether it is in PyMongo's pool code, read from its frames."""

import asyncio
import contextlib
import runpy
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient

from pool_telemetry.state.actor import (
    Actor,
    ThreadActor,
    current_actor,
    may_hold,
    names_of,
)
from pool_telemetry.state.frames import FEW, stack_of, still_in_pool
from tests.support import Noop, aexhausted, drivers, exhausted, until, wait_for


def test_a_thread_is_its_own_actor() -> None:
    assert ident_of(current_actor()) == threading.get_ident()
    assert current_actor() is current_actor()


def test_ended_thread_is_not_confused_with_the_thread_that_reuses_its_identifier() -> None:
    """CPython gives an identifier again as soon as it is free."""
    actors = dict[int, Actor]()
    again = list[tuple[Actor, Actor]]()

    def look() -> None:
        me, ident = current_actor(), threading.get_ident()
        if ident in actors:
            again.append((actors[ident], me))
            assert still_in_pool([actors[ident]]) == set()
            assert stack_of(actors[ident]) == []
            assert stack_of(me)
        actors[ident] = me

    for number in range(100):
        thread = threading.Thread(target=look, name=f"one-{number}")
        thread.start()
        thread.join()
    assert again
    for ended, other in again:
        assert ended != other
    names = names_of([*actors.values(), current_actor()])
    assert names.pop(current_actor()) == threading.current_thread().name
    assert all(name.startswith("one-") and name.endswith(" (ended)") for name in names.values())
    assert {ident_of(actor) for actor in actors.values()} == {None}


Serve = Callable[[Callable[[], object]], object]


@pytest.fixture
def functions(tmp_path: Path) -> dict[str, Serve]:
    """Functions of an application and of installed packages; each calls what it is given."""
    found = dict[str, Serve]()
    for name, folder in (
        ("application", "app"),
        ("framework", "lib/site-packages"),
        ("system", "lib/dist-packages"),
    ):
        path = tmp_path / folder / f"{name}.py"
        path.parent.mkdir(parents=True)
        path.write_text(f"def {name}(call):\n    return call()\n")
        found[name] = runpy.run_path(str(path), run_name=name)[name]
    return found


@pytest.mark.parametrize(
    ("calls", "shown"),
    [
        (("framework", "application", "system"), ["application"]),
        (("application", "application"), ["application", "application"]),
        (("framework", "system"), ["framework", "system"]),  # an application that is installed
    ],
)
def test_a_stack_has_the_frames_of_the_application_where_it_has_any(
    functions: dict[str, Serve], calls: tuple[str, ...], shown: list[str]
) -> None:
    with waiting_thread(*(functions[name] for name in calls)) as actor:
        wait_for(lambda: places(actor) == shown, f"the frames of {shown}")


def test_a_stack_of_the_standard_library_alone_is_short() -> None:
    with waiting_thread() as actor:
        wait_for(lambda: places(actor)[-1:] == ["Condition.wait"])
        assert len(places(actor)) <= FEW


def places(actor: Actor) -> list[str]:
    """Return the functions in a stack."""
    return [frame.partition(" in ")[2] for frame in stack_of(actor)]


@contextlib.contextmanager
def waiting_thread(*outward: Serve) -> Iterator[ThreadActor]:
    """Yield the actor of a thread that waits in these functions, the outermost first."""
    done = threading.Event()
    call: Callable[[], object] = done.wait
    for function in reversed(outward):
        call = partial(function, call)
    thread = threading.Thread(target=call)
    thread.start()
    try:
        actor = ThreadActor()
        actor._thread = weakref.ref(thread)
        yield actor
    finally:
        done.set()
        thread.join()


def ident_of(actor: Actor) -> int | None:
    assert isinstance(actor, ThreadActor)
    return actor.ident


def test_a_task_is_its_own_actor_and_not_kept_alive() -> None:
    async def who() -> Actor:
        return current_actor()

    async def main() -> None:
        task = asyncio.create_task(who())
        actor = await task
        assert actor != current_actor()
        assert isinstance(actor, weakref.ref)
        assert actor() is task
        assert current_actor() is current_actor()
        del task
        await asyncio.sleep(0)
        assert actor() is None

    asyncio.run(main())


def test_a_callback_on_the_loop_is_the_thread() -> None:
    async def main() -> Actor:
        told: asyncio.Future[Actor] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: told.set_result(current_actor()))
        return await told

    assert asyncio.run(main()) is current_actor()


def test_threads_in_the_wait_queue_are_distinguished_from_threads_elsewhere(
    server_uri: str,
) -> None:
    client: MongoClient[dict[str, Any]] = MongoClient(server_uri, maxPoolSize=1)
    collection = client["actors"]["frames"]
    collection.find_one()
    go_on = threading.Event()
    actors = dict[str, Actor]()

    def find() -> None:
        actors[threading.current_thread().name] = current_actor()
        collection.find_one()

    def left() -> None:
        actors["left"] = current_actor()
        go_on.wait()

    with contextlib.ExitStack() as held:
        held.enter_context(exhausted(client))
        queue = [threading.Thread(target=find) for _ in range(3)]
        elsewhere = threading.Thread(target=left)
        for thread in (*queue, elsewhere):
            thread.start()
        wait_for(lambda: drivers(client).waiting == 3)
        wait_for(lambda: len(actors) == 4)
        assert still_in_pool(actors.values()) == {actors[thread.name] for thread in queue}
        go_on.set()
        held.close()
        for thread in (*queue, elsewhere):
            thread.join()
    assert still_in_pool(actors.values()) == set()
    client.close()


class _Awaitable:
    """An awaitable of its own, as libraries for retries have."""

    def __init__(self, inner: Awaitable[Any]) -> None:
        self._inner = inner

    def __await__(self) -> Generator[Any, None, Any]:
        return (yield from self._inner.__await__())


class _Opaque:
    """An iterator of its own around one that the garbage collector may not find, either."""

    __slots__ = ("_inner",)

    def __init__(self, inner: Awaitable[Any]) -> None:
        self._inner: dict[str, list[Any]] = {"of": [inner.__await__()]}

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the application's code ran, for {name}")

    def __await__(self) -> Generator[Any, None, Any]:
        return self  # type: ignore[return-value]  # any iterator will do

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._inner["of"][0])

    def throw(self, error: BaseException) -> Any:
        return self._inner["of"][0].throw(error)

    def close(self) -> None:
        self._inner["of"][0].close()


async def through_an_opaque_iterator(find: Callable[[], Awaitable[Any]]) -> None:
    await _Opaque(find())


async def through_a_generator(find: Callable[[], Awaitable[Any]]) -> None:
    async def found() -> AsyncIterator[Any]:
        yield await find()

    async for _ in found():
        pass


async def through_anext(find: Callable[[], Awaitable[Any]]) -> None:
    async def found() -> AsyncIterator[Any]:
        yield await find()

    await anext(found(), None)


async def through_a_wrapper(find: Callable[[], Awaitable[Any]]) -> None:
    await _Awaitable(find())


async def through_a_time_limit(find: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(30):
        await find()


@pytest.mark.parametrize(
    "way",
    [
        *(through_a_generator, through_anext, through_a_wrapper, through_a_time_limit),
        through_an_opaque_iterator,
    ],
)
def test_waiting_task_is_found_through_every_kind_of_awaitable(
    server_uri: str, way: Callable[[Callable[[], Awaitable[Any]]], Awaitable[None]]
) -> None:
    async def main() -> None:
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(server_uri, maxPoolSize=1)
        collection = client["actors"]["chain"]
        left_the_pool = asyncio.Event()
        await collection.find_one()

        async def one() -> None:
            await way(collection.find_one)

        async def swallows() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await one()
            left_the_pool.set()
            await asyncio.Event().wait()

        async with aexhausted(client):
            waits, ghost = asyncio.create_task(one()), asyncio.create_task(swallows())
            await until(lambda: drivers(client).waiting == 2)
            ghost.cancel()
            async with asyncio.timeout(20):
                await left_the_pool.wait()
            actors: dict[str, Actor] = {
                "waits": weakref.ref(waits),
                "ghost": weakref.ref(ghost),
                "reader": current_actor(),
            }
            assert still_in_pool(actors.values()) == {actors["waits"]}
            # The same from a thread, while this task runs: it is not in the pool's code.
            seen = await asyncio.to_thread(still_in_pool, list(actors.values()))
            assert seen == {actors["waits"]}
        await waits
        assert still_in_pool(actors.values()) == set()
        ghost.cancel()
        await asyncio.gather(ghost, return_exceptions=True)
        await client.close()

    asyncio.run(main())


def test_running_task_is_searched_on_its_thread(server_uri: str) -> None:
    # The monitor's thread is in the pool's code all the time, and has nothing to do with it.
    client: MongoClient[dict[str, Any]] = MongoClient(server_uri)
    client.admin.command("ping")

    async def main() -> None:
        told, go_on = threading.Event(), threading.Event()
        me = current_actor()
        seen: list[set[Actor]] = []

        def look() -> None:
            told.wait()
            seen.append(still_in_pool([me]))
            go_on.set()

        thread = threading.Thread(target=look)
        thread.start()
        told.set()
        go_on.wait()  # blocks the loop: the task is running
        thread.join()
        assert seen == [set()]

    asyncio.run(main())
    client.close()


def test_task_that_runs_pool_code_is_in_the_pool(server_uri: str) -> None:
    seen: list[bool] = []

    class Listener(Noop):
        def connection_check_out_started(self, event: Any) -> None:
            actor = current_actor()
            seen.append(still_in_pool([actor]) == {actor})

    async def main() -> None:
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            server_uri, event_listeners=[Listener()]
        )
        await client["actors"]["now"].find_one()
        await client.close()

    asyncio.run(main())
    assert set(seen) == {True}


def test_live_actor_may_hold_a_connection_and_an_ended_one_may_not() -> None:
    async def main() -> None:
        over = asyncio.Event()
        task = asyncio.create_task(over.wait())
        actor: Actor = weakref.ref(task)
        thread = ThreadActor()
        assert may_hold([actor, thread]) == {actor, thread}
        over.set()
        await task
        assert may_hold([actor]) == set()

    asyncio.run(main())


FROZEN = """
import gc, sys, threading, time, weakref
from pool_telemetry.state.frames import still_in_pool

class Cycle:
    pass

def make_garbage():
    one = Cycle()
    one.me = one
    kept.append(weakref.ref(one, lambda _: time.sleep(0)))  # another thread may run now
    del kept[:-100]

def look():
    for _ in range(3_000):
        make_garbage()
        still_in_pool([1])

kept = []
gc.set_threshold(3)
threads = [threading.Thread(target=look) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert gc.isenabled()
"""


def test_inspecting_all_threads_does_not_stop_the_process() -> None:
    """With CPython 3.11.7 a bare sys._current_frames() did in most runs of this."""
    subprocess.run([sys.executable, "-c", FROZEN], check=True, timeout=120)
