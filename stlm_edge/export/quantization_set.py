"""The calibration set: what a quantization learns from, normal pictures and pseudo-anomalies made on them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stlm_edge.data.batches import Pictures
from stlm_edge.data.pseudo_anomalies import KINDS, make_pseudo_anomaly
from stlm_edge.data.textures import any_of, patches_of, procedural
from stlm_edge.errors import UsageError
from stlm_edge.images import list_pictures

PICTURES = 100
FEWEST = 10  # normal ones in a folder: the ranges of fewer are luck
SEED = 0
_SALT = 1_000_039


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """`pictures`, uint8 S×S×3 each, of which the first `normal` are as they were taken; the rest have a defect made."""

    pictures: Sequence[np.ndarray]
    normal: int

    def provenance(self) -> dict[str, Any]:
        """What the manifest keeps of it."""
        digest = hashlib.sha256()
        for picture in self.pictures:
            digest.update(picture.tobytes())
        anomalous = len(self.pictures) - self.normal
        return {"normal": self.normal, "pseudo_anomalous": anomalous, "seed": SEED, "sha256": digest.hexdigest()}


def choose(folder: Path, most: int) -> list[Path]:
    """At most `most` pictures of a folder of normal ones, by name: the same ones every time, from all over the folder.

    Raises UsageError when the folder can't be read or has fewer than FEWEST.
    """
    try:
        found = list_pictures(folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error.strerror}); expected a folder of pictures") from None
    if len(found) < FEWEST:
        raise UsageError(
            f"{folder}: {len(found)} pictures in it, expected at least {FEWEST} normal ones to calibrate on; add more"
        )
    return [found[index] for index in sorted(np.random.default_rng(SEED).permutation(len(found))[:most])]


def calibration_set(folder: Path, size: int) -> CalibrationSet:
    """PICTURES of side `size`: at most half are from the folder, the others are pseudo-anomalies of every kind on them.

    Raises UsageError like `choose`, and for a picture that can't be read.
    """
    normal = Pictures(choose(folder, PICTURES // 2), size)
    source = any_of(procedural, patches_of(normal))
    anomalous = [
        make_pseudo_anomaly(
            normal[number % len(normal)], np.random.default_rng([SEED, _SALT, number]), source, tuple(KINDS)
        )[0]
        for number in range(PICTURES - len(normal))
    ]
    return CalibrationSet([*normal, *anomalous], len(normal))
