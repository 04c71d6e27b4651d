"""Accuracy on labelled images, from one answer at a time, whichever device gives it."""

from collections.abc import Callable, Sequence

import numpy as np

from stlm_edge.bench.result import Accuracy
from stlm_edge.data.sample import Sample, mask_of
from stlm_edge.errors import JobError
from stlm_edge.evaluation.metrics import DetectionMetrics


class Judged:
    """Answers on `samples`, in their order; maps are counted and let go. `progress` hears of each tenth of them."""

    def __init__(self, samples: Sequence[Sample], size: int, name: str, progress: Callable[[str], None]) -> None:
        self.size = size
        self._samples, self._name, self._progress = samples, name, progress
        self._metrics = DetectionMetrics()

    def __len__(self) -> int:
        return len(self._metrics.scores)

    def add(self, anomaly_map: np.ndarray, score: float) -> None:
        """The next answer, a map float S×S and a score. Raises JobError for another shape and what isn't finite."""
        sample = self._samples[len(self)]
        without_mask = sample.anomalous and sample.mask is None
        mask = None if without_mask else mask_of(sample, self.size)
        try:
            self._metrics.update(anomaly_map, score, sample.anomalous, mask)
        except JobError as error:
            raise JobError(f"{sample.image.name}: {error}") from None
        total = len(self._samples)
        reached = len(self) * 10 // total > (len(self) - 1) * 10 // total
        self._progress(f"accuracy: {self._name}, {len(self)} of {total} images" if reached else "")

    def accuracy(self) -> Accuracy:
        """Of all the answers; pixel figures are None where an anomalous image has no mask, as `evaluate` has it."""
        metrics = self._metrics.compute()
        return Accuracy(metrics["image_auroc"], metrics["pixel_auroc"], metrics["aupro"])
