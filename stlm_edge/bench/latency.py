"""One row is measured by one process that does nothing else, so that its memory and its crashes are its own.

The process loads its artifact, answers the golden pictures, says so in one line of JSON on standard output, and then
waits: "graph 8" on standard input is a round of eight queries of the graph alone, "whole 8" of eight from a picture's
file to its verdict, each answered by their milliseconds. The parent can thus let several rows take turns, and a busy
moment of the machine hits them all. At the end of its input the process tells its peak memory and what ran the graph,
and goes.
"""

import argparse
import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np

from stlm_edge.bench.machine import peak_memory_mb
from stlm_edge.bench.result import GoldenAnswer, RowParity
from stlm_edge.bundle import Bundle, open_bundle
from stlm_edge.errors import JobError, exit_with_one_line
from stlm_edge.parity import compare, problems
from stlm_edge.picture import load
from stlm_edge.runtimes import Runtime, placement_of
from stlm_edge.verdict import is_anomalous

TIME_LIMIT_S = 600.0  # for loading and parity, and for each round
RESIZE_LIMIT = 1  # grey levels by which a device's decoding and resizing may differ: rounding
MAX_PICTURES = 8  # golden pictures held for the queries, which take them in turn


class Process:
    """The parent's end. `opened` is what the process said once its artifact had answered the golden pictures.

    Raises JobError, here and later, when the process fails, ends by a signal or takes longer than TIME_LIMIT_S.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
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
        try:
            self.opened = self._answer()
        except BaseException:
            self.stop()
            raise

    def round(self, queries: int, what: Literal["graph", "whole"] = "graph") -> list[float]:
        """Return the milliseconds of each of `queries` queries; one more, before them, is not counted."""
        self.start_round(queries, what)
        return self.end_round()

    def start_round(self, queries: int, what: Literal["graph", "whole"] = "graph") -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # its last line tells why
            self._process.stdin.write(f"{what} {queries}\n")
            self._process.stdin.flush()

    def end_round(self) -> list[float]:
        return self._answer()["ms"]

    def finish(self) -> dict[str, Any]:
        """Return "peak_memory_mb" and "placement", and let the process go."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            return self._answer()
        finally:
            self.stop()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=TIME_LIMIT_S)
        except queue.Empty:
            raise JobError(f"gave no answer within {TIME_LIMIT_S:g} s") from None
        if not line:
            raise JobError(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        if code < 0:
            return f"its process was ended by signal {-code}"
        return lines[-1].removeprefix("error: ") if lines else f"its process ended with exit code {code}"


def parity_of(runtime: Runtime, bundle: Bundle, precision: str) -> tuple[RowParity, list[GoldenAnswer], list[str]]:
    """Compare a runtime's answers on the golden pictures with the trained model's: totals, pictures, what is wrong.

    The device's own decoding and resizing is compared with the stored tensor, apart from the network.
    """
    manifest = bundle.manifest
    parity, pictures = compare(
        bundle.golden(),
        (runtime.run(golden.tensor) for golden in bundle.golden()),
        manifest.calibration.threshold,
        manifest.verdict_delta,
    )
    answers = [
        GoldenAnswer(
            name=row.name,
            anomalous=golden.anomalous,
            max_abs_diff=_finite(row.max_abs_diff),
            mean_abs_diff=_finite(row.mean_abs_diff),
            cosine=row.cosine,
            score=row.score,
            expected_score=row.expected_score,
            verdict="failure" if row.failed else "flip" if row.flipped else "same",
            resize_max_diff=_largest_difference(load(golden.picture_path, runtime.size), golden.tensor),
        )
        for row, golden in zip(pictures, bundle.golden(), strict=True)
    ]
    total = RowParity(
        max_abs_diff=_finite(parity.max_abs_diff),
        mean_abs_diff=_finite(parity.mean_abs_diff),
        cosine=parity.cosine,
        verdict_flips=parity.verdict_flips,
        verdict_failures=parity.verdict_failures,
        score_max_diff=max(abs(answer.score - answer.expected_score) for answer in answers),
        resize_max_diff=max(answer.resize_max_diff for answer in answers),
        pictures=parity.pictures,
    )
    wrong = problems(parity, precision)
    if total.resize_max_diff > RESIZE_LIMIT:
        wrong.append(
            f"decoding and resizing differ by {total.resize_max_diff} grey levels, at most {RESIZE_LIMIT} is allowed"
        )
    return total, answers, wrong


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max())


def main() -> None:
    parser = argparse.ArgumentParser("python -m stlm_edge.bench.latency", description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--checkpoint", help="run this instead, on the bundle's golden pictures")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a runtime that prints does not disturb the conversation
    with exit_with_one_line(), answers:
        _converse(options, lambda value: print(json.dumps(value), file=answers, flush=True))


def _converse(options: argparse.Namespace, say: Any) -> None:
    started = time.perf_counter()
    if options.checkpoint:
        from stlm_edge.runtimes.torch import Torch

        runtime: Runtime = Torch(options.checkpoint, options.threads)
        loaded = time.perf_counter()
        bundle, precision = open_bundle(options.bundle), "fp32"
    else:
        bundle = open_bundle(options.bundle, threads=options.threads)
        runtime, precision = bundle.runtime, bundle.manifest.precision
        loaded = time.perf_counter()
    if runtime.size != bundle.manifest.input.size:
        raise JobError(f"made for {runtime.size} pixels; the golden pictures have {bundle.manifest.input.size}")
    pictures = [golden.tensor for golden, _ in zip(bundle.golden(), range(MAX_PICTURES), strict=False)]
    first_inference_ms = _milliseconds(lambda _: runtime.run(pictures[0]) and None, 0)
    parity, golden, wrong = parity_of(runtime, bundle, precision)
    say(
        {
            "load_ms": round((loaded - started) * 1e3, 3),
            "first_inference_ms": first_inference_ms,
            "parity": asdict(parity),
            "golden": [asdict(answer) for answer in golden],
            "wrong": wrong,
        }
    )
    threshold = bundle.manifest.calibration.threshold
    paths = [golden.picture_path for golden, _ in zip(bundle.golden(), pictures, strict=False)]

    def graph(number: int) -> None:
        runtime.run(pictures[number % len(pictures)])

    def whole(number: int) -> None:
        _, score = runtime.run(load(paths[number % len(paths)], runtime.size))
        is_anomalous(score, threshold)

    for line in sys.stdin:
        what, queries = line.split()
        ask = {"graph": graph, "whole": whole}[what]
        say({"ms": [_milliseconds(ask, number) for number in range(-1, int(queries))][1:]})
    say({"peak_memory_mb": peak_memory_mb(), "placement": placement_of(runtime)})


def _milliseconds(ask: Callable[[int], None], number: int) -> float:
    started = time.perf_counter()
    ask(number)
    return round((time.perf_counter() - started) * 1e3, 4)


if __name__ == "__main__":
    main()
