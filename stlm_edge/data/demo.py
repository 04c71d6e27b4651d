"""Built-in demo data in MVTec AD layout: one category of three surfaces with defects and masks, drawn from a seed.

    python -m stlm_edge.data.demo --out data/demo

Defects change a surface before it is lit, so that they are lit like the rest. They share neither code nor textures with
the pseudo-anomalies of training.
"""

import argparse
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from stlm_edge.data.relief import SIZE, Relief, flange, grip, mix, noise, photograph, step, twill
from stlm_edge.errors import UsageError, exit_with_one_line

TRAINING, GOOD, DEFECTIVE = 201, 39, 12  # images; DEFECTIVE of each kind

_VERSION = 2  # of the images; increase it with every change that alters them
_MARKER = "demo.json"
_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE]


def write_demo(out: str | Path, seed: int = 0) -> Path:
    """Write the data set to `out`, unless it already exists there with the same seed.

    Raises UsageError if `out` contains anything else.
    """
    out = Path(out)
    marker = json.dumps({"stlm-edge demo data": _VERSION, "seed": seed})
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if (out / _MARKER).is_file() and (out / _MARKER).read_text() == marker:
            return out
        raise UsageError(f"{out}: not the demo data of seed {seed}; remove it or give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write_folder(unfinished, "train", "good", TRAINING, [seed, 0])
        _write_folder(unfinished, "test", "good", GOOD, [seed, 1])
        for number, kind in enumerate(DEFECTS):
            _write_folder(unfinished, "test", kind, DEFECTIVE, [seed, 2 + number])
        (unfinished / _MARKER).write_text(marker)
        unfinished.chmod(0o755)
        unfinished.replace(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return out


def draw(surface: str, defect: str | None, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of a surface, uint8 256×256×3, and the mask of its defect, bool 256×256 (empty for None)."""
    relief = SURFACES[surface](rng)
    mask = DEFECTS[defect](relief, rng) if defect is not None else np.zeros((SIZE, SIZE), bool)
    return photograph(relief, rng), mask


def _write_folder(root: Path, split: str, kind: str, images: int, seed: list[int]) -> None:
    folder, truth = root / split / kind, root / "ground_truth" / kind
    folder.mkdir(parents=True)
    if kind != "good":
        truth.mkdir(parents=True)
    for index in range(images):
        surface = list(SURFACES)[index % len(SURFACES)]
        image, mask = draw(surface, None if kind == "good" else kind, np.random.default_rng([*seed, index]))
        Image.fromarray(image).save(folder / f"{index:03}.png", compress_level=1)
        if kind != "good":
            Image.fromarray(mask).save(truth / f"{index:03}_mask.png")


def _scratch(relief: Relief, rng: np.random.Generator) -> np.ndarray:
    """Draw a slightly bent groove that exposes the inside, with a raised burr, and return its mask."""
    x, y = _place(relief, rng, 26)
    angle, half, bend = rng.uniform(0, math.pi), rng.uniform(14, 26), rng.uniform(-5, 5)
    along = np.linspace(-1, 1, 120)
    sideways = bend * (1 - along**2)
    points_x = x + half * along * math.cos(angle) - sideways * math.sin(angle)
    points_y = y + half * along * math.sin(angle) + sideways * math.cos(angle)
    width, strength = rng.uniform(2.8, 4.6), rng.uniform(0.7, 1)
    score = _stroke(points_x, points_y, width) * relief.part
    burr = _stroke(points_x, points_y, width + 3) * relief.part - score
    relief.height += strength * (1.5 * burr - 2.5 * score)
    relief.colour = mix(relief.colour, np.array(relief.bare), 0.85 * strength * score)
    relief.gloss = relief.gloss * (1 - 0.9 * score) * (1 - 0.3 * burr)
    return score + 0.5 * burr > 0.3


def _stain(relief: Relief, rng: np.random.Generator) -> np.ndarray:
    """Draw a dried drop with an uneven outline and a dark rim, and return its mask."""
    distance = _blob(*_place(relief, rng, 22), rng.uniform(13, 20), rng, roundness=0.12)
    strength = rng.uniform(0.75, 1)
    wet = step(distance, 1.04, 0.96) * relief.part
    rim = np.exp(-(((distance - 0.9) / 0.09) ** 2))
    relief.colour = mix(relief.colour, np.array(relief.stain), strength * wet * (0.7 + 0.3 * rim))
    relief.gloss = relief.gloss * (1 - strength * wet * (0.75 + 0.25 * rim))
    return (distance < 1) & (relief.part > 0.5)


def _dent(relief: Relief, rng: np.random.Generator) -> np.ndarray:
    """Draw a pit that flattens the surface's relief, with a raised, whitened rim, and return its mask."""
    radius, strength = rng.uniform(11, 18), rng.uniform(0.65, 1)
    distance = _blob(*_place(relief, rng, 22), radius, rng, roundness=0.05)
    floor = np.average(relief.height, weights=(distance < 1) * relief.part)
    pressed = strength * step(distance, 1.0, 0.7) * (floor - relief.height)
    pit = 0.85 * strength * radius * np.clip(1 - distance**2, 0, None) ** 1.5
    lip = strength * np.exp(-(((distance - 1.0) / 0.16) ** 2)) * relief.part
    relief.height += relief.part * (pressed - pit) + 2.5 * lip
    relief.colour = mix(relief.colour, np.array(relief.bare), 0.45 * lip)
    if relief.grain is not None:
        relief.gloss = relief.gloss * (1 - 0.45 * strength * step(distance, 1.0, 0.85))
    return (distance < 1.1) & (relief.part > 0.5)


def _fibre(relief: Relief, rng: np.random.Generator) -> np.ndarray:
    """Draw a curled thread of another material on the surface, with its shadow, and return its mask."""
    x, y = _place(relief, rng, 24)
    steps = 120
    heading = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.uniform(-0.04, 0.04) + 0.07 * rng.standard_normal(steps))
    length = rng.uniform(48, 76)
    points_x, points_y = (np.cumsum(turn(heading)) * length / steps for turn in (np.cos, np.sin))
    points_x += x - points_x.mean()
    points_y += y - points_y.mean()
    thread = _stroke(points_x, points_y, rng.uniform(3.2, 4.6))
    shadow = _stroke(points_x + 2.5, points_y + 3, 3.5) * (1 - thread)
    colours = rng.permutation([(0.5, 0.03, 0.03), (0.03, 0.06, 0.4), (0.6, 0.55, 0.42), (0.02, 0.28, 0.06)])[:2]
    ground = relief.colour[thread > 0.3].mean(axis=0)
    colour = max(colours, key=lambda one: np.abs(one - ground).sum())
    opacity = rng.uniform(0.75, 1)
    relief.colour = mix(relief.colour * (1 - 0.6 * shadow)[..., None], colour, opacity * thread)
    relief.gloss = relief.gloss * (1 - opacity * thread) * (1 - 0.6 * shadow)
    relief.height += 1.5 * thread
    return thread > 0.3


def _broken(relief: Relief, rng: np.random.Generator) -> np.ndarray:
    """Break a piece out of an edge, exposing the rough inside below the surface, and return its mask."""
    edges = relief.edges[((relief.edges > 20) & (relief.edges < SIZE - 20)).all(axis=1)]
    x, y = edges[rng.integers(len(edges))]
    distance = _blob(x, y, rng.uniform(10, 15), rng, roundness=0.15)
    missing = step(distance, 1.05, 0.95) * relief.part
    rough = noise(rng, SIZE, SIZE)
    floor = relief.height[(distance < 1) & (relief.part > 0.5)].min()
    relief.height += missing * (floor - 2 + 0.8 * rough - relief.height)
    inside = np.array(relief.bare) * np.clip(0.65 + 0.15 * rough, 0, 1)[..., None]
    relief.colour = mix(relief.colour, inside, missing * rng.uniform(0.6, 1))
    relief.gloss = relief.gloss * (1 - missing)
    return (distance < 1) & (relief.part > 0.5)


SURFACES: dict[str, Callable[[np.random.Generator], Relief]] = {"flange": flange, "twill": twill, "grip": grip}
DEFECTS: dict[str, Callable[[Relief, np.random.Generator], np.ndarray]] = {
    "broken": _broken,
    "dent": _dent,
    "fibre": _fibre,
    "scratch": _scratch,
    "stain": _stain,
}


def _place(relief: Relief, rng: np.random.Generator, margin: int) -> tuple[float, float]:
    """Return a random position, x and y, at least `margin` pixels inside the image and 6 inside the part."""
    while True:
        x, y = rng.integers(margin, SIZE - margin, size=2)
        if relief.part[y - 6 : y + 7, x - 6 : x + 7].min() == 1:
            return float(x), float(y)


def _blob(x: float, y: float, radius: float, rng: np.random.Generator, roundness: float) -> np.ndarray:
    """Return each pixel's distance from x, y relative to a wavy outline around it, H×W: 1 on the outline."""
    right, down = _COLUMNS - x, _ROWS - y
    angle = np.arctan2(down, right)
    outline = np.ones_like(angle)
    for waves in (2, 3, 5, 7):
        outline += roundness * rng.standard_normal() / math.sqrt(waves) * np.cos(waves * angle + rng.uniform(0, 7))
    return np.hypot(right, down) / (radius * np.clip(outline, 0.5, 1.5))


def _stroke(x: np.ndarray, y: np.ndarray, width: float) -> np.ndarray:
    """Draw an antialiased line through the points that thins towards its ends: coverage H×W, 0 to 1."""
    fine = 4
    drawing = Image.new("L", (SIZE * fine, SIZE * fine))
    pen = ImageDraw.Draw(drawing)
    along = np.linspace(-1, 1, len(x))
    for right, down, radius in zip(x * fine, y * fine, width * fine / 2 * (1 - along**4), strict=True):
        pen.ellipse((right - radius, down - radius, right + radius, down + radius), fill=255)
    return np.asarray(drawing.reduce(fine)) / 255


def main() -> None:
    """Write the demo data set from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stlm_edge.data.demo",
        description="Write the built-in demo data set in MVTec AD layout: "
        f"{TRAINING} normal images to train on, {GOOD} normal and {DEFECTIVE * len(DEFECTS)} defective to test on.",
        epilog="example: python -m stlm_edge.data.demo --out data/demo",
    )
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images (default 0)")
    arguments = parser.parse_args()
    with exit_with_one_line():
        print(write_demo(arguments.out, arguments.seed))


if __name__ == "__main__":
    main()
