"""Scores of anomaly maps and verdicts on images."""

from dataclasses import dataclass

import numpy as np

SCORE_RULE = "mean of the 100 highest values of the S×S map"


@dataclass(frozen=True, eq=False)
class Verdict:
    """Verdict on one image.

    `map` is float32 S×S, for the image resized to a square: it does not have the image's aspect ratio.
    """

    anomalous: bool
    score: float
    threshold: float
    map: np.ndarray


def verdict_of(output: tuple[np.ndarray, float], threshold: float) -> Verdict:
    """Return the verdict for a runtime's output, its map and score."""
    anomaly_map, score = output
    return Verdict(is_anomalous(score, threshold), score, threshold, anomaly_map)


def is_anomalous(score: float, threshold: float) -> bool:
    """Return whether a score is above the threshold; a score at the threshold is normal."""
    return score > threshold


def score_of_map(anomaly_map: np.ndarray) -> float:
    """Return the mean of the 100 highest values of a map S×S, or of all if it has fewer."""
    values = np.asarray(anomaly_map, dtype=np.float32).ravel()
    count = min(100, values.size)
    return float(np.partition(values, values.size - count)[-count:].mean(dtype=np.float64))
