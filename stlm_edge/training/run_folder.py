"""The folder of a training run: everything that evaluation, export and bench need.

checkpoint.safetensors   the trained model (written at the end)
config.json              the settings, and what it was trained on
log.jsonl                one line per logged step and per validation
tensorboard/             the same for TensorBoard
state.pt                 the state of the training, for --resume (removed at the end)
held_out/                copies of the held-out normal images
golden/normal/           candidates for golden vectors: held-out normal images of at most 1 megapixel
golden/anomalous/        and pseudo-anomalous ones made from them
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from stlm_edge import strict_json
from stlm_edge.data.pseudo_anomalies import make_pseudo_anomaly
from stlm_edge.data.textures import Source
from stlm_edge.errors import UsageError
from stlm_edge.files import replacing
from stlm_edge.images import read_image

CHECKPOINT = "checkpoint.safetensors"
CONFIG = "config.json"
LOG = "log.jsonl"
STATE = "state.pt"
GOLDEN_PIXELS = 1_000_000
_NORMAL_CANDIDATES, _ANOMALOUS_CANDIDATES = 24, 32


def start(out: Path, config: dict[str, Any], resume: bool) -> None:
    """Make the folder; with `resume`, check that its run has the same config. Raises UsageError where one can't."""
    if not (out / CONFIG).exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out}: exists and is not a training run; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / CONFIG) as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return
    if not resume:
        raise UsageError(f"{out}: a run exists already; continue it with --resume, or choose another --out")
    compare(out, config)


def compare(out: Path, config: dict[str, Any]) -> None:
    """Raise UsageError, with the names of the fields, when the run was started with another config."""
    differing = _differing(strict_json.load(out / CONFIG), config)
    if differing:
        raise UsageError(
            f"{out}: started with another {', '.join(differing)}; resume with the same settings or choose another --out"
        )


def _differing(before: Any, config: dict[str, Any]) -> list[str]:
    """Return the names of the fields that differ; within a recipe, such as "recipe.length"."""
    names = []
    for key, value in config.items():
        old = before.get(key) if isinstance(before, dict) else None
        if isinstance(value, dict) and isinstance(old, dict):
            names += [f"{key}.{name}" for name in _differing(old, value)]
        elif old != value:
            names.append(key)
    return names


def open_log(out: Path, step: int) -> TextIO:
    """Open the log to continue at `step`; the lines of later steps, which will run again, are removed."""
    path = out / LOG
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        with replacing(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in lines if json.loads(line)["step"] < step))
    return path.open("a", encoding="utf-8")


def keep_held_out(out: Path, images: Sequence[Path], source: Source, seed: int) -> None:
    """Copy the held-out normal images, and make the candidates for golden vectors from them."""
    held_out, normal, anomalous = out / "held_out", out / "golden" / "normal", out / "golden" / "anomalous"
    for folder in (held_out, normal, anomalous):
        folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(images):
        shutil.copyfile(path, held_out / f"{number:04}_{path.name}")
    for number, path in enumerate(images[:_NORMAL_CANDIDATES]):
        _of_a_megapixel(read_image(path)).save(normal / f"{number:02}.png")
    rng = np.random.default_rng([seed, 1_000_003])
    for number in range(_ANOMALOUS_CANDIDATES):
        image = _of_a_megapixel(read_image(images[number % len(images)]))
        side = max(image.size)
        square = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
        changed = Image.fromarray(make_pseudo_anomaly(square, rng, source)[0])
        changed.resize(image.size, Image.Resampling.BILINEAR).save(anomalous / f"{number:02}.png")


def _of_a_megapixel(image: Image.Image) -> Image.Image:
    shrink = min(1.0, (GOLDEN_PIXELS / (image.width * image.height)) ** 0.5)
    size = (max(1, int(image.width * shrink)), max(1, int(image.height * shrink)))
    return image if shrink == 1.0 else image.resize(size, Image.Resampling.BILINEAR)
