"""Evaluate a model on labelled images: metrics, overall and per defect type, and contact sheets."""

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from stlm_edge.data.sample import Sample, mask_of
from stlm_edge.errors import JobError, UsageError
from stlm_edge.evaluation import contact_sheet
from stlm_edge.evaluation.all_gather import all_gather, count, rank
from stlm_edge.evaluation.contact_sheet import Row
from stlm_edge.evaluation.metrics import FPR_LIMIT, DetectionMetrics, image_f1
from stlm_edge.files import replacing
from stlm_edge.images import read_image, resize
from stlm_edge.progress import step
from stlm_edge.runtimes import Runtime
from stlm_edge.threshold import DecisionThreshold
from stlm_edge.verdict import is_anomalous

METRICS = "metrics.json"
COLUMNS = {"image_auroc": "Image AUROC", "pixel_auroc": "Pixel AUROC", "aupro": "AUPRO", "image_f1": "Image F1"}
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
    """Run a model on every sample at size×size and measure how well it separates normal and anomalous ones.

    Pixel metrics are None where an anomalous image has no mask, and metrics that need both classes are None without.
    The metrics of a defect type are those of its images and all normal ones. Where torch.distributed is initialised,
    each process runs every n-th sample, all get the metrics of one process alone, and rank 0 writes the files.

    Args:
        runtime: The model.
        samples: The labelled images.
        size: Side of the model's input, pixels.
        decision_threshold: Threshold of the verdicts.
        out: Folder for the contact sheets and, last, metrics.json; each is written whole or not at all.
        source: Name of what is evaluated.

    Returns:
        The content of metrics.json: the metrics overall, the same for each defect type, and the score of each image.

    Raises:
        UsageError: There are no samples, or an image or mask cannot be read.
        JobError: A map or score is not finite, or a map is not size×size; or another process has died.
    """
    if not samples:
        raise UsageError("no images to evaluate; expected a test set of normal and anomalous ones")
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"{out}: a file; expected a folder, for {METRICS} and the contact sheets")
    normal = [sample for sample in samples if not sample.anomalous]
    defects: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.anomalous:
            defects.setdefault(sample.defect, []).append(sample)
    scores: dict[Sample, float] = {}
    gallery = _Gallery(_spread([normal, *defects.values()], ROWS))

    with step("evaluating", len(samples), hidden=rank() > 0) as advance:

        def run(part: list[Sample], *counted_in: DetectionMetrics) -> None:
            for sample, anomaly_map, mask, score in _outputs(runtime, part, size):
                scores[sample] = score
                for metrics in counted_in:
                    metrics.update(anomaly_map, score, sample.anomalous, mask)
                gallery.add(Row(sample, score, contact_sheet.shrink(anomaly_map)))
                advance()

        of_normal = DetectionMetrics()
        run(normal, of_normal)
        overall, by_defect = copy.deepcopy(of_normal), {}
        for defect, anomalous in defects.items():
            by_defect[defect] = copy.deepcopy(of_normal)
            run(anomalous, by_defect[defect], overall)

    threshold = decision_threshold.value
    metrics = {
        **_with_verdicts(overall, threshold),
        "by_defect": {defect: _with_verdicts(of_defect, threshold) for defect, of_defect in by_defect.items()},
        "source": source,
        "size": size,
        "images": len(samples),
        "scores": [
            {
                "image": f"{sample.image.parent.name}/{sample.image.name}",
                "defect": sample.defect,
                "anomalous": sample.anomalous,
                "score": scores[sample],
                "verdict": "anomalous" if is_anomalous(scores[sample], threshold) else "normal",
            }
            for sample in samples
        ],
    }
    if out is not None and rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
        gallery.write(out, metrics, decision_threshold)
        with replacing(out / METRICS) as temporary:
            temporary.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return metrics


def summary(metrics: dict[str, Any]) -> Table:
    """Return metrics as a table for a terminal: overall and per defect type, or per category and their mean."""
    if "categories" in metrics:
        header, total, rows = "Category", metrics["mean"], [*metrics["categories"].items(), ("mean", metrics["mean"])]
        caption = "each category at the threshold of its own model"
    else:
        header, total, rows = "Defect type", metrics, [("all", metrics), *metrics["by_defect"].items()]
        caption = f"threshold {metrics['threshold']:.4f}; pixel metrics at {metrics['size']}×{metrics['size']}"
    table = Table(
        title=escape(metrics["source"]),
        caption=f"{caption}; AUPRO up to a false-positive rate of {FPR_LIMIT}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column(header)
    for column in (*COLUMNS.values(), "False alarms", "Missed"):
        table.add_column(column, justify="right")
    for name, row in rows:
        cells = ["n/a" if row[key] is None else f"{row[key]:.4f}" for key in COLUMNS]
        if "missed" in row:
            cells += [f"{row['false_alarms']} of {row['normal']}", f"{row['missed']} of {row['anomalous']}"]
        table.add_row(escape(name), *cells, style="bold" if row is total else None)
    return table


class _Gallery:
    """The few images that contact sheets show; no other maps are kept."""

    def __init__(self, spread: set[Sample]) -> None:
        self._spread = spread
        self._sample: list[Row] = []
        self._misses: list[Row] = []
        self._false_alarms: list[Row] = []

    def add(self, row: Row) -> None:
        if row.sample in self._spread:
            self._sample.append(row)
        worst = self._misses if row.sample.anomalous else self._false_alarms
        worst.append(row)
        worst.sort(key=lambda row: row.score, reverse=not row.sample.anomalous)
        del worst[ROWS:]

    def write(self, out: Path, metrics: dict[str, Any], decision_threshold: DecisionThreshold) -> None:
        normal, anomalous = metrics["normal"], metrics["anomalous"]
        titles = (
            f"A sample of the {normal} normal and {anomalous} anomalous images",
            f"Worst false alarms, by the highest score: {metrics['false_alarms']} of {normal} normal images are one",
            f"Worst misses, by the lowest score: {metrics['missed']} of {anomalous} anomalous images are missed",
        )
        for name, title, rows in zip(SHEETS, titles, (self._sample, self._false_alarms, self._misses), strict=True):
            if rows:
                contact_sheet.write(out / name, title, rows, decision_threshold)
            else:
                (out / name).unlink(missing_ok=True)


def _outputs(
    runtime: Runtime, samples: Sequence[Sample], size: int
) -> Iterator[tuple[Sample, np.ndarray, np.ndarray | None, float]]:
    """Yield every sample with its map, mask and score, in order, whichever process ran it."""
    for first in range(0, len(samples), count()):
        batch = samples[first : first + count()]
        gathered = all_gather(lambda: _run(runtime, batch[rank()], size) if rank() < len(batch) else None)  # noqa: B023
        for sample, outputs in zip(batch, gathered[: len(batch)], strict=True):
            assert outputs is not None
            yield sample, *outputs


def _run(runtime: Runtime, sample: Sample, size: int) -> tuple[np.ndarray, np.ndarray | None, float]:
    """Return the map, the mask (None where an anomalous image has none) and the score of a sample."""
    image = read_image(sample.image)
    anomaly_map, score = runtime.run(resize(image, size))
    if anomaly_map.shape != (size, size):
        raise JobError(f"{sample.image}: the model gave a map of shape {anomaly_map.shape}; expected {size}×{size}")
    without_mask = sample.anomalous and sample.mask is None
    return anomaly_map, None if without_mask else mask_of(sample, size, image.size), score


def _with_verdicts(metrics: DetectionMetrics, threshold: float) -> dict[str, Any]:
    anomalous = metrics.anomalous
    verdicts = [is_anomalous(score, threshold) for score in metrics.scores]
    pairs = list(zip(verdicts, anomalous, strict=True))
    return {
        **metrics.compute(),
        "image_f1": image_f1(verdicts, anomalous),
        "threshold": threshold,
        "false_alarms": pairs.count((True, False)),
        "missed": pairs.count((False, True)),
        "normal": anomalous.count(False),
        "anomalous": anomalous.count(True),
    }


def _spread(groups: Sequence[Sequence[Sample]], total: int) -> set[Sample]:
    """Return about `total` samples, as many of each group as there are, evenly spaced in it."""
    groups = [group for group in groups if group]
    chosen = []
    for index, group in enumerate(groups):
        share = min(len(group), total // len(groups) + (index < total % len(groups)))
        chosen += [group[(2 * i + 1) * len(group) // (2 * share)] for i in range(share)]
    return set(chosen)
