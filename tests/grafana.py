"""What Grafana does with a dashboard before it draws: variables filled in, queries asked."""

import json
import math
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pool_telemetry.catalog import WORKER

ROOT = Path(__file__).parent.parent
BOARDS = ("pool", "fleet")


def board(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "dashboards" / f"{name}.json").read_text())
    return loaded


class Prometheus:
    """The HTTP API of one."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **arguments: Any) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(arguments, doseq=True)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{arguments}: {error.read().decode()}") from error

    def value(self, expr: str, time: float | None = None) -> float | None:
        """Return the only value that a query has, by default now; None without one."""
        at = {} if time is None else {"time": time}
        found = self.get("query", query=expr, **at)["result"]
        assert len(found) <= 1, f"{expr} has several values"
        return float(found[0]["value"][1]) if found else None


@dataclass(frozen=True)
class Question:
    """One query of a panel, ready to be asked."""

    panel: str
    expr: str
    legend: str
    instant: bool
    exemplar: bool

    def problems(self, prometheus: Prometheus, start: float, end: float, step: float) -> list[str]:
        """Return why a panel would not show what it should."""
        if self.instant:
            data = prometheus.get("query", query=self.expr, time=end)
        else:
            data = prometheus.get("query_range", query=self.expr, start=start, end=end, step=step)
        series = data["result"]
        values = [float(v) for s in series for _, v in s.get("values", [s.get("value")])]
        # Only processes that share a port have the label of the worker.
        wanted = set(re.findall(r"{{\s*(\w+)\s*}}", self.legend)) - {WORKER}
        found = [
            *(["no data"] if not series else []),
            *(["nothing but NaN"] if values and all(map(math.isnan, values)) else []),
            *(
                f"{s['metric']} lacks {wanted - s['metric'].keys()}"
                for s in series
                if wanted - s["metric"].keys()
            ),
        ]
        return [f"{self.panel}: {self.expr}: {one}" for one in found]


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every panel that asks something, those of rows that are folded included."""
    for panel in dashboard["panels"]:
        yield from panel.get("panels", ())
        if panel.get("targets"):
            yield panel


def filled(text: str, values: Mapping[str, str]) -> str:
    """Put the variables' values in, as Grafana does for Prometheus."""
    # "$1" is label_replace's.
    return re.sub(r"\$\{?([A-Za-z_]\w*)\}?", lambda match: values[match[1]], text)


def variables(dashboard: dict[str, Any], prometheus: Prometheus, step: float) -> dict[str, str]:
    """Return each variable's value, as it is when the dashboard is opened."""
    # Scraped every 5 s, and shown for half an hour.
    values = {"__rate_interval": f"{max(4 * 5, step + 5):g}s", "__range": "1800s"}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            query = filled(variable["query"]["query"], values)
            asked = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
            assert asked, query
            found = prometheus.get(f"label/{asked[2]}/values", **{"match[]": asked[1]})
            assert found, f"{variable['name']} has nothing to choose: {query}"
            values[variable["name"]] = variable["allValue"]
        elif variable["type"] in ("textbox", "constant"):
            values[variable["name"]] = variable["query"]
    return values


def questions(dashboard: dict[str, Any], values: Mapping[str, str]) -> list[Question]:
    """Return every query of every panel."""
    return [
        Question(
            panel["title"],
            filled(target["expr"], values),
            target["legendFormat"],
            bool(target.get("instant")),
            bool(target.get("exemplar")),
        )
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]
