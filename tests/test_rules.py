"""Each alert fires when it should and only then, as `promtool` judges."""

import json
import os
import random
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pool_telemetry import catalog
from pool_telemetry.catalog import Metric
from pool_telemetry.monitoring import files
from pool_telemetry.monitoring.alerts import alerts
from pool_telemetry.monitoring.promql import HOST, OUTCOME, POOL, REASON, STATE
from pool_telemetry.monitoring.recording_rules import recording_rules
from pool_telemetry.monitoring.thresholds import Thresholds
from pool_telemetry.prometheus import prometheus_name
from tests.grafana import board, filled, panels
from tests.needs import needs
from tests.support import rest_in_bulk


@pytest.fixture(autouse=True)
def promtool() -> None:
    needs("promtool", package="prometheus")


SCRAPE_SECONDS = 15
MINUTE = 60 // SCRAPE_SECONDS  # in samples
LABELS = {"job": "chat", "instance": "app:8000", POOL: "chat@db:27017"}
CLIENT = {POOL: "chat"}  # of the metrics of a whole client
NAMES = [alert.name for alert in alerts()]


def level(*parts: tuple[float, int]) -> str:
    """Return the samples of a gauge that has each value for so many minutes."""
    return " ".join(f"{value}+0x{minutes * MINUTE - 1}" for value, minutes in parts)


def rising(*parts: tuple[float, int], restart: bool = False) -> str:
    """Return the samples of a counter with these rates per second; `restart` begins each at 0."""
    text, at = [], 0.0
    for rate, minutes in parts:
        step = rate * SCRAPE_SECONDS
        text.append(f"{at}+{step}x{minutes * MINUTE - 1}")
        at = 0.0 if restart else at + step * minutes * MINUTE
    return " ".join(text)


def series(metric: Metric, part: str = "", **labels: str) -> str:
    pairs = ",".join(f'{k}="{v}"' for k, v in {**LABELS, **labels}.items())
    return f"{prometheus_name(metric)}{part}{{{pairs}}}"


def waits(minutes: int, within_250_ms: float = 1.0, within_500_ms: float = 1.0) -> dict[str, str]:
    """Return a wait time histogram with these shares; all other waits are below 1 s."""
    metric = catalog.WAIT_SECONDS
    rates = {"0.25": 100 * within_250_ms, "0.5": 100 * within_500_ms, "1": 100, "+Inf": 100}
    return {series(metric, "_bucket", le=k): rising((v, minutes)) for k, v in rates.items()}


def a_pool(minutes: int, **changed: str | Mapping[str, str]) -> dict[str, str]:
    """Return the series of a calm pool, except those that are changed."""
    calm: dict[str, str] = {}
    samples: dict[str, Any] = {
        "info": level((1, minutes)),
        "used": level((2, minutes)),
        "max": level((8, minutes)),
        "waiting": level((0, minutes)),
        "timeouts": rising((0, minutes)),
        "ok": rising((100, minutes)),
        "failed": rising((0, minutes)),
        "waits": waits(minutes),
        "exhausted": level((0, minutes)),
        "exhausted_time": rising((0, minutes)),
        "oldest": level((0, minutes)),
        "longest": level((0.05, minutes)),
        "created": rising((0.001, minutes)),
        "closed": rising((0.001, minutes)),
        "ready": level((1, minutes)),
        "up": level((1, minutes)),
        "errors": level((0, minutes)),
        "unserved": level((0, minutes)),
        "silent": level((0, minutes)),
        "selecting": level((0, minutes)),
        "selecting_for": level((0, minutes)),
        "selection_failures": rising((0, minutes)),
        **changed,
    }
    names = {
        "info": series(catalog.CLIENT_INFO),
        "used": series(catalog.CONNECTIONS, **{STATE: "used"}),
        "max": series(catalog.MAX_SIZE),
        "waiting": series(catalog.WAITING),
        "timeouts": series(catalog.TIMEOUTS),
        "ok": series(catalog.CHECKOUTS, **{OUTCOME: "ok"}),
        "failed": series(catalog.CHECKOUTS, **{OUTCOME: "connection_error"}),
        "exhausted": series(catalog.EXHAUSTED),
        "exhausted_time": series(catalog.EXHAUSTED_SECONDS),
        "oldest": series(catalog.OLDEST_WAIT),
        "longest": series(catalog.LONGEST_CHECKOUT),
        "created": series(catalog.CREATED),
        "closed": series(catalog.CLOSED, **{REASON: "error"}),
        "ready": series(catalog.READY),
        "up": series(catalog.SERVER_UP),
        "errors": series(catalog.TELEMETRY_ERRORS),
        "unserved": series(catalog.UNSERVED),
        "silent": series(catalog.SERVER_SILENCE),
        "selecting": series(catalog.SELECTION_WAITING, **CLIENT),
        "selecting_for": series(catalog.SELECTION_OLDEST_WAIT, **CLIENT),
        "selection_failures": series(catalog.SELECTION_FAILURES, **CLIENT),
    }
    calm.update(samples.pop("waits"))
    return calm | {names[name]: values for name, values in samples.items()}


def a_trend(start: float, per_hour: float, minutes: int) -> str:
    return f"{start}+{per_hour / 60 / MINUTE}x{minutes * MINUTE - 1}"


@dataclass(frozen=True)
class Case:
    """A pool, and the words of its alert after some minutes."""

    pool: Mapping[str, str]
    minutes: int
    summary: str
    text: str


FULL = a_pool(20, used=level((2, 10), (8, 10)), waiting=level((3, 20)))

CASES = {
    "MongoDBPoolExhausted": Case(
        a_pool(
            12,
            exhausted=level((0, 10), (1, 2)),
            exhausted_time=rising((0, 10), (1, 2)),
            waiting=level((0, 10), (15, 2)),
            oldest=level((0, 10), (0.6, 2)),
        ),
        11,
        "Pool chat@db:27017 of app:8000 is exhausted",
        "All 8 connections of pool chat@db:27017 in app:8000 (chat) were in use, and callers "
        "queued, for 50% of the last 2 minutes (alert above 25%). Callers waiting now: 15.",
    ),
    "MongoDBPoolNearlyFull": Case(
        a_pool(20, used=level((2, 10), (7, 10))),
        19,
        "Pool chat@db:27017 of app:8000 is 87.5% full",
        "On average over 5 minutes, 87.5% of the 8 connections of pool chat@db:27017 in app:8000 "
        "(chat) were in use (alert above 80%). Callers will queue in the next burst.",
    ),
    "MongoDBPoolFull": Case(
        FULL,
        19,
        "Pool chat@db:27017 of app:8000 is full: 100% in use",
        "On average over 5 minutes, 100% of the 8 connections of pool chat@db:27017 in app:8000 "
        "(chat) were in use (alert above 95%). Callers waiting now: 3.",
    ),
    "MongoDBPoolCheckoutTimeouts": Case(
        a_pool(20, timeouts=rising((0, 10), (5, 10))),
        19,
        "5% of the checkouts from pool chat@db:27017 of app:8000 time out",
        "Over the last 5 minutes, 5% of the checkouts from pool chat@db:27017 in app:8000 (chat) "
        "timed out after waitQueueTimeoutMS (alert above 1%). Users see these errors.",
    ),
    "MongoDBPoolCheckoutFailures": Case(
        a_pool(20, failed=rising((0, 10), (25, 10))),
        19,
        "20% of the checkouts from pool chat@db:27017 of app:8000 fail",
        "Over the last 5 minutes, 20% of the checkouts from pool chat@db:27017 in app:8000 (chat) "
        "failed because no connection could be opened or the pool was paused (alert above 1%). "
        "Users see these errors.",
    ),
    "MongoDBPoolWaitHigh": Case(
        a_pool(20, waits=waits(20, 0.5, 0.5)),
        19,
        "Callers of pool chat@db:27017 of app:8000 wait 990ms (p99) for a connection",
        "Over the last 5 minutes, 1 in 100 checkouts from pool chat@db:27017 in app:8000 (chat) "
        "took 990ms or longer (alert above 0.5 s).",
    ),
    "MongoDBPoolOldestWaiter": Case(
        a_pool(20, oldest=level((0, 10), (4.5, 10))),
        13,
        "A caller of pool chat@db:27017 of app:8000 has waited 4.5s for a connection",
        "Throughout the last minute, some caller of pool chat@db:27017 in app:8000 (chat) had "
        "waited 4.5s or longer for a connection (alert above 3 s).",
    ),
    "MongoDBPoolNobodyServed": Case(
        a_pool(20, unserved=level((0, 10), (45, 10)), waiting=level((0, 10), (5, 10))),
        13,
        "Pool chat@db:27017 of app:8000 has served no caller for 45s",
        "Callers asked pool chat@db:27017 in app:8000 (chat) for connections, and none got one for "
        "45s (alert above 10 s), although the server answers heartbeats. Callers waiting now: 5.",
    ),
    "MongoDBPoolCheckoutHeld": Case(
        a_pool(20, longest=level((0.1, 10), (90, 10))),
        13,
        "A connection of pool chat@db:27017 of app:8000 has been checked out for 1m 30s",
        "A caller in app:8000 (chat) has held a connection of pool chat@db:27017 for 1m 30s "
        "(alert above 60 s). Its operation is slow or hangs, or it keeps an exhaust cursor open.",
    ),
    "MongoDBPoolConnectionStorm": Case(
        a_pool(20, created=rising((0, 5), (4, 15)), closed=rising((0, 5), (4, 15))),
        19,
        "Pool chat@db:27017 of app:8000 opens 4 connections per second",
        "Over the last 5 minutes, pool chat@db:27017 in app:8000 (chat) opened 4 connections per "
        "second (alert above 2) and closed others. Each new connection costs a handshake.",
    ),
    "MongoDBPoolPaused": Case(
        a_pool(20, ready=level((1, 10), (0, 10))),
        13,
        "Pool chat@db:27017 of app:8000 is paused",
        "Pool chat@db:27017 in app:8000 (chat) is paused although its server answers heartbeats. "
        "The pool takes no operations.",
    ),
    "MongoDBServerDown": Case(
        a_pool(
            20,
            ready=level((1, 10), (0, 10)),
            up=level((1, 10), (0, 10)),
            unserved=level((0, 10), (45, 10)),
            selecting=level((0, 10), (4, 10)),
            selecting_for=level((0, 10), (28, 10)),
            selection_failures=rising((0, 10), (0.2, 10)),
        ),
        13,
        "app:8000 can't reach the server of pool chat@db:27017",
        "The server of pool chat@db:27017 does not answer the heartbeats of app:8000 (chat).",
    ),
    "MongoDBNoServerFits": Case(
        a_pool(
            20,
            selecting=level((0, 10), (4, 10)),
            selecting_for=level((0, 10), (8, 10)),
            selection_failures=rising((0, 10), (0.2, 10)),
        ),
        19,
        "No server fits the operations of client 'chat' in app:8000",
        "Callers of client 'chat' in app:8000 (chat) that wait in server selection or failed there "
        "in the last 5 minutes: 64. The set has no primary, no server matches the operations, or "
        "the client has no server left. Users see errors.",
    ),
    "MongoDBDriverSilent": Case(
        a_pool(20, silent=level((0, 10), (37, 10)), unserved=level((0, 10), (37, 10))),
        13,
        "PyMongo stands still in app:8000: its monitor for pool chat@db:27017 is silent",
        "PyMongo's monitor of the server of pool chat@db:27017 in app:8000 (chat) has published "
        "nothing for 37s. The event loop is blocked, or threads are deadlocked. Callers are "
        "probably not served.",
    ),
    "MongoDBPoolTelemetryErrors": Case(
        a_pool(20, errors=level((0, 10), (3, 10))),
        19,
        "The telemetry of pool chat@db:27017 of app:8000 fails",
        "In the last 15 minutes, pool_telemetry failed to process 3 events of pool chat@db:27017 "
        "in app:8000 (chat). The metrics may be wrong; the application is fine.",
    ),
    "MongoDBPoolExhaustionPredicted": Case(
        a_pool(180, used=a_trend(3, 1.6, 180)),
        175,
        "Pool chat@db:27017 of app:8000 will be full within the hour",
        "At the pace of the last two hours, pool chat@db:27017 in app:8000 (chat) will need "
        "114.2% of its 8 connections in an hour.",
    ),
    "MongoDBPoolNoData": Case(
        a_pool(10),
        21,
        "No pool of chat reports metrics any more",
        "No pool of chat has reported metrics for 5 minutes. Its processes ended, or their "
        "metrics do not arrive. No other alert can fire for it.",
    ),
}
SEVERE = {
    "MongoDBPoolExhausted",
    "MongoDBPoolFull",
    "MongoDBPoolCheckoutTimeouts",
    "MongoDBPoolCheckoutFailures",
    "MongoDBPoolPaused",
    "MongoDBServerDown",
    "MongoDBPoolNobodyServed",
    "MongoDBNoServerFits",
    "MongoDBDriverSilent",
}
LABELS_OF = {"MongoDBPoolNoData": {"job": "chat"}, "MongoDBNoServerFits": LABELS | CLIENT}
# Alerts that rightly fire together with the alert.
WITH_IT = {
    name: {"MongoDBPoolNearlyFull"}
    for name in ("MongoDBPoolFull", "MongoDBPoolExhaustionPredicted")
}

BUSY = a_pool(
    90,
    used=level((6.2, 90)),
    waiting=level((2, 90)),
    timeouts=rising((0.9, 90)),
    waits=waits(90, 0.98),
    exhausted=" ".join(["1 0 0 0 0"] * 72),
    exhausted_time=rising((0.2, 90)),
    oldest=level((2.5, 90)),
    longest=level((50, 90)),
    created=rising((1.8, 90)),
    closed=rising((1.8, 90)),
    failed=rising((0.9, 90)),
    unserved=level((8, 90)),
    selecting=level((1, 90)),
    selecting_for=level((8, 90)),
)
SPIKE = a_pool(  # for 15 to 30 s, after half an hour
    60,
    used=f"{level((2, 30))} 8 8 {level((2, 29))}",
    waiting=f"{level((0, 30))} 40 40 {level((0, 29))}",
    timeouts=f"{level((0, 30))} {level((80, 30))}",
    exhausted=f"{level((0, 30))} 1 1 {level((0, 29))}",
    exhausted_time=f"{level((0, 30))} 15 {level((28, 29))}",
    oldest=f"{level((0, 30))} 4 4 {level((0, 29))}",
    longest=f"{level((0, 30))} 70 70 {level((0, 29))}",
    created=f"{level((2, 30))} {level((300, 30))}",
    ready=f"{level((1, 30))} 0 {level((1, 29))}",
    up=f"{level((1, 30))} 0 {level((1, 29))}",
    unserved=f"{level((0, 30))} 20 20 {level((0, 29))}",
    silent=f"{level((0, 30))} 31 31 {level((0, 29))}",
    selecting=f"{level((0, 30))} 40 40 {level((0, 29))}",
    selecting_for=f"{level((0, 30))} 11 20 {level((0, 29))}",
)
RESTART = a_pool(  # counters begin at 0 again, and the empty pool fills up
    60,
    used=level((4, 30), (0, 1), (2, 1), (4, 28)),
    ok=rising((100, 30), (100, 30), restart=True),
    timeouts=f"{level((5000, 30))} {level((0, 30))}",
    waits={k: rising((100, 30), (100, 30), restart=True) for k in waits(1)},
    exhausted_time=f"{level((900, 30))} {level((0, 30))}",
    created=f"{level((9000, 30))} 0 0 {level((8, 29))}",
    errors=f"{level((0, 30))} {level((0, 30))}",
    selection_failures=f"{level((40, 30))} {level((0, 30))}",
)
ARBITER = a_pool(90, used=level((0, 90)), ready=level((0, 90)))  # it never serves data
SMALL = a_pool(  # one busy connection: many short waits
    40,
    used=level((0.7, 40)),
    max=level((1, 40)),
    exhausted=" ".join(["1 0 1"] * 54),
    exhausted_time=rising((0.3, 40)),
    oldest=level((0.01, 40)),
)
GROWN = a_pool(  # 900 connections at once; and few errors, in a pool with few checkouts
    60,
    created=f"{level((2, 30))} {level((902, 30))}",
    ok=rising((0.02, 60)),
    timeouts=f"{level((0, 30))} {level((2, 30))}",
    failed=f"{level((0, 40))} {level((1, 20))}",
)
STEP = a_pool(240, used=level((3, 130), (5.5, 110)))


def noise(minutes: int, seed: int) -> str:
    """Return samples around 5.5, each close to the one before."""
    chance, at, samples = random.Random(seed), 0.0, []
    for _ in range(minutes * MINUTE):
        at = 0.92 * at + chance.gauss(0, 0.47)
        samples.append(f"{min(8, max(0, round(5.5 + at)))}")
    return " ".join(samples)


UNLIMITED = a_pool(90, used=level((500, 90)))
del UNLIMITED[series(catalog.MAX_SIZE)]
HEALTHY = {
    "busy but healthy": (BUSY, 90),
    "a spike": (SPIKE, 60),
    "a restart": (RESTART, 60),
    "an arbiter": (ARBITER, 90),
    "an unlimited pool": (UNLIMITED, 90),
    "a small pool": (SMALL, 40),
    "a pool that grew, with few errors": (GROWN, 60),
    "a step": (STEP, 240),
}


@pytest.mark.parametrize("name", NAMES)
def test_alert_fires_with_its_words_and_no_other_alert_fires(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    severity = "critical" if name in SEVERE else "warning"
    labels = LABELS_OF.get(name, LABELS)
    expected = {
        "exp_labels": {"severity": severity, **labels},
        "exp_annotations": {
            "summary": case.summary,
            "description": case.text,
            "runbook_url": f"https://wiki/runbooks.md#{name.lower()}",
        },
    }
    silent = {*NAMES} - {name} - WITH_IT.get(name, set())
    others: list[Question] = [(other, case.minutes, []) for other in sorted(silent)]
    assert not judged(tmp_path, [a_test(case.pool, (name, case.minutes, [expected]), *others)])


@pytest.mark.parametrize("kind", HEALTHY)
def test_no_alert_fires_for_a_healthy_pool(kind: str, tmp_path: Path) -> None:
    pool, minutes = HEALTHY[kind]
    assert not judged(tmp_path, [a_test(pool, *nothing(NAMES, minutes))])


@pytest.mark.parametrize("seed", rest_in_bulk(range(4)))
def test_noise_is_not_predicted_as_exhaustion(seed: int, tmp_path: Path) -> None:
    pool = a_pool(600, used=noise(600, seed))
    name = "MongoDBPoolExhaustionPredicted"
    assert not judged(tmp_path, [a_test(pool, *nothing([name], 600))], evaluated_every="1m")


def test_full_pool_without_a_queue_is_only_a_warning(tmp_path: Path) -> None:
    pool = a_pool(30, used=level((8, 30)))
    assert not judged(tmp_path, [a_test(pool, *nothing(["MongoDBPoolFull"], 30))])
    assert judged(tmp_path, [a_test(pool, ("MongoDBPoolNearlyFull", 20, []))])


FAILING = {  # all callers of the client fail in server selection, after 30 s
    "selecting": level((4, 20)),
    "selecting_for": level((20, 20)),
    "selection_failures": rising((0.2, 20)),
}
TWO_OF_THREE_DOWN = {
    series(catalog.SERVER_UP, **{HOST: f"db{n}", POOL: f"chat@db{n}:27017"}): level((up, 20))
    for n, up in enumerate((1, 0, 0))
}
OTHER_CLIENT_DOWN = {series(catalog.SERVER_UP, **{POOL: "other@db2:27017"}): level((0, 20))}


def unnamed(pool: Mapping[str, str]) -> dict[str, str]:
    """Return the same series of a client without a name."""
    return {key.replace("chat@", "").replace('"chat"}', '""}'): v for key, v in pool.items()}


def without_server(pool: Mapping[str, str]) -> dict[str, str]:
    """Return the series of a client after PyMongo has removed its only server."""
    of_server = series(catalog.SERVER_UP), series(catalog.READY), series(catalog.SERVER_SILENCE)
    return {key: values for key, values in pool.items() if key not in of_server}


@pytest.mark.parametrize(
    ("pool", "others"),
    [
        (a_pool(20, **FAILING | {"selecting_for": level((0, 20))}), set()),
        (a_pool(20, **FAILING | {"selection_failures": rising((0, 20))}), set()),
        (without_server(a_pool(20, **FAILING)), set()),
        (a_pool(20, **FAILING) | TWO_OF_THREE_DOWN, {"MongoDBServerDown"}),
        (a_pool(20, **FAILING) | OTHER_CLIENT_DOWN, {"MongoDBServerDown"}),
        (unnamed(a_pool(20, **FAILING)), set()),
    ],
    ids=["failed", "wait", "no server left", "no majority", "another client down", "unnamed"],
)
def test_no_server_fits_fires(pool: Mapping[str, str], others: set[str], tmp_path: Path) -> None:
    assert fired(tmp_path, pool, 15) == {"MongoDBNoServerFits"} | others


OUTAGE = {  # of 10 minutes
    "up": level((0, 10), (1, 10)),
    "selecting": level((4, 10), (0, 10)),
    "selecting_for": level((20, 10), (0, 10)),
    "selection_failures": rising((0.2, 10), (0, 10)),
    "unserved": level((45, 10), (0, 10)),
}


@pytest.mark.parametrize("of", [dict, unnamed])
def test_only_server_down_fires_in_an_outage_and_after_it(
    of: Callable[[dict[str, str]], dict[str, str]], tmp_path: Path
) -> None:
    pool = of(a_pool(20, **OUTAGE))
    others = [name for name in NAMES if name != "MongoDBServerDown"]
    assert not judged(tmp_path, [a_test(pool, *nothing(others, 20))])
    assert fired(tmp_path, pool, 5) == {"MongoDBServerDown"}


def test_no_server_fits_fires_at_once_after_an_outage_if_callers_still_wait(tmp_path: Path) -> None:
    pool = a_pool(20, **FAILING | {"up": OUTAGE["up"]})
    assert fired(tmp_path, pool, 11) == {"MongoDBNoServerFits"}


def test_process_that_ended_is_not_reported_as_failing(tmp_path: Path) -> None:
    ill = {"silent": level((37, 20)), "unserved": level((45, 20))}
    pool = {key: f"{values} stale" for key, values in a_pool(20, **FAILING | ill).items()}
    assert fired(tmp_path, pool, 19) == {"MongoDBNoServerFits", "MongoDBDriverSilent"}
    assert fired(tmp_path, pool, 21) == set()


def test_telemetry_errors_of_a_new_process_fire_for_15_minutes(tmp_path: Path) -> None:
    pool, name = a_pool(40, errors=level((5, 40))), "MongoDBPoolTelemetryErrors"
    assert "5 events" in judged(tmp_path, [a_test(pool, (name, 5, []))])
    assert not judged(tmp_path, [a_test(pool, *((name, minute, []) for minute in range(16, 40)))])


def test_only_no_data_fires_without_data(tmp_path: Path) -> None:
    others = nothing(NAMES[:-1], 30)
    complaints = judged(tmp_path, [a_test({}, *others), a_test(a_pool(10), *others)])
    assert not complaints
    complaints = judged(tmp_path, [a_test({}, (NAMES[-1], 6, []))])
    assert "No pool of any job reports" in complaints


def test_job_that_ended_is_reported_for_a_day(tmp_path: Path) -> None:
    day = 24 * 60
    info = {"job": "other", "instance": "app:9000", POOL: "other"}
    other = {series(catalog.CLIENT_INFO, **info): level((1, day + 60))}
    at_both: Any = ((NAMES[-1], day, []), (NAMES[-1], day + 30, []))
    said = judged(tmp_path, [a_test(a_pool(10) | other, *at_both)], evaluated_every="2m")
    assert re.findall(r"time: (\w+)", said) == ["1d"], said  # and no more half an hour later
    assert "No pool of chat" in said


@pytest.mark.parametrize("gap", [f"_x{4 * MINUTE}", f"stale _x{4 * MINUTE - 1}"])
def test_short_gap_is_not_reported_as_no_data(gap: str, tmp_path: Path) -> None:
    pool = {key: f"{value} {gap} {value}" for key, value in a_pool(10).items()}
    assert not judged(tmp_path, [a_test(pool, *((NAMES[-1], m, []) for m in range(24)))])


def test_lower_thresholds_fire_for_the_busy_pool(tmp_path: Path) -> None:
    lower = Thresholds(
        exhausted_share=0.15,
        in_use_warning=0.6,
        in_use_critical=0.7,
        timeout_share=0.005,
        wait_p99_seconds=0.2,
        oldest_wait_seconds=2,
        unserved_seconds=6,
        longest_checkout_seconds=40,
        created_per_second=1.5,
    )
    by_limit = {alert.name for alert in alerts() if alert.limit not in (0, 1)}
    assert fired(tmp_path, BUSY, 60, lower) == by_limit | {"MongoDBNoServerFits"}


def test_recording_rules_aggregate_by_job(tmp_path: Path) -> None:
    """Two processes are summed; three histograms have the same buckets."""
    values: dict[str, float] = {
        "job:db_client_connection_count:sum": 12.4,
        "job:db_client_connection_max:sum": 16,
        "job:db_client_connection_pending_requests:sum": 4,
        "job:mongodb_client_pool_exhausted:sum": 2,
        "job:db_client_connection_timeouts:rate5m": 1.8,
        "job:mongodb_client_pool_connections_created:rate5m": 3.6,
        "job:mongodb_client_pool_exhausted_time_seconds:rate5m": 0.4,
        "job:db_client_connection_wait_time_seconds:p99_5m": 0.375,
        "job:db_client_connection_use_time_seconds:p99_5m": 0.375,
        "job:db_client_operation_duration_seconds:p99_5m": 0.375,
    }
    assert values.keys() == recording_rules().keys()
    wait = prometheus_name(catalog.WAIT_SECONDS)
    both = BUSY | {key.replace("app:8000", "app:9000"): value for key, value in BUSY.items()}
    for other in (catalog.USE_SECONDS, catalog.OPERATION_SECONDS):
        name = prometheus_name(other)
        both |= {key.replace(wait, name): value for key, value in both.items() if wait in key}
    asked = [
        {"expr": f"round({name}, 0.001)", "eval_time": "15m", "exp_samples": [sample]}
        for name, value in values.items()
        for sample in [{"labels": '{job="chat"}', "value": value}]
    ]
    assert not judged(tmp_path, [a_test(both) | {"promql_expr_test": asked}])


CHOSEN = dict.fromkeys(("job", "instance", "pool"), ".+")


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        (a_pool(20), "Healthy"),
        (a_pool(20, waiting=level((2, 20))), "Callers wait"),
        (a_pool(20, exhausted=level((1, 20)), unserved=level((4, 20))), "Exhausted"),
        (a_pool(20, waiting=level((2, 20)), unserved=level((4, 20))), "Nobody served"),
        (a_pool(20, **FAILING), "Nobody served"),
        (without_server(a_pool(20, **FAILING)), "Nobody served"),
        (a_pool(20, **FAILING, ready=level((0, 20))), "No server"),
    ],
)
def test_health_panel_names_the_state(pool: Mapping[str, str], words: str, tmp_path: Path) -> None:
    health = next(panel for panel in panels(board("pool")) if panel["title"] == "Health")
    ((mapping,), (target,)) = health["fieldConfig"]["defaults"]["mappings"], health["targets"]
    shown = [int(value) for value, of in mapping["options"].items() if of["text"] == words]
    # A sample of 1 says that the value is one of these.
    value = " or ".join(f"({filled(target['expr'], CHOSEN)}) == {number}" for number in shown)
    asked = {
        "expr": f"({value}) >= bool 0",
        "eval_time": "15m",
        "exp_samples": [{"labels": "{}", "value": 1}],
    }
    assert not judged(tmp_path, [a_test(pool) | {"promql_expr_test": [asked]}])


Question = tuple[str, int, list[Any]]  # an alert, a minute, and the alerts expected then


def nothing(names: Sequence[str], minutes: int) -> list[Question]:
    return [(name, minute, []) for name in names for minute in range(minutes)]


def a_test(pool: Mapping[str, str], *questions: Question) -> dict[str, Any]:
    return {
        "interval": f"{SCRAPE_SECONDS}s",
        "input_series": [{"series": k, "values": v} for k, v in pool.items()],
        "alert_rule_test": [
            {"alertname": name, "eval_time": f"{minute}m", "exp_alerts": alerts}
            for name, minute, alerts in questions
        ],
    }


def fired(
    folder: Path, pool: Mapping[str, str], minute: int, thresholds: Thresholds | None = None
) -> set[str]:
    """Return the names of the alerts that fire at this minute."""
    said = judged(folder, [a_test(pool, *((name, minute, []) for name in NAMES))], thresholds)
    return {name for name in NAMES if f'alertname="{name}"' in said}


def judged(
    folder: Path,
    tests: list[dict[str, Any]],
    thresholds: Thresholds | None = None,
    *,
    evaluated_every: str = f"{SCRAPE_SECONDS}s",
) -> str:
    """Return what promtool says against it; nothing when all is as expected.

    Hours and days are evaluated more seldom, because promtool takes its time for each evaluation.
    """
    for name, text in files.rules(
        thresholds=thresholds, runbooks="https://wiki/runbooks.md"
    ).items():
        (folder / name).write_text(text)
    suite = {"rule_files": ["rules.yml"], "evaluation_interval": evaluated_every, "tests": tests}
    (folder / "test.yml").write_text(json.dumps(suite))
    done = subprocess.run(
        ["promtool", "test", "rules", str(folder / "test.yml")],
        env={**os.environ, "GOGC": "off", "GOMEMLIMIT": "500MiB"},  # half of its time is Go's GC
        capture_output=True,
        text=True,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr
