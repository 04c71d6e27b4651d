"""The gate: checks that an artifact must pass before an export writes it.

Its metadata hold the checkpoint's decision threshold, the rule of `stlm_edge/bundle/parity.py` holds, and accuracy on
labelled images, or else on pseudo-anomalies, falls by no more than LARGEST_LOSS.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from timeit import timeit
from typing import Any

import numpy as np

from stlm_edge.bundle.golden import GoldenCandidate
from stlm_edge.bundle.parity import ImageParity, Parity, compare, problems
from stlm_edge.data.batches import Images
from stlm_edge.data.sample import Sample
from stlm_edge.data.textures import any_of, patches_of, procedural
from stlm_edge.errors import JobError
from stlm_edge.evaluation.evaluate import evaluate
from stlm_edge.evaluation.metrics import DetectionMetrics
from stlm_edge.export.ladder import Artifact, ConversionRequest, open_checker
from stlm_edge.formats import files_of, metadata_entries, read_metadata
from stlm_edge.progress import step
from stlm_edge.runtimes import Runtime
from stlm_edge.runtimes.torch import Torch
from stlm_edge.threshold import DecisionThreshold
from stlm_edge.training.validation import Validation

METRICS = ("image_auroc", "pixel_auroc", "aupro")
LARGEST_LOSS = {"fp32": 0.001, "fp16": 0.001}  # of a metric between 0 and 1
LARGEST_LOSS_OF_INTEGERS = 0.002
ROUNDING = 1e-6
HELD_OUT = 32  # normal images, and as many pseudo-anomalous ones
TIMED = 8  # images that the speed of a candidate is measured on

Metrics = dict[str, float | None]


@dataclass(frozen=True)
class Candidate:
    """One candidate of the precision ladder: its size, speed, and distance from the trained model.

    `latency_ms` is for comparison between candidates only; None where the artifact failed to run.
    """

    scope: str
    kept_in_float: tuple[str, ...]
    bytes: int
    latency_ms: float | None
    cosine: float
    verdict_failures: int
    losses: list[str]


@dataclass(frozen=True)
class Check:
    """Result of checking an artifact: `losses` lists, in words, why it does not pass.

    `runtime` is the first of those named in `checked_by`; `outputs` (map and score), `parity` and `rows` are its own.
    """

    artifact: Artifact
    runtime: Runtime
    checked_by: list[str]
    outputs: list[tuple[np.ndarray, float]]
    parity: Parity
    rows: list[ImageParity]
    losses: list[str]
    accuracy: dict[str, Metrics] | None = None
    candidates: list[Candidate] = field(default_factory=list)


class AccuracyTest:
    """Compares the accuracy of artifacts with the trained model's, on labelled images or else on pseudo-anomalies."""

    def __init__(
        self, trained: Torch, samples: list[Sample], normal: Sequence[Path], decision_threshold: DecisionThreshold
    ):
        self.trained, self.samples, self.decision_threshold = trained, samples, decision_threshold
        self.pseudo_anomalies = [] if samples else pseudo_anomalies_on(normal, trained.size)
        anomalous = sum(sample.anomalous for sample in samples) or len(self.pseudo_anomalies) // 2
        self.pairs = anomalous * (len(samples or self.pseudo_anomalies) - anomalous)

    def compare(self, runtime: Runtime, precision: str) -> tuple[dict[str, Metrics], list[str]]:
        """Return the metrics of the trained and of the packed model, and the losses in words."""
        accuracy = {"trained": self.trained_metrics, "packed": self._measure(runtime)}
        return accuracy, lost_accuracy(accuracy, precision, self.pairs)

    @cached_property
    def trained_metrics(self) -> Metrics:
        """Metrics of the trained model."""
        return self._measure(self.trained)

    def _measure(self, runtime: Runtime) -> Metrics:
        if self.samples:
            return accuracy_on_samples(runtime, self.samples, self.trained.size, self.decision_threshold)
        return accuracy_on_pseudo_anomalies(runtime, self.pseudo_anomalies)


def first_passing(
    artifacts: Iterable[Artifact],
    request: ConversionRequest,
    images: Sequence[GoldenCandidate],
    accuracy_test: AccuracyTest,
    loss_allowed: bool,
) -> Check:
    """Check one artifact after the other; return the first in the requested precision that passes, or else the last.

    If the fp32 artifact before them does not pass, it is returned at once, unless a loss is allowed. Raises JobError
    where an artifact's metadata are wrong, or the last one does not run or returns values that are not finite.
    """
    fp32_losses: list[str] = []
    candidates: list[Candidate] = []
    check, failure = None, None
    for artifact in artifacts:
        _check_metadata(artifact.path, request.decision_threshold, request.model.config.size)
        if artifact.precision != request.precision:
            fp32 = _check_parity(artifact, images, request.decision_threshold)
            fp32_losses += [f"before {request.precision}, {loss}" for loss in fp32.losses]
            if fp32_losses and not loss_allowed:
                return replace(fp32, losses=fp32_losses)
            continue
        try:
            check, failure = _check_parity(artifact, images, request.decision_threshold), None
            if not check.losses:
                accuracy, losses = accuracy_test.compare(check.runtime, request.precision)
                check = replace(check, accuracy=accuracy, losses=losses)
        except JobError as error:
            failure = error
            candidates.append(_candidate(artifact, None, 0.0, len(images), [str(error)]))
            continue
        latency_ms = _latency_ms(check.runtime, images[:TIMED])
        cosine, failures = check.parity.cosine, check.parity.verdict_failures
        candidates.append(_candidate(artifact, latency_ms, cosine, failures, check.losses))
        if not check.losses:
            break
    if failure:
        raise failure
    assert check, "a conversion yields an artifact in the requested precision"
    return replace(check, losses=fp32_losses + check.losses, candidates=candidates)


def _candidate(artifact: Artifact, *measured: Any) -> Candidate:
    size = sum(path.stat().st_size for path in files_of(artifact.path))
    return Candidate(artifact.scope, artifact.kept_in_float, size, *measured)


def _latency_ms(runtime: Runtime, images: Sequence[GoldenCandidate]) -> float:
    return 1e3 * median(timeit(partial(runtime.run, image.tensor), number=1) for image in images)


def _check_parity(
    artifact: Artifact, images: Sequence[GoldenCandidate], decision_threshold: DecisionThreshold
) -> Check:
    """Compare with the trained model's outputs in everything that runs the artifact on this machine."""
    checks = []
    for name in artifact.checked_by:
        runtime = open_checker(name, artifact.path)
        outputs = _outputs(runtime, artifact.precision, images)
        parity, rows = compare(images, outputs, decision_threshold.value, decision_threshold.delta)
        losses = problems(parity, artifact.precision)
        checks.append(Check(artifact, runtime, [runtime.name], outputs, parity, rows, losses))
    return replace(
        checks[0],
        checked_by=[name for check in checks for name in check.checked_by],
        losses=list(dict.fromkeys(loss for check in checks for loss in check.losses)),
    )


def _outputs(runtime: Runtime, precision: str, images: Sequence[GoldenCandidate]) -> list[tuple[np.ndarray, float]]:
    outputs = []
    with step(f"running the {precision} model", len(images)) as advance:
        for image in images:
            try:
                outputs.append(runtime.run(image.tensor))
            except JobError as error:
                raise JobError(f"the {precision} model fails on {image.name}: {error}") from None
            advance()
    return outputs


def _check_metadata(artifact: Path, decision_threshold: DecisionThreshold, size: int) -> None:
    metadata = read_metadata(artifact)
    if metadata is None:  # a format without a place for it
        return
    for key, expected in metadata_entries(decision_threshold, size).items():
        if (value := metadata.get(key, "nothing")) != expected:
            raise JobError(
                f"the converter wrote {value[:60]} for {key} into the artifact's metadata, expected {expected} as in "
                "the checkpoint; nothing was written"
            )


def accuracy_on_samples(
    runtime: Runtime, samples: list[Sample], size: int, decision_threshold: DecisionThreshold
) -> Metrics:
    """Return image AUROC, pixel AUROC and AUPRO, 0 to 1, on labelled images."""
    metrics = evaluate(runtime, samples, size, decision_threshold, None, runtime.name)
    return {name: metrics[name] for name in METRICS}


def pseudo_anomalies_on(normal: Sequence[Path], size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return images S×S×3 uint8 and their masks, normal and pseudo-anomalous in turn, the same every time."""
    images = Images(normal[:HELD_OUT], size)
    return list(Validation(images, any_of(procedural, patches_of(images)), seed=0))


def accuracy_on_pseudo_anomalies(runtime: Runtime, images: Sequence[tuple[np.ndarray, np.ndarray]]) -> Metrics:
    """Return image AUROC, pixel AUROC and AUPRO, 0 to 1, on the images and masks of `pseudo_anomalies_on`."""
    metrics = DetectionMetrics()
    with step(f"judging pseudo-anomalies with {runtime.name}", len(images)) as advance:
        for image, mask in images:
            anomaly_map, score = runtime.run(image)
            metrics.update(anomaly_map, score, bool(mask.any()), mask)
            advance()
    values = metrics.compute()
    return {name: values[name] for name in METRICS}


def lost_accuracy(accuracy: dict[str, Metrics], precision: str, pairs: int) -> list[str]:
    """Return, in words, the metrics of `packed` that fall further below those of `trained` than the precision allows.

    Image AUROC may always fall by one of the `pairs` of a normal and an anomalous image.
    """
    lost = []
    for name in METRICS:
        allowed = LARGEST_LOSS.get(precision, LARGEST_LOSS_OF_INTEGERS)
        if name == "image_auroc" and pairs:
            allowed = max(allowed, 1 / pairs)
        before, after = accuracy["trained"][name], accuracy["packed"][name]
        if before is not None and after is not None and before - after > allowed + ROUNDING:
            lost.append(f"{name} falls by {100 * (before - after):.2f} points, at most {100 * allowed:.3g} are allowed")
    return lost
