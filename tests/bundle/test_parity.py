"""The rule of verdict parity, case by case. Threshold 0.5, median 0.3, so δ = 0.002."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from stlm_edge.bundle import parity
from stlm_edge.bundle.parity import Parity, compare

THRESHOLD, DELTA = 0.5, 0.01 * (0.5 - 0.3)


@dataclass
class Expected:
    map: np.ndarray
    score: float
    name: str = "part"
    stride: int = 1
    offset: int = 0


def random_map(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((64, 64), dtype=np.float32)


def compare_scores(expected: float, found: float) -> tuple[int, int]:
    totals, _ = compare([Expected(random_map(), expected)], [(random_map(), found)], THRESHOLD, DELTA)
    return totals.verdict_flips, totals.verdict_failures


@pytest.mark.parametrize(
    ("expected", "found", "flips", "failures"),
    [
        (0.7, 0.6, 0, 0),
        (0.3, 0.49, 0, 0),
        (0.501, 0.499, 1, 0),  # the trained model was within δ of the threshold: listed, no failure
        (0.501, 0.2, 1, 0),  # how far the packed model went does not matter
        (0.5, 0.5001, 1, 0),
        (0.503, 0.499, 1, 1),
        (0.497, 0.5001, 1, 1),
        (0.9, 0.1, 1, 1),
    ],
)
def test_flip_beyond_delta_is_a_failure(expected: float, found: float, flips: int, failures: int) -> None:
    assert compare_scores(expected, found) == (flips, failures)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["map", "score", "golden map", "golden score"])
def test_output_that_is_not_finite_is_a_failure(bad: float, place: str) -> None:
    broken = random_map()
    broken[3, 4] = bad
    golden = Expected(broken if place == "golden map" else random_map(), bad if place == "golden score" else 0.9)
    answer = broken if place == "map" else random_map(), bad if place == "score" else 0.9
    totals, rows = compare([golden], [answer], THRESHOLD, DELTA)
    assert totals == Parity(math.inf, math.inf, 0.0, 1, 1, 1)
    assert rows[0].failed
    assert parity.problems(totals, "int8") != []


def test_value_that_is_not_finite_fails_between_the_samples() -> None:
    found = random_map()
    found[0, 0] = math.nan
    golden = Expected(random_map()[1::2, 1::2], 0.9, stride=2, offset=1)
    assert compare([golden], [(found, 0.9)], THRESHOLD, DELTA)[0].verdict_failures == 1


def test_map_of_another_shape_is_a_failure() -> None:
    totals, _ = compare([Expected(random_map(), 0.9)], [(random_map()[:32], 0.9)], THRESHOLD, DELTA)
    assert totals.verdict_failures == 1
    assert totals.max_abs_diff == math.inf


def test_metrics_are_computed_on_the_sampled_maps_of_all_images() -> None:
    first, second = random_map(1), random_map(2)
    golden = [Expected(first[1::2, 1::2], 0.9, "a", 2, 1), Expected(second[1::2, 1::2], 0.1, "b", 2, 1)]
    changed = second.copy()
    changed[1, 1] += 0.25  # sampled
    changed[0, 0] += 9.0  # not sampled
    totals, rows = compare(golden, [(first, 0.9), (changed, 0.1)], THRESHOLD, DELTA)
    assert totals.max_abs_diff == pytest.approx(0.25)
    assert totals.mean_abs_diff == pytest.approx(0.25 / 32**2 / 2, rel=1e-5)
    a, b = second[1::2, 1::2].ravel().astype(float), changed[1::2, 1::2].ravel().astype(float)
    assert rows[1].cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert totals.cosine == pytest.approx((1 + rows[1].cosine) / 2)
    assert [row.name for row in rows] == ["a", "b"]
    assert totals.images == 2


def test_maps_of_zeros() -> None:
    zeros, ones = np.zeros((64, 64), np.float32), np.ones((64, 64), np.float32)
    assert compare([Expected(zeros, 0.1)], [(zeros, 0.1)], THRESHOLD, DELTA)[0].cosine == 1
    assert compare([Expected(zeros, 0.1)], [(ones, 0.1)], THRESHOLD, DELTA)[0].cosine == 0


def test_numbers_of_outputs_and_images_must_agree() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare([Expected(random_map(), 0.9)] * 2, [(random_map(), 0.9)], THRESHOLD, DELTA)
    with pytest.raises(ValueError, match="empty"):
        compare([], [], THRESHOLD, DELTA)


def test_problems_name_the_limit_and_the_failures() -> None:
    assert parity.problems(Parity(1e-4, 0, 1, 3, 0, 8), "fp32") == []
    assert parity.problems(Parity(2e-4, 0, 1, 0, 0, 8), "fp32") == [
        "fp32 map differs by 0.0002, at most 0.0001 is allowed"
    ]
    assert parity.problems(Parity(2e-2, 0, 1, 1, 0, 8), "int8") == []
    assert parity.problems(Parity(2e-2, 0, 1, 3, 2, 8), "int8") == ["2 of 8 verdicts fail"]
