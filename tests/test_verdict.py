import numpy as np
import pytest

from stlm_edge.verdict import is_anomalous, score_of_map, verdict_of


def test_score_is_the_mean_of_the_100_highest_values() -> None:
    values = np.random.default_rng(0).permutation(64 * 64).astype(np.float32).reshape(64, 64)
    assert score_of_map(values) == np.sort(values.ravel())[-100:].mean() == 64 * 64 - 50.5


def test_score_of_a_small_map_is_its_mean() -> None:
    assert score_of_map(np.array([[1.0, 2.0]], np.float32)) == 1.5


def test_score_at_the_threshold_is_normal() -> None:
    assert not is_anomalous(0.5, 0.5)
    assert is_anomalous(np.nextafter(0.5, 1), 0.5)


@pytest.mark.parametrize(("score", "anomalous"), [(0.4, False), (0.6, True)])
def test_verdict_contains_score_threshold_and_map(score: float, anomalous: bool) -> None:
    anomaly_map = np.zeros((32, 32), np.float32)
    verdict = verdict_of((anomaly_map, score), 0.5)
    assert (verdict.anomalous, verdict.score, verdict.threshold) == (anomalous, score, 0.5)
    assert verdict.map is anomaly_map
