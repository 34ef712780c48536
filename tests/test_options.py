"""Our own options, and the options that MongoClient gets."""

import os
import pydoc
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from pool_telemetry import PoolConfigurationError, PoolTelemetryError, TelemetryOptions
from pool_telemetry.client_options import DEFAULTS, client_kwargs
from pool_telemetry.ranges import shown
from tests.support import logged

URI = "mongodb://h:1/"


def test_uri_and_keyword_arguments_override_defaults_in_any_case() -> None:
    kwargs = client_kwargs(URI + "?MaxIdleTimeMS=1&retryreads=false", {"connecttimeoutms": 2})
    assert kwargs == {
        **{
            key: value
            for key, value in DEFAULTS.items()
            if key not in {"maxIdleTimeMS", "retryReads", "connectTimeoutMS"}
        },
        "connecttimeoutms": 2,
    }


@pytest.mark.parametrize(
    ("uri", "kwargs", "expected"),
    [
        (URI, {"maxPoolSize": 4}, 4),
        (URI + "?maxPoolSize=4", {}, 4),
        (URI, {"maxPoolSize": 0}, 0),
        (URI, {"maxPoolSize": None}, 10),
        (URI, {}, 10),
    ],
)
def test_default_minimum_never_exceeds_the_maximum(
    uri: str, kwargs: dict[str, Any], expected: int
) -> None:
    assert client_kwargs(uri, kwargs)["minPoolSize"] == expected


@pytest.mark.parametrize(
    ("uri", "kwargs"),
    [(URI, {"maxPoolSize": 5, "minPoolSize": 6}), (URI + "?minPoolSize=6", {"maxpoolsize": 5})],
)
def test_minimum_set_above_the_maximum_is_refused(uri: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(PoolConfigurationError, match="raise maxPoolSize or lower minPoolSize"):
        client_kwargs(uri, kwargs)


def test_help_and_readme_have_each_option_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("POOL_TELEMETRY_")]:
        monkeypatch.delenv(variable)
    text = pydoc.plain(pydoc.render_doc(TelemetryOptions))
    entry = r"^ \|      (\w+): ((?:.|\n \|   {7,})+?)(?: |\n \|\s+)Default: (\S+)\.$"
    described = re.findall(entry, text, re.MULTILINE)
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (\S+) \| .+ \|$", readme, re.MULTILINE)
    in_readme = {name: default for names, default in rows for name in re.findall(r"\w+", names)}
    defaults = {one.name: getattr(TelemetryOptions(), one.name) for one in fields(TelemetryOptions)}
    assert [name for name, _, _ in described] == list(defaults)
    for name, meaning, default in described:
        assert default == in_readme[name] == in_words(name, defaults[name])
        assert not name.endswith("_seconds") or meaning.startswith("Seconds")


def in_words(name: str, default: Any) -> str:
    if default is None:
        return "auto" if name == "command_spans" else "none"
    if isinstance(default, bool):
        return str(default).lower()
    return str(default or "empty") if isinstance(default, str) else f"{default:g}"


def test_options_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOL_TELEMETRY_NAME", "chat")
    monkeypatch.setenv("POOL_TELEMETRY_OPERATIONS", "False")
    monkeypatch.setenv("POOL_TELEMETRY_MAX_OPERATION_SERIES", "7")
    monkeypatch.setenv("POOL_TELEMETRY_DRAIN_SECONDS", "1.5")
    monkeypatch.setenv("POOL_TELEMETRY_COMMAND_SPANS", "TRUE")
    monkeypatch.setenv("POOL_TELEMETRY_QUERY_TEXT", "1")
    monkeypatch.setenv("POOL_TELEMETRY_SLOW_CHECKOUT_SECONDS", "0")
    assert TelemetryOptions() == TelemetryOptions(
        name="chat",
        operations=False,
        max_operation_series=7,
        drain_seconds=1.5,
        command_spans=True,
        query_text=True,
        slow_checkout_seconds=0.0,
    )
    monkeypatch.setenv("POOL_TELEMETRY_COMMAND_SPANS", "auto")
    assert TelemetryOptions().command_spans is None
    assert TelemetryOptions(name="other").name == "other"
    assert not TelemetryOptions(name="other").operations


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("OPERATIONS", "maybe", "use true or false"),
        ("MAX_OPERATION_SERIES", "many", "use a whole number"),
        ("DRAIN_SECONDS", "soon", "use a number of seconds"),
        ("COMMAND_SPANS", "maybe", "use true, false or auto"),
        ("QUERY_TEXT", "maybe", "use true or false"),
        ("SLOW_CHECKOUT_SECONDS", "soon", "use a number of seconds"),
    ],
)
def test_error_of_an_environment_variable_has_its_name_and_the_allowed_values(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, expected: str
) -> None:
    monkeypatch.setenv(f"POOL_TELEMETRY_{variable}", text)
    with pytest.raises(
        PoolTelemetryError, match=f"POOL_TELEMETRY_{variable} is '{text}': {expected}"
    ):
        TelemetryOptions()


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a@b"},
        {"name": "a\nb"},
        {"name": "a\udc80"},
        {"name": "a" * 201},
        {"name": None},
        {"operations": "false"},
        {"max_operation_series": 1.5},
        {"max_operation_series": True},
        {"max_operation_series": "5"},
        {"max_operation_series": 0},
        {"max_operation_series": 100_001},
        {"max_operation_series": 10**5_000},
        {"drain_seconds": "3"},
        {"drain_seconds": True},
        {"drain_seconds": -1.0},
        {"drain_seconds": 86_400.0},
        {"drain_seconds": 10**400},
        {"drain_seconds": float("inf")},
        {"drain_seconds": float("nan")},
        {"command_spans": "auto"},
        {"command_spans": 1},
        {"query_text": None},
        {"slow_checkout_seconds": -0.1},
        {"slow_checkout_seconds": None},
    ],
    ids=lambda wrong: shown(wrong),
)
def test_value_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(PoolConfigurationError) as raised:
        TelemetryOptions(**wrong)
    assert str(raised.value).startswith(f"{name} is {shown(value)}: use ")
    assert len(str(raised.value)) < 200


COUNTS = {"maxPoolSize": -1, "minPoolSize": -1, "maxConnecting": 0}
LIMITS = {"maxIdleTimeMS": 0, "waitQueueTimeoutMS": 0, "heartbeatFrequencyMS": 499}
TIMES = dict.fromkeys(
    [
        *("serverSelectionTimeoutMS", "connectTimeoutMS", "socketTimeoutMS", "timeoutMS"),
        "localThresholdMS",
    ],
    -0.1,
)
NEVER_NONE = [
    *("minPoolSize", "maxConnecting", "serverSelectionTimeoutMS", "heartbeatFrequencyMS"),
    "localThresholdMS",
]
CHOICES = ["retryWrites", "retryReads", "serverMonitoringMode"]
INVALID: list[tuple[str, Any]] = [
    *((name, value) for every in (COUNTS, LIMITS, TIMES) for name, value in every.items()),
    *((name, value) for name in COUNTS for value in (1.5, float("inf"), 1_000_001, 10**400)),
    *((name, value) for name in (LIMITS | TIMES) for value in (10**9, float("nan"), 10**5_000)),
    *((name, value) for name in (COUNTS | LIMITS | TIMES) for value in ("many", "", True, [1])),
    *((name, None) for name in (*NEVER_NONE, *CHOICES)),
    *((name, value) for name in CHOICES for value in ("maybe", 2, 1, [1])),
]


@pytest.mark.parametrize(("name", "value"), INVALID, ids=lambda value: shown(value))
def test_error_of_a_pool_option_has_its_name_value_and_range(name: str, value: Any) -> None:
    with pytest.raises(PoolConfigurationError) as raised:
        client_kwargs(URI, {name.lower(): value})
    assert str(raised.value).startswith(f"{name} is {shown(value)}: use ")
    if isinstance(value, str):
        with pytest.raises(PoolConfigurationError, match=f"{name} is '{value}': use "):
            client_kwargs(f"{URI}?{name}={value}", {})


def test_values_that_pymongo_accepts_are_accepted() -> None:
    given = {"maxPoolSize": "7", "waitQueueTimeoutMS": 0.5, "maxIdleTimeMS": None, "timeoutMS": 0}
    unlimited = dict.fromkeys(["connectTimeoutMS", "socketTimeoutMS", "timeoutMS"])
    more = {"serverMonitoringMode": "poll", "localThresholdMS": 0, "retryWrites": "false"}
    for kwargs in (given, unlimited, more):
        checked = client_kwargs(URI + "?heartbeatFrequencyMS=512.5&retryReads=false", kwargs)
        assert checked.items() >= kwargs.items()
        MongoClient(URI, connect=False, **checked).close()


URI_WITH_PASSWORD = "mongodb://ann:s3cret@h/"


@pytest.mark.parametrize(
    "value",
    [
        URI_WITH_PASSWORD,
        "mongodb:ann:s3cret@h",
        [URI_WITH_PASSWORD],
        {"uri": URI_WITH_PASSWORD},
        URI_WITH_PASSWORD.encode(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_connection_string_given_as_another_option_is_not_shown(value: Any) -> None:
    for refused in (
        lambda: TelemetryOptions(name=value),
        lambda: TelemetryOptions(drain_seconds=value),
        lambda: client_kwargs(URI, {"maxPoolSize": value}),
    ):
        with pytest.raises(PoolConfigurationError) as raised:
            refused()
        assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("POOL_TELEMETRY_LONG_CHECKOUT", "POOL_TELEMETRY_LONG_CHECKOUT_SECONDS"),
        ("POOL_TELEMETRY_WORKER", "POOL_TELEMETRY_WORKERS"),
        ("POOL_TELEMETRY_MAX_SERIES", "POOL_TELEMETRY_MAX_OPERATION_SERIES"),
        ("POOL_TELEMETRY_DIRR", "POOL_TELEMETRY_DIR"),
        ("pool_telemetry_name", "POOL_TELEMETRY_NAME"),
    ],
)
def test_misspelt_variable_is_logged_once_without_its_value(
    variable: str, meant: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable, "s3cr3t")
    for _ in range(2):
        TelemetryOptions()
    assert logged(caplog, variable) == [
        f"{variable} in the environment is not known and has no effect: did you mean {meant}?"
    ]


def test_known_variables_and_those_of_kubernetes_are_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("DIR", "URL", "PORT", "SERVICE_HOST", "SERVICE_PORT", "PORT_8000_TCP_ADDR"):
        monkeypatch.setenv(f"POOL_TELEMETRY_{name}", "x")
    for field in fields(TelemetryOptions):
        if not field.name.startswith("on_"):
            monkeypatch.setenv(f"POOL_TELEMETRY_{field.name.upper()}", "1")
    TelemetryOptions()
    assert logged(caplog, "POOL_TELEMETRY_") == []
