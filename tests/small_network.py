"""A small network with every kind of operator that the published one has."""

from dataclasses import replace

import torch
from torch import nn

from stlm_edge.model import STLM, ModelConfig
from stlm_edge.model.tiny_vit import LayerNorm2d

SMALL = ModelConfig(
    size=64,
    depths=(1, 1, 1, 1),
    embed_dims=(16, 32, 32, 48),
    head_width=16,
    decoder_dim=32,
    decoder_mlp_dim=64,
    fa_dim=24,
)
"""0.25M parameters, 1 MB."""


def small_network(images: torch.Tensor, config: ModelConfig = SMALL, even: bool = False) -> STLM:
    """All kinds of operators, one block per stage; batch norms and the map's spread fitted to `images`, B×S×S×3."""
    torch.manual_seed(0)
    model = STLM(replace(config, size=images.shape[1]))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        if isinstance(module, LayerNorm2d) and even:
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3 * module.in_features**-0.5)
            nn.init.normal_(module.bias, std=0.1)
    with torch.no_grad():
        for encoder in (model.plain, model.denoising):
            for name, parameter in encoder.named_parameters():
                if name.endswith("attention_biases"):
                    nn.init.normal_(parameter)
        model.train()(images)
        model.eval()
        logits = model.fa(*model.streams(model.normalise(images)))
        last = model.fa.head[-1]
        gain = (0.05 if even else 3) / logits.std()
        last.weight.mul_(gain)
        last.bias.copy_((last.bias - logits.mean()) * gain - 2)
    return model
