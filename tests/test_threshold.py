"""The decision threshold chosen from the scores of normal images."""

import numpy as np
import pytest

from stlm_edge.errors import UsageError
from stlm_edge.threshold import calibrate, describe


def test_enough_images_give_a_quantile() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1, 401) / 1000)
    chosen = calibrate(scores, [0.05] * 400, 0.01)
    assert chosen.value == 0.397  # rank ⌈0.99 × 401⌉ = 397 of 400
    assert (chosen.method, chosen.margin, chosen.images) == ("quantile", 0.0, 400)
    assert chosen.median_score == pytest.approx(0.2005)


def test_quantile_keeps_the_false_alarm_rate_on_new_images() -> None:
    rng = np.random.default_rng(0)
    # Of scores spread evenly over 0..1, the share above the threshold is 1 − threshold; 5/101 is expected.
    alarms = [1 - calibrate(rng.random(100), [0.0], 0.05).value for _ in range(1000)]
    assert np.mean(alarms) == pytest.approx(5 / 101, abs=0.002)


def test_quantile_needs_one_image_per_false_alarm_rate() -> None:
    assert calibrate(np.linspace(0, 0.5, 100), [0.0] * 100, 0.01).method == "quantile"
    assert calibrate(np.linspace(0, 0.5, 99), [0.0] * 99, 0.01).method == "maximum plus margin"


def test_too_few_images_give_maximum_plus_margin() -> None:
    chosen = calibrate([0.1, 0.2, 0.3], [0.05] * 3, 0.01)
    assert chosen.margin == pytest.approx(0.01)
    assert chosen.value == pytest.approx(0.31)
    assert "maximum of 3 normal images plus a margin of 0.01" in describe(chosen)
    assert "needs 100" in describe(chosen)


def test_threshold_stays_below_the_highest_possible_score() -> None:
    assert calibrate([0.0, 0.0, 0.99], [0.0] * 3).value == pytest.approx(0.995)


def test_delta_is_a_hundredth_of_the_distance_from_median_to_threshold() -> None:
    chosen = calibrate([0.1, 0.2, 0.3], [0.05] * 3)
    assert chosen.delta == pytest.approx(0.01 * (0.31 - 0.2))


def test_threshold_is_in_the_middle_of_the_colour_scale() -> None:
    maps = [np.full((32, 32), value, np.float32) for value in (0.01, 0.02, 0.06)]
    chosen = calibrate([0.1, 0.2, 0.3], maps)
    assert chosen.map_low == pytest.approx(0.02)
    assert (chosen.map_low + chosen.map_high) / 2 == pytest.approx(chosen.value)
    assert calibrate([0.1, 0.2, 0.3], [float(np.median(each)) for each in maps]) == chosen


@pytest.mark.parametrize(
    ("scores", "rate", "line"),
    [
        ([], 0.01, "no normal images"),
        ([0.1, float("nan")], 0.01, "not finite"),
        ([0.1], 0.0, "false-alarm rate: found 0.0, expected more than 0"),
        ([0.1], 0.5, "false-alarm rate: found 0.5"),
        ([0.1], float("nan"), "false-alarm rate: found nan"),
    ],
)
def test_unusable_scores_and_rates_are_refused(scores: list[float], rate: float, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        calibrate(scores, [0.0] * len(scores), rate)
