"""STLM's loss functions (section III): cosine distance of maps, focal and L1 loss of the anomaly map."""

import torch.nn.functional as F
from torch import Tensor

from stlm_edge.model.stlm import Maps


def cosine_loss(maps: Maps, targets: Maps) -> Tensor:
    """Σ_k mean(1 − cos) over the K maps of B×C×h×w."""
    return sum((1 - F.cosine_similarity(m, t, dim=1)).mean() for m, t in zip(maps, targets, strict=True))  # type: ignore[return-value]


def focal_loss(probabilities: Tensor, mask: Tensor, gamma: float = 4.0) -> Tensor:
    """Mean focal loss (Lin et al. 2017, without α) of B×1×h×w probabilities against a mask in [0, 1]."""
    entropy = F.binary_cross_entropy(probabilities, mask, reduction="none")
    right = probabilities * mask + (1 - probabilities) * (1 - mask)
    return (entropy * (1 - right) ** gamma).mean()


def l1_loss(probabilities: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference of B×1×h×w probabilities and mask."""
    return (probabilities - mask).abs().mean()


def dice_loss(probabilities: Tensor, mask: Tensor) -> Tensor:
    """1 − Dice overlap, smoothed by one pixel, over the whole batch."""
    overlap = (probabilities * mask).sum()
    return 1 - (2 * overlap + 1) / (probabilities.sum() + mask.sum() + 1)
