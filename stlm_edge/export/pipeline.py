"""From a checkpoint to a bundle: convert, quantize, prove against the trained model, and only then write.

The gate: every verdict as the trained model's (parity.py's rule), the map within 1e-4 in fp32 and 5e-3 in fp16, nothing
NaN or infinite, and no figure of accuracy down by more than its precision may cost (gate.py). What fails it is not
written.
"""

import contextlib
import functools
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import stlm_edge
from stlm_edge.bundle.golden import GoldenCandidate, fit_golden, select_golden
from stlm_edge.bundle.parity import compare
from stlm_edge.bundle.writer import check_writable, copy_files, replacing_folder, write_bundle
from stlm_edge.data.batches import Images
from stlm_edge.data.datasets import Sample, test_samples
from stlm_edge.data.textures import any_of, patches_of, procedural
from stlm_edge.errors import JobError, UsageError
from stlm_edge.export import targets
from stlm_edge.export.exported import Exported, Tried, compared, in_words
from stlm_edge.export.gate import (
    Figures,
    accuracy_on_pseudo_anomalies,
    accuracy_on_samples,
    lost_accuracy,
    pseudo_anomalies_on,
)
from stlm_edge.export.ladder import WAYS, Order, Way
from stlm_edge.export.proof import CompareAccuracy, first_that_holds
from stlm_edge.export.quantization_set import choose, quantization_set
from stlm_edge.files import sha256_of
from stlm_edge.formats import files_of
from stlm_edge.images import list_images, read_image, resize
from stlm_edge.model import STLM, ModelConfig
from stlm_edge.progress import step
from stlm_edge.runtimes import Runtime
from stlm_edge.runtimes.torch import Torch
from stlm_edge.threshold import DecisionThreshold
from stlm_edge.training import run_folder

RUNS, BUNDLES = Path("runs"), Path("bundles")
ROOM_MB = 500  # what a conversion's files take at most
MADE_FROM = 32  # images of a --quantization-set folder that golden candidates and the accuracy's images are made from


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
    """Pack a checkpoint for a target and write the bundle if it still says what the trained model says.

    Args:
        checkpoint: the newest run's where none is given.
        precision: the target's default where none is given.
        via: a converter other than the target's first.
        quantization_folder: at least 10 normal images; without it the run's own held-out ones.
        data: labelled images; accuracy on them joins the gate.
        out: the bundle's folder, `bundles/<target>-<precision>` (or `<target>-<via>-…`) where none is given.
        allow_parity_loss: write what fails the gate, and mark it so in the manifest.
        force: replace a bundle that stands at `out`.

    Raises:
        UsageError: unknown target or precision, a package that isn't installed, unusable checkpoint or images, an
            output folder that exists or can't be written.
        JobError: the gate failed, or the bundle can't be written; nothing is left behind.
    """
    row, precision = targets.find(target, precision, via)
    out = out or BUNDLES / "-".join(filter(None, [target, via, precision]))
    check_writable(out, force)
    way = WAYS[row.via or row.runtime]
    tool_versions = _versions(way)
    checkpoint = checkpoint or newest_checkpoint()
    trained = Torch(checkpoint)
    decision_threshold = trained.decision_threshold
    if decision_threshold is None:
        raise UsageError(f"{checkpoint}: holds no threshold, so there are no verdicts to ship; train anew")
    provenance = trained.provenance | {"checkpoint_sha256": sha256_of(checkpoint)}
    samples = test_samples(data, category, format) if data is not None else []

    with _temporary_folder() as temporary:
        images = _images(checkpoint, quantization_folder, trained.size, temporary)
        candidates = _judge(trained, images)
        golden = fit_golden(select_golden(candidates, decision_threshold.value), trained.run)
        every = candidates + [image for image in golden if image not in candidates]

        seen = quantization_set(quantization_folder or checkpoint.parent / "held_out", trained.size)
        order = Order(trained.model, precision, temporary / row.artifact, decision_threshold, provenance, seen.images)
        held_out = temporary if quantization_folder else checkpoint.parent
        proof = first_that_holds(
            way.convert(order),
            order,
            every,
            _accuracy(trained, samples, held_out, decision_threshold),
            allow_parity_loss,
        )
        made, losses = proof.made, proof.losses
        notes = [*made.notes, *over_budget(made.artifact, precision, trained.model)]
        of_golden = [proof.answers[every.index(image)] for image in golden]
        golden_parity, _ = compare(golden, of_golden, decision_threshold.value, decision_threshold.delta)
        if losses and not allow_parity_loss:
            figures = in_words(proof.parity) + (f"; {compared(proof.accuracy)}" if proof.accuracy else "")
            raise JobError(
                f"{target} {precision} does not say what the trained model says, nothing was written: "
                f"{'; '.join(losses)} (of {proof.parity.images} images: {figures}); --allow-parity-loss writes it "
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
                decision_threshold=decision_threshold,
                parity=proof.parity,
                provenance=provenance
                | {"checked_by": proof.checked_by, "quantization_set": seen.provenance()}
                | {"frontier": [_without_time(tried) for tried in proof.frontier]}
                | ({"notes": notes} if notes else {}),
                tool_versions=tool_versions,
                parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
                flops=flops(trained.model),
                input_dtype=row.input_dtype,
                score_output=row.score_output,
                parity_loss_allowed=bool(losses),
                force=force,
                frontier=json.dumps([asdict(tried) for tried in proof.frontier], allow_nan=False),
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
        notes,
        proof.frontier,
    )


def export_all(target: str, precision: str | None = None, out: Path | None = None, **options: Any) -> list[Exported]:
    """Like `export`; a target that `exports_all` gets a bundle of each precision, `out`/<precision>, if none is named.

    Raises like `export`; then what stood there before still does.
    """
    row, _ = targets.find(target, precision, options.get("via"))
    if precision is not None or not row.exports_all:
        return [export(target, precision=precision, out=out, **options)]
    folder = out or BUNDLES / target
    for each in row.precisions:
        check_writable(folder / each, options.get("force", False))
    with _temporary_folder() as temporary:
        done = [export(target, precision=each, out=temporary / each, **options) for each in row.precisions]
        try:
            with contextlib.ExitStack() as stack:  # all take their places when all are there
                for each in row.precisions:
                    copy_files(temporary / each, stack.enter_context(replacing_folder(folder / each)))
        except BaseException:
            with contextlib.suppress(OSError):
                folder.rmdir()
            raise
    return [replace(bundle, folder=folder / each) for bundle, each in zip(done, row.precisions, strict=True)]


def newest_checkpoint() -> Path:
    """The checkpoint of the run that was finished last. Raises UsageError when there is none."""
    found = sorted(RUNS.glob(f"*/{run_folder.CHECKPOINT}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UsageError(f"no finished run in {RUNS}/; make one with stlm-train or give --checkpoint")
    return found[-1]


def flops(model: STLM) -> int:
    """Floating-point operations per image of the matrix products and convolutions, a multiply-add counted as two."""
    size = model.config.size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    return counter.get_total_flops()


def over_budget(artifact: Path, precision: str, model: STLM) -> list[str]:
    """A note where the full network's artifact is larger than it should be in this precision."""
    limit = targets.LARGEST_MB.get(precision)
    megabytes = sum(path.stat().st_size for path in files_of(artifact)) / 1e6
    if model.config != ModelConfig(targets.BUDGET_SIZE) or limit is None or megabytes <= limit:
        return []
    return [f"{megabytes:.1f} MB: more than the {limit} MB that {precision} should take at S={model.config.size}"]


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards. Raises JobError where what is written inside finds no room, or the like.

    Converters say that in many ways (RuntimeError, a file that cannot be parsed), so the folder itself is asked.
    """
    with tempfile.TemporaryDirectory(prefix="stlm-export-") as name:
        try:
            yield Path(name)
        except (JobError, UsageError):
            raise
        except Exception as error:
            problem = " ".join(str(error).split())[:200]
            if not _has_room(Path(name)):
                raise JobError(
                    f"{name}: no room for the conversion ({problem}); free {ROOM_MB} MB there or let TMPDIR name "
                    "another folder; nothing was written"
                ) from None
            if isinstance(error, OSError):
                raise JobError(f"{error.filename or name}: {error.strerror or problem}; nothing was written") from None
            raise


def _has_room(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(ROOM_MB):
                file.write(bytes(1 << 20))
    except OSError:
        return False
    return True


def _without_time(tried: Tried) -> dict[str, Any]:
    return {name: value for name, value in asdict(tried).items() if name != "latency_ms"}


def _versions(way: Way) -> dict[str, str]:
    found = {"stlm-edge": stlm_edge.__version__}
    for package in way.packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            raise UsageError(f"{package} is not installed; {way.missing}") from None
    return found


def _images(
    checkpoint: Path, quantization_folder: Path | None, size: int, temporary: Path
) -> list[tuple[str, bool, Path]]:
    """Name, whether it is anomalous, and path of each candidate image."""
    run = checkpoint.parent
    if quantization_folder is not None:
        normal = choose(quantization_folder, MADE_FROM)
        source = any_of(procedural, patches_of(Images(normal, size)))
        run_folder.keep_held_out(temporary, normal, source, seed=0)
        run = temporary
    elif not (run / "golden").is_dir():
        raise UsageError(f"{run / 'golden'}: no such folder; name a folder of normal images by --quantization-set")
    kinds = {"normal": False, "anomalous": True}
    return [
        (f"{kind}-{path.stem}", anomalous, path)
        for kind, anomalous in kinds.items()
        for path in list_images(run / "golden" / kind)
    ]


def _judge(trained: Torch, images: Sequence[tuple[str, bool, Path]]) -> list[GoldenCandidate]:
    candidates = []
    with step("judging with the trained model", len(images)) as advance:
        for name, anomalous, path in images:
            image = read_image(path)
            tensor = resize(image, trained.size)
            candidates.append(GoldenCandidate(name, image, anomalous, tensor, *trained.run(tensor)))
            advance()
    return candidates


def _accuracy(
    trained: Torch, samples: list[Sample], run: Path, decision_threshold: DecisionThreshold
) -> CompareAccuracy | None:
    """What compares accuracy, on the labelled images or on pseudo-anomalies on the run's held-out ones; None without
    either."""
    if samples:
        anomalous = sum(sample.anomalous for sample in samples)
        pairs = anomalous * (len(samples) - anomalous)
    elif (run / "held_out").is_dir():
        images = pseudo_anomalies_on(list_images(run / "held_out"), trained.size)
        pairs = (len(images) // 2) ** 2
    else:
        return None

    def measure(runtime: Runtime) -> Figures:
        if samples:
            return accuracy_on_samples(runtime, samples, trained.size, decision_threshold)
        return accuracy_on_pseudo_anomalies(runtime, images)

    of_trained = functools.cache(lambda: measure(trained))

    def compare_accuracy(packed: Runtime, precision: str) -> tuple[dict[str, Figures], list[str]]:
        accuracy = {"trained": of_trained(), "packed": measure(packed)}
        return accuracy, lost_accuracy(accuracy, precision, pairs)

    return compare_accuracy
