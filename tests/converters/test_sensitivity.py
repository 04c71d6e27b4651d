"""The ranking of layers by what int8 does to the map."""

from pathlib import Path

import numpy as np
import torch

from stlm_edge.converters.sensitivity import CONVOLUTIONS, FIRST_CONVOLUTIONS, LINEAR, rank
from stlm_edge.model import checkpoint


def test_layer_with_outliers_is_most_sensitive_and_model_is_not_changed(small_checkpoint: Path) -> None:
    model = checkpoint.load(small_checkpoint).model
    changed = model.plain.layers[2].blocks[0].mlp.fc2
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(2)]
    with torch.no_grad():  # one weight of a row is far larger than the others, which all become 0 in int8
        changed.weight.mul_(20)
        changed.weight[:, 0] *= 1000
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = rank(model, images)
    assert found[0][0] == "plain.layers.2.blocks.0.mlp.fc2"
    assert found == rank(model, images)
    assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)
    assert found[-1][1] > 0
    assert {name.split(".")[0] for name, _ in found} == {"plain", "denoising", "mask_decoder"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_groups_of_convolutions_and_weights_alone_are_ranked(small_checkpoint: Path) -> None:
    model = checkpoint.load(small_checkpoint).model
    changed = model.denoising.neck[0]
    images = [np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)]
    with torch.no_grad():
        changed.weight[:, 0] *= 1000
    found = rank(model, images, LINEAR + CONVOLUTIONS + FIRST_CONVOLUTIONS, inputs=False)
    assert found[0][0] == "denoising.neck."
    layers = {name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))}
    never_run = {name for name in layers if "final_attn" in name}
    begins = tuple(group for group, _ in found)
    assert {name for name in layers if f"{name}.".startswith(begins)} == layers - never_run
