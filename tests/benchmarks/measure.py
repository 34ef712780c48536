"""Turns, tables and goals: what all benchmarks share."""

import gc
import statistics
import threading
import time
import timeit
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Turn = Callable[[], int]
"""One turn of a variant; returns how many operations it did."""

Costs = dict[str, list[float]]
"""Microseconds per operation: of each variant, one value a round."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long each benchmark takes."""

    event_rounds: int
    checkout_rounds: int
    find_rounds: int
    in_place_rounds: int
    read_rounds: int
    import_rounds: int
    endpoint_rounds: int
    operations: int


FULL = Effort(120, 60, 12, 30, 60, 20, 7, 1_000_000)
QUICK = Effort(15, 6, 1, 4, 5, 3, 2, 50_000)


@dataclass(frozen=True, slots=True)
class Goal:
    """One promise, and what was measured."""

    section: str
    what: str
    limit: float
    measured: float
    unit: str = "µs"
    digits: int = 2

    @property
    def met(self) -> bool:
        return self.measured <= self.limit


def take_turns(
    variants: Mapping[str, Turn],
    rounds: int,
    *,
    turns: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> Costs:
    """Return what each variant costs per operation, by this clock.

    In a round each variant has `turns` turns, one after the other, so that other load of the
    machine affects all alike. The first variant changes each round. Garbage is collected between
    turns only.
    """
    for turn in variants.values():
        turn()
    costs: Costs = {name: [] for name in variants}
    order = deque(variants)
    for _ in range(rounds):
        seconds, operations = dict.fromkeys(variants, 0.0), dict.fromkeys(variants, 0)
        for _ in range(turns):
            order.rotate()
            for name in order:
                gc.collect()
                gc.disable()
                try:
                    begin = clock()
                    operations[name] += variants[name]()
                    seconds[name] += clock() - begin
                finally:
                    gc.enable()
        for name in variants:
            costs[name].append(seconds[name] / operations[name] * 1e6)
    return costs


def over(costs: Costs, name: str, base: str) -> float:
    """Return by how much a variant is dearer than another: the median over the rounds."""
    return statistics.median(b - a for a, b in zip(costs[base], costs[name], strict=True))


def yardstick() -> str:
    """Return what is the least that Python takes here, to compare machines by."""
    given = {"empty": lambda: None, "clock": time.perf_counter, "lock": threading.Lock(), "n": 0}
    calls = {
        "an empty function": "empty()",
        "time.perf_counter": "clock()",
        "a lock and an integer": "with lock: n + 1",
    }
    loops = 10_000
    least = {
        what: min(timeit.repeat(call, globals=given, number=loops, repeat=50)) / loops * 1e9
        for what, call in calls.items()
    }
    return ", ".join(f"{what} {ns:.0f} ns" for what, ns in least.items())


def show_heading(section: str, text: str, goal: str) -> None:
    """Print what a section measures, and its goal."""
    print(f"\n({section}) {text}\n    goal: {goal}")


def show(costs: Costs, *bases: str) -> None:
    """Print a row for each variant: minimum, median, and how much dearer than each base."""
    print(f"    {'µs':42}{'min':>11}{'median':>11}" + "".join(f"{f'over {b}':>19}" for b in bases))
    for name, values in costs.items():
        dearer = ("" if name == b else f"{over(costs, name, b):+.2f}" for b in bases)
        print(
            f"    {name:42}{min(values):11,.2f}{statistics.median(values):11,.2f}"
            + "".join(f"{one:>19}" for one in dearer)
        )


def show_goals(goals: list[Goal]) -> None:
    """Print each goal, and whether it was met."""
    print("\nGoals")
    for goal in goals:
        verdict = "met" if goal.met else "MISSED"
        measured = f"{goal.measured:,.{goal.digits}f}"
        limit = f"{goal.limit:,g} {goal.unit}".rstrip()
        print(f"    {verdict:8}({goal.section}) {goal.what:54}{measured:>10} of at most {limit}")
