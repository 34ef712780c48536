"""What one collection tells: all clients, read once."""

from collections.abc import Iterable
from typing import Final

from pool_telemetry.catalog import POOL_ATTRIBUTES, Metric
from pool_telemetry.stats import ClientStats
from pool_telemetry.telemetry import ClosedClients, live
from pool_telemetry.version import __version__

SCOPE: Final = ("pool_telemetry", __version__)
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.40.0"


class Look:
    """The clients' stats of the present collection, whose metrics are all made of it."""

    def __init__(self) -> None:
        self.clients: list[ClientStats] = []
        self._asked: set[str] = set()
        self._closed = ClosedClients()

    def begins_with(self, metric: Metric) -> bool:
        """Look again where a metric comes again; return whether that was so."""
        begins = not self._asked or metric.name in self._asked
        if begins:
            self._asked.clear()
            self.clients = [telemetry.stats() for telemetry in (*live(), *self._closed.look())]
        self._asked.add(metric.name)
        return begins


def attributes_of(metric: Metric, values: Iterable[str]) -> dict[str, str | int]:
    """Return a point's attributes by the conventions: a port is a number, no value is none."""
    pairs = zip((*POOL_ATTRIBUTES, *metric.attributes), values, strict=True)
    return {name: int(value) if name == "server.port" else value for name, value in pairs if value}
