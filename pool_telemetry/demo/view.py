"""The demo's screens: a live table in a terminal, elsewhere one line a second.

A screen shows one snapshot of the pool at a time and never uses the load or the server.
"""

import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pool_telemetry.demo.load import CYCLE, Phase
from pool_telemetry.health import Health
from pool_telemetry.report import PoolReport
from pool_telemetry.stats import ClientStats, HistogramStats, PoolStats

WINDOW_SECONDS: Final = 5.0

_WIDTH: Final = 100
_LINE_SECONDS: Final = 1.0
_HISTORY_SECONDS: Final = 0.5
_LEVELS: Final = "▁▂▃▄▅▆▇█"
_COLOURS: Final = {"healthy": "green", "degraded": "yellow", "unhealthy": "red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Intro:
    """The texts that stay the same while the demo runs."""

    server: str
    pool: str
    urls: dict[str, str]  # each URL with a description
    note: str  # empty if there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One sample to show. `wait_p99` is in seconds; None without checkouts in the last seconds."""

    pool: PoolStats
    health: Health
    wait_p99: float | None


class Recent:
    """The waits of the last few seconds: the difference of two snapshots, like PromQL's rate."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, HistogramStats]] = deque()

    def read(self, stats: ClientStats, health: Health) -> Reading:
        """Return the values to show of a snapshot."""
        # The pool of the load, because a replica set's other members have their own pools.
        pool = max(stats.open_pools or stats.pools, key=lambda one: one.checkouts["ok"])
        now, waits = time.monotonic(), pool.wait_time
        self._samples.append((now, waits))
        while now - self._samples[0][0] > WINDOW_SECONDS:
            self._samples.popleft()
        before = self._samples[0][1]
        counts = tuple(new - old for new, old in zip(waits.counts, before.counts, strict=True))
        recent = HistogramStats(waits.bounds, counts, waits.sum - before.sum, waits.max)
        return Reading(pool=pool, health=health, wait_p99=recent.quantile(0.99))


class Screen(Protocol):
    """A screen that shows the demo while its `with` block runs."""

    def show(self, phase: Phase, left_seconds: float, reading: Reading) -> None:
        """Show a sample; called several times a second."""

    def __enter__(self) -> "Screen": ...

    def __exit__(self, *_: object) -> None: ...


def screen(intro: Intro) -> Screen:
    """Return a live table if stdout is a terminal that can show it, otherwise plain lines."""
    console = Console()
    if sys.stdout.isatty() and not console.is_dumb_terminal and "utf" in console.encoding.lower():
        return TerminalScreen(intro, console)
    return PlainScreen(intro)


class PlainScreen:
    """Lines for logs and pipes, one a second and one at each change of phase. ASCII only."""

    def __init__(self, intro: Intro) -> None:
        self._intro = intro
        self._phase = ""
        self._next = 0.0

    def __enter__(self) -> "PlainScreen":
        _say(f"pool {self._intro.pool} on {self._intro.server}")
        for url, what in self._intro.urls.items():
            _say(f"open {url}  {what}")
        if self._intro.note:
            _say(f"note: {self._intro.note}")
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing, because the printed lines stay."""

    def show(
        self,
        phase: Phase,
        left_seconds: float,  # noqa: ARG002  # a log reports the past only
        reading: Reading,
    ) -> None:
        """Print a line once a second, and one at each new phase."""
        if phase.name != self._phase:
            self._phase, self._next = phase.name, 0.0
            _say(f"== {phase.name}: {phase.story} ({_load_text(phase)})")
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LINE_SECONDS
            _say("  ".join(f"{name} {value:>6}" for name, value in _columns(reading).items()))


class TerminalScreen:
    """A live table, the pool as a picture, and the history of the last half minute."""

    def __init__(self, intro: Intro, console: Console) -> None:
        self._intro = intro
        self._console = console
        # It draws only when `show` is called, without its own thread.
        self._live = Live(console=console, auto_refresh=False)
        self._history: deque[tuple[int, int]] = deque(maxlen=200)  # (in use, waiting)
        self._next = 0.0

    def __enter__(self) -> "TerminalScreen":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, phase: Phase, left_seconds: float, reading: Reading) -> None:
        """Draw the sample in place of the previous one."""
        self._remember(reading.pool)
        self._live.update(self._picture(phase, left_seconds, reading), refresh=True)

    def _remember(self, pool: PoolStats) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _HISTORY_SECONDS
            self._history.append((pool.in_use, pool.waiting))

    def _picture(self, phase: Phase, left_seconds: float, reading: Reading) -> RenderableType:
        intro = self._intro
        width = min(self._console.width, _WIDTH)
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", width=7)
        grid.add_column()
        grid.add_row("server", intro.server)
        grid.add_row("pool", intro.pool)
        if intro.note:
            grid.add_row("note", Text(intro.note, "yellow"))
        grid.add_row()
        grid.add_row("phase", _steps(phase, left_seconds))
        grid.add_row("", Text(phase.story, "bold"))
        grid.add_row("", _load_text(phase))
        grid.add_row()
        grid.add_row("now", _boxes(reading.pool))
        grid.add_row("", Text("■ in use  □ idle  · not open  ● a waiting caller", "dim"))
        shown = list(self._history)[-(width - 20) :]
        full = reading.pool.max_size or 1
        in_use, waiting = ([one[row] for one in shown] for row in (0, 1))
        grid.add_row("in use", Text(_sparkline(in_use, full), "cyan"))
        grid.add_row("waiting", Text(_sparkline(waiting, max(full, *waiting)), "red"))
        urls = Table.grid(padding=(0, 2))
        for url, what in intro.urls.items():
            urls.add_row(Text(url, "blue", no_wrap=True), Text(what, "dim"))
        return Panel(
            Group(grid, "", _table(reading), _why(reading.health), "", urls),
            title="[bold]pool_telemetry[/] demo",
            subtitle="Ctrl-C stops everything",
            box=box.ROUNDED,
            border_style=_COLOURS[reading.health.status],
            padding=(0, 2),
            width=width,
        )


def summary(stats: PoolReport, status: str) -> str:
    """Return a summary of the demo in numbers."""
    pool, checkouts, waits = stats["pool"], stats["checkouts"], stats["wait_time"]
    rows = {
        "checkouts ok": f"{checkouts['ok']}",
        "timeouts": f"{checkouts['timeout']}",
        "exhaustions": f"{pool['exhaustions']}, {pool['exhausted_seconds']:.1f} s in total",
        "longest wait": f"{_span(waits['max'])}, p99 {_span(waits['p99'])}",
        "status": status,
    }
    return "\n".join(
        [
            "What happened:",
            *(f"  {name:<13} {value}" for name, value in rows.items()),
            "To see your own pool like this:",
            "  MongoDBConnectionPool.initialize(uri)",
            "  app.include_router(create_router())",
        ]
    )


def _say(line: str) -> None:
    print(line, flush=True)


def _columns(reading: Reading) -> dict[str, str]:
    pool = reading.pool
    return {
        "in use": f"{pool.in_use}/{pool.max_size}",
        "idle": f"{pool.idle}",
        "waiting": f"{pool.waiting}",
        "oldest wait": _span(pool.oldest_wait),
        "wait p99": _span(reading.wait_p99),
        "timeouts": f"{pool.checkouts['timeout']}",
        "status": reading.health.status,
    }


def _table(reading: Reading) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    columns = _columns(reading)
    for name in columns:
        table.add_column(name, header_style="dim", no_wrap=True, min_width=7)
    *numbers, status = columns.values()
    colour = _COLOURS[reading.health.status]
    table.add_row(*(Text(one, "bold") for one in numbers), Text(status, f"bold {colour}"))
    return table


def _why(health: Health) -> Text:
    why = health.reasons[0] if health.reasons else "no problems"
    return Text(why, "dim", no_wrap=True, overflow="ellipsis")


def _steps(phase: Phase, left_seconds: float) -> Text:
    steps = Text()
    for one in CYCLE:
        current = one.name == phase.name
        steps.append(f"{'●' if current else '○'} {one.name}   ", "bold" if current else "dim")
    return steps.append(f"{left_seconds:2.0f} s", "dim")


def _load_text(phase: Phase) -> str:
    slowness = f", an operation takes {phase.slow_ms} ms in the server" if phase.slow_ms else ""
    return f"{phase.callers} callers{slowness}"


def _boxes(pool: PoolStats) -> Text:
    """Return a box for each possible connection, and a dot for each waiting caller."""
    boxes = Text(no_wrap=True, overflow="ellipsis")
    boxes.append("■ " * pool.in_use, "cyan")
    boxes.append("□ " * pool.idle, "green")
    boxes.append("· " * max(0, (pool.max_size or pool.size) - pool.in_use - pool.idle), "dim")
    return boxes.append("  " + "●" * pool.waiting, "red")


def _sparkline(values: Iterable[int], top: int) -> str:
    steps = len(_LEVELS) - 1
    return "".join(_LEVELS[-(-value * steps // max(1, top))] for value in values)


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1.0 else f"{seconds:.1f} s"
