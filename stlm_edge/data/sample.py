"""What a data set is made of."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stlm_edge.images import read_mask, read_picture


@dataclass(frozen=True)
class Sample:
    """One picture; `defect` is the name of its folder, "good" for a normal one. `mask` is None where there is none."""

    picture: Path
    anomalous: bool
    defect: str
    mask: Path | None


def mask_of(sample: Sample, size: int, picture_size: tuple[int, int] | None = None) -> np.ndarray:
    """Where the sample is anomalous, bool size×size; nowhere without a mask file.

    `picture_size`, width and height, is read from the picture where it isn't given. Raises UsageError as `read_mask`.
    """
    if sample.mask is None:
        return np.zeros((size, size), bool)
    return read_mask(sample.mask, size, picture_size or read_picture(sample.picture).size)


def normal(picture: Path) -> Sample:
    return Sample(picture, False, "good", None)
