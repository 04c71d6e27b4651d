"""Measures rows side by side: parity of all first, then latency in rounds that take turns, then throughput."""

import contextlib
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stlm_edge import strict_json
from stlm_edge.bench.latency import Process, RoundKind
from stlm_edge.bench.machine.nvidia import Reading
from stlm_edge.bench.machine.system import emulator
from stlm_edge.bench.machine.telemetry import Watch, summary, watching
from stlm_edge.bench.percentiles import early_stopping, percentile
from stlm_edge.bench.profile import profile_of
from stlm_edge.bench.result import GoldenResult, Latency, Placement, Row, RowParity, Throughput, WorstImage
from stlm_edge.bundle import Bundle
from stlm_edge.errors import JobError
from stlm_edge.runtimes import Runtime, name_here

ROUNDS = 10
WARM_UP_QUERIES, MAX_WARM_UP_ROUNDS = 8, 25

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """Minimum queries and seconds of each row; the defaults are those of MLPerf."""

    queries: int = 1024
    seconds: float = 60.0
    streams: tuple[int, ...] = ()
    even_if_wrong: bool = False
    time_limit_s: float = math.inf


@dataclass(frozen=True)
class Subject:
    """A row that is not measured yet, with its bundle; a checkpoint runs on the bundle's golden images instead."""

    row: Row
    bundle: Bundle
    checkpoint: Path | None = None

    def arguments(self) -> list[str]:
        """Return the arguments of the process that measures it."""
        arguments = ["--bundle", str(self.bundle.folder), "--threads", str(self.row.threads)]
        arguments += ["--runtime", self.row.runtime]
        return arguments + (["--checkpoint", str(self.checkpoint)] if self.checkpoint else [])

    def runtime(self) -> Runtime:
        """Open it in this process."""
        if self.checkpoint is None:
            return self.bundle.runtime
        from stlm_edge.runtimes.torch import Torch

        return Torch(self.checkpoint, self.row.threads, self.row.runtime.partition("/")[2] or "cpu")

    def untimed(self) -> str | None:
        """Return why its latency means nothing here, or None."""
        if self.row.runtime == "mil-evaluator":
            return "an evaluator computed the program, not Core ML: its time says nothing of any device"
        if program := emulator():
            return f"{program} emulates this processor: its time says nothing of the device"
        return None


def unmeasured(bundle: Bundle, threads: int, size: int) -> Row:
    """Return a bundle's row before it is measured; `size` is that of its artifact in bytes."""
    manifest = bundle.manifest
    teacher = manifest.provenance.get("teacher")
    return Row(
        name=bundle.folder.name,
        bundle=str(bundle.folder),
        device=None,
        target=manifest.target,
        runtime=name_here(manifest.runtime),
        precision=manifest.precision,
        teacher=teacher if teacher is None or isinstance(teacher, str) else json.dumps(teacher),
        input_size=manifest.input.size,
        size_mb=round(size / 1e6, 3),
        threads=threads,
        passed=False,
        failure="not measured",
        parity=None,
        threshold=manifest.decision_threshold.value,
        verdict_delta=manifest.verdict_delta,
        golden=(),
        load_ms=None,
        first_inference_ms=None,
        peak_memory_mb=None,
        timed_even_if_wrong=False,
        placement=None,
        warmup=0,
        steady=None,
        queries=0,
        seconds=None,
        latency_ms=None,
        end_to_end_ms=None,
        throughput=(),
        energy_mj=None,
        round_p50_ms=(),
        accuracy=None,
    )


def measure(subjects: Sequence[Subject], plan: Plan, progress: Progress) -> list[Row]:
    """Measure parity of all, latency in rounds that take turns, and throughput. A row that fails keeps its values."""
    with watching() as watch, contextlib.ExitStack() as stack:
        measurement = _Measurement(subjects, plan, progress, watch)
        stack.callback(measurement.stop)
        measurement.check()
        measurement.time()
        for streams in plan.streams:
            measurement.throughput(streams)
        measurement.finish()
    for index, (row, subject) in enumerate(zip(measurement.rows, subjects, strict=True)):
        if row.latency_ms and row.runtime == "onnxruntime" and subject.checkpoint is None:
            progress(f"profile: {row.name}")
            measurement.rows[index] = replace(row, profile=profile_of(subject.bundle.folder, row.threads))
    return measurement.rows


class _Measurement:
    """The rows, and the processes of those that have not failed, by index."""

    def __init__(self, subjects: Sequence[Subject], plan: Plan, progress: Progress, watch: Watch) -> None:
        self.rows = [subject.row for subject in subjects]
        self._subjects, self._plan, self._progress, self._watch = subjects, plan, progress, watch
        self._ends = time.monotonic() + plan.time_limit_s
        self._processes: dict[int, Process] = {}
        self._timings: dict[int, _Timing] = {}

    def stop(self) -> None:
        for process in self._processes.values():
            process.stop()

    def check(self) -> None:
        """Measure parity; only rows that can be timed keep their process."""
        for index, subject in enumerate(self._subjects):
            row = subject.row
            try:
                if row.runtime == "tensorrt":
                    self._progress(f"building the engine: {row.name}")
                    self._start(index, "--prepare").prepare()
                self._progress(f"parity: {row.name}")
                self._processes[index] = self._start(index)
                row = _with_parity(row, self._processes[index].open(), self._plan.even_if_wrong)
            except JobError as error:
                self._fail(index, str(error))
                continue
            if untimed := subject.untimed():
                row = replace(row, untimed=untimed, load_ms=None, first_inference_ms=None)
            self.rows[index] = row
            if untimed or not (row.passed or self._plan.even_if_wrong):
                self._processes.pop(index).stop()

    def time(self) -> None:
        """Warm up, and measure latency in rounds, whose order is reversed each time."""
        self._timings = {index: _Timing(self._watch) for index in self._processes}
        if self._processes:
            self._progress(f"warm-up of {len(self._processes)}, until it is steady")
        self._each("while it was warmed up", lambda index, process: self._timings[index].warm_up(process))
        for turn in itertools.count():
            waiting = [index for index in self._processes if not self._timings[index].is_complete(self._plan)]
            if not waiting:
                break
            self._progress(f"latency: {len(waiting)} in turn, round {turn + 1} of {max(turn + 1, ROUNDS)}")
            waiting.sort(reverse=bool(turn % 2))
            self._each(
                "while it was timed", lambda index, process: self._timings[index].round(process, self._plan), waiting
            )
        for index in self._processes:
            self.rows[index] = self._timings[index].into(self.rows[index])

    def throughput(self, streams: int) -> None:
        """Measure the throughput of several processes of each row at once."""
        self._progress(f"throughput: {streams} at once")

        def measure_one(index: int, process: Process) -> None:
            with contextlib.ExitStack() as stack:
                processes = [process]
                for _ in range(streams - 1):
                    processes.append(self._start(index))
                    stack.callback(processes[-1].stop)
                    processes[-1].open()
                throughput = _throughput(processes, self._timings[index].queries)
            self.rows[index] = replace(self.rows[index], throughput=(*self.rows[index].throughput, throughput))

        self._each(f"while {streams} were timed at once", measure_one)

    def finish(self) -> None:
        """Let the processes exit, and record their memory and placement."""

        def finish_one(index: int, process: Process) -> None:
            self.rows[index] = _with_placement(self.rows[index], process.finish())

        self._each("after it was timed", finish_one)

    def _start(self, index: int, *more: str) -> Process:
        arguments = [*self._subjects[index].arguments(), *more]
        return Process(arguments, self._ends, lambda: self._progress(""))  # an empty line checks for an interruption

    def _each(self, when: str, step: Callable[[int, Process], None], indices: Sequence[int] | None = None) -> None:
        """Do a step for each process in this order; a row whose step fails drops out."""
        for index in sorted(self._processes) if indices is None else indices:
            try:
                step(index, self._processes[index])
            except JobError as error:
                self._fail(index, f"{when}, {error}")

    def _fail(self, index: int, failure: str) -> None:
        self.rows[index] = replace(self.rows[index], passed=False, failure=failure)
        if process := self._processes.pop(index, None):
            process.stop()


class _Timing:
    """The rounds of one row."""

    def __init__(self, watch: Watch) -> None:
        self.queries = 1  # of a round
        self._watch, self._readings = watch, list[Reading]()
        self._warmup, self._steady, self._median_ms, self._energy_mj = 0, False, 1e-3, 0.0
        self._graph: list[list[float]] = []
        self._whole: list[list[float]] = []

    def warm_up(self, process: Process) -> None:
        """Run rounds until the medians of the last three are within 5% of each other."""
        medians: list[float] = []
        while not self._steady and len(medians) < MAX_WARM_UP_ROUNDS:
            medians.append(statistics.median(process.round(WARM_UP_QUERIES)))
            self._warmup += WARM_UP_QUERIES
            last = medians[-3:]
            self._steady = len(last) == 3 and max(last) <= 1.05 * min(last)
        self._median_ms = max(medians[-1], 1e-3)

    def is_complete(self, plan: Plan) -> bool:
        """Return True once the plan is fulfilled."""
        return len(self._graph) >= ROUNDS and self._left(plan) == (0, 0.0)

    def round(self, process: Process, plan: Plan) -> None:
        """Run as many queries as fulfil the plan if each of the remaining rounds has as many at the same speed."""
        queries, milliseconds = self._left(plan)
        rounds_left = max(1, ROUNDS - len(self._graph))
        self.queries = max(1, math.ceil(max(queries, milliseconds / self._median_ms) / rounds_left))
        before, seen = self._watch.millijoules(), len(self._watch.readings)
        self._graph.append(process.round(self.queries))
        after = self._watch.millijoules()
        self._readings += self._watch.readings[seen:]
        self._median_ms = max(statistics.median(self._graph[-1]), 1e-3)
        self._energy_mj += math.nan if before is None or after is None else after - before
        self._whole.append(process.round(math.ceil(self.queries / 8), "whole"))

    def _left(self, plan: Plan) -> tuple[int, float]:
        """Return the queries, and their milliseconds, that the plan still needs."""
        queries, milliseconds = sum(map(len, self._graph)), sum(map(sum, self._graph))
        return max(0, plan.queries - queries), max(0.0, plan.seconds * 1e3 - milliseconds)

    def into(self, row: Row) -> Row:
        """Return the row with these measurements."""
        queries = list(itertools.chain(*self._graph))
        metered = not math.isnan(self._energy_mj) and sum(queries) >= 1e3  # the meter is too slow for less than 1 s
        return replace(
            row,
            warmup=self._warmup,
            steady=self._steady,
            queries=len(queries),
            seconds=round(sum(queries) / 1e3, 3),
            latency_ms=_latency(queries),
            end_to_end_ms=_latency(list(itertools.chain(*self._whole))),
            energy_mj=round(self._energy_mj / len(queries), 3) if metered else None,
            telemetry=summary(self._readings),
            round_p50_ms=tuple(round(statistics.median(times), 4) for times in self._graph),
            quantiles_ms=tuple(percentile(queries, percent / 100) for percent in range(101)),
        )


def _latency(queries: Sequence[float]) -> Latency:
    p50, p90, p99 = (percentile(queries, share) for share in (0.5, 0.9, 0.99))
    return Latency(p50, p90, p99, early_stopping(queries))


def _throughput(processes: Sequence[Process], queries: int) -> Throughput:
    """Let processes of the same row run a round each at the same time, after a query that is not counted."""
    steps: tuple[tuple[RoundKind, int], ...] = (("graph", 0), ("all", queries))
    for kind, count in steps:
        for process in processes:
            process.start_round(count, kind)
        times = [process.end_round() for process in processes]
    return Throughput(len(processes), round(images_per_second(times), 3))


def images_per_second(streams: Sequence[Sequence[float]]) -> float:
    """Return the rate of streams that began together, while all of them were busy.

    Args:
        streams: the milliseconds of each one's queries.
    """
    busy = min(map(sum, streams))
    within = sum(sum(end <= busy for end in itertools.accumulate(stream)) for stream in streams)
    return within / busy * 1e3


def _with_placement(row: Row, reported: dict[str, Any]) -> Row:
    """Return the row with its peak memory and placement; failed if no node ran on the requested provider."""
    row = replace(row, peak_memory_mb=reported["peak_memory_mb"])
    if reported["placement"] is None:
        return row
    requested = reported["requested"]
    placement = tuple(
        Placement(by, nodes, fell_back=requested is not None and by != requested)
        for by, nodes in sorted(reported["placement"].items())
    )
    row = replace(row, placement=placement)
    if row.passed and all(part.fell_back for part in placement):
        ran = ", ".join(part.by for part in placement)
        return replace(row, passed=False, failure=f"fell back: all of its nodes ran on {ran}, none on {requested}")
    return row


def _with_parity(row: Row, opened: dict[str, Any], even_if_wrong: bool) -> Row:
    return replace(
        row,
        passed=not opened["wrong"],
        timed_even_if_wrong=bool(opened["wrong"]) and even_if_wrong,
        failure="; ".join(opened["wrong"]) or None,
        parity=RowParity(**opened["parity"]),
        golden=tuple(GoldenResult(**result) for result in opened["golden"]),
        worst=strict_json.read(WorstImage, opened["worst"], "the worst image"),
        load_ms=opened["load_ms"],
        first_inference_ms=opened["first_inference_ms"],
    )
