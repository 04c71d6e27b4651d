"""stlm-bench: does each artifact say what the trained model said, and how fast is it here?

Parity on the golden images comes first; an artifact that fails it is not timed. The others then take turns in short
rounds, each in its own process.
"""

import argparse
import importlib.util
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import stlm_edge
from stlm_edge import strict_json
from stlm_edge.bench.against import changes, check_comparable, read_bench
from stlm_edge.bench.devices.device import Device, gather, ignored_options, measurements, parse_device
from stlm_edge.bench.machine import system
from stlm_edge.bench.machine.jetson import power_mode
from stlm_edge.bench.machine.system import Machine
from stlm_edge.bench.match import this_host
from stlm_edge.bench.measure import Plan, Subject, measure
from stlm_edge.bench.merge import merged
from stlm_edge.bench.result import Bench, DeviceAnswer, Row, headline, is_stand_in, label, table
from stlm_edge.bench.subjects import Wanted, need_train_packages, rows_there, wanted_of
from stlm_edge.bundle import open_bundle
from stlm_edge.commands.bench_options import parse_options
from stlm_edge.commands.bench_options import parser as parser
from stlm_edge.errors import JobError, UsageError, exit_with_one_line
from stlm_edge.files import write_text


def main(arguments: Sequence[str] | None = None) -> None:
    """Run stlm-bench. Exit code 2: unusable input; 1: a row failed (everything is written all the same)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse_options(given)
    with exit_with_one_line("interrupted; nothing was written"):
        out = Path(options.out)
        if out.exists() and not out.is_dir():
            raise UsageError(f"{out}: a file; --out expects a folder, which gets bench.json and report.html")
        devices = _devices(options)
        bundles = [open_bundle(folder, threads=options.threads) for folder in options.bundle]
        wanted = wanted_of(options, devices, bundles)
        samples = _samples(options)
        taken = [device.name for device in devices]
        other_rows, others, data = merged(options.others, _data(options), taken)
        earlier = read_bench(Path(options.against)) if options.against else None
        if earlier:
            check_comparable(earlier, [row for name, each in wanted.items() for row in rows_there(name, each)])
        rows, described, answers = _measured(options, devices, wanted, samples)
        bench = Bench(
            format_version=1,
            headline=headline([*rows, *other_rows]),
            date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            command=shlex.join(["stlm-bench", *given]),
            stlm_edge=stlm_edge.__version__,
            machine=described,
            devices=(*answers, *others),
            data=data,
            rows=(*rows, *other_rows),
            done=True,
        )
        text = strict_json.dump(bench)
        write_text(out / "bench.json", text)
        report = _report(out / "report.html", json.loads(text), options.checkpoint, wanted)
        if options.json:
            print(text, end="")
        else:
            _print(bench, report)
        changed = changes(earlier, rows, options.max_regression) if earlier else []
        for change in changed:
            print(f"{change.name} against {options.against}: {change.words}", file=sys.stderr)
    if not all(row.passed for row in rows) or any(change.regressed for change in changed):
        raise SystemExit(1)


def _measured(
    options: argparse.Namespace, devices: list[Device], wanted: Wanted, samples: list[Any] | None
) -> tuple[list[Row], Machine, tuple[DeviceAnswer, ...]]:
    """The rows of all devices, this machine's first; this machine; the others."""
    mine = wanted.get("local", [])

    def here(progress: Callable[[str], None]) -> tuple[list[Row], Machine]:
        alone_or_able = len(devices) == 1 or this_host().jetson
        with power_mode(options.set_power_mode if alone_or_able else None):
            before = system.moment()
            rows = measure(mine, _plan(options), progress)
            described = system.describe(_packages(rows), before)
        if samples is not None:
            rows = [_with_accuracy(row, subject, samples, progress) for row, subject in zip(rows, mine, strict=True)]
        return rows, described

    if not wanted:
        return [], system.describe(), ()
    if [device.kind for device in devices] == ["local"]:
        return *here(_progress), ()
    from stlm_edge.bench.devices.side_by_side import measure_side_by_side

    for line in ignored_options(devices, options):
        _progress(line)
    jobs = measurements(devices, wanted, _plan(options), options, samples or ())
    found = measure_side_by_side({**({"local": here} if mine else {}), **jobs})
    rows, described = [], system.describe()
    if mine:
        answer = found.pop("local")
        if isinstance(answer, JobError):
            rows = [replace(subject.row, failure=str(answer)) for subject in mine]
        else:
            rows, described = answer
    others, answers = gather(found, wanted)
    had = {row.bundle for row in rows + others}
    for subject in (subject for subjects in wanted.values() for subject in subjects):
        if subject.row.bundle not in had:
            had.add(subject.row.bundle)
            lost = f"no device of this command is {subject.row.target} with {subject.row.runtime}"
            others.append(replace(subject.row, failure=lost))
    return rows + others, described, answers


def _devices(options: argparse.Namespace) -> list[Device]:
    devices = [parse_device(text) for text in options.device or ["local"]]
    for number, device in enumerate(devices):
        if device in devices[:number]:
            raise UsageError(f"--device {device.name}: given twice")
    if options.data and not any(device.kind in ("local", "ssh") for device in devices):
        raise UsageError("--data: phones and browsers don't take it; expected --device local or ssh:… beside them")
    for option in ("checkpoint", "runtime"):
        if getattr(options, option) and not any(device.kind == "local" for device in devices):
            raise UsageError(f"--{option}: is for this machine; expected --device local beside the others")
    return devices


def _plan(options: argparse.Namespace) -> Plan:
    usual = Plan(128, 10.0) if options.quick else Plan()
    return Plan(
        queries=options.queries or usual.queries,
        seconds=usual.seconds if options.seconds is None else float(options.seconds),
        streams=tuple(options.streams),
        even_if_wrong=options.even_if_wrong,
        time_limit_s=float(options.time_limit),
    )


def _data(options: argparse.Namespace) -> str | None:
    return options.data and options.data + (f", {options.category}" if options.category else "")


def _samples(options: argparse.Namespace) -> list[Any] | None:
    """Return the test images of --data, before anything is measured: what is wrong with them is said at once."""
    if options.data is None:
        if options.category is not None:
            raise UsageError("--category: given without --data, the folder that holds the category")
        return None
    need_train_packages("--data", "torch", "torchmetrics", "scipy")
    from stlm_edge.data.datasets import test_samples

    return test_samples(options.data, options.category)


def _with_accuracy(row: Row, subject: Subject, samples: list[Any], progress: Callable[[str], None]) -> Row:
    """Evaluate a row that answered the golden images, a wrong one too: how wrong it is, is then known.

    What fails there fails the row, as on a device behind ssh.
    """
    if row.parity is None:
        return row
    from stlm_edge.bench.accuracy import Judged
    from stlm_edge.images import load

    judged, runtime = Judged(samples, row.input_size, row.name, progress), subject.runtime()
    try:
        for sample in samples:
            judged.add(*runtime.run(load(sample.image, row.input_size)))
    except (JobError, UsageError) as error:
        return replace(row, passed=False, failure=f"accuracy: {error}")
    return replace(row, accuracy=judged.accuracy())


def _report(path: Path, bench: dict[str, Any], checkpoint: str | None, wanted: Wanted) -> Path | None:
    """Write the report with what stands beside the checkpoint, or say what it needs."""
    if not all(map(importlib.util.find_spec, ("jinja2", "matplotlib", "stlm_edge.report"))):
        print('no report: it needs pip install "stlm-edge[train]"', file=sys.stderr)
        return None
    from stlm_edge.report.report import write_report

    run_folder = Path(checkpoint).parent if checkpoint else None
    found = sorted(run_folder.glob("*/metrics.json"), key=lambda file: file.stat().st_mtime) if run_folder else []
    bundles = {subject.row.bundle: subject.bundle for subjects in wanted.values() for subject in subjects}
    write_report(path, bench, run_folder, found[-1].parent if found else None, bundles)
    return path


def _packages(rows: Sequence[Row]) -> tuple[str, ...]:
    named_otherwise = {
        "coreml": ("coremltools",),
        "litert": ("ai-edge-litert", "tflite-runtime"),
        "mil-evaluator": ("coremltools", "torch"),
    }
    runtimes = dict.fromkeys(row.runtime.partition("/")[0] for row in rows)
    return ("numpy", "Pillow", *(package for name in runtimes for package in named_otherwise.get(name, (name,))))


def _print(bench: Bench, report: Path | None) -> None:
    print(table(bench.rows))
    for row in bench.rows:
        if row.failure:
            print(f"{label(row)}: {row.failure}")
        for answer in row.golden:
            if answer.verdict != "same":
                print(
                    f"{label(row)}: {answer.verdict} on {answer.name}: score {answer.score:.5f}, "
                    f"trained model {answer.expected_score:.5f}, threshold {row.threshold:.5f}"
                )
    for row in bench.rows:
        if row.untimed:
            print(f"{label(row)}: not timed: {row.untimed}")
        for part in row.placement or ():
            if part.fell_back:
                print(f"{label(row)}: fell back: {part.nodes} nodes ran on {part.by}")
    timed = [row for row in bench.rows if row.latency_ms]
    if timed:
        row = timed[0]
        seconds = "" if row.seconds is None else f" in {row.seconds:.0f} s"
        restless = ", which did not become steady" if row.steady is False else ""
        print(
            f"{row.queries} queries{seconds} after {row.warmup} for warm-up{restless}, {row.threads} thread(s), "
            "one image at a time"
        )
    if any(is_stand_in(row.teacher) for row in bench.rows):
        print("these models were distilled from a stand-in teacher, EfficientNet-Lite0, not from SAM")
    if report:
        print(f"report: {report}")
    print(bench.headline)


def _progress(text: str) -> None:
    if text:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
