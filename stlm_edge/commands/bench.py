"""stlm-bench: check that each artifact gives the trained model's verdicts on its device, and measure its speed there.

Parity on the golden images comes first; an artifact that fails it is not timed. The others then take turns in short
rounds, each in a process of its own.
"""

import argparse
import importlib.util
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import stlm_edge
from stlm_edge import strict_json
from stlm_edge.bench.devices.device import Device, gather, ignored_options, measurements, parse_device
from stlm_edge.bench.machine import system
from stlm_edge.bench.machine.jetson import power_mode
from stlm_edge.bench.machine.system import Machine
from stlm_edge.bench.measure import Plan, Progress, measure
from stlm_edge.bench.other_benches import changes, check_comparable, merged
from stlm_edge.bench.result import Bench, DeviceResult, Row, read_bench
from stlm_edge.bench.subjects import Subjects, capabilities, need_train_packages, subjects_of
from stlm_edge.bench.summary import headline, is_proxy_teacher, label, table
from stlm_edge.bundle import open_bundle
from stlm_edge.commands.parser import CommandParser, number
from stlm_edge.errors import JobError, UsageError, exit_with_one_line
from stlm_edge.files import write_text

EXAMPLES = """examples:
  stlm-bench --bundle bundles/cpu-fp32 --bundle bundles/cpu-int8 --checkpoint runs/demo/checkpoint.safetensors \\
             --data runs/demo/data --out runs/demo
  stlm-bench --bundle bundles/cpu --bundle bundles/jetson --bundle bundles/android \\
             --device local --device ssh:nano@jetson.local --device adb --with runs/iphone/bench.json --out runs/all
each writes bench.json and report.html into --out; the exit code is 1 if an artifact failed"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command = CommandParser(
        "stlm-bench", "Check each bundle's verdicts on its devices, and measure its speed.", EXAMPLES
    )
    add, count = command.add_argument, number(int, 1)
    add("--bundle", action="append", default=[], metavar="B", help="a bundle's folder; may be repeated")
    add("--checkpoint", metavar="F", help="also run the trained model itself, on the first bundle's golden images")
    add("--data", metavar="DIR", help="also measure accuracy on these test images, on this machine and over ssh")
    add("--category", metavar="NAME", help="the category of --data, if it holds several")
    runtimes = "torch, onnxruntime, onnxruntime/cuda, litert, openvino, tensorrt, coreml, or all that are installed"
    help_ = f"run bundles on this machine by R instead of their own runtime: {runtimes} and suit the artifact"
    add("--runtime", action="append", default=[], metavar="R", help=help_)
    add("--threads", type=count, default=1, metavar="N", help="threads of each runtime (default: 1)")
    add("--quick", action="store_true", help="shorthand for --queries 128 --seconds 10")
    add("--queries", type=count, metavar="N", help="minimum number of timed queries per row (default: 1024)")
    add("--seconds", type=number(int, 0), metavar="N", help="minimum seconds of them (default: 60)")
    add("--streams", type=count, action="append", default=[], metavar="N", help="also measure N processes at once")
    add("--even-if-wrong", action="store_true", help="also time artifacts that fail parity, and mark them")
    add("--against", metavar="F", help="an earlier bench.json; exit with 1 if a row became slower or wrong")
    add("--max-regression", type=_percent, default=0.05, metavar="P", help="slowdown that is allowed (default: 5%%)")
    add("--with", dest="others", action="append", default=[], metavar="F", help="add the rows of another bench.json")
    add("--out", default="bench", metavar="DIR", help="folder for bench.json and report.html (default: bench)")
    forms = "local (the default), ssh:[USER@]HOST[:PORT], adb[:SERIAL] or web (Chromium on this machine)"
    help_ = f"{forms}; several run at once, each with the bundles that are for it"
    add("--device", action="append", metavar="D", help=help_)
    add("--delegate", choices=("cpu", "gpu"), default="cpu", help="delegate on a phone (default: cpu)")
    add("--ssh-config", metavar="F", help="ssh's configuration, instead of ~/.ssh/config")
    add("--remote-python", type=_plain_path, default="python3", metavar="P", help="Python on the device, 3.10 or newer")
    add("--keep-on-device", action="store_true", help="leave bundles, engines and test images there for the next time")
    help_ = "set a Jetson's nvpmodel mode, and restore the former one afterwards"
    add("--set-power-mode", type=number(int, 0), metavar="N", help=help_)
    add("--time-limit", type=count, default=7200, metavar="S", help="seconds per device (default: 7200)")
    add("--json", action="store_true", help="print bench.json and nothing else")
    return command


def _plain_path(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._/][A-Za-z0-9._/+\-]{0,199}", text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a path in letters, digits, '.', '_', '-' and '/'")
    return text


def _percent(text: str) -> float:
    """Return 0.05 for 5% and 5. A bare 0.05 may mean either, and is refused."""
    digits = text.removesuffix("%")
    if not digits.replace(".", "", 1).isdecimal() or float(digits) > 1000:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a percentage such as 5%")
    if 0 < float(digits) < 1 and digits == text:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected a percentage: {100 * float(text):g}% if you mean that share, else {text}%"
        )
    return float(digits) / 100


def main(arguments: Sequence[str] | None = None) -> None:
    """Run stlm-bench. Exit code 2: unusable input; 1: a row failed, and all files are written nevertheless."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    with exit_with_one_line("interrupted; nothing was written"):
        out = Path(options.out)
        if out.exists() and not out.is_dir():
            raise UsageError(f"{out}: a file; --out expects a folder, which gets bench.json and report.html")
        devices = _devices(options)
        bundles = [open_bundle(folder, threads=options.threads) for folder in options.bundle]
        subjects = subjects_of(options, devices, bundles)
        samples = _samples(options)
        data = options.data and options.data + (f", {options.category}" if options.category else "")
        other_rows, other_devices, data = merged(options.others, data, [device.name for device in devices])
        baseline = read_bench(Path(options.against)) if options.against else None
        if baseline:
            check_comparable(baseline, [_on(name, each.row) for name, of in subjects.items() for each in of])
        rows, machine, device_results = _measured(options, devices, subjects, samples)
        bench = Bench(
            format_version=1,
            headline=headline([*rows, *other_rows]),
            date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            command=shlex.join(["stlm-bench", *given]),
            stlm_edge=stlm_edge.__version__,
            machine=machine,
            devices=(*device_results, *other_devices),
            data=data,
            rows=(*rows, *other_rows),
            done=True,
        )
        text = strict_json.dump(bench)
        write_text(out / "bench.json", text)
        report = _report(out / "report.html", json.loads(text), options.checkpoint, subjects)
        if options.json:
            print(text, end="")
        else:
            _print(bench, report)
        changed = changes(baseline, rows, options.max_regression) if baseline else []
        for change in changed:
            print(f"{change.name} against {options.against}: {change.text}", file=sys.stderr)
    if not all(row.passed for row in rows) or any(change.regressed for change in changed):
        raise SystemExit(1)


def _on(device: str, row: Row) -> Row:
    return replace(row, device=None if device == "local" else device)


def _measured(
    options: argparse.Namespace, devices: list[Device], subjects: Subjects, samples: list[Any] | None
) -> tuple[list[Row], Machine, tuple[DeviceResult, ...]]:
    """Return the rows of all devices, those of this machine first; this machine; and the other devices."""
    local = subjects.get("local", [])

    def measure_here(progress: Progress) -> tuple[list[Row], Machine]:
        sets_mode = len(devices) == 1 or capabilities().jetson
        with power_mode(options.set_power_mode if sets_mode else None):
            before = system.moment()
            rows = measure(local, plan_of(options), progress)
            machine = system.describe(_packages(rows), before)
        if samples is not None:
            from stlm_edge.bench.accuracy import with_accuracy

            pairs = zip(rows, local, strict=True)
            rows = [with_accuracy(row, subject.runtime, samples, progress) for row, subject in pairs]
        return rows, machine

    if not subjects:
        return [], system.describe(), ()
    if [device.kind for device in devices] == ["local"]:
        return *measure_here(_progress), ()
    from stlm_edge.bench.devices.side_by_side import measure_side_by_side

    for line in ignored_options(devices, options):
        _progress(line)
    jobs: dict[str, Callable[[Progress], Any]] = {"local": measure_here} if local else {}
    jobs |= measurements(devices, subjects, plan_of(options), options, samples or ())
    results = measure_side_by_side(jobs)
    rows, machine = [], system.describe()
    if local:
        result = results.pop("local")
        if isinstance(result, JobError):
            rows = [replace(subject.row, failure=str(result)) for subject in local]
        else:
            rows, machine = result
    others, device_results = gather(results, subjects)
    measured = {row.bundle for row in rows + others}
    for row in (subject.row for of_device in subjects.values() for subject in of_device):
        if row.bundle not in measured:
            measured.add(row.bundle)
            others.append(replace(row, failure=f"no device of this command is {row.target} with {row.runtime}"))
    return rows + others, machine, device_results


def _devices(options: argparse.Namespace) -> list[Device]:
    devices = [parse_device(text) for text in options.device or ["local"]]
    kinds = {device.kind for device in devices}
    for number_, device in enumerate(devices):
        if device in devices[:number_]:
            raise UsageError(f"--device {device.name}: given twice")
    if options.data and not kinds & {"local", "ssh"}:
        raise UsageError("--data: not supported by phones and browsers; expected --device local or ssh:… as well")
    for option in ("checkpoint", "runtime"):
        if getattr(options, option) and "local" not in kinds:
            raise UsageError(f"--{option}: is for this machine; expected --device local as well")
    return devices


def plan_of(options: argparse.Namespace) -> Plan:
    """Return the plan that the options ask for."""
    default = Plan(128, 10.0) if options.quick else Plan()
    return Plan(
        queries=options.queries or default.queries,
        seconds=default.seconds if options.seconds is None else float(options.seconds),
        streams=tuple(options.streams),
        even_if_wrong=options.even_if_wrong,
        time_limit_s=float(options.time_limit),
    )


def _samples(options: argparse.Namespace) -> list[Any] | None:
    """Return the test images of --data, read before the measurements so that their errors come first."""
    if options.data is None:
        if options.category is not None:
            raise UsageError("--category: given without --data, the folder that holds the category")
        return None
    need_train_packages("--data", "torch", "scipy")
    from stlm_edge.data.datasets import test_samples

    return test_samples(options.data, options.category)


def _report(path: Path, bench: dict[str, Any], checkpoint: str | None, subjects: Subjects) -> Path | None:
    """Write the report, with the latest evaluation beside the checkpoint, or print what it needs."""
    if not all(map(importlib.util.find_spec, ("jinja2", "matplotlib", "stlm_edge.report"))):
        print('no report: it needs pip install "stlm-edge[train]"', file=sys.stderr)
        return None
    run = Path(checkpoint).parent if checkpoint else None
    evaluations = sorted(run.glob("*/metrics.json"), key=lambda file: file.stat().st_mtime) if run else []
    bundles = {subject.row.bundle: subject.bundle for of_device in subjects.values() for subject in of_device}
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("MPLCONFIGDIR", cache)  # else matplotlib writes a font list under the home folder
        from stlm_edge.report.report import write_report

        write_report(path, bench, run, evaluations[-1].parent if evaluations else None, bundles)
    return path


def _packages(rows: Sequence[Row]) -> tuple[str, ...]:
    packages = {
        "coreml": ("coremltools",),
        "litert": ("ai-edge-litert", "tflite-runtime"),
        "mil-evaluator": ("coremltools", "torch"),
    }
    runtimes = dict.fromkeys(row.runtime.partition("/")[0] for row in rows)
    return ("numpy", "Pillow", *(package for name in runtimes for package in packages.get(name, (name,))))


def _print(bench: Bench, report: Path | None) -> None:
    print(table(bench.rows))
    for row in bench.rows:
        if row.failure:
            print(f"{label(row)}: {row.failure}")
        for result in row.golden:
            if result.verdict != "same":
                print(
                    f"{label(row)}: {result.verdict} on {result.name}: score {result.score:.5f}, "
                    f"trained model {result.expected_score:.5f}, threshold {row.threshold:.5f}"
                )
    for row in bench.rows:
        if row.untimed:
            print(f"{label(row)}: not timed: {row.untimed}")
        for part in row.placement or ():
            if part.fell_back:
                print(f"{label(row)}: fell back: {part.nodes} nodes ran on {part.by}")
    for row in [row for row in bench.rows if row.latency_ms][:1]:
        seconds = "" if row.seconds is None else f" in {row.seconds:.0f} s"
        unsteady = ", which did not become steady" if row.steady is False else ""
        print(
            f"{row.queries} queries{seconds} after {row.warmup} for warm-up{unsteady}, {row.threads} thread(s), "
            "one image at a time"
        )
    if any(is_proxy_teacher(row.teacher) for row in bench.rows):
        print("these models were distilled from the proxy teacher EfficientNet-Lite0, not from SAM")
    if report:
        print(f"report: {report}")
    print(bench.headline)


def _progress(text: str) -> None:
    if text:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
