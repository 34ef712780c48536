"""Every input gets a diagnosis: no error, no infinite number, no senseless value."""

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo import MongoClient

from pool_telemetry import PoolTelemetry, TelemetryOptions
from pool_telemetry.cli.doctor import describe
from pool_telemetry.diagnosis import Diagnosis, Finding, Verdict, diagnose, recommend
from pool_telemetry.state.histogram import POOL_BOUNDS
from pool_telemetry.stats import (
    CLOSE_REASONS,
    OUTCOMES,
    ClientStats,
    HistogramStats,
    OperationStats,
    OwnerStats,
    PoolStats,
)
from tests.recordings import recordings
from tests.support import unmeasured
from tests.test_health import DOWN, EXHAUSTED, a_client, a_pool

counts = st.one_of(st.integers(0, 3), st.integers(0, 10**6))
seconds = st.one_of(st.just(0.0), st.floats(0.0, 1e5, allow_nan=False))
ages = st.one_of(st.none(), seconds)


@st.composite
def histograms(draw: Any) -> HistogramStats:
    size = len(POOL_BOUNDS) + 1
    found = draw(st.lists(counts, min_size=size, max_size=size))
    lows = (0.0, *POOL_BOUNDS)
    total = sum(low * count for low, count in zip(lows, found, strict=True))
    last = max((i for i, count in enumerate(found) if count), default=0)
    return HistogramStats(POOL_BOUNDS, tuple(found), total * draw(st.floats(1.0, 2.0)), lows[last])


@st.composite
def pools(draw: Any) -> PoolStats:
    in_use, idle, opening = (draw(st.integers(0, 50)) for _ in range(3))
    return a_pool(
        phase=draw(st.sampled_from(["ready", "paused"])),
        max_size=draw(st.one_of(st.none(), st.integers(1, 1000))),
        min_size=draw(st.integers(0, 100)),
        size=in_use + idle + opening,
        in_use=in_use,
        opening=opening,
        waiting=draw(counts),
        oldest_wait=draw(seconds),
        longest_checkout=draw(seconds),
        exhausted=draw(st.booleans()),
        exhaustions=draw(counts),
        exhausted_time=draw(seconds),
        since_exhausted=draw(ages),
        since_timeout=draw(ages),
        stalled_time=draw(seconds),
        checkouts={outcome: draw(counts) for outcome in OUTCOMES},
        created=draw(counts),
        closed={reason: draw(counts) for reason in CLOSE_REASONS},
        cleared=draw(counts),
        up=draw(st.sampled_from([None, True, False])),
        since_up_changed=draw(seconds),
        outage=draw(seconds),
        wait_time=draw(histograms()),
        use_time=draw(histograms()),
        create_time=draw(histograms()),
        peak_waiting=draw(counts),
        held_idle=draw(st.one_of(st.none(), st.integers(0, 50))),
        longest_idle=draw(seconds),
        held_by_cursors=draw(st.integers(0, 50)),
    )


@st.composite
def clients(draw: Any) -> ClientStats:
    operations = [
        OperationStats(
            host="db",
            port=27017,
            namespace="shop",
            collection=draw(st.sampled_from(["orders", ""])),
            operation=draw(st.sampled_from(["find", "insert"])),
            error_type=error,
            status_code="",
            duration=draw(histograms()),
        )
        for error in draw(st.sets(st.sampled_from(["", "91", "50", "AutoReconnect", "cancelled"])))
    ]
    client = a_client(*draw(st.lists(pools(), max_size=2)))
    at = draw(st.floats(0.0, 1e3))
    return dataclasses.replace(client, operations=tuple(operations), at=at, since=0.0)


@unmeasured()
@given(clients(), st.lists(clients(), max_size=3), st.one_of(st.none(), st.integers(1, 500)))
def test_any_numbers_can_be_diagnosed(
    stats: ClientStats, history: list[ClientStats], most: int | None
) -> None:
    found = diagnose(stats, sorted(history, key=lambda one: one.at), most=most)
    json.dumps(found.as_dict(), allow_nan=False)
    json.dumps(recommend(found))
    assert describe(found, [])
    for one in found.findings:
        assert "nan" not in one.because.split()
        assert "inf" not in one.because
        assert all(math.isfinite(number) for number in one.evidence.values())
        assert all(value >= 1 for value in one.change.values())
    at_once = [one.pool for one in found.findings if one.verdict == "undersized"]
    assert not {one.pool for one in found.findings if one.verdict == "oversized"} & {*at_once}


def verdicts(*pools: PoolStats) -> list[str]:
    return [one.verdict for one in diagnose(a_client(*pools)).findings]


def test_a_telemetry_is_diagnosed_by_its_stats(server_uri: str) -> None:
    telemetry = PoolTelemetry(options=TelemetryOptions(watch=False))
    with MongoClient[dict[str, Any]](server_uri, event_listeners=telemetry.listeners) as client:
        client.admin.command("ping")
        assert diagnose(telemetry) == diagnose(telemetry.stats(), telemetry.history())
        assert telemetry.stats().open_pools  # so the diagnosis judged a pool


def test_a_telemetry_is_diagnosed_by_its_history() -> None:
    class Telemetry:
        def stats(self) -> ClientStats:
            return recorded[-1]

        def history(self) -> list[ClientStats]:
            return [*recorded[:-1]]

    (recorded,) = (one.samples for one in recordings() if one.name == "no trouble any more")
    assert diagnose(recorded[-1], recorded[:-1]) != diagnose(recorded[-1])
    assert diagnose(Telemetry()) == diagnose(recorded[-1], recorded[:-1])


@pytest.mark.parametrize("wrong", [None, a_pool(), {"pools": ()}])
def test_neither_stats_nor_telemetry_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"but {type(wrong).__name__}: use telemetry.stats"):
        diagnose(wrong)


def test_one_snapshot_alone_tells_what_it_can() -> None:
    assert diagnose(a_client(a_pool())) == Diagnosis()
    assert diagnose(a_client()) == Diagnosis()
    assert verdicts(a_pool(**EXHAUSTED)) == ["undersized"]
    assert verdicts(a_pool(**DOWN)) == ["server unreachable"]
    assert verdicts(a_pool(**{**EXHAUSTED, "held_idle": 10, "longest_idle": 9.0})) == ["leak"]
    assert verdicts(a_pool(exhausted_time=9.0, since_exhausted=301.0)) == []
    assert verdicts(a_pool(outage=3.0, since_up_changed=301.0)) == []


def test_cursors_that_are_read_are_no_hanging_server() -> None:
    read = {**EXHAUSTED, "held_by_cursors": 10, "longest_checkout": 9.0, "stalled_time": 4.0}
    (found,) = diagnose(a_client(a_pool(**read))).findings
    assert found.verdict == "undersized"
    assert "Cursors that are being read hold 10 of 10" in found.because
    assert not found.change
    hangs = {**read, "held_by_cursors": 1}
    assert verdicts(a_pool(**hangs)) == ["slow operations"]


def test_a_terminal_gets_no_commands_from_names() -> None:
    owners = (OwnerStats("a\x1b[2Jb", 1, 1.0, 2),)
    leak = {**EXHAUSTED, "held_idle": 10, "longest_idle": 9.0, "owners": owners}
    assert "by owner: a [2Jb 2" in describe(diagnose(a_client(a_pool(**leak))), []).replace(
        "\n       ", " "
    )


def test_a_size_is_a_workaround_for_slow_operations() -> None:
    def lines(verdict: Verdict) -> list[str]:
        change = {"maxPoolSize": 13}
        one = Finding(
            verdict=verdict, severity="warning", pool="p", because="B.", advice="A.", change=change
        )
        return describe(Diagnosis((one,)), []).splitlines()

    assert lines("undersized")[1:] == ["  why  B.", "  do   A.", "  set  maxPoolSize=13"]
    assert lines("slow operations")[3] == "  workaround maxPoolSize=13"


def test_an_outage_that_is_over_is_told() -> None:
    found = diagnose(a_client(a_pool(outage=3.0, since_up_changed=20.0)))
    (outage,) = found.findings
    assert (outage.verdict, outage.ended, found.verdict) == ("server unreachable", 20.0, "healthy")
    assert "db:27017 was down for 3.0 s" in outage.because
    (blink,) = diagnose(a_client(a_pool(outage=0.001, since_up_changed=20.0))).findings
    assert blink.because == "db:27017 was down for a moment."
    assert not recommend(found)["check_connection"]


def test_of_several_servers_one_that_is_gone_is_a_warning() -> None:
    (found,) = diagnose(a_client(a_pool(**DOWN), a_pool(host="other"))).findings
    assert (found.verdict, found.severity) == ("server unreachable", "warning")
    (found,) = diagnose(a_client(a_pool(**DOWN))).findings
    assert found.severity == "critical"
    assert not recommend(diagnose(a_client(a_pool(**DOWN), a_pool(host="b"))))["check_connection"]


def test_no_advice_goes_beyond_what_the_server_has() -> None:
    dry = a_pool(
        **{**EXHAUSTED, "exhausted_time": 9.0, "peak_waiting": 40},
        use_time=HistogramStats((0.1, 1.0), (0, 5_000, 0), 2_500.0, 0.9),
        checkouts={**dict.fromkeys(OUTCOMES, 0), "ok": 5_000},
    )
    stats = dataclasses.replace(a_client(dry), since=0.0, at=100.0)
    (free,) = (one for one in diagnose(stats).findings if one.change or one.verdict)
    (bound,) = diagnose(stats, most=12).findings
    assert free.verdict == bound.verdict
    assert max(bound.change.values(), default=0) <= 12


def test_what_ended_since_the_last_look_is_over() -> None:
    busy = {"checkouts": {**dict.fromkeys(OUTCOMES, 0), "ok": 500}, "peak_waiting": 7}
    calm = {"exhausted": False, "waiting": 0, "in_use": 0, "exhausted_time": 10.0}
    history = [
        dataclasses.replace(a_client(a_pool(exhausted_time=spent, **more)), since=0.0, at=at)
        for at, spent, more in ((80.0, 0.0, {}), (90.0, 4.0, {"exhausted": True, "waiting": 7}))
    ]
    for ago, over in ((4.0, True), (1.0, False)):
        now = a_pool(**{**busy, **calm, "since_exhausted": ago})
        stats = dataclasses.replace(a_client(now), since=0.0, at=100.0)
        (found,) = diagnose(stats, history).findings
        assert found.verdict == "undersized"
        assert (found.ended is not None) == over
        later = a_client(a_pool(**{**busy, **calm, "since_exhausted": 6.0}))
        later = dataclasses.replace(later, since=0.0, at=100.0 + 6.0 - ago)
        (found,) = diagnose(later, [*history, stats]).findings
        assert found.ended == pytest.approx(6.0)


TIMED_OUT: dict[str, Any] = {
    "checkouts": {**dict.fromkeys(OUTCOMES, 0), "ok": 500, "timeout": 30},
    "exhaustions": 1,
    "exhausted_time": 9.0,
    "since_exhausted": 0.5,
    "since_timeout": 0.5,
}
LEAKED: dict[str, Any] = {"in_use": 10, "size": 10, "held_idle": 10, "longest_idle": 4.0}


def a_look(at: float, **changes: Any) -> ClientStats:
    return dataclasses.replace(a_client(a_pool(**changes)), since=0.0, at=at)


@pytest.mark.parametrize(
    ("state", "verdict"), [(DOWN, "server unreachable"), (LEAKED, "leak")], ids=["down", "leaked"]
)
def test_what_is_so_now_is_not_over(state: dict[str, Any], verdict: str) -> None:
    """However quiet it was between two looks."""
    before = a_look(20.0, **{**TIMED_OUT, **state})
    quiet = {"since_exhausted": 5.5, "since_timeout": 5.5, "longest_idle": 9.0}
    found = diagnose(a_look(25.0, **{**TIMED_OUT, **state, **quiet}), [before])
    assert found.verdict == verdict


def test_a_leak_is_one_while_nobody_waits_for_a_moment() -> None:
    calm = a_look(20.0, checkouts={**dict.fromkeys(OUTCOMES, 0), "ok": 400})
    found = diagnose(a_look(24.0, **{**TIMED_OUT, **LEAKED}), [calm])
    assert [one.verdict for one in found.findings] == ["leak"]


def test_a_leak_that_is_over_is_told_as_it_was_at_last() -> None:
    """The leak went on after the last waiting caller had left."""
    missed = {**EXHAUSTED, **TIMED_OUT, **LEAKED, "since_timeout": 0.0, "longest_idle": 2.0}
    over = {**TIMED_OUT, "since_exhausted": 20.0, "since_timeout": 20.0}
    history = [
        a_look(10.0),
        a_look(20.0, **missed),
        a_look(30.0, **{**over, **LEAKED, "longest_idle": 12.0}),
        a_look(35.0, **over),
    ]
    (leak,) = diagnose(a_look(40.0, **over), history).findings
    assert leak.verdict == "leak"
    assert leak.ended == pytest.approx(10.0)
    assert "for up to 12.0 s" in leak.because


def test_a_leak_that_nobody_missed_is_told_when_it_is_over() -> None:
    kept = [a_look(at, in_use=3, held_idle=3, longest_idle=at - 20.0) for at in (22.0, 28.0, 34.0)]
    (leak,) = diagnose(a_look(40.0), [a_look(10.0), a_look(20.0), *kept]).findings
    assert leak.verdict == "leak"
    assert leak.ended == pytest.approx(6.0)
    assert "3 of 3 connections in use run no command, for up to 14.0 s" in leak.because
    assert not diagnose(a_look(40.0), [a_look(20.0), kept[0]]).findings  # for 2 s it was none


def test_callers_who_come_in_crowds_get_room_for_a_crowd() -> None:
    """On average they would need little: nobody who comes at random waits so long."""
    crowd = {
        "max_size": 3,
        "checkouts": {**dict.fromkeys(OUTCOMES, 0), "ok": 180},
        "use_time": HistogramStats((0.05, 0.1), (0, 180, 0), 180 * 0.062, 0.07),
        "wait_time": HistogramStats((0.1, 1.0, 2.0), (60, 120, 0, 0), 100.0, 0.9),
        "peak_waiting": 57,
        "exhausted_time": 6.0,
        "exhaustions": 3,
        "since_exhausted": 0.5,
    }
    (found,) = diagnose(a_look(16.0, **crowd), [a_look(10.0, max_size=3)]).findings
    assert found.change == {"maxPoolSize": 60}
    assert "Up to 57 callers queued; they arrived together." in found.because


def test_callers_that_retry_are_counted_at_every_moment() -> None:
    """Also while a connection is between two of them, and nobody has it."""

    def look(second: int, in_use: int) -> ClientStats:
        served = 1_000 * second
        return a_look(
            float(second),
            max_size=4,
            size=4,
            in_use=in_use,
            waiting=12 - in_use,
            peak_waiting=12 - in_use,
            exhausted=True,
            exhaustions=1,
            exhausted_time=float(second),
            checkouts={**dict.fromkeys(OUTCOMES, 0), "ok": served},
            use_time=HistogramStats((0.005,), (served, 0), 0.00395 * served, 0.004),
            wait_time=HistogramStats((0.01,), (served, 0), 0.0079 * served, 0.008),
        )

    looks = [look(second, in_use=3 if second > 5 else 4) for second in range(1, 10)]
    for now in range(5, 10):
        (found,) = diagnose(looks[now - 1], looks[: now - 1]).findings
        assert found.change == {"maxPoolSize": 12}


def test_a_pool_that_stays_paused_serves_nobody() -> None:
    """An error of the server's paused it, and the next heartbeat is seconds away."""
    served = {"checkouts": {**dict.fromkeys(OUTCOMES, 0), "ok": 500}}
    paused = {**served, "phase": "paused", "size": 0, "cleared": 1}
    calm = [a_look(at, **served) for at in (1.0, 2.0, 3.0)]
    looks = [a_look(at, **paused) for at in (4.0, 5.0, 6.0)]
    assert diagnose(looks[0], calm) == Diagnosis()  # it may be back in a moment
    (found,) = diagnose(looks[2], [*calm, *looks[:2]]).findings
    assert (found.verdict, found.severity) == ("server unreachable", "critical")
    assert "PyMongo has kept its pool paused for 2 s" in found.because
    assert diagnose(a_look(7.0, **served), [*calm, *looks]) == Diagnosis()


def test_a_leak_alone_asks_for_no_size() -> None:
    """All who are there would have a connection, if those that leak came back."""

    def look(second: int, callers: int) -> ClientStats:
        leaks = max(0, min(4, second - 4))  # of six
        served, waited = 25 * second, 25 * max(0, second - 6) * (callers + leaks > 6)
        return a_look(
            float(second),
            max_size=6,
            size=6,
            in_use=min(6, callers + leaks),
            longest_checkout=0.1,
            waiting=max(0, callers + leaks - 6),
            peak_waiting=max(0, callers + leaks - 6),
            exhausted=callers + leaks > 6,
            exhaustions=int(leaks > 2),
            exhausted_time=float(max(0, second - 6)),
            checkouts={**dict.fromkeys(OUTCOMES, 0), "ok": served},
            use_time=HistogramStats((0.2,), (served, 0), 0.159 * served, 0.17),
            wait_time=HistogramStats((0.01, 0.2), (served - waited, waited, 0), 0.1 * waited, 0.17),
            held_idle=leaks,
            longest_idle=float(leaks),
        )

    def found(callers: int) -> dict[str, dict[str, int]]:
        looks = [look(second, callers) for second in range(1, 15)]
        findings = diagnose(looks[-1], looks[:-1]).findings
        return {one.verdict: dict(one.change) for one in findings}

    assert found(callers=4) == {"leak": {}}
    assert found(callers=12)["undersized"]["maxPoolSize"] >= 7


def test_uses_that_took_no_time_can_become_slow() -> None:
    """A coarse clock has nothing to compare with."""

    def look(second: int) -> ClientStats:
        slow = max(0, second - 3)
        return a_look(
            float(second),
            exhausted=True,
            exhausted_time=float(second),
            waiting=5,
            checkouts={**dict.fromkeys(OUTCOMES, 0), "ok": 40 * second},
            use_time=HistogramStats((0.1, 1.0), (120, 40 * slow, 0), 20.0 * slow, 0.5),
        )

    looks = [look(second) for second in range(1, 8)]
    assert diagnose(looks[-1], looks[:-1]).verdict == "slow operations"


def test_a_process_that_began_anew_may_have_other_buckets() -> None:
    """Another version of the library was deployed between two looks at its metrics."""
    busy = {"checkouts": {**dict.fromkeys(OUTCOMES, 0), "ok": 40}}
    old = HistogramStats((0.1, 1.0), (40, 0, 0), 2.0, 0.1)
    new = HistogramStats((0.1, 0.5, 1.0), (40, 0, 0, 0), 2.0, 0.1)
    before = a_look(10.0, **busy, use_time=old, wait_time=old)
    after = a_look(20.0, **busy, use_time=new, wait_time=new)
    for since in (0.0, 15.0):
        after = dataclasses.replace(after, since=since)
        assert diagnose(after, [before]) == Diagnosis()


def test_the_budget_has_its_old_name_too() -> None:
    dry = a_pool(**EXHAUSTED, peak_waiting=40)
    stats = dataclasses.replace(a_client(dry), since=0.0, at=100.0)
    assert diagnose(stats, most=12) == diagnose(stats, budget=12)
