"""Does a packed model still say what the trained model said? One rule, used by the export, the bench and the tests.

A verdict *flips* when the packed model's differs from the trained model's. A flip is a *failure* when the trained
model's score was farther than δ from the threshold, δ = 1% of (threshold − median score of the normal calibration
images); a flip inside δ is counted and listed. A value that is not finite is always a failure.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np

from stlm_edge.strict_json import Between
from stlm_edge.verdict import is_anomalous

MAP_LIMITS = {"fp32": 1e-4, "fp16": 5e-3}  # largest map difference an artifact of this precision may show


class GoldenAnswer(Protocol):
    """What the trained model said of one image: its map sampled at [offset::stride] on both axes, and its score."""

    @property
    def name(self) -> str: ...
    @property
    def map(self) -> np.ndarray: ...
    @property
    def stride(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def score(self) -> float: ...


@dataclass(frozen=True)
class Parity:
    """How far a packed model is from the trained one, over golden images."""

    max_abs_diff: Annotated[float, Between(0), "largest difference between two map values"]
    mean_abs_diff: Annotated[float, Between(0)]
    cosine: Annotated[float, "cosine between the two maps, mean over images"]
    verdict_flips: Annotated[int, Between(0), "verdicts that differ, failures included"]
    verdict_failures: Annotated[int, Between(0), "flips farther than verdict_delta from the threshold"]
    images: Annotated[int, Between(1)]


@dataclass(frozen=True)
class ImageParity:
    """The same for one image. `expected_score` is the trained model's."""

    name: str
    max_abs_diff: float
    mean_abs_diff: float
    cosine: float
    expected_score: float
    score: float
    flipped: bool
    failed: bool


def compare(
    golden: Iterable[GoldenAnswer], answers: Iterable[tuple[np.ndarray, float]], threshold: float, delta: float
) -> tuple[Parity, list[ImageParity]]:
    """Compare golden answers with a runtime's: maps float32 S×S at full resolution, and scores, in the same order.

    Where an answer is not finite, or has another shape, the differences are infinite and the verdict has failed.
    Raises ValueError when there is no image, or not as many answers as images.
    """
    rows = [_compare_one(*pair, threshold, delta) for pair in zip(golden, answers, strict=True)]
    if not rows:
        raise ValueError("no golden image to compare")
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
    """Why an artifact of this precision does not pass, in words; empty when it does."""
    found = []
    if not math.isfinite(parity.max_abs_diff):
        found.append("the map or score is not finite or has another shape")
    elif parity.max_abs_diff > (limit := MAP_LIMITS.get(precision, math.inf)):
        found.append(f"{precision} map differs by {parity.max_abs_diff:.2g}, at most {limit:g} is allowed")
    if parity.verdict_failures:
        found.append(f"{parity.verdict_failures} of {parity.images} verdicts fail")
    return found


def _compare_one(
    expected: GoldenAnswer, answer: tuple[np.ndarray, float], threshold: float, delta: float
) -> ImageParity:
    sampled = np.asarray(answer[0])[expected.offset :: expected.stride, expected.offset :: expected.stride]
    score = float(answer[1])
    finite = sampled.shape == expected.map.shape and bool(np.isfinite(answer[0]).all()) and math.isfinite(score)
    flipped = not finite or is_anomalous(score, threshold) != is_anomalous(expected.score, threshold)
    failed = not finite or (flipped and abs(expected.score - threshold) > delta)
    if finite and math.isfinite(expected.score) and np.isfinite(expected.map).all():
        a, b = expected.map.astype(np.float64), sampled.astype(np.float64)
        difference = np.abs(a - b)
        figures = float(difference.max()), float(difference.mean()), _cosine(a, b)
    else:
        figures, flipped, failed = (math.inf, math.inf, 0.0), True, True
    return ImageParity(expected.name, *figures, expected.score, score, flipped, failed)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    product = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / product if product else float(np.array_equal(a, b))
