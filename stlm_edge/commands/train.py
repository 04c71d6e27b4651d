"""stlm-train: train a model on images of good parts, or one model for each category of a data set."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stlm_edge.commands.parser import CommandParser, needs_extra, number
from stlm_edge.errors import UsageError, exit_with_one_line
from stlm_edge.threshold import check_rate, describe

if TYPE_CHECKING:
    from stlm_edge.training.job import Job

EXAMPLES = """examples:
  stlm-train --data images/bottle --recipe quick --size 224 --out runs/bottle
  stlm-train --data mvtec_ad --category all --recipe paper --teacher vit_h --out runs/mvtec_ad
--category all writes a run for each category into OUT/<category>"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run stlm-train."""
    options = parser().parse_args(arguments)
    resume = "interrupted; the same command with --resume continues from the last saved step"
    with exit_with_one_line(resume), needs_extra("train"):
        from stlm_edge.evaluation import all_gather
        from stlm_edge.model import checkpoint
        from stlm_edge.training import launcher
        from stlm_edge.training.train import train

        if launcher.is_supervisor_needed(options.devices):
            raise SystemExit(launcher.supervise(options.devices))
        check_rate(options.false_alarm_rate)
        job = job_of(options)
        if options.category == "all":
            paths = {name: str(path) for name, path in train_all(job, options.out, options.resume).items()}
            if all_gather.rank() == 0:
                print(json.dumps(paths, indent=2) if options.json else "\n".join(paths.values()))
            return
        path = train(job, options.out, options.resume)
        threshold = checkpoint.load(path).decision_threshold
        if options.json:
            trained = {"checkpoint": str(path), "threshold": threshold.value, "images": threshold.images}
            print(json.dumps(trained, indent=2))
        else:
            print(f"{path}: {describe(threshold)}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command = CommandParser("stlm-train", "Train a model on images of good parts.", EXAMPLES)
    command.add_data(
        "folder of images: a published data set, or plain images",
        "category of a data set that has several; all: one after the other",
    )
    add = command.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="run folder to write")
    add("--recipe", choices=("quick", "standard", "paper"), default="quick", help="training recipe (default: quick)")
    add("--size", type=int, metavar="S", help="side of the input, a multiple of 32 (default: the recipe's)")
    add(
        "--teacher",
        default="efficientnet-lite0",
        metavar="T",
        help="frozen teacher: efficientnet-lite0, vit_t, vit_b, vit_l or vit_h (default: efficientnet-lite0)",
    )
    add("--teacher-weights", type=Path, metavar="F", help="the teacher's published weights (default: downloaded once)")
    add("--init", metavar="W", help="initial weights: shipped, random, vit_t or a file (default: the recipe's)")
    add("--textures", type=Path, metavar="DIR", help="folder of textures for pseudo-anomalies, such as DTD")
    add("--val-fraction", type=float, default=0.15, metavar="R", help="share of images held out (default: 0.15)")
    add("--patience", type=number(int, 1), metavar="N", help="stop after N validations in a row without improvement")
    add("--false-alarm-rate", type=float, default=0.01, metavar="R", help="accepted false alarms (default: 0.01)")
    add("--longer", type=number(float, 0.001, 1000), default=1.0, metavar="X", help="multiply the recipe's steps by X")
    add("--seed", type=number(int, 0), default=0, metavar="N", help="seed of all random choices (default: 0)")
    add("--resume", action="store_true", help="continue an interrupted run")
    add("--devices", type=number(int, 1), default=1, metavar="N", help="GPUs, or CPU processes, that share the work")
    add("--logger", choices=("tensorboard", "wandb"), default="tensorboard", help="logger (default: tensorboard)")
    add("--json", action="store_true", help="print the result as JSON")
    return command


def job_of(options: argparse.Namespace) -> "Job":
    """Return the training job that the options describe."""
    from stlm_edge.training.job import Job
    from stlm_edge.training.recipes import RECIPES

    recipe = RECIPES[options.recipe]
    if options.longer != 1:
        recipe = recipe.longer(options.longer)
    settings = {field.name: getattr(options, field.name) for field in fields(Job) if field.name in options}
    return Job(**settings | {"recipe": recipe, "size": options.size or recipe.size})


def train_all(job: "Job", out: Path, resume: bool = False) -> dict[str, Path]:
    """Train a model for each category into `out/<category>`; return the path of each one's checkpoint.

    With `resume`, finished categories are left alone and the interrupted one is continued. Raises as `train`; for
    unusable data or an unusable `out` before the first category is trained.
    """
    from stlm_edge.data.datasets import training_samples
    from stlm_edge.evaluation import all_gather
    from stlm_edge.training import run_folder
    from stlm_edge.training.launcher import report_errors_once
    from stlm_edge.training.train import train

    with report_errors_once():
        names = all_categories(job.data, job.format)
        if (out / run_folder.CONFIG).exists():
            raise UsageError(f"{out}: is a run itself; expected a folder with a run per category, choose another --out")
        for name in names:
            training_samples(job.data, name, job.format)
            if not resume and (out / name).exists():
                raise UsageError(f"{out / name}: exists already; continue it with --resume, or choose another --out")
        checkpoints = {}
        for position, name in enumerate(names, start=1):
            if all_gather.rank() == 0:
                print(f"{name}: category {position} of {len(names)}", file=sys.stderr, flush=True)
            checkpoints[name] = train(replace(job, category=name), out / name, resume)
        return checkpoints


def all_categories(data: Path, format: str | None) -> list[str]:
    """Return the categories of a data set. Raises UsageError where it has none."""
    from stlm_edge.data.datasets import categories

    names = categories(data, format)
    if not names:
        raise UsageError(f"{data}: is not divided into categories; leave out --category all")
    return names


if __name__ == "__main__":
    main()
