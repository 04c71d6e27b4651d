"""Images are rotated as far as their category allows."""

import numpy as np
import pytest
from PIL import Image

from stlm_edge.data.rotation import ANY_SIDE_UP, SLIGHT, is_rotated, rotated

SIZE = 64
MVTEC_AD = {
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut"),
    *("pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper"),
}
UPRIGHT = {"capsule", "metal_nut", "pill", "toothbrush", "transistor"}


def pointer():
    """Return a white image with a black bar from the middle to the right."""
    image = np.full((SIZE, SIZE, 3), 255, np.uint8)
    image[30:34, 32:60] = 0
    return image


def direction(image):
    """Return the direction of the bar in degrees."""
    rows, columns = np.nonzero(image.mean(axis=2) < 60)
    return np.degrees(np.arctan2(rows.mean() - 31.5, columns.mean() - 31.5))


def turns(category):
    rng = np.random.default_rng(0)
    return np.array([direction(rotated(pointer(), rng, category)) for _ in range(80)])


def test_every_category_of_mvtec_ad_has_one_rule():
    assert ANY_SIDE_UP | SLIGHT | UPRIGHT == MVTEC_AD
    assert len(ANY_SIDE_UP) + len(SLIGHT) + len(UPRIGHT) == len(MVTEC_AD)


@pytest.mark.parametrize("category", sorted(ANY_SIDE_UP))
def test_any_side_up_categories_rotate_by_quarter_turns_and_5_degrees(category):
    angles = turns(category)
    quarter = np.round(angles / 90) % 4
    assert {*quarter} == {0, 1, 2, 3}
    rest = angles - 90 * np.round(angles / 90)
    assert 3 < np.abs(rest).max() < 6.5
    assert rest.min() < 0 < rest.max()


@pytest.mark.parametrize("category", sorted(SLIGHT))
def test_slight_categories_rotate_by_5_degrees(category):
    angles = turns(category)
    assert 3 < np.abs(angles).max() < 6.5
    assert angles.min() < 0 < angles.max()


@pytest.mark.parametrize("category", [*sorted(UPRIGHT), "pcb1", None])
def test_upright_and_unknown_categories_are_not_rotated(category):
    assert np.array_equal(rotated(pointer(), np.random.default_rng(0), category), pointer())


def test_corners_are_grey_and_the_input_is_unchanged():
    image = pointer()
    corners = [rotated(image, np.random.default_rng(seed), "wood")[[0, 0, -1, -1], [0, -1, 0, -1]] for seed in range(9)]
    assert any((corner == 114).all(axis=1).any() for corner in corners)
    assert np.array_equal(image, pointer())


def test_rotation_is_reproducible():
    image = np.asarray(Image.effect_noise((SIZE, SIZE), 50).convert("RGB"))
    first, second, other = (rotated(image, np.random.default_rng(seed), "tile") for seed in (1, 1, 2))
    assert (first.dtype, first.shape, first.flags["C_CONTIGUOUS"]) == (np.uint8, (SIZE, SIZE, 3), True)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_is_rotated_matches_the_categories_that_change():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for category in (*ANY_SIDE_UP, *SLIGHT, *UPRIGHT, "pcb1", None):
        changed = not np.array_equal(rotated(image, np.random.default_rng(1), category), image)
        assert is_rotated(category) == changed, category
