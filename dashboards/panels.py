"""How panels look: one function for each kind, so that all panels of a kind look alike.

The modules of the two dashboards call these functions. No query and no metric is chosen here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    text,
    timeseries,
)
from grafana_foundation_sdk.models import common as c
from grafana_foundation_sdk.models import dashboard as d
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

DATASOURCE: Final = d.DataSourceRef(type_val="prometheus", uid="${datasource}")
OK, WARNING, CRITICAL = "green", "orange", "red"

Panel = Any  # the SDK's builders have no base class in common
Steps = Sequence[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel, and the legend of its series."""

    expr: str
    legend: str = ""
    exemplar: bool = False


def legend(*labels: str) -> str:
    """Return the legend that shows the values of these labels."""
    return " ".join(f"{{{{{label}}}}}" for label in labels)


def warn(warning: float, critical: float | None = None) -> Steps:
    """Return the colour steps of a number that is worse the higher it is."""
    steps = [(warning, WARNING)]
    return steps if critical is None else [*steps, (critical, CRITICAL)]


def number(
    title: str,
    description: str,
    *queries: Query,
    unit: str = "short",
    steps: Steps = (),
    mappings: Sequence[d.ValueMap] = (),
) -> Panel:
    """Return one number over a graph of its past, or with `mappings` one word on its colour."""
    panel = (
        stat.Panel()
        .graph_mode(c.BigValueGraphMode.AREA)
        .color_mode(c.BigValueColorMode.BACKGROUND if mappings else c.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .span(4)
        .height(4)
    )
    if mappings:
        panel.mappings(list(mappings)).graph_mode(c.BigValueGraphMode.NONE)
    return _finished(panel, title, description, queries, unit, steps, instant=bool(mappings))


def lines(
    title: str,
    description: str,
    *queries: Query,
    unit: str = "short",
    steps: Steps = (),
    stacked: bool = False,
    colors: dict[str, str] | None = None,
) -> Panel:
    """Return series over time, with the steps as dashed lines; `colors` are by series name."""
    panel = (
        timeseries.Panel()
        .min(0)
        .fill_opacity(40 if stacked else 10)
        .line_width(1)
        .show_points(c.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(c.LegendDisplayMode.TABLE)
            .placement(c.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(
            common.VizTooltipOptions().mode(c.TooltipDisplayMode.MULTI).sort(c.SortOrder.DESCENDING)
        )
        .span(12)
        .height(8)
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(c.StackingMode.NORMAL))
    if steps:
        panel.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(c.GraphThresholdsStyleMode.DASHED)
        )
    for name, color in (colors or {}).items():
        panel.override_by_name(name, _color(color) + (_AS_LINE if name in LIMITS else []))
    return _finished(panel, title, description, queries, unit, steps)


LIMITS: Final = ("max", "limit", "possible")
_AS_LINE: Final = [
    d.DynamicConfigValue("custom.fillOpacity", 0),
    d.DynamicConfigValue("custom.stacking", {"mode": "none", "group": "A"}),
    d.DynamicConfigValue("custom.lineWidth", 2),
]


def _color(color: str) -> list[d.DynamicConfigValue]:
    return [d.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color})]


def heat_map(title: str, description: str, query: Query, unit: str = "s") -> Panel:
    """Return a histogram's buckets over time, as a heat map."""
    panel = (
        heatmap.Panel()
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heat.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .scale(heat.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(c.AxisPlacement.LEFT))
        .show_y_histogram()
        .show_legend()
        .span(12)
        .height(8)
    )
    return _finished(panel, title, description, [query], "short", (), PromQueryFormat.HEATMAP)


def ranking(
    title: str, description: str, query: Query, unit: str = "short", steps: Steps = ()
) -> Panel:
    """Return the current values as bars, the highest first."""
    panel = (
        bargauge.Panel()
        .orientation(c.VizOrientation.HORIZONTAL)
        .display_mode(c.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .min(0)
        .span(8)
        .height(9)
    )
    return _finished(panel, title, description, [query], unit, steps, instant=True)


def rows_of(title: str, description: str, query: Query, columns: dict[str, str]) -> Panel:
    """Return a table of a query's labels and value; `columns` has their headings, in order."""
    order = {name: number for number, name in enumerate(columns)}
    options = {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": columns}
    panel = (
        table.Panel()
        .with_transformation(d.DataTransformerConfig(id_val="organize", options=options))
        .span(24)
        .height(7)
    )
    return _finished(panel, title, description, [query], "short", (), PromQueryFormat.TABLE, True)


def states(title: str, description: str, *queries: Query, mappings: list[Any]) -> Panel:
    """Return a timeline of states, one bar for each series."""
    panel = (
        statetimeline.Panel()
        .show_value(c.VisibilityMode.NEVER)
        .merge_values(True)
        .row_height(0.8)
        .mappings(mappings)
        .color_scheme(dashboard.FieldColor().mode(d.FieldColorModeId.THRESHOLDS))
        .span(12)
        .height(8)
    )
    return _finished(panel, title, description, queries, "short", [(1, OK)], base=CRITICAL)


def text_panel(title: str, description: str, markdown: str, ident: int) -> Panel:
    """Return a panel of text, with a fixed id that links can use."""
    panel = text.Panel().mode(TextMode.MARKDOWN).content(markdown).span(12).height(4).id(ident)
    return panel.title(title).description(description)


def mapping(names: dict[int, tuple[str, str]]) -> list[d.ValueMap]:
    """Return the mapping from values to a text and its colour."""
    options = {
        str(value): d.ValueMappingResult(text=shown, color=color, index=index)
        for index, (value, (shown, color)) in enumerate(names.items())
    }
    return [d.ValueMap(options=options)]


def _finished(
    panel: Panel,
    title: str,
    description: str,
    queries: Sequence[Query],
    unit: str,
    steps: Steps,
    shape: PromQueryFormat = PromQueryFormat.TIME_SERIES,
    instant: bool = False,
    base: str = OK,
) -> Panel:
    # Grafana shows a description as Markdown.
    description = description.replace(" Normal: ", "\n\n**Normal:** ")
    panel.title(title).description(description).datasource(DATASOURCE).unit(unit)
    panel.thresholds(
        dashboard.ThresholdsConfig()
        .mode(d.ThresholdsMode.ABSOLUTE)
        .steps([d.Threshold(color=base), *(d.Threshold(value=v, color=k) for v, k in steps)])
    )
    for ref, query in zip("ABCDEFGH", queries, strict=False):
        target = (
            prometheus.Dataquery()
            .ref_id(ref)
            .datasource(DATASOURCE)
            .expr(query.expr)
            .legend_format(query.legend or "__auto")
            .format(shape)
        )
        if query.exemplar:
            target.exemplar(True)
        panel.with_target(target.instant() if instant else target.range())
    return panel
