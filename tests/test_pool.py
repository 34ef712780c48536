"""MongoDBConnectionPool: the guide's singleton, on a real server and on none."""

import gc
import json
import logging
import re
import threading
import time
import traceback
import weakref
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pymongo import MongoClient
from pymongo.errors import (
    ConfigurationError,
    InvalidURI,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from pool_telemetry import (
    MongoDBConnectionPool as Pool,
)
from pool_telemetry import (
    PoolConfigurationError,
    PoolNotInitializedError,
    PoolTelemetry,
    TelemetryOptions,
    prometheus,
)
from pool_telemetry.base_pool import CLOSE_SECONDS
from pool_telemetry.demo.embedded import EmbeddedServer
from pool_telemetry.options import DEFAULTS
from pool_telemetry.registry import active
from tests.support import (
    PATIENCE_SECONDS,
    Noop,
    drivers,
    exhausted,
    fastest,
    pool_of,
    slow,
    wait_for,
)

SECRET = "s3cret-w0rd"


def names() -> set[str]:
    return {telemetry.name for telemetry in active()}


def test_the_first_call_makes_the_client_and_the_others_share_it(server_uri: str) -> None:
    client = Pool.initialize(server_uri, maxPoolSize=7)
    assert Pool.get_client() is client
    assert Pool.initialize(server_uri, maxPoolSize=7) is client
    assert Pool.initialize(server_uri + "?maxPoolSize=7") is client
    assert Pool.initialize(server_uri + "?maxpoolsize=7", retryReads=True) is client


def test_telemetry_options_stay_when_they_are_not_named_again(server_uri: str) -> None:
    client = Pool.initialize(server_uri, telemetry=TelemetryOptions(name="kept"))
    assert Pool.initialize(server_uri) is client
    assert Pool.initialize(server_uri, maxPoolSize=5) is not client
    telemetry = Pool.get_telemetry()
    assert telemetry is not None
    assert telemetry.name == "kept"


def replacements(caplog: pytest.LogCaptureFixture) -> list[str]:
    every = [one for one in caplog.records if "replaced the client" in one.getMessage()]
    assert {(one.name, one.levelname) for one in every} <= {("pool_telemetry.telemetry", "WARNING")}
    return [one.getMessage() for one in every]


def test_a_client_that_is_replaced_is_logged_with_both_places(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    def start() -> None:
        Pool.initialize(server_uri, maxPoolSize=7, telemetry=TelemetryOptions(name="twice"))

    def start_another() -> None:
        Pool.initialize(server_uri, maxPoolSize=5, appName="other", telemetry=other)

    other = TelemetryOptions(name="twice", drain_seconds=9.0)
    start()
    start()
    assert replacements(caplog) == []
    start_another()
    (warning,) = replacements(caplog)
    place = rf"{__file__}:\d+ in \S+\.<locals>"
    assert re.match(
        rf"initialize\(\) at {place}\.start_another replaced the client of pool 'twice', which was "
        rf"initialized at {place}\.start with other settings: appName unset -> other, "
        r"maxPoolSize 7 -> 5, minPoolSize 7 -> 5, telemetry\.drain_seconds\. The old client is "
        r"closed when it has been idle for 5 s, at the latest after 30 s; its operations fail",
        warning,
    )


def test_the_replaced_client_has_its_own_name_and_its_own_time(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    Pool.initialize(server_uri, telemetry=TelemetryOptions(name="old", drain_seconds=0.5))
    Pool.initialize(server_uri, telemetry=TelemetryOptions(name="new"))
    (warning,) = replacements(caplog)
    assert "replaced the client of pool 'old', which" in warning
    assert "The old client is closed after 0.5 s; its operations fail from then on" in warning


def test_a_client_that_the_application_closed_is_replaced_without_a_word(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    Pool.initialize(server_uri).close()
    Pool.initialize(server_uri)
    assert replacements(caplog) == []


def test_the_place_of_a_call_that_a_library_makes_is_that_library(
    server_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread of the standard library that has no frame of the application."""
    for size in (3, 4):
        start = partial(Pool.initialize, server_uri, maxPoolSize=size)
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    (warning,) = replacements(caplog)
    assert re.search(r"at \S+threading\.py:\d+ in Thread\.run replaced", warning)


def test_fifty_threads_make_one_client(server_uri: str) -> None:
    clients, start = [], threading.Barrier(50)

    def first() -> None:
        start.wait()
        clients.append(Pool.initialize(server_uri, telemetry=TelemetryOptions(name="once")))

    threads = [threading.Thread(target=first) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(clients) == 50
    assert all(client is clients[0] for client in clients)
    assert "once#2" not in names()


def test_before_initialize_the_error_says_what_to_do() -> None:
    with pytest.raises(PoolNotInitializedError, match=r"call MongoDBConnectionPool\.initialize\("):
        Pool.get_client()
    stats = Pool.get_pool_stats()
    assert (stats["status"], stats["connection_string"]) == ("not_initialized", None)
    assert Pool.get_telemetry() is None


def test_the_report_has_the_same_keys_whether_there_is_a_pool_or_not(server_uri: str) -> None:
    def shape(value: Any) -> Any:
        return {k: shape(v) for k, v in value.items()} if isinstance(value, dict) else None

    before = Pool.get_pool_stats()
    Pool.initialize(server_uri)
    after = Pool.get_pool_stats()
    for key in ("pool_config", "operations", "servers"):
        del before[key], after[key]  # what is in them differs by nature
    assert shape(before) == shape(after)
    assert json.loads(json.dumps(after)) == after


def test_settings_come_from_the_default_the_uri_and_the_keyword_in_this_order(
    server_uri: str,
) -> None:
    Pool.initialize(
        server_uri + "?maxPoolSize=11&WAITQUEUETIMEOUTMS=1234&maxConnecting=3",
        maxPoolSize=12,
        timeoutMS=60_000,
    )
    config = Pool.get_pool_stats()["pool_config"]
    assert config["maxPoolSize"] == 12
    assert config["waitQueueTimeoutMS"] == 1234
    assert config["maxConnecting"] == 3
    assert config["timeoutMS"] == 60_000
    rest = DEFAULTS.keys() - {"maxPoolSize", "waitQueueTimeoutMS"}
    assert {key: config[key] for key in rest} == {key: DEFAULTS[key] for key in rest}


def test_unlimited_is_zero_in_the_settings_and_none_in_the_pool(server_uri: str) -> None:
    Pool.initialize(server_uri, maxPoolSize=0, waitQueueTimeoutMS=None, maxIdleTimeMS=None)
    stats = Pool.get_pool_stats()
    assert stats["pool_config"]["maxPoolSize"] == 0
    assert stats["pool_config"]["waitQueueTimeoutMS"] is None
    assert (stats["pool"]["max_size"], stats["pool"]["utilization"]) == (None, 0.0)


def test_a_small_pool_takes_the_default_minimum_down_with_it(server_uri: str) -> None:
    Pool.initialize(server_uri, maxPoolSize=3)
    assert Pool.get_pool_stats()["pool_config"]["minPoolSize"] == 3


def test_a_minimum_above_the_maximum_is_named(server_uri: str) -> None:
    with pytest.raises(PoolConfigurationError, match="maxPoolSize 5 is below minPoolSize 10"):
        Pool.initialize(server_uri, maxPoolSize=5, minPoolSize=10)
    with pytest.raises(ValueError, match="maxPoolSize 100 is below minPoolSize 200"):
        Pool.initialize(server_uri + "?minPoolSize=200")


def test_the_address_comes_from_the_environment(
    server_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONGODB_URI", server_uri)
    Pool.initialize()
    assert Pool.get_pool_stats()["connection_string"] == server_uri


@pytest.mark.parametrize("address", [None, ""])
def test_without_an_address_the_error_says_so(
    address: str | None, dead_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = f"mongodb://localhost:{dead_port}/"
    monkeypatch.setattr("pool_telemetry.base_pool.DEFAULT_URI", tried)
    with pytest.raises(ServerSelectionTimeoutError) as raised:
        Pool.initialize(address, serverSelectionTimeoutMS=200)
    assert str(raised.value) == (
        f"no address was given and MONGODB_URI is not set, so {tried} was tried, and no server "
        "answered there: pass an address to initialize(), or set MONGODB_URI"
    )
    others: list[dict[str, Any]] = [
        {"connection_string": tried},
        {"host": "localhost", "port": dead_port},
    ]
    for given in others:  # in PyMongo's own words
        with pytest.raises(ServerSelectionTimeoutError, match="Topology Description"):
            Pool.initialize(**given, serverSelectionTimeoutMS=200)
    monkeypatch.setenv("MONGODB_URI", tried)
    with pytest.raises(ServerSelectionTimeoutError, match="Topology Description"):
        Pool.initialize(address, serverSelectionTimeoutMS=200)


def test_host_and_port_are_mongoclients_other_way(server_uri: str) -> None:
    host, port = server_uri.removeprefix("mongodb://").rstrip("/").split(":")
    client = Pool.initialize(host=host, port=int(port))
    assert Pool.get_pool_stats()["connection_string"] == host
    assert Pool.initialize(host=host, port=int(port), event_listeners=None) is client
    Pool.close()
    Pool.initialize(f"{host}:{port}")
    assert Pool.get_pool_stats()["connection_string"] == f"{host}:{port}"


def test_arguments_of_another_type_are_refused(server_uri: str) -> None:
    wrong: Any
    for wrong in ([server_uri], {}, b"mongodb://h/"):
        kind = f"connection_string is of type {type(wrong).__name__}: use a text"
        with pytest.raises(PoolConfigurationError, match=kind):
            Pool.initialize(wrong)
    for options in ({"name": "chat"}, TelemetryOptions, "chat"):
        for make in (
            lambda given: Pool.initialize(server_uri, telemetry=given),
            lambda given: PoolTelemetry("x", options=given),
        ):
            with pytest.raises(PoolConfigurationError, match="use TelemetryOptions"):
                make(options)
    assert Pool.get_pool_stats()["status"] == "not_initialized"


def test_a_client_that_the_application_closed_is_made_anew(server_uri: str) -> None:
    with Pool.initialize(server_uri) as closed:
        assert Pool.initialize(server_uri) is closed
    client = Pool.initialize(server_uri)
    assert client is not closed
    assert client.admin.command("ping")["ok"] == 1.0


def test_clients_and_their_passwords_do_not_outlive_close(server_uri: str) -> None:
    clients: list[weakref.ref[Any]] = []
    for _ in range(5):
        clients.append(weakref.ref(Pool.initialize(server_uri)))
        Pool.close()
    wait_for(lambda: gc.collect() >= 0 and not any(one() for one in clients), "the clients' end")


def test_a_version_that_is_slow_to_come_is_asked_for_again(server_uri: str) -> None:
    with slow(server_uri, "slow-version", 3_000, "buildInfo", "buildinfo"):
        Pool.initialize(server_uri, appName="slow-version")
        assert Pool.get_pool_stats()["server_version"] is None
    wait_for(lambda: Pool.get_pool_stats()["server_version"])


def test_listeners_of_the_application_stay(server_uri: str) -> None:
    heard = []

    class Theirs(Noop):
        def connection_checked_out(self, event: Any) -> None:
            heard.append(event)

    Pool.initialize(server_uri, event_listeners=[Theirs()])
    assert heard
    assert Pool.get_pool_stats()["checkouts"]["ok"] >= len(heard) > 0


def test_the_server_is_named_with_its_version(server_uri: str) -> None:
    client = Pool.initialize(server_uri)
    version = client.server_info()["version"]
    assert Pool.get_pool_stats()["server_version"] == version
    prometheus.register(registry := CollectorRegistry())
    text = prometheus.generate(registry=registry)[0].decode()
    assert f'mongodb_server_version="{version}"' in text


def test_a_wrong_address_fails_in_time_and_leaves_nothing(dead_port: int, server_uri: str) -> None:
    before = set(threading.enumerate())
    started = time.monotonic()
    with pytest.raises(ServerSelectionTimeoutError) as raised:
        Pool.initialize(
            f"mongodb://127.0.0.1:{dead_port}/",
            serverSelectionTimeoutMS=400,
            telemetry=TelemetryOptions(name="wrong"),
        )
    assert time.monotonic() - started < 20  # PyMongo's own patience is 30 s
    assert str(dead_port) in str(raised.value)
    assert Pool.get_pool_stats()["status"] == "not_initialized"
    assert "wrong" not in names()
    wait_for(lambda: set(threading.enumerate()) <= before, "the client's threads to end")
    Pool.initialize(server_uri)
    assert Pool.get_pool_stats()["status"] == "connected"


@pytest.mark.filterwarnings("ignore:Malformed auth mechanism properties")
@pytest.mark.parametrize(
    "uri",
    [
        f"mongodb://user:{SECRET}@127.0.0.1:PORT/",
        f"mongodb://user:{SECRET}@@127.0.0.1:PORT/",
        f"mongodb://user:{SECRET}/x@127.0.0.1:PORT/",
        f"mongodb://user:x/{SECRET}@127.0.0.1:PORT/",  # PyMongo alone would show this one
        f"mongodb://user:{SECRET}:y@127.0.0.1:PORT/",
        f"mongodb://user:{SECRET}%zz@127.0.0.1:PORT/",
        f"mongodb://user:a?b{SECRET}@127.0.0.1:PORT/",
        f"mongodb://{SECRET}@127.0.0.1:notaport/",
        f"mongo://user:{SECRET}@127.0.0.1:PORT/",
        f"mongodb://127.0.0.1:PORT/?authMechanism=MONGODB-AWS&authMechanismProperties={SECRET}",
        f"mongodb://127.0.0.1:PORT/?tls=true&tlsCertificateKeyFilePassword={SECRET}",
    ],
)
def test_no_secret_of_an_address_is_in_any_error(
    uri: str, dead_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG, logger="pool_telemetry"),
        pytest.raises((PyMongoError, ValueError, ImportError)) as raised,
    ):
        Pool.initialize(uri.replace("PORT", str(dead_port)), serverSelectionTimeoutMS=200)
    shown = "".join(traceback.format_exception(raised.value, limit=0)) + repr(raised.value)
    assert SECRET not in shown
    assert SECRET not in caplog.text
    assert SECRET not in str(Pool.get_pool_stats())


def test_credentials_are_masked_and_used(own_server: EmbeddedServer) -> None:
    with MongoClient[dict[str, Any]](own_server.uri) as admin:
        admin.admin.command("createUser", "ann", pwd=SECRET, roles=["root"])
    uri = own_server.uri.replace("://", f"://ann:{SECRET}@") + "?appName=x"
    Pool.initialize(uri)
    stats = Pool.get_pool_stats()
    assert stats["status"] == "connected"
    assert stats["connection_string"] == own_server.uri.replace("://", "://***:***@") + "?appName=x"
    assert SECRET not in str(stats) + repr(Pool.get_telemetry())
    with pytest.raises(OperationFailure) as raised:
        Pool.initialize(uri.replace(SECRET, SECRET[::-1]))
    assert SECRET[::-1] not in "".join(traceback.format_exception(raised.value, limit=0))
    assert Pool.get_pool_stats()["status"] == "connected"  # the old one stays


@pytest.mark.parametrize(
    ("uri", "kwargs", "error"),
    [
        ("", {"maxPoolSize": "many"}, ValueError),
        ("", {"maxPoolSize": -1}, ValueError),
        ("", {"noSuchOption": 1}, ConfigurationError),
        ("?maxPoolSize", {}, InvalidURI),
    ],
)
def test_what_pymongo_refuses_it_refuses_in_its_own_words(
    server_uri: str, uri: str, kwargs: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Pool.initialize(server_uri + uri, **kwargs)
    assert Pool.get_pool_stats()["status"] == "not_initialized"


def test_close_is_idempotent_and_a_new_start_is_possible(server_uri: str) -> None:
    Pool.close()
    old = Pool.initialize(server_uri, telemetry=TelemetryOptions(name="again"))
    Pool.close()
    Pool.close()
    with pytest.raises(PoolNotInitializedError):
        Pool.get_client()
    new = Pool.initialize(server_uri, telemetry=TelemetryOptions(name="again"))
    assert new is not old
    assert "again" in names()
    assert "again#2" not in names()


def test_close_returns_while_the_pool_is_exhausted(server_uri: str) -> None:
    client = Pool.initialize(
        server_uri, maxPoolSize=2, waitQueueTimeoutMS=120_000, retryReads=False
    )
    collection = client["t"]["t"]
    collection.find_one()
    failures: list[BaseException] = []

    def find() -> None:
        try:
            collection.find_one()
        except PyMongoError as error:
            failures.append(error)

    with exhausted(client):
        threads = [threading.Thread(target=find) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_for(lambda: drivers(client).waiting == 3)
        started = time.monotonic()
        Pool.close()
        assert time.monotonic() - started < 10 * CLOSE_SECONDS
        assert Pool.get_pool_stats()["status"] == "not_initialized"
    for thread in threads:
        thread.join()
    assert len(failures) == 3


def test_close_returns_while_the_server_is_gone(own_server: EmbeddedServer) -> None:
    client = Pool.initialize(own_server.uri, heartbeatFrequencyMS=500)
    client["swap"]["empty"].find_one()
    own_server.stop(kill=True)
    started = time.monotonic()
    Pool.close()
    assert time.monotonic() - started < 10 * CLOSE_SECONDS


def test_stats_of_a_dead_server_come_at_once_with_the_truth(own_server: EmbeddedServer) -> None:
    Pool.initialize(own_server.uri, heartbeatFrequencyMS=500, serverSelectionTimeoutMS=2_000)
    version = Pool.get_pool_stats()["server_version"]
    own_server.stop(kill=True)
    wait_for(lambda: Pool.get_pool_stats()["status"] == "disconnected")
    assert fastest(Pool.get_pool_stats) < 1.0  # to ask the server would take 2 s
    stats = Pool.get_pool_stats()
    assert "no server answers heartbeats" in stats["error"]
    assert "AutoReconnect" in stats["error"]
    (server,) = stats["servers"].values()
    assert (server["up"], server["state"], server["rtt_seconds"]) == (False, "paused", None)
    own_server.start()
    wait_for(lambda: Pool.get_pool_stats()["status"] == "connected")
    assert "error" not in Pool.get_pool_stats()
    wait_for(lambda: Pool.get_pool_stats()["server_version"] == version)


def test_new_settings_swap_the_client_and_let_the_old_one_finish(server_uri: str) -> None:
    options = TelemetryOptions(name="swap", drain_seconds=3.0)
    old = Pool.initialize(server_uri, appName="swap", telemetry=options)
    finished: list[Any] = []
    with slow(server_uri, "swap", 600):
        thread = threading.Thread(target=lambda: finished.append(old["swap"]["empty"].find_one()))
        thread.start()
        wait_for(lambda: drivers(old).in_use == 1)
        new = Pool.initialize(server_uri, appName="swap", maxPoolSize=5, telemetry=options)
        assert Pool.get_client() is new is not old
        telemetry = Pool.get_telemetry()
        assert telemetry is not None
        assert telemetry.name == "swap"  # the successor has the name, the old one a number
        thread.join()
    assert finished == [None]
    wait_for(lambda: "swap#2" not in names(), "the old client to be closed")
    with pytest.raises(PyMongoError):
        old["swap"]["empty"].find_one()
    assert new["swap"]["empty"].find_one() is None


def test_a_cursor_of_the_old_client_may_be_read_to_its_end(server_uri: str) -> None:
    old = Pool.initialize(server_uri)
    collection = old["swap"]["cursor"]
    collection.drop()
    collection.insert_many({"_id": i} for i in range(20))
    cursor = collection.find({}, batch_size=2)
    seen = [next(cursor)["_id"]]
    Pool.initialize(server_uri, maxPoolSize=6)
    for document in cursor:
        seen.append(document["_id"])
        time.sleep(0.1)  # between two batches the old client has nothing out
    assert seen == list(range(20))


def test_the_drain_limit_ends_what_does_not_end(server_uri: str) -> None:
    options = TelemetryOptions(name="drain", drain_seconds=1.0)
    old = Pool.initialize(server_uri, appName="drain", telemetry=options)
    with pool_of(old).checkout():
        Pool.initialize(server_uri, appName="drained", telemetry=options)
        assert "drain#2" in names()
        wait_for(lambda: "drain#2" not in names())
        with pytest.raises(PyMongoError):
            old["swap"]["empty"].find_one()


def test_a_failing_successor_leaves_the_old_client_in_place(
    server_uri: str, dead_port: int
) -> None:
    client = Pool.initialize(server_uri)
    with pytest.raises(ServerSelectionTimeoutError):
        Pool.initialize(f"mongodb://127.0.0.1:{dead_port}/", serverSelectionTimeoutMS=200)
    assert Pool.get_client() is client
    assert client.admin.command("ping")["ok"] == 1.0


def test_close_also_ends_the_clients_that_still_drain(server_uri: str) -> None:
    before = set(threading.enumerate())
    old = Pool.initialize(server_uri)
    Pool.initialize(server_uri, maxPoolSize=9)
    Pool.close()
    with pytest.raises(PyMongoError):
        old["swap"]["empty"].find_one()
    wait_for(lambda: set(threading.enumerate()) <= before, "all threads to end")


def test_close_during_initialize_wins(server_uri: str, dead_port: int) -> None:
    client_made = threading.Event()
    raised: list[BaseException] = []

    class Theirs(Noop):
        def pool_created(self, event: Any) -> None:
            client_made.set()

    def initialize() -> None:
        try:
            with slow(server_uri, "late", 1_500, "ping"):
                Pool.initialize(server_uri, appName="late", event_listeners=[Theirs()])
        except PoolNotInitializedError as error:
            raised.append(error)

    thread = threading.Thread(target=initialize)
    thread.start()
    assert client_made.wait(PATIENCE_SECONDS)
    Pool.close()
    thread.join()
    assert "was closed while it initialized" in str(raised[0])
    assert Pool.get_pool_stats()["status"] == "not_initialized"
