"""What an export must hold before it ships: the trained model's verdicts, its map, and its accuracy.

Verdicts and map: parity.py. Accuracy: on labelled images, or on pseudo-anomalies on the run's held-out normal
images where there are none; the same images, resize and threshold for both.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stlm_edge.data.batches import Images
from stlm_edge.data.datasets import Sample
from stlm_edge.data.textures import any_of, patches_of, procedural
from stlm_edge.evaluation.evaluate import evaluate
from stlm_edge.evaluation.metrics import PixelMetrics, image_auroc
from stlm_edge.progress import step
from stlm_edge.runtimes import Runtime
from stlm_edge.threshold import DecisionThreshold
from stlm_edge.training.validation import Validation

FIGURES = ("image_auroc", "pixel_auroc", "aupro")
LARGEST_LOSS = {"fp32": 0.001, "fp16": 0.001}  # of a figure between 0 and 1
LARGEST_LOSS_OF_INTEGERS = 0.002
ROUNDING = 1e-6
HELD_OUT = 32  # normal images, and as many pseudo-anomalous ones

Figures = dict[str, float | None]


def accuracy_on_samples(
    runtime: Runtime, samples: list[Sample], size: int, decision_threshold: DecisionThreshold
) -> Figures:
    """Image AUROC, pixel AUROC and AUPRO, 0 to 1, on labelled images."""
    metrics = evaluate(runtime, samples, size, decision_threshold, None, runtime.name)
    return {name: metrics[name] for name in FIGURES}


def pseudo_anomalies_on(normal: Sequence[Path], size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images S×S×3 uint8 and their masks: normal ones in turn with pseudo-anomalous ones, the same every time."""
    images = Images(list(normal[:HELD_OUT]), size)
    source = any_of(procedural, patches_of(images))
    return list(Validation([images[index] for index in range(len(images))], source, seed=0))


def accuracy_on_pseudo_anomalies(runtime: Runtime, images: Sequence[tuple[np.ndarray, np.ndarray]]) -> Figures:
    """The same figures on images with masks that `pseudo_anomalies_on` gave."""
    scores, pixels = [], PixelMetrics()
    with step(f"judging pseudo-anomalies with {runtime.name}", len(images)) as advance:
        for image, mask in images:
            anomaly_map, score = runtime.run(image)
            scores.append(score)
            pixels.update(anomaly_map, mask)
            advance()
    found = pixels.compute()
    values = (image_auroc(scores, [bool(mask.any()) for _, mask in images]), found.pixel_auroc, found.aupro)
    return dict(zip(FIGURES, values, strict=True))


def lost_accuracy(accuracy: dict[str, Figures], precision: str, pairs: int) -> list[str]:
    """The figures of `packed` that are further below those of `trained` than the precision may cost, in words.

    `pairs`: normal times anomalous images. Where a single pair that changes its order costs image AUROC more than is
    allowed, one pair is: fewer images can't tell.
    """
    lost = []
    for name in FIGURES:
        allowed = LARGEST_LOSS.get(precision, LARGEST_LOSS_OF_INTEGERS)
        if name == "image_auroc" and pairs:
            allowed = max(allowed, 1 / pairs)
        before, after = accuracy["trained"][name], accuracy["packed"][name]
        if before is not None and after is not None and before - after > allowed + ROUNDING:
            lost.append(f"{name} falls by {100 * (before - after):.2f} points, at most {100 * allowed:.3g} are allowed")
    return lost
