"""One collection: the stats of all clients, read once for all metrics."""

from collections.abc import Iterable
from typing import Final

from pool_telemetry.catalog import POOL_ATTRIBUTES, Metric
from pool_telemetry.registry import ClosedClients, clients_to_report
from pool_telemetry.stats import ClientStats
from pool_telemetry.version import __version__

SCOPE: Final = ("pool_telemetry", __version__)
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.40.0"


class Collection:
    """The clients' stats at the current collection; every metric of it is made from them."""

    def __init__(self) -> None:
        self.clients: list[ClientStats] = []
        self._observed: set[str] = set()
        self._closed = ClosedClients()

    def start_if_new(self, metric: Metric) -> bool:
        """Start a new collection if this metric was already observed in the current one.

        Return whether a new collection was started.
        """
        is_new = not self._observed or metric.name in self._observed
        if is_new:
            self._observed.clear()
            self.clients = clients_to_report(self._closed)
        self._observed.add(metric.name)
        return is_new


def attributes_of(metric: Metric, values: Iterable[str]) -> dict[str, str | int]:
    """Return a point's attributes by the conventions: the port as a number, no empty values."""
    pairs = zip((*POOL_ATTRIBUTES, *metric.attributes), values, strict=True)
    return {name: int(value) if name == "server.port" else value for name, value in pairs if value}
