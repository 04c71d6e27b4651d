"""Perlin noise and masks made from it, for STLM's pseudo-anomalies (arXiv 2402.19145, section III-B)."""

import math

import numpy as np
from PIL import Image

_OCTAVES = 6  # noise cells per axis: 2^0 to 2^5
_THRESHOLD = 0.5
_LEAST_AREA = 1e-3  # of the image; smaller areas are invisible on the map's S/16 grid
_SAMPLES_PER_CELL = 6
_MARGIN = 2  # samples beyond the image, needed for cubic interpolation at its edge


def perlin_mask(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a mask of Perlin noise of random scales and rotation, above 0.5: bool size×size, never empty."""
    while True:
        mask = perlin_noise(size, rng) > _THRESHOLD
        if np.count_nonzero(mask) > _LEAST_AREA * mask.size:
            return mask


def perlin_noise(size: int, rng: np.random.Generator, exact: bool = False) -> np.ndarray:
    """Return gradient noise (K. Perlin, "Improving noise", 2002): float32 size×size, about −1 to 1.

    There are 2^0 to 2^5 cells per axis. The lattice, not the image, is rotated, so that no corner is blank. Unless
    `exact`, noise with large cells is computed on a coarser grid of at least six samples per cell and enlarged by cubic
    interpolation, with an error below 0.02.
    """
    cells = 2.0 ** rng.integers(0, _OCTAVES, size=2)
    angle = rng.uniform(-math.pi / 2, math.pi / 2)
    lattice_seed = int(rng.integers(2**63))
    step = 1 if exact else max(1, int(size / (_SAMPLES_PER_CELL * cells.max())))
    margin = 0 if step == 1 else _MARGIN
    samples = np.arange(-margin, math.ceil(size / step) + margin, dtype=np.float32)
    noise = _gradient_noise((samples + 0.5) * (step / size) - 0.5, cells, angle, lattice_seed)
    if step == 1:
        return noise
    image = (_MARGIN, _MARGIN, _MARGIN + size / step, _MARGIN + size / step)
    return np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC, box=image))


def _gradient_noise(at: np.ndarray, cells: np.ndarray, angle: float, seed: int) -> np.ndarray:
    """Return the noise for rows and columns `at`, in units of the image's side from its centre.

    A lattice point's gradient depends only on `seed` and the point, not on the evaluated part of the lattice.
    """
    u = cells[0] * (math.cos(angle) * at[:, None] - math.sin(angle) * at[None, :])
    v = cells[1] * (math.sin(angle) * at[:, None] + math.cos(angle) * at[None, :])
    corner_u, u = _split(u, cells[0])
    corner_v, v = _split(v, cells[1])

    rows, columns = _lattice(cells[0]), _lattice(cells[1])
    direction = np.random.default_rng(seed).uniform(0, 2 * math.pi, size=rows * columns)
    gradient_u = np.cos(direction).astype(np.float32)
    gradient_v = np.sin(direction).astype(np.float32)
    corner = corner_u * columns + corner_v

    def ramp(du: int, dv: int) -> np.ndarray:
        point = corner + (du * columns + dv)
        return gradient_u[point] * (u - du) + gradient_v[point] * (v - dv)

    fade_u, fade_v = _fade(u), _fade(v)
    near, far = ramp(0, 0), ramp(0, 1)
    near += fade_u * (ramp(1, 0) - near)
    far += fade_u * (ramp(1, 1) - far)
    return math.sqrt(2) * (near + fade_v * (far - near))


def _lattice(cells: float) -> int:
    """Return the number of lattice points along an axis.

    The image's corners are 0.71 of its side from the centre, margins slightly further.
    """
    return 2 * math.ceil(0.8 * cells + 1) + 1


def _split(position: np.ndarray, cells: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the lattice cell, counted from the first, and the position within it, 0 to 1."""
    cell = np.floor(position)
    return cell.astype(np.int32) + _lattice(cells) // 2, position - cell


def _fade(t: np.ndarray) -> np.ndarray:
    return t * t * t * (t * (t * 6 - 15) + 10)
