"""One collection: the stats of all clients, read once for all metrics."""

from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

from pool_telemetry.catalog import CATALOG, POOL_ATTRIBUTES, Metric
from pool_telemetry.registry import ClosedClients, Collected, collect
from pool_telemetry.stats import ClientStats
from pool_telemetry.version import __version__

SCOPE: Final = ("pool_telemetry", __version__)
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.40.0"

SeriesKey = tuple[str, tuple[str, ...]]
"""A metric's name, and the values of its attributes."""

_T = TypeVar("_T")


class Collection:
    """The clients' stats at the current collection; every metric of it is made from them."""

    def __init__(self) -> None:
        self._collected = Collected([], [])
        self._observed: set[str] = set()
        self._closed = ClosedClients()

    def start_if_new(self, metric: Metric) -> bool:
        """Start a new collection if this metric was already observed in the current one.

        Return whether a new collection was started.
        """
        is_new = not self._observed or metric.name in self._observed
        if is_new:
            self._observed.clear()
            self._collected = collect(self._closed)
        self._observed.add(metric.name)
        return is_new

    @property
    def clients(self) -> list[ClientStats]:
        """Return one `ClientStats` for each name."""
        return self._collected.clients

    def of_known(self, before: Mapping[SeriesKey, _T]) -> dict[SeriesKey, _T]:
        """Return the entries of the histograms that exist, shown or aged out.

        A series that aged out goes on from its counts when it returns: durations that were sent
        must not be sent again.

        Args:
            before: An entry for each series that was sent.
        """
        return {
            key: before[key]
            for metric in CATALOG
            if metric.bounds
            for client in self._collected.everything
            for values, _ in metric.read(client)
            if (key := (metric.name, values)) in before
        }


def attributes_of(metric: Metric, values: Iterable[str]) -> dict[str, str | int]:
    """Return a point's attributes by the conventions: the port as a number, no empty values."""
    pairs = zip((*POOL_ATTRIBUTES, *metric.attributes), values, strict=True)
    return {name: int(value) if name == "server.port" else value for name, value in pairs if value}
