"""Pictures of a dashboard, drawn by a real browser from what a real Prometheus answers.

Grafana isn't here; `browser/page.js` draws what it would, near enough to judge by eye.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Route, sync_playwright

from tests import tools
from tests.grafana import filled, panels
from tests.needs import lacks

HERE: Final = Path(__file__).parent / "browser"
FOLDER: Final = Path(__file__).parent.parent / ".pictures"
"""The folder in which the tests leave the pictures for people."""
WIDTH: Final = 1600
# Beside loopback it has nobody to talk to, and should not try.
QUIET: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def take(
    dashboard: dict[str, Any],
    values: Mapping[str, str],
    prometheus: str,
    start: float,
    end: float,
    to: Path,
) -> list[str]:
    """Draw a dashboard, save the picture, and return what could not be drawn, by panel.

    Args:
        dashboard: The dashboard's JSON.
        values: The values of its variables.
        prometheus: The address of the Prometheus.
        start: The begin of the time that it shows, in Unix time.
        end: The end of that time.
        to: The PNG file.
    """
    for panel in panels(dashboard):
        for target in panel["targets"]:
            target["expr"] = filled(target["expr"], values)
    for mark in dashboard["annotations"].get("list", ()):
        mark["expr"] = filled(mark["expr"], values)
    time = {
        "prometheus": prometheus,
        "start": start,
        "end": end,
        "step": max(1, (end - start) / 120),
    }
    uplot = tools.package("uplot") / "dist"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(QUIET))
        page = browser.new_page(viewport={"width": WIDTH, "height": 1000})
        page.route(lambda url: not url.startswith(("file:", prometheus)), refuse)
        page.goto((HERE / "page.html").as_uri())
        page.add_style_tag(path=uplot / "uPlot.min.css")
        page.add_script_tag(path=uplot / "uPlot.iife.min.js")
        page.add_script_tag(path=HERE / "page.js")
        problems: list[str] = page.evaluate(
            "([board, time]) => draw(board, time)", [dashboard, time]
        )
        page.screenshot(path=to, full_page=True)
        browser.close()
    return problems


def chromium() -> str:
    """Return where the system's Chromium is; without it, skip the test."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    return found or lacks("no chromium: apt-get install chromium")


def refuse(route: Route) -> None:
    route.abort()
