"""Procedural scenes for training the initial weights: parts on surfaces, lit from one side, in and out of focus."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from stlm_edge.data.textures import procedural

_DETAIL = 2  # oversampling factor of outlines


def scene(rng: np.random.Generator, size: int) -> np.ndarray:
    """Render a surface with parts: uint8 size×size×3."""
    height = np.zeros((size, size), np.float32)
    colour = _surface(rng, size)
    for shape in _arrangement(rng, size):
        inside = np.asarray(shape.resize((size, size), Image.Resampling.BOX), np.float32) / 255
        soft = np.asarray(_blurred(inside, rng.uniform(0.5, size / 40)), np.float32)
        shadow = _blurred(inside, rng.uniform(1, size / 30))
        dy, dx = rng.integers(-size // 24, size // 24 + 1, size=2)
        colour *= 1 - rng.uniform(0, 0.6) * np.roll(shadow, (dy, dx), (0, 1))[..., None]
        colour += inside[..., None] * (_surface(rng, size) - colour)
        height += soft * rng.uniform(-1, 1) * size / 20
    photograph = colour * _light(height, rng)[..., None]
    if rng.random() < 0.5:
        photograph += rng.normal(0, rng.uniform(1, 12), (size, size, 1)).astype(np.float32)
    image = Image.fromarray(np.clip(photograph, 0, 255).astype(np.uint8))
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 2.5)))
    return np.asarray(image)


def _arrangement(rng: np.random.Generator, size: int) -> list[Image.Image]:
    """Draw outlines of parts, 0 or 255: scattered, one in the middle, or a grid of equal ones."""
    kind = rng.random()
    if kind < 0.3:
        return [_outline(rng, size, [(rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7))], rng.uniform(0.2, 0.5))]
    if kind < 0.55:
        pitch = rng.uniform(0.12, 0.4)
        places = np.arange(rng.uniform(-pitch, 0), 1 + pitch, pitch)
        return [_outline(rng, size, [(x, y) for x in places for y in places], pitch * rng.uniform(0.2, 0.5))]
    return [
        _outline(rng, size, [(rng.uniform(0, 1), rng.uniform(0, 1))], rng.uniform(0.02, 0.3))
        for _ in range(rng.integers(0, 7))
    ]


def _outline(rng: np.random.Generator, size: int, places: list[tuple[float, float]], radius: float) -> Image.Image:
    """Draw the same polygon, bar or ring at each place; lengths are shares of the image's side."""
    image = Image.new("L", (size * _DETAIL, size * _DETAIL))
    draw = ImageDraw.Draw(image)
    corners = int(rng.choice([3, 4, 4, 5, 6, 8, 32, 32, 32]))
    angles = np.arange(corners) * 2 * math.pi / corners + rng.uniform(0, 2 * math.pi)
    radii = radius * (1 + rng.choice([0, 0.3]) * rng.uniform(-1, 1, corners))
    stretch, turn = rng.uniform(0.15, 1), rng.uniform(0, math.pi)
    x, y = radii * np.cos(angles), stretch * radii * np.sin(angles)
    polygon = np.stack([x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)], axis=1)
    hole = rng.uniform(0.3, 0.9) if rng.random() < 0.3 else 0
    for place in places:
        at = (np.asarray(place) + polygon) * size * _DETAIL
        draw.polygon([tuple(point) for point in at.tolist()], fill=255)
        if hole:
            inner = (np.asarray(place) + hole * polygon) * size * _DETAIL
            draw.polygon([tuple(point) for point in inner.tolist()], fill=0)
    return image


def _surface(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a texture, often faint: float32 size×size×3, 0 to 255."""
    texture = procedural(rng, size).astype(np.float32)
    strength = rng.choice([0.05, 0.2, 0.6, 1.0])
    return texture.mean((0, 1)) * (1 - strength) + strength * texture


def _light(height: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the brightness under a light from one side, which decreases over the image: H×W around 1."""
    angle = rng.uniform(0, 2 * math.pi)
    slope_y, slope_x = np.gradient(height)
    shade = 1 + rng.uniform(0, 0.8) * np.clip(math.cos(angle) * slope_x + math.sin(angle) * slope_y, -1, 1)
    across = np.linspace(-0.5, 0.5, len(height), dtype=np.float32)
    slant = rng.uniform(-0.6, 0.6, size=2)
    return shade * (1 + slant[0] * across[:, None] + slant[1] * across[None, :])


def _blurred(values: np.ndarray, radius: float) -> np.ndarray:
    image = Image.fromarray((values * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image, np.float32) / 255
