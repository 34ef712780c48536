"""Dashboards and rules as files, for a data source, jobs and limits of one's own.

The dashboards are made in the repository (`dashboards/`) and come with the wheel; here only what
differs from place to place is set. The rules are made here.
"""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pool_telemetry.alerts import Thresholds, alerts
from pool_telemetry.errors import PoolConfigurationError
from pool_telemetry.rules import grafana_alerts, prometheus_rules

RUNBOOKS: Final = "http://localhost:3000/d/pool-telemetry-pool?viewPanel=100"
"""The Pool dashboard in a Grafana of this machine: the runbooks are at its foot."""

LAYOUT: Final[dict[str, Any]] = {"indent": 2, "sort_keys": True, "ensure_ascii": False}
"""Of the dashboards' JSON."""

_BESIDE: Final = Path(__file__).parent
# In a wheel they are in the package, in a checkout beside it.
_FOLDER: Final = next(
    folder
    for folder in (_BESIDE / "dashboards", _BESIDE.parent / "dashboards")
    if (folder / "pool.json").exists()
)


def dashboards(
    *,
    datasource: str | None = None,
    job: str | None = None,
    connection_limit: int | None = None,
    thresholds: Thresholds | None = None,
) -> dict[str, str]:
    """Return the dashboards' files, by name.

    Args:
        datasource: The UID of Grafana's Prometheus data source; by default its default one.
        job: The job to show at first; by default all.
        connection_limit: How many connections one server takes; for the Fleet dashboard.
        thresholds: The limits that are drawn.
    """
    chosen = {"datasource": datasource, "job": job, "limit": connection_limit}
    return {
        f"{name}.json": _dumped(_adapted(_load(name), chosen, thresholds or Thresholds()))
        for name in ("pool", "fleet")
    }


def rules(
    *,
    datasource: str = "prometheus",
    job: str = "",
    runbooks: str = RUNBOOKS,
    thresholds: Thresholds | None = None,
) -> dict[str, str]:
    """Return the files of alerts, by name: rules for Prometheus, the same for Grafana, runbooks.

    Args:
        datasource: The UID of Grafana's Prometheus data source.
        job: A regular expression, whole, as Prometheus' own; empty for every job.
        runbooks: Where the runbooks are: an alert's is at `#` and its name in lower case, as in
            `runbooks.md` on a forge or a wiki.
        thresholds: The limits.

    Raises:
        PoolConfigurationError: The job is no regular expression.
    """
    try:
        re.compile(job)
    except re.error as error:
        raise PoolConfigurationError(f"job is no regular expression: {error}") from error
    every, board = alerts(job, thresholds), _load("pool")
    panels = {panel["title"]: panel["id"] for panel in board["panels"]}
    return {
        "rules.yml": prometheus_rules(every, runbooks),
        "grafana-alerts.json": grafana_alerts(
            every, runbooks, datasource=datasource, dashboard=board["uid"], panels=panels
        ),
        "runbooks.md": (_FOLDER / "runbooks.md").read_text(),
    }


def _load(name: str) -> dict[str, Any]:
    board: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text())
    return board


def _dumped(board: dict[str, Any]) -> str:
    return json.dumps(board, **LAYOUT) + "\n"


def _adapted(
    board: dict[str, Any], chosen: dict[str, Any], thresholds: Thresholds
) -> dict[str, Any]:
    for variable in board["templating"]["list"]:
        value = chosen.get(variable["name"])
        if value is not None:
            shown = [str(value)] if variable["multi"] else str(value)
            variable["current"] = {"selected": True, "text": shown, "value": shown}
            if variable["type"] == "textbox":
                variable["query"] = str(value)
    # Each default is another number, so that a step tells whose it is; a test holds it so.
    defaults = asdict(Thresholds()).items()
    limits = {value: getattr(thresholds, name) for name, value in defaults}
    for panel in board["panels"]:
        for step in (
            panel.get("fieldConfig", {}).get("defaults", {}).get("thresholds", {}).get("steps", ())
        ):
            step["value"] = limits.get(step["value"], step["value"])
    return board
