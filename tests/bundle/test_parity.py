"""The rule of verdict parity, case by case. Threshold 0.5, median 0.3, so δ = 0.002."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from stlm_edge.bundle import parity
from stlm_edge.bundle.parity import Parity, compare

THRESHOLD, DELTA = 0.5, 0.01 * (0.5 - 0.3)


@dataclass
class Answer:
    map: np.ndarray
    score: float
    name: str = "part"
    stride: int = 1
    offset: int = 0


def random_map(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((64, 64), dtype=np.float32)


def compare_scores(expected: float, found: float) -> tuple[int, int]:
    figures, _ = compare([Answer(random_map(), expected)], [(random_map(), found)], THRESHOLD, DELTA)
    return figures.verdict_flips, figures.verdict_failures


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
def test_a_flip_fails_beyond_delta(expected: float, found: float, flips: int, failures: int) -> None:
    assert compare_scores(expected, found) == (flips, failures)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["map", "score", "golden map", "golden score"])
def test_what_is_not_finite_always_fails(bad: float, place: str) -> None:
    broken = random_map()
    broken[3, 4] = bad
    golden = Answer(broken if place == "golden map" else random_map(), bad if place == "golden score" else 0.9)
    answer = broken if place == "map" else random_map(), bad if place == "score" else 0.9
    figures, rows = compare([golden], [answer], THRESHOLD, DELTA)
    assert figures == Parity(math.inf, math.inf, 0.0, 1, 1, 1)
    assert rows[0].failed
    assert parity.problems(figures, "int8") != []


def test_a_value_that_is_not_finite_is_seen_between_the_sampled_ones() -> None:
    found = random_map()
    found[0, 0] = math.nan
    golden = Answer(random_map()[1::2, 1::2], 0.9, stride=2, offset=1)
    assert compare([golden], [(found, 0.9)], THRESHOLD, DELTA)[0].verdict_failures == 1


def test_a_map_of_another_shape_fails() -> None:
    figures, _ = compare([Answer(random_map(), 0.9)], [(random_map()[:32], 0.9)], THRESHOLD, DELTA)
    assert figures.verdict_failures == 1
    assert figures.max_abs_diff == math.inf


def test_figures_are_of_the_sampled_maps_over_all_images() -> None:
    first, second = random_map(1), random_map(2)
    golden = [Answer(first[1::2, 1::2], 0.9, "a", 2, 1), Answer(second[1::2, 1::2], 0.1, "b", 2, 1)]
    changed = second.copy()
    changed[1, 1] += 0.25  # sampled
    changed[0, 0] += 9.0  # not sampled
    figures, rows = compare(golden, [(first, 0.9), (changed, 0.1)], THRESHOLD, DELTA)
    assert figures.max_abs_diff == pytest.approx(0.25)
    assert figures.mean_abs_diff == pytest.approx(0.25 / 32**2 / 2, rel=1e-5)
    a, b = second[1::2, 1::2].ravel().astype(float), changed[1::2, 1::2].ravel().astype(float)
    assert rows[1].cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert figures.cosine == pytest.approx((1 + rows[1].cosine) / 2)
    assert [row.name for row in rows] == ["a", "b"]
    assert figures.images == 2


def test_maps_of_zeros() -> None:
    zeros, ones = np.zeros((64, 64), np.float32), np.ones((64, 64), np.float32)
    assert compare([Answer(zeros, 0.1)], [(zeros, 0.1)], THRESHOLD, DELTA)[0].cosine == 1
    assert compare([Answer(zeros, 0.1)], [(ones, 0.1)], THRESHOLD, DELTA)[0].cosine == 0


def test_answers_must_be_as_many_as_images() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare([Answer(random_map(), 0.9)] * 2, [(random_map(), 0.9)], THRESHOLD, DELTA)
    with pytest.raises(ValueError, match="no golden image"):
        compare([], [], THRESHOLD, DELTA)


def test_problems_name_what_does_not_pass() -> None:
    assert parity.problems(Parity(1e-4, 0, 1, 3, 0, 8), "fp32") == []
    assert parity.problems(Parity(2e-4, 0, 1, 0, 0, 8), "fp32") == [
        "fp32 map differs by 0.0002, at most 0.0001 is allowed"
    ]
    assert parity.problems(Parity(2e-2, 0, 1, 1, 0, 8), "int8") == []
    assert parity.problems(Parity(2e-2, 0, 1, 3, 2, 8), "int8") == ["2 of 8 verdicts fail"]
