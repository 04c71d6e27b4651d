"""The network at any size: input layouts, attention biases and the initial feature aggregation."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_network import SMALL

from stlm_edge.model import STLM
from stlm_edge.model.feature_aggregation import FeatureAggregation


@pytest.mark.parametrize("size", [64, 96, 224])
def test_any_multiple_of_32_is_a_valid_size(size):
    model = STLM(replace(SMALL, size=size)).eval()
    image = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        anomaly_map, score = model(image)
        assert torch.equal(anomaly_map, model(image.permute(0, 3, 1, 2)).anomaly_map)
    assert anomaly_map.shape == (2, 1, size, size)
    highest = anomaly_map.flatten(1).sort(dim=1).values[:, -100:].mean(dim=1)
    assert torch.allclose(score, highest)


def test_attention_biases_are_never_stale():
    """A cached copy would miss loaded weights, casts and `eval()`."""
    torch.manual_seed(0)
    model = STLM(SMALL).eval()
    image = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        before = model.plain(model.normalise(image))
        state = {name: t + 0.5 * torch.randn_like(t) for name, t in model.state_dict().items() if "biases" in name}
        model.load_state_dict(state, strict=False)
        after = model.plain(model.normalise(image))
        assert not torch.allclose(before, after, atol=1e-4)
        assert torch.allclose(after, model.train().eval().plain(model.normalise(image)))
        double = model.double()
        assert torch.allclose(after.double(), double.plain(double.normalise(image)), atol=1e-4)


def test_final_token_attention_is_never_used():
    model = STLM(SMALL).eval()
    image = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    transformer = model.mask_decoder.transformer
    with torch.inference_mode():
        before = model(image).score
        for parameter in transformer.final_attn_token_to_image.parameters():
            parameter.fill_(float("nan"))
        assert torch.equal(before, model(image).score)


def test_initial_feature_aggregation_is_the_cosine_distance_of_image_embeddings():
    torch.manual_seed(0)
    aggregation = FeatureAggregation()
    aggregation.initialise_from_cosines()
    plain = torch.randn(4, 256, 14, 14), torch.randn(4, 256, 14, 14)
    noise = 0.1 + 0.5 * torch.rand(4, 1, 14, 14)
    denoising = tuple(p + noise * torch.randn_like(p) for p in plain)
    with torch.no_grad():
        logits = aggregation.train()(plain, denoising)
    distance = (1 - F.cosine_similarity(plain[0], denoising[0], dim=1))[:, None]
    correlation = torch.corrcoef(torch.stack([logits.flatten(), distance.flatten()]))[0, 1]
    assert correlation > 0.99
    assert logits.mean() == pytest.approx(-4, abs=0.2)
