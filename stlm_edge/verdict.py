"""From an anomaly map to a verdict: the one place that knows the score and what a score above the threshold means."""

from dataclasses import dataclass

import numpy as np

SCORE_RULE = "mean of the 100 highest values of the S×S map"


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a model says of one image.

    `map` is float32 S×S: the image resized to a square, so its aspect ratio is not the image's.
    """

    anomalous: bool
    score: float
    threshold: float
    map: np.ndarray


def verdict_of(answer: tuple[np.ndarray, float], threshold: float) -> Verdict:
    """The verdict on a runtime's answer, its map and score."""
    anomaly_map, score = answer
    return Verdict(is_anomalous(score, threshold), score, threshold, anomaly_map)


def is_anomalous(score: float, threshold: float) -> bool:
    """An image is anomalous when its score is above the threshold; at the threshold it is normal."""
    return score > threshold


def score_of_map(anomaly_map: np.ndarray) -> float:
    """Mean of the 100 highest values of a map S×S (of all of them where it has fewer)."""
    values = np.asarray(anomaly_map, dtype=np.float32).ravel()
    count = min(100, values.size)
    return float(np.partition(values, values.size - count)[-count:].mean(dtype=np.float64))
