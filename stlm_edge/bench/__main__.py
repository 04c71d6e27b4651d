"""stlm-bench: does each artifact say what the trained model said, and how fast is it here?

Parity on the golden pictures comes first; an artifact that fails it is not timed. The others then take turns in short
rounds, each in its own process.
"""

import argparse
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import stlm_edge
from stlm_edge import strict_json
from stlm_edge.bench import machine
from stlm_edge.bench.against import changes, read_bench
from stlm_edge.bench.device import Device, parse_device
from stlm_edge.bench.jetson import power_mode
from stlm_edge.bench.machine import Machine
from stlm_edge.bench.measure import Plan, Subject, measure, unmeasured
from stlm_edge.bench.result import Accuracy, Bench, DeviceAnswer, Row, headline, is_stand_in, label, table
from stlm_edge.bundle import open_bundle
from stlm_edge.errors import JobError, UsageError, exit_with_one_line
from stlm_edge.files import write_text

EXAMPLE = """example:
  stlm-bench --bundle bundles/cpu-fp32 --bundle bundles/cpu-int8 --checkpoint runs/demo/checkpoint.safetensors \\
             --data runs/demo/data --out runs/demo
writes runs/demo/bench.json and runs/demo/report.html; the exit code is 1 when an artifact failed"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run stlm-bench. Exit code 2: unusable input; 1: a row failed (everything is written all the same)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _options(given)
    with exit_with_one_line("interrupted; nothing was written"):
        out = Path(options.out)
        if out.exists() and not out.is_dir():
            raise UsageError(f"{out}: a file; --out expects a folder, which gets bench.json and report.html")
        devices = _devices(options)
        subjects = _subjects(options)
        samples = _samples(options)
        earlier = read_bench(Path(options.against)) if options.against else None
        rows, described, answers = _measured(options, devices, subjects, samples)
        bench = Bench(
            format_version=1,
            headline=headline(rows),
            date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            command=shlex.join(["stlm-bench", *given]),
            stlm_edge=stlm_edge.__version__,
            machine=described,
            devices=answers,
            data=options.data and options.data + (f", {options.category}" if options.category else ""),
            rows=tuple(rows),
            done=True,
        )
        text = strict_json.dump(bench)
        write_text(out / "bench.json", text)
        report = _report(out / "report.html", json.loads(text), options.checkpoint, subjects)
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
    options: argparse.Namespace, devices: list[Device], subjects: list[Subject], samples: list[Any] | None
) -> tuple[list[Row], Machine, tuple[DeviceAnswer, ...]]:
    """The rows of all devices, this machine's first; this machine; the others."""

    def here(progress: Callable[[str], None]) -> tuple[list[Row], Machine]:
        with power_mode(options.set_power_mode):
            before = machine.moment()
            rows = measure(subjects, _plan(options), progress)
            described = machine.describe(_packages(rows), before)
        if samples is not None:
            rows = [
                _with_accuracy(row, subject, samples, progress) for row, subject in zip(rows, subjects, strict=True)
            ]
        return rows, described

    if [device.kind for device in devices] == ["local"]:
        return *here(_progress), ()
    from stlm_edge.bench.devices import gather, measurements
    from stlm_edge.bench.side_by_side import measure_side_by_side

    bundles = [subject for subject in subjects if subject.checkpoint is None]
    jobs = measurements(devices, bundles, _plan(options), options)
    local = any(device.kind == "local" for device in devices)
    found = measure_side_by_side({**({"local": here} if local else {}), **jobs})
    rows, described = [], machine.describe()
    if local:
        answer = found.pop("local")
        if isinstance(answer, JobError):
            rows = [replace(subject.row, failure=str(answer)) for subject in subjects]
        else:
            rows, described = answer
    others, answers = gather(found, [subject.row for subject in bundles])
    return rows + others, described, answers


def _devices(options: argparse.Namespace) -> list[Device]:
    devices = [parse_device(text) for text in options.device or ["local"]]
    for number, device in enumerate(devices):
        if device in devices[:number]:
            raise UsageError(f"--device {device.name}: given twice")
    for option in ("checkpoint", "data"):
        if getattr(options, option) and not any(device.kind == "local" for device in devices):
            raise UsageError(f"--{option}: is for this machine; expected --device local beside the others")
    if options.via and not any(device.kind == "adb" for device in devices):
        raise UsageError("--via: times phones; expected --device adb beside it")
    return devices


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "stlm-bench", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--bundle", action="append", required=True, metavar="B", help="a bundle's folder; may be given several times")
    add("--checkpoint", metavar="F", help="also run the trained model itself, on the first bundle's golden pictures")
    add("--data", metavar="DIR", help="also measure accuracy on these test pictures")
    add("--category", metavar="NAME", help="the category of --data, where it holds several")
    add("--threads", type=_at_least(1), default=1, metavar="N", help="threads of each runtime (default: 1)")
    add("--quick", action="store_true", help="128 queries and 10 s per row are enough")
    add("--queries", type=_at_least(1), metavar="N", help="queries that count, per row, at least (default: 1024)")
    add("--seconds", type=_at_least(0), metavar="N", help="seconds that they take, at least (default: 60)")
    add("--streams", type=_at_least(1), action="append", default=[], metavar="N", help="throughput of N at once, too")
    add("--even-if-wrong", action="store_true", help="time what fails parity as well, and mark it")
    add("--against", metavar="F", help="an earlier bench.json: exit with 1 where a row became slower or wrong")
    add("--max-regression", type=_percent, default=0.05, metavar="P", help="that much slower may be (default: 5%%)")
    add("--out", required=True, metavar="DIR", help="folder for bench.json and report.html")
    add(
        "--device",
        action="append",
        metavar="D",
        help="local (the default), ssh:[USER@]HOST[:PORT], adb[:SERIAL], web (Chromium here); several run at once",
    )
    add("--delegate", choices=("cpu", "gpu"), default="cpu", help="what runs the model on a phone (default: cpu)")
    add("--via", nargs=2, metavar=("benchmark_model", "PATH"), help="time phones by LiteRT's binary, not by the app")
    add("--ssh-config", metavar="F", help="ssh's configuration, in place of ~/.ssh/config")
    add("--remote-python", type=_plain_path, default="python3", metavar="P", help="Python on the device, 3.10 or newer")
    add("--keep-on-device", action="store_true", help="leave bundles and engines there for the next time")
    add(
        "--set-power-mode",
        type=_at_least(0),
        metavar="N",
        help="set a Jetson's nvpmodel mode, and the former one after",
    )
    add("--time-limit", type=_at_least(1), default=7200, metavar="S", help="seconds per device (default: 7200)")
    add("--json", action="store_true", help="print bench.json and nothing else")
    return parser.parse_args(arguments)


def _at_least(minimum: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or not minimum <= int(text) <= 1_000_000:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from {minimum} to 1000000")
        return int(text)

    return number


def _plain_path(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._/][A-Za-z0-9._/+\-]{0,199}", text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a path in letters, digits, '.', '_', '-' and '/'")
    return text


def _percent(text: str) -> float:
    number = text.removesuffix("%")
    if not number.replace(".", "", 1).isdecimal() or float(number) > 1000:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a percentage such as 5%")
    return float(number) / 100


def _plan(options: argparse.Namespace) -> Plan:
    usual = Plan(128, 10.0) if options.quick else Plan()
    return Plan(
        queries=options.queries or usual.queries,
        seconds=usual.seconds if options.seconds is None else float(options.seconds),
        streams=tuple(options.streams),
        even_if_wrong=options.even_if_wrong,
    )


def _subjects(options: argparse.Namespace) -> list[Subject]:
    bundles = [open_bundle(folder, threads=options.threads) for folder in options.bundle]
    names = [bundle.folder.resolve().name for bundle in bundles]
    subjects = []
    for given, bundle, name in zip(options.bundle, bundles, names, strict=True):
        manifest = bundle.manifest
        size = sum(file.bytes for file in manifest.artifact_files)
        row = unmeasured(bundle, options.threads, size)
        row = replace(row, name=name if names.count(name) == 1 else given, bundle=given)
        subjects.append(Subject(row, bundle, None))
    if options.checkpoint:
        _need_train_packages("--checkpoint", "torch", "safetensors")
        path = Path(options.checkpoint)
        if not path.is_file():
            raise UsageError(f"{path}: no such checkpoint; expected the .safetensors file that stlm-train writes")
        row = unmeasured(bundles[0], options.threads, path.stat().st_size)
        row = replace(row, name="torch", bundle=options.checkpoint, target=None, runtime="torch", precision="fp32")
        subjects.append(Subject(row, bundles[0], path))
    return subjects


def _samples(options: argparse.Namespace) -> list[Any] | None:
    """Return the test pictures of --data, before anything is measured: what is wrong with them is said at once."""
    if options.data is None:
        if options.category is not None:
            raise UsageError("--category: given without --data, the folder that holds the category")
        return None
    _need_train_packages("--data", "torch", "torchmetrics", "scipy")
    from stlm_edge.data.datasets import test_samples

    return test_samples(options.data, options.category)


def _with_accuracy(row: Row, subject: Subject, samples: list[Any], progress: Callable[[str], None]) -> Row:
    """Evaluate a row that answered the golden pictures, a wrong one too: how wrong it is, is then known."""
    if row.parity is None:
        return row
    from stlm_edge.evaluate import evaluate

    progress(f"accuracy: {row.name} on {len(samples)} pictures")
    found = evaluate(subject.runtime(), samples, row.input_size, subject.bundle.manifest.calibration, None, row.name)
    return replace(row, accuracy=Accuracy(*(found[name] for name in ("image_auroc", "pixel_auroc", "aupro"))))


def _report(path: Path, bench: dict[str, Any], checkpoint: str | None, subjects: Sequence[Subject]) -> Path | None:
    """Write the report with what stands beside the checkpoint, or say what it needs."""
    if not all(map(importlib.util.find_spec, ("jinja2", "matplotlib", "stlm_edge.report"))):
        print('no report: it needs pip install "stlm-edge[train]"', file=sys.stderr)
        return None
    from stlm_edge.report import write_report

    run_folder = Path(checkpoint).parent if checkpoint else None
    found = sorted(run_folder.glob("*/metrics.json"), key=lambda file: file.stat().st_mtime) if run_folder else []
    frontiers = {subject.row.name: subject.bundle.manifest.provenance.get("frontier") for subject in subjects}
    write_report(path, bench, run_folder, found[-1].parent if found else None, frontiers)
    return path


def _need_train_packages(option: str, *packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UsageError(f'{option} needs {package}: pip install "stlm-edge[train]"')


def _packages(rows: Sequence[Row]) -> tuple[str, ...]:
    named_otherwise = {
        "coreml": ("coremltools",),
        "litert": ("ai-edge-litert", "tflite-runtime"),
        "mil-evaluator": ("coremltools", "torch"),
    }
    runtimes = dict.fromkeys(row.runtime for row in rows)
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
    timed = [row for row in bench.rows if row.latency_ms]
    if timed:
        row = timed[0]
        print(
            f"{row.queries} queries in {row.seconds:.0f} s after {row.warmup} for warm-up"
            f"{'' if row.steady else ', which did not become steady'}, {row.threads} thread(s), one picture at a time"
        )
    if any(is_stand_in(row.teacher) for row in bench.rows):
        print("these models were distilled from a stand-in teacher, EfficientNet-Lite0, not from SAM")
    if report:
        print(f"report: {report}")
    print(bench.headline)


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
