"""Accuracy on real data sets: a recipe compared with a PatchCore of the same teacher, in one run.

    python benchmarks/accuracy.py --data DIR [--data DIR ...] [--recipe quick] [--longer 3] [--seed 0 ...] --out RUN

Training uses a data set's normal images only, the last step counts, and nothing is selected on the test images.
Exits 1 where `quick` stays under the goal of a data set that has one, or `standard` is not ahead of PatchCore in pixel
AUROC and AUPRO.
"""

import argparse
import json
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path

from patchcore import PatchCore, of_the_teacher
from rich.console import Console
from rich.table import Table

from stlm_edge.bench.machine.system import describe
from stlm_edge.data.batches import Images
from stlm_edge.data.datasets import test_samples, training_samples
from stlm_edge.errors import JobError, exit_with_one_line
from stlm_edge.evaluation.evaluate import evaluate
from stlm_edge.runtimes.torch import Torch
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.threshold import calibrate
from stlm_edge.training.job import Job
from stlm_edge.training.recipes import RECIPES
from stlm_edge.training.train import train

METRICS = ("image_auroc", "pixel_auroc", "aupro")
PACKAGES = ("stlm-edge", "torch", "numpy", "pillow")
GOALS = {"mvtec_bottle_448": (0.995, 0.97, 0.91), "magnetic_tile": (0.85, 0.64, 0.60)}
"""Folder's name → least METRICS of every seed's `quick`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--longer", type=float, default=1.0, help="multiply the recipe's steps")
    parser.add_argument("--recipe", choices=RECIPES, default="quick")
    parser.add_argument("--size", type=int, help="default: the recipe's")
    parser.add_argument("--init", help="file of initial weights (default: the shipped one)")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--record", type=Path, help="JSON file to write the rows to")
    options = parser.parse_args()
    options.size = options.size or RECIPES[options.recipe].size
    rows = []
    for data in options.data:
        rows.append(measure_patchcore(data, options.size))
        for seed in options.seed or [0]:
            rows.append(measure_stlm(data, seed, options))
            print(rows[-1], flush=True)
    show(rows)
    if options.record:
        record = {
            "command": command(options),
            "date": date.today().isoformat(),
            "machine": asdict(describe(PACKAGES)),
            "rows": rows,
        }
        options.record.write_text(json.dumps(record, indent=2) + "\n")
    missed = {"quick": short_of_goals, "standard": behind_patchcore}.get(options.recipe, lambda rows: [])(rows)
    if missed:
        raise JobError("; ".join(missed))


def command(options: argparse.Namespace) -> str:
    """Return the command of the rows, with the data sets' names instead of their paths."""
    data = " ".join(f"--data {folder.name}" for folder in options.data)
    seeds = " ".join(f"--seed {seed}" for seed in options.seed or [0])
    size = f"--recipe {options.recipe} --longer {options.longer:g} --size {options.size}"
    return f"python benchmarks/accuracy.py {data} {size} {seeds} --out RUN"


def measure_patchcore(data: Path, size: int) -> dict:
    began = time.monotonic()
    images = Images([sample.image for sample in training_samples(data)], size)
    patchcore = PatchCore(of_the_teacher(EfficientNetLite0()), images)
    seconds = time.monotonic() - began
    placeholder = calibrate([0.0, 1.0], [0.0, 1.0])  # verdicts are not compared here
    metrics = evaluate(patchcore, test_samples(data), size, placeholder, None, "patchcore")
    return {"data": data.name, "method": "PatchCore", "seconds": round(seconds), **{f: metrics[f] for f in METRICS}}


def measure_stlm(data: Path, seed: int, options: argparse.Namespace) -> dict:
    began = time.monotonic()
    size, run = options.size, options.out / f"{data.name}-{options.recipe}-{seed}"
    recipe = RECIPES[options.recipe].longer(options.longer)
    model = Torch(train(Job(data, recipe, size, seed=seed, init=options.init), run, resume=True))
    seconds = time.monotonic() - began
    metrics = evaluate(model, test_samples(data), size, model.decision_threshold, run / "evaluation", "checkpoint")
    name = f"STLM {recipe.name}, {recipe.length} {recipe.unit}, seed {seed}"
    return {"data": data.name, "method": name, "seconds": round(seconds), **{f: metrics[f] for f in METRICS}}


def short_of_goals(rows: list[dict]) -> list[str]:
    """A line for each STLM row with a figure below its data set's goal."""
    return [
        f"{row['data']}, {row['method']}: {name} {100 * row[name]:.1f} is under {100 * goal:.1f}"
        for row in rows
        if row["data"] in GOALS and row["method"] != "PatchCore"
        for name, goal in zip(METRICS, GOALS[row["data"]], strict=True)
        if row[name] < goal
    ]


def behind_patchcore(rows: list[dict]) -> list[str]:
    """A line for each figure at pixel level in which a STLM row is not ahead of its data set's PatchCore."""
    peers = {row["data"]: row for row in rows if row["method"] == "PatchCore"}
    return [
        f"{row['data']}, {row['method']}: {name} {100 * row[name]:.1f}, PatchCore's is {100 * peer[name]:.1f}"
        for row in rows
        if row["method"] != "PatchCore"
        for peer in [peers[row["data"]]]
        for name in ("pixel_auroc", "aupro")
        if row[name] is not None and row[name] <= peer[name]
    ]


def show(rows: list[dict]) -> None:
    table = Table("data", "method", "training, s", "image AUROC", "pixel AUROC", "AUPRO")
    for row in rows:
        values = ("n/a" if row[name] is None else f"{100 * row[name]:.1f}" for name in METRICS)
        table.add_row(row["data"], row["method"], str(row["seconds"]), *values)
    Console().print(table)


if __name__ == "__main__":
    with exit_with_one_line("interrupted; the same command continues"):
        main()
