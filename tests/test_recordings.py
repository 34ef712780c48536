"""The recorded histories of real trouble, diagnosed at every sampling: no load, no chance."""

import dataclasses
import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from pool_telemetry.diagnosis import diagnose
from tests.recordings import FOLDER, Recording, dump, load, recordings
from tests.scenarios import SAMPLE_SECONDS, SCENARIOS
from tests.support import unmeasured
from tests.verdicts import OWN, PERIODS, every, judge_by_own, judge_by_period, sampled

SAMPLINGS = {every(period): period for period in PERIODS} | {OWN: None}

NOT_YET = {
    (scenario, sampling)
    for scenario, samplings in {
        "more callers, and slower": ["every 2 s"],
        "no trouble any more": ["every 2 s"],
    }.items()
    for sampling in samplings
}
"""The samplings at which a part of the truth is between two samples, at some offset."""


@cache
def recorded() -> dict[str, Recording]:
    return {one.name: one for one in recordings()}


def cases() -> Iterator[object]:
    for scenario in SCENARIOS:
        for sampling in SAMPLINGS:
            known = (scenario.name, sampling) in NOT_YET
            reason = "the rules are not right yet at every sampling"
            marks = [pytest.mark.xfail(reason=reason, raises=AssertionError)] if known else []
            yield pytest.param(
                scenario.name, sampling, marks=marks, id=f"{scenario.name}, {sampling}"
            )


@pytest.mark.parametrize(("name", "sampling"), [*cases()])
@unmeasured()
def test_diagnosis_of_a_recording_is_right_at_every_offset(
    name: str, sampling: str, judged: list[tuple[Any, ...]]
) -> None:
    period, recording = SAMPLINGS[sampling], recorded()[name]
    made = judge_by_own(recording) if period is None else judge_by_period(recording, period)
    found = list(made)
    judged += map(dataclasses.astuple, found)
    assert len(found) >= 2
    wrong = [str(one) for one in found if not one.right]
    assert not wrong, "\n".join(wrong)


def test_every_scenario_is_recorded_with_the_verdicts_it_expects() -> None:
    wanted = {one.name: (one.verdict, one.also, one.maybe) for one in SCENARIOS}
    kept = {one.name: (one.verdict, one.also, one.maybe) for one in recorded().values()}
    assert kept == wanted, "make record-scenarios"
    assert {path.name for path in FOLDER.glob("*.json")} == {
        one.path.name for one in recorded().values()
    }


@pytest.mark.parametrize("name", ["calm", "busy", "quiet change streams", "steady long commands"])
@pytest.mark.parametrize("period", [0.5, 1.0, 2.0])
@unmeasured()
def test_a_pool_that_is_well_is_healthy_at_every_moment(name: str, period: float) -> None:
    samples = recorded()[name].samples
    for end in range(2, len(samples) + 1):
        history = sampled(samples[:end], period, 0.0)
        assert diagnose(samples[end - 1], history).findings == (), f"at sample {end}"


@unmeasured()
def test_recordings_are_read_as_they_were_written() -> None:
    for recording in [*recorded().values()][::5]:  # one in five: dump() is slow
        # A field that was added since has its default, and does not change the recording.
        assert load(dump(recording)) == recording


def test_recordings_hold_nothing_of_the_machine_they_were_made_on() -> None:
    for recording in recorded().values():
        places = {(pool.host, pool.port) for one in recording.samples for pool in one.pools}
        assert places == {("127.0.0.1", 27017)}
        assert all(one.telemetry_errors == 0 for one in recording.samples)


def test_recordings_are_sampled_finely_and_stay_small() -> None:
    for recording in recorded().values():
        ages = [one.at - one.stood_still for one in recording.samples]
        assert ages == sorted(ages)
        gaps = [later - earlier for earlier, later in itertools.pairwise(ages)]
        assert max(gaps) < 4 * SAMPLE_SECONDS, recording.name
    assert sum(path.stat().st_size for path in FOLDER.glob("*.json")) < 1_500_000
