"""Writes the generated files of this folder: `make dashboards`.

A test generates them again and compares. The files that users get for their own data source, jobs
and limits are made of these by `pool_telemetry.monitoring.files`.
"""

import json
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.fleet import fleet
from dashboards.pool import pool
from pool_telemetry.aging import CLOSED_SECONDS, UNUSED_SECONDS
from pool_telemetry.catalog import CATALOG, POOL_ATTRIBUTES, PROCESS_UP, WORKER, Metric
from pool_telemetry.monitoring.files import LAYOUT, rules
from pool_telemetry.monitoring.thresholds import Thresholds
from pool_telemetry.prometheus import prometheus_name

HERE: Final = Path(__file__).parent


def dashboards(limits: Thresholds) -> dict[str, str]:
    """Return the JSON of each dashboard, by file name."""
    made = {"pool.json": pool(limits), "fleet.json": fleet(limits)}
    return {
        name: json.dumps(board, cls=JSONEncoder, **LAYOUT) + "\n" for name, board in made.items()
    }


def metrics() -> str:
    """Return the table of all metrics, in Markdown."""

    def row(metric: Metric) -> str:
        unit = metric.unit.strip("{}")
        extra = f" {{{', '.join(metric.attributes)}}}" if metric.attributes else ""
        return (
            f"| `{prometheus_name(metric)}` | `{metric.name}`{extra} "
            f"| {metric.instrument}, {unit} | {metric.description} |"
        )

    every = ", ".join(f"`{name}`" for name in POOL_ATTRIBUTES)
    return "\n".join(
        (
            "# Metrics",
            "",
            "The names follow OpenTelemetry's semantic conventions. `mongodb.client.*` is what the",
            "conventions lack. In Prometheus, underscores replace the dots. Every metric has the",
            f"attributes {every};",
            "a metric's own attributes are in braces.",
            "",
            f"If a service has several processes, scraped metrics have the label `{WORKER}`.",
            "The last row has no other of those attributes.",
            "",
            "Unused series are left out: those of a pool that has been closed for "
            f"{CLOSED_SECONDS / 60:g} minutes,",
            f"those of commands {UNUSED_SECONDS / 3600:g} hour after the last one. A series that "
            "returns",
            "goes on from its counts.",
            "",
            "| Prometheus | OpenTelemetry | instrument, unit | meaning |",
            "|---|---|---|---|",
            *map(row, (*CATALOG, PROCESS_UP)),
            "",
        )
    )


def main() -> None:
    """Write all files; the dashboards first, because the alerts link to their panels."""
    (HERE / "metrics.md").write_text(metrics())
    for name, text in dashboards(Thresholds()).items():
        (HERE / name).write_text(text)
    for name, text in rules().items():
        (HERE / name).write_text(text)


if __name__ == "__main__":
    main()
