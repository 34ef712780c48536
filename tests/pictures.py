"""`make pictures`: the README's two pictures, drawn from real runs, as small SVG files.

The demo's screen comes from rich's own export, at the moment when the pool is exhausted. The
dashboard's first panels are drawn from what a real Prometheus answers to their queries; Grafana
itself is not here.
"""

import io
import re
import time
from html import escape
from pathlib import Path
from typing import Any, Final

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from examples.stack import local
from pool_telemetry.demo import main as demo
from pool_telemetry.demo.embedded import EmbeddedServer
from pool_telemetry.demo.load import Phase
from pool_telemetry.demo.view import Intro, Reading, TerminalScreen
from tests.grafana import ROOT, Prometheus, board, filled, panels, variables

DEMO: Final = ROOT / "examples" / "pictures" / "demo.svg"
DASHBOARD: Final = ROOT / "dashboards" / "pool.svg"
SHOWN: Final = ("Connections", "Queue", "Waiting and working", "Oldest wait and longest checkout")
SECONDS: Final = 150.0
"""The stack's load has calm and exhausted phases within this time."""

_COLOURS: Final = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#b877d9")
_WIDTH, _HEIGHT, _EDGE = 460, 200, 44


class Recorder(TerminalScreen):
    """The demo's screen, which keeps its last picture of the exhausted phase."""

    def __init__(self, intro: Intro) -> None:
        super().__init__(
            intro, Console(record=True, width=100, force_terminal=True, file=io.StringIO())
        )
        self.picture: Any = None

    def show(self, phase: Phase, left_seconds: float, reading: Reading) -> None:
        """Draw the moment; keep it while callers queue."""
        super().show(phase, left_seconds, reading)
        if phase.name == "exhausted" and reading.pool.exhausted:
            self.picture = self._picture(phase, left_seconds, reading)


def draw_demo() -> None:
    """Play one cycle of the demo and save its screen."""
    recorders: list[Recorder] = []

    def screen(intro: Intro) -> Recorder:
        recorders.append(Recorder(intro))
        return recorders[0]

    demo.run(once=True, port=0, show_on=screen)
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(recorders[0].picture)
    # The reader's own font: nothing is loaded from elsewhere.
    code = re.sub(r"@font-face {{.*?}}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    code = code.replace("Fira Code, monospace", "monospace")
    svg = console.export_svg(title="pool-telemetry demo", code_format=code, unique_id="demo")
    save(DEMO, re.sub(r"(?m)^\s+", "", svg))


def draw_dashboard() -> None:
    """Run the stack through its phases and save the Pool dashboard's first panels."""
    with EmbeddedServer() as server, local.running(server.uri) as stack:
        start = time.time()
        time.sleep(SECONDS)
        prometheus, end = Prometheus(stack.prometheus), time.time()
        dashboard = board("pool")
        values = variables(dashboard, prometheus, 5.0) | {"instance": stack.app[7:]}
        found = {panel["title"]: panel for panel in panels(dashboard)}
        drawn = [chart(found[title], values, prometheus, start, end) for title in SHOWN]
    rows = "".join(
        f'<g transform="translate({n % 2 * _WIDTH} {n // 2 * _HEIGHT})">{one}</g>'
        for n, one in enumerate(drawn)
    )
    size = f"0 0 {2 * _WIDTH} {(len(drawn) + 1) // 2 * _HEIGHT}"
    save(
        DASHBOARD,
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="#181b1f"/>{rows}</svg>',
    )


def chart(
    panel: dict[str, Any], values: dict[str, str], prometheus: Prometheus, start: float, end: float
) -> str:
    """Return one panel: its title, a line for each series, their names, and the scale."""
    series: list[tuple[str, list[tuple[float, float]]]] = []
    for target in panel["targets"]:
        expr = filled(target["expr"], values)
        answer = prometheus.get("query_range", query=expr, start=start, end=end, step=5)
        for one in answer["result"]:
            labels = one["metric"]
            name = re.sub(
                r"{{\s*(\w+)\s*}}",
                lambda m: labels.get(m[1], ""),  # noqa: B023
                target["legendFormat"],
            )
            series.append((name, [(float(at), float(value)) for at, value in one["values"]]))
    top = max((value for _, line in series for _, value in line), default=1.0) or 1.0
    width, height = _WIDTH - _EDGE - 12, _HEIGHT - 62

    def place(at: float, value: float) -> str:
        x, y = _EDGE + (at - start) / (end - start) * width, 30 + (1 - value / top) * height
        return f"{x:.0f},{y:.0f}"

    lines, names = [], []
    for number, (name, line) in enumerate(series[: len(_COLOURS)]):
        colour, points = _COLOURS[number], " ".join(place(*point) for point in line)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        short = escape(name if len(name) < 26 else f"{name[:25]}…")
        names.append(f'<tspan fill="{colour}">— {short}   </tspan>')
    marks = "".join(
        f'<text x="{_EDGE - 6}" y="{34 + (1 - share) * height:.0f}" text-anchor="end" '
        f'fill="#9fa7b3">{top * share:.3g}</text>'
        for share in (0.0, 0.5, 1.0)
    )
    unit = " (s)" if panel["fieldConfig"]["defaults"]["unit"] == "s" else ""
    return (
        f'<text x="12" y="18" fill="#d8d9da" font-weight="bold">'
        f"{escape(panel['title'])}{unit}</text>"
        f'{marks}{"".join(lines)}<text x="12" y="{_HEIGHT - 12}" xml:space="preserve">'
        f"{''.join(names)}</text>"
    )


def save(path: Path, svg: str) -> None:
    """Write a picture, with no address of this run's processes."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8000", svg) + "\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    draw_demo()
    draw_dashboard()
