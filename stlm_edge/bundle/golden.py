"""Golden images: a few real images with the trained model's float32 maps and scores, to check any runtime anywhere.

A bundle holds each as a PNG, to check decoding and resizing, and resized to S×S×3, to check the network alone.
"""

import dataclasses
import io
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stlm_edge import images
from stlm_edge.bundle.manifest import MAX_GOLDEN_BYTES, Golden, GoldenMap, GoldenTensor
from stlm_edge.errors import JobError, UsageError
from stlm_edge.verdict import is_anomalous

MAX_IMAGE_PIXELS = 1_000_000
_MAX_RAW_TENSOR_BYTES = 5_000_000  # for all raw tensors of a bundle; beyond it they are stored as PNG


@dataclass(frozen=True, eq=False)
class GoldenCandidate:
    """An image with the trained model's outputs: tensor uint8 S×S×3 as `images.load` returns it, map float32 S×S."""

    name: str
    image: Image.Image
    anomalous: bool
    tensor: np.ndarray
    map: np.ndarray
    score: float
    stride: int = 1
    offset: int = 0


@dataclass(frozen=True, eq=False)
class GoldenImage:
    """A golden image of a bundle: tensor uint8 S×S×3; map float32, the trained model's map at [offset::stride]."""

    name: str
    anomalous: bool
    image_path: Path
    tensor: np.ndarray
    map: np.ndarray
    stride: int
    offset: int
    score: float


def select_golden(candidates: Sequence[GoldenCandidate], threshold: float, count: int = 8) -> list[GoldenCandidate]:
    """Choose the images nearest to the threshold and farthest from it, on both sides and of both kinds.

    Returns `count` images in the order of their scores; the choice depends on names and scores alone. Raises JobError
    when there are fewer candidates, or none normal, or none anomalous.
    """
    normal = sum(not candidate.anomalous for candidate in candidates)
    if len(candidates) < count or normal in (0, len(candidates)):
        raise JobError(
            f"golden images: {normal} normal and {len(candidates) - normal} anomalous candidates, expected {count} "
            "in all and some of both kinds; add images"
        )
    ranked = sorted(candidates, key=lambda candidate: (abs(candidate.score - threshold), candidate.name))
    groups = [
        [candidate for candidate in ranked if not is_anomalous(candidate.score, threshold)],
        [candidate for candidate in ranked if is_anomalous(candidate.score, threshold)],
        [candidate for candidate in ranked if not candidate.anomalous],
        [candidate for candidate in ranked if candidate.anomalous],
    ]
    chosen: list[GoldenCandidate] = []
    for group, end in itertools.cycle(itertools.product(groups, (0, -1))):
        if len(chosen) == count:
            break
        if free := [candidate for candidate in group if candidate not in chosen]:
            chosen.append(free[end])
    return sorted(chosen, key=lambda candidate: (candidate.score, candidate.name))


def fit_golden(
    chosen: Sequence[GoldenCandidate], run: Callable[[np.ndarray], tuple[np.ndarray, float]]
) -> list[GoldenCandidate]:
    """Shrink images until each has at most MAX_IMAGE_PIXELS and all files together at most MAX_GOLDEN_BYTES.

    `run`, the trained model, computes their outputs again. Raises JobError when even the smallest images do not fit.
    """
    limit = float(min(MAX_IMAGE_PIXELS, max(each.image.width * each.image.height for each in chosen)))
    while True:
        fitted = [_shrink(candidate, limit) for candidate in chosen]
        files = encode(fitted)[1]
        total = sum(map(len, files.values()))
        if total <= MAX_GOLDEN_BYTES:
            break
        if limit < 32 * 32:
            size = len(chosen[0].tensor)
            raise JobError(f"golden images: {len(chosen)} at size {size} do not fit in {MAX_GOLDEN_BYTES} bytes")
        compressed = sum(len(content) for path, content in files.items() if path.endswith(".png"))
        target = (MAX_GOLDEN_BYTES - (total - compressed)) / compressed  # PNGs' bytes are about proportional to pixels
        limit *= min(0.8, max(0.2, 0.9 * target))
    for index, candidate in enumerate(fitted):
        if candidate is not chosen[index]:
            anomaly_map, score = run(candidate.tensor)
            fitted[index] = dataclasses.replace(candidate, map=anomaly_map, score=score)
    return fitted


def encode(candidates: Sequence[GoldenCandidate]) -> tuple[tuple[Golden, ...], dict[str, bytes]]:
    """Return the manifest's entries, and the content of each file by its path in the bundle."""
    entries, files = [], {}
    raw = sum(candidate.tensor.nbytes for candidate in candidates) <= _MAX_RAW_TENSOR_BYTES
    for number, candidate in enumerate(candidates, 1):
        size = len(candidate.tensor)
        if not np.array_equal(images.load(candidate.image, size), candidate.tensor):
            raise ValueError(f"golden image {candidate.name}: its tensor differs from its resized image")
        stride = max(1, size // 224)
        sampled = candidate.map[stride // 2 :: stride, stride // 2 :: stride]
        name = f"{number:02}-" + re.sub(r"[^A-Za-z0-9._\-]", "-", candidate.name)[:80]
        stem = f"golden/{number:02}"
        tensor_path = f"{stem}.rgb" if raw else f"{stem}-resized.png"
        files[f"{stem}.png"] = _png(np.asarray(candidate.image.convert("RGB")))
        files[tensor_path] = candidate.tensor.tobytes() if raw else _png(candidate.tensor)
        files[f"{stem}.f32"] = sampled.astype("<f4").tobytes()
        entries.append(
            Golden(
                name=name,
                anomalous=candidate.anomalous,
                image=f"{stem}.png",
                tensor=GoldenTensor(tensor_path, candidate.tensor.shape, "uint8", "raw" if raw else "png"),
                map=GoldenMap(f"{stem}.f32", sampled.shape, "float32", "little", stride, stride // 2),
                score=float(candidate.score),
            )
        )
    return tuple(entries), files


def decode(entry: Golden, folder: Path, read: Callable[[str], bytes]) -> GoldenImage:
    """Return the golden image of a manifest's entry; `read` returns the verified content of a listed file."""
    data = read(entry.tensor.file)
    if entry.tensor.encoding == "png":
        tensor = _read_png(data, folder / entry.tensor.file, side=entry.tensor.shape[0])
    else:
        tensor = np.frombuffer(data, np.uint8).reshape(entry.tensor.shape)
    path, sampled = folder / entry.image, entry.map
    values = np.frombuffer(read(sampled.file), "<f4").reshape(sampled.shape).astype(np.float32)
    return GoldenImage(entry.name, entry.anomalous, path, tensor, values, sampled.stride, sampled.offset, entry.score)


def _shrink(candidate: GoldenCandidate, limit: float) -> GoldenCandidate:
    width, height = candidate.image.size
    if width * height <= limit:
        return candidate
    scale = (limit / (width * height)) ** 0.5
    size = max(1, int(width * scale)), max(1, int(height * scale))
    small = candidate.image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    return dataclasses.replace(candidate, image=small, tensor=images.load(small, len(candidate.tensor)))


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)  # as small as with 6, in a third of the time
    return buffer.getvalue()


def _read_png(data: bytes, path: Path, side: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (side, side) or image.mode != "RGB":
                raise UsageError(f"{path}: {image.mode} {image.width}×{image.height}, expected RGB {side}×{side}")
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: not a readable PNG ({error}); export the bundle again") from None
