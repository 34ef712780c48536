"""The Pool dashboard: one service, from "is it healthy" down to the command that is slow.

`generate` writes it as pool.json. The panels are in `pool_symptoms` and `pool_causes`; the runbooks
become panels here.
"""

import re
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import pool_causes, pool_symptoms
from dashboards.board import POOLS, PROCESSES, RUNBOOKS_PANEL, board, choice, constant, processes
from dashboards.panels import CRITICAL, WARNING, Panel, text_panel
from pool_telemetry import catalog
from pool_telemetry.catalog import Metric
from pool_telemetry.monitoring.promql import POOL, Promql
from pool_telemetry.monitoring.thresholds import Thresholds

UID: Final = "pool-telemetry-pool"
RUNBOOKS: Final = Path(__file__).parent / "runbooks.md"


def pool(limits: Thresholds) -> Dashboard:
    """Return the dashboard, with these limits drawn as lines."""
    return board(
        "MongoDB connection pool",
        UID,
        "One service: how many callers wait for a connection, how long connections are held, and "
        "why a pool is exhausted. Read it from the top: the rows go from the symptom to the cause.",
        [
            *processes(),
            choice("pool", "Pool", f"label_values({PROCESSES.of(catalog.READY)}, {POOL})"),
            constant("held", f"{limits.longest_checkout_seconds:g}"),
        ],
        [
            ("Now", pool_symptoms.now(limits)),
            ("Connections and queue", pool_symptoms.connections(limits)),
            ("Operations", pool_causes.operations()),
            ("Wait, use and create time", pool_symptoms.times(limits)),
            ("Checkouts, opened and closed connections", pool_causes.churn()),
            ("Servers", pool_causes.servers(limits)),
            ("Agents", pool_causes.agents()),
            ("Runbooks", _runbooks()),
        ],
        [
            ("Exhausted", CRITICAL, f"max by ({POOL}) ({_recent(catalog.EXHAUSTED_SECONDS)}) > 0"),
            ("Pool cleared", WARNING, f"max by ({POOL}) ({_recent(catalog.CLEARED)}) > 0"),
        ],
    )


def _runbooks() -> list[Panel]:
    """Return a panel for each runbook, so that a link can lead to it.

    Grafana removes the anchors of headings, so one panel with all runbooks would not do.
    """
    texts = re.split(r"^## (\w+)\n", RUNBOOKS.read_text(), flags=re.MULTILINE)
    idents = {name: RUNBOOKS_PANEL + 1 + n for n, name in enumerate(texts[1::2])}

    def linked(text: str) -> str:
        for name, ident in idents.items():
            text = text.replace(f"(#{name.lower()})", f"(?viewPanel={ident})")
        return text.strip()

    start = texts[0].removeprefix("# Runbooks\n")
    intro = text_panel("Runbooks", "How to use the runbooks.", linked(start), RUNBOOKS_PANEL)
    return [intro.span(24)] + [
        text_panel(
            name,
            "The alert's meaning, the first place to look at, and the remedy.",
            linked(text),
            idents[name],
        ).height(9)
        for name, text in zip(texts[1::2], texts[2::2], strict=True)
    ]


def _recent(metric: Metric) -> str:
    # Grafana queries annotations once a minute, whatever the dashboard's interval is.
    return Promql(POOLS.where, "2m").rate(metric)
