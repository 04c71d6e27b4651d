"""One row is measured by one process that does nothing else, so that its memory and its crashes are its own.

The process loads its artifact, tells how long that and the first query took, answers the golden images, and then
waits, each answer one line of JSON on standard output. "graph 8" on standard input is a round of eight queries of the
graph alone after one that isn't counted, "whole 8" of eight from an image's file to its verdict, "all 8" of the graph
with every query counted, each answered by their milliseconds. The parent can thus let several rows take turns, and a
busy moment of the machine hits them all. At the end of its input the process tells its peak memory and what ran the
graph, and goes.
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
from typing import Any, Literal

import numpy as np

from stlm_edge.bench.machine.system import memory_kills, peak_memory_mb
from stlm_edge.bench.result import GoldenAnswer, RowParity, WorstImage
from stlm_edge.bench.small_map import encode
from stlm_edge.bundle import Bundle, open_bundle
from stlm_edge.bundle.parity import compare, problems
from stlm_edge.errors import JobError, exit_with_one_line
from stlm_edge.images import load
from stlm_edge.runtimes import Runtime, placement_of
from stlm_edge.verdict import is_anomalous

LOAD_LIMIT_S = 600.0  # for loading and the first query, which nothing tells the length of
LEAST_LIMIT_S = 60.0  # for each later answer, at least, ...
HUNG = 20  # ... and so many times what the slowest query before would make of it
RESIZE_LIMIT = 1  # grey levels by which a device's decoding and resizing may differ: rounding
MAX_IMAGES = 8  # golden images held for the queries, which take them in turn

What = Literal["graph", "whole", "all"]


class Child:
    """A process of this module, heard line by line.

    `ends`: by the monotonic clock, when all time is up. `tick` is called each second while it is waited for, and may
    raise. Raises JobError when the process fails, ends by a signal or gives no answer in time.
    """

    def __init__(self, arguments: Sequence[str], ends: float, tick: Callable[[], None]) -> None:
        self._ends, self._tick = ends, tick
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

    def say(self, line: str) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # its last line tells why
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def answer(self, limit_s: float) -> dict[str, Any]:
        """Its next line, which may take this long."""
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
                    raise JobError(f"gave no answer within {limit_s:g} s") from None
                self._tick()
        if not line:
            raise JobError(self._last_words())
        return json.loads(line)

    def end_of_input(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()

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

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        if code < 0:
            short = code == -signal.SIGKILL and memory_kills() > self._kills_before
            return f"its process was ended by signal {-code}" + (
                " while the machine was out of memory" if short else ""
            )
        return lines[-1].removeprefix("error: ") if lines else f"its process ended with exit code {code}"


class Process:
    """A row's process. `opened` is what it said once its artifact had answered the golden images.

    Raises JobError, here and later, as `Child` does; a round may take HUNG times what was seen before.
    """

    def __init__(
        self, arguments: Sequence[str], ends: float = math.inf, tick: Callable[[], None] = lambda: None
    ) -> None:
        self._child = Child(arguments, ends, tick)
        self.pid = self._child.pid
        try:
            self.opened = self._child.answer(LOAD_LIMIT_S)
            self._slowest_ms: float = self.opened["first_inference_ms"]
            self.opened |= self._child.answer(self._limit_s(self.opened["images"]))
        except BaseException:
            self.stop()
            raise

    def round(self, queries: int, what: What = "graph") -> list[float]:
        """Return the milliseconds of each of `queries` queries; one more, before them, is not counted."""
        self.start_round(queries, what)
        return self.end_round()

    def start_round(self, queries: int, what: What = "graph") -> None:
        self._queries = queries
        self._child.say(f"{what} {queries}")

    def end_round(self) -> list[float]:
        found = self._child.answer(self._limit_s(self._queries + 1))["ms"]
        self._slowest_ms = max(self._slowest_ms, *found, 0.0)
        return found

    def finish(self) -> dict[str, Any]:
        """Return "peak_memory_mb", "placement" and what was "asked" to run the graph, and let the process go."""
        self._child.end_of_input()
        try:
            return self._child.answer(LOAD_LIMIT_S)
        finally:
            self.stop()

    def stop(self) -> None:
        self._child.stop()

    def _limit_s(self, queries: int) -> float:
        return max(LEAST_LIMIT_S, HUNG * queries * self._slowest_ms / 1e3)


def prepare(arguments: Sequence[str], ends: float, tick: Callable[[], None]) -> None:
    """Open the artifact once, so that what is built at the first time and kept is there. Raises JobError."""
    child = Child([*arguments, "--prepare"], ends, tick)
    try:
        child.answer(math.inf)
    finally:
        child.stop()


def parity_of(runtime: Runtime, bundle: Bundle, precision: str) -> tuple[RowParity, list[GoldenAnswer], list[str]]:
    """Compare a runtime's answers on the golden images with the trained model's: totals, images, what is wrong.

    The device's own decoding and resizing is compared with the stored tensor, apart from the network.
    """
    manifest = bundle.manifest
    parity, images = compare(
        bundle.golden(),
        (runtime.run(golden.tensor) for golden in bundle.golden()),
        manifest.decision_threshold.value,
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
            resize_max_diff=_largest_difference(load(golden.image_path, runtime.size), golden.tensor),
        )
        for row, golden in zip(images, bundle.golden(), strict=True)
    ]
    total = RowParity(
        max_abs_diff=_finite(parity.max_abs_diff),
        mean_abs_diff=_finite(parity.mean_abs_diff),
        cosine=parity.cosine,
        verdict_flips=parity.verdict_flips,
        verdict_failures=parity.verdict_failures,
        score_max_diff=max(abs(answer.score - answer.expected_score) for answer in answers),
        resize_max_diff=max(answer.resize_max_diff for answer in answers),
        images=parity.images,
    )
    wrong = problems(parity, precision)
    if total.resize_max_diff > RESIZE_LIMIT:
        wrong.append(
            f"decoding and resizing differ by {total.resize_max_diff} grey levels, at most {RESIZE_LIMIT} is allowed"
        )
    return total, answers, wrong


def worst_of(runtime: Runtime, bundle: Bundle, answers: Sequence[GoldenAnswer]) -> WorstImage:
    """The golden image whose map differs most, asked again."""
    name = max(answers, key=lambda answer: math.inf if answer.max_abs_diff is None else answer.max_abs_diff).name
    golden = next(golden for golden in bundle.golden() if golden.name == name)
    found = np.asarray(runtime.run(golden.tensor)[0])[golden.offset :: golden.stride, golden.offset :: golden.stride]
    difference = np.abs(found.astype(np.float64) - golden.map)
    most = float(difference.max())
    shares = np.nan_to_num(difference / most if 0 < most < math.inf else difference, nan=1.0, posinf=1.0)
    return WorstImage(name, encode(np.nan_to_num(found)), encode(shares), _finite(most))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max())


def main() -> None:
    parser = argparse.ArgumentParser("python -m stlm_edge.bench.latency", description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--checkpoint", help="run this instead, on the bundle's golden images")
    parser.add_argument("--runtime", help="run the bundle's artifact by this one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prepare", action="store_true", help="open the artifact and end")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a runtime that prints does not disturb the conversation
    with exit_with_one_line(), answers:
        _converse(options, lambda value: print(json.dumps(value), file=answers, flush=True))


def _converse(options: argparse.Namespace, say: Any) -> None:
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
        say({})
        return
    if runtime.size != bundle.manifest.input.size:
        raise JobError(f"made for {runtime.size} pixels; the golden images have {bundle.manifest.input.size}")
    images = [golden.tensor for golden, _ in zip(bundle.golden(), range(MAX_IMAGES), strict=False)]
    first_inference_ms = _milliseconds(lambda _: runtime.run(images[0]) and None, 0)
    say(
        {
            "load_ms": round((loaded - started) * 1e3, 3),
            "first_inference_ms": first_inference_ms,
            "images": len(bundle.manifest.golden),
        }
    )
    parity, golden, wrong = parity_of(runtime, bundle, precision)
    worst = worst_of(runtime, bundle, golden)
    answered = [asdict(answer) for answer in golden]
    say({"parity": asdict(parity), "golden": answered, "wrong": wrong, "worst": asdict(worst)})
    threshold = bundle.manifest.decision_threshold.value
    paths = [golden.image_path for golden, _ in zip(bundle.golden(), images, strict=False)]

    def graph(number: int) -> None:
        runtime.run(images[number % len(images)])

    def whole(number: int) -> None:
        _, score = runtime.run(load(paths[number % len(paths)], runtime.size))
        is_anomalous(score, threshold)

    for line in sys.stdin:
        what, queries = line.split()
        ask = whole if what == "whole" else graph
        uncounted = 0 if what == "all" else 1
        say({"ms": [_milliseconds(ask, number) for number in range(-uncounted, int(queries))][uncounted:]})
    asked = getattr(runtime, "provider", None)
    say({"peak_memory_mb": peak_memory_mb(), "placement": placement_of(runtime), "asked": asked})


def _milliseconds(ask: Callable[[int], None], number: int) -> float:
    started = time.perf_counter()
    ask(number)
    return round((time.perf_counter() - started) * 1e3, 4)


if __name__ == "__main__":
    main()
