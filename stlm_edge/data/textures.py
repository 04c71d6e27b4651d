"""Foreign textures for pseudo-anomalies: a source returns uint8 size×size×3 for a generator and a size."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stlm_edge.errors import UsageError
from stlm_edge.images import list_images, read_image

Source = Callable[[np.random.Generator, int], np.ndarray]


def any_of(*sources: Source) -> Source:
    """Return a source that selects one of the sources at each call, all equally likely."""
    return lambda rng, size: sources[int(rng.integers(len(sources)))](rng, size)


def patches_of(images: Sequence[np.ndarray]) -> Source:
    """Return a source of magnified, rotated and recoloured crops of the training images (uint8 H×W×3)."""

    def source(rng: np.random.Generator, size: int) -> np.ndarray:
        image = Image.fromarray(images[int(rng.integers(len(images)))])
        return _recoloured(_turned(_crop(image, rng, size, 0.1, 0.6), rng), rng)

    return source


def folder_of(path: str | Path) -> Source:
    """Return a source of crops of the images in a folder and its subfolders.

    The images of DTD (M. Cimpoi et al., CVPR 2014) are also located in torchvision's root folder, in dtd/dtd/images.
    Raises UsageError for a folder without images and for unreadable headers; the source raises it for damaged images.
    """
    folder = Path(path)
    for inside in (Path("dtd") / "dtd" / "images", Path("dtd") / "images", Path("images")):
        if (folder / inside).is_dir():
            folder = folder / inside
            break
    nested = sorted(inner for inner in folder.glob("*/") if inner.is_dir()) if folder.is_dir() else []
    images = [image for inner in nested for image in list_images(inner)] or list_images(folder)
    for image in images:
        _check(image)

    def source(rng: np.random.Generator, size: int) -> np.ndarray:
        image = read_image(images[int(rng.integers(len(images)))])
        return _turned(_crop(image, rng, size, 0.5, 1.0), rng)

    return source


def _check(image: Path) -> None:
    """Read an image's header, so that unreadable files are reported before training."""
    try:
        Image.open(image).close()
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{image}: not a readable image ({error}); remove it from the textures") from None


def procedural(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a scalar field (clouds, ripples, tiles, speckle) in colours of a random palette."""
    field = _FIELDS[int(rng.integers(len(_FIELDS)))](rng, size)
    return np.take(_palette(rng), field, axis=0)


def _clouds(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return the sum of random grids of doubling resolution; uint8 size×size, as the fields below."""
    start = 2 ** int(rng.integers(1, 5))
    finest = start << 3
    total = np.zeros((finest, finest), np.float32)
    for octave in range(4):
        total += _random_grid(rng, finest, start << octave, start << octave) * np.float32(0.6**octave)
    return _stretched(_enlarged(total, size))


def _ripples(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return parallel waves with soft to hard edges, bent by a low-frequency random field."""
    angle, waves = rng.uniform(0, math.pi), 2 ** rng.uniform(1.5, 5.5)
    along = np.linspace(0, 1, size, dtype=np.float32)
    phase = waves * math.cos(angle) * along[:, None] + waves * math.sin(angle) * along[None, :]
    phase += rng.uniform(0, 1.5) * _random_grid(rng, size, 4, 4)
    wave = np.sin(2 * math.pi * phase) * rng.uniform(0.5, 4)
    return _stretched(np.clip(wave, -1, 1))


def _tiles(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return rectangles of random values, with sharp edges."""
    rows, columns = 2 ** rng.integers(1, 6, size=2)
    values = rng.integers(0, 256, size=(rows, columns), dtype=np.uint8)
    return np.asarray(Image.fromarray(values).resize((size, size), Image.Resampling.NEAREST))


def _speckle(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return grains of one random size and density on a flat background."""
    grid = max(4, int(size / 2 ** rng.uniform(0, 3.5)))
    grains = _random_grid(rng, size, grid, grid) > rng.uniform(-0.5, 0.5)
    return _stretched(grains + np.float32(0.15) * _random_grid(rng, size, size // 2, size // 2))


_FIELDS = (_clouds, _ripples, _tiles, _speckle)


def _random_grid(rng: np.random.Generator, size: int, rows: int, columns: int) -> np.ndarray:
    """Return a grid of uniform values in −1 to 1, smoothly enlarged: float32 size×size."""
    return _enlarged(rng.uniform(-1, 1, size=(rows, columns)).astype(np.float32), size)


def _enlarged(grid: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))


def _stretched(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return ((values - low) * np.float32(255 / max(high - low, 1e-6))).astype(np.uint8)


def _palette(rng: np.random.Generator) -> np.ndarray:
    """Return a gradient of two to four colours, often near grey: uint8 256×3."""
    stops = rng.integers(2, 5)
    grey = rng.uniform(0, 255, size=(stops, 1))
    colours = np.clip(grey + rng.normal(0, rng.choice([6, 40, 90]), size=(stops, 3)), 0, 255)
    at = np.linspace(0, 255, stops)
    return np.stack([np.interp(np.arange(256), at, colours[:, channel]) for channel in range(3)], 1).astype(np.uint8)


def _crop(image: Image.Image, rng: np.random.Generator, size: int, least: float, most: float) -> np.ndarray:
    """Return a square crop of `least` to `most` of the shorter side, resized: uint8 size×size×3."""
    side = max(1, min(image.size) * rng.uniform(least, most))
    left, top = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _turned(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply one of the square's eight symmetries."""
    turned = np.rot90(texture, int(rng.integers(4)))
    return turned[:, ::-1] if rng.random() < 0.5 else turned


def _recoloured(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Permute the channels and apply a random gain, which may be negative, and offset."""
    gain = rng.uniform(0.6, 1.6) * rng.choice([-1, 1])
    offset = rng.uniform(-60, 60) + rng.normal(0, rng.choice([2, 20]), size=3)
    curve = np.arange(256)[:, None] * gain + offset + (255 if gain < 0 else 0)
    curve = np.clip(curve, 0, 255).astype(np.uint8)
    order = rng.permutation(3)
    return np.stack([np.take(curve[:, channel], texture[..., order[channel]]) for channel in range(3)], axis=-1)
