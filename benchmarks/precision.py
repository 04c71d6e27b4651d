"""Measure the cost of each target's reduced precision: size, map, verdicts, accuracy on labelled images.

    python benchmarks/precision.py --data DIR [--data DIR ...] [--longer 0.25] --runs RUNS --record F

For each data set, `quick` is trained on its normal images (or the finished run in RUNS is taken), and every target is
exported in every precision below fp32 with the data set's test images, as `stlm-export --data DIR` does: the same
gate, the same metrics. `desktop-gpu` has jetson's file. An export that fails its gate is written all the same and its
losses recorded. Exports that are done are kept in RUNS, so that the same command goes on where it was interrupted.
Prints the table of benchmarks/results/README.md.
"""

import argparse
import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stlm_edge.bench.machine import system
from stlm_edge.errors import exit_with_one_line
from stlm_edge.export.gate import METRICS
from stlm_edge.export.pipeline import export
from stlm_edge.export.targets import LARGEST_MB, TARGETS
from stlm_edge.files import replacing
from stlm_edge.training.job import Job
from stlm_edge.training.recipes import QUICK
from stlm_edge.training.train import train

BEYOND = ("desktop-gpu",)  # whose files are jetson's, or need a GPU
PACKAGES = ("stlm-edge", "torch", "onnxruntime", "ai-edge-litert", "openvino", "nncf", "coremltools")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--longer", type=float, default=1.0, help="multiply the recipe's steps")
    parser.add_argument("--only", action="append", metavar="TARGET-PRECISION", help="such as cpu-int8 (default: all)")
    parser.add_argument("--runs", type=Path, required=True, help="folder for trainings and bundles")
    parser.add_argument("--record", type=Path, help="JSON file to write the rows to")
    options = parser.parse_args()
    with exit_with_one_line("interrupted; the same command goes on"):
        before = system.moment()
        rows = []
        for data in options.data:
            checkpoint = trained(data, options.runs / data.name, options.longer)
            for label, target, via, precision in exports():
                if not options.only or label in options.only:
                    rows.append(measured(label, target, via, precision, checkpoint, data))
                    print(json.dumps(rows[-1]), flush=True)
        if options.record:
            only = "".join(f" --only {label}" for label in options.only or ())
            data = " ".join(f"--data {folder.name}" for folder in options.data)
            record = {
                "command": f"python benchmarks/precision.py {data} --longer {options.longer:g}{only} --runs RUNS",
                "date": datetime.date.today().isoformat(),
                "machine": asdict(system.describe(PACKAGES, before)),
                "recipe": f"quick, {QUICK.longer(options.longer).length} steps, seed 0, S={QUICK.size}",
                "rows": rows,
            }
            with replacing(options.record) as temporary:
                temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(table(rows))


def exports() -> list[tuple[str, str, str | None, str]]:
    """Label, target, converter and precision of each export: int8 first, it is what may cost."""
    found = [
        ("-".join(filter(None, [row.name, row.via, precision])), row.name, row.via, precision)
        for row in TARGETS
        for precision in row.precisions
        if row.name not in BEYOND and precision != "fp32"
    ]
    return sorted(found, key=lambda one: one[3] != "int8")


def trained(data: Path, run: Path, longer: float) -> Path:
    """The checkpoint of a run that is finished, or is finished here."""
    checkpoint = run / "checkpoint.safetensors"
    if not checkpoint.is_file():
        train(Job(data, QUICK.longer(longer), QUICK.size, seed=0), run, resume=True)
    return checkpoint


def measured(label: str, target: str, via: str | None, precision: str, checkpoint: Path, data: Path) -> dict[str, Any]:
    """A row, from the export or from what an earlier one left in the run's folder."""
    left = checkpoint.parent / "exports" / f"{label}.json"
    if left.is_file():
        return json.loads(left.read_text(encoding="utf-8"))
    left.parent.mkdir(exist_ok=True)
    done = export(
        target,
        checkpoint=checkpoint,
        precision=precision,
        via=via,
        data=data,
        out=left.with_suffix(""),
        allow_parity_loss=True,
        force=True,
    )
    megabytes = sum(file.bytes for file in done.manifest.artifact_files) / 1e6
    row = {
        "data": data.name,
        "export": label,
        "precision": precision,
        "mb": megabytes,
        "within_budget": megabytes <= LARGEST_MB[precision],
        "cosine": done.parity.cosine,
        "max_abs_diff": done.parity.max_abs_diff,
        "images": done.parity.images,
        "verdict_failures": done.parity.verdict_failures,
        "kept_in_float": list(done.candidates[-1].kept_in_float) if done.candidates else [],
        "tries": len(done.candidates),
        "accuracy": done.accuracy,
        "checked_by": done.checked_by,
        "losses": done.losses,
    }
    with replacing(left) as temporary:
        temporary.write_text(json.dumps(row, allow_nan=False), encoding="utf-8")
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| data | export | MB | kept | map cosine | verdicts failed | image AUROC | pixel AUROC | AUPRO | gate |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        accuracy = row["accuracy"] or {"trained": dict.fromkeys(METRICS), "packed": dict.fromkeys(METRICS)}
        changes = [_change(accuracy["trained"][name], accuracy["packed"][name]) for name in METRICS]
        cells = [
            row["data"],
            row["export"],
            f"{row['mb']:.1f}",
            str(len(row["kept_in_float"])),
            f"{row['cosine']:.6f}",
            f"{row['verdict_failures']} of {row['images']}",
            *changes,
            "; ".join(row["losses"]) or "holds",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _change(before: float | None, after: float | None) -> str:
    return "n/a" if before is None or after is None else f"{100 * before:.2f} → {100 * after:.2f}"


if __name__ == "__main__":
    main()
