"""A process that measures one row and does nothing else, so that its memory and its crashes are its own.

The process loads its artifact, checks it on the golden images, and then reads commands from standard input: "graph 8"
is a round of eight queries of the graph alone after one that is not counted, "whole 8" of eight from an image file to
its verdict, "all 8" of the graph with every query counted. Each output is one line of JSON. The parent can thus let
several rows take turns, so that other load on the machine hits them all. At the end of its input the process prints
its peak memory and what ran the graph, and exits.
"""

import argparse
import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, Literal

import numpy as np

from stlm_edge.bench.machine.system import memory_kills, peak_memory_mb
from stlm_edge.bench.result import GoldenResult, RowParity, WorstImage, encode_map
from stlm_edge.bundle import Bundle, open_bundle
from stlm_edge.bundle.parity import compare, problems
from stlm_edge.errors import JobError, exit_with_one_line
from stlm_edge.images import load
from stlm_edge.runtimes import Runtime
from stlm_edge.verdict import is_anomalous

LOAD_LIMIT_S = 600.0  # for loading and the first query, whose duration cannot be estimated
MIN_LIMIT_S = 60.0  # for each later output, at least, ...
LIMIT_FACTOR = 20  # ... and this many times its estimate by the slowest query so far
RESIZE_LIMIT = 1  # grey levels of rounding by which a device's decoding and resizing may differ
MAX_IMAGES = 8  # golden images held in memory, which the queries take in turn

RoundKind = Literal["graph", "whole", "all"]


class Process:
    """A process of this module.

    Every method raises JobError when the process fails, is killed or does not print in time.

    Args:
        arguments: the command line of `main`.
        ends: the time limit of the whole bench, by the monotonic clock.
        tick: called each second while it is waited for; may raise.
    """

    def __init__(
        self, arguments: Sequence[str], ends: float = math.inf, tick: Callable[[], None] = lambda: None
    ) -> None:
        self._ends, self._tick = ends, tick
        self._slowest_ms = 0.0
        self._kills_before = memory_kills()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stlm_edge.bench.latency", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.pid = self._process.pid
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def open(self) -> dict[str, Any]:
        """Return load time, first query and parity, once the artifact has run on the golden images."""
        loaded = self._output(LOAD_LIMIT_S)
        self._slowest_ms = loaded["first_inference_ms"]
        return loaded | self._output(self._limit_s(loaded["images"]))

    def round(self, queries: int, kind: RoundKind = "graph") -> list[float]:
        """Return the milliseconds of each of `queries` queries; one more, before them, is not counted."""
        self.start_round(queries, kind)
        return self.end_round()

    def start_round(self, queries: int, kind: RoundKind = "graph") -> None:
        """Let it begin a round, to be followed by `end_round`."""
        assert self._process.stdin
        self._queries = queries
        with contextlib.suppress(BrokenPipeError):  # `end_round` reports why it ended
            self._process.stdin.write(f"{kind} {queries}\n")
            self._process.stdin.flush()

    def end_round(self) -> list[float]:
        """Return the milliseconds of each query of the round that was started."""
        times = self._output(self._limit_s(self._queries + 1))["ms"]
        self._slowest_ms = max(self._slowest_ms, *times, 0.0)
        return times

    def finish(self) -> dict[str, Any]:
        """Return "peak_memory_mb", "placement" and the "requested" execution provider, and let the process exit."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            return self._output(LOAD_LIMIT_S)
        finally:
            self.stop()

    def prepare(self) -> None:
        """Wait until the artifact was opened by `--prepare`, however long it takes, and let the process exit."""
        try:
            self._output(math.inf)
        finally:
            self.stop()

    def stop(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _limit_s(self, queries: int) -> float:
        return max(MIN_LIMIT_S, LIMIT_FACTOR * queries * self._slowest_ms / 1e3)

    def _output(self, limit_s: float) -> dict[str, Any]:
        """Return its next line, within a time limit."""
        gives_up = time.monotonic() + limit_s
        while True:
            left = min(gives_up, self._ends) - time.monotonic()
            try:
                line = self._lines.get(timeout=max(0.0, min(1.0, left)))
                break
            except queue.Empty:
                if time.monotonic() >= self._ends:
                    raise JobError("not finished within the time limit") from None
                if left <= 0:
                    raise JobError(f"no output within {limit_s:g} s") from None
                self._tick()
        if not line:
            raise JobError(self._reason())
        return json.loads(line)

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def _reason(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        if code < 0:
            out_of_memory = code == -signal.SIGKILL and memory_kills() > self._kills_before
            return f"its process was killed by signal {-code}" + (
                " while the machine was out of memory" if out_of_memory else ""
            )
        return lines[-1].removeprefix("error: ") if lines else f"its process ended with exit code {code}"


def parity_of(runtime: Runtime, bundle: Bundle, precision: str) -> tuple[RowParity, list[GoldenResult], list[str]]:
    """Compare a runtime's outputs for the golden images with the trained model's.

    The device's own decoding and resizing is compared with the stored tensor, separately from the network.

    Returns:
        All images together, each image, and the reasons why the runtime does not pass.
    """
    manifest = bundle.manifest
    parity, images = compare(
        bundle.golden(),
        (runtime.run(golden.tensor) for golden in bundle.golden()),
        manifest.decision_threshold.value,
        manifest.verdict_delta,
    )
    results = [
        GoldenResult(
            name=image.name,
            anomalous=golden.anomalous,
            max_abs_diff=_finite(image.max_abs_diff),
            mean_abs_diff=_finite(image.mean_abs_diff),
            cosine=image.cosine,
            score=image.score,
            expected_score=image.expected_score,
            verdict="failure" if image.failed else "flip" if image.flipped else "same",
            resize_max_diff=_largest_difference(load(golden.image_path, runtime.size), golden.tensor),
        )
        for image, golden in zip(images, bundle.golden(), strict=True)
    ]
    total = RowParity(
        max_abs_diff=_finite(parity.max_abs_diff),
        mean_abs_diff=_finite(parity.mean_abs_diff),
        cosine=parity.cosine,
        verdict_flips=parity.verdict_flips,
        verdict_failures=parity.verdict_failures,
        score_max_diff=max(abs(result.score - result.expected_score) for result in results),
        resize_max_diff=max(result.resize_max_diff for result in results),
        images=parity.images,
    )
    wrong = problems(parity, precision)
    if total.resize_max_diff > RESIZE_LIMIT:
        wrong.append(
            f"decoding and resizing differ by {total.resize_max_diff} grey levels, at most {RESIZE_LIMIT} is allowed"
        )
    return total, results, wrong


def worst_of(runtime: Runtime, bundle: Bundle, results: Sequence[GoldenResult]) -> WorstImage:
    """Run the golden image whose map differs most again, and return its map and difference."""
    name = max(results, key=lambda result: math.inf if result.max_abs_diff is None else result.max_abs_diff).name
    golden = next(golden for golden in bundle.golden() if golden.name == name)
    sampled = np.asarray(runtime.run(golden.tensor)[0])[golden.offset :: golden.stride, golden.offset :: golden.stride]
    difference = np.abs(sampled.astype(np.float64) - golden.map)
    largest = float(difference.max())
    shares = np.nan_to_num(difference / largest if 0 < largest < math.inf else difference, nan=1.0, posinf=1.0)
    return WorstImage(name, encode_map(np.nan_to_num(sampled)), encode_map(shares), _finite(largest))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max())


def main() -> None:
    """Measure one row as its own process."""
    parser = argparse.ArgumentParser("python -m stlm_edge.bench.latency", description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--checkpoint", help="run this instead, on the bundle's golden images")
    parser.add_argument("--runtime", help="run the bundle's artifact with this runtime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prepare", action="store_true", help="open the artifact and exit")
    options = parser.parse_args()
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a runtime prints must not mix with the output
    with exit_with_one_line(), output:
        _measure(options, lambda value: print(json.dumps(value), file=output, flush=True))


def _measure(options: argparse.Namespace, send: Callable[[dict[str, Any]], None]) -> None:
    started = time.perf_counter()
    if options.checkpoint:
        from stlm_edge.runtimes.torch import Torch

        device = (options.runtime or "").partition("/")[2] or "cpu"
        runtime: Runtime = Torch(options.checkpoint, options.threads, device)
        loaded = time.perf_counter()
        bundle, precision = open_bundle(options.bundle), "fp32"
    else:
        bundle = open_bundle(options.bundle, options.runtime, options.threads)
        runtime, precision = bundle.runtime, bundle.manifest.precision
        loaded = time.perf_counter()
    if options.prepare:
        send({})
        return
    if runtime.size != bundle.manifest.input.size:
        raise JobError(f"made for {runtime.size} pixels; the golden images have {bundle.manifest.input.size}")
    kept = [(golden.tensor, golden.image_path) for golden in islice(bundle.golden(), MAX_IMAGES)]
    images, paths = zip(*kept, strict=True)
    threshold = bundle.manifest.decision_threshold.value

    def graph(number: int) -> None:
        runtime.run(images[number % len(images)])

    def whole(number: int) -> None:
        _, score = runtime.run(load(paths[number % len(paths)], runtime.size))
        is_anomalous(score, threshold)

    load_ms = round((loaded - started) * 1e3, 3)
    send({"load_ms": load_ms, "first_inference_ms": _milliseconds(graph, 0), "images": len(bundle.manifest.golden)})
    parity, results, wrong = parity_of(runtime, bundle, precision)
    worst = worst_of(runtime, bundle, results)
    send({"parity": asdict(parity), "golden": list(map(asdict, results)), "wrong": wrong, "worst": asdict(worst)})
    for line in sys.stdin:
        kind, queries = line.split()
        query = whole if kind == "whole" else graph
        uncounted = 0 if kind == "all" else 1
        send({"ms": [_milliseconds(query, number) for number in range(-uncounted, int(queries))][uncounted:]})
    requested = runtime.provider
    send({"peak_memory_mb": peak_memory_mb(), "placement": runtime.placement(), "requested": requested})


def _milliseconds(query: Callable[[int], None], number: int) -> float:
    started = time.perf_counter()
    query(number)
    return round((time.perf_counter() - started) * 1e3, 4)


if __name__ == "__main__":
    main()
