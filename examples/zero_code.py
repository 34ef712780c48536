r"""A program without telemetry code. Three threads share two connections, so one thread waits.

Run it:  pip install 'pool-telemetry[zero-code]'
         opentelemetry-instrument --traces_exporter console --metrics_exporter console \
             python examples/zero_code.py mongodb://localhost:27017/
"""

import sys
import threading
from typing import Any

from pymongo import MongoClient


def main(uri: str = "mongodb://localhost:27017/") -> None:
    """Insert documents from three threads, and count them."""
    with MongoClient[dict[str, Any]](uri, maxPoolSize=2) as client:
        orders = client["shop"]["orders"]

        def work() -> None:
            for number in range(10):
                orders.insert_one({"number": number})

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(orders.count_documents({}), "orders")


if __name__ == "__main__":
    main(*sys.argv[1:])
