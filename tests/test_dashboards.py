"""The files of dashboards and alerts are up to date, refer to each other, and can be adapted."""

import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards import generate
from pool_telemetry import PoolConfigurationError, catalog, cli
from pool_telemetry.catalog import CATALOG, POOL_ATTRIBUTES
from pool_telemetry.monitoring import files
from pool_telemetry.monitoring.alerts import alerts
from pool_telemetry.monitoring.thresholds import Thresholds
from pool_telemetry.prometheus import prometheus_label, prometheus_name
from tests.grafana import BOARDS, ROOT, board, panels
from tests.needs import needs

HERE = ROOT / "dashboards"
MADE = ("pool.json", "fleet.json", "rules.yml", "grafana-alerts.json", "metrics.md")
ALERTS = alerts()


def test_generated_files_are_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "HERE", tmp_path)
    (tmp_path / "runbooks.md").touch()
    generate.main()
    for name in MADE:
        assert (tmp_path / name).read_text() == (HERE / name).read_text(), "run `make dashboards`"


@pytest.mark.parametrize("name", [field.name for field in fields(Thresholds)])
def test_adapted_threshold_is_drawn_as_the_generator_would_draw_it(name: str) -> None:
    other = replace(Thresholds(), **{name: getattr(Thresholds(), name) * 1.02})
    made, adapted = generate.dashboards(other), files.dashboards(thresholds=other)
    assert made == adapted
    drawn = name not in ("timeout_share", "created_per_second")  # these are not drawn
    assert (made != generate.dashboards(Thresholds())) == drawn


def test_threshold_out_of_range_is_rejected() -> None:
    for name, value in {"in_use_warning": 80, "timeout_share": 0, "wait_p99_seconds": -1}.items():
        with pytest.raises(PoolConfigurationError, match=f"{name} is {value!r}: use"):
            Thresholds(**{name: value})


def test_every_metric_is_shown_on_a_dashboard() -> None:
    text = "".join((HERE / f"{name}.json").read_text() for name in BOARDS)
    unused = {m.name for m in CATALOG if prometheus_name(m) not in text}
    clients = {catalog.CLIENTS_CREATED.name, catalog.CLIENTS_OPEN.name}  # for a diagnosis
    assert unused == {catalog.EXHAUSTIONS.name} | clients  # the exhausted time says more


@pytest.mark.parametrize("name", [*MADE, "runbooks.md", "README.md"])
def test_files_use_only_metric_names_of_the_catalog(name: str) -> None:
    names = {prometheus_name(metric) for metric in (*CATALOG, catalog.PROCESS_UP)}
    known = {
        *names,
        *(f"{one}{part}" for one in names for part in ("_bucket", "_sum", "_count")),
        *(one.removesuffix("_total") for one in names),  # as recording rules are named
        *(prometheus_label(a) for m in CATALOG for a in (*POOL_ATTRIBUTES, *m.attributes)),
    }
    assert set(re.findall(r"\b(?:db|mongodb)_\w+", (HERE / name).read_text())) <= known


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_says_what_is_normal(name: str) -> None:
    found = list(panels(board(name)))
    assert len(found) > 12
    for panel in found:
        assert "ormal:" in panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    titles = [panel["title"] for panel in found]
    assert len(titles) == len(set(titles))


def test_every_alert_has_a_panel_and_a_runbook() -> None:
    pool = {panel["title"]: panel["id"] for panel in board("pool")["panels"]}
    sections = dict(
        re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", runbooks(), re.MULTILINE | re.DOTALL)
    )
    assert list(sections) == [alert.name for alert in ALERTS]
    for alert in ALERTS:
        assert alert.panel in pool
        text = sections[alert.name]
        assert re.search(
            r"^\*\*What it means:\*\*.*^- \*\*Look at first:\*\*.*^- \*\*What to do\*\*, by cause"
            r".*^- \*\*Resolved when:\*\*",
            text,
            re.MULTILINE | re.DOTALL,
        )
        assert re.findall(r"^  (\d)\. ", text, re.MULTILINE) == ["1", "2", "3"], alert.name


def test_runbooks_name_existing_panels() -> None:
    titles = {panel["title"] for name in BOARDS for panel in panels(board(name))}
    titles |= {one["name"] for one in board("pool")["annotations"]["list"]} | {"Fleet", "italics"}
    named = set(re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", runbooks()))
    assert len(named) > 15
    assert {re.sub(r"\s+", " ", one) for one in named} <= titles
    anchors = set(re.findall(r"\]\(#(\w+)\)", runbooks()))
    assert anchors <= {alert.name.lower() for alert in ALERTS}
    ident = texts()["Runbooks"]["id"]
    assert all(one["links"][0]["url"].endswith(f"viewPanel={ident}") for one in map(board, BOARDS))


def texts() -> dict[str, dict[str, Any]]:
    return {one["title"]: one for one in board("pool")["panels"] if one["type"] == "text"}


def runbooks() -> str:
    return (HERE / "runbooks.md").read_text()


def test_dashboard_has_the_runbooks_and_alerts_link_to_them() -> None:
    start, *sections = re.split(r"^## \w+\n", runbooks(), flags=re.MULTILINE)
    shown = [panel["options"]["content"] for panel in texts().values()]
    assert list(texts()) == ["Runbooks", *(alert.name for alert in ALERTS)]
    by_ident = {str(panel["id"]): title for title, panel in texts().items()}

    def named(match: re.Match[str]) -> str:
        return f"(#{by_ident[match[1]].lower()})"

    named_links = [re.sub(r"\(\?viewPanel=(\d+)\)", named, text) for text in shown]
    assert named_links == [start.partition("\n")[2].strip(), *(one.strip() for one in sections)]
    for rule in grafana():
        _, _, ident = rule["annotations"]["runbook_url"].partition(
            "/d/pool-telemetry-pool?viewPanel="
        )
        assert by_ident[ident] == rule["title"]


def grafana() -> list[dict[str, Any]]:
    made = json.loads((HERE / "grafana-alerts.json").read_text())
    (group,) = made["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_grafana_and_prometheus_get_the_same_alerts() -> None:
    (_, group) = yaml.safe_load((HERE / "rules.yml").read_text())["groups"]
    pool = board("pool")
    titles = {panel["id"]: panel["title"] for panel in pool["panels"]}
    assert len({rule["uid"] for rule in grafana()}) == len(ALERTS)
    for alert, prometheus_rule, grafana_rule in zip(ALERTS, group["rules"], grafana(), strict=True):
        data = {one["refId"]: one["model"] for one in grafana_rule["data"]}
        (condition,) = data["B"]["conditions"]
        assert data["B"]["expression"] == "A"
        assert condition["evaluator"] == {"type": "gt", "params": [alert.limit]}
        assert prometheus_rule["expr"] == f"({data['A']['expr']}) > {alert.limit:.12g}"
        assert (prometheus_rule["alert"], prometheus_rule["for"]) == (
            grafana_rule["title"],
            grafana_rule["for"],
        )
        assert prometheus_rule["labels"] == grafana_rule["labels"]
        assert grafana_rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert grafana_rule["dashboardUid"] == pool["uid"]
        assert titles[grafana_rule["panelId"]] == alert.panel
        # Every value that an annotation quotes has a query.
        quoted = set(re.findall(r"\$values\.(\w+)\.", json.dumps(grafana_rule["annotations"])))
        assert quoted <= data.keys()
        assert {one for one in data if one.startswith("ALSO_")} <= quoted
        assert len(grafana_rule["uid"]) <= 40
        assert "query (" not in json.dumps(grafana_rule)  # Grafana's templates have none


def test_commands_write_files_with_the_given_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "folder"
    assert cli.main(["dashboards", str(folder), "--datasource", "mimir", "--job", "chat"]) == 0
    more = ["--in-use-warning", "0.7", "--connection-limit", "500"]
    fleet = ["dashboards", str(folder / "more"), *more]
    assert cli.main(fleet) == 0
    pool = json.loads((folder / "pool.json").read_text())
    current = {v["name"]: v.get("current") for v in pool["templating"]["list"]}
    assert current["datasource"]["value"] == "mimir"
    assert current["job"]["value"] == ["chat"]
    assert current["instance"]["value"] == "$__all"
    (limit,) = (
        v
        for v in json.loads((folder / "more" / "fleet.json").read_text())["templating"]["list"]
        if v["name"] == "limit"
    )
    assert limit["query"] == "500"
    assert capsys.readouterr().out.count("\n") == 4

    options = ["--job", "chat|shop", "--runbooks", "https://wiki/x", "--wait-p99-seconds", "0.125"]
    assert cli.main(["rules", str(folder), "--datasource", "mimir", *options]) == 0
    text = (folder / "rules.yml").read_text()
    assert 'rate(db_client_connection_wait_time_seconds_bucket{job=~"chat|shop"}[5m])' in text
    assert "> 0.125\n" in text
    assert "https://wiki/x#mongodbpoolexhausted" in text
    assert '"datasourceUid": "mimir"' in (folder / "grafana-alerts.json").read_text()
    assert (folder / "runbooks.md").read_text() == runbooks()
    needs("promtool", package="prometheus")
    done = subprocess.run(["promtool", "check", "rules", folder / "rules.yml"], capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--in-use-warning", "80"], "in_use_warning is 80.0: use a share, above 0 and below 1"),
        (["--wait-p99-seconds", "nan"], "wait_p99_seconds is nan: use a number above 0"),
        (["--in-use-warning", "0.96"], "in_use_warning is 0.96: use less than in_use_critical"),
        (["--job", "chat("], "job is no regular expression that Prometheus knows: it has a ( w"),
        (["--job", "chat(?!room)"], "it has (?!r, an unknown kind of group"),
        (["--job", "{{x}}"], "job has '{{' or '}}'"),
        (["--job", "a\x1b"], "job has an unprintable character"),
        (["--job", "a\u2028b"], "job has an unprintable character"),
        (["--job", "\udcff"], "job has an unprintable character"),
        (["--job", "http://ann:s3cr3t@host"], "job is an address with a password"),
        (["--runbooks", "wiki page"], "runbooks is no address"),
        (["--runbooks", "https://wiki/{{ .X }}"], "runbooks is no address"),
        (["--runbooks", "https://wiki/runbooks?token=s3cr3t"], "has an '@' or a '?'"),
        (["--runbooks", "https://s3cr3t@wiki/runbooks.md"], "has an '@' or a '?'"),
        (["--grafana", "https://grafana/#top"], "grafana is no address"),
        (["--grafana", "http://ann:s3cr3t@grafana"], "has an '@' or a '?'"),
        (["--grafana", "http://ann:s3/cr3t@grafana"], "has an '@' or a '?'"),
        (["--grafana", "s3cr3t\x1b"], "grafana is no address"),
        (["--grafana", "https://grafana?auth_token=s3cr3t"], "has an '@' or a '?'"),
        (["--datasource", 'my "source"'], "use its UID"),
    ],
)
def test_invalid_option_is_reported_in_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["rules", str(tmp_path / "x"), *arguments]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said
    assert "s3cr3t" not in said
    assert said[:-1].isprintable()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("job", ["http://ann:s3cr3t@host", "a\x1b", "\udcff", "{{ x }}"])
def test_dashboards_refuse_such_a_job(
    job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["dashboards", str(tmp_path), "--job", job]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_unwritable_folder_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["rules", str(tmp_path / "file")]) == 1
    assert f"{tmp_path / 'file'} is not a folder" in capsys.readouterr().err


def test_limits_are_written_exactly() -> None:
    odd = Thresholds(timeout_share=0.00123, in_use_critical=0.995, created_per_second=1234567.8)
    text = files.rules(thresholds=odd)["rules.yml"]
    assert "> 1234567.8\n" in text
    assert "(alert above 0.123%)" in text
    assert "(alert above 99.5%)" in text


@pytest.mark.parametrize("job", ["日本é😀", 'a"b\\\\c', "chat.*|shop", "it's $1"])
def test_rules_load_for_a_job_of_any_name(job: str, tmp_path: Path) -> None:
    needs("promtool", package="prometheus")
    (tmp_path / "rules.yml").write_text(files.rules(job=job)["rules.yml"])
    done = subprocess.run(
        ["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("job", ["chat", "$HOME", "${HOME}", "chat$", "a$$b"])
def test_grafana_replaces_no_part_of_a_job(job: str) -> None:
    (group,) = json.loads(files.rules(job=job)["grafana-alerts.json"])["groups"]
    for rule, alert in zip(group["rules"], alerts(job), strict=True):
        assert rule["data"][0]["model"]["expr"] == alert.value
        del rule["annotations"]
        for query in rule["data"]:
            del query["model"]
    assert "$" not in json.dumps(group)


def test_connection_limit_of_zero_is_rejected() -> None:
    with pytest.raises(PoolConfigurationError, match="connection_limit is 0: use 1 or more"):
        files.dashboards(connection_limit=0)


def test_empty_job_means_every_job() -> None:
    assert files.dashboards(job="") == files.dashboards()
    assert files.rules(job="") == files.rules()


def test_rules_and_dashboards_need_no_grafana_sdk() -> None:
    code = (
        "import sys; sys.modules['grafana_foundation_sdk'] = sys.modules['yaml'] = None\n"
        "from pool_telemetry.monitoring.files import dashboards, rules\n"
        "print(len(rules()), len(dashboards()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "3 2\n"
