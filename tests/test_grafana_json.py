"""The dashboards satisfy Grafana's types and its linter; each check is shown to fail."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.dashboard_lint import NOT_APPLICABLE, RULES, lint
from tests.grafana import BOARDS, board, panels
from tests.grafana_schema import PANELS, problems

Json = dict[str, Any]


@pytest.mark.parametrize("name", BOARDS)
def test_dashboard_matches_grafana_s_types(name: str) -> None:
    assert problems(board(name)) == []


def test_every_kind_of_panel_has_a_schema() -> None:
    ours = {panel["type"] for name in BOARDS for panel in board(name)["panels"]} - {"row"}
    assert ours == set(PANELS)


def of_type(dashboard: Json, kind: str) -> Json:
    found: Json = next(one for one in dashboard["panels"] if one["type"] == kind)
    return found


def defaults(dashboard: Json, kind: str) -> Json:
    found: Json = of_type(dashboard, kind)["fieldConfig"]["defaults"]
    return found


def first(dashboard: Json) -> Json:
    return next(panels(dashboard))


def variable(dashboard: Json, name: str) -> Json:
    return next(one for one in dashboard["templating"]["list"] if one["name"] == name)


UNTYPED: dict[str, tuple[Callable[[Json], object], str]] = {
    "dashboard": (lambda d: d.update(graphTooltip=7), "$.graphTooltip: 7"),
    "unknown": (lambda d: d.update(colour="red"), "$: Additional properties"),
    "variable": (lambda d: variable(d, "job").update(multi="yes"), ".multi: 'yes'"),
    "panel": (lambda d: first(d).update(interval=5), ".interval: 5 is not of type 'string'"),
    "panel's kind": (lambda d: first(d).update(type="graph"), "'graph' is none of"),
    "grid": (lambda d: first(d)["gridPos"].update(h="4"), ".gridPos.h: '4'"),
    "row": (lambda d: of_type(d, "row").update(collapsed="no"), ".collapsed: 'no'"),
    "target": (lambda d: first(d)["targets"][0].update(instant="no"), ".targets[0].instant: 'no'"),
    "target's name": (lambda d: first(d)["targets"][0].update(epxr="1"), "'epxr' was unexpected"),
    "options": (
        lambda d: of_type(d, "stat")["options"].update(graphMode="loud"),
        ".options.graphMode: 'loud'",
    ),
    "heat map": (
        lambda d: of_type(d, "heatmap")["options"].update(calculate=1),
        ".options.calculate: 1",
    ),
    "custom": (
        lambda d: defaults(d, "timeseries")["custom"].update(lineWidth="1"),
        ".custom.lineWidth: '1'",
    ),
    "threshold": (
        lambda d: defaults(d, "stat")["thresholds"]["steps"][0].update(color=3),
        ".steps[0].color: 3",
    ),
    "override": (
        lambda d: overridden(d).append({"id": "custom.fillOpacty", "value": 1}),
        "'custom.fillOpacty' is no option",
    ),
    "override's value": (
        lambda d: overridden(d).append({"id": "custom.fillOpacity", "value": "1"}),
        ".value: '1'",
    ),
}


def overridden(dashboard: Json) -> list[Json]:
    """Return the properties of the first override."""
    found: list[Json] = next(
        one["fieldConfig"]["overrides"][0]["properties"]
        for one in panels(dashboard)
        if one["fieldConfig"].get("overrides")
    )
    return found


@pytest.mark.parametrize("kind", UNTYPED)
def test_schema_finds_a_wrong_type(kind: str) -> None:
    change, words = UNTYPED[kind]
    dashboard = copy.deepcopy(board("pool"))
    change(dashboard)
    (problem, *others) = problems(dashboard)
    assert words in problem
    assert not others


@pytest.mark.parametrize("name", BOARDS)
def test_dashboard_violates_no_lint_rule(name: str) -> None:
    assert lint(board(name)) == []


def with_query(expr: str) -> Callable[[Json], object]:
    return lambda d: first(d)["targets"][0].update(expr=expr)


WHERE = '{job=~"$job", instance=~"$instance"}'
UNCLEAN: dict[str, tuple[Callable[[Json], object], ...]] = {
    "template-datasource-rule": (
        lambda d: variable(d, "datasource").update(label="Source"),
        lambda d: variable(d, "datasource").update(query="loki", name="prometheus_datasource"),
    ),
    "template-job-rule": (
        lambda d: variable(d, "job").update(multi=False),
        lambda d: variable(d, "job").update(allValue=".*"),
        lambda d: variable(d, "job").update(name="service"),
    ),
    "template-instance-rule": (lambda d: variable(d, "instance").update(label="Process"),),
    "template-label-promql-rule": (
        lambda d: variable(d, "job").update(query="label_values(job)"),
        lambda d: variable(d, "job").update(query="label_values(sum(, job)"),
    ),
    "template-on-time-change-reload-rule": (lambda d: variable(d, "job").update(refresh=1),),
    "panel-datasource-rule": (lambda d: first(d)["datasource"].update(uid="mine"),),
    "panel-title-description-rule": (
        lambda d: first(d).update(title=""),
        lambda d: first(d).pop("description"),
    ),
    "panel-units-rule": (
        lambda d: defaults(d, "timeseries").pop("unit"),
        lambda d: defaults(d, "timeseries").update(unit="sec"),
    ),
    "panel-no-targets-rule": (lambda d: first(d).pop("targets"),),
    "target-promql-rule": (with_query("sum(up"),),
    "target-rate-interval-rule": (with_query(f"rate(a_total{WHERE}[5m])"),),
    "target-job-rule": (
        with_query('up{instance=~"$instance"}'),
        with_query('up{job="$job", instance=~"$instance"}'),
    ),
    "target-instance-rule": (with_query('sum(rate(a_total{job=~"$job"}[$__rate_interval]))'),),
    "target-counter-agg-rule": (
        with_query(f"sum(a_total{WHERE})"),
        with_query(f"max_over_time(a_total{WHERE}[5m])"),
    ),
    "uneditable-dashboard-rule": (
        lambda d: d.pop("editable"),
        lambda d: d.update(editable=True),
    ),
}


def test_every_lint_rule_has_a_violation_to_find() -> None:
    assert set(UNCLEAN) == {rule.name for rule in RULES}
    assert not set(UNCLEAN) & set(NOT_APPLICABLE)


@pytest.mark.parametrize(
    ("rule", "change"), [(rule, change) for rule, changes in UNCLEAN.items() for change in changes]
)
def test_lint_rule_finds_its_violation(rule: str, change: Callable[[Json], object]) -> None:
    dashboard = copy.deepcopy(board("pool"))
    change(dashboard)
    assert rule in {found.partition(":")[0] for found in lint(dashboard)}
