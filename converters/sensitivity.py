"""Which linear layers int8 hurts most: each group of them alone, by what it does to the anomaly map.

Simulated in torch, where nothing has to be converted: weights in int8 with a scale per output channel, inputs in uint8
with each picture's own range, as `quantization.py` writes them.
"""

import copy
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from stlm_edge.model import STLM
from stlm_edge.progress import step

PICTURES = 8  # of the calibration set, evenly from normal and pseudo-anomalous ones
GROUPS = (  # a group is what one of these finds in layers' names
    r"^(plain|denoising)\.layers\.\d+\.blocks\.\d+\.(attn\.|mlp\.fc1|mlp\.fc2)",
    r"^mask_decoder\.transformer\.layers\.\d+\.",
)


@torch.inference_mode()
def ranked(model: STLM, pictures: Sequence[np.ndarray]) -> list[tuple[str, float]]:
    """Names that the layers of a group begin with, and the map's mean difference with that group alone in int8.

    The most harmful first. `pictures`: uint8 S×S×3. `model` stays as it is.
    """
    copied = copy.deepcopy(model).eval()
    groups: dict[str, list[nn.Linear]] = {}
    for name, module in copied.named_modules():
        found = next((match for group in GROUPS if (match := re.search(group, name))), None)
        if isinstance(module, nn.Linear) and found:
            groups.setdefault(found.group(), []).append(module)
    chosen = [torch.from_numpy(picture)[None] for picture in pictures[:: max(1, len(pictures) // PICTURES)][:PICTURES]]
    expected = [copied(picture).anomaly_map for picture in chosen]
    damage = {}
    with step("ranking layers by what int8 does to the map", len(groups)) as advance:
        for name, layers in groups.items():
            kept = [layer.weight.data for layer in layers]
            hooks = [layer.register_forward_pre_hook(_in_uint8) for layer in layers]
            for layer in layers:
                layer.weight.data = _in_int8(layer.weight.data)
            maps = [copied(picture).anomaly_map for picture in chosen]
            damage[name] = float(
                np.mean([(one - other).abs().mean().item() for one, other in zip(maps, expected, strict=True)])
            )
            for layer, weight, hook in zip(layers, kept, hooks, strict=True):
                layer.weight.data = weight
                hook.remove()
            advance()
    return sorted(damage.items(), key=lambda item: (-item[1], item[0]))


def _in_int8(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
    return (weight / scale).round() * scale


def _in_uint8(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    (x,) = inputs
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = ((high - low) / 255).clamp_min(1e-12)
    return ((x - low) / scale).round() * scale + low
