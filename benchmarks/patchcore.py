"""PatchCore (Roth et al., CVPR 2022), the peer of accuracy benchmarks: a memory of normal patches.

A random tenth of the training patches, at most 32,768, is kept instead of the paper's greedy coreset, and the image's
score is the largest distance, without the paper's reweighting.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from stlm_edge.data.batches import Images
from stlm_edge.model.stlm import Maps
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0

MEMORY_SHARE, LARGEST_MEMORY = 0.1, 32_768
SIGMA = 4.0  # pixels

Features = Callable[[Tensor], Tensor]
"""1×S×S×3 uint8 → 1×C×h×w."""


class PatchCore:
    """The anomaly map is the Euclidean distance of each patch's features to the nearest in memory, smoothed."""

    name = "patchcore"

    def __init__(self, features: Features, images: Images, seed: int = 0):
        self.features = features
        rng = np.random.default_rng(seed)
        patches = []
        for image in images:
            features_of_patches = self._patches(image)[0]
            kept = rng.random(len(features_of_patches)) < MEMORY_SHARE
            patches.append(features_of_patches[torch.from_numpy(kept)])
        memory = torch.cat(patches)
        chosen = rng.permutation(len(memory))[:LARGEST_MEMORY]
        self.memory = memory[torch.from_numpy(np.sort(chosen))]

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the anomaly map, S×S, and the score of an image, S×S×3 uint8."""
        distance = torch.from_numpy(self.distances(image))
        upsampled = F.interpolate(distance[None, None], size=image.shape[:2], mode="bilinear", align_corners=False)
        return gaussian_filter(upsampled[0, 0].numpy(), SIGMA), distance.max().item()

    @torch.inference_mode()
    def distances(self, image: np.ndarray) -> np.ndarray:
        """Return each patch's distance to the nearest in memory, h×w."""
        patches, grid = self._patches(image)
        return torch.cdist(patches, self.memory).min(dim=1).values.reshape(grid).numpy()

    @torch.inference_mode()
    def _patches(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        features = self.features(torch.from_numpy(image)[None])
        return features[0].flatten(1).T, (features.shape[2], features.shape[3])


def of_the_teacher(teacher: EfficientNetLite0) -> Features:
    """Return the proxy teacher's features of strides 8 and 16, 152 channels at S/8, averaged over 3×3."""

    def features(image: Tensor) -> Tensor:
        x = (image.permute(0, 3, 1, 2).float() - 127.0) / 128.0
        low, high = (F.avg_pool2d(f, 3, 1, 1, count_include_pad=False) for f in teacher.backbone(x))
        return torch.cat([low, F.interpolate(high, size=low.shape[-2:], mode="bilinear", align_corners=False)], dim=1)

    return features


def of_two_maps(maps: Callable[[Tensor], Maps]) -> Features:
    """Return both maps of a teacher or a stream with length 1 at every place: distances then rank as 1 − cos do."""
    return lambda image: torch.cat([F.normalize(m, dim=1) for m in maps(image)], dim=1)
