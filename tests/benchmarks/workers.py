"""Measure a scrape of a service with several workers, and what the exchange costs otherwise."""

import multiprocessing
import resource
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pymongo import MongoClient

from pool_telemetry import PoolTelemetry, TelemetryOptions, prometheus, workers
from tests.benchmarks.measure import Effort, show_heading
from tests.support import wait_for

COUNTS = (1, 4, 16, 64)
COLLECTIONS = 30  # as many series of commands
FEW = 4
ROUNDS = 5
IDLE_SECONDS = 20.0
SCRAPE_SECONDS = 5.0


def _work(uri: str, control: Connection, *, answers: bool) -> None:
    """Use a client, say so, and answer with the CPU time used whenever asked."""
    options = TelemetryOptions(workers=answers)
    telemetry = PoolTelemetry("bench", options=options)
    client: MongoClient[Any] = MongoClient(uri, event_listeners=telemetry.listeners)
    for number in range(COLLECTIONS):
        client["bench"][f"c{number}"].find_one()
    if answers:
        wait_for(workers.is_member)
    control.send(True)
    while control.recv():
        used = resource.getrusage(resource.RUSAGE_SELF)
        control.send((used.ru_utime + used.ru_stime, used.ru_maxrss / 1024))


def _scrape() -> tuple[float, int]:
    registry = CollectorRegistry()
    prometheus.register(registry)
    prometheus.generate(registry=registry)
    took = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        text, _ = prometheus.generate(registry=registry)
        took.append(time.perf_counter() - began)
    return statistics.median(took), len(text)


class _Others:
    """Processes beside this one."""

    def __init__(self, uri: str, *, answers: bool) -> None:
        self._uri, self._answers = uri, answers
        self._context = multiprocessing.get_context("spawn")
        self._every: list[tuple[Any, Connection]] = []

    def grow_to(self, count: int) -> None:
        while len(self._every) < count:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_work, args=(self._uri, theirs), kwargs={"answers": self._answers}
            )
            process.start()
            ours.recv()
            self._every.append((process, ours))

    def used(self) -> tuple[float, float]:
        """Return the CPU seconds of a process, on average, and its memory in MB."""
        for _, control in self._every:
            control.send(True)
        every = [control.recv() for _, control in self._every]
        return statistics.mean(cpu for cpu, _ in every), max(memory for _, memory in every)

    def end(self) -> None:
        for _, control in self._every:
            control.send(False)
        for process, _ in self._every:
            process.join()


def run_workers(effort: Effort, uri: str) -> None:
    """Print the time of a scrape with several workers, and their CPU time while nobody asks."""
    show_heading(
        "workers",
        f"a scrape in one of several workers, each with {COLLECTIONS} series of commands",
        "no CPU while nobody asks",
    )
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as environ:
        environ.setenv(workers.VARIABLE, folder)
        telemetry = PoolTelemetry("bench")
        others, alone = _Others(uri, answers=True), _Others(uri, answers=False)
        with MongoClient[Any](uri, event_listeners=telemetry.listeners) as client:
            try:
                for number in range(COLLECTIONS):
                    client["bench"][f"c{number}"].find_one()
                wait_for(workers.is_member)
                for count in COUNTS[: None if effort.find_rounds > 1 else 2]:
                    others.grow_to(count - 1)
                    seconds, size = _scrape()
                    print(f"    {count:>3} workers: {seconds * 1e3:7.1f} ms, {size / 1e3:5.0f} kB")
                    if count == FEW:
                        alone.grow_to(count - 1)
                        _show_cpu(others, alone)
            finally:
                others.end()
                alone.end()
                workers.leave()


def _show_cpu(others: _Others, alone: _Others) -> None:
    for asked in (False, True):
        before = others.used()[0], alone.used()[0]
        until = time.monotonic() + IDLE_SECONDS
        while (left := until - time.monotonic()) > 0.0:
            if asked:
                _scrape()
            time.sleep(min(SCRAPE_SECONDS, left))
        after = others.used()[0], alone.used()[0]
        ours, theirs = ((b - a) / IDLE_SECONDS * 100 for a, b in zip(before, after, strict=True))
        how = f"{ROUNDS} scrapes each {SCRAPE_SECONDS:g} s" if asked else "nobody asks"
        print(
            f"        {how}: {ours:.2f} % of a core for each other worker, and {theirs:.2f} % "
            "with workers=False"
        )
    print(f"        memory: {others.used()[1]:.0f} MB, and {alone.used()[1]:.0f} MB")
