from typing import Any

import pytest

from pool_telemetry import PoolConfigurationError, PoolTelemetryError, TelemetryOptions
from pool_telemetry.options import DEFAULTS, client_kwargs, identity, mask_uri, secrets_of

URI = "mongodb://h:1/"


@pytest.mark.parametrize(
    ("uri", "masked"),
    [
        ("mongodb://localhost:27017/", "mongodb://localhost:27017/"),
        ("mongodb://u:p@h:1/", "mongodb://***:***@h:1/"),
        ("mongodb://u@h", "mongodb://***:***@h"),
        ("mongodb://u:p%40%3A@a:1,b:2/db?w=1", "mongodb://***:***@a:1,b:2/db?w=1"),
        ("mongodb+srv://u:p@h/?appName=a@b", "mongodb+srv://***:***@h/?appName=a@b"),
        ("mongodb://u:p/q@h/", "mongodb://***:***@h/"),
        ("mongodb://u:p?q@h/", "mongodb://***:***@h/"),
        ("mongodb://u:1?q@h/", "mongodb://***:***@h/"),
        ("mongodb://u:p@q/r@h/?appName=a@b", "mongodb://***:***@b"),
        ("mongodb://u:p@h:1,[::1]:2/?appName=a@b", "mongodb://***:***@h:1,[::1]:2/?appName=a@b"),
        ("mongodb://h:1,[::1]:2/db?appName=a@b", "mongodb://h:1,[::1]:2/db?appName=a@b"),
        (
            "mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:abc&w=1",
            "mongodb://h/?authMechanismProperties=***&w=1",
        ),
        (
            "mongodb://h/?w=1;TLSCertificateKeyFilePassword=abc",
            "mongodb://h/?w=1;TLSCertificateKeyFilePassword=***",
        ),
        ("mongodb://[::1]:27017/", "mongodb://[::1]:27017/"),
        ("mongodb://u:p", "mongodb://***:***@"),
        ("mongodb://%2Ftmp%2Fm.sock/?", "mongodb://%2Ftmp%2Fm.sock/?"),
        (
            "mongodb://h/?tls%43ertificateKeyFilePassword=abc",
            "mongodb://h/?tls%43ertificateKeyFilePassword=***",
        ),
        (
            "mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:ab;c&w=1",
            "mongodb://h/?authMechanismProperties=***&w=1",
        ),
        ("127.0.0.1:27017", "127.0.0.1:27017"),
        ("not a uri with s3cret", "***"),
    ],
)
def test_credentials_are_masked(uri: str, masked: str) -> None:
    assert mask_uri(uri) == masked


def test_secrets_are_known_in_every_form() -> None:
    found = secrets_of("mongodb://ann:p%40ssw0rd@h/?proxyPassword=abc123", {"password": "k3y"})
    assert {"ann", "p%40ssw0rd", "p@ssw0rd", "abc123", "k3y"} <= set(found)
    assert found == sorted(found, key=len, reverse=True)
    assert secrets_of(URI, {}) == []


def test_defaults_give_way_to_the_uri_and_to_keywords_in_any_case() -> None:
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
        (URI, {"maxPoolSize": "soon refused"}, 10),
        (URI, {"maxPoolSize": float("inf")}, 10),
        (URI, {}, 10),
    ],
)
def test_the_default_minimum_never_exceeds_the_maximum(
    uri: str, kwargs: dict[str, Any], expected: int
) -> None:
    assert client_kwargs(uri, kwargs)["minPoolSize"] == expected


@pytest.mark.parametrize(
    ("uri", "kwargs"),
    [(URI, {"maxPoolSize": 5, "minPoolSize": 6}), (URI + "?minPoolSize=6", {"maxpoolsize": 5})],
)
def test_a_minimum_that_was_chosen_above_the_maximum_is_refused(
    uri: str, kwargs: dict[str, Any]
) -> None:
    with pytest.raises(PoolConfigurationError, match="raise maxPoolSize or lower minPoolSize"):
        client_kwargs(uri, kwargs)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((URI, {"maxPoolSize": 5}), (URI + "?maxPoolSize=5", {}), True),
        ((URI, {"retryReads": True}), (URI + "?retryreads=true", {}), True),
        ((URI, {"compressors": ["zlib", "zstd"]}), (URI, {"compressors": "zlib,zstd"}), True),
        (("mongodb://h:1", {}), (URI, {}), True),
        ((URI, {"maxIdleTimeMS": 10_000.0}), (URI, {"maxIdleTimeMS": 10_000}), True),
        ((URI + "?readPreferenceTags=a:1&readPreferenceTags=b:2", {}), (URI, {}), False),
        (
            (URI + "?readPreferenceTags=a:1&readPreferenceTags=b:2", {}),
            (URI + "?readPreferenceTags=c:1&readPreferenceTags=b:2", {}),
            False,
        ),
        ((URI, {"localThresholdMS": 1.5}), (URI, {"localThresholdMS": 1.25}), False),
        ((URI, {"maxPoolSize": 5}), (URI, {"maxPoolSize": 6}), False),
        (("mongodb://a:b@h:1/", {}), (URI, {}), False),
        ((URI, {"event_listeners": [1]}), (URI, {"event_listeners": [2]}), False),
    ],
)
def test_the_same_settings_are_seen_however_they_are_written(
    one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]], same: bool
) -> None:
    assert (identity(*one) == identity(*other)) is same


def test_options_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOL_TELEMETRY_NAME", "chat")
    monkeypatch.setenv("POOL_TELEMETRY_OPERATIONS", "False")
    monkeypatch.setenv("POOL_TELEMETRY_MAX_OPERATION_SERIES", "7")
    monkeypatch.setenv("POOL_TELEMETRY_DRAIN_SECONDS", "1.5")
    assert TelemetryOptions() == TelemetryOptions(
        name="chat", operations=False, max_operation_series=7, drain_seconds=1.5
    )
    assert TelemetryOptions(name="other").name == "other"
    assert not TelemetryOptions(name="other").operations


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("OPERATIONS", "maybe", "use true or false"),
        ("MAX_OPERATION_SERIES", "many", "use a whole number"),
        ("DRAIN_SECONDS", "soon", "use a number of seconds"),
    ],
)
def test_a_wrong_variable_is_named_with_what_it_takes(
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
        {"name": None},
        {"operations": "false"},
        {"max_operation_series": 1.5},
        {"max_operation_series": True},
        {"max_operation_series": "5"},
        {"drain_seconds": "3"},
        {"max_operation_series": 0},
        {"drain_seconds": -1.0},
        {"drain_seconds": float("inf")},
        {"drain_seconds": float("nan")},
    ],
)
def test_a_value_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(PoolConfigurationError) as raised:
        TelemetryOptions(**wrong)
    assert str(raised.value).startswith(f"{name} is {value!r}: use ")
