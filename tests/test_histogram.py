import random
from itertools import pairwise

import pytest

from pool_telemetry.state.histogram import OPERATION_BOUNDS, POOL_BOUNDS, Histogram
from pool_telemetry.stats import HistogramStats, merge


def filled(*seconds: float) -> HistogramStats:
    histogram = Histogram(POOL_BOUNDS)
    for one in seconds:
        histogram.observe(one)
    return histogram.stats()


def test_a_bound_belongs_to_its_bucket() -> None:
    stats = filled(0.0, 0.0001, 0.00010001, 10.0, 10.1)
    assert stats.counts[:2] == (2, 1)
    assert stats.counts[-2:] == (1, 1)
    assert stats.count == 5
    assert stats.max == 10.1


def test_nothing_seen_has_no_mean_and_no_percentile() -> None:
    stats = filled()
    assert (stats.count, stats.mean, stats.quantile(0.5), stats.max) == (0, None, None, 0.0)


def test_percentiles_lie_in_the_bucket_of_the_true_value() -> None:
    chance = random.Random(1)
    seconds = sorted(chance.expovariate(20) for _ in range(5_000))
    stats = filled(*seconds)
    edges = (0.0, *POOL_BOUNDS, float("inf"))
    for q in (0.01, 0.5, 0.95, 0.99):
        true = seconds[round(q * len(seconds)) - 1]
        guess = stats.quantile(q)
        assert guess is not None
        (low, high) = next(pair for pair in pairwise(edges) if true <= pair[1])
        assert low <= guess <= high
    assert stats.mean == pytest.approx(sum(seconds) / len(seconds))


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seconds", [0.00003, 0.7, 42.0])
def test_a_percentile_is_never_above_the_maximum(q: float, seconds: float) -> None:
    guess = filled(seconds, seconds).quantile(q)
    assert guess is not None
    assert 0.0 <= guess <= seconds


def test_beyond_the_last_bound_the_maximum_is_the_limit() -> None:
    assert filled(30.0, 60.0).quantile(1.0) == 60.0


def test_histograms_add_up() -> None:
    both = merge([filled(0.001, 0.2), filled(7.0)])
    assert both == filled(0.001, 0.2, 7.0)
    assert merge([]) is None


def test_the_pool_looks_closer_than_operations_do() -> None:
    assert set(OPERATION_BOUNDS) < set(POOL_BOUNDS)
    assert list(POOL_BOUNDS) == sorted(POOL_BOUNDS)
    assert all(isinstance(bound, float) for bound in POOL_BOUNDS)
