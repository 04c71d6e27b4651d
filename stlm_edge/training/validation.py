"""Validation during training: pseudo-anomalies on held-out normal images. Test images are never used."""

from collections.abc import Iterator, Sequence

import numpy as np

from stlm_edge.data.pseudo_anomalies import KINDS, make_pseudo_anomaly
from stlm_edge.data.textures import Source
from stlm_edge.evaluation.metrics import DetectionMetrics
from stlm_edge.model import STLM
from stlm_edge.runtimes.torch import run_model

LARGEST = 64  # held-out images that are used, and as many pseudo-anomalous ones
_SALT = 1_000_033


class Validation:
    """The first held-out images, each as it is and with a pseudo-anomaly of any kind, the same every time."""

    def __init__(self, images: Sequence[np.ndarray], source: Source, seed: int):
        self.images, self.source, self.seed = images, source, seed

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield S×S×3 uint8 images and their masks, normal and pseudo-anomalous in turn."""
        for index in range(min(LARGEST, len(self.images))):
            image = self.images[index]
            yield image, np.zeros(image.shape[:2], bool)
            rng = np.random.default_rng([self.seed, _SALT, index])
            yield make_pseudo_anomaly(image, rng, self.source, tuple(KINDS))

    def measure(self, model: STLM) -> tuple[dict[str, float], np.ndarray]:
        """Return image and pixel AUROC of a model, and a sheet H×W×3 uint8: four pseudo-anomalies, masks and maps."""
        metrics = DetectionMetrics()
        rows: list[np.ndarray] = []
        for image, mask in self:
            anomaly_map, score = run_model(model, image)
            metrics.update(anomaly_map, score, bool(mask.any()), mask)
            if mask.any() and len(rows) < 4:
                grey = [mask * np.uint8(255), (255 * anomaly_map).astype(np.uint8)]
                rows.append(np.concatenate([image, *(np.repeat(g[..., None], 3, 2) for g in grey)], axis=1))
        values = metrics.compute()
        return {name: values[name] or 0.0 for name in ("image_auroc", "pixel_auroc")}, np.concatenate(rows)
