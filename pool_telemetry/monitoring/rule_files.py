"""The alerts as files: rules for Prometheus, and the same for Grafana's own alerting.

`files` calls this module with the alerts and addresses of one place. Which alerts exist and when
they fire is not decided here.
"""

import json
import string
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pool_telemetry import catalog
from pool_telemetry.monitoring.model import Alert
from pool_telemetry.monitoring.promql import POOL, PROCESS, Promql
from pool_telemetry.monitoring.recording_rules import recording_rules

FOLDER: Final = "MongoDB connection pools"

_FORMATS: Final = {"share": "humanizePercentage", "seconds": "humanizeDuration"}
_SERIES: Final = (*PROCESS, POOL)
# The metrics that a description may quote, by the name that the description uses.
_CURRENT: Final = {"waiting": catalog.WAITING, "max_size": catalog.MAX_SIZE}


def prometheus_rules(alerts: tuple[Alert, ...], runbooks: Mapping[str, str]) -> str:
    """Return a rule file for Prometheus, in YAML.

    Args:
        alerts: The alerts to write.
        runbooks: The address of each alert's runbook, by the alert's name.
    """
    rules = [{"record": name, "expr": expr} for name, expr in recording_rules().items()]
    groups = {
        "pool_telemetry.recorded": rules,
        "pool_telemetry.alerts": [_prometheus(alert, runbooks[alert.name]) for alert in alerts],
    }
    return "\n".join(("# Made by `pool-telemetry rules`.", "groups:", *_yaml(groups))) + "\n"


def _prometheus(alert: Alert, runbook: str) -> dict[str, Any]:
    current = {name: _lookup(Promql().of(metric)) for name, metric in _CURRENT.items()}
    return {
        "alert": alert.name,
        "expr": f"({alert.value}) > {_exact(alert.limit)}",
        "for": alert.pending_for,
        "labels": {"severity": alert.severity},
        "annotations": _annotations(alert, runbook, "$value", current),
    }


def _lookup(metric: str) -> str:
    """Return the template that looks up another metric of the alert's pool."""
    selector = metric + "{" + ",".join(f"{label}=%q" for label in _SERIES) + "}"
    labels = " ".join(f"$labels.{label}" for label in _SERIES)
    query = f"query (printf `{selector}` {labels})"
    return f"{{{{ with {query} }}}}{{{{ . | first | value }}}}{{{{ end }}}}"


def _yaml(groups: Mapping[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Yield the lines of YAML, in which a JSON string is also a valid string."""
    for name, rules in groups.items():
        yield f"  - name: {name}\n    rules:"
        for rule in rules:
            start = "      - "
            for key, value in rule.items():
                if isinstance(value, dict):
                    yield f"{start}{key}:"
                    yield from (
                        f"          {k}: {json.dumps(v, ensure_ascii=False)}"
                        for k, v in value.items()
                    )
                elif key == "expr":
                    yield f"{start}{key}: |-\n          {value}"
                else:
                    yield f"{start}{key}: {value}"
                start = "        "


def grafana_alerts(
    alerts: tuple[Alert, ...],
    runbooks: Mapping[str, str],
    *,
    datasource: str,
    dashboard: str,
    panels: Mapping[str, int],
) -> str:
    """Return a provisioning file for Grafana's `provisioning/alerting/`, in JSON.

    Grafana replaces `$X` by a variable of its environment in all texts, except in annotations and
    in the `model` of a query. Only these two have a text of the user, and a `$`.

    Args:
        alerts: The alerts to write.
        runbooks: The address of each alert's runbook, by the alert's name.
        datasource: The UID of Grafana's Prometheus data source.
        dashboard: The UID of the dashboard that the alerts link to.
        panels: The ids of that dashboard's panels, by title.
    """
    rules = [
        _grafana(alert, runbooks[alert.name], datasource)
        | {"dashboardUid": dashboard, "panelId": panels[alert.panel]}
        for alert in alerts
    ]
    group = {"orgId": 1, "name": "pool_telemetry", "folder": FOLDER, "interval": "30s"}
    return json.dumps({"apiVersion": 1, "groups": [{**group, "rules": rules}]}, indent=2) + "\n"


def _grafana(alert: Alert, runbook: str, datasource: str) -> dict[str, Any]:
    quoted = {field for _, field, _, _ in string.Formatter().parse(alert.description)}
    current = {name: metric for name, metric in _CURRENT.items() if name in quoted}
    source = {"type": "prometheus", "uid": datasource}
    queries = {"A": alert.value, **{f"ALSO_{n}": Promql().of(m) for n, m in current.items()}}
    return {
        "uid": alert.name.lower(),
        "title": alert.name,
        "condition": "B",
        "data": [
            *(
                {
                    "refId": name,
                    "relativeTimeRange": {"from": 600, "to": 0},
                    "datasourceUid": datasource,
                    "model": {"refId": name, "datasource": source, "expr": expr, "instant": True},
                }
                for name, expr in queries.items()
            ),
            {
                "refId": "B",
                "datasourceUid": "__expr__",
                "model": {
                    "refId": "B",
                    "datasource": {"type": "__expr__", "uid": "__expr__"},
                    "type": "threshold",
                    "expression": "A",
                    "conditions": [{"evaluator": {"type": "gt", "params": [alert.limit]}}],
                },
            },
        ],
        "noDataState": "OK",  # no value is above its limit; missing metrics have their own alert
        "execErrState": "Error",
        "for": alert.pending_for,
        "labels": {"severity": alert.severity},
        "annotations": _annotations(
            alert,
            runbook,
            "$values.A.Value",
            {name: f"{{{{ $values.ALSO_{name}.Value }}}}" for name in current},
        ),
    }


def _annotations(
    alert: Alert, runbook: str, value: str, current: Mapping[str, str]
) -> dict[str, str]:
    job, instance, worker, pool = (f"$labels.{label}" for label in _SERIES)
    of_several = f"{{{{ with {worker} }}}} worker {{{{ . }}}}{{{{ end }}}}"
    shape = _FORMATS.get(alert.unit, "printf `%.3g`")
    words = {
        "job": f"{{{{ {job} }}}}",
        "process": f"{{{{ {instance} }}}}{of_several}",
        "pool": f"{{{{ {pool} }}}}",
        "value": f"{{{{ {value} | {shape} }}}}",
        "limit": f"{_exact(100 * alert.limit)}%"
        if alert.unit == "share"
        else _exact(alert.limit) + " s" * (alert.unit == "seconds"),
        **current,
    }
    return {
        "summary": alert.summary.format(**words),
        "description": alert.description.format(**words),
        "runbook_url": runbook,
    }


def _exact(number: float) -> str:
    return f"{number:.12g}"
