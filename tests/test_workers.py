"""The processes of one service find each other, and whoever is asked answers for all."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from pool_telemetry import diagnose, prometheus, workers
from pool_telemetry.endpoints import ProcessDetail
from pool_telemetry.errors import PoolTelemetryError
from pool_telemetry.stats import Exemplar, ProcessStats
from pool_telemetry.workers import directory, exchange, wire
from tests.member import members
from tests.recordings import Recording, recordings
from tests.support import wait_for
from tests.web import Web

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets"
)

SPAWNING = ("spawn", "forkserver")
CEILING_SECONDS = 10 * workers.REQUEST_SECONDS


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Starts processes that share a folder."""
    with members(tmp_path) as start:
        yield start


def the_folder(tmp_path: Path) -> Path:
    return directory.named(str(tmp_path))


def test_each_process_answers_for_all(server_uri: str, start: Any) -> None:
    pids = {}
    processes = [start() for _ in range(3)]
    for number, one in enumerate(processes):
        pids[number] = one(f"use({server_uri!r}, {number + 1})")
        assert one("joined()") == number
    for one in processes:
        seen = one("scrape()")
        assert seen["finds"] == {"0": 1, "1": 2, "2": 3}
        assert seen["up"] == {"0": 1, "1": 1, "2": 1}
        assert len(set(seen["instances"].values())) == 3
        ours = re.findall(r"^(?:db|mongodb)_client_.*$", seen["text"], re.MULTILINE)
        assert len(ours) > 300
        assert all('worker="' in line for line in ours)
        health = one("health()")
        assert (health["status"], health["reasons"]) == ("healthy", [])
        assert {part["worker"]: part["pid"] for part in health["workers"]} == pids
        answer, status = one("endpoints.diagnosis()")
        assert (status, len(answer["pools"]), len(answer["workers"])) == (200, 3, 3)
        assert answer["pools"][0].startswith(f"worker 0 (pid {pids[0]}): shop@127.0.0.1:")
        total = one("endpoints.mongodb(None)")["connection_pool"]
        assert (total["size"], total["max_size"]) == (3, 300)


def test_a_number_is_taken_over_and_its_counts_go_on(server_uri: str, start: Any) -> None:
    first, second, third = start(), start(), start()
    for one in (first, second, third):
        one(f"use({server_uri!r}, 5)")
        one("joined()")
    before = third("scrape()")
    assert before["finds"] == {"0": 5, "1": 5, "2": 5}
    second.kill()
    again = start()
    again(f"use({server_uri!r}, 2)")
    assert again("joined()") == 1
    after = first("scrape()")
    assert after["finds"] == {"0": 5, "1": 7, "2": 5}
    assert after["instances"]["1"] != before["instances"]["1"]
    assert after["instances"]["0"] == before["instances"]["0"]


def test_a_process_that_ends_in_good_order_leaves_its_last_counts(
    server_uri: str, start: Any
) -> None:
    first, second = start(), start()
    first(f"use({server_uri!r}, 1)")
    first("joined()")
    second(f"use({server_uri!r}, 1)")
    second("joined()")
    assert first("scrape()")["finds"] == {"0": 1, "1": 1}
    second("find(6)")
    second("workers.keep_last()")
    second.kill()
    seen = first("scrape()")
    assert (seen["finds"], seen["up"]) == ({"0": 1, "1": 7}, {"0": 1})
    assert "db_client_connection_count{" in seen["text"]
    assert not re.search(r'db_client_connection_count{.*worker="1"', seen["text"])
    assert [one["worker"] for one in first("health()")["workers"]] == [0]


@pytest.mark.workers
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_count_that_a_process_showed_itself_does_not_fall_when_it_is_silent_or_gone(
    number: signal.Signals, server_uri: str, start: Any
) -> None:
    first, second = start(), start()
    for one in (first, second):
        one(f"use({server_uri!r}, 4)")
        one("joined()")
    assert first("scrape()")["finds"] == {"0": 4, "1": 4}
    second("find(6)")
    assert second("scrape()")["finds"] == {"0": 4, "1": 10}
    second.send(number)
    wait_for(lambda: not first("scrape()")["up"]["1"])
    assert first("scrape()")["finds"] == {"0": 4, "1": 10}


def test_jobs_that_run_in_a_process_each_lose_no_count(server_uri: str, start: Any) -> None:
    first = start()
    first(f"use({server_uri!r}, 3)")
    first("joined()")
    first(f"jobs(20, {server_uri!r})")
    seen = first("scrape()")
    assert (seen["finds"], seen["up"]) == ({"0": 3, "1": sum(range(20))}, {"0": 1})
    assert [one["worker"] for one in first("health()")["workers"]] == [0]


@pytest.mark.bulk
def test_numbers_that_many_jobs_take_over_lose_no_count(server_uri: str, start: Any) -> None:
    asked, parents, count = start(), [start() for _ in range(4)], 25
    asked(f"use({server_uri!r}, 1)")
    asked("joined()")
    seen: dict[str, int] = {}
    with ThreadPoolExecutor(len(parents)) as threads:
        done = [threads.submit(one, f"jobs({count}, {server_uri!r})") for one in parents]
        while not all(one.done() for one in done):
            now = asked("scrape()")["finds"]
            seen.pop("", None)  # it was alone
            assert all(now[worker] >= finds for worker, finds in seen.items()), (seen, now)
            seen = now
        for one in done:
            one.result()
    assert sum(asked("scrape()")["finds"].values()) == 1 + len(parents) * sum(range(count))


@pytest.mark.workers
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_multiprocessing_leave_their_last_counts(
    server_uri: str, start: Any, method: str
) -> None:
    first, counts = start(), [*range(1, 7)]
    first(f"use({server_uri!r}, 3)")
    first("joined()")
    first(f"find_in_workers({method!r}, {counts}, {server_uri!r})")
    seen = first("scrape()")
    assert (seen["finds"].pop("0"), seen["up"]) == (3, {"0": 1})
    assert sum(seen["finds"].values()) == 2 * sum(counts)


@pytest.mark.workers
def test_a_script_leaves_its_last_counts(server_uri: str, start: Any) -> None:
    first = start()
    first(f"use({server_uri!r}, 1)")
    first("joined()")
    for number in range(3):
        script = start()
        script(f"use({server_uri!r}, {number})")
        assert script.log() == ""
    seen = first("scrape()")
    assert (seen["finds"], seen["up"]) == ({"0": 1, "1": 3}, {"0": 1})


@pytest.mark.workers
def test_the_counts_of_a_rare_job_go_on(server_uri: str, start: Any, tmp_path: Path) -> None:
    first = start()
    first(f"use({server_uri!r}, 1)")
    first("joined()")
    for days, finds, shown in ((0, 2, 2), (7, 3, 5), (9, 3, 3)):
        kept = the_folder(tmp_path) / "1.json"
        if kept.exists():
            answer = json.loads(kept.read_text())
            kept.write_text(json.dumps({**answer, "at": answer["at"] - days * 86_400}))
            assert first("scrape()")["finds"] == {"0": 1}
        job = start()
        job(f"use({server_uri!r}, {finds})")
        job.log()
        assert first("scrape()")["finds"] == {"0": 1, "1": shown}


@pytest.mark.workers
def test_a_full_disk_silences_nobody(server_uri: str, start: Any) -> None:
    first, second = start(), start()
    for one in (first, second):
        one(f"use({server_uri!r}, 1)")
        one("joined()")
    second("fill_disk()")
    second("find(2)")
    for _ in range(2):
        seen = first("scrape()")
        assert (seen["finds"], seen["up"]) == ({"0": 1, "1": 3}, {"0": 1, "1": 1})
    assert second.log().count("the last counts of this process can't be kept") == 1


@pytest.mark.workers
def test_a_process_that_closed_its_pool_goes_on(server_uri: str, start: Any) -> None:
    first, second = start(), start()
    for one in (first, second):
        one(f"use({server_uri!r}, 1)")
        one("joined()")
    second(f"MongoDBConnectionPool.initialize({server_uri!r}) and None")
    second("MongoDBConnectionPool.close()")
    second("find(2)")
    seen = first("scrape()")
    assert (seen["finds"], seen["up"]) == ({"0": 1, "1": 3}, {"0": 1, "1": 1})


@pytest.mark.workers
def test_a_process_that_used_no_client_takes_no_number(server_uri: str, start: Any) -> None:
    first = start()
    first(f"use({server_uri!r}, 1)")
    first("joined()")
    first("fork_idly()")
    assert first("scrape()")["finds"] == {"": 1}


def test_a_frozen_process_is_silent_then_gone_and_delays_nobody(
    server_uri: str, start: Any
) -> None:
    first, second, third = start(), start(), start()
    for one in (first, second, third):
        one(f"use({server_uri!r}, 4)")
        one("joined()")
    first("scrape()")
    second.send(signal.SIGSTOP)
    for asked in (first, third):
        seen = asked("scrape()")
        assert seen["up"] == {"0": 1, "1": 1, "2": 1}  # it is only late yet
        assert seen["finds"] == {"0": 4, "1": 4, "2": 4}
        assert seen["seconds"] < CEILING_SECONDS
    wait_for(lambda: not first("scrape()")["up"]["1"], "a silent process")
    health = first("health()")
    assert (health["status"], health["workers"][0]["state"]) == ("degraded", "silent")
    words = f"worker 1 (pid {second.pid}): it has not answered for "
    assert health["reasons"][0].startswith(words)
    (finding,) = first("endpoints.diagnosis()")[0]["findings"]
    assert (finding["verdict"], finding["worker"]) == ("silent worker", 1)
    assert f"py-spy dump --pid {second.pid}" in finding["advice"]
    second.send(signal.SIGCONT)
    assert wait_for(lambda: first("scrape()")["up"]["1"])
    second.kill()
    seen = first("scrape()")
    assert (seen["up"], seen["finds"]["1"]) == ({"0": 1, "1": 0, "2": 1}, 4)
    health = first("health()")
    assert (health["status"], health["workers"][0]["state"]) == ("degraded", "gone")
    assert "it was killed or crashed" in health["reasons"][0]


def test_a_process_that_is_alone_makes_no_file(server_uri: str, tmp_path: Path) -> None:
    with members(TMPDIR=str(tmp_path)) as start:
        one = start()
        one(f"use({server_uri!r}, 3)")
        wait_for(lambda: one("scrape()")["finds"] == {"": 3})
        assert list(tmp_path.iterdir()) == []
        health = one("health()")
        assert (health["worker"], health["pid"], "workers" in health) == (None, one.pid, False)
        assert one("scrape()")["instances"][""] == health["instance"]
        assert "worker=" not in one("scrape()")["text"]


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(one, marks=pytest.mark.workers) for one in SPAWNING)]
)
def test_children_find_their_parent_and_no_other_service(
    server_uri: str, tmp_path: Path, method: str
) -> None:
    with members(TMPDIR=str(tmp_path)) as start:
        ours, others = start(), start()
        for one, count in ((ours, 2), (others, 1)):
            one(f"use({server_uri!r}, 1)")
            numbers = one(f"children({method!r}, {count}, {server_uri!r})")
            own = one("joined()")
            assert sorted([*numbers, own]) == [*range(count + 1)]
            finds = {str(number): 3 for number in numbers} | {str(own): 1}
            assert one("scrape()")["finds"] == finds
        for one in (ours, others):
            one("end_children()")


def test_a_forked_child_has_an_identity_of_its_own() -> None:
    before = workers.identity()
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(send, workers.identity().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(send)
    with os.fdopen(receive) as told:
        assert len(child := told.read()) == len(before) == 16
    assert child != before == workers.identity()


@pytest.mark.workers
@pytest.mark.parametrize("trouble", ["others may use it", "a link", "no folder", "a file"])
def test_without_a_folder_each_process_answers_for_itself(
    server_uri: str, tmp_path: Path, trouble: str
) -> None:
    folder = tmp_path / "folder"
    ours = folder / f"pool_telemetry-{os.geteuid()}"
    if trouble == "no folder":
        folder = Path("/proc/no/folder")  # as in a container whose files are read-only
    elif trouble == "a file":
        folder.touch()
    else:
        folder.mkdir()
        if trouble == "a link":
            (tmp_path / "other").mkdir(mode=0o700)
            ours.symlink_to(tmp_path / "other")
        else:
            ours.mkdir(mode=0o755)
    with members(folder) as start:
        one = start()
        one(f"use({server_uri!r}, 2)")
        seen = wait_for(lambda: one("scrape()"))
        assert seen["finds"] == {"": 2}
        one("wait_for(lambda: workers.membership._failed_at > 0)")
        log = one.log()
    assert log.count("the processes of this service can't find each other") == 1, log


def test_a_process_joins_as_soon_as_its_folder_is_usable(server_uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.touch()
    with members(folder) as start:
        one = start()
        one("setattr(workers.membership, '_RETRY_SECONDS', 0.1)")
        one(f"use({server_uri!r}, 2)")
        one("wait_for(lambda: workers.membership._failed_at > 0)")
        assert one("workers.is_member()") is False
        folder.unlink()
        assert one("joined()") == 0
        assert one.log().count("can't find each other") == 1


def test_what_others_left_there_harms_nobody(server_uri: str, start: Any, tmp_path: Path) -> None:
    one = start()
    one(f"use({server_uri!r}, 2)")
    one("joined()")
    folder = the_folder(tmp_path)
    texts: list[bytes] = [b"", b"{", b"[]", b'{"worker": 1}', b"\xff\xfe", b'{"worker":"x"}']
    whole = json.loads((folder / "0.json").read_text())
    bodies: list[Any] = [None, [], {"main": 1}]
    texts += [json.dumps({**whole, "body": body}).encode() for body in bodies]
    texts += [json.dumps({**whole, "new": 1, "body": {"clients": [{"name": 1}]}}).encode()]
    for number, text in enumerate(texts, 1):
        (folder / f"{number}.lock").touch()
        (folder / f"{number}.json").write_bytes(text)
    (folder / "x.lock").touch()
    seen = one("scrape()")
    assert seen["finds"] == {"0": 2}
    (answering,) = (part for part in one("health()")["workers"] if part["state"] == "answers")
    assert (answering["worker"], answering["status"]) == (0, "healthy")
    another = start()
    another(f"use({server_uri!r}, 3)")
    assert another("joined()") == 1
    assert one("scrape()")["finds"] == {"0": 2, "1": 3}


@pytest.mark.workers
@pytest.mark.parametrize("said", [b"", b"{", b"x" * 100_000, None])
def test_a_socket_that_answers_something_else_is_silent(
    server_uri: str, start: Any, tmp_path: Path, said: bytes | None
) -> None:
    one = start()
    one(f"use({server_uri!r}, 2)")
    one("joined()")
    folder = the_folder(tmp_path)
    (folder / "1.lock").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(folder, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/1.sock")
        os.close(here)
        listener.listen()
        over = threading.Event()

        def answer() -> None:
            asked, _ = listener.accept()
            with asked, contextlib.suppress(BrokenPipeError):
                asked.recv(100)
                while said is None and not over.is_set():  # slowly, and without an end
                    asked.sendall(b" ")
                    over.wait(0.01)
                asked.sendall(said or b"")

        thread = threading.Thread(target=answer)
        thread.start()
        seen = one("scrape()")
        over.set()
        thread.join()
    assert (seen["finds"], seen["up"].keys()) == ({"0": 2}, {"0", "1"})
    assert seen["seconds"] < exchange.MOST_SECONDS + CEILING_SECONDS


@pytest.mark.workers
def test_nothing_is_written_while_nobody_asks(server_uri: str, start: Any, tmp_path: Path) -> None:
    first, second = start(), start()
    for one in (first, second):
        one(f"use({server_uri!r}, 1)")
        one("joined()")
    first("scrape()")
    second("scrape()")

    def written() -> list[int]:
        return [path.stat().st_mtime_ns for path in sorted(the_folder(tmp_path).iterdir())]

    before = written()
    second("find(50)")
    checks = second("checks()")
    second(f"wait_for(lambda: checks() >= {checks + 3})")
    assert written() == before
    first("scrape()")
    assert written() != before


def test_no_secret_is_in_the_files(server_uri: str, start: Any, tmp_path: Path) -> None:
    one, other = start(), start()
    uri = server_uri.replace("mongodb://", "mongodb://ann:s3cr3t@") + "?authSource=admin"
    one(f"use({server_uri!r}, 1)")
    one("joined()")
    one("_clients[-1]['shop']['orders'].find_one({'card': '4111-1111'})")
    other(f"try_to_use({uri!r})")
    other(f"use({server_uri!r}, 1)")
    other("joined()")
    texts = [
        one("scrape()")["text"],
        *(
            json.dumps(one(f"{ask}"))
            for ask in (
                "health()",
                "endpoints.diagnosis()",
                "endpoints.holders()",
                "endpoints.mongodb(None)",
            )
        ),
    ]
    texts += [path.read_text() for path in the_folder(tmp_path).glob("*.json")]
    assert len(texts) == 7
    for text in texts:
        assert "s3cr3t" not in text
        assert "4111" not in text


@pytest.mark.workers
@pytest.mark.parametrize("off", ["workers", "watch"])
def test_a_process_can_stay_out(server_uri: str, start: Any, off: str) -> None:
    first, second = start(), start()
    first(f"use({server_uri!r}, 1)")
    first("joined()")
    second(f"use({server_uri!r}, 2, {off}=False)")
    for _ in range(2):  # nor does it join when it is asked itself
        assert first("scrape()")["finds"] == {"": 1}
        assert second("scrape()")["finds"] == {"": 2}
        assert second("health()")["worker"] is None
        assert second("endpoints.diagnosis()")[0]["worker"] is None


@pytest.mark.workers
def test_a_removed_folder_is_made_again(server_uri: str, start: Any, tmp_path: Path) -> None:
    first, second = start(), start()
    for one in (first, second):
        one(f"use({server_uri!r}, 1)")
        one("joined()")
    for path in the_folder(tmp_path).iterdir():
        path.unlink()
    the_folder(tmp_path).rmdir()
    wait_for(lambda: first("scrape()")["finds"] == {"0": 1, "1": 1})


@pytest.mark.workers
def test_a_long_path_is_no_obstacle(server_uri: str, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux has /proc/self/fd for a shorter address")
    with members(tmp_path / ("x" * 200)) as start:
        first, second = start(), start()
        for one in (first, second):
            one(f"use({server_uri!r}, 1)")
            one("joined()")
        assert first("scrape()")["finds"] == {"0": 1, "1": 1}


def test_log_lines_name_the_process(server_uri: str, start: Any) -> None:
    first, second = start(), start()
    for one in (first, second):
        one(f"use({server_uri!r}, 1)")
        one("joined()")
    second("log_something()")
    assert f"pool_telemetry.watch worker 1 (pid {second.pid}): something" in second.log()


@pytest.mark.workers
def test_the_exporter_shows_processes_without_http(
    server_uri: str, start: Any, tmp_path: Path
) -> None:
    first = start()
    first(f"use({server_uri!r}, 2)")
    first("joined()")
    with serve("--port", "0", "--dir", str(tmp_path)) as web:
        text = web.get("/metrics").text
        assert f'mongodb_client_process_up{{process_pid="{first.pid}"' in text
        assert re.search(r'operation_duration_seconds_count{.*"find".*worker="0"} 2.0', text)
        assert web.get("/health").json()["status"] == "healthy"
        assert web.get("/health/live").status == web.get("/health/ready").status == 200
        assert web.get("/pool/diagnosis").json()["verdict"] == "healthy"
        assert web.get("/pool/holders").json()["pool"]["size"] == 1
        assert web.get("/metrics/mongodb").json()["connection_pool"]["size"] == 1
        assert web.get("/other").status == 404
        first.kill()
        assert web.get("/health").json()["workers"][0]["state"] == "gone"


def test_the_exporter_of_another_user_says_so(tmp_path: Path) -> None:
    other = os.geteuid() + 1
    (tmp_path / f"pool_telemetry-{other}").mkdir()
    with pytest.raises(PoolTelemetryError, match=f"have the user id {other}, .* the same user"):
        workers.directory_of(str(tmp_path))
    for folder in (the_folder(tmp_path).parent, the_folder(tmp_path)):
        folder.mkdir(mode=0o700)
    assert workers.directory_of(str(tmp_path)) == the_folder(tmp_path)


@pytest.mark.workers
def test_applications_metrics_of_multiprocess_mode_are_there_too(
    server_uri: str, start: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "multiprocess"
    folder.mkdir()
    both = [start(PROMETHEUS_MULTIPROC_DIR=str(folder)) for _ in range(2)]
    for number, one in enumerate(both, 1):
        one(f"use({server_uri!r}, {number})")
        one("joined()")
        one(f"count_orders({number})")
    for one in both:
        seen = one("scrape()")
        assert seen["finds"] == {"0": 1, "1": 2}
        assert "orders_total 3.0" in seen["text"]
    log = both[0].log()
    assert log.count("PROMETHEUS_MULTIPROC_DIR is set") == 1, log


@pytest.mark.parametrize("named", ["", "/no/such/folder"])
def test_multiprocess_mode_without_a_folder_is_off(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", named)
    prometheus.register()
    try:
        assert b"mongodb_client_process_up" in prometheus.generate()[0]
    finally:
        prometheus.unregister()


@pytest.mark.workers
def test_an_exporter_without_a_process_is_well(server_uri: str, start: Any, tmp_path: Path) -> None:
    with serve("--port", "0", "--dir", str(tmp_path)) as web:
        for _ in range(2):
            health = web.get("/health").json()
            assert (health["status"], health["reasons"]) == ("healthy", ["no process runs now"])
            assert web.get("/health/ready").status == 200
            assert web.get("/pool/diagnosis").json()["verdict"] == "healthy"
            job = start()  # and in the second round it has ended
            job(f"use({server_uri!r}, 3)")
            job.log()
        assert re.search(r'"find".*worker="0"} 6.0', web.get("/metrics").text)


@pytest.mark.parametrize("folder", ["a_file", "a_loop", "x" * 300, "a\0b"])
def test_an_exporter_says_which_folder_it_cannot_use(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a_file").touch()
    (tmp_path / "a_loop").symlink_to("a_loop")
    with pytest.raises(PoolTelemetryError, match=r"^can't use the folder '.*': "):
        workers.directory_of(str(tmp_path / folder))


def test_an_exporter_reads_no_folder_that_others_may_use(tmp_path: Path) -> None:
    ours = tmp_path / f"pool_telemetry-{os.geteuid()}"
    ours.mkdir(mode=0o777)
    ours.chmod(0o777)
    with pytest.raises(PoolTelemetryError, match="other users may use"):
        workers.directory_of(str(tmp_path))


@pytest.mark.workers
@pytest.mark.parametrize(("named", "told"), [("relative", 1), ("", 0)])
def test_a_relative_folder_is_refused_and_an_empty_one_is_none(
    server_uri: str, tmp_path: Path, named: str, told: int
) -> None:
    with members(TMPDIR=str(tmp_path), POOL_TELEMETRY_DIR=named) as start:
        one = start()
        one(f"use({server_uri!r}, 2)")
        one("wait_for(lambda: checks() >= 1)")
        assert one("scrape()")["finds"] == {"": 2}
        assert list(tmp_path.iterdir()) == []
        assert one.log().count("use an absolute path") == told


@pytest.mark.workers
def test_forks_while_the_parent_joins_lose_no_count(server_uri: str, start: Any) -> None:
    """The watching thread of the parent makes and answers, while the others fork."""
    parent = start()
    parent(f"use({server_uri!r}, 1)")
    parent(f"jobs(5, {server_uri!r})")
    assert sum(parent("scrape()")["finds"].values()) == 1 + sum(range(5))


def test_an_emptied_registry_is_noticed() -> None:
    registry = CollectorRegistry()
    collector = prometheus.register(registry)
    for again in (prometheus.generate, prometheus.register):
        registry.unregister(collector)
        again(registry=registry)
        assert "mongodb_client_process_up" in prometheus.generate(registry=registry)[0].decode()


def serve(*arguments: str) -> Any:
    """Run `pool-telemetry serve` while the block runs."""
    return _Serving(arguments)


class _Serving:
    def __init__(self, arguments: tuple[str, ...]) -> None:
        command = [sys.executable, "-m", "pool_telemetry.cli", "serve", *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Web:
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        port = re.match(r"http://127\.0\.0\.1:(\d+)/metrics shows", said)
        assert port, said
        return Web(int(port[1]))

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        assert self._process.wait(60) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.mark.workers
@pytest.mark.parametrize("running", [0, 2])
def test_the_exporter_needs_one_service(server_uri: str, tmp_path: Path, running: int) -> None:
    with members(TMPDIR=str(tmp_path)) as start:
        for _ in range(running):
            one = start()
            one(f"children('spawn', 1, {server_uri!r})")
        done = subprocess.run(
            [sys.executable, "-m", "pool_telemetry.cli", "serve", "--port", "0"],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert "POOL_TELEMETRY_DIR" in done.stderr
    assert done.stderr.startswith(
        "pool-telemetry serve: " + ("2 services of this user" if running else "no service of this")
    )


@pytest.mark.workers
def test_directories_of_ended_services_are_removed(server_uri: str, tmp_path: Path) -> None:
    def services() -> list[Path]:
        return [one for folder in tmp_path.iterdir() for one in folder.iterdir()]

    with members(TMPDIR=str(tmp_path)) as start:
        first = start()
        first(f"children('spawn', 1, {server_uri!r})")
        (crashed,) = services()
        first.kill()
        child = int(json.loads((crashed / "0.json").read_text())["pid"])
        os.kill(child, signal.SIGKILL)
        wait_for(lambda: not directory.is_used(crashed))
        second = start()
        second(f"children('spawn', 1, {server_uri!r})")
        (left,) = services()
        assert left != crashed
        second("end_children()")


@pytest.mark.parametrize("recording", recordings(), ids=lambda one: one.name)
def test_what_is_exchanged_is_what_was_said(recording: Recording) -> None:
    """The stats and findings of every recorded scenario, with an exemplar's 128 bits."""
    *history, client = recording.samples
    exemplar = Exemplar((2**128 - 1, 2**64 - 1), 0.5, 1e9)
    pools = tuple(
        replace(pool, wait_time=replace(pool.wait_time, exemplars={3: exemplar}))
        for pool in client.pools
    )
    stats = ProcessStats(main=None, clients=(replace(client, pools=pools),))
    detail = ProcessDetail(
        stats=stats,
        has_pools=True,
        findings=diagnose(client, history).findings,
        pools=(),
        holders=(),
        waiters=(),
    )
    received = wire.decode(wire.encode(workers.membership.document(detail, 3)))
    assert (received.worker, received.pid, received.instance) == (
        3,
        os.getpid(),
        workers.identity(),
    )
    assert wire.convert(received.body, ProcessDetail) == detail


def test_a_document_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_BYTES", 10)
    assert workers.membership.read_document(b'{"worker": 1, "pid": 2}') is None
