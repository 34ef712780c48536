"""Each way to start four workers: they answer, and SIGTERM to their parent ends all of them."""

from pathlib import Path

import pytest

from tests.servers.ways import HTTP, WORKERS, run_script, start, start_rq
from tests.support import prometheus_families

QUICK = ("fork", "gunicorn-preload")  # the parent imports everything for its workers
WAYS = [
    one if one in QUICK else pytest.param(one, marks=pytest.mark.workers)
    for one in (*HTTP, "celery")
]


@pytest.mark.parametrize("way", WAYS)
def test_four_workers_answer_and_end(way: str, server_uri: str, tmp_path: Path) -> None:
    with start(way, server_uri, tmp_path) as service:
        assert len(service.pids) == WORKERS
        assert service.call("find") in service.pids
        assert service.pids <= set(service.members())
        held = service.call("hold", seconds=60)
        service.release(held)
        assert held in service.pids
        if service.web:
            assert prometheus_families(service.web.get("/metrics").text)
    assert service.survivors == []


@pytest.mark.workers
def test_jobs_of_rq_run_in_four_workers_and_end(server_uri: str, tmp_path: Path) -> None:
    with start_rq(server_uri, tmp_path) as service:
        assert len(service.pids) >= WORKERS
        assert service.call("find") not in service.pids  # each job has a process of its own
    assert service.survivors == []


@pytest.mark.workers
def test_scripts_run_one_after_the_other(server_uri: str, tmp_path: Path) -> None:
    assert len({run_script(server_uri, tmp_path, finds=3) for _ in range(2)}) == 2
