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
    """The threshold between normal and anomalous, and how it was found on normal images alone.

    Scores and map values are in the model's own unit, 0 to 1. `delta` is how near to the threshold a verdict may flip
    between the trained model and a packed one.
    """

    value: Annotated[float, "an image whose score is above it is anomalous"]
    median_score: Annotated[float, "median score of the held-out normal images"]
    map_low: Annotated[float, "map value shown as the lowest colour"]
    map_high: Annotated[float, "map value shown as the highest colour; the threshold lies in the middle"]
    false_alarm_rate: Annotated[float, Between(0, 1), "share of normal images that may be called anomalous"]
    images: Annotated[int, Between(1), "number of normal images it was chosen from"]
    method: Literal["quantile", "maximum plus margin"]
    margin: Annotated[float, Between(0), "what was added to the highest score; 0 for a quantile"]
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
    """The threshold of a model from the scores of n held-out normal images and the median of each one's map.

    With n ≥ 1/rate it is the score of rank ⌈(1 − rate)(n + 1)⌉ counted from the lowest: of images like these a share
    of at most `rate` lies above it, on average (split conformal prediction; Vovk et al., 2005, "Algorithmic Learning
    in a Random World"). With fewer images nothing is known of so rare scores, and the next normal image exceeds the
    maximum of n once in n + 1: the threshold is then the maximum plus a margin of MARGIN × (maximum − median), a tenth
    of the spread that was seen, but never more than half the way to 1, the highest possible score.

    `maps` are the images' anomaly maps, or only the median of each: colours run from the median of those medians to
    as far above the threshold as that is below it. Raises UsageError for no images, a rate outside ]0, 0.5[, or
    values that are not finite.
    """
    check_rate(false_alarm_rate)
    if not len(scores):
        raise UsageError("threshold: no normal images; give at least one, better 1/(false-alarm rate) of them")
    medians = [float(np.median(anomaly_map)) for anomaly_map in maps]
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    if not (np.isfinite(ordered).all() and np.isfinite(medians).all()):
        raise UsageError("threshold: a score is not finite; train or export the model anew")
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
    """One line for people: the threshold and what it rests on."""
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
    """The score of each image, S×S×3 uint8, and the median of its map, ready for `calibrate`."""
    scores, medians = [], []
    for image in images:
        anomaly_map, score = run(image)
        scores.append(score)
        medians.append(float(np.median(anomaly_map)))
    return scores, medians


def check_rate(rate: float) -> None:
    """Raise UsageError for a false-alarm rate that no threshold can be chosen for."""
    if not 0 < rate < 0.5:
        raise UsageError(f"false-alarm rate: found {rate}, expected more than 0 and less than 0.5, such as 0.01")
