"""Play every scenario on a real server and count the verdicts that are right: `make scenarios`.

Two are played at a time, by processes with a server each, because most of a play is waiting. Each
play is judged by samples every half second, by samples every second, and by the client's own
history; it is right if all three are. With one run a scenario that is wrong is played once more in
the end, alone, because a shared machine may stand still for a moment. The exit code is 0 if at
least 98 % of the plays are right and no scenario is wrong twice.
"""

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Final

from pool_telemetry.demo.embedded import EmbeddedServer
from pool_telemetry.diagnosis import diagnose, recommend
from tests.recordings import Recording
from tests.scenarios import SCENARIOS, Scenario, playing, provide_documents
from tests.verdicts import OWN, Judged, confusion, every, judge, sampled

RIGHT_SHARE = 0.98

_BY_NAME: Final = {one.name: one for one in SCENARIOS}
_server = EmbeddedServer()  # one in each process that plays; it ends with its process


def players(count: int) -> Executor:
    """Return as many processes that play, with a server each."""
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), start_server)


def start_server() -> None:
    """Start this process's server."""
    _server.start()


def play_by_name(name: str) -> list[Judged]:
    """Return what is said of one play of this scenario, in a process that plays."""
    return play(_BY_NAME[name], _server)


def play(scenario: Scenario, server: EmbeddedServer) -> list[Judged]:
    """Return what is said of one play, by each sampling."""
    provide_documents(server)
    with playing(scenario, server) as (case, stats):
        own = case.telemetry.history()
    recording = Recording.of(scenario, [*case.history, stats])
    samplings = {every(seconds): sampled(recording.samples, seconds, 0.5) for seconds in (0.5, 1.0)}
    samplings[OWN] = own
    for history in samplings.values():
        found = diagnose(stats, history)
        json.dumps(recommend(found))
        for one in found.findings:
            assert one.pool in (stats.pool_name(stats.pools[0]), stats.name or "the client")
            assert one.because
            assert one.advice
            assert all(math.isfinite(number) for number in one.evidence.values())
    return [judge(recording, history, sampling) for sampling, history in samplings.items()]


def plays(scenarios: list[Scenario], runs: int, at_once: int) -> Iterator[list[Judged]]:
    """Play each scenario in each run. With one run a repetition replaces a wrong play."""
    names = [one.name for one in scenarios]
    again: list[str] = []
    with players(at_once) as several:
        for number, judged in enumerate(several.map(play_by_name, names * runs)):
            run, name = number // len(names) + 1, names[number % len(names)]
            print(f"{run}: {name}: {said(judged)}", flush=True)
            if runs == 1 and not right(judged):
                again.append(name)
            else:
                yield judged
    with players(1) as alone:
        for name, judged in zip(again, alone.map(play_by_name, again), strict=True):
            print(f"1: {name}, once more: {said(judged)}", flush=True)
            yield judged


def right(judged: list[Judged]) -> bool:
    """Return whether a play's verdict is right by every sampling."""
    return all(one.right for one in judged)


def said(judged: list[Judged]) -> str:
    """Return a play's result in words."""
    if right(judged):
        return judged[0].want
    return "WRONG: " + "; ".join(str(one) for one in judged if not one.right)


def main(arguments: list[str]) -> int:
    """Play, print the confusion matrix, and return the exit code."""
    parser = argparse.ArgumentParser(prog="make scenarios", description=__doc__)
    parser.add_argument("--runs", type=int, default=1, help="of each scenario (default: 1)")
    parser.add_argument("--at-once", type=int, default=2, help="plays at a time (default: 2)")
    parser.add_argument("--only", action="append", default=[], help="a scenario's name")
    given = parser.parse_args(arguments)
    chosen = [one for one in SCENARIOS if not given.only or one.name in given.only]
    if not chosen:
        parser.error(f"no scenario is named {given.only}")
    began = time.monotonic()
    played = list(plays(chosen, given.runs, given.at_once))
    print("", *confusion([one for judged in played for one in judged]), sep="\n")
    wrong = Counter(judged[0].scenario for judged in played if not right(judged))
    share = 1.0 - wrong.total() / len(played)
    print(f"{share:.1%} of {len(played)} plays right, in {time.monotonic() - began:.0f} s")
    for name, times in wrong.items():
        print(f"WRONG {times} times of {given.runs}: {name}")
    most = 0 if given.runs == 1 else 1  # with one run it was wrong twice already
    return 0 if share >= RIGHT_SHARE and max(wrong.values(), default=0) <= most else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
