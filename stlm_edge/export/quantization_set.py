"""The quantization set: normal images and pseudo-anomalies made on them, which activation ranges are measured on."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from stlm_edge.data.batches import Images
from stlm_edge.data.pseudo_anomalies import KINDS, make_pseudo_anomaly
from stlm_edge.data.textures import any_of, patches_of, procedural
from stlm_edge.errors import UsageError
from stlm_edge.images import list_images

IMAGES = 100
FEWEST = 10  # normal images in a folder: ranges measured on fewer vary too much
SEED = 0
_SALT = 1_000_039


def choose(folder: Path, most: int) -> list[Path]:
    """Return at most `most` images of a folder, chosen at random but the same every time, sorted by name.

    Raises UsageError when the folder can't be read or has fewer than FEWEST images.
    """
    try:
        images = list_images(folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error.strerror}); expected a folder of images") from None
    if len(images) < FEWEST:
        raise UsageError(
            f"{folder}: {len(images)} images in it, expected at least {FEWEST} normal ones for quantization; add more"
        )
    return [images[index] for index in sorted(np.random.default_rng(SEED).permutation(len(images))[:most])]


def quantization_set(folder: Path, size: int) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Return IMAGES images, uint8 S×S×3: up to half are the folder's, the rest pseudo-anomalies of every kind on them.

    Also returns their provenance for the manifest. Raises UsageError like `choose`, and for an unreadable image.
    """
    normal = Images(choose(folder, IMAGES // 2), size)
    source = any_of(procedural, patches_of(normal))
    anomalous = [
        make_pseudo_anomaly(
            normal[number % len(normal)], np.random.default_rng([SEED, _SALT, number]), source, tuple(KINDS)
        )[0]
        for number in range(IMAGES - len(normal))
    ]
    images = [*normal, *anomalous]
    digest = hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest()
    return images, {"normal": len(normal), "pseudo_anomalous": len(anomalous), "seed": SEED, "sha256": digest}
