"""Validation on held-out images: the same images each time, and metrics that rank a good model above a useless one."""

import numpy as np
import pytest
import torch

from stlm_edge.data.textures import procedural
from stlm_edge.model.stlm import Outputs
from stlm_edge.training.validation import Validation


@pytest.fixture
def validation():
    return Validation([np.full((64, 64, 3), 100, np.uint8)] * 6, procedural, seed=0)


class Model:
    """A model whose map is the distance from the grey of the normal images, or constant."""

    pixel_mean = torch.zeros(1)

    def __init__(self, blind):
        self.blind = blind

    def __call__(self, image):
        distance = (image.float() - 100).abs().amax(dim=-1)[:, None] / 255
        anomaly_map = distance * 0 if self.blind else distance
        return Outputs(anomaly_map, anomaly_map.amax(dim=(1, 2, 3)))


def test_images_alternate_and_are_the_same_every_time(validation):
    first, second = list(validation), list(validation)
    assert [bool(mask.any()) for _, mask in first] == [False, True] * 6
    for (one, _), (two, _) in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)


def test_metrics_rank_a_seeing_model_above_a_blind_one(validation):
    seeing, sheet = validation.measure(Model(blind=False))
    blind, _ = validation.measure(Model(blind=True))
    assert seeing["image_auroc"] == 1
    assert seeing["pixel_auroc"] > 0.98
    assert blind == {"image_auroc": 0.5, "pixel_auroc": 0.5}
    assert sheet.shape == (4 * 64, 3 * 64, 3)
