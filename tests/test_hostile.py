"""The doctor and the sizes, asked of servers that answer what no good server would."""

import gzip
import itertools
import json
import math
import re
import threading
import time
import urllib.parse
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pymongo.uri_parser import parse_uri

from pool_telemetry import cli
from pool_telemetry.cli import doctor, prometheus_text, sources
from pool_telemetry.cli.sources import http, server, service
from pool_telemetry.diagnosis import Finding, worst_first
from tests import hostile
from tests.hostile import Script, answering
from tests.proxy import Proxy
from tests.support import unmeasured

EXPOSITION = (Path(__file__).parent / "golden" / "exposition.txt").read_text()


def diagnosis() -> dict[str, Any]:
    """Return an answer of /pool/diagnosis with several findings and processes."""
    found = [
        Finding(
            id="undersized.closed_workload",
            verdict="undersized",
            severity="warning",
            pool="shop@127.0.0.1:27017",
            because="Exhausted for 4.0 s (2 episodes, no timeouts).",
            advice="Raise maxPoolSize from 4 to 12.",
            evidence={"peak_waiting": 8, "use_seconds": 0.0018},
            change={"maxPoolSize": 12},
            worker=1,
            pid=4711,
        ),
        Finding(
            verdict="leak",
            severity="critical",
            pool="chat@127.0.0.1:27017",
            because="2 connections are held by cursors.",
            advice="Close the cursors.",
            ended=12.5,
        ),
    ]
    states = [{"worker": 0, "state": "answers"}, {"worker": 1, "state": "silent"}]
    return {
        **worst_first(found).as_dict(),
        "pools": ["worker 1: shop@127.0.0.1:27017: 4 in use, 8 waiting, 4 open, maxPoolSize 4"],
        "instance": "8c0f",
        "pid": 4711,
        "worker": 1,
        "workers": states,
    }


def prometheus_answers() -> dict[str, str]:
    """Return what a Prometheus answers, by a part of the query; the last one to all others."""
    labels = {
        "job": "chat",
        "instance": "app:8000",
        "worker": "",
        "db_client_connection_pool_name": "chat@db:27017",
    }

    def answer(*series: tuple[dict[str, str], str]) -> str:
        found = [{"metric": metric, "value": [1.8e9, value]} for metric, value in series]
        data = {"resultType": "vector", "result": found}
        return json.dumps({"status": "success", "data": data})

    bounds = {"0.001": "10", "0.01": "80", "0.1": "100", "+Inf": "100"}
    return {
        "vector(1)": answer(({}, "1")),
        "sum by (le": answer(*(({**labels, "le": le}, n) for le, n in bounds.items())),
        "": answer((labels, "4.5"), ({**labels, "worker": "1"}, "2")),
    }


def prometheus(answers: dict[str, str | bytes]) -> Script:
    def script(connection: Any, path: str) -> None:
        query = urllib.parse.unquote_plus(path)
        body = next(answer for part, answer in answers.items() if part in query)
        hostile.pages({path.partition("?")[0]: body})(connection, path)

    return script


def two_scrapes(second: str | bytes) -> Script:
    """Return a script whose first scrape is of a process that has just begun."""
    counts = r"(?m)^(\w+(?:_total|_count|_bucket|_sum)\{.*\}) \S+$"
    texts = itertools.chain([re.sub(counts, r"\1 0.0", EXPOSITION)], itertools.repeat(second))

    def script(connection: Any, path: str) -> None:
        known = {"/metrics": next(texts)} if path == "/metrics" else {}
        hostile.pages(known)(connection, path)

    return script


Mutate = Callable[[str | bytes], Script]


def kinds() -> dict[str, tuple[str, Mutate, tuple[str, ...]]]:
    """Return what is mutated, by name: the text, what serves a mutant, and the commands to run."""
    answers = prometheus_answers()
    text = json.dumps(diagnosis())
    found: dict[str, tuple[str, Mutate, tuple[str, ...]]] = {
        "exposition": (
            EXPOSITION,
            two_scrapes,
            ("doctor", "size"),
        ),
        "diagnosis": (
            text,
            lambda mutant: hostile.pages({"/pool/diagnosis": mutant, "/metrics": EXPOSITION}),
            ("doctor", "size"),
        ),
    }
    for number, part in enumerate(answers):
        found[f"prometheus-{number}"] = (
            answers[part],
            lambda mutant, part=part: prometheus({**answers, part: mutant}),  # type: ignore[misc]
            ("size",),
        )
    return found


CASES = kinds()


def asked(command: str, address: str, capsys: pytest.CaptureFixture[str], *more: str) -> int:
    """Run a command, check the form of its answer, and return its exit code."""
    code = cli.main([command, address, "--seconds", "0.001", *more])
    out, err = capsys.readouterr()
    assert code in (0, 1, 2, 3)
    assert all(c.isprintable() or c == "\n" for c in out + err)
    assert "unexpected" not in err, err
    if code == cli.CANT_TELL:
        assert err.count("\n") == 1
    if "--json" in more:
        found = json.loads(out, parse_constant=pytest.fail)
        assert code != cli.CANT_TELL or f": {found['error']}\n" in err
    elif code == cli.CANT_TELL:
        assert out == ""
    return code


def ask_mutants(name: str, count: int, capsys: pytest.CaptureFixture[str]) -> set[int]:
    """Ask for every mutant of a good answer, and return all exit codes."""
    text, serve, commands = CASES[name]
    codes = set[int]()
    with answering(lambda *request: script(*request)) as address:
        for number, mutant in enumerate([text, *hostile.mutants(text, count, name)]):
            script = serve(mutant)
            command = commands[number // 2 % len(commands)]
            codes.add(asked(command, f"http://{address}", capsys, *["--json"] * (number % 2)))
    return codes


@pytest.mark.parametrize("name", CASES)
def test_no_mutant_of_an_answer_ends_in_a_traceback(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask_mutants(name, 8, capsys) > {cli.CANT_TELL}


@pytest.mark.bulk
@pytest.mark.parametrize("name", CASES)
@unmeasured()
def test_none_of_400_mutants_of_an_answer_ends_in_a_traceback(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask_mutants(name, 400, capsys) > {cli.CANT_TELL}


# Protocols


def told(address: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line of both commands, which can't tell; the doctor's is also in its JSON."""
    assert asked("doctor", address, capsys, "--json") == cli.CANT_TELL
    assert asked("size", address, capsys) == cli.CANT_TELL
    assert cli.main(["doctor", address, "--seconds", "0.001"]) == cli.CANT_TELL
    return capsys.readouterr().err


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
GZIP = "Content-Encoding: gzip"
NO_HTTP = "does not answer in valid HTTP: use mongodb://HOST:PORT for a MongoDB server"
MIDDLE = "closed the connection in the middle of its answer"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (hostile.sending(), "closed the connection without an answer"),
        (hostile.sending(b"\x15\x03\x01\x00\x02\x02\x16"), NO_HTTP),
        (hostile.sending(b"SSH-2.0-OpenSSH_9.6\r\n"), NO_HTTP),
        (hostile.sending(b"\x00" * 1000), NO_HTTP),
        (hostile.sending(b"HTTP/1.1 200"), "has no metrics of a pool"),
        (hostile.sending(b"HTTP/9.9 abc\r\n\r\n"), NO_HTTP),
        (hostile.sending(OK + b"a" * 70_000 + b"\r\n\r\n"), NO_HTTP),
        (hostile.sending(OK + b"a: b\r\n" * 200 + b"\r\n"), NO_HTTP),
        (hostile.endless(OK, b"a" * 65_000), NO_HTTP),
        (hostile.endless(OK, b"a: b\r\n"), NO_HTTP),
        (hostile.sending(OK + b"Content-Length: 100\r\n\r\nx 1\n"), MIDDLE),
        (hostile.sending(CHUNKED + b"5\r\nx 1\n"), MIDDLE),
        (hostile.sending(CHUNKED + b"zz\r\nx 1\n"), MIDDLE),
        (hostile.sending(CHUNKED + b"-5\r\nx 1\n"), NO_HTTP),
        (hostile.sending(CHUNKED + b"ffffffffff\r\nx 1\n"), MIDDLE),
        (hostile.sending(hostile.response(b"x 1\n", "200 OK", GZIP)), NO_HTTP),
        (hostile.sending(hostile.response(gzip.compress(b"x 1\n")[:-4], "200 OK", GZIP)), MIDDLE),
        (
            hostile.sending(hostile.response(b"x 1\n", "200 OK", "Content-Encoding: br")),
            "packed in",
        ),
        (hostile.sending(hostile.response(b"\xff 1\n")), "does not answer with text in UTF-8"),
        (hostile.sending(hostile.response(b"x 1")), "not in Prometheus' text format"),
        (hostile.sending(hostile.response(b"", "503 \x1b[2J\xe2\x80\xae")), "status 503 ( [2J"),
    ],
)
def test_a_broken_answer_is_told_in_one_line(
    script: Script, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(script) as address:
        assert words in told(f"http://{address}", capsys)


ELSEWHERE = "give the address of a service that serves /metrics"


@pytest.mark.parametrize(
    ("credentials", "status", "words"),
    [
        ("", "401 Unauthorized", "http://USER:PASSWORD@HOST:PORT in POOL_TELEMETRY_URL"),
        ("ann:s3cr3t@", "401 Unauthorized", "check the user name and the password"),
        ("", "403 Forbidden", "ask from a host, or with a user, that may see the page"),
        ("", "404 Not Found", ELSEWHERE),
        ("", "405 Method Not Allowed", ELSEWHERE),
        ("", "407 Proxy Authentication Required", "the proxy's user name and password"),
        ("", "429 Too Many Requests", "wait a while before you run the command again"),
        ("", "500 Internal Server Error", "has a problem, which its log tells"),
        ("", "503 Service Unavailable", "has a problem, which its log tells"),
    ],
)
def test_the_advice_fits_the_status(
    credentials: str, status: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(hostile.sending(hostile.response(b"", status))) as address:
        said = told(f"http://{credentials}{address}", capsys)
    assert f"answers with status {status[:3]} ({status[4:]}): " in said
    assert words in said
    assert (ELSEWHERE in said) == (words == ELSEWHERE)
    assert "s3cr3t" not in said


@pytest.mark.parametrize(
    "script",
    [
        hostile.dripping(b"", b""),
        hostile.dripping(OK, b"x"),
        hostile.dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        hostile.dripping(OK + b"Content-Length: 99999\r\n\r\n", b"x"),
        hostile.dripping(CHUNKED, b"1\r\nx\r\n"),
    ],
)
def test_an_answer_that_never_ends_has_a_deadline(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(http, "DEADLINE_SECONDS", 0.2)
    with answering(script) as address:
        assert cli.main(["doctor", f"http://{address}"]) == cli.CANT_TELL
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{address} did not answer completely within 0.2 s: its process may be stopped" in line


def test_a_command_limits_all_answers_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "COMMAND_SECONDS", 0.1)
    with answering(hostile.dripping(OK, b"x")) as address:
        for command in ("doctor", "size"):
            assert cli.main([command, f"http://{address}", "--seconds", "0.1"]) == cli.CANT_TELL
            assert "the time of the command is over" in capsys.readouterr().err


def test_an_answer_does_not_wait_for_scrapes_that_only_explain_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(service, "_SCRAPES_SECONDS", 0.1)
    answer = {key: value for key, value in diagnosis().items() if key != "instance"}
    known = hostile.pages({"/pool/diagnosis": json.dumps(answer)})
    drips = hostile.dripping(OK, b"x")
    with answering(
        lambda connection, path: (drips if path == "/metrics" else known)(connection, path)
    ) as address:
        assert asked("doctor", f"http://{address}", capsys) == 1


def test_an_inner_time_limit_ends_no_later_than_the_outer_one() -> None:
    assert http._ends_at.get() == math.inf
    with http.time_limit(1.0):
        outer = http._ends_at.get()
        with http.time_limit(60.0):
            assert http._ends_at.get() == outer
        with http.time_limit(0.5):
            assert http._ends_at.get() < outer
        assert http._ends_at.get() == outer
    assert http._ends_at.get() == math.inf


def test_an_answer_has_a_largest_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(http, "DEADLINE_SECONDS", 60.0)
    monkeypatch.setattr(http, "MAX_JSON_BYTES", 2**20)
    sent = list[int]()

    def endless(start: bytes, piece: bytes) -> Script:
        def script(connection: Any, _: str) -> None:
            sent.append(0)
            connection.sendall(start)
            while True:
                connection.sendall(piece)
                sent[-1] += len(piece)

        return script

    packed = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packed.compress(bytes(2**20)) for _ in range(8))
    text = b"x 1\n" * 2**16
    chunk = b"%x\r\n%b\r\n" % (len(text), text)
    for script in (
        endless(OK + b"\r\n", text),
        endless(OK + b"Content-Length: 1073741824\r\n\r\n", text),
        endless(CHUNKED, chunk),
        endless(OK + GZIP.encode() + b"\r\n\r\n", bomb),
    ):
        with answering(script) as address:
            assert cli.main(["doctor", f"http://{address}"]) == cli.CANT_TELL
        assert "/pool/diagnosis has more than 1 MB" in capsys.readouterr().err
    with answering(endless(OK + b"\r\n", text)) as address:
        assert cli.main(["doctor", f"http://{address}/metrics"]) == cli.CANT_TELL
    assert "/metrics has more than 32 MB" in capsys.readouterr().err
    assert max(sent) < 2 * http.MAX_BYTES  # the rest of it is in the sockets' buffers


def test_a_packed_answer_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    page = hostile.response(gzip.compress(EXPOSITION.encode()), "200 OK", GZIP)
    with answering(hostile.sending(page)) as address:
        assert asked("doctor", f"http://{address}/metrics", capsys) == 2


# Redirects, proxies, protocols by name


def redirecting(to: str, status: str = "302 Found") -> Script:
    return hostile.sending(hostile.response(b"", status, f"Location: {to}"))


def test_redirects_lead_to_the_same_address_only(capsys: pytest.CaptureFixture[str]) -> None:
    seen = list[bytes]()

    def elsewhere(connection: Any, path: str) -> None:
        seen.append(path.encode())

    with answering(elsewhere) as other:
        port = other.partition(":")[2]
        for to in (
            *(f"http://{other}/metrics", f"http://localhost:{port}/metrics", "file:///etc/passwd"),
            *("ftp://127.0.0.1/x", f"http://ann@{other}/", "http://[::1", "//evil.example/metrics"),
            *("gopher://x", f"http://{other}/\u202e".encode().decode("latin-1"), "data:,x"),
        ):
            with answering(redirecting(to)) as address:
                said = told(f"http://ann:s3cr3t@{address}/metrics", capsys)
            assert re.search("redirects to .* another address|valid HTTP", said), said
            assert "s3cr3t" not in said
    assert seen == []


def test_a_loop_of_redirects_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(redirecting("/metrics")) as address:
        assert "redirects in a loop" in told(f"http://{address}/metrics", capsys)
    endless = OK.replace(b"200 OK", b"302 Found") + b"Location: /metrics\r\n\r\n"
    with answering(hostile.endless(endless, bytes(2**16))) as address:
        assert "redirects in a loop" in told(f"http://{address}/metrics", capsys)


def test_a_redirect_to_the_same_address_keeps_the_credentials(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def script(connection: Any, path: str) -> None:
        page = {"/metrics": EXPOSITION} if path == "/metrics" else {}
        if path.startswith("/old"):
            redirecting("/metrics")(connection, path)
        else:
            hostile.pages(page)(connection, path)

    with answering(script) as address:
        assert asked("doctor", f"http://ann:s3cr3t@{address}/old/metrics", capsys) == 2


def test_no_proxy_is_asked_for_a_loopback_address(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked_for = list[str]()

    def proxy(connection: Any, path: str) -> None:
        asked_for.append(path)
        hostile.pages({path.partition("?")[0]: EXPOSITION})(connection, path)

    with answering(proxy) as address, answering(hostile.pages({"/metrics": EXPOSITION})) as service:
        monkeypatch.setenv("http_proxy", f"http://{address}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        port = service.partition(":")[2]
        for host in ("127.0.0.1", "localhost"):
            assert asked("doctor", f"http://{host}:{port}/metrics", capsys) == 2
        assert asked_for == []
        assert asked("doctor", "http://chat.example/metrics", capsys) == 2
    assert {*asked_for} == {"http://chat.example/metrics"}


def test_a_protocol_that_is_not_spoken_is_named(
    server_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(hostile.pages({})) as address:
        assert "does not speak TLS: use http://" in told(f"https://{address}", capsys)
    mongod = (
        b"It looks like you are trying to access MongoDB over HTTP on the native driver port.\r\n"
    )
    with answering(hostile.sending(hostile.response(mongod))) as address:
        assert f"is a MongoDB server: use mongodb://{address}" in told(f"{address}/metrics", capsys)
    host = server_uri.removeprefix("mongodb://").rstrip("/")
    assert "mongodb://" in told(host, capsys)


# Text from a remote


def test_every_text_of_a_remote_is_safe_for_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    odd = "\x1b]0;owned\x07 \u202e\u2066 \ud800 \x9b \x7f\nCRITICAL: leak\r\u2028"
    answer = diagnosis()
    answer["pools"] = [odd]
    for finding in answer["findings"]:
        finding.update(dict.fromkeys(("verdict", "pool", "because", "advice"), odd))
        finding["change"] = {odd: 12}
    with answering(hostile.pages({"/pool/diagnosis": json.dumps(answer)})) as address:
        assert asked("doctor", f"http://{address}", capsys) == 1
        assert asked("doctor", f"http://{address}", capsys, "--json") == 1
        assert cli.main(["doctor", f"http://{address}"]) == 1
    out = capsys.readouterr().out
    assert "\n  set   ]0;owned" in out
    assert not any(line.startswith("CRITICAL") for line in out.splitlines())


@pytest.mark.parametrize("as_json", [False, True])
def test_the_printed_answer_is_bounded(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    answer = diagnosis()
    (one, _), long = answer["findings"], "x " * 5_000
    texts = dict.fromkeys(("id", "pool", "because", "advice", "runbook", "verdict"), long)
    answer["findings"] = [one] * doctor.MAX_FINDINGS + [{**one, **texts, "severity": "critical"}]
    answer["pools"] = [long] + ["shop"] * doctor.MAX_POOLS
    with answering(hostile.pages({"/pool/diagnosis": json.dumps(answer)})) as address:
        more = ["--json"] if as_json else []
        assert cli.main(["doctor", f"http://{address}", *more]) == 2
    out = capsys.readouterr().out
    assert doctor.MAX_TEXT < max(map(len, out.splitlines())) < 3 * doctor.MAX_TEXT
    assert "1 more findings are not shown" in out
    assert "2 more lines of pools are not shown" in out  # one line counts the processes


@pytest.mark.parametrize(
    "odd",
    [
        *({"ended": value} for value in (-1e300, -1.0, True, 1e300)),
        {"worker": True},
        {"pid": 1e300},
        {"change": {"maxPoolSize": True}},
        {"change": {"x" * 1_000: 1}},
        {"evidence": {str(n): n for n in range(1_000)}},
        {"evidence": {"uses": -1e300}},
    ],
)
def test_impossible_number_of_a_finding_is_refused(
    odd: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    answer = diagnosis()
    answer["findings"][0].update(odd)
    with answering(hostile.pages({"/pool/diagnosis": json.dumps(answer)})) as address:
        assert "has the format of another version" in told(f"http://{address}", capsys)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "does not answer as a Prometheus does|not in Prometheus' text format"),
        ('{"findings": [], "pools": ' + "9" * 5000 + "}", "Prometheus"),
        ('{"findings": [], "pools": NaN}', "Prometheus"),
    ],
)
def test_json_without_bounds_is_no_json(
    text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = dict.fromkeys(("/pool/diagnosis", "/api/v1/query"), text) | {"/metrics": text + "\n"}
    with answering(hostile.pages(known)) as address:
        assert re.search(words + "|has no metrics", told(f"http://{address}", capsys))


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "1e300", "1e17"])
def test_impossible_value_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = re.sub(r"(db_client_connection_max\{.*\}) \S+", rf"\1 {value}", EXPOSITION)
    assert text != EXPOSITION
    with answering(hostile.pages({"/metrics": text})) as address:
        assert "not in Prometheus' text format" in told(f"http://{address}", capsys)


def test_other_metrics_of_the_page_do_not_matter(capsys: pytest.CaptureFixture[str]) -> None:
    page = EXPOSITION + 'other{a="\\n} NaN\nNaN NaN NaN\n# \n'
    with answering(hostile.pages({"/metrics": page})) as address:
        assert asked("doctor", f"http://{address}", capsys) == 2


def test_a_pool_size_that_no_pool_has_is_not_computed(capsys: pytest.CaptureFixture[str]) -> None:
    answers = prometheus_answers()
    answers["max by"] = answers.pop("").replace('"4.5"', '"1000000000"')
    with answering(prometheus({**answers, "": prometheus_answers()[""]})) as address:
        assert asked("size", f"http://{address}", capsys) == cli.CANT_TELL
        assert cli.main(["size", f"http://{address}"]) == cli.CANT_TELL
    assert "chat@db:27017 would have 1000000001 connections" in capsys.readouterr().err


# MongoDB


@pytest.mark.parametrize(
    "script",
    [
        hostile.sending(),
        hostile.sending(b"\xff" * 100),
        hostile.dripping(b"", b""),
        hostile.dripping(b"", b"\x01"),
        hostile.pages({}),
    ],
)
def test_no_mongodb_is_an_unreachable_server(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "REACH_SECONDS", 0.5)
    with answering(script) as address:
        assert asked("doctor", f"mongodb://ann:s3cr3t@{address}/", capsys) == 2


STATUS: dict[str, Any] = {
    "uptime": 900,
    "connections": {"current": 3, "available": 97, "totalCreated": 40},
    "opcounters": {"query": 10, "command": 70, "deprecated": {"total": 2}},
    "opLatencies": {"reads": {"ops": 10, "latency": 5_000}},
}
NO_MONGODB = "does not answer as a MongoDB server does: check that the address is that of one\n"
INFINITE, NO_NUMBER = float("inf"), float("nan")
ODD_COUNTS: list[Any] = [INFINITE, NO_NUMBER, -5, "5", {}, None, 1e300]


ODD_STATUSES: list[dict[str, Any]] = [
    *({"connections": {"current": odd}} for odd in ODD_COUNTS),
    *({"opcounters": {"query": odd}} for odd in ODD_COUNTS if odd != {}),
    *({"opLatencies": {"reads": odd}} for odd in (5, {"ops": 1})),
    *({key: None} for key in STATUS),
    {"connections": [], "opcounters": "x"},
]


def test_a_server_with_a_deprecated_counter_is_examined(capsys: pytest.CaptureFixture[str]) -> None:
    with hostile.mongod(STATUS) as uri:
        assert asked("doctor", uri, capsys) == 0


@pytest.mark.parametrize("command", ["doctor", "size"])
def test_a_status_that_no_server_has_can_not_be_told(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = dict[str, Any]()
    load = ["--rate", "10", "--use-time", "0.1"] if command == "size" else []
    with hostile.mongod(status) as uri:
        for odd in ODD_STATUSES:
            status.clear()
            status.update({**STATUS, **odd})
            code = cli.main([command, uri, "--seconds", "0.001", *load])
            told = capsys.readouterr()
            assert (code, told.out) == (cli.CANT_TELL, ""), odd
            assert told.err.endswith(NO_MONGODB)
            assert told.err.count("\n") == 1


@pytest.mark.parametrize(
    "hello",
    [
        {"maxWireVersion": "x"},
        {"logicalSessionTimeoutMinutes": "x"},
        {"maxBsonObjectSize": "x"},
    ],
)
def test_an_odd_hello_ends_without_a_traceback(
    hello: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "REACH_SECONDS", 0.5)
    with hostile.mongod(STATUS, **hello) as uri:
        assert asked("doctor", uri, capsys) == cli.CANT_TELL
        assert cli.main(["doctor", uri]) == cli.CANT_TELL
    told = capsys.readouterr()
    assert (told.err.count("\n"), told.err.endswith(NO_MONGODB)) == (1, True), told.err


def test_a_monitor_that_ends_later_prints_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """The first answer is read. The second one ends the monitor, maybe after the measurement."""
    with hostile.mongod(STATUS, topologyVersion="x") as uri:
        code = cli.main(["doctor", uri, "--seconds", "0.1"])
    assert code in (0, cli.CANT_TELL)
    assert capsys.readouterr().err.count("\n") == (1 if code else 0)


def test_no_warning_of_pymongo_is_printed(
    recwarn: pytest.WarningsRecorder, capsys: pytest.CaptureFixture[str]
) -> None:
    with hostile.mongod(STATUS) as uri:
        for option in ("nonsense=1", "tls=maybe", "compressors=lzma", "appName=a&appName=b"):
            assert asked("doctor", f"{uri}&{option}", capsys) in (0, cli.CANT_TELL)
    assert [str(one.message) for one in recwarn] == []


def test_a_server_that_stops_answering_has_a_deadline(
    server_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measuring, real = threading.get_ident(), time.sleep
    with Proxy(parse_uri(server_uri)["nodelist"][0][1]) as proxy:

        def sleep(seconds: float) -> None:
            proxy.freeze() if threading.get_ident() == measuring else real(seconds)

        monkeypatch.setattr(server, "DEADLINE_SECONDS", 1.0)
        monkeypatch.setattr(time, "sleep", sleep)
        assert cli.main(["doctor", proxy.uri, "--seconds", "0.1"]) == cli.CANT_TELL
    (line,) = capsys.readouterr().err.splitlines()
    assert "did not answer in time (1 s): its process may be stopped or overloaded" in line


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("mongodb://ann:s3cr3t@127.0.0.1/?tls=true&tlsCAFile=/nope", "can't be used: "),
        ("mongodb://ann:s3cr3t@127.0.0.1:99999/", "can't be used: Port must be"),
        ("mongodb://ann:s3cr3t@127.0.0.1:x/", "can't be used: "),
        ("mongodb://ann:s3cr3t@[::1/", "can't be used: "),
        ("mongodb://ann:s3cr3t@a b/", "not a valid address"),
        ("mongodb://ann:s3cr3t@a\x1b/", "not a valid address"),
        ("mongodb://", "can't be used: "),
    ],
)
def test_a_connection_string_that_is_not_valid_is_told_without_its_secrets(
    uri: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked("doctor", uri, capsys, "--json") == cli.CANT_TELL
    assert cli.main(["size", uri]) == cli.CANT_TELL
    err = capsys.readouterr().err
    assert words in err
    assert "s3cr3t" not in err


def test_a_page_has_a_largest_number_of_samples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prometheus_text, "MAX_SAMPLES", 1000)
    page = "process_start_time_seconds 1\n" * 1001
    with answering(hostile.pages({"/metrics": page})) as address:
        assert cli.main(["doctor", f"http://{address}"]) == cli.CANT_TELL
    assert "more than 1000 samples of pools" in capsys.readouterr().err
