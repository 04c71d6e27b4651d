"""From a checkpoint to a bundle: convert, quantize, prove against the trained model, and only then write.

The gate: every verdict as the trained model's (parity.py's rule), the map within 1e-4 in fp32 and 5e-3 in fp16, nothing
NaN or infinite, and no figure of accuracy down by more than its precision may cost (gate.py). What fails it is not
written.
"""

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import stlm_edge
from stlm_edge import run_folder, targets
from stlm_edge.bundle import sha256_of
from stlm_edge.calibration_set import calibration_set, choose
from stlm_edge.conversion import WAYS, Order
from stlm_edge.data.batches import Pictures
from stlm_edge.data.datasets import Sample, test_samples
from stlm_edge.data.textures import any_of, patches_of, procedural
from stlm_edge.errors import JobError, UsageError
from stlm_edge.exported import Exported, compared, in_words
from stlm_edge.gate import (
    Figures,
    accuracy_on_pseudo_anomalies,
    accuracy_on_samples,
    lost_accuracy,
    pseudo_anomalies_on,
)
from stlm_edge.golden import GoldenCandidate, fit_golden, select_golden
from stlm_edge.manifest import Calibration
from stlm_edge.model import STLM
from stlm_edge.pack import check_writable, write_bundle
from stlm_edge.parity import compare
from stlm_edge.picture import list_pictures, read_picture, resize
from stlm_edge.progress import step
from stlm_edge.proof import CompareAccuracy, first_that_holds
from stlm_edge.runtimes import Runtime
from stlm_edge.runtimes.torch import Torch

RUNS, BUNDLES = Path("runs"), Path("bundles")
MADE_FROM = 32  # pictures of a --calibration folder that golden candidates and the accuracy's pictures are made from


def export(
    target: str,
    *,
    checkpoint: Path | None = None,
    precision: str | None = None,
    via: str | None = None,
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
        via: a converter other than the target's first.
        calibration_folder: at least 10 normal pictures; without it the run's own held-out ones.
        data: labelled pictures; accuracy on them joins the gate.
        out: the bundle's folder, `bundles/<target>-<precision>` (or `<target>-<via>-…`) where none is given.
        allow_parity_loss: write what fails the gate, and mark it so in the manifest.
        force: replace a bundle that stands at `out`.

    Raises:
        UsageError: unknown target or precision, unusable checkpoint or pictures, an output folder that exists.
        JobError: the gate failed, or the bundle can't be written; nothing is left behind.
    """
    row, precision = targets.find(target, precision, via)
    out = out or BUNDLES / "-".join(filter(None, [target, via, precision]))
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

        seen = calibration_set(calibration_folder or checkpoint.parent / "calibration", trained.size)
        order = Order(trained.model, precision, temporary / row.artifact, calibration, provenance, seen.pictures)
        held_out = temporary if calibration_folder else checkpoint.parent
        proof = first_that_holds(
            WAYS[row.via or row.runtime].convert(order),
            order,
            every,
            _accuracy(trained, samples, held_out, calibration),
            allow_parity_loss,
        )
        made, losses = proof.made, proof.losses
        of_golden = [proof.answers[every.index(picture)] for picture in golden]
        golden_parity, _ = compare(golden, of_golden, calibration.threshold, calibration.delta)
        if losses and not allow_parity_loss:
            figures = in_words(proof.parity) + (f"; {compared(proof.accuracy)}" if proof.accuracy else "")
            raise JobError(
                f"{target} {precision} does not say what the trained model says, nothing was written: "
                f"{'; '.join(losses)} (of {proof.parity.pictures} pictures: {figures}); --allow-parity-loss writes it "
                "all the same and marks it"
            )
        with step("writing the bundle"):
            manifest = write_bundle(
                out,
                made.artifact,
                golden,
                target=target,
                runtime=row.runtime,
                precision=precision,
                calibration=calibration,
                parity=proof.parity,
                provenance=provenance
                | {"checked_by": proof.checked_by, "calibration_set": seen.provenance()}
                | {"frontier": [asdict(tried) for tried in proof.frontier]}
                | ({"notes": list(made.notes)} if made.notes else {}),
                tool_versions={"stlm-edge": stlm_edge.__version__}
                | {package: version(package) for package in WAYS[row.via or row.runtime].packages},
                parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
                flops=flops(trained.model),
                input_dtype=row.input_dtype,
                score_output=row.score_output,
                parity_loss_allowed=bool(losses),
                force=force,
            )
    flips = [answer for answer in proof.rows if answer.flipped]
    return Exported(
        out,
        manifest,
        proof.parity,
        golden_parity,
        flips,
        proof.accuracy,
        losses,
        proof.checked_by,
        list(made.notes),
        proof.frontier,
    )


def export_all(target: str, precision: str | None = None, out: Path | None = None, **options: Any) -> list[Exported]:
    """Like `export`; a target that `exports_all` gets a bundle of each precision, `out`/<precision>, if none is named.

    Raises like `export`; then what was written before goes too.
    """
    row, _ = targets.find(target, precision, options.get("via"))
    if precision is not None or not row.exports_all:
        return [export(target, precision=precision, out=out, **options)]
    folder = out or BUNDLES / target
    for each in row.precisions:
        check_writable(folder / each, options.get("force", False))
    done: list[Exported] = []
    try:
        for each in row.precisions:
            done.append(export(target, precision=each, out=folder / each, **options))
    except BaseException:
        for bundle in done:
            shutil.rmtree(bundle.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
    return done


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


def _pictures(
    checkpoint: Path, calibration_folder: Path | None, size: int, temporary: Path
) -> list[tuple[str, bool, Path]]:
    """Name, whether it is anomalous, and path of each candidate picture."""
    run = checkpoint.parent
    if calibration_folder is not None:
        normal = choose(calibration_folder, MADE_FROM)
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
    with step("judging with the trained model", len(pictures)) as advance:
        for name, anomalous, path in pictures:
            picture = read_picture(path)
            tensor = resize(picture, trained.size)
            candidates.append(GoldenCandidate(name, picture, anomalous, tensor, *trained.run(tensor)))
            advance()
    return candidates


def _accuracy(trained: Torch, samples: list[Sample], run: Path, calibration: Calibration) -> CompareAccuracy | None:
    """What compares accuracy, on the labelled pictures or on pseudo-anomalies on the run's held-out ones; None without
    either."""
    if samples:
        anomalous = sum(sample.anomalous for sample in samples)
        pairs = anomalous * (len(samples) - anomalous)
    elif (run / "calibration").is_dir():
        pictures = pseudo_anomalies_on(list_pictures(run / "calibration"), trained.size)
        pairs = (len(pictures) // 2) ** 2
    else:
        return None

    def measure(runtime: Runtime) -> Figures:
        if samples:
            return accuracy_on_samples(runtime, samples, trained.size, calibration)
        return accuracy_on_pseudo_anomalies(runtime, pictures)

    of_trained = functools.cache(lambda: measure(trained))

    def compare_accuracy(packed: Runtime, precision: str) -> tuple[dict[str, Figures], list[str]]:
        accuracy = {"trained": of_trained(), "packed": measure(packed)}
        return accuracy, lost_accuracy(accuracy, precision, pairs)

    return compare_accuracy
