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
from stlm_edge.bench.latency import Process, What, prepare
from stlm_edge.bench.machine.during import Reading, summary, watching
from stlm_edge.bench.machine.energy import metering
from stlm_edge.bench.machine.system import emulator
from stlm_edge.bench.percentiles import early_stopping, percentile
from stlm_edge.bench.profile import profile_of
from stlm_edge.bench.result import GoldenAnswer, Latency, Placement, Row, RowParity, Throughput, WorstImage
from stlm_edge.bundle import Bundle
from stlm_edge.errors import JobError
from stlm_edge.runtimes import Runtime, name_here

ROUNDS = 10
WARM_UP_QUERIES, MOST_WARM_UP_ROUNDS = 8, 25


@dataclass(frozen=True)
class Plan:
    """How long to measure each row: at least so many queries and so many seconds, as MLPerf wants it by default."""

    queries: int = 1024
    seconds: float = 60.0
    streams: tuple[int, ...] = ()
    even_if_wrong: bool = False
    time_limit_s: float = math.inf


@dataclass(frozen=True)
class Subject:
    """What a row is about: a bundle in a runtime, or a checkpoint that is shown a bundle's golden images."""

    row: Row  # with nothing measured
    bundle: Bundle
    checkpoint: Path | None = None

    def arguments(self) -> list[str]:
        """Return what the process that measures it is given."""
        given = ["--bundle", str(self.bundle.folder), "--threads", str(self.row.threads), "--runtime", self.row.runtime]
        return given + (["--checkpoint", str(self.checkpoint)] if self.checkpoint else [])

    def runtime(self) -> Runtime:
        if self.checkpoint is None:
            return self.bundle.runtime
        from stlm_edge.runtimes.torch import Torch

        return Torch(self.checkpoint, self.row.threads, self.row.runtime.partition("/")[2] or "cpu")

    def played_by(self) -> str | None:
        """What plays the device here, where the artifact doesn't run on what it is for; its times mean nothing."""
        if self.row.runtime == "mil-evaluator":
            return "an evaluator computed the program, not Core ML: its time says nothing of any device"
        if program := emulator():
            return f"{program} plays this processor: its time says nothing of the device"
        return None


def unmeasured(bundle: Bundle, threads: int, size: int) -> Row:
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


def measure(subjects: Sequence[Subject], plan: Plan, progress: Callable[[str], None]) -> list[Row]:
    """Parity of all, then rounds of latency in turn, then throughput. A row that fails keeps what it had."""
    with metering() as millijoules, watching() as readings:
        return _measure(subjects, plan, progress, millijoules, readings)


def _measure(
    subjects: Sequence[Subject],
    plan: Plan,
    progress: Callable[[str], None],
    millijoules: Callable[[], float | None],
    readings: list[Reading],
) -> list[Row]:
    ends = time.monotonic() + plan.time_limit_s

    def tick() -> None:
        progress("")  # where an interruption is heard of

    rows = [subject.row for subject in subjects]
    processes: dict[int, Process] = {}
    try:
        for index, subject in enumerate(subjects):
            try:
                if subject.row.runtime == "tensorrt":
                    progress(f"building the engine: {rows[index].name}")
                    prepare(subject.arguments(), ends, tick)
                progress(f"parity: {rows[index].name}")
                process = Process(subject.arguments(), ends, tick)
            except JobError as error:
                rows[index] = replace(rows[index], failure=str(error))
                continue
            processes[index] = process
            rows[index] = _with_parity(rows[index], process.opened, plan.even_if_wrong)
            if why := subject.played_by():
                rows[index] = replace(rows[index], untimed=why, load_ms=None, first_inference_ms=None)
            if why or not (rows[index].passed or plan.even_if_wrong):
                processes.pop(index).stop()

        def each(what: str, ask: Callable[[int, Process], None], backwards: bool = False) -> None:
            for index in sorted(processes, reverse=backwards):
                try:
                    ask(index, processes[index])
                except JobError as error:
                    rows[index] = replace(rows[index], passed=False, failure=f"{what}, {error}")
                    processes.pop(index).stop()

        timed = {index: _Timed(millijoules, readings) for index in processes}
        if processes:
            progress(f"warm-up of {len(processes)}, until it is steady")
        each("while it was warmed up", lambda index, process: timed[index].warm_up(process))
        for turn in itertools.count():
            waiting = {index for index in processes if not timed[index].is_enough(plan)}
            if not waiting:
                break
            progress(f"latency: {len(waiting)} in turn, round {turn + 1} of {max(turn + 1, ROUNDS)}")

            def again(index: int, process: Process, waiting: set[int] = waiting) -> None:
                if index in waiting:
                    timed[index].round(process, plan)

            each("while it was timed", again, bool(turn % 2))
        for index in sorted(processes):
            rows[index] = timed[index].into(rows[index])
        for streams in plan.streams:
            progress(f"throughput: {streams} at once")

            def several(index: int, process: Process, streams: int = streams) -> None:
                with contextlib.ExitStack() as stack:
                    together = [process]
                    for _ in range(streams - 1):
                        together.append(Process(subjects[index].arguments(), ends, tick))
                        stack.callback(together[-1].stop)
                    found = _throughput(together, timed[index].queries)
                rows[index] = replace(rows[index], throughput=(*rows[index].throughput, found))

            each(f"while {streams} were timed at once", several)

        def finish(index: int, process: Process) -> None:
            rows[index] = _with_placement(rows[index], process.finish())

        each("after it was timed", finish)
    finally:
        for process in processes.values():
            process.stop()
    for index, (row, subject) in enumerate(zip(rows, subjects, strict=True)):
        if row.latency_ms and row.runtime == "onnxruntime" and subject.checkpoint is None:
            progress(f"profile: {row.name}")
            rows[index] = replace(row, profile=profile_of(subject.bundle.folder, row.threads))
    return rows


class _Timed:
    """What one row's rounds have given."""

    def __init__(self, millijoules: Callable[[], float | None], readings: list[Reading]) -> None:
        self.warmed, self.steady, self.queries, self.median = 0, False, 1, 1e-3
        self.millijoules, self.energy = millijoules, 0.0
        self.readings, self.own_readings = readings, list[Reading]()
        self.graph: list[list[float]] = []
        self.whole: list[list[float]] = []

    def warm_up(self, process: Process) -> None:
        """Rounds until the medians of the last three are within 5% of each other."""
        medians: list[float] = []
        while not self.steady and len(medians) < MOST_WARM_UP_ROUNDS:
            medians.append(statistics.median(process.round(WARM_UP_QUERIES)))
            self.warmed += WARM_UP_QUERIES
            last = medians[-3:]
            self.steady = len(last) == 3 and max(last) <= 1.05 * min(last)
        self.median = max(medians[-1], 1e-3)

    def is_enough(self, plan: Plan) -> bool:
        return len(self.graph) >= ROUNDS and self._left(plan) == (0, 0.0)

    def round(self, process: Process, plan: Plan) -> None:
        """So many queries as would fill the plan, had every round that is still to come as many at the same speed."""
        queries, milliseconds = self._left(plan)
        to_come = max(1, ROUNDS - len(self.graph))
        self.queries = max(1, math.ceil(max(queries, milliseconds / self.median) / to_come))
        before, read = self.millijoules(), len(self.readings)
        self.graph.append(process.round(self.queries))
        after = self.millijoules()
        self.own_readings += self.readings[read:]
        self.median = max(statistics.median(self.graph[-1]), 1e-3)
        self.energy += math.nan if before is None or after is None else after - before
        self.whole.append(process.round(math.ceil(self.queries / 8), "whole"))

    def _left(self, plan: Plan) -> tuple[int, float]:
        """Queries, and milliseconds of them, that the plan still wants."""
        queries, milliseconds = sum(map(len, self.graph)), sum(map(sum, self.graph))
        return max(0, plan.queries - queries), max(0.0, plan.seconds * 1e3 - milliseconds)

    def into(self, row: Row) -> Row:
        queries = [query for answered in self.graph for query in answered]
        return replace(
            row,
            warmup=self.warmed,
            steady=self.steady,
            queries=len(queries),
            seconds=round(sum(queries) / 1e3, 3),
            latency_ms=_latency(queries),
            end_to_end_ms=_latency([query for answered in self.whole for query in answered]),
            energy_mj=self._energy_per_query(queries),
            during=summary(self.own_readings),
            round_p50_ms=tuple(round(statistics.median(answered), 4) for answered in self.graph),
            quantiles_ms=tuple(percentile(queries, percent / 100) for percent in range(101)),
        )

    def _energy_per_query(self, queries: Sequence[float]) -> float | None:
        """None without a meter, and for less than a second, which its readings are too slow for."""
        if math.isnan(self.energy) or sum(queries) < 1e3:
            return None
        return round(self.energy / len(queries), 3)


def _latency(queries: Sequence[float]) -> Latency:
    p50, p90, p99 = (percentile(queries, share) for share in (0.5, 0.9, 0.99))
    return Latency(p50, p90, p99, early_stopping(queries))


def _throughput(together: Sequence[Process], queries: int) -> Throughput:
    """Let processes of the same row answer a round each at the same time, after a query that isn't counted."""
    steps: tuple[tuple[What, int], ...] = (("graph", 0), ("all", queries))
    for what, count in steps:
        for one in together:
            one.start_round(count, what)
        answered = [one.end_round() for one in together]
    return Throughput(len(together), round(images_per_second(answered), 3))


def images_per_second(answered: Sequence[Sequence[float]]) -> float:
    """Of streams that began together, each given by the milliseconds of its queries: while all of them were busy."""
    busy = min(map(sum, answered))
    within = sum(sum(end <= busy for end in itertools.accumulate(stream)) for stream in answered)
    return within / busy * 1e3


def _with_placement(row: Row, told: dict[str, Any]) -> Row:
    """The row with its peak memory and what ran its nodes; failed where nothing ran on what was asked for."""
    row = replace(row, peak_memory_mb=told["peak_memory_mb"])
    if told["placement"] is None:
        return row
    asked = told["asked"]
    placement = tuple(
        Placement(by, nodes, fell_back=asked is not None and by != asked)
        for by, nodes in sorted(told["placement"].items())
    )
    row = replace(row, placement=placement)
    if row.passed and all(part.fell_back for part in placement):
        ran = ", ".join(part.by for part in placement)
        return replace(row, passed=False, failure=f"fell back: all of its nodes ran on {ran}, none on {asked}")
    return row


def _with_parity(row: Row, opened: dict[str, Any], even_if_wrong: bool) -> Row:
    return replace(
        row,
        passed=not opened["wrong"],
        timed_even_if_wrong=bool(opened["wrong"]) and even_if_wrong,
        failure="; ".join(opened["wrong"]) or None,
        parity=RowParity(**opened["parity"]),
        golden=tuple(GoldenAnswer(**answer) for answer in opened["golden"]),
        worst=strict_json.read(WorstImage, opened["worst"], "the worst image"),
        load_ms=opened["load_ms"],
        first_inference_ms=opened["first_inference_ms"],
    )
