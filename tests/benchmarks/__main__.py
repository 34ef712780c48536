"""Every benchmark in turn, within one process. They inform: the exit code is always 0."""

import argparse
import contextlib
import gc
import os
import platform
import time
from collections.abc import Iterator

import pymongo

from pool_telemetry.demo.embedded import EmbeddedServer
from pool_telemetry.uri import mask_uri
from tests.benchmarks.crowd import run_crowd
from tests.benchmarks.endpoints import run_endpoints
from tests.benchmarks.events import run_events
from tests.benchmarks.importing import run_import
from tests.benchmarks.in_place import run_in_place
from tests.benchmarks.measure import FULL, QUICK, show_goals, yardstick
from tests.benchmarks.memory import run_memory
from tests.benchmarks.reading import run_reading
from tests.benchmarks.sessions import run_sessions
from tests.benchmarks.spans import run_spans
from tests.benchmarks.traffic import DATABASE, connected, run_checkout, run_find_one
from tests.benchmarks.workers import run_workers


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few rounds, in about 15 s")
    effort = QUICK if parser.parse_args().quick else FULL
    for name in [name for name in os.environ if name.startswith("POOL_TELEMETRY_")]:
        del os.environ[name]

    gc.freeze()  # so that the collections between turns are short
    began = time.monotonic()
    with _server() as uri:
        print(
            f"What pool_telemetry costs: CPython {platform.python_version()}, "
            f"PyMongo {pymongo.version}, {os.cpu_count()} cores, {mask_uri(uri)}\n"
            f"Here at least: {yardstick()}"
        )
        goals = [
            *run_events(effort),
            *run_checkout(effort, uri),
            *run_find_one(effort, uri),
        ]
        run_in_place(effort, uri)
        goals += run_spans(effort, uri)
        goals += [*run_memory(effort), *run_reading(effort, uri), *run_crowd(effort, uri)]
        goals += run_endpoints(effort, uri)
        run_workers(effort, uri)
        goals += run_sessions(uri)
        goals += run_import(effort)
    show_goals(goals)
    print(f"\n{time.monotonic() - began:.0f} s")


@contextlib.contextmanager
def _server() -> Iterator[str]:
    given = os.environ.get("MONGODB_URI")
    if given:
        yield given
        with connected(given, []) as client:
            client.drop_database(DATABASE)
    else:
        with EmbeddedServer() as server:
            yield server.uri


if __name__ == "__main__":
    main()
