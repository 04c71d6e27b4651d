"""bench.json: what a bench found. Its JSON Schema is schemas/bench-1.schema.json, made from these classes.

A figure that was not measured is null, never 0 and never left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from stlm_edge import strict_json
from stlm_edge.bench.machine.system import Machine
from stlm_edge.strict_json import Between, Items

Milliseconds = Annotated[float, Between(0)]
Share = Annotated[float, Between(0, 1)]
Count = Annotated[int, Between(0)]


@dataclass(frozen=True)
class Latency:
    """Milliseconds per image: nearest-rank percentiles over all queries.

    `p90_early_stopping` is what MLPerf's LoadGen would report: a p90 that holds with 99% confidence, null where the
    queries are too few for one. A tool that tells a median alone leaves the others null.
    """

    p50: Milliseconds
    p90: Milliseconds | None
    p99: Milliseconds | None
    p90_early_stopping: Milliseconds | None


@dataclass(frozen=True)
class Throughput:
    """What so many processes at once answer, one image at a time each, together."""

    streams: Annotated[int, Between(1)]
    images_per_second: Annotated[float, Between(0)]


@dataclass(frozen=True)
class Placement:
    """What ran a part of the graph: an execution provider, a delegate, or the runtime itself."""

    by: str
    nodes: Annotated[int, Between(0)]
    fell_back: Annotated[bool, "it is not what was asked for"]


@dataclass(frozen=True)
class GoldenAnswer:
    """One golden image: this row's answer against the trained model's. A difference that is not finite is null."""

    name: str
    anomalous: Annotated[bool, "the image is, by its label; `score` tells what the row says"]
    max_abs_diff: float | None
    mean_abs_diff: float | None
    cosine: float
    score: float
    expected_score: Annotated[float, "the trained model's"]
    verdict: Annotated[Literal["same", "flip", "failure"], "flip: inside verdict_delta; failure: outside it"]
    resize_max_diff: Annotated[int, Between(0, 255), "this device's decoding and resizing against the stored tensor"]


@dataclass(frozen=True)
class RowParity:
    """All golden images together: maxima, means, counts. A difference that is not finite is null."""

    max_abs_diff: float | None
    mean_abs_diff: float | None
    cosine: float
    verdict_flips: Annotated[int, Between(0), "verdicts that differ, failures included"]
    verdict_failures: Annotated[int, Between(0), "flips farther than verdict_delta from the threshold"]
    score_max_diff: float
    resize_max_diff: Annotated[int, Between(0, 255)]
    images: Annotated[int, Between(1)]


@dataclass(frozen=True)
class Accuracy:
    """On the bench's `data`; null where that cannot tell (no masks, one class)."""

    image_auroc: Share | None
    pixel_auroc: Share | None
    aupro: Share | None


@dataclass(frozen=True)
class During:
    """What the device told of itself once a second while a row was timed."""

    readings: Count
    clocks: Annotated[dict[str, Any], "part to its lowest, mean and highest clock, MHz"]
    celsius: Annotated[dict[str, Any], "sensor to its highest temperature"]
    gpu_percent: Annotated[float | None, "mean load"]
    memory_mb: Annotated[float | None, "the most in use on the whole device or, by nvidia-smi, GPU; as it counts MB"]


@dataclass(frozen=True)
class WorstImage:
    """The golden image whose map differs most: this row's map and its difference from the trained model's.

    Either is a list of rows, each the base64 of one byte per value. Where a map has more values than fit, one stands
    for the largest of its place. A difference that is not finite is 255, and its maximum null.
    """

    name: str
    map: Annotated[tuple[str, ...], Items(1, 64), "255 is 1"]
    difference: Annotated[tuple[str, ...], Items(1, 64), "255 is max_abs_diff"]
    max_abs_diff: float | None


@dataclass(frozen=True)
class Part:
    """A part of the network. What its graph nodes take, compute and move, by onnxruntime's own profile."""

    name: str
    ms: Milliseconds
    gflop: Annotated[float, Between(0), "of matrix products and convolutions, a multiply-add as two, 10^9"]
    megabytes: Annotated[float, Between(0), "read and written by its nodes, each tensor anew, 10^6 bytes"]


@dataclass(frozen=True)
class Profile:
    """Where the time goes, in a process of its own after all latencies: every node at its best of some runs."""

    parts: Annotated[tuple[Part, ...], Items(1, 100)]
    gflop_per_second: Annotated[float, Between(0), "of the best float32 matrix product, 512³, on as many threads"]
    gigabyte_per_second: Annotated[float, Between(0), "of the best copy of 64 MB, on one thread, read and written"]


@dataclass(frozen=True)
class Row:
    """One artifact on one runtime."""

    name: str
    bundle: Annotated[str, "the bundle's folder, or the checkpoint's file"]
    device: Annotated[str | None, "one of `devices`; null: `machine`"]
    target: Annotated[str | None, "null for a checkpoint"]
    runtime: str
    precision: str
    teacher: Annotated[str | None, "what the model was distilled from"]
    input_size: Annotated[int, Between(1), "side of the square input, pixels"]
    size_mb: Annotated[float, Between(0), "the artifact's file, 10^6 bytes"]
    threads: Annotated[int, Between(1)]
    passed: Annotated[bool, "it ran, and says what the trained model said"]
    failure: Annotated[str | None, "why not"]
    parity: RowParity | None
    threshold: float | None
    verdict_delta: float | None
    golden: tuple[GoldenAnswer, ...]
    load_ms: Annotated[float | None, "importing the runtime, checking the files' digests, opening the model"]
    first_inference_ms: float | None
    peak_memory_mb: Annotated[float | None, "resident, of a process that did nothing else, 10^6 bytes"]
    timed_even_if_wrong: Annotated[bool, "it failed, and was timed because --even-if-wrong asked for it"]
    placement: Annotated[tuple[Placement, ...] | None, "null: the runtime does not tell"]
    warmup: Annotated[int, Between(0), "queries before the first that counts"]
    steady: Annotated[bool | None, "the warm-up ended because its medians had settled"]
    queries: Annotated[int, Between(0), "queries that count"]
    seconds: Annotated[float | None, "that they took together"]
    latency_ms: Annotated[Latency | None, "from a resized uint8 image to its map and score"]
    end_to_end_ms: Annotated[Latency | None, "from an image's file to its verdict: decode, resize, run, judge"]
    throughput: tuple[Throughput, ...]
    energy_mj: Annotated[float | None, "per query, by the device's own meter, 10^-3 joules"]
    round_p50_ms: Annotated[tuple[float, ...], "medians of the rounds in which the rows took turns"]
    accuracy: Accuracy | None
    untimed: Annotated[str | None, "why no latency was wanted: what ran here isn't the device, but plays it"] = None
    during: Annotated[During | None, "null: the device tells nothing"] = None
    quantiles_ms: Annotated[tuple[float, ...], "of latency_ms's queries: 101 nearest-rank percentiles, 0 to 100"] = ()
    worst: WorstImage | None = None
    profile: Annotated[Profile | None, "null: the runtime tells nothing of its nodes"] = None


@dataclass(frozen=True)
class DeviceAnswer:
    """A device other than the machine that wrote this file."""

    name: Annotated[str, "as --device names it"]
    machine: Annotated[Machine | None, "null: it gave no answer"]
    failure: Annotated[str | None, "why not"]
    date: Annotated[str | None, "when it was measured, where another file brought it: ISO 8601, UTC"] = None


@dataclass(frozen=True)
class Bench:
    """What stlm-bench writes, format version 1."""

    format_version: Literal[1]
    headline: str
    date: Annotated[str, "ISO 8601, UTC"]
    command: str
    stlm_edge: Annotated[str, "version of this package"]
    machine: Annotated[Machine, "what wrote this file"]
    devices: tuple[DeviceAnswer, ...]
    data: Annotated[str | None, "what accuracy was measured on"]
    rows: Annotated[tuple[Row, ...], Items(1, 1000)]
    done: Annotated[Literal[True], "last: what is read before it stands there is not whole"]


def schema() -> dict[str, Any]:
    """The JSON Schema published as `schemas/bench-1.schema.json`."""
    return strict_json.json_schema(Bench, "stlm-edge bench, format version 1")


def headline(rows: Sequence[Row]) -> str:
    """Say in one line, per device, whether its fastest bundle gives the trained model's verdicts, and how fast it is.

    Speeds are told against each other within a device only.
    """
    devices: dict[str | None, list[Row]] = {}
    for row in rows:
        devices.setdefault(row.device, []).append(row)
    if len(devices) == 1:
        return _of_one_device(rows)
    same = sum(all(row.passed for row in mine) for mine in devices.values())
    said = [("" if name else "this machine: ") + _of_one_device(mine) for name, mine in devices.items()]
    return f"same verdicts as the trained model on {same} of {len(devices)} devices. " + ". ".join(said)


def _of_one_device(rows: Sequence[Row]) -> str:
    """A row that failed comes first: a fast wrong answer is no news."""
    for row in rows:
        if not row.passed:
            return f"{label(row)} FAILED: {row.failure}"
    best = min([row for row in rows if row.target] or rows, key=_p50)
    parts = []
    if best.parity:
        same = best.parity.images - best.parity.verdict_flips
        parts.append(f"same verdicts as the trained model on {same} of {best.parity.images} images")
        if best.parity.verdict_flips:
            parts[0] += f" ({best.parity.verdict_flips} within the tolerance of the threshold)"
    if best.latency_ms:
        speed = f"p50 {milliseconds(best.latency_ms.p50)} ms"
        if best.latency_ms.p90 is not None:
            speed += f", p90 {milliseconds(best.latency_ms.p90)} ms"
        if peer := _peer(best, rows):
            speed += f", {_p50(peer) / _p50(best):.1f}x the speed of {label(peer)}"
        parts.append(speed)
    if best.energy_mj is not None:
        parts.append(f"{best.energy_mj:.1f} mJ per image")
    return f"{label(best)}: " + "; ".join(parts)


def label(row: Row) -> str:
    """The row's name, and its device unless that is the machine at hand."""
    return f"{row.name} on {row.device}" if row.device else row.name


def _p50(row: Row) -> float:
    return row.latency_ms.p50 if row.latency_ms else float("inf")


def _peer(best: Row, rows: Sequence[Row]) -> Row | None:
    """Return the row to tell the best one's speed against: an fp32 bundle, else the checkpoint, else any other."""
    others = [row for row in rows if row is not best and row.latency_ms]
    return min(others, key=lambda row: (row.precision != "fp32", row.target is None), default=None)


def is_stand_in(teacher: str | None) -> bool:
    """Tell whether a model learnt from EfficientNet-Lite0, which stands in for SAM where nothing large is fetched."""
    return "efficientnet" in (teacher or "").lower()


def milliseconds(value: float) -> str:
    """0.42, 4.2, 42 or 420."""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 20 else f"{value:.0f}"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned plain text; a cell that nobody measured says so."""
    unknown = "not measured"
    lines: list[tuple[str, ...]] = [
        ("artifact", "runtime", "verdicts", "max diff", "cosine", "p50 ms", "p90", "p99", "MB", "peak MB")
    ]
    accuracy = any(row.accuracy for row in rows)
    if accuracy:
        lines[0] += ("image AUROC", "pixel AUROC", "AUPRO")
    for row in rows:
        parity, latency = row.parity, row.latency_ms
        cells = [label(row), row.runtime]
        if parity:
            same = f"{parity.images - parity.verdict_flips}/{parity.images} same"
            cells += [
                same if row.passed else f"{same} FAILED",
                _difference(parity.max_abs_diff),
                f"{parity.cosine:.5f}",
            ]
        else:
            cells += [unknown if row.passed else "FAILED", unknown, unknown]
        cells += (
            [unknown if value is None else milliseconds(value) for value in (latency.p50, latency.p90, latency.p99)]
            if latency
            else [unknown] * 3
        )
        cells += [f"{row.size_mb:.1f}", unknown if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}"]
        if accuracy:
            figures = row.accuracy and (row.accuracy.image_auroc, row.accuracy.pixel_auroc, row.accuracy.aupro)
            cells += ["n/a" if figure is None else f"{figure:.4f}" for figure in figures] if figures else [unknown] * 3
        lines.append(tuple(cells))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _difference(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"
