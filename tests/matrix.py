"""The tests that depend on PyMongo's and Python's behaviour, on every combination of the two.

PyMongo: the oldest and the newest that pyproject.toml allows, and two between. Python: what is on
PATH and in pyenv, free-threaded builds too. And the threads once more as gevent's greenlets.
Each combination has an environment in .matrix/, which is kept: a second run only tests.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, STDOUT
from typing import IO, Final

from packaging.requirements import Requirement
from packaging.version import Version

TESTS: Final = (
    *("test_state", "test_actor", "test_agreement", "test_telemetry", "test_listeners"),
    *("test_field_notes", "test_machine", "test_chaos", "test_clients", "test_fork"),
)
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
# These tests import them. OTLP's grpcio has no wheel for free-threaded builds.
NEEDED: Final = ("prometheus-client", "opentelemetry-sdk", "pytest", "hypothesis")
WITH_A_WHEEL: Final = ("gevent", "trustme")  # a free-threaded build may have to go without
# Where gevent took the threads' place, identifiers, signals, spinning and event loops differ.
NOT_UNDER_GEVENT: Final = (
    "not (test_a_thread_is_its_own_actor or test_a_thread_that_ended or test_threads_in_the_queue"
    " or runs_at_this_moment or keyboard_interrupt or test_03_check_ins or test_chaos)"
)
PATIENCE_SECONDS: Final = 900.0
MATRIX: Final = Path(".matrix").absolute()
_PROBE: Final = """
import ensurepip, json, sys, sysconfig
v, free = sys.version_info, bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
print(json.dumps(["%d.%d" % v[:2], free, "%d.%d.%d" % v[:3] + "t" * free, sys.executable]))
"""
_SUMMARY: Final = re.compile(r"^=+ (.+) in [\d.]+s", re.MULTILINE)
Outcome = tuple[bool, str]  # whether it passed, and in which words


@dataclass(frozen=True)
class Python:
    series: str  # such as 3.13
    free_threaded: bool
    version: str  # such as 3.13.0, or 3.13.0t where it is free-threaded
    program: str


@dataclass(frozen=True)
class Case:
    python: Python
    pymongo: str
    gevent: bool = False

    @property
    def row(self) -> str:
        return self.python.version + " gevent" * self.gevent

    @property
    def name(self) -> str:
        return f"{self.row} pymongo {self.pymongo}"

    @property
    def log(self) -> Path:
        return MATRIX / f"{self.name.replace(' ', '-')}.log"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their name")
    parser.add_argument("--jobs", default=1, type=int, metavar="N", help="so many at a time")
    given = parser.parse_args()
    MATRIX.mkdir(exist_ok=True)
    releases, pythons = _pymongos(), _pythons()
    print(f"PyMongo {', '.join(releases)}; Python {', '.join(one.version for one in pythons)}")
    cases = [case for case in _cases(releases, pythons) if given.only in case.name]
    # A shell's & has SIGINT ignored, and what is started here would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        results = asyncio.run(_run_all(cases, pythons, given.jobs))
    except KeyboardInterrupt:
        sys.exit("interrupted")
    cells = {(case.row, case.pymongo): words for case, (_, words) in results.items()}
    width = max(map(len, cells.values()), default=0) + 2
    print(f"\n{'PyMongo':<16}", *(f"{release:<{width}}" for release in releases))
    for row in dict.fromkeys(case.row for case in results):
        print(f"{row:<16}", *(f"{cells.get((row, release), ''):<{width}}" for release in releases))
    for series in sorted(set(PYTHONS) - {one.series for one in pythons if not one.free_threaded}):
        print(f"{series:<16} skipped: no python{series} on PATH or in pyenv")
    if not any(python.free_threaded for python in pythons):
        print(f"{'free-threaded':<16} skipped: no free-threaded build is installed")
    failed = [case for case, (passed, _) in results.items() if not passed]
    for case in failed:
        print(f"failed: {case.name}: .matrix/{case.log.name}")
    sys.exit(bool(failed) or not results)


@functools.cache
def _requirements() -> dict[str, str]:
    """Return pyproject.toml's requirements, those of its extras too, by name."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return {Requirement(line).name: line for group in groups for line in group}


def _pymongos() -> list[str]:
    """Return the oldest and the newest release allowed, and two between, last of their series."""
    command = [sys.executable, "-m", "pip", "index", "versions", "pymongo"]
    pip = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"^Available versions: (.+)$", pip.stdout, re.MULTILINE)
    if found is None:
        sys.exit(f"pip does not tell PyMongo's releases: {pip.stderr.strip()}")
    allowed = Requirement(_requirements()["pymongo"]).specifier.filter(found[1].split(", "))
    oldest, *later = sorted(map(Version, allowed))
    series = {one.release[:2]: one for one in later} | {oldest.release[:2]: oldest}
    spaced = sorted(series.values())
    places = {round((len(spaced) - 1) * third / 3) for third in range(4)}
    return [str(spaced[place]) for place in sorted(places)]


def _pythons() -> list[Python]:
    """Return the newest interpreter of each series, and of its free-threaded builds."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    programs = [shutil.which(f"python{series}{t}") for series in PYTHONS for t in ("", "t")]
    programs += map(str, pyenv.glob("versions/*/bin/python3"))
    found = []
    for program in filter(None, programs):
        probe = subprocess.run([program, "-c", _PROBE], capture_output=True, text=True)
        if probe.returncode == 0:  # no shim for nothing, no Debian's python3 without venv
            found.append(Python(*json.loads(probe.stdout)))
    found.sort(key=lambda python: Version(python.version.rstrip("t")))
    newest = {(one.series, one.free_threaded): one for one in found if one.series in PYTHONS}
    return list(newest.values())


def _cases(releases: list[str], pythons: list[Python]) -> Iterator[Case]:
    for python in pythons:
        yield from (Case(python, release) for release in releases)
    for python in [python for python in pythons if not python.free_threaded][-1:]:
        yield from (Case(python, release, gevent=True) for release in (releases[0], releases[-1]))


async def _run_all(cases: list[Case], pythons: list[Python], jobs: int) -> dict[Case, Outcome]:
    server = await _server(pythons)
    if server is None and "MONGODB_URI" not in os.environ:
        sys.exit("skipped, all: no MONGODB_URI, and no embedded server: .matrix/server.log")
    os.environ["PATH"] = os.pathsep.join(filter(None, [server, os.environ["PATH"]]))
    slots = asyncio.Semaphore(jobs)
    async with asyncio.TaskGroup() as group:
        tasks = {case: group.create_task(_try(case, slots)) for case in cases}
    return {case: task.result() for case, task in tasks.items()}


async def _server(pythons: list[Python]) -> str | None:
    """Return the folder of one embedded server for all: not every Python has its wheel."""
    with (MATRIX / "server.log").open("w") as log:
        for python in reversed([python for python in pythons if not python.free_threaded]):
            folder = MATRIX / f"{python.version}-server"
            await _install(folder, python.program, log, [_requirements()["secantusdb"]])
            if (folder / "bin" / "secantusd-py").exists():
                return str(folder / "bin")
    return None


async def _try(case: Case, slots: asyncio.Semaphore) -> Outcome:
    wanted = [f"pymongo=={case.pymongo}", *(_requirements()[name] for name in NEEDED)]
    more = [_requirements()[name] for name in WITH_A_WHEEL]
    folder = case.log.with_suffix("")
    status, words = 1, "its environment could not be made"
    async with slots:
        began = time.monotonic()
        with case.log.open("w") as log, contextlib.suppress(TimeoutError):
            if await _install(folder, case.python.program, log, wanted, *more):
                words = f"not over after {PATIENCE_SECONDS:.0f} s"
                status = await _run(log, str(folder / "bin" / "python"), *_arguments(case))
                said = _SUMMARY.findall(case.log.read_text(errors="replace"))
                words = said[-1] if said else f"pytest ended with {status}"
    print(f"{case.name:<32}{words:<36}{time.monotonic() - began:5.0f} s", flush=True)
    return status == 0, words


async def _install(folder: Path, program: str, log: IO[str], wanted: list[str], *more: str) -> bool:
    """Make an environment, unless it is there; `more` is for where there are wheels."""
    receipt, contents = folder / "receipt", "\n".join([program, *wanted, *more])
    pip = (str(folder / "bin" / "python"), "-m", "pip", "install")
    if receipt.exists() and receipt.read_text() == contents:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    for command in ((program, "-m", "venv", str(folder)), (*pip, *wanted)):
        if await _run(log, *command):
            return False
    for requirement in more:
        await _run(log, *pip, "--only-binary", ":all:", requirement)
    receipt.write_text(contents)
    return True


async def _run(log: IO[str], *command: str) -> int:
    """Return a command's exit code. It has a process group, so that its children end too."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=log, stderr=STDOUT, process_group=0
    )
    try:
        return await asyncio.wait_for(process.wait(), PATIENCE_SECONDS)
    finally:
        if process.returncode is None:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Interrupt it, so that pytest stops its server; where it hangs, kill it and that server."""
    with contextlib.suppress(TimeoutError):
        os.killpg(process.pid, signal.SIGINT)
        await asyncio.wait_for(process.wait(), 15)
        return
    with contextlib.suppress(ProcessLookupError):
        for task in Path("/proc").glob(f"{process.pid}/task/*/children"):  # none but on Linux
            for child in task.read_text().split():
                os.kill(int(child), signal.SIGTERM)
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _arguments(case: Case) -> Iterator[str]:
    if case.python.free_threaded:
        yield from ("-X", "gil=0")  # the extension of an older PyMongo would switch it on again
    yield from ("-m", "gevent.monkey", "--module", "pytest") if case.gevent else ("-m", "pytest")
    yield from ("-p", "no:cacheprovider", "--color=no", "-o", "faulthandler_timeout=120")
    if case.gevent:
        yield from ("-k", NOT_UNDER_GEVENT)
    yield from (file for file in (f"tests/{name}.py" for name in TESTS) if Path(file).exists())


if __name__ == "__main__":
    main()
