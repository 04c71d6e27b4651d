"""Rotation augmentation by MVTec AD category, as published for STLM.

STLM's training derives from DeSTSeg's (X. Zhang et al., CVPR 2023; github.com/apple/ml-destseg, train.py and
data/mvtec_dataset.py): some categories are rotated by a random multiple of 90°, then by up to ±5°; some only by up to
±5°; the rest, whose normal images have a fixed orientation, not at all. Empty corners are filled with grey 114. STLM's
own lists are ambiguous for grid, screw and transistor; these three follow DeSTSeg. The category is the value of
--category or the name of the data folder.
"""

import numpy as np
from PIL import Image

ANY_SIDE_UP = frozenset({"bottle", "carpet", "grid", "hazelnut", "leather", "screw", "tile"})
SLIGHT = frozenset({"cable", "wood", "zipper"})

MOST_DEGREES = 5.0
FILL = (114, 114, 114)


def is_rotated(category: str | None) -> bool:
    """Return whether `rotated` changes images of a category, so that no image repeats."""
    return category in ANY_SIDE_UP or category in SLIGHT


def rotated(image: np.ndarray, rng: np.random.Generator, category: str | None) -> np.ndarray:
    """Rotate an image, uint8 S×S×3, at random as far as its category allows.

    Categories of other data sets are not rotated, since a rotated part may not be normal.
    """
    if category in ANY_SIDE_UP:
        image = np.rot90(image, int(rng.integers(4)))
    elif category not in SLIGHT:
        return image
    degrees = rng.uniform(-MOST_DEGREES, MOST_DEGREES)
    result = Image.fromarray(np.ascontiguousarray(image)).rotate(degrees, Image.Resampling.BILINEAR, fillcolor=FILL)
    return np.asarray(result)
