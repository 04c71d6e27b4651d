"""Parts are turned as far as their category allows."""

import numpy as np
import pytest
from PIL import Image

from stlm_edge.data.rotation import ANY_SIDE_UP, SLIGHT, is_turned, rotated

SIZE = 64
MVTEC_AD = {
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut"),
    *("pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper"),
}
UPRIGHT = {"capsule", "metal_nut", "pill", "toothbrush", "transistor"}


def pointer():
    """White, a black bar from the middle to the right."""
    image = np.full((SIZE, SIZE, 3), 255, np.uint8)
    image[30:34, 32:60] = 0
    return image


def direction(image):
    """Where the bar points to, degrees."""
    rows, columns = np.nonzero(image.mean(axis=2) < 60)
    return np.degrees(np.arctan2(rows.mean() - 31.5, columns.mean() - 31.5))


def turns(category):
    rng = np.random.default_rng(0)
    return np.array([direction(rotated(pointer(), rng, category)) for _ in range(80)])


def test_every_category_of_mvtec_ad_has_one_rule():
    assert ANY_SIDE_UP | SLIGHT | UPRIGHT == MVTEC_AD
    assert len(ANY_SIDE_UP) + len(SLIGHT) + len(UPRIGHT) == len(MVTEC_AD)


@pytest.mark.parametrize("category", sorted(ANY_SIDE_UP))
def test_any_side_up_and_a_little_more(category):
    found = turns(category)
    quarter = np.round(found / 90) % 4
    assert {*quarter} == {0, 1, 2, 3}
    rest = found - 90 * np.round(found / 90)
    assert 3 < np.abs(rest).max() < 6.5
    assert rest.min() < 0 < rest.max()


@pytest.mark.parametrize("category", sorted(SLIGHT))
def test_slight(category):
    found = turns(category)
    assert 3 < np.abs(found).max() < 6.5
    assert found.min() < 0 < found.max()


@pytest.mark.parametrize("category", [*sorted(UPRIGHT), "pcb1", None])
def test_upright_and_unknown_parts_stay(category):
    assert np.array_equal(rotated(pointer(), np.random.default_rng(0), category), pointer())


def test_corners_are_grey_and_the_image_itself_is_left_alone():
    image = pointer()
    corners = [rotated(image, np.random.default_rng(seed), "wood")[[0, 0, -1, -1], [0, -1, 0, -1]] for seed in range(9)]
    assert any((corner == 114).all(axis=1).any() for corner in corners)
    assert np.array_equal(image, pointer())


def test_the_generator_decides_the_turn():
    image = np.asarray(Image.effect_noise((SIZE, SIZE), 50).convert("RGB"))
    first, second, other = (rotated(image, np.random.default_rng(seed), "tile") for seed in (1, 1, 2))
    assert (first.dtype, first.shape, first.flags["C_CONTIGUOUS"]) == (np.uint8, (SIZE, SIZE, 3), True)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_is_turned_says_which_categories_change():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for category in (*ANY_SIDE_UP, *SLIGHT, *UPRIGHT, "pcb1", None):
        changed = not np.array_equal(rotated(image, np.random.default_rng(1), category), image)
        assert is_turned(category) == changed, category
