"""The whole way: a service under load, Prometheus, its rules, Alertmanager, and the dashboards.

The test runs `make stack-local`.
"""

import json
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from examples.stack import local
from pool_telemetry import cli
from tests import picture
from tests.grafana import BOARDS, Prometheus, board, filled, panels, questions, variables
from tests.needs import needs
from tests.otlp import Received, receiver
from tests.support import wait_for

pytestmark = pytest.mark.stack

STEP_SECONDS = 5.0
ALERT = "MongoDBPoolExhausted"


@dataclass
class Seen:
    """The answers of the dashboards in one phase."""

    end: float  # when they were looked at, in Unix time
    problems: list[str] = field(default_factory=list)
    links: set[str] = field(default_factory=set)  # to traces
    marks: set[str] = field(default_factory=set)  # the annotations that there were


@dataclass
class Story:
    """The observations in each phase."""

    received: Received
    prometheus: Prometheus
    start: float  # in Unix time, as all
    pages: dict[str, list[str]]
    exhausted: float = 0.0  # since when
    seen: dict[str, Seen] = field(default_factory=dict)
    alert: dict[str, Any] = field(default_factory=dict)
    firing_seconds: float = 0.0
    resolved: dict[str, Any] = field(default_factory=dict)
    quiet: list[str] = field(default_factory=list)


class Service:
    def __init__(self, url: str) -> None:
        self.url = url

    def hold(self, phase: str) -> float:
        """Go to a phase, and return when."""
        request = urllib.request.Request(f"{self.url}/load/{phase}", method="PUT")
        urllib.request.urlopen(request, timeout=20).close()
        return time.time()

    def alert(self, status: str) -> dict[str, Any] | None:
        """Return ALERT, if Alertmanager sent it with this status."""
        with urllib.request.urlopen(f"{self.url}/alerts", timeout=20) as answer:
            said = [one for message in json.load(answer) for one in message["alerts"]]
        wanted = (status, ALERT)
        found = (one for one in said if (one["status"], one["labels"]["alertname"]) == wanted)
        return next(found, None)


wait = partial(wait_for, seconds=150, pause=0.2)


def look(prometheus: Prometheus, start: float) -> Seen:
    """Ask everything that the dashboards ask, since this time."""
    seen = Seen(time.time())
    time_range = {"start": start, "end": seen.end}
    for dashboard in map(board, BOARDS):
        values = variables(dashboard, prometheus, STEP_SECONDS)
        for one in questions(dashboard, values):
            seen.problems += one.problems(prometheus, **time_range, step=STEP_SECONDS)
            if one.exemplar:
                found = prometheus.get("query_exemplars", query=one.expr, **time_range)
                seen.links |= {e["labels"]["trace_id"] for s in found for e in s["exemplars"]}
        for mark in dashboard["annotations"].get("list", ()):
            asked = {"query": filled(mark["expr"], values), "step": STEP_SECONDS, **time_range}
            if prometheus.get("query_range", **asked)["result"]:
                seen.marks.add(mark["name"])
    return seen


@pytest.fixture(scope="module")
def story(server_uri: str) -> Iterator[Story]:
    needs(*local.PROGRAMS, package=" ".join(local.PROGRAMS))
    with (
        receiver("http/protobuf") as received,
        local.running(
            server_uri,
            LOAD="calm",
            OTEL_EXPORTER_OTLP_ENDPOINT=received.endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        ) as stack,
    ):
        service, prometheus = Service(stack.app), Prometheus(stack.prometheus)
        story = Story(received, prometheus, start := time.time(), stack.pages())
        scrapes = "min(count_over_time(mongodb_client_info[10m]))"
        wait(lambda: (prometheus.value(scrapes) or 0) >= 5, "scrapes of the calm")
        story.seen["calm"] = look(prometheus, start)
        story.quiet = [one["labels"]["alertname"] for one in prometheus.get("alerts")["alerts"]]

        start = service.hold("rush")
        queued = "sum(increase(mongodb_client_pool_exhaustions_total[30s]))"
        wait(lambda: prometheus.value(queued), "callers who wait")
        story.seen["rush"] = look(prometheus, start - 20)

        story.exhausted = start = service.hold("exhausted")
        story.alert = wait(lambda: service.alert("firing"), "the alert")
        story.firing_seconds = time.time() - start
        story.seen["exhausted"] = look(prometheus, start)

        service.hold("recovered")
        story.resolved = wait(lambda: service.alert("resolved"), "the end of the alert")
        yield story


@pytest.mark.parametrize("phase", ["calm", "rush", "exhausted"])
def test_every_query_of_every_panel_has_an_answer(story: Story, phase: str) -> None:
    assert story.seen[phase].problems == []


@pytest.mark.parametrize(
    ("phase", "expected"),
    [("calm", ["Healthy", "Not exhausted"]), ("exhausted", ["Exhausted", "Held for longer"])],
)
def test_the_dashboard_says_in_words_what_is_wrong(
    story: Story, phase: str, expected: list[str]
) -> None:
    dashboard = board("pool")
    values = variables(dashboard, story.prometheus, STEP_SECONDS)
    said = []
    for panel in list(panels(dashboard))[:2]:
        ((mapping,), (target,)) = panel["fieldConfig"]["defaults"]["mappings"], panel["targets"]
        # Soon after it began: these are minutes to compare with, not a day.
        at = story.exhausted + 25 if phase == "exhausted" else story.seen[phase].end
        value = story.prometheus.value(filled(target["expr"], values), at)
        said.append(mapping["options"][f"{value:g}"]["text"])
    assert said == expected


def test_every_address_that_is_printed_answers(story: Story) -> None:
    urls = [url for urls in story.pages.values() for url in urls]
    assert len(urls) == 5
    for url in urls:
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert answer.status == 200


def test_calm_alerts_nobody(story: Story) -> None:
    assert story.quiet == []


def test_exhaustion_alerts_within_a_minute(story: Story) -> None:
    assert story.firing_seconds < 60
    text = story.alert["annotations"]
    assert text["summary"].startswith("Pool chat@127.0.0.1:")
    assert text["description"].startswith("All 8 connections of pool chat@127.0.0.1:")
    assert story.alert["labels"]["severity"] == "critical"


def test_recovery_ends_the_alert(story: Story) -> None:
    assert story.resolved["labels"] == story.alert["labels"]


def test_exhaustion_is_marked_in_the_dashboard(story: Story) -> None:
    assert story.seen["calm"].marks == set()
    assert story.seen["exhausted"].marks == {"Exhausted"}


def test_exemplars_lead_to_traces_that_were_sent(story: Story) -> None:
    sent = {span.trace_id.hex() for span in story.received.spans}
    for phase, seen in story.seen.items():
        assert seen.links, phase
        assert seen.links <= sent, phase


@pytest.mark.parametrize("name", BOARDS)
@pytest.mark.parametrize("phase", ["calm", "exhausted"])
def test_a_browser_draws_it(story: Story, phase: str, name: str) -> None:
    picture.FOLDER.mkdir(exist_ok=True)
    to = picture.FOLDER / f"{name}-{phase}.png"
    to.unlink(missing_ok=True)
    assert drawn(story, board(name), story.seen[phase].end, to) == []
    assert to.read_bytes().startswith(b"\x89PNG")


def test_sizes_are_read_from_it(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = cli.main(["size", story.prometheus.url, "--json"]), capsys.readouterr()
    assert code == 0, told.err
    (found,) = json.loads(told.out)
    assert ", the busiest of 2 processes, in its busiest minute of the last hour" in found["source"]
    assert found["recommended"] > found["max_pool_size"] == 8  # it was exhausted
    assert found["rate_per_second"] > 1.0
    assert 0.0 < found["use_seconds"] < 10.0
    assert found["pool"].startswith("chat@")


def test_the_browser_tells_what_it_can_not_draw(story: Story, tmp_path: Path) -> None:
    wrong = board("pool")
    one, other = list(panels(wrong))[:2]
    one["targets"][0]["expr"] = "sum("
    other["targets"][0]["expr"] = "nothing_of_that_name"
    problems = drawn(story, wrong, story.seen["calm"].end, tmp_path / "x.png")
    assert {problem.partition(":")[0] for problem in problems} == {one["title"], other["title"]}


def drawn(story: Story, dashboard: dict[str, Any], end: float, to: Path) -> list[str]:
    values = variables(dashboard, story.prometheus, STEP_SECONDS)
    return picture.take(dashboard, values, story.prometheus.url, story.start, end, to)
