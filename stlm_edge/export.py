"""From a checkpoint to a bundle: convert, quantize, prove against the trained model, and only then write.

The gate: every verdict as the trained model's (parity.py's rule), in fp32 every map value within 1e-4, nothing NaN or
infinite, and with labelled data no figure down by more than half a point. What fails it is not written.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from torch.utils.flop_counter import FlopCounterMode

import stlm_edge
from stlm_edge import run_folder, targets
from stlm_edge.artifact import read_metadata
from stlm_edge.bundle import sha256_of, stamp
from stlm_edge.data.batches import Pictures
from stlm_edge.data.datasets import Sample, test_samples
from stlm_edge.data.textures import any_of, patches_of, procedural
from stlm_edge.errors import JobError, UsageError
from stlm_edge.evaluate import evaluate
from stlm_edge.golden import GoldenCandidate, fit_golden, select_golden
from stlm_edge.manifest import Calibration, Manifest
from stlm_edge.model import STLM
from stlm_edge.pack import check_writable, write_bundle
from stlm_edge.parity import Parity, PictureParity, compare, problems
from stlm_edge.picture import list_pictures, read_picture, resize
from stlm_edge.runtimes import Runtime, open_runtime
from stlm_edge.runtimes.torch import Torch

RUNS, BUNDLES = Path("runs"), Path("bundles")
FIGURES = ("image_auroc", "pixel_auroc", "aupro")
LARGEST_LOSS = 0.005
MADE_FROM = 32  # pictures of a --calibration folder that golden candidates are made from
TOOLS = {  # by the runtime that the artifact is for
    "onnxruntime": ("stlm-edge", "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime"),
    "litert": ("stlm-edge", "torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert"),
}


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from the trained model.

    `parity` is over all candidate pictures (and stands in the manifest), `golden_parity` over the bundle's own;
    `flips` are the pictures whose verdict differs, inside δ unless `losses`, what the gate found, says otherwise.
    `accuracy` holds the trained and the packed model's figures on the labelled pictures, where some were given.
    """

    folder: Path
    manifest: Manifest
    parity: Parity
    golden_parity: Parity
    flips: list[PictureParity]
    accuracy: dict[str, dict[str, float | None]] | None
    losses: list[str]

    def figures(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "bundle": str(self.folder),
            "target": self.manifest.target,
            "precision": self.manifest.precision,
            "bytes": sum(file.bytes for file in self.manifest.files),
            "threshold": self.manifest.calibration.threshold,
            "verdict_delta": self.manifest.verdict_delta,
            "parity": dataclasses.asdict(self.parity),
            "golden_parity": dataclasses.asdict(self.golden_parity),
            "flips": [dataclasses.asdict(flip) for flip in self.flips],
            "accuracy": self.accuracy,
            "losses": self.losses,
        }

    def describe(self) -> str:
        """A few lines for people."""
        artifact = next(file for file in self.manifest.files if file.path == self.manifest.artifact)
        lines = [
            f"{self.folder}: {self.manifest.target} {self.manifest.precision}, {artifact.bytes / 1e6:.1f} MB, "
            f"threshold {self.manifest.calibration.threshold:.4g}",
            f"against the trained model, {self.parity.pictures} pictures: {_in_words(self.parity)}",
            f"of these the {self.golden_parity.pictures} golden ones: {_in_words(self.golden_parity)}",
        ]
        lines += [
            f"verdict of {flip.name} differs: score {flip.expected_score:.5g} became {flip.score:.5g}"
            for flip in self.flips
        ]
        if self.accuracy is not None:
            lines.append("on the labelled pictures, trained → packed: " + _compared(self.accuracy))
        lines += [f"PARITY LOSS, allowed: {loss}" for loss in self.losses]
        return "\n".join(lines)


def export(
    target: str,
    *,
    checkpoint: Path | None = None,
    precision: str | None = None,
    calibration_folder: Path | None = None,
    data: Path | None = None,
    category: str | None = None,
    format: str | None = None,
    out: Path | None = None,
    allow_parity_loss: bool = False,
    force: bool = False,
) -> Exported:
    """Pack a checkpoint for a target and write the bundle if it still says what the trained model says.

    Args:
        checkpoint: the newest run's where none is given.
        precision: the target's default where none is given.
        calibration_folder: normal pictures; without it the run's own, normal and pseudo-anomalous.
        data: labelled pictures; accuracy on them joins the gate.
        out: the bundle's folder, `bundles/<target>-<precision>` where none is given.
        allow_parity_loss: write what fails the gate, and mark it so in the manifest.
        force: replace a bundle that stands at `out`.

    Raises:
        UsageError: unknown target or precision, unusable checkpoint or pictures, an output folder that exists.
        JobError: the gate failed, or the bundle can't be written; nothing is left behind.
    """
    row, precision = targets.find(target, precision)
    out = out or BUNDLES / f"{target}-{precision}"
    check_writable(out, force)
    checkpoint = checkpoint or newest_checkpoint()
    trained = Torch(checkpoint)
    calibration = trained.calibration
    if calibration is None:
        raise UsageError(f"{checkpoint}: holds no threshold, so there are no verdicts to ship; train anew")
    provenance = trained.provenance | {"checkpoint_sha256": sha256_of(checkpoint)}
    samples = test_samples(data, category, format) if data is not None else []

    with tempfile.TemporaryDirectory(prefix="stlm-export-") as name:
        temporary = Path(name)
        pictures = _pictures(checkpoint, calibration_folder, trained.size, temporary)
        candidates = _judge(trained, pictures)
        golden = fit_golden(select_golden(candidates, calibration.threshold), trained.run)
        every = candidates + [picture for picture in golden if picture not in candidates]

        before, losses = [], []
        convert = _to_tflite if row.runtime == "litert" else _to_onnx
        for made, artifact in convert(trained.model, precision, temporary / row.artifact, calibration, provenance):
            _check_metadata(artifact, calibration, trained.size)
            packed = open_runtime(row.runtime, artifact)
            answers = _answers(packed, made, every)
            parity, rows = compare(every, answers, calibration.threshold, calibration.delta)
            found = problems(parity, made)
            if made != precision:
                before += [f"before quantization, {problem}" for problem in found]
                continue
            losses = before + found
            if not found:
                break
        of_golden = [answers[every.index(picture)] for picture in golden]
        golden_parity, _ = compare(golden, of_golden, calibration.threshold, calibration.delta)
        accuracy = None
        if samples:
            accuracy = {
                "trained": _accuracy(trained, samples, trained.size, calibration),
                "packed": _accuracy(packed, samples, trained.size, calibration),
            }
            losses += lost_accuracy(accuracy)
        if losses and not allow_parity_loss:
            figures = _in_words(parity) + (f"; {_compared(accuracy)}" if accuracy else "")
            raise JobError(
                f"{target} {precision} does not say what the trained model says, nothing was written: "
                f"{'; '.join(losses)} (of {parity.pictures} pictures: {figures}); --allow-parity-loss writes it "
                "all the same and marks it"
            )
        with _step("writing the bundle"):
            manifest = write_bundle(
                out,
                artifact,
                golden,
                target=target,
                runtime=row.runtime,
                precision=precision,
                calibration=calibration,
                parity=parity,
                provenance=provenance,
                tool_versions={
                    tool: stlm_edge.__version__ if tool == "stlm-edge" else version(tool) for tool in TOOLS[row.runtime]
                },
                parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
                flops=flops(trained.model),
                input_dtype=row.input_dtype,
                score_output=row.score_output,
                parity_loss_allowed=bool(losses),
                force=force,
            )
    flips = [answer for answer in rows if answer.flipped]
    return Exported(out, manifest, parity, golden_parity, flips, accuracy, losses)


def newest_checkpoint() -> Path:
    """The checkpoint of the run that was finished last. Raises UsageError when there is none."""
    found = sorted(RUNS.glob(f"*/{run_folder.CHECKPOINT}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UsageError(f"no finished run in {RUNS}/; make one with stlm-train or give --checkpoint")
    return found[-1]


def flops(model: STLM) -> int:
    """Floating-point operations per picture of the matrix products and convolutions, a multiply-add counted as two."""
    size = model.config.size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    return counter.get_total_flops()


def lost_accuracy(accuracy: dict[str, dict[str, float | None]]) -> list[str]:
    """The figures that are down by more than half a point, in words."""
    lost = []
    for name in FIGURES:
        before, after = accuracy["trained"][name], accuracy["packed"][name]
        if before is not None and after is not None and before - after > LARGEST_LOSS:
            lost.append(
                f"{name} falls by {100 * (before - after):.2f} points, at most {100 * LARGEST_LOSS} are allowed"
            )
    return lost


def _pictures(
    checkpoint: Path, calibration_folder: Path | None, size: int, temporary: Path
) -> list[tuple[str, bool, Path]]:
    """Name, whether it is anomalous, and path of each candidate picture."""
    run = checkpoint.parent
    if calibration_folder is not None:
        normal = list_pictures(calibration_folder)
        normal = normal[:: max(1, len(normal) // MADE_FROM)][:MADE_FROM]
        source = any_of(procedural, patches_of(Pictures(normal, size)))
        run_folder.keep_held_out(temporary, normal, source, seed=0)
        run = temporary
    elif not (run / "golden").is_dir():
        raise UsageError(f"{run / 'golden'}: no such folder; name a folder of normal pictures by --calibration")
    kinds = {"normal": False, "anomalous": True}
    return [
        (f"{kind}-{path.stem}", anomalous, path)
        for kind, anomalous in kinds.items()
        for path in list_pictures(run / "golden" / kind)
    ]


def _judge(trained: Torch, pictures: Sequence[tuple[str, bool, Path]]) -> list[GoldenCandidate]:
    candidates = []
    with _step("judging with the trained model", len(pictures)) as advance:
        for name, anomalous, path in pictures:
            picture = read_picture(path)
            tensor = resize(picture, trained.size)
            candidates.append(GoldenCandidate(name, picture, anomalous, tensor, *trained.run(tensor)))
            advance()
    return candidates


def _to_onnx(
    model: STLM, precision: str, artifact: Path, calibration: Calibration, provenance: dict[str, Any]
) -> Iterator[tuple[str, Path]]:
    """Precision and file of each step: the fp32 file, then int8 ones with ever more layers kept in float."""
    from stlm_edge.converters.onnx import to_onnx

    in_float = artifact if precision == "fp32" else artifact.with_name("fp32.onnx")
    with _step("converting to ONNX, which takes half a minute"):
        to_onnx(model, in_float, calibration)
    yield "fp32", in_float
    if precision == "int8":
        from stlm_edge.converters.quantization import IN_FLOAT, to_int8

        for kept in IN_FLOAT:
            with _step("quantizing to int8"):
                to_int8(model, in_float, artifact, calibration, kept)
            yield "int8", artifact


def _to_tflite(
    model: STLM, precision: str, artifact: Path, calibration: Calibration, provenance: dict[str, Any]
) -> Iterator[tuple[str, Path]]:
    """The same for TFLite: the fp32 file, then fp16 or int8 ones with ever fewer layers in them."""
    from stlm_edge.converters.litert import FP16, INT8, to_fp16, to_int8, to_tflite

    in_float = artifact if precision == "fp32" else artifact.with_name("fp32.tflite")
    with _step("converting to TFLite, which takes a minute or two"):
        to_tflite(model, in_float, calibration, provenance)
    yield "fp32", in_float
    if precision == "fp16":
        for names in FP16:
            with _step("writing the weights in fp16"):
                to_fp16(in_float, artifact, calibration, model.config.size, provenance, names)
            yield "fp16", artifact
    if precision == "int8":
        for layers in INT8:
            with _step("quantizing to int8"):
                to_int8(in_float, artifact, calibration, model.config.size, provenance, layers)
            yield "int8", artifact


def _check_metadata(artifact: Path, calibration: Calibration, size: int) -> None:
    metadata = read_metadata(artifact) or {}
    for key, expected in stamp(calibration, size).items():
        if (found := metadata.get(key, "nothing")) != expected:
            raise JobError(
                f"the converter wrote {found[:60]} for {key} into the file's metadata, the checkpoint says {expected}; "
                "nothing was written"
            )


def _answers(packed: Runtime, made: str, pictures: Sequence[GoldenCandidate]) -> list[tuple[Any, float]]:
    answers = []
    with _step(f"judging with the {made} model", len(pictures)) as advance:
        for picture in pictures:
            try:
                answers.append(packed.run(picture.tensor))
            except JobError as error:
                raise JobError(f"the {made} model fails on {picture.name}, nothing was written: {error}") from None
            advance()
    return answers


def _accuracy(runtime: Runtime, samples: list[Sample], size: int, calibration: Calibration) -> dict[str, float | None]:
    metrics = evaluate(runtime, samples, size, calibration, None, runtime.name)
    return {name: metrics[name] for name in FIGURES}


def _in_words(parity: Parity) -> str:
    return (
        f"map difference {parity.max_abs_diff:.2g} at most, {parity.mean_abs_diff:.2g} on average, "
        f"cosine {parity.cosine:.6f}, {parity.verdict_flips} verdicts differ, {parity.verdict_failures} of them fail"
    )


def _compared(accuracy: dict[str, dict[str, float | None]]) -> str:
    def percent(share: float | None) -> str:
        return "n/a" if share is None else f"{100 * share:.2f}"

    pairs = zip(FIGURES, accuracy["trained"].values(), accuracy["packed"].values(), strict=True)
    return ", ".join(f"{name} {percent(before)} → {percent(after)}" for name, before, after in pairs)


@contextmanager
def _step(what: str, total: int | None = None) -> Iterator[Any]:
    """Show on standard error what is being done; yields what to call after each of `total` parts."""
    columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}")]
    if total is not None:
        columns += [BarColumn(), MofNCompleteColumn()]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
