"""What an export has written, as JSON values and in words."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stlm_edge.bundle.manifest import Manifest
from stlm_edge.bundle.parity import ImageParity, Parity
from stlm_edge.export.gate import FIGURES, Figures


@dataclass(frozen=True)
class Tried:
    """What one try gave: what it was, size and speed of the artifact, and its nearness to the trained model.

    `what` and `kept` as in `conversion.Step`. `latency_ms` is the median of a few runs on all cores, to compare the
    tries with each other; None where the artifact failed to run, which counts as a failure of every verdict.
    """

    what: str
    kept: tuple[str, ...]
    bytes: int
    latency_ms: float | None
    cosine: float
    verdict_failures: int
    losses: list[str]


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from the trained model.

    `parity` is over all candidate images (and stands in the manifest), `golden_parity` over the bundle's own;
    `flips` are the images whose verdict differs, inside δ unless `losses`, what the gate found, says otherwise.
    `accuracy` holds the trained and the packed model's figures on the labelled images, or on pseudo-anomalies.
    `checked_by` names what ran the artifact on the machine that made it, `notes` what a report should say of it.
    `frontier`: every try in this precision, with ever more of the network in float; the last is what was written.
    """

    folder: Path
    manifest: Manifest
    parity: Parity
    golden_parity: Parity
    flips: list[ImageParity]
    accuracy: dict[str, Figures] | None
    losses: list[str]
    checked_by: list[str]
    notes: list[str]
    frontier: list[Tried]

    def figures(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "bundle": str(self.folder),
            "target": self.manifest.target,
            "precision": self.manifest.precision,
            "bytes": sum(file.bytes for file in self.manifest.files),
            "threshold": self.manifest.decision_threshold.value,
            "verdict_delta": self.manifest.verdict_delta,
            "parity": dataclasses.asdict(self.parity),
            "golden_parity": dataclasses.asdict(self.golden_parity),
            "flips": [dataclasses.asdict(flip) for flip in self.flips],
            "accuracy": self.accuracy,
            "losses": self.losses,
            "checked_by": self.checked_by,
            "notes": self.notes,
            "frontier": [dataclasses.asdict(tried) for tried in self.frontier],
        }

    def describe(self) -> str:
        """A few lines for people."""
        megabytes = sum(file.bytes for file in self.manifest.artifact_files) / 1e6
        lines = [
            f"{self.folder}: {self.manifest.target} {self.manifest.precision}, {megabytes:.1f} MB, "
            f"threshold {self.manifest.decision_threshold.value:.4g}",
            f"run by {' and '.join(self.checked_by)}, against the trained model on {self.parity.images} images: "
            f"{in_words(self.parity)}",
            f"of these the {self.golden_parity.images} golden ones: {in_words(self.golden_parity)}",
        ]
        lines += [
            f"verdict of {flip.name} differs: score {flip.expected_score:.5g} became {flip.score:.5g}"
            for flip in self.flips
        ]
        if self.accuracy is not None:
            lines.append("accuracy, trained → packed: " + compared(self.accuracy))
        if len(self.frontier) > 1:
            lines.append("kept in float   MB     ms     cosine    verdict failures")
            lines += [
                f"{len(tried.kept):>13} {tried.bytes / 1e6:6.1f} {tried.latency_ms or math.nan:6.1f} "
                f"{tried.cosine:10.6f} {tried.verdict_failures:>9}   {'; '.join(tried.losses) or 'holds'}"
                f" ({tried.what})"
                for tried in self.frontier
            ]
        lines += self.notes
        lines += [f"PARITY LOSS, allowed: {loss}" for loss in self.losses]
        return "\n".join(lines)


def in_words(parity: Parity) -> str:
    return (
        f"map difference {parity.max_abs_diff:.2g} at most, {parity.mean_abs_diff:.2g} on average, "
        f"cosine {parity.cosine:.6f}, {parity.verdict_flips} verdicts differ, {parity.verdict_failures} of them fail"
    )


def compared(accuracy: dict[str, Figures]) -> str:
    def percent(share: float | None) -> str:
        return "n/a" if share is None else f"{100 * share:.2f}"

    pairs = zip(FIGURES, accuracy["trained"].values(), accuracy["packed"].values(), strict=True)
    return ", ".join(f"{name} {percent(before)} → {percent(after)}" for name, before, after in pairs)
