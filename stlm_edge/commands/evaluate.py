"""stlm-eval: measure a trained or packed model on labelled images, or each category's own model of a data set."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stlm_edge.commands.parser import CommandParser, needs_extra, number
from stlm_edge.commands.train import all_categories
from stlm_edge.errors import UsageError, exit_with_one_line

EXAMPLES = """examples:
  stlm-eval --checkpoint runs/bottle/checkpoint.safetensors --data images/bottle --out evaluation
  stlm-eval --bundle bundles/cpu-int8 --data images/bottle --out evaluation
  stlm-eval --checkpoint runs/mvtec_ad --data mvtec_ad --category all --out evaluation
each writes metrics.json and contact sheets into --out"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run stlm-eval."""
    options = parser().parse_args(arguments)
    with exit_with_one_line("interrupted; no metrics.json was written"), needs_extra("train"):
        from rich.console import Console

        from stlm_edge.evaluation import all_gather
        from stlm_edge.evaluation.evaluate import summary
        from stlm_edge.training import launcher

        if options.category == "all" and options.bundle:
            raise UsageError("--category all: expected --checkpoint, the folder with a run for each category")
        if launcher.is_supervisor_needed(options.devices):
            raise SystemExit(launcher.supervise(options.devices, "start it again"))
        with all_gather.joined():
            if options.category == "all":
                metrics = evaluate_all(options.checkpoint, options.data, options.format, options.out)
            else:
                model = options.bundle or options.checkpoint
                metrics = evaluate_one(model, options.data, options.category, options.format, options.out)
            if all_gather.rank() > 0:
                return
        if options.json:
            print(json.dumps(metrics, indent=2, allow_nan=False))
        else:
            Console().print(summary(metrics))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command = CommandParser("stlm-eval", "Measure a trained or packed model on labelled images.", EXAMPLES)
    model = command.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--checkpoint", type=Path, metavar="F", help="trained model; for --category all: the runs' folder"
    )
    model.add_argument("--bundle", type=Path, metavar="B", help="packed model")
    command.add_data(
        "folder of labelled images: a published data set, or plain images",
        "category of a data set that has several; all: each with its own model",
    )
    add = command.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for metrics.json and the contact sheets")
    add("--devices", type=number(int, 1), default=1, metavar="N", help="GPUs, or CPU processes, that share the work")
    add("--json", action="store_true", help="print the metrics as JSON")
    return command


def evaluate_one(model: Path, data: Path, category: str | None, format: str | None, out: Path) -> dict[str, Any]:
    """Evaluate a bundle (a folder) with its own runtime, or a checkpoint on this process's GPU or the CPU."""
    from stlm_edge.bundle import open_bundle
    from stlm_edge.data.datasets import test_samples
    from stlm_edge.evaluation import all_gather
    from stlm_edge.evaluation.evaluate import evaluate
    from stlm_edge.runtimes.torch import Torch

    samples = test_samples(data, category, format)
    if model.is_dir():
        bundle = open_bundle(model)
        threshold, size = bundle.manifest.decision_threshold, bundle.manifest.input.size
        return evaluate(bundle.runtime, samples, size, threshold, out, str(model))
    trained = Torch(model, device=all_gather.device())
    return evaluate(trained, samples, trained.size, trained.decision_threshold, out, str(model))


def evaluate_all(runs: Path, data: Path, format: str | None, out: Path) -> dict[str, Any]:
    """Evaluate `runs/<category>/checkpoint.safetensors` for each category into `out/<category>`.

    Returns the content of `out/metrics.json`: `source`, the metrics of each of `categories` as `evaluate` returns them,
    without `scores`, and the `mean` of each of COLUMNS, None where a category has none. Raises as `evaluate`; for a
    missing checkpoint or malformed data before the first category is evaluated.
    """
    from stlm_edge.data.datasets import test_samples
    from stlm_edge.evaluation import all_gather
    from stlm_edge.evaluation.evaluate import COLUMNS, METRICS
    from stlm_edge.files import write_text
    from stlm_edge.training.run_folder import CHECKPOINT

    names = all_categories(data, format)
    missing = [name for name in names if not (runs / name / CHECKPOINT).is_file()]
    if missing:
        raise UsageError(
            f"{runs}: no {CHECKPOINT} for {', '.join(missing)}; expected one in {runs}/<category>, as "
            "stlm-train --category all writes them"
        )
    for name in names:
        test_samples(data, name, format)
    categories = {}
    for position, name in enumerate(names, start=1):
        if all_gather.rank() == 0:
            print(f"{name}: category {position} of {len(names)}", file=sys.stderr, flush=True)
        metrics = evaluate_one(runs / name / CHECKPOINT, data, name, format, out / name)
        categories[name] = {key: value for key, value in metrics.items() if key != "scores"}
    mean = {}
    for key in COLUMNS:
        values = [metrics[key] for metrics in categories.values()]
        mean[key] = None if None in values else sum(values) / len(values)
    result = {"source": str(runs), "mean": mean, "categories": categories}
    if all_gather.rank() == 0:
        write_text(out / METRICS, json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


if __name__ == "__main__":
    main()
