"""STLM's training step (section III): what the streams, the decoder and feature aggregation learn from a batch."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stlm_edge.model import STLM
from stlm_edge.model.stlm import STRIDE, Maps
from stlm_edge.training.losses import cosine_loss, dice_loss, focal_loss, l1_loss
from stlm_edge.training.recipes import Recipe

WARM_UP = 50


class TwoStreams(nn.Module):
    """The network under a recipe's losses; one `forward` a step, so that it can be wrapped for several processes."""

    def __init__(self, model: STLM, recipe: Recipe):
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, image: Tensor, mask: Tensor, clean: Maps, seen: Maps | None) -> dict[str, Tensor]:
        """Each loss of a batch by its name.

        Args:
            image: B×S×S×3 uint8, some of them pseudo-anomalous; mask: B×S×S bool, where.
            clean: what the denoising stream is to say, B×256×h×w twice: features of the images before that.
            seen: the same for the plain stream: the teacher's features of `image` itself; None where that is frozen.
        """
        model, recipe = self.model, self.recipe
        plain, denoising = (tuple(map(_widened, maps)) for maps in model.streams(model.normalise(image)))
        compared = [tuple(m.detach() for m in maps) if recipe.fa_detached else maps for maps in (plain, denoising)]
        losses = {}
        with torch.autocast(image.device.type, enabled=False):  # bfloat16 cannot tell cosines of .990 and .994 apart
            logits = model.fa(*compared)
            if seen is not None:
                losses["plain"] = cosine_loss(plain, seen)  # type: ignore[arg-type]
            losses["denoising"] = cosine_loss(denoising, clean)  # type: ignore[arg-type]
            if not recipe.fa_lr:
                return losses
            mask = mask[:, None].to(logits.dtype)
            if recipe.fa_loss == "focal+l1":
                wanted = F.interpolate(mask, logits.shape[2:], mode="bilinear").ge(0.5).to(logits.dtype)
                losses |= {"focal": focal_loss(logits.sigmoid(), wanted), "l1": l1_loss(logits.sigmoid(), wanted)}
            else:
                nearest = recipe.fa_loss == "cross-entropy+dice on nearest pixels"
                wanted = F.interpolate(mask, logits.shape[2:]) if nearest else F.avg_pool2d(mask, STRIDE)
                losses["cross_entropy"] = F.binary_cross_entropy_with_logits(logits, wanted)
                losses["dice"] = dice_loss(logits.sigmoid(), wanted)
        return losses

    def train(self, mode: bool = True) -> "TwoStreams":
        """Training mode; what the recipe freezes keeps its weights, and the encoders' batch norms their statistics."""
        super().train(mode)
        if mode and self.recipe.freeze_batch_norm:
            for encoder in (self.model.plain, self.model.denoising):
                for module in encoder.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.eval()
        return self


def freeze(model: STLM, recipe: Recipe) -> None:
    """Let gradients reach only what the recipe trains; and not SAM's last attention of tokens, which no map depends on,
    and which joined processes would wait for."""
    model.plain.requires_grad_(recipe.plain_lr > 0)
    model.mask_decoder.requires_grad_(recipe.decoder_lr > 0)
    model.prompt_encoder.requires_grad_(recipe.decoder_lr > 0)
    model.mask_decoder.transformer.final_attn_token_to_image.requires_grad_(False)
    model.mask_decoder.transformer.norm_final_attn.requires_grad_(False)
    model.fa.requires_grad_(recipe.fa_lr > 0)


def make_optimisers(model: STLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Every group carries its `peak_lr`, which the schedule scales; parts with a rate of 0 are left out."""
    decoder = [*model.mask_decoder.parameters(), *model.prompt_encoder.parameters()]
    streams = [
        _group(parameters, rate)
        for parameters, rate in (
            (model.plain.parameters(), recipe.plain_lr),
            (model.denoising.parameters(), recipe.denoising_lr),
            (decoder, recipe.decoder_lr),
            *([] if recipe.optimiser == "adam+sgd" else [(model.fa.parameters(), recipe.fa_lr)]),
        )
        if rate
    ]
    if recipe.optimiser == "adam+sgd":
        heads = [_group(model.fa.res.parameters(), recipe.fa_lr), _group(model.fa.head.parameters(), recipe.fa_lr / 10)]
        return [
            torch.optim.Adam(streams, betas=(0.5, 0.999)),
            torch.optim.SGD(heads, momentum=0.9, weight_decay=1e-4),
        ]
    return [torch.optim.AdamW(streams, weight_decay=0.01)]


def schedule(step: int, total: int) -> float:
    """Share of the peak learning rate: a warm-up, then half a cosine down to 2%."""
    warm_up = min(WARM_UP, max(1, total // 5))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))


def set_rates(optimisers: list[torch.optim.Optimizer], share: float) -> None:
    """Every group's learning rate: `share` of its peak."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["peak_lr"] * share


def _widened(maps: Tensor) -> Tensor:
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


def _group(parameters: Any, peak_lr: float) -> dict[str, Any]:
    return {"params": list(parameters), "lr": peak_lr, "peak_lr": peak_lr}
