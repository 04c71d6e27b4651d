"""bench.json: the result of a bench. Its JSON Schema, schemas/bench-1.schema.json, is made from these classes.

A value that was not measured is null, never 0 and never left out.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from stlm_edge import strict_json
from stlm_edge.bench.machine.system import Machine
from stlm_edge.strict_json import Between, Items

MAX_BYTES = 64_000_000
MAX_SIDE = 64  # values in a row of an encoded map

Milliseconds = Annotated[float, Between(0)]
Share = Annotated[float, Between(0, 1)]
Count = Annotated[int, Between(0)]


@dataclass(frozen=True)
class Latency:
    """Milliseconds per image: nearest-rank percentiles over all queries.

    `p90_early_stopping` is the p90 that MLPerf's LoadGen would report, which holds with 99% confidence; null if there
    are too few queries. A tool that reports a median alone leaves the others null.
    """

    p50: Milliseconds
    p90: Milliseconds | None
    p99: Milliseconds | None
    p90_early_stopping: Milliseconds | None


@dataclass(frozen=True)
class Throughput:
    """Images per second of several processes at once, one image at a time each."""

    streams: Annotated[int, Between(1), "number of processes"]
    images_per_second: Annotated[float, Between(0)]


@dataclass(frozen=True)
class Placement:
    """Part of the graph by what ran it: an execution provider, a delegate, or the runtime itself."""

    by: str
    nodes: Count
    fell_back: Annotated[bool, "it is not the one that was requested"]


@dataclass(frozen=True)
class GoldenResult:
    """This row's output for one golden image against the trained model's. A difference that is not finite is null."""

    name: str
    anomalous: Annotated[bool, "by the image's label; `score` holds the row's output"]
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
    """Metrics on the bench's `data`; null if these images have no masks, or one class only."""

    image_auroc: Share | None
    pixel_auroc: Share | None
    aupro: Share | None


@dataclass(frozen=True)
class Telemetry:
    """Sensor values of the device, sampled once a second while a row was timed."""

    readings: Count
    clocks: Annotated[dict[str, Any], "part to its lowest, mean and highest clock, MHz"]
    celsius: Annotated[dict[str, Any], "sensor to its highest temperature"]
    gpu_percent: Annotated[float | None, "mean load"]
    memory_mb: Annotated[float | None, "the most in use on the whole device, or on the GPU by nvidia-smi (MiB)"]


@dataclass(frozen=True)
class WorstImage:
    """The golden image whose map differs most: this row's map and its difference from the trained model's.

    Either is a list of rows, each the base64 of one byte per value. A larger map is reduced to this size by maxima. A
    difference that is not finite is 255, and its maximum null.
    """

    name: str
    map: Annotated[tuple[str, ...], Items(1, MAX_SIDE), "255 is 1"]
    difference: Annotated[tuple[str, ...], Items(1, MAX_SIDE), "255 is max_abs_diff"]
    max_abs_diff: float | None


@dataclass(frozen=True)
class Part:
    """One part of the network."""

    name: str
    ms: Milliseconds
    gflop: Annotated[float, Between(0), "10^9 operations of its matrix products and convolutions"]
    megabytes: Annotated[float, Between(0), "read and written, 10^6 bytes"]


@dataclass(frozen=True)
class Profile:
    """Time by part of the network, measured in a separate process after all latencies: each node at its fastest."""

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
    teacher: Annotated[str | None, "the model that this one was distilled from"]
    input_size: Annotated[int, Between(1), "side of the square input, pixels"]
    size_mb: Annotated[float, Between(0), "the artifact's file, 10^6 bytes"]
    threads: Annotated[int, Between(1)]
    passed: Annotated[bool, "it ran, and gave the trained model's verdicts"]
    failure: Annotated[str | None, "why it did not pass"]
    parity: RowParity | None
    threshold: float | None
    verdict_delta: float | None
    golden: tuple[GoldenResult, ...]
    load_ms: Annotated[float | None, "importing the runtime, checking the files' sha256, opening the model"]
    first_inference_ms: float | None
    peak_memory_mb: Annotated[float | None, "resident memory of a process that did nothing else, 10^6 bytes"]
    timed_even_if_wrong: Annotated[bool, "it failed, and was timed because of --even-if-wrong"]
    placement: Annotated[tuple[Placement, ...] | None, "null: not reported by the runtime"]
    warmup: Annotated[int, Between(0), "queries before the first one that counts"]
    steady: Annotated[bool | None, "the medians had settled at the end of the warm-up"]
    queries: Annotated[int, Between(0), "queries that count"]
    seconds: Annotated[float | None, "duration of these queries together"]
    latency_ms: Annotated[Latency | None, "from a resized uint8 image to its map and score"]
    end_to_end_ms: Annotated[Latency | None, "from an image file to its verdict: decode, resize, run, judge"]
    throughput: tuple[Throughput, ...]
    energy_mj: Annotated[float | None, "per query, by the device's own meter, 10^-3 joules"]
    round_p50_ms: Annotated[tuple[float, ...], "medians of the rounds in which the rows took turns"]
    accuracy: Accuracy | None
    untimed: Annotated[str | None, "why latency was not measured: an emulator or evaluator ran the artifact"] = None
    telemetry: Annotated[Telemetry | None, "null: the device reports nothing"] = None
    quantiles_ms: Annotated[tuple[float, ...], "of latency_ms's queries: 101 nearest-rank percentiles, 0 to 100"] = ()
    worst: WorstImage | None = None
    profile: Annotated[Profile | None, "null: not available from this runtime"] = None


@dataclass(frozen=True)
class DeviceResult:
    """A device other than the machine that wrote this file."""

    name: Annotated[str, "as --device names it"]
    machine: Annotated[Machine | None, "null: it gave no result"]
    failure: Annotated[str | None, "why it gave none"]
    date: Annotated[str | None, "of the measurement, if the row is from another file: ISO 8601, UTC"] = None


@dataclass(frozen=True)
class Bench:
    """Output of stlm-bench, format version 1."""

    format_version: Literal[1]
    headline: str
    date: Annotated[str, "ISO 8601, UTC"]
    command: str
    stlm_edge: Annotated[str, "version of this package"]
    machine: Annotated[Machine, "the machine that wrote this file"]
    devices: tuple[DeviceResult, ...]
    data: Annotated[str | None, "the images that accuracy was measured on"]
    rows: Annotated[tuple[Row, ...], Items(1, 1000)]
    done: Annotated[Literal[True], "the last key: without it, the file is incomplete"]


def read_bench(path: Path) -> Bench:
    """Read a bench.json strictly. Raises UsageError for any other file."""
    return strict_json.read(Bench, strict_json.load(path, MAX_BYTES), str(path))


def encode_map(values: np.ndarray) -> tuple[str, ...]:
    """Encode a square of values from 0 to 1 for `WorstImage`, reduced by maxima to at most MAX_SIDE×MAX_SIDE."""
    starts = np.linspace(0, len(values), min(len(values), MAX_SIDE) + 1).astype(int)[:-1]
    largest = np.maximum.reduceat(np.maximum.reduceat(values, starts, axis=0), starts, axis=1)
    levels = (np.clip(largest, 0, 1) * 255).round().astype(np.uint8)
    return tuple(base64.b64encode(row.tobytes()).decode() for row in levels)


def decode_map(rows: Sequence[str]) -> np.ndarray:
    """Decode such a square to float32. Raises ValueError if the rows are not a square."""
    levels = [np.frombuffer(base64.b64decode(row, validate=True), np.uint8) for row in rows]
    if not 0 < len(levels) <= MAX_SIDE or any(len(row) != len(levels) for row in levels):
        raise ValueError("not a square")
    return np.stack(levels).astype(np.float32) / 255
