"""Fetch and run PyMongo's own tests, and say what they showed; `make test-driver`.

Each test module runs in a process of its own. PyMongo's tests need more than the embedded server
has, so a test that fails is repeated without telemetry. It is a failure of ours if it passes each
time without telemetry and fails each time with it. A difference of the counts is one, too.
"""

import argparse
import importlib.metadata
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pool_telemetry.demo.embedded import EmbeddedServer
from tests.driver.known import modules, reason_of

ROOT: Final = Path(__file__).parent.parent.parent
FOLDER: Final = ROOT / ".driver"
REPETITIONS: Final = 3
"""A test must fail this often with telemetry, and pass as often without."""
FAILS: Final = "fails with telemetry only"
MODULE_SECONDS: Final = 1_800.0
"""A module that hangs is ended after this time; the tests before count, and it is named."""
PYTEST: Final = (
    *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.driver.plugin"),
    *(
        "-o",
        "addopts=",
        "-o",
        "log_cli=false",
        "-m",
        "default or default_async or encryption",
        "--tb=no",
    ),
)


@dataclass
class Report:
    """The outcomes of all tests, and the differences that they showed."""

    outcomes: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    failed: list[str] = field(default_factory=list)  # with telemetry only
    differences: list[tuple[str, str]] = field(default_factory=list)  # test and number
    unfinished: list[str] = field(default_factory=list)


def fetch() -> None:
    """Download PyMongo's tests, and what they need beside our tools, into `.driver/`."""
    version = importlib.metadata.version("pymongo")
    if (FOLDER / f"{version}.complete").exists():
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    wanted = ("--no-deps", "--no-binary", "pymongo", f"pymongo=={version}")
    subprocess.run([*pip, "download", "--dest", str(FOLDER), *wanted], check=True)
    needed = ("--target", str(FOLDER / "site"), "--no-deps", "pytest-asyncio", "pymongocrypt")
    subprocess.run([*pip, "install", *needed], check=True)
    (archive,) = FOLDER.glob("*.tar.gz")
    unpack = ("tar", "-xzf", archive, "-C", FOLDER, "--strip-components=1", "--wildcards")
    subprocess.run([*unpack, "*/test/*", "*/pyproject.toml"], check=True)
    (FOLDER / f"{version}.complete").touch()


def run(server: EmbeddedServer, tests: Iterable[str], *, books: bool = True) -> list[Any]:
    """Run tests, and return a line for each of those that ended."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        results.touch()
        paths = (str(FOLDER / "site"), str(FOLDER), str(ROOT))
        environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "DB_IP": "localhost",
            "DB_PORT": str(server.port),
            "DRIVER_RESULTS": str(results),
            **({"DRIVER_BOOKS": "yes"} if books else {}),
        }
        log = (FOLDER / "log").open("ab")
        process = subprocess.Popen(
            [*PYTEST, *tests], cwd=FOLDER, env=environ, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            process.wait(MODULE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            log.close()
        return [json.loads(line) for line in results.read_text().splitlines()]


def run_modules(
    todo: "queue.SimpleQueue[tuple[str, str]]", report: Report, lock: threading.Lock
) -> None:
    """Run modules until none is left, with a server of our own: fail points are for all clients."""
    with EmbeddedServer() as server:
        while True:
            try:
                module, words = todo.get_nowait()
            except queue.Empty:
                return
            began = time.monotonic()
            lines = run(server, [module, *(["-k", words] if words else [])])
            outcomes = Counter(line["outcome"] for line in lines)
            failed = [line["test"] for line in lines if line["outcome"] in ("failed", "none")]
            ours = failures_of_ours(server, failed)
            with lock:
                report.outcomes += outcomes
                report.compared += sum(line["compared"] for line in lines)
                report.failed += ours
                for line in lines:
                    report.differences += [(line["test"], one) for one in line["differences"]]
                if not lines or outcomes["none"]:
                    report.unfinished.append(module)
                seconds = time.monotonic() - began
                print(f"{module}: {in_words(outcomes)} ({seconds:.0f} s)", flush=True)
                for line in lines:
                    for one in line["differences"]:
                        print(f"  {line['test']}: {one}", flush=True)


def failures_of_ours(server: EmbeddedServer, failed: list[str]) -> list[str]:
    """Return the tests that fail with telemetry only, each time that they are repeated."""
    for _ in range(REPETITIONS):
        for books, wanted in ((False, "passed"), (True, "failed")):
            if failed:
                lines = run(server, failed, books=books)
                failed = [line["test"] for line in lines if line["outcome"] == wanted]
    return failed


def main() -> int:
    """Fetch, run and compare; return 0 if all counts agree and no test fails by us."""
    parser = argparse.ArgumentParser(prog="make test-driver", description=__doc__)
    parser.add_argument("--all", action="store_true", help="all of its tests; by hand")
    parser.add_argument("modules", nargs="*", help="such as test/test_pooling.py")
    options = parser.parse_args()
    fetch()
    (FOLDER / "log").unlink(missing_ok=True)
    wanted = modules(FOLDER, all_of_them=options.all)
    todo: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    for module in options.modules or wanted:
        todo.put((module, "" if options.modules else wanted[module]))
    report, lock = Report(), threading.Lock()
    workers = [threading.Thread(target=run_modules, args=(todo, report, lock)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return tell(report)


def tell(report: Report) -> int:
    """Print the report; return the exit code."""
    found = [*report.differences, *((test, FAILS) for test in report.failed)]
    known = Counter(reason for one in found if (reason := reason_of(*one)))
    new = [one for one in found if not reason_of(*one)]
    for reason, times in known.items():
        print(f"the driver's own, {times} times: {reason}")
    for test, difference in new:
        print(f"NOT EXPLAINED {test}: {difference}")
    for module in report.unfinished:
        print(f"did not end: {module}")
    print(f"PyMongo's tests: {in_words(report.outcomes)}")
    print(f"clients compared: {report.compared}; not explained: {len(new)}")
    return 0 if report.outcomes["passed"] and report.compared and not new else 1


def in_words(outcomes: "Counter[str]") -> str:
    return ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items())) or "none ran"


if __name__ == "__main__":
    sys.exit(main())
