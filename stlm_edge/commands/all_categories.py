"""Every category of a data set, one after the other: a run for each of them, and one table of all."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from stlm_edge.data.datasets import categories, test_samples, training_samples
from stlm_edge.errors import UsageError
from stlm_edge.evaluation import all_gather
from stlm_edge.evaluation.evaluate import METRICS, evaluate
from stlm_edge.evaluation.metrics import FPR_LIMIT
from stlm_edge.files import write_text
from stlm_edge.runtimes.torch import Torch
from stlm_edge.training import run_folder
from stlm_edge.training.launcher import said_once
from stlm_edge.training.train import Job, train

FIGURES = {"image_auroc": "Image AUROC", "pixel_auroc": "Pixel AUROC", "aupro": "AUPRO", "image_f1": "Image F1"}


@said_once()
def train_all(job: Job, out: Path, resume: bool = False) -> dict[str, Path]:
    """Train a model for each category into `out/<category>`; returns the paths of their checkpoints.

    Interrupted, it goes on in the category where it was when called again with `resume`; finished ones are left alone.
    Raises UsageError and JobError as `train` does; what is wrong with the data or `out`, before the first category.
    """
    names = _categories(job.data, job.format)
    if (out / run_folder.CONFIG).exists():
        raise UsageError(f"{out}: is a run itself; expected a folder for a run of each category, choose another --out")
    for name in names:
        training_samples(job.data, name, job.format)
        if not resume and (out / name).exists():
            raise UsageError(f"{out / name}: exists already; go on by --resume, or choose another --out")
    checkpoints = {}
    for number, name in enumerate(names, start=1):
        _announce(f"{name}: category {number} of {len(names)}")
        checkpoints[name] = train(replace(job, category=name), out / name, resume)
    return checkpoints


def evaluate_all(runs: Path, data: Path, format: str | None, out: Path) -> dict[str, Any]:
    """Evaluate `runs/<category>/checkpoint.safetensors` for each category into `out/<category>`.

    Returns what `out/metrics.json` holds: under `categories` the figures of each as `evaluate` gives them, without the
    entries for single images; under `mean` the plain mean over the categories of each of FIGURES, None where one of
    the categories has none; and `source`. Raises UsageError and JobError as `evaluate` does; for a missing checkpoint
    or malformed data, before the first category is judged.
    """
    names = _categories(data, format)
    missing = [name for name in names if not (runs / name / run_folder.CHECKPOINT).is_file()]
    if missing:
        raise UsageError(
            f"{runs}: no {run_folder.CHECKPOINT} for {', '.join(missing)}; expected one in {runs}/<category>, as "
            "stlm-train --category all writes them"
        )
    for name in names:
        test_samples(data, name, format)
    found = {}
    for number, name in enumerate(names, start=1):
        _announce(f"{name}: category {number} of {len(names)}")
        metrics = evaluate_checkpoint(runs / name / run_folder.CHECKPOINT, data, name, format, out / name)
        found[name] = {key: value for key, value in metrics.items() if key != "scores"}
    result = {"source": str(runs), "mean": _mean(found), "categories": found}
    if all_gather.rank() == 0:
        write_text(out / METRICS, json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def evaluate_checkpoint(
    checkpoint: Path, data: Path, category: str | None, format: str | None, out: Path
) -> dict[str, Any]:
    """Evaluate a trained model on this process's GPU, or the CPU. Raises UsageError where it has no threshold."""
    model = Torch(checkpoint, device=all_gather.device())
    if model.decision_threshold is None:
        raise UsageError(f"{checkpoint}: has no threshold; train anew")
    return evaluate(
        model, test_samples(data, category, format), model.size, model.decision_threshold, out, str(checkpoint)
    )


def summary(metrics: dict[str, Any]) -> Table:
    """The figures as a table for a terminal: a row for each category, the mean last; a missing figure is "n/a"."""
    table = Table(
        title=escape(metrics["source"]),
        caption=f"each category at the threshold of its own model; AUPRO up to a false-positive rate of {FPR_LIMIT}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("Category")
    for column in (*FIGURES.values(), "False alarms", "Missed"):
        table.add_column(column, justify="right")
    for name, figures in metrics["categories"].items():
        verdicts = (
            f"{figures[wrong]} of {figures[of]}" for wrong, of in (("false_alarms", "normal"), ("missed", "anomalous"))
        )
        table.add_row(escape(name), *map(_share, (figures[key] for key in FIGURES)), *verdicts)
    table.add_section()
    table.add_row("mean", *map(_share, metrics["mean"].values()), style="bold")
    return table


def _categories(data: Path, format: str | None) -> list[str]:
    names = categories(data, format)
    if not names:
        raise UsageError(f"{data}: is not divided into categories; leave out --category all")
    return names


def _mean(found: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    columns = {key: [figures[key] for figures in found.values()] for key in FIGURES}
    return {key: None if None in column else sum(column) / len(column) for key, column in columns.items()}


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


def _announce(line: str) -> None:
    if all_gather.rank() == 0:
        print(line, file=sys.stderr, flush=True)
