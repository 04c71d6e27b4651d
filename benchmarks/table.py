"""Render README's table of devices from the benches recorded in benchmarks/results/devices/, so that nobody types one.

    python benchmarks/table.py            # rewrites the table in README.md
    python benchmarks/table.py --check    # exits 1 where README.md says something else

Each of those files is a bench.json, as `stlm-bench` wrote it on that device. What no file holds has no row.
"""

import argparse
from pathlib import Path

from stlm_edge.bench.result import Bench, Latency, Row, read_bench
from stlm_edge.bench.summary import milliseconds
from stlm_edge.errors import JobError, UsageError, exit_with_one_line
from stlm_edge.files import write_text

ROOT = Path(__file__).parents[1]
DEVICES, README = ROOT / "benchmarks" / "results" / "devices", ROOT / "README.md"
BEGIN, END = "<!-- made by benchmarks/table.py: begin -->\n", "<!-- end -->\n"
COLUMNS = (
    *("device", "runtime", "precision", "S", "threads"),
    *("same verdicts", "p50 ms", "p90 ms", "end to end p90", "MB", "date"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the table is another one")
    options = parser.parse_args()
    with exit_with_one_line():
        before = README.read_text("utf-8")
        after = with_table(before, [read_bench(path) for path in sorted(DEVICES.glob("*.json"))])
        if options.check and before != after:
            raise JobError("README.md: its table of devices is not what the recorded benches give; leave out --check")
        if before != after:
            write_text(README, after)


def with_table(readme: str, benches: list[Bench]) -> str:
    """Return README's text with a new table between its two marks. Raises UsageError where the marks are missing."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"README.md: {BEGIN.strip()} and {END.strip()} were expected around its table of devices")
    lines = ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---" for _ in COLUMNS) + " |"]
    lines += ["| " + " | ".join(cells(bench, row)) + " |" for bench in benches for row in bench.rows]
    return head + BEGIN + "\n".join(lines) + "\n" + END + tail


def cells(bench: Bench, row: Row) -> tuple[str, ...]:
    """A row's cells; what was not measured says so."""
    machine = {answer.name: answer.machine for answer in bench.devices}[row.device] if row.device else bench.machine
    if machine is None:
        device = f"{row.device} (lost)"
    else:
        on_gpu = row.runtime == "tensorrt" or row.runtime.endswith(("/cuda", "/tensorrt"))
        device = (
            machine.device
            or f"{machine.processor or machine.architecture}, {machine.cores} core{'s' * (machine.cores != 1)}"
        )
        if on_gpu and machine.gpu:
            device = machine.gpu
        device += f" (played by {machine.emulated})" if machine.emulated else ""
        device += " (virtual)" if machine.virtual else ""
    same = row.parity and f"{row.parity.images - row.parity.verdict_flips} of {row.parity.images}"
    return (
        device,
        row.runtime,
        row.precision,
        str(row.input_size),
        str(row.threads),
        (same or "not measured") + ("" if row.passed else ", FAILED"),
        _milliseconds(row.latency_ms, "p50"),
        _milliseconds(row.latency_ms, "p90"),
        _milliseconds(row.end_to_end_ms, "p90"),
        f"{row.size_mb:.1f}",
        bench.date[:10],
    )


def _milliseconds(latency: Latency | None, name: str) -> str:
    value = getattr(latency, name) if latency else None
    return "not measured" if value is None else milliseconds(value)


if __name__ == "__main__":
    main()
