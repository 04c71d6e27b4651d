"""What may be looked at while training: pseudo-anomalies on held-out normal images. Test images never are."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from stlm_edge.data.pseudo_anomalies import KINDS, make_pseudo_anomaly
from stlm_edge.data.textures import Source
from stlm_edge.evaluation.metrics import PixelMetrics, image_auroc
from stlm_edge.model import STLM

LARGEST = 64  # held-out images that are judged, and as many pseudo-anomalous ones
_SALT = 1_000_033


class Validation:
    """The first held-out images, each as it is and with a pseudo-anomaly of any kind, the same every time."""

    def __init__(self, images: Sequence[np.ndarray], source: Source, seed: int):
        self.images, self.source, self.seed = images, source, seed

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """S×S×3 uint8 images and their masks, normal and pseudo-anomalous in turn."""
        for index in range(min(LARGEST, len(self.images))):
            image = self.images[index]
            yield image, np.zeros(image.shape[:2], bool)
            rng = np.random.default_rng([self.seed, _SALT, index])
            yield make_pseudo_anomaly(image, rng, self.source, tuple(KINDS))

    @torch.inference_mode()
    def measure(self, model: STLM) -> tuple[dict[str, float], np.ndarray]:
        """Image and pixel AUROC, 0 to 1, of a model in evaluation mode; and, to look at, a sheet H×W×3 uint8: four
        pseudo-anomalous images, their masks and their maps."""
        scores: list[float] = []
        pixels, anomalous = PixelMetrics(), []
        rows: list[np.ndarray] = []
        for image, mask in self:
            answer = model(torch.from_numpy(image)[None].to(model.pixel_mean.device))
            anomaly_map = answer.anomaly_map[0, 0].float().cpu().numpy()
            scores.append(answer.score.item())
            pixels.update(anomaly_map, mask)
            anomalous.append(bool(mask.any()))
            if mask.any() and len(rows) < 4:
                grey = [mask * np.uint8(255), (255 * anomaly_map).astype(np.uint8)]
                rows.append(np.concatenate([image, *(np.repeat(g[..., None], 3, 2) for g in grey)], axis=1))
        figures = {"image_auroc": image_auroc(scores, anomalous), "pixel_auroc": pixels.compute().pixel_auroc}
        return {name: value or 0.0 for name, value in figures.items()}, np.concatenate(rows)
