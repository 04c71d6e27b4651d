"""Pseudo-anomalies: foreign texture in Perlin-shaped patches of normal pictures, as STLM trains on (arXiv 2402.19145).

All randomness comes from the generator that is passed in, so that (seed, step) decides a training's pictures.
"""

import math

import numpy as np

from stlm_edge.data.textures import Source

_OCTAVES = 6  # noise cells per axis: 2^0 to 2^5
_THRESHOLD = 0.5
_LEAST_AREA = 1e-3  # of the picture; less than that is invisible on the map's S/16 grid
_LARGEST_BETA = 0.8


def make_pseudo_anomaly(picture: np.ndarray, rng: np.random.Generator, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """A picture with foreign texture in it, and where.

    (1−m)·picture + m·((1−β)·texture + β·picture), m a Perlin mask and β uniform in [0, 0.8].
    `picture` is uint8 S×S×3; returns uint8 S×S×3 and the mask, bool S×S, which is never empty.
    """
    size = picture.shape[0]
    mask = perlin_mask(size, rng)
    texture = source(rng, size)[mask].astype(np.float32)
    beta = np.float32(rng.uniform(0, _LARGEST_BETA))
    blended = picture.copy()
    blended[mask] = np.rint((1 - beta) * texture + beta * picture[mask])
    return blended, mask


def perlin_mask(size: int, rng: np.random.Generator) -> np.ndarray:
    """Where Perlin noise of random scale per axis and random rotation exceeds 0.5: bool size×size, never empty."""
    while True:
        mask = perlin_noise(size, rng) > _THRESHOLD
        if mask.mean() > _LEAST_AREA:
            return mask


def perlin_noise(size: int, rng: np.random.Generator) -> np.ndarray:
    """Gradient noise (K. Perlin, "Improving noise", 2002): float32 size×size, about −1 to 1, 2^0 to 2^5 cells per axis.

    The rotation turns the lattice under the picture, so that no corner is left blank.
    """
    cells = 2.0 ** rng.integers(0, _OCTAVES, size=2)
    angle = rng.uniform(-math.pi / 2, math.pi / 2)
    centred = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    u = cells[0] * (math.cos(angle) * centred[:, None] - math.sin(angle) * centred[None, :])
    v = cells[1] * (math.sin(angle) * centred[:, None] + math.cos(angle) * centred[None, :])
    corner_u, u = _split(u)
    corner_v, v = _split(v)

    rows, columns = int(corner_u.max()) + 2, int(corner_v.max()) + 2
    direction = rng.uniform(0, 2 * math.pi, size=rows * columns)
    gradient_u = np.cos(direction).astype(np.float32)
    gradient_v = np.sin(direction).astype(np.float32)
    corner = corner_u * columns + corner_v

    def ramp(du: int, dv: int) -> np.ndarray:
        at = corner + (du * columns + dv)
        return gradient_u[at] * (u - du) + gradient_v[at] * (v - dv)

    fade_u, fade_v = _fade(u), _fade(v)
    near, far = ramp(0, 0), ramp(0, 1)
    near += fade_u * (ramp(1, 0) - near)
    far += fade_u * (ramp(1, 1) - far)
    return math.sqrt(2) * (near + fade_v * (far - near))


def _split(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the lattice cell, counted from the first one in the picture, and the position within it, 0 to 1."""
    cell = np.floor(position)
    return (cell - cell.min()).astype(np.int32), (position - cell).astype(np.float32)


def _fade(t: np.ndarray) -> np.ndarray:
    return t * t * t * (t * (t * 6 - 15) + 10)
