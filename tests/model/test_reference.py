"""The network gives the published implementation's numbers for the same weights (1024×1024, float32)."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import REFERENCE, SIZE, fill, published_image

from stlm_edge.errors import UsageError
from stlm_edge.model import checkpoint, stlm
from stlm_edge.training.losses import cosine_loss, focal_loss, l1_loss


@pytest.fixture(scope="module")
def shapes():
    return json.loads((REFERENCE / "tensors.json").read_text())


@pytest.fixture(scope="module")
def expected():
    return np.load(REFERENCE / "expected_1024.npz")


@pytest.fixture(scope="module")
def answers(shapes):
    # One thread: the decoder amplifies what another order of summation changes (1e-6) a thousandfold.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = checkpoint.from_published({name: fill(name, shape) for name, shape in shapes.items()}, SIZE)
    image, mask = published_image()
    with torch.inference_mode():
        plain, denoising = model.streams(model.normalise(image))
        fa_map = model.fa(plain, denoising).sigmoid()
        answer = model(image)
    torch.set_num_threads(threads)
    return {"model": model, "plain": plain, "denoising": denoising, "fa_map": fa_map, "answer": answer, "mask": mask}


def test_parameters_are_the_published_ones(answers):
    assert sum(parameter.numel() for parameter in answers["model"].parameters()) == 16_651_049


@pytest.mark.parametrize("stream", ["plain", "denoising"])
@pytest.mark.parametrize("k", [1, 2])
def test_features(answers, expected, stream, k):
    found = answers[stream][k - 1][:, ::16, ::8, ::8].numpy()
    assert np.abs(found - expected[f"{stream}_{k}"]).max() <= 1e-3


def test_maps(answers, expected):
    assert np.abs(answers["fa_map"].numpy() - expected["fa_map"]).max() <= 1e-4
    tlm = stlm.tlm_map(answers["plain"], answers["denoising"])
    assert np.abs(tlm.numpy() - expected["tlm_map"]).max() <= 1e-4
    upsampled = F.interpolate(tlm, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    assert abs(stlm.score(upsampled).item() - expected["tlm_score"].item()) <= 1e-4


def test_an_image_gives_map_and_score(answers, expected):
    anomaly_map, score = answers["answer"]
    assert anomaly_map.shape == (1, 1, SIZE, SIZE)
    upsampled = F.interpolate(
        torch.from_numpy(expected["fa_map"]), size=(SIZE, SIZE), mode="bilinear", align_corners=False
    )
    assert (anomaly_map - upsampled).abs().max() <= 1e-4
    assert abs(score.item() - expected["fa_score"].item()) <= 1e-4


def test_losses(answers, expected):
    assert abs(cosine_loss(answers["plain"], answers["denoising"]).item() - expected["cosine_plain_denoising"]) <= 1e-5
    fa_map, mask = torch.from_numpy(expected["fa_map"]), answers["mask"]
    assert abs(focal_loss(fa_map, mask).item() - expected["focal"]) <= 1e-5
    assert abs(l1_loss(fa_map, mask).item() - expected["l1"]) <= 1e-5


def test_published_weights_of_another_network_are_refused(shapes):
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    missing = {name: array for name, array in arrays.items() if name != "fa.head.4.bias"}
    with pytest.raises(UsageError, match=r"fa\.head\.4\.bias: found nothing, expected F32 \[1\]"):
        checkpoint.from_published(missing, 224)
    with pytest.raises(UsageError, match=r"fa\.head\.4\.bias: found F32 \[2\], expected F32 \[1\]"):
        checkpoint.from_published(arrays | {"fa.head.4.bias": np.zeros(2, np.float32)}, 224)
    with pytest.raises(UsageError, match="size 100: expected a multiple of 32"):
        checkpoint.from_published(arrays, 100)
