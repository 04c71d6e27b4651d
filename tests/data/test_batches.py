"""Samples of the two-stream training are determined by seed and position, and split among processes."""

import numpy as np
import pytest

from stlm_edge.data.batches import AnomalousImages, batches
from stlm_edge.data.textures import procedural

SIZE = 64


@pytest.fixture
def images():
    return [np.full((SIZE, SIZE, 3), 10 * number, np.uint8) for number in range(1, 11)]


def samples(images, **changes):
    return AnomalousImages(images, procedural, **{"seed": 3, **changes})


def test_samples_are_determined_by_seed_and_position(images):
    for first, second in zip(samples(images)[17], samples(images)[17], strict=True):
        np.testing.assert_array_equal(first, second)
    assert any(not np.array_equal(samples(images)[n][0], samples(images, seed=4)[n][0]) for n in range(8))


def test_every_epoch_shuffles_all_images(images):
    shown = [[int(samples(images)[10 * epoch + place][1][0, 0, 0]) for place in range(10)] for epoch in range(2)]
    assert sorted(shown[0]) == sorted(shown[1]) == [10 * number for number in range(1, 11)]
    assert shown[0] != shown[1]


def test_half_of_the_samples_change_within_their_mask(images):
    changed = 0
    for position in range(200):
        image, clean, mask = samples(images)[position]
        np.testing.assert_array_equal(image[~mask], clean[~mask])
        changed += mask.any()
    assert 75 < changed < 125


def test_batches_do_not_depend_on_the_number_of_processes(images):
    alone = list(batches(samples(images), 2, 6, batch=4, rank=0, processes=1, workers=0))
    shares = [list(batches(samples(images), 2, 6, 4, rank, 2, 0)) for rank in range(2)]
    assert len(alone) == 4
    for whole, *parts in zip(alone, *shares, strict=True):
        for index in range(3):
            np.testing.assert_array_equal(whole[index], np.concatenate([part[index] for part in parts]))


def test_batches_do_not_depend_on_the_number_of_workers(images):
    alone = batches(samples(images), 0, 3, 2, 0, 1, 0)
    helped = batches(samples(images), 0, 3, 2, 0, 1, workers=2)
    for first, second in zip(alone, helped, strict=True):
        np.testing.assert_array_equal(first[0], second[0])


def test_only_images_of_rotated_categories_are_rotated(images):
    images = [np.random.default_rng(n).integers(0, 255, (SIZE, SIZE, 3), np.uint8) for n in range(4)]
    originals = {image.tobytes() for image in images}
    assert all(samples(images, rotate_as="capsule")[n][1].tobytes() in originals for n in range(8))
    assert not any(samples(images, rotate_as="hazelnut")[n][1].tobytes() in originals for n in range(8))
