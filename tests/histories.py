"""Simulated histories of pools: thousands of inputs for a diagnosis, the same on every machine.

A pool is simulated in four steps a sample, as a fluid: so many requests arrive, so many
are served, the others queue. That is coarse, but it makes every counter of `ClientStats` move as a
real pool's does. Random numbers come from `random()` alone and no sum is of more than a few floats,
so that every version of Python makes the same histories.

`python -m tests.histories` writes the golden files, of these histories and of the recorded ones;
`tests/test_golden.py` compares with them.
"""

import hashlib
import json
import math
import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from pool_telemetry.diagnosis import Diagnosis, diagnose
from pool_telemetry.state.histogram import OPERATION_BOUNDS, POOL_BOUNDS
from pool_telemetry.stats import (
    CLOSE_REASONS,
    OUTCOMES,
    ClientStats,
    HistogramStats,
    OperationStats,
    OwnerStats,
    PoolStats,
)
from tests.recordings import recordings
from tests.scenarios import SAMPLE_SECONDS
from tests.verdicts import sampled

HISTORIES: Final = 3_000
WHOLE: Final = 36
"""Histories whose findings are written out in the golden file; of the others it has digests."""
SIMULATED: Final = Path(__file__).parent / "golden" / "diagnoses.txt"
RECORDED: Final = SIMULATED.with_name("recorded_diagnoses.txt")
STEPS: Final = 4
"""Steps of the simulation in a sample."""


class History(NamedTuple):
    """The arguments of `diagnose()`."""

    stats: ClientStats
    history: list[ClientStats]
    budget: int | None


@dataclass(frozen=True, kw_only=True)
class Regime:
    """How a pool fares for some time.

    Attributes:
        rate: Requests per second; with `every` they arrive at once, every so many seconds.
        callers: Callers that send the next request after a pause of `think` seconds.
        use: Seconds for which each request holds its connection.
        slow: Share of the requests that run another command, which takes `slow_use` seconds.
        leaked, cursors: Connections that are held without a command, or by cursors.
        timeout: waitQueueTimeoutMS in seconds; `retry` is the share of callers that retry at once.
        cancel: Share of the callers that give up.
        fail: Share of the commands that fail with `error`.
        create: Seconds that a new connection takes; the pool starts without any then.
        churn: Share of the requests that open a connection, which is closed because it is idle.
    """

    rate: float = 0.0
    every: float = 0.0
    callers: int = 0
    think: float = 0.02
    use: float = 0.004
    slow: float = 0.0
    slow_use: float = 0.3
    leaked: int = 0
    cursors: int = 0
    timeout: float = 0.0
    retry: float = 0.0
    cancel: float = 0.0
    fail: float = 0.0
    error: str = "91"
    create: float = 0.0
    churn: float = 0.0
    down: bool = False
    paused: bool = False
    unreachable: bool = False


class _Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.sum, self.max = bounds, [0] * (len(bounds) + 1), 0.0, 0.0

    def add(self, seconds: float, count: int) -> None:
        if count:
            self.counts[bisect_left(self.bounds, seconds)] += count
            self.sum += seconds * count
            self.max = max(self.max, seconds)

    def stats(self) -> HistogramStats:
        return HistogramStats(self.bounds, tuple(self.counts), self.sum, self.max)


@dataclass(kw_only=True)
class _Pool:
    """One simulated pool; its counters live until the process is restarted."""

    port: int
    step_seconds: float
    max_size: int | None
    min_size: int
    timed: bool  # commands are timed, and idle holders known
    chance: random.Random
    size: int = 0
    backlog: float = 0.0  # requests in the queue, and parts of one
    served: float = 0.0  # parts of a request
    waiting: int = 0
    oldest_wait: float = 0.0
    in_use: int = 0
    opening: int = 0
    longest: float = 0.0
    stalled: float = 0.0
    exhausted: bool = False
    exhaustions: int = 0
    exhausted_time: float = 0.0
    exhausted_at: float | None = None
    timeout_at: float | None = None
    peak: int = 0
    leaked: int = 0
    leaked_at: float = 0.0
    cursors: int = 0
    retries: int = 0
    created: int = 0
    cleared: int = 0
    up: bool = True
    phase: str = "ready"
    changed_at: float = 0.0
    outage: float = 0.0
    checkouts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    closed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CLOSE_REASONS, 0))
    wait: _Histogram = field(default_factory=lambda: _Histogram(POOL_BOUNDS))
    use: _Histogram = field(default_factory=lambda: _Histogram(POOL_BOUNDS))
    create: _Histogram = field(default_factory=lambda: _Histogram(POOL_BOUNDS))
    commands: dict[tuple[str, str, str], _Histogram] = field(default_factory=dict)

    def step(self, now: float, regime: Regime) -> None:
        """Let a step pass, which ends at `now`."""
        self._heartbeat(now, regime)
        if regime.leaked != self.leaked:
            self.leaked, self.leaked_at = regime.leaked, now
        self.cursors = regime.cursors
        limit = self.max_size or 100_000
        due = self._due(now, regime)
        if regime.down or regime.paused or regime.unreachable:
            self._fail(due, regime)
            return
        capacity = max(0, limit - self.leaked - self.cursors)
        use = regime.use * (1.0 - regime.slow) + regime.slow_use * regime.slow
        if regime.create:
            capacity = self._open(capacity, regime, due)
        possible = capacity * self.step_seconds / use + self.served
        if regime.callers:
            possible = min(
                possible, regime.callers * self.step_seconds / (use + regime.think) + self.served
            )
            thinking = possible / self.step_seconds * regime.think
            self.backlog = max(0.0, regime.callers - thinking - capacity)
            done = int(possible)
            self.served = possible - done
        else:
            self.backlog += due
            done = int(min(self.backlog, possible))
            self.served = min(1.0, possible - done) if self.backlog - done >= 1.0 else 0.0
            self.backlog -= done
        busy = min(capacity, math.ceil(done * use / self.step_seconds))
        self.waiting = int(self.backlog) if capacity < limit or busy >= capacity else 0
        if self.waiting:
            busy = capacity
        elif use >= 1.0:
            busy = min(capacity, max(busy, regime.callers))
        self.in_use = busy + self.leaked + self.cursors
        if not regime.create:
            grown = max(0, max(self.in_use, self.min_size) - self.size)
            self.size += grown
            self.created += grown
            self.create.add(0.003, grown)
            self.opening = 0
        wait = self.backlog * use / capacity if capacity else self.oldest_wait + self.step_seconds
        if regime.create and self.backlog:
            wait = max(wait, regime.create)
        self.oldest_wait = wait if self.waiting else 0.0
        self._end(now, regime, done, wait)
        self._exhaust(now, regime)
        hangs = done == 0 and self.in_use > 0
        self.longest = self.longest + self.step_seconds if hangs else use if busy else 0.0
        self.stalled = self.stalled + self.step_seconds if hangs and self.waiting else 0.0

    def _heartbeat(self, now: float, regime: Regime) -> None:
        up = not regime.down
        if up != self.up:
            self.outage = 0.0 if not up else now - self.changed_at
            self.up, self.changed_at = up, now
        if not up:
            self.outage = now - self.changed_at
        self.phase = "paused" if regime.down or regime.paused else "ready"

    def _due(self, now: float, regime: Regime) -> float:
        if not regime.every:
            return regime.rate * self.step_seconds * (0.5 + self.chance.random())
        return regime.rate * regime.every if now % regime.every < self.step_seconds else 0.0

    def _fail(self, due: float, regime: Regime) -> None:
        errors = int(due) + 1
        self.checkouts["connection_error"] += errors
        self.closed["stale"] += self.size
        self.cleared += 1 if self.size else 0
        if regime.unreachable:
            self.created += 2
        self.size = self.opening = 2 if regime.unreachable else 0
        self.in_use = self.leaked = self.waiting = 0
        self.backlog = self.oldest_wait = self.longest = self.stalled = 0.0
        self.exhausted = False

    def _open(self, capacity: int, regime: Regime, due: float) -> int:
        ready = max(1, self.size - self.opening)
        asked = regime.callers or int(self.backlog + due)
        if ready < min(capacity, asked):
            new = max(1, int(2 * self.step_seconds / regime.create))
            self.size = min(capacity, ready + new + 2)
            self.opening = min(2, self.size - ready)
            self.created += new
            self.create.add(regime.create, new)
        else:
            self.opening = 0
        return min(capacity, ready)

    def _end(self, now: float, regime: Regime, done: int, wait: float) -> None:
        lost = 0
        if regime.timeout and wait > regime.timeout:
            lost = math.ceil(
                self.waiting * self.step_seconds / max(regime.timeout, self.step_seconds)
            )
            self.backlog = max(0.0, self.backlog - lost * (1.0 - regime.retry))
            self.checkouts["timeout"] += lost
            self.retries += int(lost * regime.retry)
            self.timeout_at = now if lost else self.timeout_at
            wait = regime.timeout
        gone = int(done * regime.cancel)
        self.checkouts["ok"] += done - gone
        self.checkouts["cancelled"] += gone
        short = done // 3
        self.wait.add(wait if self.waiting else 0.00004, done - short)
        self.wait.add(wait / 2 if self.waiting else 0.0002, short)
        slow = int(done * regime.slow) or (done if regime.slow >= 1.0 else 0)
        failed = int((done - slow) * regime.fail)
        for name, error, seconds, count in (
            ("find", "", regime.use, done - slow - failed - gone),
            ("aggregate", "", regime.slow_use, slow),
            ("find", regime.error, regime.use, failed),
            ("find", "cancelled", regime.use, gone if slow < done else 0),
        ):
            few = max(0, count) // 4
            for time, number in ((seconds * 0.9, max(0, count) - few), (seconds * 1.3, few)):
                self.use.add(time, number)
                if self.timed and number:
                    key = (name, "orders", error)
                    self.commands.setdefault(key, _Histogram(OPERATION_BOUNDS)).add(time, number)
        if failed and regime.error == "91":
            self.cleared += 1
            self.created += min(failed, 4)
            self.closed["stale"] += min(failed, 4)
            self.create.add(0.003, min(failed, 4))
        opened = int(done * regime.churn)
        self.created += opened
        self.closed["idle"] += opened
        self.create.add(0.004, opened)

    def _exhaust(self, now: float, regime: Regime) -> None:
        full = self.in_use >= (self.max_size or 100_000)
        exhausted = self.waiting > 0 and full
        if exhausted and not self.exhausted:
            self.exhaustions += 1
            self.peak = 0
        if exhausted:
            self.exhausted_time += self.step_seconds
            self.exhausted_at = now
            self.peak = max(self.peak, self.waiting)
        elif regime.every and self.backlog >= 1.0:
            self.peak = max(self.peak, int(self.backlog))
        self.exhausted = exhausted

    def stats(self, now: float) -> PoolStats:
        """Return the pool as `PoolState` would."""
        idle = (now - self.leaked_at) if self.leaked else 0.0
        held = self.leaked if idle >= 1.0 else 0
        return PoolStats(
            host="db",
            port=self.port,
            phase="paused" if self.phase == "paused" else "ready",
            max_size=self.max_size,
            min_size=self.min_size,
            size=max(self.size, self.in_use + self.opening),
            in_use=self.in_use,
            opening=self.opening,
            waiting=self.waiting,
            oldest_wait=self.oldest_wait,
            longest_checkout=max(self.longest, idle),
            exhausted=self.exhausted,
            exhaustions=self.exhaustions,
            exhausted_time=self.exhausted_time,
            since_exhausted=None
            if self.exhausted_at is None
            else 0.0
            if self.exhausted
            else now - self.exhausted_at,
            since_timeout=None if self.timeout_at is None else now - self.timeout_at,
            stalled_time=self.stalled,
            checkouts=dict(self.checkouts),
            created=self.created,
            closed=dict(self.closed),
            cleared=self.cleared,
            up=self.up,
            since_up_changed=now - self.changed_at,
            outage=self.outage,
            down_reason=None if self.up else "AutoReconnect",
            rtt=0.001,
            wait_time=self.wait.stats(),
            use_time=self.use.stats(),
            create_time=self.create.stats(),
            peak_waiting=self.peak,
            retries=self.retries,
            held_idle=held if self.timed else None,
            longest_idle=idle if held else 0.0,
            held_by_cursors=self.cursors,
            owners=(OwnerStats("checkout", 9, 1.0, self.leaked), OwnerStats("", 9, 1.0, 1))
            if held
            else (),
        )

    def operations(self) -> Iterator[OperationStats]:
        """Return the commands' series."""
        for (name, collection, error), histogram in self.commands.items():
            yield OperationStats(
                host="db",
                port=self.port,
                namespace="shop",
                collection=collection,
                operation=name,
                error_type=error,
                status_code=error if error.isdecimal() else "",
                duration=histogram.stats(),
            )


def _regimes(size: int, chance: random.Random) -> list[list[Regime]]:
    """Return what may follow a calm time: one troubled regime, or several in turn."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * chance.random()

    use, timeout = between(0.002, 0.03), 0.5 if chance.random() < 0.5 else 0.0
    calm = Regime(rate=0.3 * size / use, use=use)
    full = 1.0 + between(0.1, 1.0)
    leaks = max(1, int(size * between(0.3, 1.0)))
    closed = Regime(callers=int(size * between(1.5, 4.0)) + 1, think=0.0, use=use, timeout=timeout)
    slower = replace(calm, use=use * between(4.0, 60.0) + 0.03, timeout=timeout)
    slow = replace(
        calm,
        slow=between(0.1, 0.9),
        slow_use=between(0.1, 1.0),
        rate=calm.rate / 4,
        timeout=timeout,
    )
    waves = Regime(rate=0.4 * size / use, every=float(int(between(1, 6))), use=use, timeout=timeout)
    return [
        [calm],
        [replace(calm, use=use * 1.5)],
        [replace(calm, rate=full * size / use, timeout=timeout)],
        [replace(calm, rate=full * size / use, timeout=0.3, retry=0.9)],
        [closed],
        [replace(closed, cancel=0.4)],
        [waves],
        [replace(waves, rate=2.0 * size / use, every=between(4.0, 9.0))],
        [slower],
        [replace(closed, use=use * 20.0 + 0.05)],
        [slow],
        [replace(slow, rate=slow.rate * 4)],
        [Regime(callers=size + 3, think=0.0, use=between(4.0, 20.0), timeout=timeout)],
        [replace(calm, leaked=leaks)],
        [replace(calm, leaked=size, timeout=timeout)],
        [replace(closed, leaked=max(1, leaks - 1))],
        [replace(slower, leaked=leaks)],
        [replace(calm, leaked=leaks), calm],
        [replace(calm, leaked=size, timeout=0.5), replace(calm, leaked=leaks), calm],
        [replace(calm, cursors=max(1, size - 1)), replace(calm, cursors=size)],
        [replace(calm, callers=size * 4, create=between(0.1, 0.8), think=0.02)],
        [replace(calm, rate=max(calm.rate, 60.0), churn=between(0.3, 0.9))],
        [replace(calm, down=True)],
        [replace(calm, down=True), calm],
        [replace(calm, paused=True)],
        [replace(calm, unreachable=True)],
        [replace(calm, fail=between(0.2, 0.9))],
        [replace(calm, fail=between(0.2, 0.9), error="AutoReconnect")],
        [replace(closed, fail=0.5, use=use * 10)],
        [closed, replace(closed, use=use * 15.0 + 0.05)],
        [closed, replace(closed, use=use * 8.0), calm],
        [closed, calm],
        [slower, calm],
        [replace(calm, rate=full * size / use, timeout=0.3, retry=0.9), calm],
        [waves, calm],
        [slower, closed],
        [replace(calm, rate=3.0, use=0.004)],
        [replace(calm, rate=0.0)],
    ]


def simulate(number: int) -> History:
    """Return one history; the same number makes the same one."""
    chance = random.Random(number)
    pause = (0.5, 1.0, 1.0, 2.0, 5.0)[int(chance.random() * 5)]
    sizes = (1, 2, 3, 4, 6, 10, 20, 100)
    servers = 2 if chance.random() < 0.15 else 1
    timed = chance.random() < 0.85
    pools, plans = list[_Pool](), list[list[Regime]]()
    for server in range(servers):
        size = sizes[int(chance.random() * len(sizes))]
        pools.append(
            _Pool(
                port=27017 + server,
                step_seconds=pause / STEPS,
                max_size=None if chance.random() < 0.03 else size,
                min_size=int(chance.random() * 60) if chance.random() < 0.15 else 0,
                timed=timed,
                chance=chance,
            )
        )
        every = _regimes(size, chance)
        calm = every[0] if chance.random() < 0.85 else []
        plans.append([*calm, *every[(number + server) % len(every)]])
    budget = 1 + int(chance.random() * 40) if chance.random() < 0.2 else None
    # A time before the history, then the regimes for some samples each.
    at = since = 1_000.0
    samples = list[ClientStats]()
    lengths = [2 + int(chance.random() * 8) for _ in range(max(map(len, plans)))]
    restart = int(chance.random() * sum(lengths)) if chance.random() < 0.06 else -1
    for turn, length in enumerate(lengths):
        for _ in range(length):
            if len(samples) == restart:
                since, pools = at, [_anew(pool, at) for pool in pools]
            for _ in range(STEPS):
                at += pause / STEPS
                for pool, plan in zip(pools, plans, strict=True):
                    pool.step(at, plan[min(turn, len(plan) - 1)])
            samples.append(
                ClientStats(
                    name="orders" if number % 2 else "",
                    pools=tuple(pool.stats(at) for pool in pools),
                    operations=tuple(one for pool in pools for one in pool.operations()),
                    telemetry_errors=0,
                    since=since,
                    at=at,
                )
            )
    first = 0 if chance.random() < 0.6 else int(chance.random() * len(samples))
    return History(samples[-1], samples[first:-1], budget)


def _anew(pool: _Pool, at: float) -> _Pool:
    return _Pool(
        port=pool.port,
        step_seconds=pool.step_seconds,
        max_size=pool.max_size,
        min_size=pool.min_size,
        timed=pool.timed,
        chance=pool.chance,
        changed_at=at,
    )


# The golden file

_NUMBERS: Final = ("verdict", "severity", "pool", "evidence", "change", "ended")
_WORDS: Final = ("because", "advice")


def lines(name: str, history: History, *, whole: bool) -> Iterator[str]:
    """Return a history's line in the golden file, and its findings if they are written out."""
    found = diagnose(history.stats, history.history, budget=history.budget)
    yield line(name, found)
    for one in found.as_dict()["findings"] if whole else ():
        told = {key: _rounded(one[key]) for key in (*_NUMBERS, *_WORDS)}
        yield "    " + json.dumps(told, sort_keys=True, ensure_ascii=False)


def line(name: str, found: Diagnosis) -> str:
    """Return the verdicts, and a digest of their numbers and one of their words."""
    every = found.as_dict()["findings"]
    verdicts = ", ".join(
        f"{one['verdict']} {one['severity']}" + ("" if one["ended"] is None else " over")
        for one in every
    )
    return " | ".join(
        (name, verdicts or "healthy", _digest(every, _NUMBERS), _digest(every, _WORDS))
    )


def _digest(findings: list[dict[str, Any]], keys: tuple[str, ...]) -> str:
    told = [{key: _rounded(one[key]) for key in keys} for one in findings]
    text = json.dumps(told, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _rounded(value: Any) -> Any:
    """Return it with its floats to nine digits: Python 3.12 sums them more exactly than 3.11."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return float(f"{value:.9g}") if isinstance(value, float) else value


def simulated(first: int = 0, step: int = 1) -> Iterator[str]:
    """Return the lines of the simulated histories, or of some of them."""
    for number in range(first, HISTORIES, step):
        yield from lines(f"{number:04}", simulate(number), whole=number % (HISTORIES // WHOLE) == 0)


def recorded() -> Iterator[str]:
    """Return the lines of the recorded scenarios, sampled every second at each offset."""
    for one in recordings():
        for step in range(round(1.0 / SAMPLE_SECONDS)):
            past = sampled(one.samples, 1.0, (step + 1) * SAMPLE_SECONDS)
            history = History(one.samples[-1], past, None)
            yield from lines(f"{one.name} +{step * SAMPLE_SECONDS}", history, whole=step == 0)


if __name__ == "__main__":
    for path, found in ((SIMULATED, simulated()), (RECORDED, recorded())):
        path.write_text("\n".join(found) + "\n")
