"""STLM's training step (section III): targets, losses and optimisers of the streams and of feature aggregation."""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stlm_edge.model import STLM
from stlm_edge.model.stlm import STRIDE, Maps
from stlm_edge.training.norm_gelu_conv import save_memory
from stlm_edge.training.recipes import Recipe

WARM_UP = 50
CACHED_BYTES = 4 << 30


class TrainingStep(nn.Module):
    """The network with a recipe's losses; one `forward` a step."""

    def __init__(self, model: STLM, recipe: Recipe):
        super().__init__()
        save_memory(model)
        self.model, self.recipe = model, recipe

    def forward(
        self, image: Tensor, mask: Tensor, clean_targets: Maps, image_targets: Maps | None
    ) -> dict[str, Tensor]:
        """Return the losses of a batch by name.

        Args:
            image: B×S×S×3 uint8, some of them pseudo-anomalous.
            mask: B×S×S bool, true where `image` is pseudo-anomalous.
            clean_targets: Features of the clean images, which the denoising stream learns.
            image_targets: The teacher's features of `image`, which the plain stream learns; None where it is frozen.
        """
        model, aggregation = self.model, self.recipe.aggregation
        plain, denoising = (tuple(map(_widened, maps)) for maps in model.streams(model.normalise(image)))
        detached = aggregation is None or aggregation.detached
        compared = [tuple(m.detach() for m in maps) if detached else maps for maps in (plain, denoising)]
        losses = {}
        with torch.autocast(image.device.type, enabled=False):  # bfloat16 cannot tell cosines of .990 and .994 apart
            logits = model.fa(*compared)  # also when frozen, for the statistics of its batch norms
            if image_targets is not None:
                losses["plain"] = cosine_loss(plain, image_targets)  # type: ignore[arg-type]
            losses["denoising"] = cosine_loss(denoising, clean_targets)  # type: ignore[arg-type]
            if aggregation is not None:
                losses |= map_losses(logits, mask[:, None].to(logits.dtype), aggregation.loss)
        return losses

    def train(self, mode: bool = True) -> "TrainingStep":
        """Set training mode, but keep the encoders' batch norms in evaluation mode where the recipe freezes them."""
        super().train(mode)
        if mode and self.recipe.freeze_batch_norm:
            for encoder in (self.model.plain, self.model.denoising):
                for module in encoder.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.eval()
        return self


def map_losses(logits: Tensor, mask: Tensor, loss: str) -> dict[str, Tensor]:
    """Return the losses of B×1×h×w logits of the anomaly map against a B×1×S×S mask, by name; see `Aggregation`."""
    if loss == "focal+l1":
        target = F.interpolate(mask, logits.shape[2:], mode="bilinear").ge(0.5).to(logits.dtype)
        return {"focal": focal_loss(logits.sigmoid(), target), "l1": F.l1_loss(logits.sigmoid(), target)}
    nearest = loss == "cross-entropy+dice on nearest pixels"
    target = F.interpolate(mask, logits.shape[2:]) if nearest else F.avg_pool2d(mask, STRIDE)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target)
    return {"cross_entropy": cross_entropy, "dice": dice_loss(logits.sigmoid(), target)}


def cosine_loss(maps: Maps, targets: Maps) -> Tensor:
    """Return Σ_k mean(1 − cos) over the K maps of B×C×h×w."""
    return sum((1 - F.cosine_similarity(m, t, dim=1)).mean() for m, t in zip(maps, targets, strict=True))  # type: ignore[return-value]


def focal_loss(probabilities: Tensor, mask: Tensor, gamma: float = 4.0) -> Tensor:
    """Return the mean focal loss (Lin et al. 2017, without α) of B×1×h×w probabilities against a mask in [0, 1]."""
    entropy = F.binary_cross_entropy(probabilities, mask, reduction="none")
    of_true_class = probabilities * mask + (1 - probabilities) * (1 - mask)
    return (entropy * (1 - of_true_class) ** gamma).mean()


def dice_loss(probabilities: Tensor, mask: Tensor) -> Tensor:
    """Return 1 − Dice overlap, smoothed by one pixel, over the whole batch."""
    overlap = (probabilities * mask).sum()
    return 1 - (2 * overlap + 1) / (probabilities.sum() + mask.sum() + 1)


class CleanTargets:
    """Targets of clean images, computed once for each image and kept in float16 while they fit into 4 GiB.

    Images are computed one at a time, so that a resumed run, whose memory is empty, gets the same numbers.

    Args:
        compute: Function from an image, S×S×3 uint8, to its two maps, 1×256×h×w.
        keep: False where images are rotated at random and none occurs twice.
    """

    def __init__(self, compute: Callable[[np.ndarray], Maps], keep: bool = True):
        self.compute, self.limit = compute, CACHED_BYTES if keep else 0
        self._kept: dict[bytes, Maps] = {}
        self._bytes = 0

    def __call__(self, images: Sequence[np.ndarray], device: torch.device) -> Maps:
        """Return the targets of B images, S×S×3 uint8, as two float32 maps B×256×h×w on the device."""
        first, second = zip(*(self._of(image) for image in images), strict=True)
        return torch.cat(first).to(device).float(), torch.cat(second).to(device).float()

    def _of(self, image: np.ndarray) -> Maps:
        key = hashlib.sha256(np.ascontiguousarray(image)).digest()
        if key in self._kept:
            return self._kept[key]
        first, second = self.compute(image)
        maps = first.half().cpu(), second.half().cpu()
        size = sum(m.numel() * m.element_size() for m in maps)
        if self._bytes + size <= self.limit:
            self._kept[key] = maps
            self._bytes += size
        return maps


def image_targets(teacher: Callable[[Tensor], Maps], image: Tensor, mask: Tensor, clean: Maps) -> Maps:
    """Return the teacher's maps of `image`, B×S×S×3 uint8, given its maps of the clean images.

    The teacher runs only on images with a pseudo-anomaly in their mask, B×S×S bool; the others are clean.
    """
    changed = mask.flatten(1).any(1)
    first, second = (maps.clone() for maps in clean)
    if changed.any():
        first[changed], second[changed] = (maps.to(first.dtype) for maps in teacher(image[changed]))
    return first, second


@torch.no_grad()
def plain_maps(model: STLM, image: Tensor) -> Maps:
    """Return the frozen plain stream's maps of B×S×S×3 uint8 images.

    As targets of the denoising stream, they let the two streams agree on normal images even where the plain stream
    errs in copying the teacher.
    """
    embedding = model.plain(model.normalise(image))
    return embedding, model.decode(embedding)


def freeze(model: STLM, recipe: Recipe) -> None:
    """Let gradients reach only the parts that the recipe trains.

    SAM's last attention of tokens is always frozen: no map depends on it, and joined processes would wait for its
    gradients.
    """
    for part in (model.plain, model.mask_decoder, model.prompt_encoder):
        part.requires_grad_(recipe.plain_lr is not None)
    model.mask_decoder.transformer.final_attn_token_to_image.requires_grad_(False)
    model.mask_decoder.transformer.norm_final_attn.requires_grad_(False)
    model.fa.requires_grad_(recipe.aggregation is not None)


def make_optimisers(model: STLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return the recipe's optimisers; each parameter group has its `peak_lr`, which the schedule scales."""
    streams = [_group(model.denoising.parameters(), recipe.denoising_lr)]
    if recipe.plain_lr is not None:
        decoder = [*model.mask_decoder.parameters(), *model.prompt_encoder.parameters()]
        plain = _group(model.plain.parameters(), recipe.plain_lr)
        streams = [plain, *streams, _group(decoder, recipe.plain_lr)]
    aggregation = recipe.aggregation
    if recipe.optimiser == "adamw":
        heads = [] if aggregation is None else [_group(model.fa.parameters(), aggregation.lr)]
        return [torch.optim.AdamW(streams + heads, weight_decay=0.01)]
    assert aggregation is not None, "Recipe checks it"
    heads = [_group(model.fa.res.parameters(), aggregation.lr), _group(model.fa.head.parameters(), aggregation.lr / 10)]
    return [
        torch.optim.Adam(streams, betas=(0.5, 0.999)),
        torch.optim.SGD(heads, momentum=0.9, weight_decay=1e-4),
    ]


def schedule(step: int, total: int) -> float:
    """Return the share of the peak learning rate at a step: a warm-up, then half a cosine down to 2%."""
    warm_up = min(WARM_UP, max(1, total // 5))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))


def set_rates(optimisers: list[torch.optim.Optimizer], share: float) -> None:
    """Set the learning rate of every parameter group to a share of its peak."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["peak_lr"] * share


def _widened(maps: Tensor) -> Tensor:
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


def _group(parameters: Any, peak_lr: float) -> dict[str, Any]:
    return {"params": list(parameters), "lr": peak_lr, "peak_lr": peak_lr}
