"""The rules of Grafana's dashboard-linter (github.com/grafana/dashboard-linter), in Python.

The rules' names and demands are the linter's. This version is stricter: the rules for panels hold
for every panel with queries (the linter's lists lack bargauge and heatmap) and for every value of
the data source's variable, and a warning counts as an error.
"""

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import promql_parser
from promql_parser import Call, Expr, MatchOp, MatrixSelector, VectorSelector

Json = dict[str, Any]

# The units in use, of Grafana's several hundred: any other unit is a mistake, or belongs here.
UNITS: Final = frozenset({"none", "short", "percentunit", "s", "cps", "ops", "reqps"})
WITHOUT_QUERIES: Final = ("row", "text")
WITH_UNITS: Final = ("bargauge", "gauge", "stat", "table", "timeseries")
RATE_INTERVAL: Final = timedelta(seconds=4321)  # a value that no query has by accident


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, whose `check` yields "where: what" for each violation."""

    name: str
    demands: str
    check: Callable[[Json], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Selector:
    """One selector of series in a query, and the function around it."""

    metric: str
    matchers: frozenset[tuple[str, str, str]]  # label, operator, value
    call: str  # the function that takes the selector's range, or ""
    range: timedelta | None


def lint(dashboard: Json) -> list[str]:
    """Return each violation, as "rule-name: where: what"."""
    return [f"{rule.name}: {found}" for rule in RULES for found in rule.check(dashboard)]


def _variables(dashboard: Json) -> list[Json]:
    variables: list[Json] = dashboard.get("templating", {}).get("list", [])
    return variables


def _query(variable: Json) -> str:
    query = variable.get("query", "")
    return str(query.get("query", "") if isinstance(query, dict) else query)


def _panels(dashboard: Json) -> Iterator[tuple[str, Json]]:
    """Yield each panel that must have queries, also inside rows, and how to name it."""
    for panel in dashboard.get("panels", []):
        if panel["type"] not in WITHOUT_QUERIES:
            yield f"panel {panel.get('title') or panel.get('id')!r}", panel
        yield from _panels(panel)


def _parsed(expr: str) -> Expr | str:
    """Return a query's syntax tree or its error; variables outside of quotes become numbers."""
    interval = f"{RATE_INTERVAL.total_seconds():.0f}s"
    expr = re.sub(r"\$__(rate_)?interval\b", interval, expr)
    expr = re.sub(r'("[^"]*")|\$\{?\w+\}?', lambda found: found[1] or "1", expr)
    try:
        return promql_parser.parse(expr)
    except ValueError as error:
        return str(error)


def _queries(dashboard: Json) -> Iterator[tuple[str, str]]:
    for where, panel in _panels(dashboard):
        for target in panel.get("targets", []):
            yield f"{where}, query {target.get('refId')}", target.get("expr", "")


def _selected(dashboard: Json) -> Iterator[tuple[str, Selector]]:
    """Yield the selectors of all queries that parse; target-promql-rule reports the others."""
    for where, expr in _queries(dashboard):
        tree = _parsed(expr)
        if not isinstance(tree, str):
            yield from ((where, selector) for selector in _selectors(tree))


_OPERATORS: Final = (
    (MatchOp.Equal, "="),
    (MatchOp.NotEqual, "!="),
    (MatchOp.Re, "=~"),
    (MatchOp.NotRe, "!~"),
)


def _selectors(tree: Expr) -> list[Selector]:
    found: list[Selector] = []
    call, window = "", None

    def visit(node: Expr) -> None:
        nonlocal call, window
        if isinstance(node, Call):
            call = node.func.name
        elif isinstance(node, MatrixSelector):
            window = node.range
        elif isinstance(node, VectorSelector):
            matchers = frozenset(
                (one.name, next(text for op, text in _OPERATORS if op == one.op), one.value)
                for one in node.matchers.matchers
            )
            ranged = call if window is not None else ""
            found.append(Selector(node.name or "", matchers, ranged, window))
            window = None

    promql_parser.walk(tree, visit)
    return found


def _template_datasource(dashboard: Json) -> Iterator[str]:
    sources = [one for one in _variables(dashboard) if one["type"] == "datasource"]
    if not sources:
        yield "variables: none of type datasource"
    for one in sources:
        kind = _query(one)
        names, labels = {f"{kind}_datasource"}, {f"{kind.title()} data source"}
        if len(sources) == 1:
            names.add("datasource")
            labels.add("Data source")
        if one["name"] not in names:
            yield f"variable {one['name']!r}: its name is none of {sorted(names)}"
        if one.get("label") not in labels:
            yield f"variable {one['name']!r}: its label is none of {sorted(labels)}"


def _template(name: str, dashboard: Json) -> Iterator[str]:
    """Yield what is wrong with the variable that chooses the values of the label `name`."""
    one = {variable["name"]: variable for variable in _variables(dashboard)}.get(name)
    if one is None:
        yield f"variables: no {name!r}"
        return
    source = (one.get("datasource") or {}).get("uid", "")
    wanted = {
        "datasource": source in ("$datasource", "${datasource}"),
        "type: query": one["type"] == "query",
        f"label: {name.title()}": one.get("label") == name.title(),
        "multi: true": one.get("multi") is True,
        "allValue: .+": one.get("allValue") == ".+",
    }
    yield from (f"variable {name!r}: wants {what}" for what, is_so in wanted.items() if not is_so)


def _template_label_promql(dashboard: Json) -> Iterator[str]:
    for one in _variables(dashboard):
        if one["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), *(\w+)\)", _query(one))
            if not found:
                yield f"variable {one['name']!r}: {_query(one)!r} is no label_values(query, label)"
            elif isinstance(wrong := _parsed(found[1]), str):
                yield f"variable {one['name']!r}: {found[1]!r}: {wrong}"


def _template_reload(dashboard: Json) -> Iterator[str]:
    for one in _variables(dashboard):
        if one["type"] == "query" and one.get("refresh") != 2:
            yield f"variable {one['name']!r}: refresh is {one.get('refresh')}, not 2"


def _panel_datasource(dashboard: Json) -> Iterator[str]:
    sources = [one["name"] for one in _variables(dashboard) if one["type"] == "datasource"]
    for where, panel in _panels(dashboard):
        uid = (panel.get("datasource") or {}).get("uid")
        if not any(uid in (f"${name}", f"${{{name}}}") for name in sources):
            yield f"{where}: its data source is {uid!r}, not a variable"


def _panel_title_description(dashboard: Json) -> Iterator[str]:
    for where, panel in _panels(dashboard):
        yield from (f"{where}: no {one}" for one in ("title", "description") if not panel.get(one))


def _panel_units(dashboard: Json) -> Iterator[str]:
    for where, panel in _panels(dashboard):
        defaults = panel.get("fieldConfig", {}).get("defaults", {})
        is_words = bool(defaults.get("mappings"))  # which are shown instead of the number
        if panel["type"] in WITH_UNITS and not is_words and defaults.get("unit") not in UNITS:
            yield f"{where}: unit {defaults.get('unit')!r} is not among UNITS"


def _panel_no_targets(dashboard: Json) -> Iterator[str]:
    return (f"{where}: no queries" for where, one in _panels(dashboard) if not one.get("targets"))


def _target_promql(dashboard: Json) -> Iterator[str]:
    for where, expr in _queries(dashboard):
        if isinstance(wrong := _parsed(expr), str):
            yield f"{where}: {expr!r}: {wrong}"


def _target_rate_interval(dashboard: Json) -> Iterator[str]:
    for where, one in _selected(dashboard):
        if one.call in ("rate", "irate") and one.range != RATE_INTERVAL:
            yield f"{where}: {one.call}({one.metric}[{one.range}]), not [$__rate_interval]"


def _target_matcher(label: str, dashboard: Json) -> Iterator[str]:
    for where, one in _selected(dashboard):
        if (label, "=~", f"${label}") not in one.matchers:
            yield f'{where}: {one.metric} lacks {label}=~"${label}"'


def _target_counter_agg(dashboard: Json) -> Iterator[str]:
    for where, one in _selected(dashboard):
        # The linter looks for the suffix behind the matchers, so it misses counters with matchers.
        if one.metric.endswith("_total") and one.call not in ("rate", "irate", "increase"):
            yield f"{where}: {one.metric} is in no rate, irate or increase"


def _uneditable(dashboard: Json) -> Iterator[str]:
    if dashboard.get("editable") is not False:  # Grafana's default is true
        yield "dashboard: wants editable: false"


def _of(label: str, check: Callable[[str, Json], Iterator[str]]) -> Callable[[Json], Iterator[str]]:
    return functools.partial(check, label)


RULES: Final = tuple(
    Rule(f"{name}-rule", demands, check)
    for name, demands, check in (
        ("template-datasource", "A variable chooses the data source.", _template_datasource),
        ("template-job", "A variable chooses among all values of job.", _of("job", _template)),
        (
            "template-instance",
            "A variable chooses among all values of instance.",
            _of("instance", _template),
        ),
        (
            "template-label-promql",
            "The queries of variables are valid PromQL.",
            _template_label_promql,
        ),
        (
            "template-on-time-change-reload",
            "Variables reload when the time range changes.",
            _template_reload,
        ),
        ("panel-datasource", "Every panel uses the chosen data source.", _panel_datasource),
        (
            "panel-title-description",
            "Every panel has a title and a description.",
            _panel_title_description,
        ),
        ("panel-units", "Every number has a unit.", _panel_units),
        ("panel-no-targets", "Every panel has queries.", _panel_no_targets),
        ("target-promql", "Every query is valid PromQL.", _target_promql),
        ("target-rate-interval", "Rates are over $__rate_interval.", _target_rate_interval),
        ("target-job", 'Every selector has job=~"$job".', _of("job", _target_matcher)),
        (
            "target-instance",
            'Every selector has instance=~"$instance".',
            _of("instance", _target_matcher),
        ),
        ("target-counter-agg", "Counters are in rate, irate or increase.", _target_counter_agg),
        ("uneditable-dashboard", "A generated dashboard can't be edited by hand.", _uneditable),
    )
)

NOT_APPLICABLE: Final = {
    "element-reference-rule": "about dashboards of schema v2; these have schema v1",
    "target-logql-rule": "about Loki; these dashboards query Prometheus only",
    "target-logql-auto-rule": "about Loki; these dashboards query Prometheus only",
    "target-required-matchers-rule": "experimental, and without effect unless configured",
    "template-required-variables-rule": "experimental, and without effect unless configured",
}
