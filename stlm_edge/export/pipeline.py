"""Export of a checkpoint to a bundle for a target; a failed export leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import stlm_edge
from stlm_edge.bundle.golden import GoldenCandidate, fit_golden, select_golden
from stlm_edge.bundle.manifest import Manifest
from stlm_edge.bundle.parity import ImageParity, Parity, compare
from stlm_edge.bundle.writer import check_writable, copy_files, replacing_folder, write_bundle
from stlm_edge.data.batches import Images
from stlm_edge.data.datasets import test_samples
from stlm_edge.data.textures import any_of, patches_of, procedural
from stlm_edge.errors import JobError, UsageError
from stlm_edge.export import targets
from stlm_edge.export.gate import METRICS, AccuracyTest, Candidate, Metrics, first_passing
from stlm_edge.export.ladder import CONVERSIONS, Conversion, ConversionRequest
from stlm_edge.export.quantization_set import choose, quantization_set
from stlm_edge.files import sha256_of
from stlm_edge.images import list_images, read_image, resize
from stlm_edge.model import STLM, ModelConfig
from stlm_edge.progress import step
from stlm_edge.runtimes.torch import Torch
from stlm_edge.training import run_folder
from stlm_edge.versions import installed_versions

RUNS, BUNDLES = Path("runs"), Path("bundles")
SPACE_MB = 500  # free space that a conversion needs at most
IMAGES_OF_FOLDER = 32  # of a quantization folder: the normal images among golden candidates and for the accuracy


def export(
    target: str,
    *,
    checkpoint: Path | None = None,
    precision: str | None = None,
    via: str | None = None,
    quantization_folder: Path | None = None,
    data: Path | None = None,
    category: str | None = None,
    format: str | None = None,
    out: Path | None = None,
    allow_parity_loss: bool = False,
    force: bool = False,
) -> Exported:
    """Convert a checkpoint for a target and write the bundle if it passes the gate.

    The arguments are the options of stlm-export, with the same defaults; `quantization_folder` is --quantization-set.

    Raises:
        UsageError: The target or precision is unknown, a package is not installed, the checkpoint or an image can't be
            used, or the output folder exists or can't be written.
        JobError: The gate failed, or the bundle can't be written.
    """
    row, precision = targets.find(target, precision, via)
    out = out or BUNDLES / "-".join(filter(None, [target, via, precision]))
    check_writable(out, force)
    conversion = CONVERSIONS[row.via or row.runtime]
    tool_versions = _tool_versions(conversion)

    checkpoint = checkpoint or newest_checkpoint()
    trained = Torch(checkpoint)
    decision_threshold = trained.decision_threshold
    provenance = trained.provenance | {"checkpoint_sha256": sha256_of(checkpoint)}
    samples = test_samples(data, category, format) if data is not None else []

    with _temporary_folder() as temporary:
        run = checkpoint.parent
        if quantization_folder is not None:  # it takes the place of the run's images
            normal, run = choose(quantization_folder, IMAGES_OF_FOLDER), temporary
            source = any_of(procedural, patches_of(Images(normal, trained.size)))
            run_folder.keep_held_out(run, normal, source, seed=0)
        images = _golden_candidates(trained, run)
        golden = fit_golden(select_golden(images, decision_threshold.value), trained.run)
        images += [image for image in golden if image not in images]  # those that had to be made smaller
        quantization_images, origin = quantization_set(quantization_folder or run / "held_out", trained.size)
        accuracy_test = AccuracyTest(trained, samples, list_images(run / "held_out"), decision_threshold)

        request = ConversionRequest(
            trained.model, precision, temporary / row.artifact, decision_threshold, provenance, quantization_images
        )
        artifacts = conversion.convert(request)
        check = first_passing(artifacts, request, images, accuracy_test, allow_parity_loss)
        if check.losses and not allow_parity_loss:
            measured = _parity_in_words(check.parity)
            measured += f"; {_accuracy_in_words(check.accuracy)}" if check.accuracy else ""
            raise JobError(
                f"{target} {precision} does not match the trained model, nothing was written: "
                f"{'; '.join(check.losses)} (of {check.parity.images} images: {measured}); --allow-parity-loss writes "
                "it all the same and marks it"
            )

        notes = [*check.artifact.notes, *over_budget(check.candidates[-1].bytes, precision, trained.model)]
        candidates = [asdict(candidate) for candidate in check.candidates]
        without_latency = [{name: c[name] for name in c if name != "latency_ms"} for c in candidates]
        with step("writing the bundle"):
            manifest = write_bundle(
                out,
                check.artifact.path,
                golden,
                target=target,
                runtime=row.runtime,
                precision=precision,
                decision_threshold=decision_threshold,
                parity=check.parity,
                provenance=provenance
                | {
                    "checked_by": check.checked_by,
                    "quantization_set": origin,
                    "candidates": without_latency,  # so that two exports of a checkpoint are identical
                    "notes": notes,
                },
                tool_versions=tool_versions,
                parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
                flops=flops(trained.model),
                input_dtype=row.input_dtype,
                score_output=row.score_output,
                parity_loss_allowed=bool(check.losses),
                force=force,
                candidates=json.dumps(candidates, allow_nan=False),
            )
    golden_outputs = [check.outputs[images.index(image)] for image in golden]
    return Exported(
        folder=out,
        manifest=manifest,
        parity=check.parity,
        golden_parity=compare(golden, golden_outputs, decision_threshold.value, decision_threshold.delta)[0],
        flips=[image for image in check.rows if image.flipped],
        accuracy=check.accuracy,
        losses=check.losses,
        checked_by=check.checked_by,
        notes=notes,
        candidates=check.candidates,
    )


def export_all(target: str, precision: str | None = None, out: Path | None = None, **options: Any) -> list[Exported]:
    """Export like `export`, or one bundle in `out` for each precision if the target `exports_all` and none is given.

    Raises like `export`; then the bundles that were there before remain.
    """
    row, _ = targets.find(target, precision, options.get("via"))
    if precision is not None or not row.exports_all:
        return [export(target, precision=precision, out=out, **options)]
    folder = out or BUNDLES / target
    for each in row.precisions:
        check_writable(folder / each, options.get("force", False))
    with _temporary_folder() as temporary:
        exported = [export(target, precision=each, out=temporary / each, **options) for each in row.precisions]
        try:
            with contextlib.ExitStack() as stack:  # replace none of them before all are written
                for each in row.precisions:
                    copy_files(temporary / each, stack.enter_context(replacing_folder(folder / each)))
        except BaseException:
            with contextlib.suppress(OSError):
                folder.rmdir()
            raise
    return [replace(bundle, folder=folder / each) for bundle, each in zip(exported, row.precisions, strict=True)]


def newest_checkpoint() -> Path:
    """Return the checkpoint of the run that was finished last. Raises UsageError if there is none."""
    checkpoints = sorted(RUNS.glob(f"*/{run_folder.CHECKPOINT}"), key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        raise UsageError(f"no finished run in {RUNS}/; make one with stlm-train or give --checkpoint")
    return checkpoints[-1]


def flops(model: STLM) -> int:
    """Return the floating-point operations per image in matrix products and convolutions, two per multiply-add."""
    size = model.config.size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    return counter.get_total_flops()


def over_budget(size: int, precision: str, model: STLM) -> list[str]:
    """Return a note if the full network's artifact, of `size` bytes, is larger than it should be in this precision."""
    limit = targets.LARGEST_MB.get(precision, math.inf)
    if model.config != ModelConfig(targets.BUDGET_SIZE) or size <= limit * 1e6:
        return []
    return [f"{size / 1e6:.1f} MB: more than the {limit} MB that {precision} should take at S={model.config.size}"]


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Yield a folder that is removed afterwards. Raises JobError if the disk can't be written to, or is full.

    Converters report a full disk by exceptions of many types, so its free space decides.
    """
    with tempfile.TemporaryDirectory(prefix="stlm-export-") as name:
        try:
            yield Path(name)
        except (JobError, UsageError):
            raise
        except Exception as error:
            problem = " ".join(str(error).split())[:200]
            if shutil.disk_usage(name).free < SPACE_MB * 1e6:
                raise JobError(
                    f"{name}: disk full during the conversion ({problem}); free {SPACE_MB} MB there or let TMPDIR name "
                    "another folder; nothing was written"
                ) from None
            if isinstance(error, OSError):
                raise JobError(f"{error.filename or name}: {error.strerror or problem}; nothing was written") from None
            raise


def _tool_versions(conversion: Conversion) -> dict[str, str]:
    versions = installed_versions(conversion.packages)
    for package in conversion.packages:
        if package not in versions:
            raise UsageError(f"{package} is not installed; {conversion.missing}")
    return {"stlm-edge": stlm_edge.__version__} | versions


def _golden_candidates(trained: Torch, run: Path) -> list[GoldenCandidate]:
    """Run the trained model on the golden candidates of a run."""
    folder = run / "golden"
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; name a folder of normal images by --quantization-set")
    paths = [path for kind in ("normal", "anomalous") for path in list_images(folder / kind)]
    candidates = []
    with step("running the trained model", len(paths)) as advance:
        for path in paths:
            kind, image = path.parent.name, read_image(path)
            tensor = resize(image, trained.size)
            output = trained.run(tensor)
            candidates.append(GoldenCandidate(f"{kind}-{path.stem}", image, kind == "anomalous", tensor, *output))
            advance()
    return candidates


@dataclass(frozen=True)
class Exported:
    """A written bundle and its distance from the trained model."""

    folder: Path
    manifest: Manifest
    parity: Parity  # over all candidates for golden images, as in the manifest
    golden_parity: Parity  # over the bundle's golden images
    flips: list[ImageParity]  # images whose verdict differs from the trained model's
    accuracy: dict[str, Metrics] | None  # of the trained and of the packed model
    losses: list[str]  # reasons why the gate would not pass it, where a loss is allowed
    checked_by: list[str]  # names of what ran the artifact on this machine
    notes: list[str]  # lines for the report
    candidates: list[Candidate]  # the precision ladder; the last candidate was written

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "bundle": str(self.folder),
            "target": self.manifest.target,
            "precision": self.manifest.precision,
            "bytes": sum(file.bytes for file in self.manifest.files),
            "decision_threshold": self.manifest.decision_threshold.value,
            "verdict_delta": self.manifest.verdict_delta,
            **{name: value for name, value in asdict(self).items() if name not in ("folder", "manifest")},
        }

    def describe(self) -> str:
        """Return a few lines of text for a terminal."""
        megabytes = sum(file.bytes for file in self.manifest.artifact_files) / 1e6
        lines = [
            f"{self.folder}: {self.manifest.target} {self.manifest.precision}, {megabytes:.1f} MB, "
            f"decision threshold {self.manifest.decision_threshold.value:.4g}",
            f"run by {' and '.join(self.checked_by)}, compared with the trained model on {self.parity.images} images: "
            f"{_parity_in_words(self.parity)}",
            f"of these the {self.golden_parity.images} golden ones: {_parity_in_words(self.golden_parity)}",
        ]
        lines += [
            f"verdict of {flip.name} differs: score {flip.expected_score:.5g} became {flip.score:.5g}"
            for flip in self.flips
        ]
        if self.accuracy is not None:
            lines.append("accuracy, trained → packed: " + _accuracy_in_words(self.accuracy))
        if len(self.candidates) > 1:
            lines.append("kept in float   MB     ms     cosine    verdict failures")
            lines += [
                f"{len(candidate.kept_in_float):>13} {candidate.bytes / 1e6:6.1f} "
                f"{candidate.latency_ms or math.nan:6.1f} {candidate.cosine:10.6f} {candidate.verdict_failures:>9}   "
                f"{'; '.join(candidate.losses) or 'passes'} ({candidate.scope})"
                for candidate in self.candidates
            ]
        lines += self.notes
        lines += [f"PARITY LOSS, allowed: {loss}" for loss in self.losses]
        return "\n".join(lines)


def _parity_in_words(parity: Parity) -> str:
    return (
        f"map difference {parity.max_abs_diff:.2g} at most, {parity.mean_abs_diff:.2g} on average, "
        f"cosine {parity.cosine:.6f}, {parity.verdict_flips} verdicts differ, {parity.verdict_failures} of them fail"
    )


def _accuracy_in_words(accuracy: dict[str, Metrics]) -> str:
    def percent(share: float | None) -> str:
        return "n/a" if share is None else f"{100 * share:.2f}"

    pairs = zip(METRICS, accuracy["trained"].values(), accuracy["packed"].values(), strict=True)
    return ", ".join(f"{name} {percent(before)} → {percent(after)}" for name, before, after in pairs)
