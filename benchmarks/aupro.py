"""Time the evaluation metrics on 1,000 maps of 256×256 with masks, on one core, against adeval's streaming accumulator.

    python benchmarks/aupro.py

Prints the times and metrics of both. Exits 1 when ours took more than 5 seconds. adeval counts into 1,000 equal steps
between the lowest and the highest score, which it must know beforehand.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from time import perf_counter

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from adeval import EvalAccumulator

from stlm_edge.evaluation.metrics import PixelMetrics

MAPS, SIZE, LIMIT_SECONDS = 1000, 256, 5.0


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    if not hasattr(np, "trapz"):
        np.trapz = np.trapezoid  # type: ignore[attr-defined]  # adeval calls it by the name it had before numpy 2
    ours, theirs = PixelMetrics(), EvalAccumulator(0.0, 1.0, 0.0, 1.2)
    our_seconds = their_seconds = 0.0
    for anomaly_map, mask in made_up_maps():
        start = perf_counter()
        ours.update(anomaly_map, mask)
        our_seconds += perf_counter() - start
        start = perf_counter()
        theirs.add_anomap(anomaly_map, mask.astype(np.uint8))
        their_seconds += perf_counter() - start
    start = perf_counter()
    metrics = ours.compute()
    our_seconds += perf_counter() - start
    start = perf_counter()
    pixel_auroc, aupro = theirs._auroc(theirs._pixel_acc), theirs._aupro()
    their_seconds += perf_counter() - start

    print(f"{MAPS} maps of {SIZE}×{SIZE} with masks, one thread")
    print(
        f"stlm_edge  {our_seconds:6.2f} s  AUPRO {metrics.aupro:.6f} ± {metrics.aupro_error_bound:.1e}"
        f"  pixel AUROC {metrics.pixel_auroc:.6f} ± {metrics.pixel_auroc_error_bound:.1e}"
    )
    print(f"adeval     {their_seconds:6.2f} s  AUPRO {aupro:.6f}            pixel AUROC {pixel_auroc:.6f}")
    if our_seconds > LIMIT_SECONDS:
        sys.exit(f"error: {our_seconds:.2f} s, at most {LIMIT_SECONDS} s are allowed")


def made_up_maps() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield noisy maps and masks with one to three round defects of 1 to 40 pixels in radius, most detected in part."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for _ in range(MAPS):
        anomaly_map = 0.2 * rng.random((SIZE, SIZE), dtype=np.float32) + 0.1 * rng.random()
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        for _ in range(rng.integers(1, 4)):
            row, column = rng.integers(0, SIZE, 2)
            radius = rng.integers(1, 41)
            distance = (rows - row) ** 2 + (columns - column) ** 2
            mask |= distance < radius**2
            peak = rng.random() * np.exp(-distance / (2 * radius**2))
            anomaly_map = np.maximum(anomaly_map, peak.astype(np.float32))
        yield anomaly_map.astype(np.float32), mask


if __name__ == "__main__":
    main()
