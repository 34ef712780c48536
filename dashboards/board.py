"""A dashboard around its rows of panels: its variables, links and annotations.

`pool` and `fleet` call it. How a panel looks is decided in `panels`.
"""

from collections.abc import Sequence
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as d

from dashboards.panels import DATASOURCE, Panel
from pool_telemetry.catalog import CLIENT_INFO
from pool_telemetry.monitoring.promql import POOL, Promql

TAG: Final = "pool_telemetry"
RUNBOOKS_PANEL: Final = 100  # fixed, because links lead to it
RUNBOOKS: Final = f"/d/pool-telemetry-pool?viewPanel={RUNBOOKS_PANEL}"
_CHOSEN: Final = 'job=~"$job", instance=~"$instance"'
PROCESSES: Final = Promql(_CHOSEN, "$__rate_interval")
"""Queries about the processes that are chosen at the top; also for metrics of a whole client."""

POOLS: Final = Promql(f'{_CHOSEN}, {POOL}=~"$pool"', "$__rate_interval")
"""Queries about the pools that are chosen at the top of the Pool dashboard."""


def board(
    title: str,
    uid: str,
    description: str,
    variables: Sequence[Any],
    rows: Sequence[tuple[str, Sequence[Panel]]],
    annotations: Sequence[tuple[str, str, str]] = (),
) -> d.Dashboard:
    """Return a dashboard.

    Args:
        title: The name that Grafana shows.
        uid: The id by which links find the dashboard.
        description: The purpose of the dashboard.
        variables: Its variables, besides the data source.
        rows: The heading and the panels of each row.
        annotations: The name, colour and query of each annotation.
    """
    built = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG, "mongodb"])
        .readonly()
        .time("now-30m", "now")
        .refresh("10s")
        .timezone("browser")
        .tooltip(d.DashboardCursorSync.CROSSHAIR)
        .variables([_datasource(), *variables])
        .link(
            dashboard.DashboardLink("Runbooks")
            .type(d.DashboardLinkType.LINK)
            .icon("doc")
            .url(RUNBOOKS)
        )
        .link(
            dashboard.DashboardLink("Connection pools")
            .type(d.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .keep_time(True)
            .include_vars(True)
        )
    )
    for name, color, expr in annotations:
        built.annotation(
            dashboard.AnnotationQuery()
            .name(name)
            .datasource(DATASOURCE)
            .enable(True)
            .icon_color(color)
            .expr(expr)
        )
    for heading, panels in rows:
        built.with_row(dashboard.Row(heading))
        for added in panels:
            built.with_panel(added)
    model = built.build()
    for ident, panel in enumerate(model.panels or (), 1):
        panel.id_val = panel.id_val or ident
    return model


def choice(name: str, shown: str, values: str) -> Any:
    """Return a variable that chooses values of a label; by default all."""
    return (
        dashboard.QueryVariable(name)
        .label(shown)
        .datasource(DATASOURCE)
        .query({"query": values, "refId": name})
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(d.VariableOption(selected=True, text="All", value="$__all"))
        .refresh(d.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(d.VariableSort.ALPHABETICAL_ASC)
    )


def processes() -> list[Any]:
    """Return the variables that choose processes: job and instance."""
    info = Promql().of(CLIENT_INFO)
    of_job = Promql('job=~"$job"').of(CLIENT_INFO)
    return [
        choice("job", "Job", f"label_values({info}, job)"),
        choice("instance", "Instance", f"label_values({of_job}, instance)"),
    ]


def text_box(name: str, shown: str, description: str, value: str) -> Any:
    """Return a variable that a person types in."""
    return (
        dashboard.TextBoxVariable(name).label(shown).description(description).default_value(value)
    )


def constant(name: str, value: str) -> Any:
    """Return a hidden variable."""
    return dashboard.ConstantVariable(name).value(value)


def _datasource() -> Any:
    return (
        dashboard.DatasourceVariable("datasource")
        .label("Data source")
        .type("prometheus")
        .current(d.VariableOption(selected=True, text="default", value="default"))
    )
