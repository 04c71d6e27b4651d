"""Rotation augmentation by MVTec AD category, as published for STLM.

STLM's training derives from DeSTSeg's (X. Zhang et al., CVPR 2023; github.com/apple/ml-destseg, train.py and
data/mvtec_dataset.py): some categories are turned by a random multiple of 90°, then by up to ±5°; some by up to ±5°
only; the rest not at all, their orientation being part of what is normal. Empty corners are filled with grey 114.
STLM's own lists name grid, screw and transistor several times over; for these three DeSTSeg's decision holds. A
category is known by its name alone: --category, or the data folder's own name.
"""

import numpy as np
from PIL import Image

ANY_SIDE_UP = frozenset({"bottle", "carpet", "grid", "hazelnut", "leather", "screw", "tile"})
SLIGHT = frozenset({"cable", "wood", "zipper"})

MOST_DEGREES = 5.0
FILL = (114, 114, 114)


def is_turned(category: str | None) -> bool:
    """Whether `rotated` changes images of that category: then none comes twice."""
    return category in ANY_SIDE_UP or category in SLIGHT


def rotated(image: np.ndarray, rng: np.random.Generator, category: str | None) -> np.ndarray:
    """The image, uint8 S×S×3, turned at random as far as its category allows.

    Categories of other data sets are left alone: whether a turned part is still a normal one, no image tells.
    """
    if category in ANY_SIDE_UP:
        image = np.rot90(image, int(rng.integers(4)))
    elif category not in SLIGHT:
        return image
    degrees = rng.uniform(-MOST_DEGREES, MOST_DEGREES)
    turned = Image.fromarray(np.ascontiguousarray(image)).rotate(degrees, Image.Resampling.BILINEAR, fillcolor=FILL)
    return np.asarray(turned)
