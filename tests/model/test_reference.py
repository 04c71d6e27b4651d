"""The network reproduces the published implementation's results for the same weights (1024×1024, float32)."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import REFERENCE, SIZE, assert_published_maps, fill, published_image

from stlm_edge.errors import UsageError
from stlm_edge.model import checkpoint
from stlm_edge.training.step import cosine_loss, focal_loss


@pytest.fixture(scope="module")
def shapes():
    return json.loads((REFERENCE / "tensors.json").read_text())


@pytest.fixture(scope="module")
def expected():
    return np.load(REFERENCE / "expected_1024.npz")


@pytest.fixture(scope="module")
def published(shapes):
    """Return the network with the weights of the reference."""
    return checkpoint.from_published({name: fill(name, shape) for name, shape in shapes.items()}, SIZE)


@pytest.fixture(scope="module")
def outputs(published):
    """Return the outputs of one pass, and the inputs and output of feature aggregation."""
    inner = {}
    hook = published.fa.register_forward_hook(
        lambda _, maps, logits: inner.update(plain=maps[0], denoising=maps[1], fa_map=logits.sigmoid())
    )
    with torch.inference_mode():
        anomaly_map, score = published(published_image()[0])
    hook.remove()
    return inner | {"anomaly_map": anomaly_map, "score": score}


def test_parameters_are_the_published_ones(published):
    assert sum(parameter.numel() for parameter in published.parameters()) == 16_651_049


@pytest.mark.parametrize("stream", ["plain", "denoising"])
def test_features_match_the_reference(outputs, expected, stream):
    assert_published_maps(outputs[stream], stream)


@pytest.mark.slow
def test_features_in_float64_differ_only_by_rounding_of_the_reference(shapes, expected):
    """Measured on any processor: 1.0e-3 (plain) and 2.1e-3 (denoising), rounding errors of the float32 reference."""
    exact = checkpoint.from_published({name: fill(name, shape) for name, shape in shapes.items()}, SIZE).double()
    with torch.inference_mode():
        streams = exact.streams(exact.normalise(published_image()[0]))
    for stream, maps in zip(("plain", "denoising"), streams, strict=True):
        assert_published_maps(maps, stream, largest=3e-3)


def test_feature_aggregation_matches_the_reference(outputs, expected):
    """Measured: 5e-7 at most, in float64 and with AVX-512, AVX2 and SSE4 kernels; a batch norm's eps of 1e-6: 4e-6."""
    assert np.abs(outputs["fa_map"].numpy() - expected["fa_map"]).max() <= 2e-6


def test_distance_map_matches_the_reference(outputs, expected):
    """Π_k (1 − cos(plain_k, denoising_k)); median measured: 3e-6 to 7e-6; with a batch norm's eps of 1e-6: 5e-5."""
    pairs = zip(outputs["plain"], outputs["denoising"], strict=True)
    distances = [1 - F.cosine_similarity(plain, denoising, dim=1) for plain, denoising in pairs]
    difference = np.abs((distances[0] * distances[1])[:, None].numpy() - expected["tlm_map"])
    assert np.median(difference) <= 2e-5
    assert difference.max() <= 1e-2


def test_map_and_score_match_the_reference(outputs, expected):
    assert outputs["anomaly_map"].shape == (1, 1, SIZE, SIZE)
    upsampled = F.interpolate(
        torch.from_numpy(expected["fa_map"]), size=(SIZE, SIZE), mode="bilinear", align_corners=False
    )
    assert (outputs["anomaly_map"] - upsampled).abs().max() <= 1e-5
    assert abs(outputs["score"].item() - expected["fa_score"].item()) <= 1e-5


def test_losses_match_the_reference(outputs, expected):
    assert abs(cosine_loss(outputs["plain"], outputs["denoising"]).item() - expected["cosine_plain_denoising"]) <= 1e-5
    fa_map, mask = torch.from_numpy(expected["fa_map"]), published_image()[1]
    assert abs(focal_loss(fa_map, mask).item() - expected["focal"]) <= 1e-5
    assert abs(F.l1_loss(fa_map, mask).item() - expected["l1"]) <= 1e-5


def test_weights_of_other_network_are_refused(shapes):
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    missing = {name: array for name, array in arrays.items() if name != "fa.head.4.bias"}
    with pytest.raises(UsageError, match=r"fa\.head\.4\.bias: found nothing, expected F32 \[1\]"):
        checkpoint.from_published(missing, 224)
    with pytest.raises(UsageError, match=r"fa\.head\.4\.bias: found F32 \[2\], expected F32 \[1\]"):
        checkpoint.from_published(arrays | {"fa.head.4.bias": np.zeros(2, np.float32)}, 224)
    with pytest.raises(UsageError, match="size 100: expected a multiple of 32"):
        checkpoint.from_published(arrays, 100)
