"""Accuracy on real data sets: `quick` beside a PatchCore of the same teacher, in one run.

    python benchmarks/accuracy.py --data DIR [--data DIR ...] [--longer 3] [--seed 0 ...] --out RUN [--record FILE]

Training uses a data set's normal pictures only, the last step counts, and nothing is selected on the test pictures.
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

FIGURES = ("image_auroc", "pixel_auroc", "aupro")


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
    patchcore = PatchCore(of_the_teacher(EfficientNetLite0()), pictures)
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
