"""A second, plain implementation of STLM's training step, as a reference for the package's losses and speed.

It follows the published training: the teacher runs on the pseudo-anomalous and on the clean images at every step; the
mask decoder takes one image after the other; the two encoders run one after the other; the losses are those
of DeSTSeg (X. Zhang et al., CVPR 2023), on which the published code rests. Network parts are the package's own.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F

from stlm_edge.model import tiny_vit

FOCAL_GAMMA = 4.0


def optimisers_of(model):
    """Adam for both streams and the decoder, SGD for feature aggregation (section IV-A)."""
    streams = [*model.plain.parameters(), *model.denoising.parameters()]
    streams += [*model.mask_decoder.parameters(), *model.prompt_encoder.parameters()]
    heads = [
        {"params": list(model.fa.res.parameters()), "lr": 0.1},
        {"params": list(model.fa.head.parameters()), "lr": 0.01},
    ]
    return [
        torch.optim.Adam(streams, lr=0.0005, betas=(0.5, 0.999)),
        torch.optim.SGD(heads, lr=0.001, momentum=0.9, weight_decay=1e-4),
    ]


def step(model, teacher, optimisers, image, clean, mask):
    """One step on B×S×S×3 uint8 images, the clean ones and B×S×S masks; returns the losses, and leaves gradients."""
    for optimiser in optimisers:
        optimiser.zero_grad()
    seen = teacher_maps(teacher, image)
    before = teacher_maps(teacher, clean)
    with unfused(model):
        losses = losses_of(model, image, mask, seen, before)
        (losses["plain"] + losses["denoising"] + losses["focal"] + losses["l1"]).backward()
    for optimiser in optimisers:
        optimiser.step()
    return losses


@torch.no_grad()
def teacher_maps(teacher, image):
    return maps_of(teacher.image_encoder, teacher.mask_decoder, teacher.prompt_encoder, normalised(teacher, image))


def losses_of(model, image, mask, seen, before):
    """The four losses; `seen` and `before` are the teacher's two maps of `image` and of the clean images."""
    x = normalised(model, image)
    plain = maps_of(model.plain, model.mask_decoder, model.prompt_encoder, x)
    denoising = maps_of(model.denoising, model.mask_decoder, model.prompt_encoder, x)
    plain, denoising, seen, before = ([unit(m) for m in maps] for maps in (plain, denoising, seen, before))

    losses = {"plain": 0.0, "denoising": 0.0}
    for k in range(2):
        losses["plain"] += torch.mean(1 - torch.sum(plain[k] * seen[k], dim=1))
        losses["denoising"] += torch.mean(1 - torch.sum(denoising[k] * before[k], dim=1))

    disagreement = torch.cat([-plain[k] * denoising[k] for k in range(2)], dim=1)
    predicted = torch.sigmoid(model.fa.head(model.fa.res(disagreement)))
    dtype, grid = predicted.dtype, predicted.shape[2:]
    target = F.interpolate(mask[:, None].to(dtype), size=grid, mode="bilinear", align_corners=False)
    target = torch.where(target < 0.5, torch.zeros_like(target), torch.ones_like(target))
    right = predicted * target + (1 - predicted) * (1 - target)
    losses["focal"] = torch.mean(-torch.log(right) * (1 - right) ** FOCAL_GAMMA)
    losses["l1"] = torch.mean(torch.abs(predicted - target))
    return losses


def maps_of(encoder, mask_decoder, prompt_encoder, x):
    embedding = encoder(x)
    position = prompt_encoder.pe_layer(*embedding.shape[2:])
    tokens = [mask_decoder(one[None], position, prompt_encoder.no_mask_embed.weight) for one in embedding]
    return [embedding, torch.cat(tokens)]


def normalised(network, image):
    return (image.permute(0, 3, 1, 2).to(network.pixel_mean.dtype) - network.pixel_mean) / network.pixel_std


def unit(maps):
    return maps / torch.sqrt(torch.sum(maps**2, dim=1, keepdim=True) + 1e-20)


@contextmanager
def unfused(model):
    """Let the encoders' batch norms, GELUs and convolutions be separate operations."""
    chains = [module for module in model.modules() if isinstance(module, tiny_vit.ConvChain)]
    before = [chain.norm_gelu_conv for chain in chains]
    for chain in chains:
        chain.norm_gelu_conv = tiny_vit.norm_gelu_conv
    try:
        yield
    finally:
        for chain, function in zip(chains, before, strict=True):
            chain.norm_gelu_conv = function
