"""Accuracy on real data sets: `quick` beside a PatchCore of the same teacher, in one run.

    python benchmarks/accuracy.py --data DIR [--data DIR ...] [--longer 3] [--seed 0 ...] --out RUN [--record FILE]

Every DIR is a data set in MVTec AD layout. Training uses its normal pictures only, the last step counts, and nothing is
selected on the test pictures. PatchCore (Roth et al., CVPR 2022): the teacher's features of strides 8 and 16, averaged
over 3×3, a random tenth of the training patches as memory, Euclidean distance, the map smoothed with σ = 4.
"""

import argparse
import json
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter

from stlm_edge.bench.machine import describe
from stlm_edge.calibrate import calibrate
from stlm_edge.data.batches import Pictures
from stlm_edge.data.datasets import test_samples, training_samples
from stlm_edge.errors import exit_with_one_line
from stlm_edge.evaluate import evaluate
from stlm_edge.job import Job
from stlm_edge.recipes import RECIPES
from stlm_edge.runtimes.torch import Torch
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.train import train

MEMORY_SHARE = 0.1
FIGURES = ("image_auroc", "pixel_auroc", "aupro")


class PatchCore:
    """A memory of normal patches; the anomaly map is the distance to the nearest of them."""

    name = "patchcore"

    def __init__(self, teacher: EfficientNetLite0, pictures: Pictures, seed: int):
        self.teacher = teacher
        rng = np.random.default_rng(seed)
        patches = []
        for picture in pictures:
            found = self.features(picture)[0].flatten(1).T
            patches.append(found[torch.from_numpy(rng.random(len(found)) < MEMORY_SHARE)])
        self.memory = torch.cat(patches)

    @torch.inference_mode()
    def features(self, picture: np.ndarray) -> torch.Tensor:
        """S×S×3 uint8 → 1×152×S/8×S/8."""
        x = (torch.from_numpy(picture)[None].permute(0, 3, 1, 2).float() - 127.0) / 128.0
        low, high = (F.avg_pool2d(f, 3, 1, 1, count_include_pad=False) for f in self.teacher.backbone(x))
        return torch.cat([low, F.interpolate(high, size=low.shape[-2:], mode="bilinear", align_corners=False)], dim=1)

    @torch.inference_mode()
    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        features = self.features(image)
        distance = torch.cdist(features[0].flatten(1).T, self.memory).min(dim=1).values.reshape(features.shape[-2:])
        upsampled = F.interpolate(distance[None, None], size=image.shape[:2], mode="bilinear", align_corners=False)
        return gaussian_filter(upsampled[0, 0].numpy(), 4.0), distance.max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--longer", type=float, default=1.0, help="multiply the recipe's steps")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--record", type=Path, help="JSON file to write the rows to")
    options = parser.parse_args()
    rows = []
    for data in options.data:
        rows.append(measure_patchcore(data, options.size))
        for seed in options.seed or [0]:
            rows.append(measure_quick(data, options.size, seed, options.longer, options.out))
    show(rows)
    if options.record:
        record = {
            "command": command(options),
            "date": date.today().isoformat(),
            "machine": asdict(describe()),
            "rows": rows,
        }
        options.record.write_text(json.dumps(record, indent=2) + "\n")


def command(options: argparse.Namespace) -> str:
    """What made the rows, with the names of the data sets and nothing of where they stand."""
    data = " ".join(f"--data {folder.name}" for folder in options.data)
    seeds = " ".join(f"--seed {seed}" for seed in options.seed or [0])
    return f"python benchmarks/accuracy.py {data} --longer {options.longer:g} --size {options.size} {seeds} --out RUN"


def measure_patchcore(data: Path, size: int) -> dict:
    began = time.monotonic()
    pictures = Pictures([sample.picture for sample in training_samples(data)], size)
    patchcore = PatchCore(EfficientNetLite0(), pictures, seed=0)
    seconds = time.monotonic() - began
    placeholder = calibrate([0.0, 1.0], [0.0, 1.0])  # verdicts are not compared here
    metrics = evaluate(patchcore, test_samples(data), size, placeholder, None, "patchcore")
    return {"data": data.name, "method": "PatchCore", "seconds": round(seconds), **{f: metrics[f] for f in FIGURES}}


def measure_quick(data: Path, size: int, seed: int, longer: float, out: Path) -> dict:
    began = time.monotonic()
    run = out / f"{data.name}-{seed}"
    recipe = RECIPES["quick"].longer(longer)
    model = Torch(train(Job(data, recipe, size, seed=seed), run, resume=True))
    seconds = time.monotonic() - began
    metrics = evaluate(model, test_samples(data), size, model.calibration, run / "evaluation", "checkpoint")
    name = f"STLM quick, {recipe.steps} steps, seed {seed}"
    return {"data": data.name, "method": name, "seconds": round(seconds), **{f: metrics[f] for f in FIGURES}}


def show(rows: list[dict]) -> None:
    table = Table("data", "method", "training, s", "image AUROC", "pixel AUROC", "AUPRO")
    for row in rows:
        figures = ("n/a" if row[f] is None else f"{100 * row[f]:.1f}" for f in FIGURES)
        table.add_row(row["data"], row["method"], str(row["seconds"]), *figures)
    Console().print(table)


if __name__ == "__main__":
    with exit_with_one_line("interrupted; the same command goes on"):
        main()
