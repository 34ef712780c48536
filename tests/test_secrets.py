"""No credential, passphrase or token is in anything that we show; Hypothesis thinks them up."""

import asyncio
import contextlib
import datetime
import io
import itertools
import json
import logging
import traceback
import warnings
from typing import Any
from urllib.parse import quote_plus, unquote_plus

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util.re import parse_env_headers
from prometheus_client import CollectorRegistry
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandStartedEvent,
    ServerHeartbeatFailedEvent,
)

from pool_telemetry import (
    AsyncMongoDBConnectionPool,
    MongoDBConnectionPool,
    PoolConfigurationError,
    TelemetryOptions,
    assess,
    prometheus,
)
from pool_telemetry.base_pool import ManagedClient, PoolSettings
from pool_telemetry.cli import doctor
from pool_telemetry.diagnosis import diagnose
from pool_telemetry.fastapi import create_router
from pool_telemetry.otel import configure_otlp
from pool_telemetry.otel.endpoint import check_endpoint
from pool_telemetry.uri import mask_uri
from tests.otlp import exported
from tests.support import captured_log, traced_to, unmeasured
from tests.web import serving

# Long enough not to be in a text by chance, and of every kind of character.
MARK = "s3cr3t"
secrets = st.builds(
    "{}{}{}".format,
    st.text(max_size=8),
    st.just(MARK),
    st.text(max_size=8),
).filter(lambda text: text.isprintable())


def uris(secret: str) -> list[str]:
    """Every place of a URI that a secret can stand in, escaped or forgotten to be."""
    escaped = quote_plus(secret)
    options = ["tlsCertificateKeyFilePassword", "proxyPassword", "proxyUsername"]
    return [
        f"mongodb://{escaped}:{escaped}@127.0.0.1:1/",
        f"mongodb://{escaped}@127.0.0.1:1/db?maxPoolSize=3",
        f"mongodb://ann:{secret}@127.0.0.1:1/",
        f"mongodb://ann:{secret}@127.0.0.1:1,127.0.0.1:2/?replicaSet=rs",
        f"mongodb://ann:{escaped}@127.0.0.1:1/?appName=a@b",
        *(f"mongodb://127.0.0.1:1/?w=1&{option}={escaped}" for option in options),
        "mongodb://127.0.0.1:1/?authMechanism=MONGODB-AWS&authMechanismProperties="
        f"AWS_SESSION_TOKEN:{escaped}",
    ]


def shown(error: BaseException) -> str:
    """Return all that a log or a terminal would show of an error."""
    behind = io.StringIO()
    for one in (error, error.__cause__, error.__context__):
        if one is not None:
            behind.write("".join(traceback.format_exception_only(one)) + repr(one) + repr(one.args))
    return behind.getvalue()


@unmeasured()
@given(secrets)
@example(f"a?{MARK}=b")
@example(f"a/{MARK}@b")
@example(f"{MARK}:@")
@example(f"a?maxPoolSize={MARK}")
@example(f"%zz{MARK}")
def test_a_masked_uri_has_no_secret(secret: str) -> None:
    for uri in uris(secret):
        assert MARK not in mask_uri(uri)
        assert mask_uri(mask_uri(uri)) == mask_uri(uri)


WRONG: list[dict[str, Any]] = [{"maxPoolSize": -1}, {"appName": 3}, {"tls": "maybe"}]


@unmeasured()
@given(secrets)
@example(f"a?maxPoolSize={MARK}")
@example(f"?A{MARK}")
def test_no_client_that_is_refused_shows_a_secret(secret: str) -> None:
    for uri in uris(secret):
        for wrong in WRONG:
            kwargs = {"username": "ann", "password": secret, "connect": False, **wrong}
            with pytest.raises(Exception) as raised:  # PyMongo has many
                ManagedClient(PoolSettings.of(uri, None, kwargs, None), MongoClient)
            assert MARK not in shown(raised.value), uri


# No English word and no option has four of these letters in a row.
LETTERS = "qxzQXZ7"
SPECIAL = "@:/?#[]%&=;,+ .-_$\\\"'\t\u00e9\u2028\udc80"
wild = st.text(st.sampled_from(LETTERS * 3 + SPECIAL), min_size=4, max_size=24)
TEMPLATES = [
    "mongodb://ann:{}@127.0.0.1:1/",
    "mongodb://{}@127.0.0.1:1/",
    "mongodb://ann:{}@127.0.0.1:1,127.0.0.1:2/db?replicaSet=rs&appName=a",
    "mongodb://ann:{}@127.0.0.1:1/?appName=a@b",
    "mongodb://ann:{0}@127.0.0.1:1,ann:{0}@127.0.0.1:2/",
    "mongodb+srv://ann:{}@h.invalid/?w=1",
    " mongodb://ann:{}@127.0.0.1:1/",
    "mongodb://ann:{}",
    "mongodb:ann:{}@127.0.0.1:1/",
    *(
        f"mongodb://127.0.0.1:1/?maxPoolSize=3&{option}={{}}&w=1&retryReads=true"
        for option in (
            *("proxyPassword", "proxyUsername", "tlsCertificateKeyFilePassword", "password"),
            *("authMechanismProperties", "authMechanism=MONGODB-AWS&authMechanismProperties"),
            *("awsSessionToken", "authMechanismProperties=AWS_SESSION_TOKEN:"),
        )
    ),
    "mongodb://127.0.0.1:1/?authMechanism=MONGODB-AWS&authMechanismProperties=AWS_SESSION_TOKEN:{}",
    "mongodb://127.0.0.1:1/?authMechanismProperties={}:TOKEN_RESOURCE",
]
KEYWORDS: list[Any] = [
    lambda secret: {"password": secret, "username": "ann"},
    lambda secret: {"username": secret},
    lambda secret: {"authMechanismProperties": secret},
    lambda secret: {"authMechanismProperties": {"AWS_SESSION_TOKEN": secret}},
    lambda secret: {"authMechanismProperties": {"TOKEN": [secret], secret: 1}},
    lambda secret: {"proxyPassword": secret, "proxyHost": 3},
    lambda secret: {"tlsCertificateKeyFilePassword": secret, "tls": True},
    lambda secret: {"passwort": secret},
    lambda secret: {"password": secret.encode("utf-8", "replace"), "username": "ann"},
]


def pieces(secret: str) -> set[str]:
    """Return all pieces of a secret, as given and decoded, in lower case."""
    forms = (secret, unquote_plus(secret), quote_plus(secret.encode("utf-8", "replace")))
    found = {form[i : i + 4].lower() for form in forms for i in range(len(form) - 3)}
    # A piece of separators alone may be in any text.
    return {piece for piece in found if sum(c in LETTERS for c in piece) >= 3}


def makes_no_secret_show(uri: str, kwargs: dict[str, Any], secret: str) -> None:
    seen = [mask_uri(uri)]
    with warnings.catch_warnings(record=True) as warned, captured_log() as log:
        warnings.simplefilter("always")
        for wrong in ({}, *WRONG):
            every = {"connect": False, "serverSelectionTimeoutMS": 1, **wrong, **kwargs}
            try:
                settings = PoolSettings.of(uri, None, every, None)
                seen.append(repr(settings) + str(settings.differences(PLAIN)))
                client: Any = ManagedClient(settings, Unresolved)
                seen.append(repr(client.telemetry))
                client.client.close()
            except Exception as error:  # noqa: BLE001  # PyMongo has many
                seen.append(shown(error))
    seen += [str(one.message) for one in warned] + [log.getvalue()]
    for text in seen:
        assert not [piece for piece in pieces(secret) if piece in text.lower()], (uri, text)


PLAIN = PoolSettings.of("mongodb://127.0.0.1:1/", None, {}, None)


class Unresolved(MongoClient[Any]):
    """A client that asks no DNS server."""

    def __init__(self, uri: str, **kwargs: Any) -> None:
        super().__init__(uri.replace("mongodb+srv://", "mongodb://"), **kwargs)


@unmeasured()
@given(wild, st.sampled_from(TEMPLATES))
@example("xqz7@qqxz/zzxq?qx7z=zxq7", TEMPLATES[0])
@example("xqz7&qqxz=zzxq", TEMPLATES[9])
@example("xqz7,qqxz:zzxq", TEMPLATES[13])
@example("12/xqz7?compressors=qqxz", TEMPLATES[0])
@example("xqz7&readPreferenceTags=qqxz", TEMPLATES[9])
@settings(max_examples=settings().max_examples // 3)
def test_no_piece_of_a_secret_in_a_connection_string_is_shown(secret: str, uri: str) -> None:
    makes_no_secret_show(uri.format(secret), {}, secret)


@unmeasured()
@given(wild, st.sampled_from(KEYWORDS))
@settings(max_examples=settings().max_examples // 6)
def test_no_piece_of_a_secret_in_keyword_arguments_is_shown(secret: str, kwargs: Any) -> None:
    makes_no_secret_show("mongodb://127.0.0.1:1/", kwargs(secret), secret)


@given(secrets)
@example(f"a?maxPoolSize={MARK}")
@example(f"a/b?waitQueueTimeoutMS={MARK}&x=y")
@settings(max_examples=2, suppress_health_check=[HealthCheck.too_slow])
def test_no_error_of_a_start_has_a_secret(secret: str) -> None:
    limits: dict[str, Any] = {"serverSelectionTimeoutMS": 1, "connectTimeoutMS": 50}
    every: list[dict[str, Any]] = [{}, {"maxPoolSize": -1}]
    with captured_log() as log:
        for uri in uris(secret):
            for options in every:
                with pytest.raises(Exception) as raised:  # PyMongo has many
                    MongoDBConnectionPool.initialize(uri, **limits, **options)
                assert MARK not in shown(raised.value), uri
                assert MARK not in json.dumps(MongoDBConnectionPool.get_pool_stats())
    assert MARK not in log.getvalue()


@unmeasured()
@given(secrets)
@settings(max_examples=30)
def test_no_difference_of_settings_shows_a_secret(secret: str) -> None:
    """As a replaced client is logged with them."""
    found = list[PoolSettings]()
    for uri in uris(secret):
        for kwargs in ({}, {"username": "ann", "password": secret}, {"passwort": secret}):
            with contextlib.suppress(ValueError):  # a name or password that is not escaped
                found.append(PoolSettings.of(uri, None, dict(kwargs), None))
    assert len(found) > 10
    for old, new in itertools.pairwise([*found, found[0], found[0]]):
        changed = old.differences(new)
        assert bool(changed) is not old.same_as(new)
        assert MARK not in str(changed)


@pytest.mark.filterwarnings("ignore:Unknown option")  # PyMongo's
def test_a_replaced_client_is_logged_without_its_secrets(server_uri: str) -> None:
    with captured_log() as log:
        for secret in (MARK, f"{MARK}2"):
            MongoDBConnectionPool.initialize(server_uri + f"?proxyPasword={secret}")
    assert MARK not in log.getvalue()
    assert "with other settings: proxypasword. The old client" in log.getvalue()


@given(st.text(max_size=40).filter(lambda text: text.isprintable()))
@example("mongodb://ann:s3cr3t@h/")
def test_a_connection_string_given_for_an_option_is_not_shown(text: str) -> None:
    uri = f"mongodb://ann:{MARK}@{text}"
    for wrong in ({"name": uri + "\n"}, {"drain_seconds": uri}, {"max_operation_series": uri}):
        with pytest.raises(ValueError) as raised:
            TelemetryOptions(**wrong)  # type: ignore[arg-type]  # that is the point
        assert MARK not in shown(raised.value)


def test_nothing_that_a_running_client_shows_has_a_secret(server_uri: str) -> None:
    """In documents, in the bodies of commands and in what the server and the network answer."""
    app = FastAPI()
    app.include_router(create_router(holders=True))
    exporter = InMemorySpanExporter()
    options = TelemetryOptions(query_text=True, slow_checkout_seconds=0.0)
    traced = traced_to(SimpleSpanProcessor(exporter))
    with captured_log() as log, serving(app) as web, traced:
        client = MongoDBConnectionPool.initialize(server_uri, appName="secrets", telemetry=options)
        telemetry = MongoDBConnectionPool.get_telemetry()
        assert telemetry is not None
        collection = client["secrets"]["t"]
        collection.insert_one({"card": MARK})
        collection.find_one({"card": MARK})
        with pytest.raises(PyMongoError):
            collection.find_one({"card": {"$nonsense": MARK}})
        collection.update_many({"card": MARK}, [{"$set": {"card": MARK}}])
        list(collection.aggregate([{"$match": {"card": {"$in": [MARK]}}}], comment=MARK))
        with contextlib.suppress(PyMongoError):
            client["secrets"].command({"createUser": MARK, "pwd": MARK, "roles": [MARK]})
        _, heartbeat, command = listeners = telemetry.listeners
        (pool,) = telemetry.stats().open_pools
        server, took = (pool.host, pool.port), datetime.timedelta(milliseconds=1)
        heartbeat.failed(
            ServerHeartbeatFailedEvent(0.1, ConnectionError(f"mongodb://a:{MARK}@h"), server)
        )
        body = {"find": "t", "filter": {"card": MARK}}
        command.started(CommandStartedEvent(body, "secrets", 1, server, 1))
        failure = {"errmsg": MARK, "code": 1, "codeName": MARK, "errInfo": {MARK: MARK}}
        command.failed(CommandFailedEvent(took, failure, "find", 1, server, 1))
        registry = CollectorRegistry()
        prometheus.register(registry)
        seen = [
            json.dumps(MongoDBConnectionPool.get_pool_stats()),
            repr(telemetry),
            repr(listeners),
            repr(telemetry.stats()),
            repr(telemetry.options),
            repr(assess(telemetry.stats())),
            prometheus.generate(registry=registry)[0].decode(),
            prometheus.generate("application/openmetrics-text", registry)[0].decode(),
            str(exported("http/protobuf").metrics),
            *(span.to_json() for span in exporter.get_finished_spans()),
            *(web.get(path).text for path in ("/health", "/health/ready", "/metrics")),
            web.get("/metrics/mongodb").text,
            web.get("/pool/diagnosis").text,
            web.get("/pool/holders").text,
            repr(diagnose(telemetry.stats(), telemetry.history())),
            doctor.run(f"http://127.0.0.1:{web.port}", seconds=0.1, as_json=True)[0],
            doctor.run(f"http://127.0.0.1:{web.port}/metrics", seconds=0.1, as_json=False)[0],
        ]
        seen.append(log.getvalue())
    assert "createUser" in seen[0]
    assert any("db.query.text" in text for text in seen)
    for text in seen:
        assert MARK not in text


def test_no_secret_of_an_asynchronous_start_is_shown() -> None:
    async def main() -> None:
        for uri in uris(f"a{MARK}b"):
            with pytest.raises(Exception) as raised:  # PyMongo has many
                await AsyncMongoDBConnectionPool.initialize(uri, serverSelectionTimeoutMS=1)
            assert MARK not in shown(raised.value), uri
        assert MARK not in json.dumps(AsyncMongoDBConnectionPool.get_pool_stats())

    asyncio.run(main())


# Where OTLP goes to


@pytest.mark.parametrize("signal", ["", "METRICS_", "TRACES_"])
@pytest.mark.parametrize(
    "endpoint", [f"http://ann:{MARK}@h:4317", f"{MARK}@h:4317", f"http://h/{MARK}@x"]
)
def test_an_endpoint_with_credentials_in_the_environment_is_refused(
    signal: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name := f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT", endpoint)
    with captured_log() as log, pytest.raises(PoolConfigurationError, match=name) as raised:
        configure_otlp()
    assert MARK not in shown(raised.value) + log.getvalue()
    check_endpoint("http://h:4317")  # overrides the variable


@unmeasured()
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\0"))
    )
)
@example(["a=b", f"Basic {MARK}"])
@example([f"a={MARK};x=1"])
def test_headers_that_an_exporter_would_log_are_refused(entries: list[str]) -> None:
    headers, text = ",".join(entries), io.StringIO()
    log, handler = logging.getLogger("opentelemetry.util.re"), logging.StreamHandler(text)
    log.addHandler(handler)
    try:
        parse_env_headers(headers, liberal=True)
    finally:
        log.removeHandler(handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_METRICS_HEADERS", headers)
        if text.getvalue():
            with pytest.raises(PoolConfigurationError, match="is not name=value") as raised:
                check_endpoint(None)
            assert MARK not in shown(raised.value)
        else:
            check_endpoint(None)
