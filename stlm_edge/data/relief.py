"""Surfaces of the demo data: a turned metal flange on its fixture, carbon-fibre twill and a moulded plastic grip.

Each is a relief (height, colour, gloss), rendered by `photograph`. Lengths are in pixels; x points right and y down.
"""

import math
from dataclasses import dataclass

import numpy as np

SIZE = 256


@dataclass
class Relief:
    """A surface before it is lit."""

    height: np.ndarray  # H×W
    colour: np.ndarray  # H×W×3, linear reflectance
    gloss: np.ndarray  # H×W, strength of the highlights
    grain: np.ndarray | None  # H×W×2, unit vectors along fibres or grooves, for anisotropic highlights
    sharpness: float  # of the highlights
    part: np.ndarray  # H×W, 1 on the part, 0 on the background
    edges: np.ndarray  # N×2, points on edges, tows or studs where a piece can break out
    bare: tuple[float, float, float]  # colour of the material inside
    stain: tuple[float, float, float]  # colour of stains


def flange(rng: np.random.Generator) -> Relief:
    """Draw a turned steel ring with a brass bushing, six bolt holes and a groove, on a dark fixture."""
    frame = _Frame(rng, turn=math.radians(15), shift=6)
    x, y = frame.x, frame.y
    radius = np.hypot(x, y)
    sector = (np.arctan2(y, x) + math.pi / 6) % (math.pi / 3) - math.pi / 6
    to_hole = np.hypot(radius * np.cos(sector) - 76, radius * np.sin(sector)) - 9
    depth = np.minimum(np.minimum(105 - radius, radius - 28), to_hole)  # into the metal from its nearest edge
    metal = step(depth, -0.8, 0.8)

    marks = noise(rng, 512)[np.minimum(radius * 3, 511).astype(int)]  # one value per turn of the tool
    height = metal * (6 + np.clip(depth, 0, 3)) - 2 * np.exp(-(((radius - 49) / 2.5) ** 2))
    lit = 0.35 + 0.65 * step(np.hypot(x - 5, y - 8), 98, 122)  # the ring's shadow
    cloth = lit * (0.035 + 0.004 * noise(rng, SIZE, SIZE))
    alloy = mix(np.full((SIZE, SIZE, 3), [0.2, 0.196, 0.188]), np.array([0.36, 0.2, 0.05]), step(radius, 40.5, 39.5))
    colour = mix(cloth[..., None] * [0.8, 0.95, 1.2], alloy * (1 + 0.09 * marks)[..., None], metal)
    turns = np.arange(6) * (math.pi / 3) + math.pi / 6
    return Relief(
        height=height,
        colour=colour,
        gloss=metal * (0.5 + 0.07 * marks),
        grain=frame.vectors(-y / np.maximum(radius, 1), x / np.maximum(radius, 1)),
        sharpness=20,
        part=metal,
        edges=frame.pixels(103 * np.cos(turns), 103 * np.sin(turns)),
        bare=(0.45, 0.43, 0.4),
        stain=(0.13, 0.045, 0.012),
    )


def twill(rng: np.random.Generator) -> Relief:
    """Draw a two-over-two twill of carbon tows with yellow tracers, shifted by one tow per row."""
    frame = _Frame(rng, turn=math.radians(2), shift=38)
    tow = 19.0
    across, along = frame.x / tow, frame.y / tow
    column, row = np.floor(across), np.floor(along)
    in_column, in_row = across - column - 0.5, along - row - 0.5
    phase = (column + row) % 4
    warp = phase < 2
    aside = np.where(warp, in_column, in_row)  # from the tow's middle, −0.5 to 0.5
    passed = np.where(warp, phase + in_row + 0.5, phase - 2 + in_column + 0.5) / 2  # of its way over the two others

    lengthwise = np.where(warp, across, along) * 16  # a fibre's place among its tow's
    fibres = noise(rng, 2048)[(lengthwise + np.where(warp, 0, 977)).astype(int) % 2048]
    height = 3.5 * np.cos(math.pi * aside) + 5 * np.sin(math.pi * np.clip(passed, 0, 1))
    gap = step(np.abs(aside), 0.5, 0.42)
    tracer = np.where(warp, 0, row % 6 == 0) * step(np.abs(aside - 0.2), 0.12, 0.07)
    carbon = (gap * (0.03 + 0.002 * fibres))[..., None] * [0.95, 1.0, 1.1]
    points = np.stack(np.meshgrid(np.arange(-4, 5), np.arange(-4, 5)), axis=-1).reshape(-1, 2) * 1.0
    points = points[(points.sum(axis=1) % 4) == 1]
    zero, one = np.zeros_like(across), np.ones_like(across)
    return Relief(
        height=height,
        colour=mix(carbon, np.array([0.42, 0.3, 0.03]), tracer),
        gloss=gap * (0.24 + 0.025 * fibres) * (1 - 0.8 * tracer),
        grain=frame.vectors(np.where(warp, zero, one), np.where(warp, one, zero)),
        sharpness=12,
        part=np.ones((SIZE, SIZE)),
        edges=frame.pixels((points[:, 0] + 0.5) * tow, points[:, 1] * tow),
        bare=(0.4, 0.38, 0.34),
        stain=(0.42, 0.36, 0.24),
    )


def grip(rng: np.random.Generator) -> Relief:
    """Draw round studs in a hexagonal grid on a finely eroded plate, moulded in one coloured plastic."""
    frame = _Frame(rng, turn=math.radians(4), shift=20)
    pitch, stud = 31.0, 10.0
    rise = pitch * math.sqrt(3)
    squared = np.full((SIZE, SIZE), np.inf)
    for dx, dy in ((0.0, 0.0), (pitch / 2, rise / 2)):
        nearest_x = (frame.x - dx + pitch / 2) % pitch - pitch / 2
        nearest_y = (frame.y - dy + rise / 2) % rise - rise / 2
        squared = np.minimum(squared, nearest_x**2 + nearest_y**2)
    dome = np.sqrt(np.clip(1 - squared / stud**2, 0, 1))
    batch = 1 + 0.06 * rng.standard_normal()
    eroded = noise(rng, SIZE, SIZE)
    columns, rows = np.meshgrid(np.arange(-3, 4), np.arange(-2, 3))
    return Relief(
        height=5 * dome * step(np.sqrt(squared), stud, stud - 1.5) + 0.2 * eroded * (dome == 0),
        colour=np.full((SIZE, SIZE, 3), [0.02, 0.21, 0.235]) * batch,
        gloss=0.1 + 0.25 * step(np.sqrt(squared), stud, stud - 2),
        grain=None,
        sharpness=24,
        part=np.ones((SIZE, SIZE)),
        edges=frame.pixels(columns.ravel() * pitch, rows.ravel() * rise),
        bare=(0.55, 0.66, 0.62),
        stain=(0.2, 0.075, 0.012),
    )


def photograph(relief: Relief, rng: np.random.Generator) -> np.ndarray:
    """Render a lit relief: uint8 H×W×3, sRGB.

    Uses Lambert's diffuse term and Blinn's highlight, or Kajiya and Kay's for a grain (SIGGRAPH 1989). The lamp's
    direction, strength and evenness and the sensor's noise are random.
    """
    turn, tilt = math.radians(-125 + rng.uniform(-14, 14)), math.radians(rng.uniform(36, 48))
    lamp = np.array([math.cos(turn) * math.sin(tilt), math.sin(turn) * math.sin(tilt), math.cos(tilt)])
    half = lamp + np.array([0, 0, 1])
    half /= np.linalg.norm(half)

    slope_y, slope_x = np.gradient(relief.height)
    upright = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    diffuse = np.clip(upright * (lamp[2] - slope_x * lamp[0] - slope_y * lamp[1]), 0, None)
    if relief.grain is None:
        facing = np.clip(upright * (half[2] - slope_x * half[0] - slope_y * half[1]), 0, None)
    else:
        grain_x, grain_y = relief.grain[..., 0], relief.grain[..., 1]
        climb = slope_x * grain_x + slope_y * grain_y
        lengthwise = (grain_x * half[0] + grain_y * half[1] + climb * half[2]) / np.sqrt(1 + climb**2)
        facing = np.sqrt(np.clip(1 - lengthwise**2, 0, 1)) * np.clip(2 * diffuse, 0, 1)
    light = relief.colour * (0.22 + diffuse)[..., None] + (relief.gloss * facing**relief.sharpness)[..., None]

    down, right = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    fall = rng.uniform(-0.22, 0.22, size=2)
    light *= (rng.uniform(0.75, 1.3) * (1 + fall[0] * down + fall[1] * right - 0.08 * (down**2 + right**2)))[..., None]
    grey = np.clip(light, 0, 1).astype(np.float32) ** (1 / 2.2) * 255
    grey += rng.uniform(1, 3) * rng.standard_normal(grey.shape, dtype=np.float32)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def step(values: np.ndarray, start: float, end: float) -> np.ndarray:
    """Return 0 before `start`, 1 after `end` (which may be smaller), and a smooth transition between."""
    t = np.clip((values - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


def mix(below: np.ndarray, above: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Blend H×W×3 colours, or one colour, over H×W×3."""
    return below + (above - below) * opacity[..., None]


def noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return white noise, smoothed along each axis; standard deviation about 1."""
    values = rng.standard_normal(shape)
    for axis in range(values.ndim):
        values = (values + 0.7 * (np.roll(values, 1, axis) + np.roll(values, -1, axis))) / 1.4
    return values


class _Frame:
    """Coordinates x and y, H×W, from the centre of a slightly shifted and rotated part."""

    def __init__(self, rng: np.random.Generator, turn: float, shift: float) -> None:
        angle = rng.uniform(-turn, turn)
        self.cos, self.sin = math.cos(angle), math.sin(angle)
        self.middle = SIZE / 2 + rng.uniform(-shift, shift, size=2)
        right = np.arange(SIZE)[None, :] - self.middle[0]
        down = np.arange(SIZE)[:, None] - self.middle[1]
        self.x = self.cos * right + self.sin * down
        self.y = self.cos * down - self.sin * right

    def pixels(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Convert points of the part to N×2 pixel coordinates."""
        return self.vectors(x, y) + self.middle

    def vectors(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.stack([self.cos * x - self.sin * y, self.sin * x + self.cos * y], axis=-1)
