"""Metrics of anomaly detection: image AUROC and F1, pixel AUROC, and AUPRO."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import integrate, ndimage, stats

from stlm_edge.errors import JobError

LEVELS = 65_536
FPR_LIMIT = 0.3
_CHUNK = 1 << 20  # pixels that are sorted at once
_EIGHT_CONNECTED = np.ones((3, 3), dtype=int)
_LOW, _HIGH, _NORMAL, _ANOMALOUS, _OVERLAP = range(5)  # the rows of a table of levels


class PixelAreas(NamedTuple):
    """Pixel AUROC and AUPRO, 0 to 1, and their largest errors; None without both normal and anomalous pixels."""

    pixel_auroc: float | None = None
    pixel_auroc_error_bound: float | None = None
    aupro: float | None = None
    aupro_error_bound: float | None = None


class DetectionMetrics:
    """Image and pixel metrics of a model, from its outputs for one image after the other; maps are not kept."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.anomalous: list[bool] = []
        self._pixels = PixelMetrics()
        self._without_mask = False

    def update(self, anomaly_map: np.ndarray, score: float, anomalous: bool, mask: np.ndarray | None) -> None:
        """Add a map and a mask H×W, and the score and label of an image; mask None: anomalous without a mask.

        Raises JobError when the map or score is not finite, or the map has another shape than the mask.
        """
        self._pixels.update(anomaly_map, np.zeros(anomaly_map.shape, bool) if mask is None else mask)
        if not np.isfinite(score):
            raise JobError(f"the score {score} is not finite; the model is damaged")
        self.scores.append(score)
        self.anomalous.append(anomalous)
        self._without_mask |= mask is None

    def compute(self) -> dict[str, float | None]:
        """Return image_auroc, and pixel metrics by the names of PixelAreas: None where an image has no mask."""
        pixels = PixelAreas() if self._without_mask else self._pixels.compute()
        return {"image_auroc": image_auroc(self.scores, self.anomalous), **pixels._asdict()}


def image_auroc(scores: Sequence[float], anomalous: Sequence[bool]) -> float | None:
    """Return the area under the ROC curve of image scores, 0 to 1, or None where one of the classes is missing.

    Ties count half. Raises JobError for a score that is not finite.
    """
    if all(anomalous) or not any(anomalous):
        return None
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(anomalous, dtype=bool)
    if not np.isfinite(values).all():
        raise JobError(f"{np.sum(~np.isfinite(values))} of {len(values)} scores are not finite; the model is damaged")
    count = np.sum(positive)
    pairs_in_order = stats.rankdata(values)[positive].sum() - count * (count + 1) / 2  # Mann and Whitney's U
    return float(pairs_in_order / (count * np.sum(~positive)))


def image_f1(verdicts: Sequence[bool], anomalous: Sequence[bool]) -> float | None:
    """Return F1 = 2·TP / (2·TP + FP + FN) of verdicts on images, or None where no image is anomalous."""
    if not any(anomalous):
        return None
    true_positives = sum(v and a for v, a in zip(verdicts, anomalous, strict=True))
    return 2 * true_positives / (sum(verdicts) + sum(anomalous))


class PixelMetrics:
    """Pixel AUROC, and AUPRO up to a false-positive rate of 0.3, of any number of maps in bounded memory.

    AUPRO (Bergmann et al., "Uninformed Students", CVPR 2020) is the area under the curve of the mean share of a
    ground-truth region that is detected, over the false-positive rate of normal pixels, divided by the limit.
    Regions are 8-connected; the normal pixels are those of all images; ties are joined by straight lines.

    Pixels are ranked to 16 bits: at most 65,536 levels, each an interval of scores with its counts. A score between
    levels becomes a new level; a score inside a level joins it. The order inside a level is lost, which changes an area
    by at most half of (its false-positive share × its true-positive share): the error bounds are the sums of these.
    """

    def __init__(self) -> None:
        self._levels = np.zeros((5, 0))
        self._waiting: list[np.ndarray] = []  # scores and overlaps that are in no level yet

    def update(self, anomaly_map: np.ndarray, mask: np.ndarray) -> None:
        """Add a map H×W, float32, and its mask H×W, bool, true where anomalous.

        Raises JobError for a map that is not finite or of another shape than its mask.
        """
        scores = np.asarray(anomaly_map, dtype=np.float32)
        mask = np.asarray(mask, dtype=bool)
        if scores.ndim != 2 or scores.shape != mask.shape:
            raise JobError(f"anomaly map of shape {scores.shape} with a mask of shape {mask.shape}; expected H×W both")
        if not np.isfinite(scores).all():
            bad = np.sum(~np.isfinite(scores))
            raise JobError(f"{bad} of {scores.size} values of an anomaly map are not finite; the model is damaged")
        overlap = np.zeros(mask.shape)
        if mask.any():
            regions = ndimage.label(mask, _EIGHT_CONNECTED)[0][mask]
            overlap[mask] = 1 / np.bincount(regions)[regions]
        self._waiting.append(np.stack([scores, overlap], dtype=np.float32).reshape(2, -1))
        if sum(waiting.shape[1] for waiting in self._waiting) >= _CHUNK:
            self._rank()

    def compute(self) -> PixelAreas:
        """Return the metrics of all maps so far."""
        self._rank()
        low, high, *counts = self._levels[:, ::-1]  # from the highest score on
        normal, anomalous, overlap = np.cumsum([np.append(0, count) for count in counts], axis=1)
        if not low.size or not normal[-1] or not anomalous[-1]:
            return PixelAreas()
        fpr, tpr, pro = normal / normal[-1], anomalous / anomalous[-1], overlap / overlap[-1]

        half_boxes = np.where(low < high, np.diff(fpr) / 2, 0)
        last = int(np.searchsorted(fpr, FPR_LIMIT))  # fpr[last - 1] < limit <= fpr[last]
        share = (FPR_LIMIT - fpr[last - 1]) / (fpr[last] - fpr[last - 1])
        limited_fpr = np.append(fpr[:last], FPR_LIMIT)
        limited_pro = np.append(pro[:last], pro[last - 1] + share * (pro[last] - pro[last - 1]))
        return PixelAreas(
            pixel_auroc=float(integrate.trapezoid(tpr, fpr)),
            pixel_auroc_error_bound=float(half_boxes @ np.diff(tpr)),
            aupro=float(integrate.trapezoid(limited_pro, limited_fpr)) / FPR_LIMIT,
            aupro_error_bound=float(half_boxes[:last] @ np.diff(pro[: last + 1])) / FPR_LIMIT,
        )

    def _rank(self) -> None:
        """Count the waiting pixels into the levels, and make levels of those that fall between."""
        if not self._waiting:
            return
        scores, overlap = np.concatenate(self._waiting, axis=1)
        self._waiting = []
        order = np.argsort(scores)
        scores, overlap = scores[order], overlap[order]
        counts = np.stack([overlap == 0, overlap > 0, overlap])
        start = np.searchsorted(scores, self._levels[_LOW].astype(np.float32), "left")
        stop = np.searchsorted(scores, self._levels[_HIGH].astype(np.float32), "right")
        total = np.pad(np.cumsum(counts, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
        self._levels[_NORMAL:] += total[:, stop] - total[:, start]
        steps = np.bincount(start, minlength=len(scores) + 1) - np.bincount(stop, minlength=len(scores) + 1)
        outside = np.cumsum(steps)[:-1] == 0
        new = np.stack([row[outside] for row in (scores, scores, *counts)])
        levels = np.concatenate([self._levels, new], axis=1)
        levels = levels[:, np.argsort(levels[_LOW], kind="stable")]
        levels = _join(levels, levels[_LOW])
        self._levels = _join(levels, _cuts(levels)) if levels.shape[1] > LEVELS else levels


def _join(levels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Join neighbouring levels with equal keys."""
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    last = np.append(first[1:], keys.size) - 1
    return np.vstack([levels[_LOW, first], levels[_HIGH, last], np.add.reduceat(levels[_NORMAL:], first, axis=1)])


def _cuts(levels: np.ndarray) -> np.ndarray:
    """Return ascending keys, at most LEVELS different ones, that cut the levels at even shares and even steps of score.

    A level that reaches over a cut of the shares starts a key and ends it: a score with many pixels stays by itself.
    """
    mass = sum(row / max(row.sum(), 1) for row in levels[[_NORMAL, _OVERLAP]])
    share = np.append(0, np.cumsum(mass))
    shares = np.floor(share / share[-1] * (LEVELS // 4 - 1))
    span = levels[_HIGH, -1] - levels[_LOW, 0]
    steps = np.floor((levels[_LOW] - levels[_LOW, 0]) / span * (LEVELS // 2 - 1))
    return shares[:-1] + shares[1:] + steps
