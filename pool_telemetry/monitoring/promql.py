"""The queries, in PromQL: the alerts, the recording rules and the dashboards all build on these.

The names are the catalog's, so the queries work on a scrape and on an OTLP pipeline alike. Nothing
about Grafana belongs here, and no limit.
"""

from dataclasses import dataclass
from typing import Final

from pool_telemetry import catalog
from pool_telemetry.catalog import POOL_ATTRIBUTES, WORKER, Metric
from pool_telemetry.prometheus import prometheus_label, prometheus_name

POOL, HOST, PORT = map(prometheus_label, POOL_ATTRIBUTES)
STATE: Final = prometheus_label(catalog.CONNECTIONS.attributes[0])
OUTCOME: Final = prometheus_label(catalog.CHECKOUTS.attributes[0])
OWNER: Final = prometheus_label(catalog.OWNER_SECONDS.attributes[0])
REASON: Final = prometheus_label(catalog.CLOSED.attributes[0])
SERVER_TYPE: Final = prometheus_label(catalog.SERVER_TYPE.attributes[0])
COMMAND, ERROR = map(prometheus_label, catalog.OPERATION_SECONDS.attributes[3:5])
PROCESS: Final = ("job", "instance", WORKER)
"""The labels by which Prometheus knows a process.

With OTLP, they are the service's name and its `service.instance.id`. Only processes that share a
port have the last one.
"""


@dataclass(frozen=True, slots=True)
class Promql:
    """Builds queries about some series, over some time.

    Attributes:
        where: The label matchers of every selector, without braces; empty for all series.
        window: The range of every rate.
    """

    where: str = ""
    window: str = "5m"

    def of(self, metric: Metric, *matchers: str, part: str = "") -> str:
        """Return the selector of a metric's series; `part` is a histogram's `_bucket` and so on."""
        inside = ",".join(filter(None, (self.where, *matchers)))
        return prometheus_name(metric) + part + (f"{{{inside}}}" if inside else "")

    def over(self, metric: Metric, *matchers: str, part: str = "", window: str = "") -> str:
        """Return the selector of a metric's series, with a range."""
        return f"{self.of(metric, *matchers, part=part)}[{window or self.window}]"

    def rate(self, metric: Metric, *matchers: str, part: str = "") -> str:
        """Return the increase of a counter, per second."""
        return f"rate({self.over(metric, *matchers, part=part)})"

    def increase(
        self, metric: Metric, *matchers: str, part: str = "", window: str = "", offset: str = ""
    ) -> str:
        """Return the increase of a counter over the window, which ends `offset` ago."""
        ago = f" offset {offset}" if offset else ""
        return f"increase({self.over(metric, *matchers, part=part, window=window)}{ago})"

    def quantile(self, q: float | str, metric: Metric, *by: str) -> str:
        """Return a quantile of a histogram, over all selected series or grouped by labels."""
        labels = ", ".join(("le", *by))
        return f"histogram_quantile({q}, sum by ({labels}) ({self.rate(metric, part='_bucket')}))"

    def mean(self, metric: Metric, *by: str) -> str:
        """Return the mean of a histogram, over all selected series or grouped by labels."""
        group = f"by ({', '.join(by)}) " if by else ""
        total, count = (f"sum {group}({self.rate(metric, part=p)})" for p in ("_sum", "_count"))
        return f"{total} / {count}"

    def share_of_max(self, used: str = "") -> str:
        """Return the share of maxPoolSize in use, by pool; an unlimited pool has none."""
        used = used or self.in_use()
        return f"{used} / ignoring ({STATE}) {self.of(catalog.MAX_SIZE)}"

    def average_share_of_max(self) -> str:
        """Return the average share of maxPoolSize in use, of pools that are 5 minutes old."""
        # The average of a younger pool would be made from few samples.
        is_old_enough = f"{self.of(catalog.MAX_SIZE)} offset 5m"
        return f"{self.share_of_max(f'avg_over_time({self.in_use()}[5m])')} and {is_old_enough}"

    def all_checkouts(self) -> str:
        """Return how many checkouts end per second, of all outcomes, by pool."""
        return f"sum without ({OUTCOME}) ({self.rate(catalog.CHECKOUTS)})"

    def by_client(self, expr: str) -> str:
        """Return the largest value of each client's pools, under the name of the client."""
        # `NAME@host:port` becomes `NAME`. An unnamed client has no name, so the label is removed.
        named = f'label_replace({expr}, "{POOL}", "$1", "{POOL}", "(?:(.*)@)?.*")'
        return f"max by ({', '.join((*PROCESS, POOL))}) ({named})"

    def in_use(self) -> str:
        """Return the connections in use, by pool."""
        return self.of(catalog.CONNECTIONS, f'{STATE}="used"')

    def size(self, *by: str) -> str:
        """Return the number of connections, with those that are opening."""
        group = f"by ({', '.join(by)}) " if by else ""
        ready, opening = (self.of(m) for m in (catalog.CONNECTIONS, catalog.OPENING))
        return f"sum {group}({ready}) + sum {group}({opening})"
