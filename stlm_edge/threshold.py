"""The decision threshold between normal and anomalous, chosen from normal images alone."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from stlm_edge.errors import UsageError
from stlm_edge.strict_json import Between

MARGIN = 0.1


@dataclass(frozen=True)
class DecisionThreshold:
    """Threshold between normal and anomalous scores, and how it was chosen.

    Scores and map values are in the model's own unit, 0 to 1. Between the trained and the exported model, verdicts may
    differ only for scores within `delta` of the threshold.
    """

    value: Annotated[float, "an image whose score is above it is anomalous"]
    median_score: Annotated[float, "median score of the held-out normal images"]
    map_low: Annotated[float, "map value shown as the lowest colour"]
    map_high: Annotated[float, "map value shown as the highest colour; the threshold lies in the middle"]
    false_alarm_rate: Annotated[float, Between(0, 1), "share of normal images that may be called anomalous"]
    images: Annotated[int, Between(1), "number of normal images it was chosen from"]
    method: Literal["quantile", "maximum plus margin"]
    margin: Annotated[float, Between(0), "margin added to the highest score; 0 for a quantile"]
    source: Annotated[Literal["training", "site"], "held-out training images, or images taken on site"]

    @property
    def delta(self) -> float:
        """Return 1% of the distance between threshold and median score."""
        return 0.01 * (self.value - self.median_score)


def calibrate(
    scores: Sequence[float],
    maps: Sequence[np.ndarray | float],
    false_alarm_rate: float = 0.01,
    source: Literal["training", "site"] = "training",
) -> DecisionThreshold:
    """Choose the threshold of a model from n held-out normal images.

    With n ≥ 1/rate it is the score of rank ⌈(1 − rate)(n + 1)⌉ counted from the lowest: on average, a share of at most
    `rate` of similar images lies above it (split conformal prediction; Vovk et al., 2005, "Algorithmic Learning in a
    Random World"). With fewer images it is the maximum plus MARGIN × (maximum − median), but at most halfway to 1, the
    highest possible score.

    Args:
        scores: Score of each image.
        maps: Anomaly map of each image, or its median. The colour scale starts at the median of the medians and ends
            equally far above the threshold.
        false_alarm_rate: Share of normal images that may be called anomalous, between 0 and 0.5.
        source: Origin of the images.

    Raises:
        UsageError: There are no images, the rate is out of range, or a value is not finite.
    """
    check_rate(false_alarm_rate)
    if not len(scores):
        raise UsageError("threshold: no normal images; give at least one, preferably 1/(false-alarm rate)")
    medians = [float(np.median(anomaly_map)) for anomaly_map in maps]
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    if not (np.isfinite(ordered).all() and np.isfinite(medians).all()):
        raise UsageError("threshold: a score is not finite; train or export the model again")
    count, median = len(ordered), float(np.median(ordered))
    enough = count * false_alarm_rate >= 1 - 1e-9
    if enough:
        rank = count + 1 - math.floor(false_alarm_rate * (count + 1) + 1e-9)
        margin, highest = 0.0, float(ordered[rank - 1])
    else:
        highest = float(ordered[-1])
        margin = min(MARGIN * (highest - median), max(0.0, (1 - highest) / 2))
    threshold = highest + margin
    map_low = min(float(np.median(medians)), threshold)
    return DecisionThreshold(
        value=threshold,
        median_score=median,
        map_low=map_low,
        map_high=2 * threshold - map_low,
        false_alarm_rate=false_alarm_rate,
        images=count,
        method="quantile" if enough else "maximum plus margin",
        margin=margin,
        source=source,
    )


def describe(chosen: DecisionThreshold) -> str:
    """Return one line of text: the threshold and the images it was chosen from."""
    images = f"{chosen.images} normal images"
    if chosen.method == "quantile":
        rate = f"{chosen.false_alarm_rate:g}"
        return f"threshold {chosen.value:.4g} from {images}, for a false-alarm rate of {rate}"
    needed = math.ceil(1 / chosen.false_alarm_rate - 1e-9)
    return (
        f"threshold {chosen.value:.4g}, the maximum of {images} plus a margin of {chosen.margin:.2g}, "
        f"because a false-alarm rate of {chosen.false_alarm_rate:g} needs {needed}"
    )


def judge(
    run: Callable[[np.ndarray], tuple[np.ndarray, float]], images: Iterable[np.ndarray]
) -> tuple[list[float], list[float]]:
    """Return the score of each image, S×S×3 uint8, and the median of its map, as arguments of `calibrate`."""
    scores, medians = [], []
    for image in images:
        anomaly_map, score = run(image)
        scores.append(score)
        medians.append(float(np.median(anomaly_map)))
    return scores, medians


def check_rate(rate: float) -> None:
    """Raise UsageError for a false-alarm rate outside 0 to 0.5."""
    if not 0 < rate < 0.5:
        raise UsageError(f"false-alarm rate: found {rate}, expected more than 0 and less than 0.5, such as 0.01")
