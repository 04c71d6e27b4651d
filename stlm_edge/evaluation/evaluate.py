"""Evaluate a model on labelled images: figures, overall and per defect type, and contact sheets to look at."""

import copy
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from stlm_edge.data.sample import Sample, mask_of
from stlm_edge.errors import JobError, UsageError
from stlm_edge.evaluation import all_gather, contact_sheet
from stlm_edge.evaluation.contact_sheet import Row
from stlm_edge.evaluation.metrics import FPR_LIMIT, PixelFigures, PixelMetrics, image_auroc, image_f1
from stlm_edge.files import replacing
from stlm_edge.images import read_image, resize
from stlm_edge.runtimes import Runtime
from stlm_edge.threshold import DecisionThreshold
from stlm_edge.verdict import is_anomalous

METRICS = "metrics.json"
SHEETS = ("sample.jpg", "worst_false_alarms.jpg", "worst_misses.jpg")
ROWS = 8  # of a contact sheet


def evaluate(
    runtime: Runtime,
    samples: Sequence[Sample],
    size: int,
    decision_threshold: DecisionThreshold,
    out: Path | None,
    source: str,
) -> dict[str, Any]:
    """Run every sample at size×size and say how well normal and anomalous are told apart.

    Pixel figures are taken at size×size, and are None where an anomalous image has no mask. Figures that need both
    classes are None without. Each defect type is set against all of the normal images.

    Where torch.distributed is initialised, all processes call this with the same arguments but for the runtime: each
    judges every n-th sample, the maps are counted in the order of one process alone, so that the figures are the very
    same, rank 0 writes the files, and every process returns the same.

    Args:
        out: the folder to write contact sheets and, last, metrics.json to; each is written whole or not at all.
        source: what is evaluated, in words.

    Returns:
        What metrics.json holds: image_auroc, pixel_auroc, pixel_auroc_error_bound, aupro (false-positive rate up to
        0.3), aupro_error_bound, image_f1, threshold, and as counts of images false_alarms, missed, normal, anomalous;
        the same under by_defect; source, size, images (their count) and scores: an entry for each image.

    Raises:
        UsageError: there are no samples, or an image or mask cannot be read.
        JobError: a map or score is not finite, or a map is not size×size. Another process has died.
    """
    if not samples:
        raise UsageError("no images to evaluate; expected a test set of normal and anomalous ones")
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"{out}: a file; expected a folder, for {METRICS} and the contact sheets")
    normal = [sample for sample in samples if not sample.anomalous]
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.anomalous:
            kinds.setdefault(sample.defect, []).append(sample)
    scores: dict[Sample, float] = {}
    gallery = _Gallery(_spread([normal, *kinds.values()], ROWS))
    rank, processes = all_gather.rank(), all_gather.count()

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=rank > 0 or not console.is_terminal) as progress:
        task = progress.add_task("evaluating", total=len(samples))

        def run(part: list[Sample], *pixels: PixelMetrics) -> None:
            for sample, anomaly_map, mask, score in _judged(runtime, part, size):
                scores[sample] = score
                for metrics in pixels:
                    metrics.update(anomaly_map, mask)
                if rank == 0:
                    gallery.add(Row(sample, score, contact_sheet.shrink(anomaly_map)))
                progress.advance(task)

        of_normal = PixelMetrics()
        run(normal, of_normal)
        overall = [copy.deepcopy(of_normal)] if rank == 0 else []
        own: dict[str | None, dict[str, Any]] = {}
        for turn, (defect, kind) in enumerate(kinds.items(), start=1):
            against_normal = [copy.deepcopy(of_normal)] if turn % processes == rank else []
            run(kind, *against_normal, *overall)
            for pixels in against_normal:
                own[defect] = _figures([*normal, *kind], scores, decision_threshold.value, pixels)
        for pixels in overall:
            own[None] = _figures(samples, scores, decision_threshold.value, pixels)

    figures: dict[str | None, dict[str, Any]] = {}
    for found in all_gather.share(lambda: own):
        figures |= found
    metrics = {
        **figures[None],
        "by_defect": {defect: figures[defect] for defect in kinds},
        "source": source,
        "size": size,
        "images": len(samples),
        "scores": [
            {
                "image": f"{sample.image.parent.name}/{sample.image.name}",
                "defect": sample.defect,
                "anomalous": sample.anomalous,
                "score": scores[sample],
                "verdict": "anomalous" if is_anomalous(scores[sample], decision_threshold.value) else "normal",
            }
            for sample in samples
        ],
    }
    if out is not None and rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        gallery.write(out, figures[None], decision_threshold)
        with replacing(out / METRICS) as temporary:
            temporary.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return metrics


def summary(metrics: dict[str, Any]) -> Table:
    """The figures as a table for a terminal: one row overall and one per defect type; a missing figure is "n/a"."""
    table = Table(
        title=escape(metrics["source"]),
        caption=f"threshold {metrics['threshold']:.4f}; pixel figures at {metrics['size']}×{metrics['size']}, "
        f"AUPRO up to a false-positive rate of {FPR_LIMIT}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("Defect type")
    for column in ("Image AUROC", "Pixel AUROC", "AUPRO", "Image F1", "False alarms", "Missed"):
        table.add_column(column, justify="right")
    for defect, figures in [("all", metrics), *metrics["by_defect"].items()]:
        shares = [figures[key] for key in ("image_auroc", "pixel_auroc", "aupro", "image_f1")]
        table.add_row(
            escape(defect),
            *("n/a" if share is None else f"{share:.4f}" for share in shares),
            f"{figures['false_alarms']} of {figures['normal']}",
            f"{figures['missed']} of {figures['anomalous']}",
            style="bold" if figures is metrics else None,
        )
    return table


class _Gallery:
    """The few images that contact sheets show; no other maps are kept."""

    def __init__(self, sample: set[Sample]) -> None:
        self._chosen = sample
        self._sample: list[Row] = []
        self._misses: list[Row] = []
        self._false_alarms: list[Row] = []

    def add(self, row: Row) -> None:
        if row.sample in self._chosen:
            self._sample.append(row)
        worst = self._misses if row.sample.anomalous else self._false_alarms
        worst.append(row)
        worst.sort(key=lambda row: row.score, reverse=not row.sample.anomalous)
        del worst[ROWS:]

    def write(self, out: Path, figures: dict[str, Any], decision_threshold: DecisionThreshold) -> None:
        normal, anomalous = figures["normal"], figures["anomalous"]
        titles = (
            f"A sample of the {normal} normal and {anomalous} anomalous images",
            f"Worst false alarms, by the highest score: {figures['false_alarms']} of {normal} normal images are one",
            f"Worst misses, by the lowest score: {figures['missed']} of {anomalous} anomalous images are missed",
        )
        for name, title, rows in zip(SHEETS, titles, (self._sample, self._false_alarms, self._misses), strict=True):
            if rows:
                contact_sheet.write(out / name, title, rows, decision_threshold)
            else:
                (out / name).unlink(missing_ok=True)


def _judged(
    runtime: Runtime, samples: Sequence[Sample], size: int
) -> Iterator[tuple[Sample, np.ndarray, np.ndarray, float]]:
    """Every sample with its map, mask and score, in order, whichever process judged it."""
    rank, processes = all_gather.rank(), all_gather.count()
    for begin in range(0, len(samples), processes):
        together = samples[begin : begin + processes]
        answers = all_gather.share(lambda: _judge(runtime, together[rank], size) if rank < len(together) else None)  # noqa: B023
        for sample, answer in zip(together, answers[: len(together)], strict=True):
            assert answer is not None
            yield sample, *answer


def _judge(runtime: Runtime, sample: Sample, size: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The map, the mask and the score of one sample."""
    image = read_image(sample.image)
    anomaly_map, score = runtime.run(resize(image, size))
    if anomaly_map.shape != (size, size):
        raise JobError(f"{sample.image}: the model gave a map of shape {anomaly_map.shape}; expected {size}×{size}")
    if not math.isfinite(score):
        raise JobError(f"{sample.image}: the model gave the score {score}; expected a finite one, it is damaged")
    return anomaly_map, mask_of(sample, size, image.size), score


def _figures(
    samples: Sequence[Sample], scores: dict[Sample, float], threshold: float, pixels: PixelMetrics
) -> dict[str, Any]:
    anomalous = [sample.anomalous for sample in samples]
    verdicts = [is_anomalous(scores[sample], threshold) for sample in samples]
    without_mask = any(sample.anomalous and sample.mask is None for sample in samples)
    return {
        "image_auroc": image_auroc([scores[sample] for sample in samples], anomalous),
        **(PixelFigures(None, None, None, None) if without_mask else pixels.compute())._asdict(),
        "image_f1": image_f1(verdicts, anomalous),
        "threshold": threshold,
        "false_alarms": sum(v and not a for v, a in zip(verdicts, anomalous, strict=True)),
        "missed": sum(a and not v for v, a in zip(verdicts, anomalous, strict=True)),
        "normal": anomalous.count(False),
        "anomalous": anomalous.count(True),
    }


def _spread(groups: Sequence[Sequence[Sample]], count: int) -> set[Sample]:
    """About `count` samples, as many of each group as there are, evenly spaced in it."""
    groups = [group for group in groups if group]
    chosen = []
    for index, group in enumerate(groups):
        share = min(len(group), count // len(groups) + (index < count % len(groups)))
        chosen += [group[(2 * i + 1) * len(group) // (2 * share)] for i in range(share)]
    return set(chosen)
