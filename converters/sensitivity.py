"""Sensitivity of the anomaly map to int8, measured for one group of layers at a time.

Simulated in torch, without any conversion: weights in int8 with a scale per output channel and, for linear layers,
inputs in uint8 with each image's own range, as in `onnx_int8.py`.
"""

import copy
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from stlm_edge.model import STLM
from stlm_edge.progress import step

IMAGES = 8  # of the quantization set, evenly spaced
# Regular expressions for the names of layers; layers with the same match are a group.
LINEAR = (
    r"^(plain|denoising)\.layers\.\d+\.blocks\.\d+\.(attn\.|mlp\.fc1|mlp\.fc2)",
    r"^mask_decoder\.transformer\.layers\.\d+\.",
)
CONVOLUTIONS = (
    r"^(plain|denoising)\.(layers\.[1-3]\.(downsample|blocks\.\d+\.local_conv)|neck)\.",
    r"^fa\.(res|head)\.\d\.",
)
FIRST_CONVOLUTIONS = (r"^(plain|denoising)\.(patch_embed|layers\.0)\.",)


def grouped(model: STLM, groups: Sequence[str]) -> dict[str, list[nn.Linear | nn.Conv2d]]:
    """Return the layers of each group, by the beginning of their names, in the model's order."""
    members: dict[str, list[nn.Linear | nn.Conv2d]] = {}
    for name, module in model.named_modules():
        found = next((match for group in groups if (match := re.search(group, f"{name}."))), None)
        if isinstance(module, (nn.Linear, nn.Conv2d)) and found:
            members.setdefault(found.group(), []).append(module)
    return members


@torch.inference_mode()
def rank(
    model: STLM, images: Sequence[np.ndarray], groups: Sequence[str] = LINEAR, inputs: bool = True
) -> list[tuple[str, float]]:
    """Return each group's name and the map's mean difference with that group alone in int8, the largest first.

    `images` are uint8 S×S×3 each, `groups` regular expressions. `inputs` quantizes the inputs of linear layers, too.
    """
    copied = copy.deepcopy(model).eval()
    members = grouped(copied, groups)
    chosen = [torch.from_numpy(image)[None] for image in images[:: max(1, len(images) // IMAGES)][:IMAGES]]
    expected = [copied(image).anomaly_map for image in chosen]
    sensitivity = {}
    with step("ranking layers by what int8 does to the map", len(members)) as advance:
        for name, layers in members.items():
            weights = [layer.weight.data for layer in layers]
            linear = [layer for layer in layers if inputs and isinstance(layer, nn.Linear)]
            hooks = [layer.register_forward_pre_hook(_in_uint8) for layer in linear]
            for layer in layers:
                layer.weight.data = _in_int8(layer.weight.data)
            maps = [copied(image).anomaly_map for image in chosen]
            differences = [(a - b).abs().mean().item() for a, b in zip(maps, expected, strict=True)]
            sensitivity[name] = float(np.mean(differences))
            for layer, weight in zip(layers, weights, strict=True):
                layer.weight.data = weight
            for hook in hooks:
                hook.remove()
            advance()
    return sorted(sensitivity.items(), key=lambda item: (-item[1], item[0]))


def _in_int8(weight: Tensor) -> Tensor:
    rows = weight.flatten(1)
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
    return ((rows / scale).round() * scale).reshape(weight.shape)


def _in_uint8(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    (x,) = inputs
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = ((high - low) / 255).clamp_min(1e-12)
    return ((x - low) / scale).round() * scale + low
