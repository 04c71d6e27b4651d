"""Figures from latencies: percentiles, the p90 that MLPerf would report, and whether one run is slower than another."""

import math
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.99
RESAMPLES = 2000


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: the smallest value that `share` of all are not above."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def early_stopping(values: Sequence[float], share: float = 0.9) -> float | None:
    """A percentile that holds with 99% confidence however few queries there were, as MLPerf's LoadGen reports it.

    So many of n queries may be slower as would be seen by chance, where more than 1 − `share` of all queries were
    slower, in a hundredth of all runs at most. None where n is too small even for none (44 are needed for p90).
    Source: MLPerf Inference, "Early Stopping"; its tolerance d is 0 here.
    """
    n = len(values)
    slower, seen = -1, 0.0
    while slower + 1 < n:
        k = slower + 1
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        seen += math.exp(ways + k * math.log(1 - share) + (n - k) * math.log(share))
        if seen > 1 - CONFIDENCE:
            break
        slower = k
    return None if slower < 0 else sorted(values)[n - slower - 1]


def slower_by(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """How much slower `after` is than `before`, 0.05 for 5%: the median, and its 95% interval.

    Both hold one median per round. Where they have as many rounds, the n-th of one is set against the n-th of the
    other, which was as far from the start: what both have in common, such as a device that grows warm, is no noise.
    Ratios are drawn again and again (bootstrap, percentile interval); else the rounds of each run by themselves.
    What differs between two whole runs and not between rounds, such as another load all the time, no interval can see.
    """
    rng = np.random.default_rng(0)
    old, new = np.asarray(before, dtype=float), np.asarray(after, dtype=float)

    def medians(rounds: np.ndarray) -> np.ndarray:
        return np.median(rng.choice(rounds, (RESAMPLES, len(rounds))), axis=1)

    if len(old) == len(new):
        slower, drawn = float(np.median(new / old)), medians(new / old)
    else:
        slower, drawn = float(np.median(new) / np.median(old)), medians(new) / medians(old)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return slower - 1, float(low) - 1, float(high) - 1
