"""The gate: what an artifact must hold before an export writes it.

1. The artifact's metadata, where its format has any, holds the decision threshold of the checkpoint.
2. The anomaly map and the score are finite, on every image and by everything that runs the artifact on this machine.
3. Every verdict is that of the trained model, unless the trained model's score is within δ of the threshold.
4. The largest difference between two map values is at most 1e-4 in fp32 and 5e-3 in fp16.
5. Image AUROC, pixel AUROC and AUPRO each fall by at most 0.1 percentage points in fp32 and fp16 and by 0.2 in int8 and
   palette6. They are measured on labelled images or else on pseudo-anomalies made on the run's held-out images.

2 to 4 are the rule of `stlm_edge/bundle/parity.py`. 1 to 4 must also hold for the fp32 artifact that one of reduced
precision is made from. `--allow-parity-loss` waives 3 to 5.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
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

    `scope` and `kept_in_float` are those of its `Artifact`. `latency_ms` is the median of a few runs on all cores, for
    comparison between the candidates only; None where the artifact failed to run, which fails every verdict.
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
    """Result of checking an artifact: `losses` lists, in words, what the gate does not let pass.

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
        """Return the metrics of the trained and of the packed model, and what was lost, in words."""
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

    If the fp32 artifact before them does not pass, it is returned at once, unless a loss is allowed.

    Raises:
        JobError: The metadata of an artifact are wrong, or the last artifact does not run or gives what is not finite.
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
    seconds = []
    for image in images:
        started = time.perf_counter()
        runtime.run(image.tensor)
        seconds.append(time.perf_counter() - started)
    return 1e3 * median(seconds)


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
    images = Images(list(normal[:HELD_OUT]), size)
    source = any_of(procedural, patches_of(images))
    return list(Validation([images[index] for index in range(len(images))], source, seed=0))


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

    Args:
        accuracy: Metrics of the models `trained` and `packed`.
        precision: The packed model's.
        pairs: The number of normal images times that of anomalous ones. Image AUROC may always fall by one pair in the
            wrong order, which is more than the limit where there are few images.
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
