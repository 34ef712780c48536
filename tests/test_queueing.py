"""Every load gets an answer from the queue's formulas: no error, and no nan."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pool_telemetry.diagnosis.queueing import Load, candidate_sizes, predict, recommend_size
from pool_telemetry.diagnosis.thresholds import MAX_POOL_SIZE
from pool_telemetry.state.histogram import POOL_BOUNDS
from pool_telemetry.stats import HistogramStats
from tests.support import unmeasured
from tests.test_findings import histograms

durations = st.floats(1e-300, 1e300)
any_histograms = st.one_of(
    histograms(),
    st.builds(  # all in the last bucket, however long they took
        lambda count, mean: HistogramStats(
            POOL_BOUNDS, (*(0,) * len(POOL_BOUNDS), count), mean * count, mean
        ),
        st.integers(1, 10**6),
        durations,
    ),
).filter(lambda one: one.count > 0)
loads = st.one_of(
    st.builds(Load.from_histogram, st.one_of(st.just(0.0), durations), any_histograms),
    st.builds(Load.exponential, durations, durations),
)


@unmeasured()
@given(loads, st.integers(1, 200))
@example(Load.exponential(3.0, 0.002), 100)  # the share who wait is 0.0: 6e-323 and less
@example(
    Load.from_histogram(5.0, HistogramStats((0.001,), (20, 0), 0.0, 0.0)), 10
)  # each took no time
@example(Load.exponential(0.999999998e3, 0.001), 1)  # a queue of hours, served in milliseconds
@example(Load.exponential(1e200, 1e200), MAX_POOL_SIZE)  # more are in use than a float can count
@settings(deadline=None, max_examples=100)
def test_any_load_can_be_sized(load: Load, size: int) -> None:
    found = predict(load, size)
    assert 0.0 <= found.waiting_share <= 1.0
    for number in (found.utilization, found.mean, found.p95, load.weighted_use_seconds):
        assert number >= 0.0  # no nan
    best = recommend_size(load)
    assert 1 <= best <= MAX_POOL_SIZE
    sizes = candidate_sizes(load, size)
    assert {best, size} <= set(sizes)
    assert all(1 <= one <= MAX_POOL_SIZE for one in sizes)


@pytest.mark.parametrize("size", [10, 30, 100, 1_000])
def test_a_pool_that_is_hardly_used_lets_nobody_wait(size: int) -> None:
    found = predict(Load.exponential(3.0, 0.002), size)
    assert found.p95 == 0.0
    assert found.mean == pytest.approx(0.0)


def test_a_queue_that_is_nearly_full_has_a_finite_wait() -> None:
    found = predict(Load.exponential(1e3 * (1.0 - 2e-9), 1e-3), 1)
    assert 0.0 < found.p95 < math.inf
