"""Measures rows side by side: parity of all first, then latency in short rounds that take turns."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stlm_edge.bench.latency import Process, percentile
from stlm_edge.bench.result import GoldenAnswer, Latency, Row, RowParity
from stlm_edge.bundle import Bundle
from stlm_edge.errors import JobError
from stlm_edge.runtimes import Runtime, name_here

ROUNDS = 10


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
        warmup=0,
        queries=0,
        latency_ms=None,
        round_p50_ms=(),
        accuracy=None,
    )


def measure(subjects: Sequence[Subject], warmup: int, queries: int, progress: Callable[[str], None]) -> list[Row]:
    """Parity of all, then rounds of latency in turn. A row that fails keeps what it had and says why."""
    rows = [subject.row for subject in subjects]
    processes: dict[int, Process] = {}
    milliseconds: dict[int, list[list[float]]] = {}
    try:
        for index, subject in enumerate(subjects):
            progress(f"parity: {rows[index].name}")
            try:
                process = processes[index] = Process(subject.arguments())
            except JobError as error:
                rows[index] = replace(rows[index], failure=str(error))
                continue
            rows[index] = _with_parity(rows[index], process.opened)
            if not rows[index].passed:
                processes.pop(index).stop()
        rounds = [queries * (turn + 1) // ROUNDS - queries * turn // ROUNDS for turn in range(ROUNDS)]
        progress(f"latency: {len(processes)} in turn, {queries} queries each")
        for turn, count in enumerate([warmup, *filter(None, rounds)]):
            for index in sorted(processes, reverse=bool(turn % 2)):
                try:
                    answered = processes[index].round(count)
                except JobError as error:
                    rows[index] = replace(rows[index], passed=False, failure=f"while it was timed, {error}")
                    processes.pop(index).stop()
                    continue
                if turn:
                    milliseconds.setdefault(index, []).append(answered)
        for index, process in sorted(processes.items()):
            try:
                rows[index] = _with_latency(rows[index], milliseconds[index], warmup, process.finish())
            except JobError as error:
                rows[index] = replace(rows[index], passed=False, failure=f"after it was timed, {error}")
    finally:
        for process in processes.values():
            process.stop()
    return rows


def _with_parity(row: Row, opened: dict[str, Any]) -> Row:
    return replace(
        row,
        passed=not opened["wrong"],
        failure="; ".join(opened["wrong"]) or None,
        parity=RowParity(**opened["parity"]),
        golden=tuple(GoldenAnswer(**answer) for answer in opened["golden"]),
        load_ms=opened["load_ms"],
        first_inference_ms=opened["first_inference_ms"],
    )


def _with_latency(row: Row, rounds: list[list[float]], warmup: int, peak_memory_mb: float | None) -> Row:
    queries = [query for answered in rounds for query in answered]
    return replace(
        row,
        peak_memory_mb=peak_memory_mb,
        warmup=warmup,
        queries=len(queries),
        latency_ms=Latency(*(percentile(queries, share) for share in (0.5, 0.9, 0.99))),
        round_p50_ms=tuple(round(statistics.median(answered), 4) for answered in rounds),
    )
