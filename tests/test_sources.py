"""The meaning of an address, and whether two readings are of one process."""

import re
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from pool_telemetry import PoolTelemetry, cli
from pool_telemetry.cli import sources
from pool_telemetry.cli.sources import SourceError, validate_target
from pool_telemetry.cli.sources.server import Status, has_restarted
from pool_telemetry.cli.sources.service import base_url
from pool_telemetry.diagnosis import diagnose
from pool_telemetry.diagnosis.intervals import intervals
from pool_telemetry.prometheus import PoolCollector
from pool_telemetry.state.actor import ThreadActor
from tests.everything import ADDRESS
from tests.support import hide_other_clients
from tests.test_doctor import _Page, run, serving_pages

ACCEPTED = "use HOST:PORT or http://HOST:PORT of a service"


@pytest.mark.parametrize("scheme", ["", "http://", "https://", "HTTP://"])
@pytest.mark.parametrize("host", ["localhost:8101", "127.0.0.1:8101", "[::1]:8101", "chat.example"])
@pytest.mark.parametrize(
    "page",
    [
        *("", "/", "/health", "/health/", "/health/live", "/health/ready", "/health?verbose=1"),
        *("/metrics/mongodb", "/metrics/mongodb/", "/pool/diagnosis", "/pool/holders", "#top"),
    ],
)
def test_every_page_of_a_service_leads_to_its_routes(scheme: str, host: str, page: str) -> None:
    for prefix in ("", "/internal", "/a/b"):
        found = base_url(validate_target(f" {scheme}{host}{prefix}{page} "))
        assert found == f"{scheme.lower() or 'http://'}{host}{prefix}"


def test_credentials_stay_in_an_address() -> None:
    assert base_url(validate_target("https://ann:s3cr3t@chat/health")) == "https://ann:s3cr3t@chat"


@pytest.mark.parametrize("target", ["mongodb://a,b/?replicaSet=r", "mongodb+srv://cluster.example"])
def test_mongodbs_addresses_stay_as_they_are(target: str) -> None:
    assert validate_target(target) == target


@pytest.mark.parametrize("host", ["8765", "127.1", "0x7f000001", "256.1.1.1", "1.2.3.4.5"])
def test_a_host_that_the_resolver_would_take_for_a_number_is_refused(host: str) -> None:
    for target in (host, f"{host}:80", f"http://{host}/health"):
        with pytest.raises(SourceError, match="use HOST:PORT"):
            validate_target(target)


@pytest.mark.parametrize("command", ["doctor", "size"])
@pytest.mark.parametrize(
    "target",
    [
        *("", " ", "http://", "http:///metrics", "https://:8000", "ftp://host/", "file:///etc"),
        *("host:port", "localhost:99999", "http://localhost:99999/", "http://[::1", "::1", "/tmp"),
        *("a b", "http://a b/", "ann:s3cr3t@host", "http:localhost:8000", "mongo://localhost"),
    ],
)
def test_what_is_no_address_is_told_with_what_is_one(
    command: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, command, target)
    assert (code, out) == (cli.CANT_TELL, "")
    assert err.count("\n") == 1
    assert ACCEPTED in err
    assert "mongodb://" in err
    assert "s3cr3t" not in err


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("", "it is empty"),
        ("http://a b", "it has a space or a control character"),
        ("ftp://host/", "it begins in another way than http://, https:// or mongodb://"),
        ("ann:s3cr3t@host:8000", "a user name or password needs http:// before it"),
        ("http://ann:s3c@r3t@host", "write @ and / in a user name or password as %40 and %2F"),
        ("host:99999", "its port is not from 1 to 65535"),
        ("host:port", "its port is not from 1 to 65535"),
        ("host:0", "its port is not from 1 to 65535"),
        ("-", "its host is not valid"),
        ("http://...", "its host is not valid"),
        ("::1", "write an IPv6 address in brackets, as in [::1]:8000"),
        ("http://[::1", "its host is not valid"),
        ("8765", "its host is not valid"),
        ("host/ä", "write characters outside of ASCII as %XX"),
    ],
)
def test_an_address_is_refused_with_its_name_and_the_reason(target: str, words: str) -> None:
    with pytest.raises(SourceError) as raised:
        validate_target(target, "POOL_TELEMETRY_URL")
    message = str(raised.value)
    assert message.startswith(f"POOL_TELEMETRY_URL is not a valid address ({words}): use ")
    assert "s3c" not in message


@pytest.mark.parametrize("host", ["[::ffff:127.0.0.1]", "[::1]", "[fe80::1%25eth0]", "ä.example"])
def test_an_unusual_host_is_accepted(host: str) -> None:
    assert validate_target(f"{host}:8000") == f"http://{host}:8000"


# Two looks


HOLDER = ThreadActor()


class Process:
    """A process whose pool of one we use, and what its /metrics says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, started: float | None) -> None:
        self.telemetry = PoolTelemetry()
        self.telemetry._on_created(object(), ADDRESS, 1, 0)
        self.telemetry.name = "shop"  # as any other process of the service calls it
        (self.state,) = self.telemetry.states()
        self.state.ready()
        self.state.connection_created(HOLDER, 1)
        self.state.connection_ready(1)
        self.started = started
        self.instance = ""  # an older version reports none
        self.worker = ""
        self._monkeypatch = monkeypatch

    def use(self, times: int) -> None:
        for _ in range(times):
            self.state.checkout_started(HOLDER)
            self.state.checked_out(HOLDER, 1, 0.0)
            self.state.checked_in(lambda: HOLDER, 1)

    def text(self) -> str:
        hide_other_clients(self.telemetry, self._monkeypatch)
        registry = CollectorRegistry()
        registry.register(PoolCollector())
        told = "" if self.started is None else f"process_start_time_seconds {self.started!r}\n"
        text = re.sub("mongodb_client_process_up{.*\n", "", generate_latest(registry).decode())
        worker = f',worker="{self.worker}"' if self.worker else ""
        if self.instance:
            text += f'mongodb_client_process_up{{service_instance_id="{self.instance}"}} 1\n'
        return text.replace("} ", f"{worker}}} ") + told


def look_twice(first: str, second: str) -> list[Any]:
    texts = iter([first, second])
    page = type("Page", (_Page,), {"text": property(lambda _: next(texts))})
    with serving_pages(page) as server:
        found = sources.scrape(f"http://127.0.0.1:{server.server_port}/metrics", 0.05)
        return [one.samples for one in found]


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, None), (5e8, 5e8), (5e8, 5e8 + 0.01), (5e8 + 0.01, 5e8), (None, 5e8), (5e8, None)],
)
def test_two_looks_at_one_process_are_compared(
    before: float | None, after: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not tell when it started, and what it tells has steps of 10 ms."""
    process = Process(monkeypatch, before)
    process.use(1_000)
    first = process.text()
    process.use(20)
    process.started = after
    ((one, other),) = look_twice(first, process.text())
    window = intervals([one, other], ADDRESS)[-1]
    assert not window.whole_life
    assert window.checkouts["ok"] == 20
    assert window.seconds == pytest.approx(other.at - one.at)
    assert window.rate > 0.0


@pytest.fixture
def restarted(monkeypatch: pytest.MonkeyPatch) -> tuple[Process, str]:
    """A process, and what its predecessor said."""
    old = Process(monkeypatch, 5e8)
    old.use(1_000)
    new = Process(monkeypatch, 5e8)
    new.use(20)
    return new, old.text()


def test_a_restart_is_seen_by_the_time_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.time() + 1.0
    old, new = Process(monkeypatch, 5e8), Process(monkeypatch, began)
    new.use(20)  # more than before
    ((one,),) = look_twice(old.text(), new.text())
    assert one.since == began
    (window,) = intervals([one], ADDRESS)
    assert window.whole_life


@pytest.mark.parametrize("started", [5e8, 5e8 + 0.05, 5e8 + 60.0])
def test_several_processes_of_an_older_version_are_named(
    restarted: tuple[Process, str], started: float
) -> None:
    """Counters fell, or the start differs, and the other process began before the first look."""
    new, before = restarted
    new.started = started
    with pytest.raises(SourceError, match=r"several processes answer at .*, each for itself"):
        look_twice(before, new.text())


def test_processes_that_do_not_find_each_other_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Process(monkeypatch, 5e8), Process(monkeypatch, 5e8)
    one.instance, other.instance = "one", "other"
    one.use(10)
    other.use(20)
    with pytest.raises(SourceError, match=r"several processes answer at .*, each for itself"):
        look_twice(one.text(), other.text())


def test_a_new_instance_is_a_restart_although_its_counters_are_higher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = Process(monkeypatch, 5e8), Process(monkeypatch, time.time() + 1.0)
    old.instance, new.instance = "old", "new"
    new.use(20)
    ((one,),) = look_twice(old.text(), new.text())
    assert one.since == new.started


def test_each_worker_is_compared_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second worker was replaced meanwhile, and the third one is new."""
    workers = [Process(monkeypatch, None) for _ in range(3)]
    for number, one in enumerate(workers):
        one.worker, one.instance = str(number), f"first {number}"
        one.use(10 * (number + 1))
    first = "".join(one.text() for one in workers[:2])
    workers[0].use(5)
    workers[1].use(500)
    workers[1].instance = "second 1"
    ((before, now),) = look_twice(first, "".join(one.text() for one in workers))
    assert intervals([before, now], ADDRESS)[-1].checkouts["ok"] == 5


def test_a_restart_without_a_time_can_not_be_told(restarted: tuple[Process, str]) -> None:
    """For how long it counts is not known, nor whether it is one process that answers."""
    new, before = restarted
    new.started = None
    with pytest.raises(SourceError, match=re.escape("/metrics restarted between two scrapes")):
        look_twice(before.replace("process_start_time_seconds", "other"), new.text())


def test_a_client_that_comes_between_two_looks_counts_since_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process, other = Process(monkeypatch, None), Process(monkeypatch, None)
    other.telemetry.name = "reports"
    process.use(20)
    ((one,),) = look_twice(other.text(), process.text())
    assert 0.0 < one.at - one.since < 10.0


def test_what_was_long_ago_is_no_trouble_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows how long ago: not even that it was before the first look by much."""
    process = Process(monkeypatch, None)
    process.use(1_000)
    for _ in range(50):
        process.state.checkout_started(HOLDER)
        process.state.checkout_failed(HOLDER, "timeout")
    first = process.text()
    process.use(20)
    ((before, now),) = look_twice(first, process.text())
    assert diagnose(now, [before]).findings == ()


def test_a_server_that_restarted_is_not_compared_with_what_it_was() -> None:
    before = {
        "uptime": 900,
        "connections": {"current": 3, "available": 97, "totalCreated": 40},
        "opcounters": {"query": 10, "command": 70},
        "opLatencies": {"reads": {"ops": 10, "latency": 5_000}},
    }

    def restarted(**now: Any) -> bool:
        return has_restarted(Status.of(before), Status.of({**before, **now}))

    assert not restarted()
    assert restarted(uptime=2)
    assert restarted(connections={"current": 1, "totalCreated": 2})
    assert restarted(opcounters={"query": 5})
    assert restarted(opLatencies={})
