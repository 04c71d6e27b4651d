"""Parity of a packed model with the trained one: one rule for the export, the bench and the tests.

A verdict *flips* when the packed model's differs from the trained model's. A flip is a *failure* when the trained
model's score was farther than δ from the threshold, δ = 1% of (threshold − median score of the normal images that the
threshold was chosen from); a flip within δ is counted and listed. A value that is not finite is always a failure.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np

from stlm_edge.strict_json import Between
from stlm_edge.verdict import is_anomalous

if TYPE_CHECKING:
    from stlm_edge.bundle.golden import GoldenCandidate, GoldenImage

MAP_LIMITS = {"fp32": 1e-4, "fp16": 5e-3}  # largest map difference an artifact of this precision may show


@dataclass(frozen=True)
class Parity:
    """Distance of a packed model from the trained one, over golden images."""

    max_abs_diff: Annotated[float, Between(0), "largest difference between two map values"]
    mean_abs_diff: Annotated[float, Between(0)]
    cosine: Annotated[float, "cosine between the two maps, mean over images"]
    verdict_flips: Annotated[int, Between(0), "verdicts that differ, failures included"]
    verdict_failures: Annotated[int, Between(0), "flips farther than verdict_delta from the threshold"]
    images: Annotated[int, Between(1)]


@dataclass(frozen=True)
class ImageParity:
    """Distance for one image. `expected_score` is the trained model's."""

    name: str
    max_abs_diff: float
    mean_abs_diff: float
    cosine: float
    expected_score: float
    score: float
    flipped: bool
    failed: bool


def compare(
    golden: "Iterable[GoldenCandidate | GoldenImage]",
    outputs: Iterable[tuple[np.ndarray, float]],
    threshold: float,
    delta: float,
) -> tuple[Parity, list[ImageParity]]:
    """Compare the trained model's outputs for golden images with a runtime's; return the totals and each image's row.

    `outputs` are the map, float32 S×S, and score of each image. Where one is not finite or has another shape, the
    differences are infinite and the verdict is a failure.
    """
    rows = [_compare_one(*pair, threshold, delta) for pair in zip(golden, outputs, strict=True)]
    parity = Parity(
        max_abs_diff=max(row.max_abs_diff for row in rows),
        mean_abs_diff=sum(row.mean_abs_diff for row in rows) / len(rows),
        cosine=sum(row.cosine for row in rows) / len(rows),
        verdict_flips=sum(row.flipped for row in rows),
        verdict_failures=sum(row.failed for row in rows),
        images=len(rows),
    )
    return parity, rows


def problems(parity: Parity, precision: str) -> list[str]:
    """Return the reasons why an artifact of this precision fails, none if it passes."""
    found = []
    if not math.isfinite(parity.max_abs_diff):
        found.append("the map or score is not finite or has another shape")
    elif parity.max_abs_diff > (limit := MAP_LIMITS.get(precision, math.inf)):
        found.append(f"{precision} map differs by {parity.max_abs_diff:.2g}, at most {limit:g} is allowed")
    if parity.verdict_failures:
        found.append(f"{parity.verdict_failures} of {parity.images} verdicts fail")
    return found


def _compare_one(
    expected: "GoldenCandidate | GoldenImage", outputs: tuple[np.ndarray, float], threshold: float, delta: float
) -> ImageParity:
    anomaly_map, score = np.asarray(outputs[0]), float(outputs[1])
    sampled = anomaly_map[expected.offset :: expected.stride, expected.offset :: expected.stride]
    values = anomaly_map, score, expected.map, expected.score
    finite = sampled.shape == expected.map.shape and all(np.isfinite(value).all() for value in values)
    flipped = not finite or is_anomalous(score, threshold) != is_anomalous(expected.score, threshold)
    failed = not finite or (flipped and abs(expected.score - threshold) > delta)
    distances = math.inf, math.inf, 0.0
    if finite:
        a, b = expected.map.astype(np.float64), sampled.astype(np.float64)
        difference = np.abs(a - b)
        norms = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosine = float((a * b).sum()) / norms if norms else float(np.array_equal(a, b))
        distances = float(difference.max()), float(difference.mean()), cosine
    return ImageParity(expected.name, *distances, expected.score, score, flipped, failed)
