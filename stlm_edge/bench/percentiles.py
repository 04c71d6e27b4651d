"""Statistics of latencies: percentiles, the p90 of MLPerf, and if one run is slower than another."""

import math
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.99
RESAMPLES = 2000


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile: the smallest value that at least `share` of all do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def early_stopping(values: Sequence[float], share: float = 0.9) -> float | None:
    """Return a percentile that holds with 99% confidence for any number of queries, as MLPerf's LoadGen reports it.

    Source: MLPerf Inference, "Early Stopping", with tolerance d = 0.
    """
    rank = early_stopping_rank(len(values), share)
    return None if rank is None else sorted(values)[rank]


def early_stopping_rank(count: int, share: float = 0.9) -> int | None:
    """Return the index of that percentile among `count` sorted values; None if they are too few (44 for p90).

    The number of slower queries is the largest that is seen by chance in at most 1% of all runs whose true share of
    slower queries exceeds 1 − `share`.
    """
    slower, probability = -1, 0.0
    for k in range(count):
        ways = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        probability += math.exp(ways + k * math.log(1 - share) + (count - k) * math.log(share))
        if probability > 1 - CONFIDENCE:
            break
        slower = k
    return None if slower < 0 else count - slower - 1


def slower_by(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Return how much slower `after` is than `before`, 0.05 for 5%: the median, and its 95% interval.

    Both hold one median per round. With as many rounds in both, the n-th of one is compared with the n-th of the
    other, so that what both have in common, such as a device that grows warm, is no noise. The interval is that of a
    bootstrap over these ratios, else over the rounds of each run. No interval covers a difference between whole runs,
    such as other load all the time.
    """
    rng = np.random.default_rng(0)
    old, new = np.asarray(before, dtype=float), np.asarray(after, dtype=float)

    def medians(rounds: np.ndarray) -> np.ndarray:
        return np.median(rng.choice(rounds, (RESAMPLES, len(rounds))), axis=1)

    if len(old) == len(new):
        slower, resampled = float(np.median(new / old)), medians(new / old)
    else:
        slower, resampled = float(np.median(new) / np.median(old)), medians(new) / medians(old)
    low, high = np.quantile(resampled, (0.025, 0.975))
    return slower - 1, float(low) - 1, float(high) - 1
