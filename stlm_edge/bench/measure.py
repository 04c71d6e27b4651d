"""Measures rows side by side: parity of all first, then latency in rounds that take turns, then throughput."""

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stlm_edge.bench.energy import metering
from stlm_edge.bench.latency import Process
from stlm_edge.bench.percentiles import early_stopping, percentile
from stlm_edge.bench.result import GoldenAnswer, Latency, Placement, Row, RowParity, Throughput
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


@dataclass(frozen=True)
class Subject:
    """What a row is about: a bundle, or a checkpoint that is shown a bundle's golden pictures."""

    row: Row  # with nothing measured
    bundle: Bundle
    checkpoint: Path | None

    def arguments(self) -> list[str]:
        """Return what the process that measures it is given."""
        given = ["--bundle", str(self.bundle.folder), "--threads", str(self.row.threads)]
        return given + (["--checkpoint", str(self.checkpoint)] if self.checkpoint else [])

    def runtime(self) -> Runtime:
        if self.checkpoint is None:
            return self.bundle.runtime
        from stlm_edge.runtimes.torch import Torch

        return Torch(self.checkpoint, self.row.threads)


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
        threshold=manifest.calibration.threshold,
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
    with metering() as millijoules:
        return _measure(subjects, plan, progress, millijoules)


def _measure(
    subjects: Sequence[Subject], plan: Plan, progress: Callable[[str], None], millijoules: Callable[[], float | None]
) -> list[Row]:
    rows = [subject.row for subject in subjects]
    processes: dict[int, Process] = {}
    try:
        for index, subject in enumerate(subjects):
            progress(f"parity: {rows[index].name}")
            try:
                process = processes[index] = Process(subject.arguments())
            except JobError as error:
                rows[index] = replace(rows[index], failure=str(error))
                continue
            rows[index] = _with_parity(rows[index], process.opened, plan.even_if_wrong)
            if not rows[index].passed and not plan.even_if_wrong:
                processes.pop(index).stop()

        def each(what: str, ask: Callable[[int, Process], None], backwards: bool = False) -> None:
            for index in sorted(processes, reverse=backwards):
                try:
                    ask(index, processes[index])
                except JobError as error:
                    rows[index] = replace(rows[index], passed=False, failure=f"{what}, {error}")
                    processes.pop(index).stop()

        timed = {index: _Timed(millijoules) for index in processes}
        progress(f"warm-up of {len(processes)}, until it is steady")
        each("while it was warmed up", lambda index, process: timed[index].warm_up(process, plan))
        for turn in range(ROUNDS):
            progress(f"latency: {len(processes)} in turn, round {turn + 1} of {ROUNDS}")
            each("while it was timed", lambda index, process: timed[index].round(process, plan), bool(turn % 2))
        for index in sorted(processes):
            rows[index] = timed[index].into(rows[index])
        for streams in plan.streams:
            progress(f"throughput: {streams} at once")

            def several(index: int, process: Process, streams: int = streams) -> None:
                found = _throughput(process, subjects[index].arguments(), streams, timed[index].queries)
                rows[index] = replace(rows[index], throughput=(*rows[index].throughput, found))

            each(f"while {streams} were timed at once", several)

        def finish(index: int, process: Process) -> None:
            told = process.finish()
            rows[index] = replace(
                rows[index], peak_memory_mb=told["peak_memory_mb"], placement=_placement(told["placement"])
            )

        each("after it was timed", finish)
    finally:
        for process in processes.values():
            process.stop()
    return rows


class _Timed:
    """What one row's rounds have given."""

    def __init__(self, millijoules: Callable[[], float | None]) -> None:
        self.warmed, self.steady, self.queries = 0, False, 1
        self.millijoules, self.energy = millijoules, 0.0
        self.graph: list[list[float]] = []
        self.whole: list[list[float]] = []

    def warm_up(self, process: Process, plan: Plan) -> None:
        """Rounds until the medians of the last three are within 5% of each other; then so many queries make a round
        as let ten rounds be `plan.queries` and `plan.seconds` at least."""
        medians: list[float] = []
        while not self.steady and len(medians) < MOST_WARM_UP_ROUNDS:
            medians.append(statistics.median(process.round(WARM_UP_QUERIES)))
            self.warmed += WARM_UP_QUERIES
            last = medians[-3:]
            self.steady = len(last) == 3 and max(last) <= 1.05 * min(last)
        by_time = plan.seconds * 1e3 / max(medians[-1], 1e-3)
        self.queries = math.ceil(max(plan.queries, by_time) / ROUNDS)

    def round(self, process: Process, plan: Plan) -> None:
        before = self.millijoules()
        self.graph.append(process.round(self.queries))
        after = self.millijoules()
        self.energy += math.nan if before is None or after is None else after - before
        self.whole.append(process.round(math.ceil(self.queries / 8), "whole"))

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
            round_p50_ms=tuple(round(statistics.median(answered), 4) for answered in self.graph),
        )

    def _energy_per_query(self, queries: Sequence[float]) -> float | None:
        """None without a meter, and for less than a second, which its readings are too slow for."""
        if math.isnan(self.energy) or sum(queries) < 1e3:
            return None
        return round(self.energy / len(queries), 3)


def _latency(queries: Sequence[float]) -> Latency:
    p50, p90, p99 = (percentile(queries, share) for share in (0.5, 0.9, 0.99))
    return Latency(p50, p90, p99, early_stopping(queries))


def _throughput(process: Process, arguments: list[str], streams: int, queries: int) -> Throughput:
    """Let `streams` processes, the row's own and others like it, answer a round each at the same time."""
    together = [process]
    try:
        together += [Process(arguments) for _ in range(streams - 1)]
        began = time.perf_counter()
        for one in together:
            one.start_round(queries)
        for one in together:
            one.end_round()
        seconds = time.perf_counter() - began
    finally:
        for one in together[1:]:
            one.stop()
    return Throughput(streams, round(streams * queries / seconds, 3))


def _placement(told: dict[str, int] | None) -> tuple[Placement, ...] | None:
    if told is None:
        return None
    return tuple(Placement(by, nodes, fell_back=False) for by, nodes in sorted(told.items()))


def _with_parity(row: Row, opened: dict[str, Any], even_if_wrong: bool) -> Row:
    return replace(
        row,
        passed=not opened["wrong"],
        timed_even_if_wrong=bool(opened["wrong"]) and even_if_wrong,
        failure="; ".join(opened["wrong"]) or None,
        parity=RowParity(**opened["parity"]),
        golden=tuple(GoldenAnswer(**answer) for answer in opened["golden"]),
        load_ms=opened["load_ms"],
        first_inference_ms=opened["first_inference_ms"],
    )
