"""What Prometheus records of each job: few series, for long ranges and for federation.

`rule_files` writes them beside the alerts. No alert and no dashboard reads a recorded series, so
that both work without these rules.
"""

from pool_telemetry import catalog
from pool_telemetry.catalog import Metric
from pool_telemetry.monitoring.promql import Promql
from pool_telemetry.prometheus import prometheus_name


def recording_rules() -> dict[str, str]:
    """Return the expression of each recorded series, by its name."""
    promql = Promql()
    sums = (catalog.CONNECTIONS, catalog.MAX_SIZE, catalog.WAITING, catalog.EXHAUSTED)
    rates = (catalog.TIMEOUTS, catalog.CREATED, catalog.EXHAUSTED_SECONDS)
    quantiles = (catalog.WAIT_SECONDS, catalog.USE_SECONDS, catalog.OPERATION_SECONDS)
    return {
        **{f"job:{_name(m)}:sum": f"sum by (job) ({promql.of(m)})" for m in sums},
        **{f"job:{_name(m)}:rate5m": f"sum by (job) ({promql.rate(m)})" for m in rates},
        **{f"job:{_name(m)}:p99_5m": promql.quantile(0.99, m, "job") for m in quantiles},
    }


def _name(metric: Metric) -> str:
    # Prometheus's convention: a recorded rate drops the counter's _total.
    return prometheus_name(metric).removesuffix("_total")
