"""Export: a checkpoint and a target's row in, a bundle out that was proven against the trained model first.

The gate judges the packed model as a device will, by its own runtime, on every candidate picture of the run (normal and
pseudo-anomalous) and, with labelled data, by its figures. What does not pass is not written.
"""

import importlib.metadata
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from stlm_edge import parity
from stlm_edge.data.datasets import test_samples
from stlm_edge.errors import JobError, UsageError
from stlm_edge.evaluate import evaluate
from stlm_edge.golden import GoldenCandidate, fit_golden, select_golden
from stlm_edge.manifest import Calibration, Manifest
from stlm_edge.pack import check_writable, write_bundle
from stlm_edge.picture import list_pictures, read_picture, resize
from stlm_edge.run_folder import CHECKPOINT
from stlm_edge.runtimes import Runtime, open_runtime
from stlm_edge.runtimes.torch import Torch
from stlm_edge.targets import find

ACCURACY = ("image_auroc", "pixel_auroc", "aupro")
MOST_ACCURACY_LOSS = 0.005
PACKAGES = ("stlm-edge", "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and what it measured. `accuracy` maps a figure to (trained, packed)."""

    folder: Path
    manifest: Manifest
    accuracy: dict[str, tuple[float | None, float | None]]


def export(
    target_name: str,
    precision: str | None = None,
    checkpoint_path: Path | None = None,
    calibration: Path | None = None,
    data: Path | None = None,
    category: str | None = None,
    out: Path | None = None,
    allow_parity_loss: bool = False,
    force: bool = False,
) -> Exported:
    """Pack a trained model for a target and prove it.

    `calibration` is a folder of normal pictures that joins the run's own in the proof. Raises UsageError for what
    cannot be used, JobError when the gate fails: nothing is left behind then.
    """
    target, precision = find(target_name, precision)
    path = checkpoint_path or newest_checkpoint()
    folder = out or Path("bundles") / f"{target.name}-{precision}"
    check_writable(folder, force)
    trained = Torch(path)
    threshold = trained.calibration
    if threshold is None:
        raise UsageError(f"{path}: has no threshold; train anew")
    samples = None if data is None else test_samples(data, category)

    status = Console(stderr=True).status("")
    with status, tempfile.TemporaryDirectory(prefix="stlm-export-") as temporary:
        status.update("asking the trained model about the golden candidates")
        candidates = judged(trained, path.parent, calibration)
        artifact = Path(temporary) / target.artifact
        status.update(f"converting to {precision} ONNX")
        convert(trained, precision, artifact, threshold)
        packed = open_runtime(target.runtime, artifact)
        status.update("proving the packed model against the trained one")
        measured, _ = parity.compare(
            candidates, [packed.run(c.tensor) for c in candidates], threshold.threshold, threshold.delta
        )
        problems = parity.problems(measured, precision)
        accuracy: dict[str, tuple[float | None, float | None]] = {}
        if samples is not None:
            status.update("comparing the figures of both on the labelled pictures")
            accuracy = compare_accuracy(trained, packed, samples, threshold)
            problems += [
                f"{figure} falls from {before:.4f} to {after:.4f}, by more than {MOST_ACCURACY_LOSS}"
                for figure, (before, after) in accuracy.items()
                if before is not None and after is not None and before - after > MOST_ACCURACY_LOSS
            ]
        if problems and not allow_parity_loss:
            raise JobError(
                f"{target.name}-{precision}: not written, {'; '.join(problems)} ({figures(measured)}); "
                "--allow-parity-loss writes it all the same and marks it"
            )
        status.update("writing the bundle")
        golden = fit_golden(select_golden(candidates, threshold.threshold), trained.run)
        manifest = write_bundle(
            folder,
            artifact,
            golden,
            target=target.name,
            runtime=target.runtime,
            precision=precision,
            calibration=threshold,
            parity=measured,
            provenance=trained.provenance,
            tool_versions={name: importlib.metadata.version(name) for name in PACKAGES},
            parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
            flops=count_flops(trained),
            parity_loss_allowed=bool(problems),
            force=force,
        )
    return Exported(folder, manifest, accuracy)


def newest_checkpoint() -> Path:
    """The checkpoint of the run that finished last, of those in `runs/`."""
    found = sorted(Path("runs").glob(f"*/{CHECKPOINT}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UsageError(f"no checkpoint in runs/*/{CHECKPOINT}; train one with stlm-train, or give --checkpoint")
    return found[-1]


def judged(trained: Torch, run: Path, calibration: Path | None) -> list[GoldenCandidate]:
    """The trained model's answers on the run's golden candidates, and on the normal pictures in `calibration`."""
    folders = [(run / "golden" / "normal", False), (run / "golden" / "anomalous", True)]
    for folder, _ in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: missing; keep the checkpoint in its run folder, as stlm-train wrote it")
    if calibration is not None:
        folders.append((calibration, False))
    candidates = []
    for folder, anomalous in folders:
        for path in list_pictures(folder):
            picture = read_picture(path)
            tensor = resize(picture, trained.size)
            anomaly_map, score = trained.run(tensor)
            name = f"{folder.name}-{path.stem}"
            candidates.append(GoldenCandidate(name, picture, anomalous, tensor, anomaly_map, score))
    return candidates


def convert(trained: Torch, precision: str, artifact: Path, threshold: Calibration) -> None:
    from stlm_edge.converters.onnx import to_onnx

    if precision == "fp32":
        to_onnx(trained.model, artifact, threshold)
        return
    from stlm_edge.converters.quantization import to_int8

    fp32 = artifact.with_name("fp32.onnx")
    to_onnx(trained.model, fp32, threshold)
    to_int8(fp32, artifact, threshold, trained.size)


def compare_accuracy(
    trained: Torch, packed: Runtime, samples: list[Any], threshold: Calibration
) -> dict[str, tuple[float | None, float | None]]:
    both = [evaluate(runtime, samples, trained.size, threshold, None, runtime.name) for runtime in (trained, packed)]
    return {figure: (both[0][figure], both[1][figure]) for figure in ACCURACY}


def figures(measured: parity.Parity) -> str:
    return (
        f"map difference at most {measured.max_abs_diff:.2g}, mean {measured.mean_abs_diff:.2g}, cosine "
        f"{measured.cosine:.6f}, {measured.verdict_flips} flips and {measured.verdict_failures} failures in "
        f"{measured.pictures} pictures"
    )


def count_flops(trained: Torch) -> int:
    """Floating-point operations per picture, a multiply-add counted as two."""
    size = trained.size
    with FlopCounterMode(display=False) as counter:
        trained.model(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    return counter.get_total_flops()
