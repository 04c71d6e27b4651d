"""Measure each choice of `quick`: one training for each change of one choice, and other ways of computing the map.

    python benchmarks/ablation.py --data DIR [--data DIR ...] --out RUN [--longer 0.5] [--only CHANGE] [--record FILE]

All rows of a data set are one run, of one seed; the last step counts. The same command continues an interrupted
run. The first rows compute the map from one model's two cosine distances in other ways, the later ones train another
model.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from patchcore import PatchCore
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter
from torch import Tensor

from stlm_edge.bench.machine.system import describe
from stlm_edge.data.batches import Images
from stlm_edge.data.datasets import Sample, test_samples, training_samples
from stlm_edge.data.pseudo_anomalies import KINDS
from stlm_edge.data.sample import mask_of
from stlm_edge.errors import exit_with_one_line
from stlm_edge.evaluation.metrics import DetectionMetrics
from stlm_edge.images import load
from stlm_edge.model import STLM, checkpoint
from stlm_edge.model.stlm import SCORE_PIXELS
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.training.job import Job, in_batches
from stlm_edge.training.recipes import RECIPES, Aggregation
from stlm_edge.training.train import train

METRICS = ("image_auroc", "pixel_auroc", "aupro")
PACKAGES = ("stlm-edge", "torch", "numpy", "pillow")

READINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "1 − cos of the image embedding (k=1)": lambda first, second: first,
    "1 − cos of the image tokens (k=2)": lambda first, second: second,
    "their product (the paper's tlm_map)": lambda first, second: first * second,
    "their sum": lambda first, second: first + second,
    "k=1 and half of k=2": lambda first, second: first + 0.5 * second,
}

TRAINED = Aggregation(lr=1e-4)
VARIANTS: dict[str, dict[str, Any]] = {
    "denoising learns the teacher's features": {"denoising_target": "teacher"},
    "pseudo-anomalies of every kind": {"pseudo_anomalies": tuple(KINDS)},
    "of every kind but Perlin's": {"pseudo_anomalies": tuple(kind for kind in KINDS if kind != "perlin")},
    "FA trained, detached, cross-entropy + dice": {"aggregation": TRAINED},
    "the same, on every kind": {"aggregation": TRAINED, "pseudo_anomalies": tuple(KINDS)},
    "FA trained, focal + L1": {"aggregation": replace(TRAINED, loss="focal+l1")},
    "FA trained, not detached": {"aggregation": replace(TRAINED, detached=False)},
    "plain stream trained too": {"plain_lr": 3e-5, "denoising_target": "teacher"},
    "half of the rate": {"denoising_lr": 3e-4},
    "from random weights": {
        "initial_weights": "random", "plain_lr": 3e-4, "denoising_lr": 3e-4, "denoising_target": "teacher",
    },
    "FA trained, against the mask's nearest pixels": {
        "aggregation": replace(TRAINED, loss="cross-entropy+dice on nearest pixels"),
    },
    "FA trained, focal + L1, on every kind": {
        "aggregation": replace(TRAINED, loss="focal+l1"), "pseudo_anomalies": tuple(KINDS),
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--longer", type=float, default=1.0, help="multiply the recipe's steps")
    parser.add_argument("--init", help="file of initial weights (default: the shipped one)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--only", action="append", choices=VARIANTS, help="train this change alone, beside `quick`")
    parser.add_argument("--record", type=Path, help="JSON file to write the rows to")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for data in options.data:
        test = Test(test_samples(data), RECIPES["quick"].size)
        model = trained(data, {}, options, "quick")
        plain = test.distances(model)
        rows.append({"data": data.name, "change": "quick", **test.metrics(test.maps(model))})
        for name, read in READINGS.items():
            rows.append({"data": data.name, "change": f"map: {name}", **test.metrics(read(*plain))})
        for sigma in (4, 8):
            row = test.metrics(test.maps(model), sigma=sigma)
            rows.append({"data": data.name, "change": f"map smoothed, σ = {sigma} pixels", **row})
        for pixels in (1, 1000):
            row = test.metrics(test.maps(model), score_pixels=pixels)
            rows.append({"data": data.name, "change": f"score of {pixels} pixels", **row})
        for number, (name, changes) in enumerate(VARIANTS.items()):
            if options.only and name not in options.only:
                continue
            model = trained(data, changes, options, f"variant-{number}")
            maps = test.maps(model)
            rows.append({"data": data.name, "change": name, **test.metrics(maps)})
            print(rows[-1], flush=True)
            if "aggregation" in changes:
                first, second = test.distances(model)
                combined = maps * first * second
                rows.append({"data": data.name, "change": f"{name}; FA's map times tlm_map", **test.metrics(combined)})
        rows += memory_banks(data, test)
        show(rows)
    if options.record:
        steps = RECIPES["quick"].longer(options.longer).length
        record = {
            "command": command(options),
            "date": date.today().isoformat(),
            "machine": asdict(describe(PACKAGES)),
            "steps": steps,
            "rows": rows,
        }
        options.record.write_text(json.dumps(record, indent=2) + "\n")


def command(options: argparse.Namespace) -> str:
    """Return the command that made the rows, with the names of the data sets and without their paths."""
    data = " ".join(f"--data {folder.name}" for folder in options.data)
    only = "".join(f' --only "{change}"' for change in options.only or ())
    return f"python benchmarks/ablation.py {data} --longer {options.longer:g}{only} --out RUN"


def memory_banks(data: Path, test: "Test") -> list[dict[str, Any]]:
    """Return the rows of the teacher's own two maps, each alone in a PatchCore's memory of normal images."""
    images = Images([sample.image for sample in training_samples(data)], test.size)
    teacher = EfficientNetLite0()
    teacher.fit(in_batches(images))
    rows = []
    for k in (1, 2):
        bank = PatchCore(lambda batch, k=k: F.normalize(teacher(batch)[k - 1], dim=1), images)
        maps = torch.stack([torch.from_numpy(bank.distances(image.numpy())) for image in test.images])
        rows.append({"data": data.name, "change": f"PatchCore of the teacher's map k={k}", **test.metrics(maps)})
    return rows


class Test:
    """A data set's test images at S×S with their masks."""

    def __init__(self, samples: list[Sample], size: int):
        self.size = size
        self.anomalous = [sample.anomalous for sample in samples]
        self.images = torch.from_numpy(np.stack([load(sample.image, size) for sample in samples]))
        self.masks = [mask_of(sample, size) for sample in samples]

    @torch.inference_mode()
    def maps(self, model: STLM) -> Tensor:
        """Return FA's map at S/16, N×h×w."""
        logits = [model.fa(*model.streams(model.normalise(x))) for x in self.images.split(8)]
        return torch.cat(logits).sigmoid()[:, 0]

    @torch.inference_mode()
    def distances(self, model: STLM) -> tuple[Tensor, Tensor]:
        """Return 1 − cos of both maps, each N×h×w."""
        distances = []
        for x in self.images.split(8):
            plain, denoising = model.streams(model.normalise(x))
            distances.append([1 - F.cosine_similarity(p, d, dim=1) for p, d in zip(plain, denoising, strict=True)])
        first, second = (torch.cat(parts) for parts in zip(*distances, strict=True))
        return first, second

    def metrics(self, maps: Tensor, sigma: float = 0, score_pixels: int = SCORE_PIXELS) -> dict[str, float | None]:
        """Return image AUROC, pixel AUROC and AUPRO, 0 to 1, of N×h×w maps."""
        metrics = DetectionMetrics()
        for grid, mask, anomalous in zip(maps, self.masks, self.anomalous, strict=True):
            upsampled = F.interpolate(grid[None, None], size=self.size, mode="bilinear")[0, 0].numpy()
            smoothed = gaussian_filter(upsampled, sigma) if sigma else upsampled
            score = float(np.sort(smoothed, axis=None)[-score_pixels:].mean())
            metrics.update(smoothed, score, anomalous, mask)
        values = metrics.compute()
        return {name: values[name] for name in METRICS}


def trained(data: Path, changes: dict[str, Any], options: argparse.Namespace, name: str) -> STLM:
    """Train `quick` with changes, or load what an earlier call has trained."""
    recipe = replace(RECIPES["quick"].longer(options.longer), **changes)
    init = None if recipe.initial_weights == "random" else options.init
    job = Job(data, recipe, recipe.size, init=init)
    return checkpoint.load(train(job, options.out / data.name / name, resume=True)).model.eval()


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("data", "change", "image AUROC", "pixel AUROC", "AUPRO")
    for row in rows:
        values = ("n/a" if row[name] is None else f"{100 * row[name]:.1f}" for name in METRICS)
        table.add_row(row["data"], row["change"], *values)
    Console().print(table)


if __name__ == "__main__":
    with exit_with_one_line("interrupted; the same command continues"):
        main()
