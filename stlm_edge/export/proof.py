"""An artifact proven against the trained model: step after step of its conversion, until one holds."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from stlm_edge.bundle.golden import GoldenCandidate
from stlm_edge.bundle.parity import ImageParity, Parity, compare, problems
from stlm_edge.errors import JobError
from stlm_edge.export.exported import Tried
from stlm_edge.export.gate import Figures
from stlm_edge.export.ladder import Order, Step
from stlm_edge.formats import files_of, read_metadata, stamp
from stlm_edge.progress import step
from stlm_edge.runtimes import Runtime
from stlm_edge.threshold import DecisionThreshold

TIMED = 8  # images by which tries are compared in speed

CompareAccuracy = Callable[[Runtime, str], tuple[dict[str, Figures], list[str]]]
"""The packed model's runtime and precision → figures of both models, and what was lost, in words."""


@dataclass(frozen=True)
class Proof:
    """What the images showed of one step's artifact: what runs it, its answers, and the losses by which it fails."""

    made: Step
    packed: Runtime
    checked_by: list[str]
    answers: list[tuple[Any, float]]
    parity: Parity
    rows: list[ImageParity]
    losses: list[str]
    accuracy: dict[str, Figures] | None = None
    frontier: list[Tried] = field(default_factory=list)


def first_that_holds(
    steps: Iterable[Step],
    order: Order,
    images: Sequence[GoldenCandidate],
    compare_accuracy: CompareAccuracy | None,
    loss_allowed: bool,
) -> Proof:
    """The first step in the precision asked for that holds, or the last one, with its losses.

    Where the conversion itself loses something, that step is the last, unless a loss is allowed. Raises JobError when
    an artifact's metadata is wrong, or its answers fail or are not finite and no further step's are.
    """
    before: list[str] = []
    frontier: list[Tried] = []
    proof, failure = None, None
    for made in steps:
        _check_metadata(made.artifact, order.decision_threshold, order.model.config.size)
        if made.precision != order.precision:
            conversion = _prove(made, images, order.decision_threshold)
            before += [f"before {order.precision}, {loss}" for loss in conversion.losses]
            if before and not loss_allowed:
                return replace(conversion, losses=before)
            continue
        try:
            proof, failure = _prove(made, images, order.decision_threshold), None
            if not proof.losses and compare_accuracy:
                accuracy, lost = compare_accuracy(proof.packed, order.precision)
                proof = replace(proof, accuracy=accuracy, losses=lost)
        except JobError as error:
            failure = error
            frontier.append(Tried(made.what, made.kept, _size(made), None, 0.0, len(images), [str(error)]))
            continue
        frontier.append(_tried(proof, images))
        if not proof.losses:
            break
    if failure:
        raise failure
    assert proof, "a conversion has a step in the precision asked for"
    return replace(proof, losses=before + proof.losses, frontier=frontier)


def _prove(made: Step, images: Sequence[GoldenCandidate], decision_threshold: DecisionThreshold) -> Proof:
    """Compare with the trained model's answers by everything that runs the artifact here; the first one's figures."""
    proofs = []
    for open_it in made.checked_by:
        packed = open_it(made.artifact)
        answers = _answers(packed, made.precision, images)
        parity, rows = compare(images, answers, decision_threshold.value, decision_threshold.delta)
        found = problems(parity, made.precision)
        proofs.append(Proof(made, packed, [packed.name], answers, parity, rows, found))
    return replace(
        proofs[0],
        checked_by=[name for proof in proofs for name in proof.checked_by],
        losses=list(dict.fromkeys(loss for proof in proofs for loss in proof.losses)),
    )


def _tried(proof: Proof, images: Sequence[GoldenCandidate]) -> Tried:
    seconds = []
    for image in images[:TIMED]:
        started = time.perf_counter()
        proof.packed.run(image.tensor)
        seconds.append(time.perf_counter() - started)
    return Tried(
        proof.made.what,
        proof.made.kept,
        _size(proof.made),
        1e3 * median(seconds),
        proof.parity.cosine,
        proof.parity.verdict_failures,
        proof.losses,
    )


def _size(made: Step) -> int:
    return sum(path.stat().st_size for path in files_of(made.artifact))


def _check_metadata(artifact: Path, decision_threshold: DecisionThreshold, size: int) -> None:
    metadata = read_metadata(artifact)
    if metadata is None:  # a format without a place for it
        return
    for key, expected in stamp(decision_threshold, size).items():
        if (found := metadata.get(key, "nothing")) != expected:
            raise JobError(
                f"the converter wrote {found[:60]} for {key} into the file's metadata, the checkpoint says {expected}; "
                "nothing was written"
            )


def _answers(packed: Runtime, made: str, images: Sequence[GoldenCandidate]) -> list[tuple[Any, float]]:
    answers = []
    with step(f"judging with the {made} model", len(images)) as advance:
        for image in images:
            try:
                answers.append(packed.run(image.tensor))
            except JobError as error:
                raise JobError(f"the {made} model fails on {image.name}: {error}") from None
            advance()
    return answers
