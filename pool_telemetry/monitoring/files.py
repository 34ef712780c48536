"""Dashboards and rules as files, for a data source, jobs and limits of one's own.

The dashboards are made in the repository (`dashboards/`) and come with the wheel; here only what
differs from place to place is set. The rules are made here.
"""

import json
import re
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pool_telemetry.errors import PoolConfigurationError
from pool_telemetry.monitoring.alerts import alerts
from pool_telemetry.monitoring.rule_files import grafana_alerts, prometheus_rules
from pool_telemetry.monitoring.thresholds import Thresholds

GRAFANA: Final = "http://localhost:3000"

LAYOUT: Final[dict[str, Any]] = {"indent": 2, "sort_keys": True, "ensure_ascii": False}
"""Of the dashboards' JSON."""

_BESIDE: Final = Path(__file__).parents[1]
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
        job: The job to show at first, literally; by default all.
        connection_limit: How many connections one server takes; for the Fleet dashboard.
        thresholds: The limits that are drawn.

    Raises:
        PoolConfigurationError: No data source can have such a UID, or the limit is not above 0.
    """
    if connection_limit is not None and connection_limit <= 0:
        raise PoolConfigurationError(f"connection_limit is {connection_limit}: use 1 or more")
    limits = thresholds or Thresholds()
    chosen = {
        "datasource": _uid(datasource),
        "job": job or None,
        "limit": connection_limit,
        "held": f"{limits.longest_checkout_seconds:g}",
    }
    return {
        f"{name}.json": _dumped(_adapted(_load(name), chosen, limits)) for name in ("pool", "fleet")
    }


def rules(
    *,
    datasource: str | None = None,
    job: str | None = None,
    grafana: str = GRAFANA,
    runbooks: str | None = None,
    thresholds: Thresholds | None = None,
) -> dict[str, str]:
    """Return the files of alerts, by name: rules for Prometheus, the same for Grafana, runbooks.

    Args:
        datasource: The UID of Grafana's Prometheus data source; by default `prometheus`.
        job: A regular expression, whole, as Prometheus' own (RE2); empty for every job.
        grafana: Its address: each alert leads to its runbook in the Pool dashboard.
        runbooks: A page with the runbooks instead: an alert's is at `#` and its name in lower case,
            as in `runbooks.md` on a forge or a wiki.
        thresholds: The limits.

    Raises:
        PoolConfigurationError: The job is no such expression, an address is none, or the data
            source can't have such a UID.
    """
    every, board = alerts(_expression(job or ""), thresholds), _load("pool")
    panels = {panel["title"]: panel["id"] for panel in board["panels"]}
    if runbooks is None:
        start = f"{_address('grafana', grafana)}/d/{board['uid']}?viewPanel="
        links = {alert.name: f"{start}{panels[alert.name]}" for alert in every}
    else:
        start = _address("runbooks", runbooks)
        links = {alert.name: f"{start}#{alert.name.lower()}" for alert in every}
    return {
        "rules.yml": prometheus_rules(every, links),
        "grafana-alerts.json": grafana_alerts(
            every,
            links,
            datasource=_uid(datasource) or "prometheus",
            dashboard=board["uid"],
            panels=panels,
        ),
        "runbooks.md": (_FOLDER / "runbooks.md").read_text(),
    }


# What Python's regular expressions have and RE2, Prometheus' own, has not.
_NOT_RE2: Final = re.compile(r"\(\?(?:[=!>]|<[=!])|\\[1-9]|[*+?}]\+|[\ud800-\udfff]")


def _expression(job: str) -> str:
    try:
        with warnings.catch_warnings(action="ignore"):
            re.compile(job)
    except re.error as error:
        raise PoolConfigurationError(f"job is no regular expression: {error}") from error
    if found := _NOT_RE2.search(job):
        raise PoolConfigurationError(f"job has {found[0]!a}, which Prometheus does not know")
    return job


def _address(name: str, url: str) -> str:
    if not re.fullmatch(r"https?://[^\s#{}$]+", url):
        raise PoolConfigurationError(
            f"{name} is {url!r}: use an address, such as https://example.org/runbooks.md"
        )
    return url.rstrip("/")


def _uid(datasource: str | None) -> str | None:
    if datasource and not re.fullmatch(r"[\w-]{1,40}", datasource, re.ASCII):
        raise PoolConfigurationError(
            f"datasource is {datasource!r}: use its UID, of letters, digits, - and _"
        )
    return datasource or None


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
            if variable["type"] in ("textbox", "constant"):
                variable["query"] = shown
            else:
                variable["current"] = {"selected": True, "text": shown, "value": shown}
    # Each default is another number, so that a step tells whose it is; a test holds it so.
    defaults = asdict(Thresholds()).items()
    limits = {value: getattr(thresholds, name) for name, value in defaults}
    for panel in board["panels"]:
        for step in (
            panel.get("fieldConfig", {}).get("defaults", {}).get("thresholds", {}).get("steps", ())
        ):
            step["value"] = limits.get(step["value"], step["value"])
    return board
