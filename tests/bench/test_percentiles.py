"""Percentiles, and their confidence."""

import numpy as np
import pytest

from stlm_edge.bench.percentiles import early_stopping, early_stopping_rank, percentile, slower_by


def test_percentiles_are_nearest_rank() -> None:
    values = list(range(100, 0, -1))
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99)] == [50, 90, 99]
    assert percentile([7.0], 0.99) == 7.0


def test_too_few_queries_have_no_early_stopping() -> None:
    assert early_stopping(range(43)) is None
    assert early_stopping(range(44)) == 43


@pytest.mark.parametrize("queries", [64, 1024, 24_576])
def test_early_stopping_is_too_low_in_at_most_two_of_a_hundred_runs(queries: int) -> None:
    rng = np.random.default_rng(0)
    runs = rng.random((1000, queries))  # whose true p90 is .9
    rank = early_stopping_rank(queries)
    assert np.mean(np.partition(runs, rank, axis=1)[:, rank] < 0.9) <= 0.02
    gap = early_stopping(runs[0]) - percentile(runs[0], 0.9)
    assert 0 <= gap < 3 * queries**-0.5


def test_slower_by_tells_a_slower_run_from_a_noisy_one() -> None:
    rng = np.random.default_rng(0)
    calm, noisy = 20 + 0.1 * rng.random(10), 20 + 20 * rng.random(10)
    slower, low, high = slower_by(calm, 1.1 * calm[::-1])
    assert slower == pytest.approx(0.1, abs=0.005)
    assert 0.09 < low < slower < high < 0.11
    _, low, high = slower_by(noisy, 1.1 * noisy[::-1])
    assert low < 0 < 0.1 < high


ROUNDS = 10
WARMER = 1 + 0.2 * np.arange(ROUNDS) / (ROUNDS - 1)  # a device that slows down by a fifth while it is measured
NOISE = {  # of one run's medians, around the same speed
    "even": lambda rng: 1 + 0.03 * rng.standard_normal(ROUNDS),
    "much": lambda rng: np.exp(0.1 * rng.standard_normal(ROUNDS)),
    "growing warm": lambda rng: WARMER * (1 + 0.02 * rng.standard_normal(ROUNDS)),
    "other work now and then": lambda rng: (
        (1 + 0.02 * rng.standard_normal(ROUNDS)) * np.where(rng.random(ROUNDS) < 0.2, 1.5, 1)
    ),
}


@pytest.mark.parametrize("kind", NOISE)
def test_runs_of_equal_speed_are_rarely_a_regression(kind: str) -> None:
    rng = np.random.default_rng(0)
    lows = np.array([slower_by(NOISE[kind](rng), NOISE[kind](rng))[1] for _ in range(300)])
    assert np.mean(lows > 0.05) <= 0.01, "by the 5% that stlm-bench allows unless told otherwise"
    assert np.mean(lows > 0) <= 0.06, "even where nothing is allowed"


def test_a_regression_is_detected_on_a_device_that_grows_warm() -> None:
    rng = np.random.default_rng(0)
    run = NOISE["growing warm"]
    lows = np.array([slower_by(run(rng), 1.1 * run(rng))[1] for _ in range(100)])
    assert np.mean(lows > 0.05) > 0.9
    apart = np.array([slower_by(run(rng)[:-1], 1.1 * run(rng))[1] for _ in range(100)])
    assert np.mean(apart > 0.05) < 0.5, "which rounds that aren't paired would miss"
