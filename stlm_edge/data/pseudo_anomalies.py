"""Pseudo-anomalies: artificial defects in normal images, with masks, for training.

"perlin" is STLM's (arXiv 2402.19145): foreign texture in Perlin-shaped patches. The other kinds resemble defects of
real parts. Sizes are shares of the image's side, so that they do not depend on the resolution. All randomness comes
from the given generator, so that training images are determined by (seed, step).
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from stlm_edge.data.perlin import perlin_mask
from stlm_edge.data.textures import Source

_LARGEST_BETA = 0.8
_VISIBLE = 5  # of 255 levels, 2%: smaller changes are dropped from image and mask
_LEAST_AREA = 3e-4  # of the image, for visible changes
_TRIALS = 8

Window = tuple[slice, slice]


def make_pseudo_anomaly(
    image: np.ndarray, rng: np.random.Generator, source: Source, kinds: tuple[str, ...] = ("perlin",)
) -> tuple[np.ndarray, np.ndarray]:
    """Add a pseudo-anomaly of a random kind to an image, and return the new image and its mask.

    `image` is uint8 S×S×3, the mask bool S×S and never empty. Nothing changes outside the mask; except for "perlin",
    whose mask is the published one, every part of the mask changes visibly. A kind without a visible effect, such as
    "blur" on a uniform surface, is replaced by "perlin".
    """
    kind = KINDS[kinds[int(rng.integers(len(kinds)))]]
    for _ in range(_TRIALS):
        changed, mask = kind(image, rng, source)
        if np.count_nonzero(mask) >= _LEAST_AREA * mask.size:
            return changed, mask
    return perlin(image, rng, source)


def perlin(image: np.ndarray, rng: np.random.Generator, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Blend (1−m)·image + m·((1−β)·texture + β·image), m a Perlin mask and β uniform in [0, 0.8]."""
    size = image.shape[0]
    mask = perlin_mask(size, rng)
    texture = source(rng, size).reshape(-1, 3)
    beta = np.float32(rng.uniform(0, _LARGEST_BETA))
    inside, blended = np.flatnonzero(mask), image.copy()
    mixed = (1 - beta) * np.take(texture, inside, axis=0) + beta * np.take(image.reshape(-1, 3), inside, axis=0)
    blended.reshape(-1, 3)[inside] = np.rint(mixed)
    return blended, mask


def cut_paste(image: np.ndarray, rng: np.random.Generator, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Paste a piece of the image elsewhere, rotated and with slightly changed brightness.

    The piece is a rectangle of 0.5 to 15% of the image (CutPaste, C.-L. Li et al., CVPR 2021) or a blob.
    """
    size = image.shape[0]
    if rng.random() < 0.5:
        area, aspect = _log_uniform(rng, 0.005, 0.15), _log_uniform(rng, 0.3, 1 / 0.3)
        height, width = (max(2, round(size * math.sqrt(area * side))) for side in (aspect, 1 / aspect))
        window = _place(rng, size, height, width)
        alpha = np.ones(_shape(window), np.float32)
    else:
        window, depth = _blob(rng, size, 0.03, 0.18)
        alpha = np.clip(depth * 8, 0, 1)
    height, width = _shape(window)
    piece = image[_place(rng, size, height, width)]
    piece = piece[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    return _paste(image, window, piece * rng.uniform(0.85, 1.15) + _tint(rng, 6), alpha)


def scar(image: np.ndarray, rng: np.random.Generator, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Paste a thin strip of the image at another place and angle (CutPaste-Scar), or of a foreign texture."""
    size = image.shape[0]
    length, width = rng.uniform(0.04, 0.25), rng.uniform(0.008, 0.06)
    window, along, across = _turned_grid(rng, size, math.hypot(length, width) / 2)
    inside = np.minimum(length / 2 - np.abs(along), width / 2 - np.abs(across)) * size
    height, breadth = _shape(window)
    strips = image if rng.random() < 0.7 else source(rng, size)
    strip = np.rot90(strips[_place(rng, size, breadth, height)])
    return _paste(image, window, strip * rng.uniform(0.8, 1.2) + _tint(rng, 10), np.clip(inside, 0, 1))


def blur(image: np.ndarray, rng: np.random.Generator, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Blur a blob uniformly or in one direction."""
    size = image.shape[0]
    window, depth = _blob(rng, size, 0.04, 0.2)
    piece = Image.fromarray(image[window])
    if rng.random() < 0.5:
        content = np.asarray(piece.filter(ImageFilter.BoxBlur(size * rng.uniform(0.01, 0.05))), np.float32)
    else:
        angle, reach = rng.uniform(0, math.pi), size * rng.uniform(0.02, 0.1)
        rows, columns = (np.arange(n) for n in _shape(window))
        content = np.zeros((*_shape(window), 3), np.float32)
        shifts = np.linspace(-reach / 2, reach / 2, 12)
        for shift in shifts:
            row = np.clip(rows + round(shift * math.sin(angle)), 0, rows[-1])
            column = np.clip(columns + round(shift * math.cos(angle)), 0, columns[-1])
            content += image[window][row[:, None], column] / np.float32(len(shifts))
    return _paste(image, window, content, np.clip(depth * 5, 0, 1))


def scratch(image: np.ndarray, rng: np.random.Generator, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Draw a thin light or dark line, straight, bent or broken, that may fade out or have a burr beside it."""
    size = image.shape[0]
    steps = 24
    turns = rng.normal(0, rng.choice([0.02, 0.12, 0.3]), size=steps)
    heading = rng.uniform(0, 2 * math.pi) + np.cumsum(turns if rng.random() < 0.6 else np.round(3 * turns))
    path = np.cumsum(np.stack([np.sin(heading), np.cos(heading)]), axis=1) * (size * rng.uniform(0.08, 0.6) / steps)
    path -= path.mean(axis=1, keepdims=True)
    path += rng.uniform(0.05, 0.95, size=(2, 1)) * size
    width = max(1.0, size * _log_uniform(rng, 0.003, 0.012))
    low = np.clip(path.min(axis=1) - 3 * width - 1, 0, size - 2).astype(int)
    high = np.clip(path.max(axis=1) + 3 * width + 2, low + 2, size).astype(int)
    window = slice(low[0], high[0]), slice(low[1], high[1])

    ends = np.sin(np.linspace(0.15, math.pi - 0.15, steps - 1)) ** rng.choice([0, 0.5])
    alpha = _stroke(_shape(window), path - low[:, None], width * ends)
    colour = _contrast(rng, 25, 130)
    content = image[window] + colour
    if rng.random() < 0.3:
        burr = _stroke(_shape(window), path - low[:, None] + rng.choice([-1, 1], size=(2, 1)) * width, width * ends)
        content = np.where((burr > alpha)[..., None], image[window] - 0.6 * colour, content)
        alpha = np.maximum(alpha, burr)
    return _paste(image, window, content, alpha * rng.uniform(0.6, 1))


def stain(image: np.ndarray, rng: np.random.Generator, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Shift brightness or colour of a large area slightly and unevenly, without a sharp edge."""
    size = image.shape[0]
    window, depth = _blob(rng, size, 0.08, 0.35)
    alpha = np.clip(depth * rng.uniform(1, 4), 0, 1) * (0.75 + 0.25 * _random_grid(rng, _shape(window), 5))
    if rng.random() < 0.5:
        return _paste(image, window, image[window] + _contrast(rng, 10, 45), alpha)
    return _paste(image, window, image[window] * np.exp(rng.choice([-1, 1]) * rng.uniform(0.08, 0.4)), alpha)


def spots(image: np.ndarray, rng: np.random.Generator, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Draw one to six small holes, grains or drops close together, light or dark."""
    size = image.shape[0]
    count = int(rng.choice([1, 1, 2, 3, 6]))
    side = min(size, 4 + round(size * (0.06 + 0.04 * count)))
    window = _place(rng, size, side, side)
    alpha = np.zeros((side, side), np.float32)
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    for _ in range(count):
        radius = size * _log_uniform(rng, 0.006, 0.03)
        row, column = rng.uniform(radius, side - radius, size=2)
        stretch = _log_uniform(rng, 0.7, 1.4)
        distance = np.hypot((rows - row) * stretch, (columns - column) / stretch)
        alpha = np.maximum(alpha, np.clip(radius - distance + 0.5, 0, 1))
    own = image[int(rng.integers(size)), int(rng.integers(size))].astype(np.float32)
    content = image[window] * rng.uniform(0, 0.4) + own * 0.6 + _contrast(rng, 20, 150)
    return _paste(image, window, content, alpha * rng.uniform(0.6, 1))


def warp(image: np.ndarray, rng: np.random.Generator, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Shift, pinch or rotate a blob, without a visible seam."""
    size = image.shape[0]
    radius = rng.uniform(0.06, 0.18)
    window, right, down = _turned_grid(rng, size, radius)
    strength = np.clip(1 - (right**2 + down**2) / radius**2, 0, None) ** 2
    rows, columns = np.mgrid[window].astype(np.float32)
    push = rng.choice(["aside", "pinch", "turn"])
    if push == "aside":
        shift = rng.choice([-1, 1], size=2) * rng.uniform(0.2, 0.6, size=2) * radius * size
        rows, columns = rows + shift[0] * strength, columns + shift[1] * strength
    else:
        by_row, by_column = rows - rows.mean(), columns - columns.mean()
        amount = rng.choice([-1, 1]) * rng.uniform(0.5, 0.9) * strength
        if push == "turn":
            by_row, by_column = by_column, -by_row
        rows, columns = rows + amount * by_row, columns + amount * by_column
    return _paste(image, window, _sampled(image, rows, columns), (strength > 0).astype(np.float32))


KINDS: dict[str, Callable[[np.ndarray, np.random.Generator, Source], tuple[np.ndarray, np.ndarray]]] = {
    "perlin": perlin,
    "cut-paste": cut_paste,
    "scar": scar,
    "blur": blur,
    "scratch": scratch,
    "stain": stain,
    "spots": spots,
    "warp": warp,
}


def _paste(image: np.ndarray, window: Window, content: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blend `content`, h×w×3, into a window of the image with opacity `alpha`, h×w; return the image and the mask.

    Only visible changes are kept: by 2% of the range on average in the 5×5 neighbourhood, or by 6% at the pixel.
    """
    before = image[window]
    after = np.rint(np.clip(before + alpha[..., None] * (content - before), 0, 255)).astype(np.uint8)
    change = np.abs(after.astype(np.int16) - before).max(axis=2).astype(np.uint8)
    around = np.asarray(Image.fromarray(change).filter(ImageFilter.BoxBlur(2)))
    visible = (alpha > 0) & ((around >= _VISIBLE) | (change >= 3 * _VISIBLE))
    changed, mask = image.copy(), np.zeros(image.shape[:2], bool)
    changed[window] = np.where(visible[..., None], after, before)
    mask[window] = visible
    return changed, mask


def _blob(rng: np.random.Generator, size: int, least: float, most: float) -> tuple[Window, np.ndarray]:
    """Return the window of a spot with a wavy outline, and the depth in it.

    The spot is often elongated, its radius between two shares of the side. The depth, float32 h×w, is 0 on the outline
    and about 1 in the middle.
    """
    radius, stretch = _log_uniform(rng, least, most), _log_uniform(rng, 1, 1.8)
    window, along, across = _turned_grid(rng, size, 1.4 * radius * stretch)
    depth = 1 - (along / (radius * stretch)) ** 2 - (across * stretch / radius) ** 2
    return window, depth + 0.5 * _random_grid(rng, _shape(window), int(rng.integers(3, 9)))


def _turned_grid(rng: np.random.Generator, size: int, reach: float) -> tuple[Window, np.ndarray, np.ndarray]:
    """Return a window around a random place, and each pixel's position along two random perpendicular axes.

    The window extends `reach` (a share of the side) in every direction, cropped to the image; positions are float32
    h×w, from that place, in shares of the side.
    """
    middle, angle = rng.uniform(0.03, 0.97, size=2) * size, rng.uniform(0, 2 * math.pi)
    low = np.clip(middle - reach * size - 1, 0, size - 2).astype(int)
    high = np.clip(middle + reach * size + 2, low + 2, size).astype(int)
    down = (np.arange(low[0], high[0], dtype=np.float32) + 0.5 - np.float32(middle[0]))[:, None] / size
    right = (np.arange(low[1], high[1], dtype=np.float32) + 0.5 - np.float32(middle[1])) / size
    sine, cosine = math.sin(angle), math.cos(angle)
    window = slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))
    return window, cosine * right + sine * down, cosine * down - sine * right


def _place(rng: np.random.Generator, size: int, height: int, width: int) -> Window:
    """Return a window of the given shape, limited to the image's, at a random position."""
    height, width = min(height, size), min(width, size)
    top, left = int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1))
    return slice(top, top + height), slice(left, left + width)


def _shape(window: Window) -> tuple[int, int]:
    return window[0].stop - window[0].start, window[1].stop - window[1].start


def _stroke(shape: tuple[int, int], path: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Draw a line through the points of `path`, 2×n rows and columns, of n−1 widths: coverage h×w, 0 to 1."""
    fine = 3
    drawing = Image.new("L", (shape[1] * fine, shape[0] * fine))
    pen = ImageDraw.Draw(drawing)
    for start, end, width in zip(path.T[:-1] * fine, path.T[1:] * fine, widths * fine, strict=True):
        pen.line((start[1], start[0], end[1], end[0]), fill=255, width=max(1, round(width)))
        pen.ellipse([value + sign * width / 2 for sign in (-1, 1) for value in (end[1], end[0])], fill=255)
    return np.asarray(drawing.reduce(fine), np.float32) / 255


def _sampled(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Sample the image bilinearly between its pixels: float32 h×w×3."""
    limit = image.shape[0] - 1.001
    rows, columns = np.clip(rows, 0, limit), np.clip(columns, 0, limit)
    row, column = rows.astype(int), columns.astype(int)
    below, beside = (rows - row)[..., None], (columns - column)[..., None]
    upper = image[row, column] * (1 - beside) + image[row, column + 1] * beside
    lower = image[row + 1, column] * (1 - beside) + image[row + 1, column + 1] * beside
    return upper * (1 - below) + lower * below


def _random_grid(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Return cells×cells uniform values in −1 to 1, smoothly enlarged: float32 h×w."""
    grid = rng.uniform(-1, 1, size=(cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize(shape[::-1], Image.Resampling.BICUBIC))


def _contrast(rng: np.random.Generator, least: float, most: float) -> np.ndarray:
    """Return a lighter or darker shift of the three channels in levels of 255, grey half of the time."""
    strengths = rng.uniform(1 - rng.choice([0, 0, 0.2, 0.8]), 1, size=3)
    return rng.choice([-1, 1]) * _log_uniform(rng, least, most) * strengths


def _tint(rng: np.random.Generator, deviation: float) -> np.ndarray:
    """Return a small shift in levels of 255, half of the time equal for the three channels."""
    return rng.normal(0, deviation, size=rng.choice([1, 3]))


def _log_uniform(rng: np.random.Generator, least: float, most: float) -> float:
    return math.exp(rng.uniform(math.log(least), math.log(most)))
