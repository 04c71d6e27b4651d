"""Answers to clean images: computed once, the same however often and in whatever company they are asked for."""

import numpy as np
import pytest
import torch

from stlm_edge.training import clean_targets
from stlm_edge.training.clean_targets import CleanTargets

CPU = torch.device("cpu")


class Teacher:
    def __init__(self):
        self.asked = 0

    def __call__(self, image):
        self.asked += 1
        level = torch.full((1, 256, 2, 2), float(image[0, 0, 0]))
        return level, -level


@pytest.fixture
def images():
    return [np.full((32, 32, 3), level, np.uint8) for level in (1, 2, 3)]


def test_each_image_is_asked_for_once(images):
    teacher = Teacher()
    targets = CleanTargets(teacher)
    for _ in range(3):
        first, second = targets(images, CPU)
    assert teacher.asked == 3
    assert first[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert second[:, 0, 0, 0].tolist() == [-1, -2, -3]
    assert first.dtype == torch.float32


def test_what_does_not_fit_is_computed_again_and_still_right(images, monkeypatch):
    monkeypatch.setattr(clean_targets, "CACHED_BYTES", 2 * 2 * 256 * 4)  # one image's two maps
    teacher = Teacher()
    targets = CleanTargets(teacher)
    for _ in range(2):
        first, _ = targets(images, CPU)
    assert teacher.asked == 5
    assert first[:, 0, 0, 0].tolist() == [1, 2, 3]


def test_where_no_image_comes_twice_nothing_is_kept(images):
    teacher = Teacher()
    targets = CleanTargets(teacher, keep=False)
    targets(images, CPU)
    targets(images, CPU)
    assert teacher.asked == 6
