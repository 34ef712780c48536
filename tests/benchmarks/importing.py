"""Measure the import: the CPU time that it takes over PyMongo's, in processes of its own."""

import subprocess
import sys

from tests.benchmarks.measure import Effort, Goal, show_heading

IMPORT_MILLISECONDS = 150.0

_CODE = """
import sys, time
import pymongo, pymongo.asynchronous.mongo_client
before, known = time.process_time(), set(sys.modules)
import pool_telemetry
print((time.process_time() - before) * 1e3, len(set(sys.modules) - known))
"""


def run_import(effort: Effort) -> list[Goal]:
    """Measure (i)."""
    show_heading(
        "i",
        "Importing pool_telemetry after PyMongo: milliseconds of CPU time",
        f"at best {IMPORT_MILLISECONDS:g} ms",
    )
    found = []
    for _ in range(effort.import_rounds):
        said = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, check=True).stdout
        milliseconds, modules = said.split()
        found.append(float(milliseconds))
    print(f"    {int(modules)} modules, min {min(found):,.1f} ms, max {max(found):,.1f} ms")
    return [Goal("i", "import, at best", IMPORT_MILLISECONDS, min(found), "ms", digits=1)]
