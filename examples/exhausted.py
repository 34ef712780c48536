"""My pool is exhausted: what now? The README's five steps, played on your own server.

Run it:  python examples/exhausted.py mongodb://localhost:27017/
"""

import contextlib
import logging
import sys
import threading
import time

from pymongo.errors import PyMongoError, WaitQueueTimeoutError

from pool_telemetry import Diagnosis, MongoDBConnectionPool, TelemetryOptions, diagnose, owner
from pool_telemetry.cli.doctor import describe
from pool_telemetry.report import pool_lines

CALLERS = 12


def diagnosis() -> Diagnosis:
    """Return the diagnosis, and print it like `pool-telemetry doctor`."""
    telemetry = MongoDBConnectionPool.get_telemetry()
    assert telemetry is not None
    stats = telemetry.stats()
    found = diagnose(stats, telemetry.history())
    print(describe(found, pool_lines(stats)))
    return found


def work(over: threading.Event) -> None:
    """Send finds until the end of the example."""
    with owner("checkout-flow"):
        while not over.is_set():
            with contextlib.suppress(WaitQueueTimeoutError):
                MongoDBConnectionPool.get_client()["shop"]["orders"].find_one({"open": True})


def main(uri: str) -> None:
    """Exhaust a pool, diagnose it, and enlarge it."""
    logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
    options = TelemetryOptions(name="shop", drain_seconds=3.0)
    try:
        MongoDBConnectionPool.initialize(uri, maxPoolSize=4, telemetry=options)
    except PyMongoError as error:
        sys.exit(f"no server there: {error}")
    over = threading.Event()
    threads = [
        threading.Thread(target=work, args=(over,), name=f"worker-{number}")
        for number in range(CALLERS)
    ]
    print("1. The log reports it\n")
    for thread in threads:
        thread.start()
    time.sleep(4.0)

    print("\n2. What is wrong?\n")
    found = diagnosis()

    print("\n3. Who has the connections?\n")
    stats = MongoDBConnectionPool.get_pool_stats(detail=True)
    for one in stats["holders"]:
        print(f"  {one['actor']} ({one['owner']}): {one['operation']} {one['collection']}")
    print(f"  {len(stats['waiters'])} callers wait")

    print("\n4. The pool gets the recommended size\n")
    size = found.findings[0].change["maxPoolSize"]
    print(f"  maxPoolSize={size}")
    MongoDBConnectionPool.initialize(uri, maxPoolSize=size, telemetry=options)
    time.sleep(4.0)

    print("\n5. Is it over?\n")
    diagnosis()
    over.set()
    for thread in threads:
        thread.join()
    MongoDBConnectionPool.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "mongodb://localhost:27017/")
