"""Telemetry for a client that another library makes, scraped without a web framework.

Run it:  python examples/any_client.py mongodb://localhost:27017/
Look at: http://127.0.0.1:9464/metrics
"""

import sys
import time
from typing import Any

from prometheus_client import start_http_server
from pymongo import MongoClient

from pool_telemetry import PoolTelemetry, prometheus


def main(uri: str, port: int = 9464) -> None:
    """Ping the server once a second and serve the metrics."""
    telemetry = PoolTelemetry("any")
    prometheus.register()
    start_http_server(port, addr="127.0.0.1")
    with MongoClient[dict[str, Any]](uri, event_listeners=telemetry.listeners) as client:
        while True:
            client.admin.command("ping")
            pool = telemetry.live_stats()["pool"]
            print(f"{pool['in_use']} in use, {pool['waiting']} waiting", flush=True)
            time.sleep(1)


if __name__ == "__main__":
    main(
        sys.argv[1] if len(sys.argv) > 1 else "mongodb://localhost:27017/",
        *map(int, sys.argv[2:]),
    )
