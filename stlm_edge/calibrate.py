"""Thresholds from normal pictures alone; `stlm-calibrate` finds a bundle's anew with the device's own camera."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from stlm_edge.errors import UsageError
from stlm_edge.manifest import Calibration

MARGIN = 0.1


def calibrate(
    scores: Sequence[float],
    map_medians: Sequence[float],
    false_alarm_rate: float = 0.01,
    source: Literal["training", "site"] = "training",
) -> Calibration:
    """The threshold of a model from the scores of n held-out normal pictures and the median of each one's map.

    With n ≥ 1/rate it is the score of rank ⌈(1 − rate)(n + 1)⌉ counted from the lowest: of pictures like these a share
    of at most `rate` lies above it, on average (split conformal prediction; Vovk et al., 2005, "Algorithmic Learning
    in a Random World"). With fewer pictures nothing is known of so rare scores: the threshold is then their maximum plus
    a margin of MARGIN × (maximum − median), a tenth of the spread that was seen, because the maximum of n normal scores
    is exceeded by the next one once in n + 1.

    The colours of a map run from the median normal map value to as far above the threshold as that is below it.
    Raises UsageError for no pictures, a rate outside ]0, 1[, or scores that are not finite.
    """
    if not 0 < false_alarm_rate < 1:
        raise UsageError(
            f"false-alarm rate: found {false_alarm_rate}, expected more than 0 and less than 1, such as 0.01"
        )
    if not len(scores):
        raise UsageError("calibration: no normal pictures; give at least one, better 1/(false-alarm rate) of them")
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    if not (np.isfinite(ordered).all() and np.isfinite(map_medians).all()):
        raise UsageError("calibration: a score is not finite; train or export the model anew")
    count, median = len(ordered), float(np.median(ordered))
    enough = count * false_alarm_rate >= 1 - 1e-9
    if enough:
        rank = count + 1 - math.floor(false_alarm_rate * (count + 1) + 1e-9)
        margin, highest = 0.0, float(ordered[rank - 1])
    else:
        highest = float(ordered[-1])
        margin = MARGIN * (highest - median)
    threshold = highest + margin
    map_low = min(float(np.median(map_medians)), threshold)
    return Calibration(
        threshold=threshold,
        median_score=median,
        map_low=map_low,
        map_high=2 * threshold - map_low,
        false_alarm_rate=false_alarm_rate,
        pictures=count,
        method="quantile" if enough else "maximum plus margin",
        margin=margin,
        source=source,
    )
