"""Dashboards and rules as files, for one place's data source, jobs and limits.

The command line, the example stack and `dashboards/generate.py` call it. The dashboards are
generated in the repository (`dashboards/`) and come with the wheel: this module only sets what
differs from place to place, and needs no Grafana SDK. It makes the rules itself.
"""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pool_telemetry.errors import PoolConfigurationError
from pool_telemetry.monitoring import re2
from pool_telemetry.monitoring.alerts import alerts
from pool_telemetry.monitoring.rule_files import grafana_alerts, prometheus_rules
from pool_telemetry.monitoring.thresholds import Thresholds

GRAFANA: Final = "http://localhost:3000"

LAYOUT: Final[dict[str, Any]] = {"indent": 2, "sort_keys": True, "ensure_ascii": False}
"""How the dashboards' JSON is written."""

_PACKAGE: Final = Path(__file__).parents[1]
# The wheel has the dashboards in the package, a checkout has them beside it.
_FOLDER: Final = next(
    folder
    for folder in (_PACKAGE / "dashboards", _PACKAGE.parent / "dashboards")
    if (folder / "pool.json").exists()
)


def dashboards(
    *,
    datasource: str | None = None,
    job: str | None = None,
    connection_limit: int | None = None,
    thresholds: Thresholds | None = None,
) -> dict[str, str]:
    """Return the JSON of each dashboard, by file name.

    Args:
        datasource: The UID of Grafana's Prometheus data source; by default, Grafana's default.
        job: The name of the job to show at first; by default, all jobs.
        connection_limit: How many connections one server accepts; for the Fleet dashboard.
        thresholds: The limits to draw.

    Raises:
        PoolConfigurationError: The UID or the job is not valid, or `connection_limit` is not above
            0.
    """
    if connection_limit is not None and connection_limit <= 0:
        raise PoolConfigurationError(f"connection_limit is {connection_limit}: use 1 or more")
    limits = thresholds or Thresholds()
    chosen = {
        "datasource": _check_uid(datasource),
        "job": _check_job(job) or None,
        "limit": connection_limit,
        "held": f"{limits.longest_checkout_seconds:g}",
    }
    return {
        f"{name}.json": _to_json(_adapt(_load(name), chosen, limits)) for name in ("pool", "fleet")
    }


def rules(
    *,
    datasource: str | None = None,
    job: str | None = None,
    grafana: str = GRAFANA,
    runbooks: str | None = None,
    thresholds: Thresholds | None = None,
) -> dict[str, str]:
    """Return the alerts for Prometheus and for Grafana, and their runbooks, by file name.

    Args:
        datasource: The UID of Grafana's Prometheus data source; by default, `prometheus`.
        job: A regular expression that matches the whole name of a job, in Prometheus's syntax
            (RE2); empty for every job.
        grafana: Grafana's address. Each alert links to its runbook in the Pool dashboard.
        runbooks: The address of a page with `runbooks.md`, to link there instead. An alert's
            anchor is its name in lower case.
        thresholds: The limits of the alerts.

    Raises:
        PoolConfigurationError: The job is not such an expression, an address or the UID is not
            valid.
    """
    all_alerts, board = alerts(_check_expression(job), thresholds), _load("pool")
    panels = {panel["title"]: panel["id"] for panel in board["panels"]}
    if runbooks is None:
        start = f"{_check_address('grafana', grafana)}/d/{board['uid']}?viewPanel="
        links = {alert.name: f"{start}{panels[alert.name]}" for alert in all_alerts}
    else:
        start = _check_address("runbooks", runbooks)
        links = {alert.name: f"{start}#{alert.name.lower()}" for alert in all_alerts}
    return {
        "rules.yml": prometheus_rules(all_alerts, links),
        "grafana-alerts.json": grafana_alerts(
            all_alerts,
            links,
            datasource=_check_uid(datasource) or "prometheus",
            dashboard=board["uid"],
            panels=panels,
        ),
        "runbooks.md": (_FOLDER / "runbooks.md").read_text(),
    }


def _check_job(job: str | None) -> str:
    if not job:
        return ""
    if not job.isprintable():
        raise PoolConfigurationError("job has an unprintable character, or is not in UTF-8")
    if "{{" in job or "}}" in job:
        raise PoolConfigurationError("job has '{{' or '}}', which are a template in Grafana")
    if re.search(r"://[^/\s]*@", job):
        raise PoolConfigurationError("job is an address with a password: use the name of a job")
    return job


def _check_expression(job: str | None) -> str:
    if found := re2.problem(_check_job(job)):
        raise PoolConfigurationError(
            f"job is no regular expression that Prometheus knows: it has {found}"
        )
    return job or ""


def _check_address(name: str, url: str) -> str:
    """Return an address without a slash at its end; each alert has it, and many people see it."""
    if re.search("[@?]", url):
        raise PoolConfigurationError(
            f"{name} has an '@' or a '?': use an address without user name, password, token and "
            "query, because it is written into every alert"
        )
    if not re.fullmatch(r"https?://[!-~]+", url) or re.search(r"[#{}$\\\"'`<>]", url):
        raise PoolConfigurationError(
            f"{name} is no address, such as https://example.org/runbooks.md: write other "
            "characters as %XX"
        )
    return url.rstrip("/")


def _check_uid(datasource: str | None) -> str | None:
    if datasource and not re.fullmatch(r"[\w-]{1,40}", datasource, re.ASCII):
        raise PoolConfigurationError(
            f"datasource is {datasource!r}: use its UID, of letters, digits, - and _"
        )
    return datasource or None


def _load(name: str) -> dict[str, Any]:
    board: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text())
    return board


def _to_json(board: dict[str, Any]) -> str:
    return json.dumps(board, **LAYOUT) + "\n"


def _adapt(board: dict[str, Any], chosen: dict[str, Any], thresholds: Thresholds) -> dict[str, Any]:
    for variable in board["templating"]["list"]:
        value = chosen.get(variable["name"])
        if value is not None:
            shown = [str(value)] if variable["multi"] else str(value)
            if variable["type"] in ("textbox", "constant"):
                variable["query"] = shown
            else:
                variable["current"] = {"selected": True, "text": shown, "value": shown}
    # A step is recognized by its value: a test checks that no two limits have the same default.
    defaults = asdict(Thresholds()).items()
    limits = {value: getattr(thresholds, name) for name, value in defaults}
    for panel in board["panels"]:
        for step in (
            panel.get("fieldConfig", {}).get("defaults", {}).get("thresholds", {}).get("steps", ())
        ):
            step["value"] = limits.get(step["value"], step["value"])
    return board
