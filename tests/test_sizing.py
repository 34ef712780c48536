"""The queue that sizes are read from: against a simulation, and against a real server."""

import contextlib
import heapq
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pymongo import MongoClient

from pool_telemetry import PoolTelemetry
from pool_telemetry.diagnosis.queueing import (
    Load,
    candidate_sizes,
    erlang_c,
    predict,
    recommend_size,
)
from pool_telemetry.diagnosis.thresholds import TARGET_WAIT_PROBABILITY
from pool_telemetry.state.histogram import POOL_BOUNDS, Histogram
from pool_telemetry.stats import HistogramStats
from tests.support import Noop, slow, unmeasured, wait_for

Draw = Callable[[random.Random], float]
TOLERANCE = 0.25
SERVED = 2  # the seed of the times for which they are served

USES: dict[str, Draw] = {
    "constant": lambda chance: 0.052,
    "even": lambda chance: chance.uniform(0.01, 0.06),
    "exponential": lambda chance: chance.expovariate(20.0),
    "quick and slow": lambda chance: 0.002 if chance.random() < 0.7 else 0.08,
    "lognormal": lambda chance: chance.lognormvariate(-4.0, 1.0),
}


def seen(draw: Draw, count: int = 50_000) -> HistogramStats:
    """Return what a pool would have measured: buckets, not durations."""
    histogram, chance = Histogram(POOL_BOUNDS), random.Random(1)
    for _ in range(count):
        histogram.observe(draw(chance))
    return histogram.stats()


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    chance, at, found = random.Random(seed), 0.0, list[float]()
    while (at := at + chance.expovariate(rate)) < seconds:
        found.append(at)
    return found


def simulate(come: list[float], draw: Draw, size: int) -> list[float]:
    """Return the wait of each caller, sorted: first come, first served."""
    chance, free = random.Random(SERVED), [0.0] * size
    waits = list[float]()
    for at in come:
        begins = max(at, heapq.heappop(free))
        heapq.heappush(free, begins + draw(chance))
        waits.append(begins - at)
    return sorted(waits)


def p95(waits: list[float]) -> float:
    return waits[int(0.95 * len(waits))]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("size", "busy"), [(1, 0.6), (2, 0.8), (4, 0.7), (10, 0.8), (20, 0.9)])
@unmeasured()
def test_the_predicted_wait_is_that_of_a_simulation(use: str, size: int, busy: float) -> None:
    histogram = seen(USES[use])
    load = Load.from_histogram(busy * size / (histogram.mean or 0.0), histogram)
    waits = simulate(arrivals(load.rate, 200_000 / load.rate, seed=3), USES[use], size)
    predicted = predict(load, size)
    assert predicted.utilization == pytest.approx(busy)
    assert predicted.p95 == pytest.approx(p95(waits), rel=TOLERANCE)
    assert predicted.mean == pytest.approx(statistics.mean(waits), rel=TOLERANCE)
    assert predicted.waiting_share == pytest.approx(
        sum(wait > 0.0 for wait in waits) / len(waits), rel=TOLERANCE
    )


def test_erlangs_c_is_erlangs() -> None:
    """Against the sum that defines it, and where that would overflow."""
    for size, offered in ((1, 0.5), (5, 3.0), (10, 9.9), (50, 20.0)):
        tail = offered**size / math.factorial(size) * size / (size - offered)
        below = sum(offered**k / math.factorial(k) for k in range(size))
        assert erlang_c(size, offered) == pytest.approx(tail / (below + tail))
    assert erlang_c(3, 3.0) == erlang_c(3, 4.0) == 1.0
    assert 0.0 < erlang_c(2_000, 1_950.0) < 1.0
    assert erlang_c(10, 0.0) == 0.0


@pytest.mark.parametrize("offered", [0.01, 0.5, 2.0, 8.0, 40.0, 400.0])
def test_the_recommended_size_is_the_smallest_that_will_do(offered: float) -> None:
    load = Load.exponential(offered / 0.02, 0.02)
    size = recommend_size(load)
    assert predict(load, size).p95 == 0.0
    assert predict(load, size).waiting_share <= TARGET_WAIT_PROBABILITY
    assert size == 1 or predict(load, size - 1).waiting_share > TARGET_WAIT_PROBABILITY
    if size > 3:  # and 30 % less makes callers wait
        assert predict(load, math.floor(0.7 * size)).waiting_share > 2 * TARGET_WAIT_PROBABILITY
    sizes = candidate_sizes(load, 7)
    assert sizes == sorted(set(sizes))
    assert {7, size} <= set(sizes)


def test_a_load_keeps_the_mean_that_was_measured() -> None:
    for draw in USES.values():
        histogram = seen(draw)
        load = Load.from_histogram(100.0, histogram)
        assert load.use_seconds == pytest.approx(histogram.mean)
        assert sum(share for *_, share in load.use) == pytest.approx(1.0)
        assert load.connections == pytest.approx(100.0 * (histogram.mean or 0.0))
    # All beyond the last bound, all at zero: the mean is kept there, too.
    for seconds in (30.0, 0.0):
        histogram = seen(lambda _, s=seconds: s, 10)  # type: ignore[misc]  # a default
        assert Load.from_histogram(1.0, histogram).use_seconds == pytest.approx(seconds)


def test_load_beyond_the_capacity_waits_without_end() -> None:
    load = Load.exponential(100.0, 0.05)
    for size in (1, 5):
        wait = predict(load, size)
        assert (wait.waiting_share, wait.p95) == (1.0, math.inf)
    assert predict(load, 6).p95 < math.inf
    full = predict(Load.exponential(200.0, 0.02), 4)  # sums up to a hair below 4
    assert (full.waiting_share, full.p95) == (1.0, math.inf)
    with pytest.raises(ValueError, match="1 to 100000 connections, not 0"):
        predict(load, 0)


# Against a real server, by `make test-load`

APP = "sized"


class Waits(Noop):
    """Keeps every wait, as PyMongo measured it."""

    def __init__(self) -> None:
        self.seconds = list[float]()

    def connection_checked_out(self, event: Any) -> None:
        self.seconds.append(event.duration)


@contextlib.contextmanager
def pool_of(
    uri: str, size: int, *listeners: Any
) -> Iterator[tuple[MongoClient[dict[str, Any]], PoolTelemetry]]:
    telemetry = PoolTelemetry()
    client = MongoClient[dict[str, Any]](
        uri,
        maxPoolSize=size,
        minPoolSize=size,
        appName=APP,
        event_listeners=[*telemetry.listeners, *listeners],
    )
    try:
        client.admin.command("ping")
        wait_for(lambda: telemetry.stats().pools[0].idle == size)
        yield client, telemetry
    finally:
        client.close()


def offer(come: list[float], ask: Callable[[int], object]) -> None:
    """Let callers come at these moments, whatever becomes of those before them."""
    with ThreadPoolExecutor(200) as threads:
        for _ in threads.map(lambda _: time.sleep(0.2), range(200)):
            pass  # every thread is there now
        began = time.monotonic()
        for number, at in enumerate(come):
            time.sleep(max(0.0, began + at - time.monotonic()))
            threads.submit(ask, number)


def typical(rate: float, seconds: float, draw: Draw, size: int) -> list[float]:
    """Return a trace of arrivals whose simulated p95 is that of the long run.

    Some hundred waits of a queue hang together: two runs of ten seconds differ by half. And so that
    it is on slower machines, too, where each is served for a little longer.
    """

    def slower(by: float) -> Draw:
        return lambda chance: draw(chance) * by

    def odd(trace: list[float]) -> float:
        return max(abs(p95(simulate(trace, slower(by), size)) / p - 1.0) for by, p in known)

    long = arrivals(rate, 200 * seconds, seed=0)
    known = [(by, p95(simulate(long, slower(by), size))) for by in (0.98, 1.0, 1.03, 1.06)]
    traces = (arrivals(rate, seconds, seed) for seed in range(1, 200))
    alike = (one for one in traces if abs(len(one) - rate * seconds) < 0.02 * rate * seconds)
    return min(alike, key=odd)


@pytest.mark.load
@pytest.mark.parametrize(
    ("size", "milliseconds", "slow_share", "busy"),
    [
        (2, 60, 1.0, 0.6),
        (4, 60, 1.0, 0.75),
        (3, 120, 0.4, 0.7),
        (8, 100, 1.0, 0.8),
        (12, 160, 1.0, 0.8),
    ],
)
def test_the_predicted_wait_is_that_of_a_real_pool(
    server_uri: str,
    figures: list[str],
    size: int,
    milliseconds: int,
    slow_share: float,
    busy: float,
) -> None:
    waits, seconds = Waits(), 7.0
    with slow(server_uri, APP, milliseconds), pool_of(server_uri, size, waits) as (client, seen):
        find, count = client["shop"]["orders"].find_one, client["shop"].command

        # As it is on this machine, where the server's pause is not all.
        quick, slowly = 0.002, milliseconds / 1e3 + 0.002

        def draw(chance: random.Random) -> float:
            return slowly if chance.random() < slow_share else quick

        chance = random.Random(SERVED)
        slow_ones = [draw(chance) == slowly for _ in range(10_000)]  # as the simulation draws them

        def ask(number: int) -> None:
            if slow_ones[number]:
                find()
            else:
                count("ping")

        mean = slow_share * slowly + (1 - slow_share) * quick
        come = typical(busy * size / mean, seconds, draw, size)
        before = seen.stats().pools[0].use_time
        waits.seconds.clear()
        for runs in (1, 2, 3):  # a second in which this machine stands still is a seventh of one
            offer(come, ask)
            use, measured = seen.stats().pools[0].use_time.since(before), p95(sorted(waits.seconds))
            predicted = predict(Load.from_histogram(use.count / (runs * seconds), use), size)
            if predicted.p95 == pytest.approx(measured, rel=TOLERANCE):
                break
    figures.append(
        f"{size:3} connections, {use.mean or 0.0:.4f} s each, busy {predicted.utilization:.2f}: "
        f"p95 of waits predicted {predicted.p95 * 1e3:.1f} ms, measured {measured * 1e3:.1f} ms "
        f"({predicted.p95 / measured - 1:+.0%}, {runs} runs)"
    )
    assert predicted.p95 == pytest.approx(measured, rel=TOLERANCE)
