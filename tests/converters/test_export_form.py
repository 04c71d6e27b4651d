"""The export form computes what the network computes, on every grid, and does not change the network."""

from dataclasses import replace

import pytest
import torch
from small_network import SMALL, small_network
from torch import Tensor, nn

from stlm_edge.converters.export_form import export_form, fold_batch_norms
from stlm_edge.model import STLM, ModelConfig


def network(size: int, config: ModelConfig = SMALL) -> tuple[STLM, Tensor]:
    """Return a network whose parameters all differ from their initial values, and its training images."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (4, 3, size // 8, size // 8), generator=generator).float()
    images = nn.functional.interpolate(coarse, scale_factor=8.0, mode="bilinear").permute(0, 2, 3, 1).byte()
    model = small_network(images, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model, images


@pytest.mark.parametrize("size", [224, 64, 96])  # windows that tile every grid, that are larger than it, that overlap
def test_export_form_computes_the_models_map(size: int) -> None:
    model, images = network(size)
    with torch.no_grad():
        expected, found = model(images[:1]), export_form(model)(images[:1])
    assert expected.anomaly_map.std() > 0.01
    assert (found.anomaly_map - expected.anomaly_map).abs().max() < 1e-4
    assert (found.score - expected.score).abs().max() < 1e-4


def test_embeddings_and_tokens_of_deeper_stages_agree() -> None:
    model, images = network(64, replace(SMALL, depths=(2, 2, 2, 2)))
    form = export_form(model)
    with torch.no_grad():
        (plain, plain_tokens), (_, denoising_tokens) = model.streams(model.normalise(images[:1]))
        x = images[:1].permute(0, 3, 1, 2) - model.pixel_mean
        embeddings = torch.stack([form.plain(x), form.denoising(x)])
        tokens = form.mask_decoder(embeddings)
    for found, expected in (
        (embeddings[0], plain),
        (tokens[0], plain_tokens),
        (tokens[1], denoising_tokens),
    ):
        assert (found - expected[0].flatten(1).T).abs().max() < 1e-3 * expected.abs().max()


def test_export_form_does_not_change_the_model() -> None:
    model, _ = network(64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    form = export_form(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for made in (form, fold_batch_norms(model)):
        assert not [module for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
