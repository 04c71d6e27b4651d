"""Accuracy on labelled images, from the outputs for one image after the other, of any device."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from stlm_edge.bench.result import Accuracy, Row
from stlm_edge.data.sample import Sample, mask_of
from stlm_edge.errors import JobError, UsageError
from stlm_edge.evaluation.metrics import DetectionMetrics
from stlm_edge.images import load
from stlm_edge.runtimes import Runtime


class Judged:
    """Outputs for `samples` in their order; maps are not kept. `progress` is called after each tenth of them."""

    def __init__(self, samples: Sequence[Sample], size: int, name: str, progress: Callable[[str], None]) -> None:
        self.size = size
        self._samples, self._name, self._progress = samples, name, progress
        self._metrics = DetectionMetrics()

    def __len__(self) -> int:
        return len(self._metrics.scores)

    def add(self, anomaly_map: np.ndarray, score: float) -> None:
        """Add the next map, float S×S, and score. Raises JobError for another shape or a value that is not finite."""
        sample = self._samples[len(self)]
        without_mask = sample.anomalous and sample.mask is None
        mask = None if without_mask else mask_of(sample, self.size)
        try:
            self._metrics.update(anomaly_map, score, sample.anomalous, mask)
        except JobError as error:
            raise JobError(f"{sample.image.name}: {error}") from None
        total = len(self._samples)
        another_tenth = len(self) * 10 // total > (len(self) - 1) * 10 // total
        self._progress(f"accuracy: {self._name}, {len(self)} of {total} images" if another_tenth else "")

    def accuracy(self) -> Accuracy:
        """Return the metrics; those of pixels are None if an anomalous image has no mask."""
        metrics = self._metrics.compute()
        return Accuracy(metrics["image_auroc"], metrics["pixel_auroc"], metrics["aupro"])


def with_accuracy(
    row: Row, open_runtime: Callable[[], Runtime], samples: Sequence[Sample], progress: Callable[[str], None]
) -> Row:
    """Return the row with its accuracy here, also if it failed parity; a failure here is the row's failure."""
    if row.parity is None:
        return row
    judged, runtime = Judged(samples, row.input_size, row.name, progress), open_runtime()
    try:
        for sample in samples:
            judged.add(*runtime.run(load(sample.image, row.input_size)))
    except (JobError, UsageError) as error:
        return replace(row, passed=False, failure=f"accuracy: {error}")
    return replace(row, accuracy=judged.accuracy())
