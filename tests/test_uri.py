"""Connection strings: options, identity, and secrets that are never shown."""

from typing import Any

import pytest
from pymongo import MongoClient, common
from pymongo.errors import ConfigurationError

from pool_telemetry import MongoDBConnectionPool, PoolConfigurationError
from pool_telemetry.uri import (
    check_credentials,
    identity,
    mask_uri,
    secrets_of,
    uri_options,
    without_secrets,
)

URI = "mongodb://h:1/"


@pytest.mark.parametrize(
    ("uri", "masked"),
    [
        ("mongodb://localhost:27017/", "mongodb://localhost:27017/"),
        ("mongodb://u:p@h:1/", "mongodb://***:***@h:1/"),
        ("mongodb://u@h", "mongodb://***:***@h"),
        ("mongodb://u:p%40%3A@a:1,b:2/db?w=1", "mongodb://***:***@a:1,b:2/db?w=1"),
        ("mongodb+srv://u:p@h/?appName=a@b", "mongodb+srv://***"),
        ("mongodb://u:p/q@h/", "mongodb://***"),
        ("mongodb://u:p?q@h/", "mongodb://***"),
        ("mongodb://u:1?q@h/", "mongodb://***"),
        ("mongodb://u:p@q/r@h/?appName=a@b", "mongodb://***"),
        ("mongodb://u:p@h:1,[::1]:2/?appName=a@b", "mongodb://***"),
        ("mongodb://h:1,[::1]:2/db?appName=a@b", "mongodb://***"),
        (
            "mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:abc&w=1",
            "mongodb://h/?authMechanismProperties=***&***",
        ),
        (
            "mongodb://h/?w=1;TLSCertificateKeyFilePassword=abc",
            "mongodb://h/?w=1;TLSCertificateKeyFilePassword=***",
        ),
        ("mongodb://[::1]:27017/", "mongodb://[::1]:27017/"),
        ("mongodb://u:p", "mongodb://***"),
        ("mongodb://%2Ftmp%2Fm.sock/?", "mongodb://%2Ftmp%2Fm.sock/?"),
        (
            "mongodb://h/?tls%43ertificateKeyFilePassword=abc",
            "mongodb://h/?tls%43ertificateKeyFilePassword=***",
        ),
        (
            "mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:ab;c&w=1",
            "mongodb://h/?***&***",
        ),
        ("mongodb://h/?w=1;proxyPassword=abc&x=1", "mongodb://h/?***&***"),
        ("mongodb://h/?awsSessionToken=abc&pwd=abc", "mongodb://h/?awsSessionToken=***&***"),
        ("mongodb://h/?abc&w=1", "mongodb://h/?***&***"),
        ("mongodb://h/?proxyPassword =abc", "mongodb://***"),
        ("mongodb://u:p#q@h", "mongodb://***"),
        ("mongodb://u:p@h/#q", "mongodb://***"),
        ("mongodb://one,u:p@two,u:p@three/", "mongodb://***"),
        ("s3cret://h/", "***"),
        ("ann:s3cret mongodb://h/", "***"),
        ("127.0.0.1:27017", "127.0.0.1:27017"),
        ("one:27017,two", "one:27017,two"),
        ("h/?proxyPassword=s3cret", "***"),
        ("mongodb:ann:s3cret@h", "***"),
        ("not a uri with s3cret", "***"),
    ],
)
def test_credentials_are_masked(uri: str, masked: str) -> None:
    assert mask_uri(uri) == masked


def test_every_option_of_pymongo_is_shown_unless_it_is_secret() -> None:
    for name in common.URI_OPTIONS_VALIDATOR_MAP:
        shown = mask_uri(f"mongodb://h/?{name}=abc").endswith("=abc")
        expected = name not in {
            *("authmechanismproperties", "tlscertificatekeyfilepassword"),
            *("driver", "server_api", "srvallowedhostssuffix"),  # only for code, not for URIs
        }
        assert shown == expected, name


def test_secrets_are_found_in_every_form() -> None:
    found = secrets_of("mongodb://ann:p%40ssw0rd@h/?proxyPassword=abc123", {"password": "k3y"})
    assert {"ann", "p%40ssw0rd", "p@ssw0rd", "abc123", "k3y"} <= set(found)
    assert found == sorted(found, key=len, reverse=True)
    assert secrets_of(URI, {}) == []
    properties = "AWS_SESSION_TOKEN:t0ken,ENVIRONMENT:s3cret"
    assert {"t0ken", "s3cret"} <= set(secrets_of(f"{URI}?authMechanismProperties={properties}", {}))
    assert {"t0ken"} <= set(secrets_of(URI, {"authMechanismProperties": properties}))


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
def test_same_settings_have_the_same_identity_in_every_notation(
    one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]], same: bool
) -> None:
    assert (identity(*one) == identity(*other)) is same


def test_password_with_an_option_in_it_sets_no_option() -> None:
    assert uri_options("mongodb://ann:p?maxPoolSize=s3cret@h/?w=1") == {"w": "1"}
    assert uri_options("h/?maxPoolSize=1") == {}  # PyMongo reads all of it as a host


@pytest.mark.parametrize("special", "@:/?#[]")
def test_credentials_that_are_not_escaped_are_refused(
    special: str,
) -> None:
    escaped = "mongodb://a%40nn:s3%3Acret@h:1,[::1]:2/db?appName=a@b"
    for fine in (
        escaped,
        URI,
        "mongodb://ann@h",
        "mongodb://ann:@h",
        "h:1",
        URI + "?w",
        "mongodb://h/?x=a@b",
    ):
        check_credentials(fine)
    with pytest.raises(PoolConfigurationError, match="quote_plus") as raised:
        check_credentials(f"mongodb://ann:s3{special}cret@h/?appName=a")
    assert "s3" not in str(raised.value)
    assert "cret" not in str(raised.value)


def test_errors_keep_their_type_and_lose_their_secrets() -> None:
    uri = "mongodb://ann:S3cret@h/?proxyPassword=Pr0xy"
    bad = "S3cret\udc80"
    with pytest.raises(UnicodeEncodeError) as unicode, without_secrets(uri, {"password": bad}):
        bad.encode()
    assert "S3" not in f"{unicode.value} {unicode.value!r} {unicode.value.args}"
    behind, wrong = ValueError("unknown option s3cret"), KeyError("pr0xy", 5)
    wrong.__cause__ = behind
    with pytest.raises(KeyError), without_secrets(uri, {}):
        raise wrong
    assert (behind.args, wrong.args) == (("unknown option ***",), ("***", "5"))
    with pytest.raises(KeyError) as untouched, without_secrets(URI, {}):
        raise KeyError("x", 5)
    assert untouched.value.args == ("x", 5)


def test_no_attribute_of_an_error_keeps_a_secret() -> None:
    uri = f"{URI}?authMechanism=MONGODB-OIDC&authMechanismProperties=ENVIRONMENT:S3cret"
    with pytest.raises(ConfigurationError) as raised, without_secrets(uri, {}):
        MongoClient[Any](uri, connect=False)
    assert "S3cret" not in f"{raised.value!r} {vars(raised.value)}"
    assert "***" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "given", "shown"),
    [
        ("maxPoolSize", "S3cret", "a text that is not valid"),
        ("maxPoolSize", "-5", "'-5'"),
        ("maxIdleTimeMS", "10s", "'10s'"),
        ("retryWrites", "S3cret", "a text that is not valid"),
        ("telemetry", "S3cret", "of type str"),
    ],
)
def test_no_value_that_may_be_a_secret_is_quoted(name: str, given: str, shown: str) -> None:
    with pytest.raises(PoolConfigurationError, match=shown) as raised:
        MongoDBConnectionPool.initialize("mongodb://127.0.0.1:1/", **{name: given})  # type: ignore[arg-type]  # that is the point
    assert "S3cret" not in f"{raised.value!r}"


@pytest.mark.parametrize(
    "options",
    [
        "authMechanismProperties=S3cret:x",
        "authMechanismProperties=ENVIRONMENT:azure,S3cret:x",
        "authMechanismProperties=AWS_SESSION_TOKEN:a,S3cret:b",
        "proxyPassword=a&compressors=S3cret",
        "proxyPassword=a&readPreferenceTags=S3cret",
        "compressors=S3cret&proxyPassword=S3cret",
    ],
)
def test_an_option_that_pymongo_would_show_is_refused(options: str) -> None:
    with pytest.raises(PoolConfigurationError, match="a piece of a secret") as raised:
        check_credentials(f"{URI}?{options}")
    assert "S3" not in repr(raised.value)


def test_a_wrong_option_without_a_secret_is_left_to_pymongo() -> None:
    check_credentials(f"{URI}?maxPoolSize=many&compressors=none&proxyPassword=abcd&x=1")
    check_credentials("mongodb://ann:s3cret@h/?readPreferenceTags=wrong&authMechanism=wrong")
