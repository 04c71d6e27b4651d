"""Test images on their way to a device, and its maps on their way back: what both ends of the line agree on."""

import base64
import binascii
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stlm_edge.errors import JobError
from stlm_edge.files import sha256_of

_PART = 48_000  # characters of a map on one line


def digest_of(images: Sequence[Path]) -> str:
    """What these files, in their order, are called on a device."""
    return hashlib.sha256("".join(map(sha256_of, images)).encode()).hexdigest()


def name_of(number: int) -> str:
    """The n-th image's there, so that names in order are images in order."""
    return f"{number:06}"


def parts_of(anomaly_map: np.ndarray) -> Iterator[str]:
    """A map S×S as text in parts: float16, little-endian, zlib, base64."""
    text = base64.b64encode(zlib.compress(anomaly_map.astype("<f2").tobytes(), 1)).decode()
    return (text[begin : begin + _PART] for begin in range(0, len(text), _PART))


def longest(size: int) -> int:
    """Characters of a map's text, at most, however badly it compresses."""
    return 3 * size * size + 4096


def map_of(text: str, size: int) -> np.ndarray:
    """The map float32 S×S that such a text holds. Raises JobError for any other, and for values that aren't finite."""
    inflating = zlib.decompressobj()
    wanted = 2 * size * size
    try:
        data = inflating.decompress(base64.b64decode(text, validate=True), wanted + 1)
    except (binascii.Error, ValueError, zlib.error):
        raise JobError("a map that can't be unpacked") from None
    if len(data) != wanted or not inflating.eof:
        raise JobError(f"a map that isn't {size}×{size}")
    values = np.frombuffer(data, "<f2").reshape(size, size).astype(np.float32)
    if not np.isfinite(values).all():
        raise JobError("a map that isn't finite")
    return values
