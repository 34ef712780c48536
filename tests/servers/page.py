"""The processes of a service, as a page of `/metrics` shows them."""

from dataclasses import dataclass, field

from tests.servers.ways import Service
from tests.support import prometheus_families


@dataclass
class Seen:
    """One process, as a scrape shows it."""

    worker: str = ""  # its label
    pid: int = 0
    instance: str = ""
    answers: bool = False
    finds: float = 0.0
    exhausted: bool = False
    counters: dict[str, float] = field(default_factory=dict)  # by series, without the worker


def scrape(service: Service) -> dict[str, Seen]:
    """Return the processes of one scrape, by their worker label."""
    assert service.web
    answer = service.web.get("/metrics")
    assert answer.status == 200, answer
    return read(answer.text)


def read(text: str) -> dict[str, Seen]:
    """Return the processes of a page, by their worker label; without one the label is empty."""
    seen: dict[str, Seen] = {}
    for family in prometheus_families(text):
        for name, labels, value, *_ in family.samples:
            if not name.startswith(("mongodb_", "db_")):
                continue
            worker = labels.get("worker", "")
            one = seen.setdefault(worker, Seen(worker))
            rest = ",".join(f"{k}={v}" for k, v in sorted(labels.items()) if k != "worker")
            if name == "mongodb_client_process_up":
                one.instance = labels["service_instance_id"]
                one.pid, one.answers = int(labels["process_pid"]), bool(value)
            elif family.type in ("counter", "histogram"):
                one.counters[f"{name}{{{rest}}}"] = value
            elif name == "mongodb_client_pool_exhausted":
                one.exhausted = bool(value)
            if name == "db_client_operation_duration_seconds_count":
                one.finds += value if labels["db_operation_name"] == "find" else 0.0
    return seen
