"""Percentiles, and what can be said of them with confidence."""

import numpy as np
import pytest

from stlm_edge.bench.percentiles import early_stopping, percentile, slower_by


def test_percentiles_are_nearest_rank() -> None:
    values = list(range(100, 0, -1))
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99)] == [50, 90, 99]
    assert percentile([7.0], 0.99) == 7.0


def test_too_few_queries_give_no_confident_p90() -> None:
    assert early_stopping(range(43)) is None
    assert early_stopping(range(44)) == 43


@pytest.mark.parametrize("queries", [64, 1024, 24_576])
def test_the_confident_p90_is_too_low_in_a_hundredth_of_all_runs(queries: int) -> None:
    rng = np.random.default_rng(0)
    runs = rng.random((1000, queries))  # whose true p90 is .9
    too_low = np.mean([early_stopping(run) < 0.9 for run in runs])
    assert too_low <= 0.02
    gap = early_stopping(runs[0]) - percentile(runs[0], 0.9)
    assert 0 <= gap < 3 * queries**-0.5


def test_a_slower_run_is_told_from_a_noisy_one() -> None:
    rng = np.random.default_rng(0)
    calm, noisy = 20 + 0.1 * rng.random(10), 20 + 20 * rng.random(10)
    slower, low, high = slower_by(calm, 1.1 * calm)
    assert slower == pytest.approx(0.1, abs=0.005)
    assert 0.09 < low < slower < high < 0.11
    _, low, high = slower_by(noisy, 1.1 * noisy)
    assert low < 0 < 0.1 < high
