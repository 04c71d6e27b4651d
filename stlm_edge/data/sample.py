"""Samples of a data set."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stlm_edge.images import read_image, read_mask


@dataclass(frozen=True)
class Sample:
    """One image; `defect` is the name of its folder, "good" for a normal image. `mask` is None without a mask file."""

    image: Path
    anomalous: bool
    defect: str
    mask: Path | None


def mask_of(sample: Sample, size: int, image_size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the sample's anomalous pixels, bool size×size; none without a mask file.

    `image_size`, width and height, is read from the image if not given. Raises UsageError as `read_mask` does.
    """
    if sample.mask is None:
        return np.zeros((size, size), bool)
    return read_mask(sample.mask, size, image_size or read_image(sample.image).size)


def normal(image: Path) -> Sample:
    """Return the sample of a normal image."""
    return Sample(image, False, "good", None)
