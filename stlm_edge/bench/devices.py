"""What several devices answered, in one table: their rows, and for each device its machine or why there are no rows."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stlm_edge.bench.adb import Adb
from stlm_edge.bench.benchmark_model import describe_phone, time_by_benchmark_model
from stlm_edge.bench.device import Device
from stlm_edge.bench.machine import Machine
from stlm_edge.bench.measure import Plan, Subject
from stlm_edge.bench.remote import Job, Progress, measure_over_ssh
from stlm_edge.bench.result import DeviceAnswer, Row
from stlm_edge.bench.self_check import PhoneJob, measure_by_app
from stlm_edge.bench.ssh import Lost, Ssh
from stlm_edge.bench.web import measure_in_chromium
from stlm_edge.errors import JobError, UsageError

Found = tuple[list[Row], Machine]
Measure = Callable[[Progress], Found]


def measurements(
    devices: Sequence[Device], subjects: Sequence[Subject], plan: Plan, options: argparse.Namespace
) -> dict[str, Measure]:
    """For each device that isn't this machine, by name: what measures it, given where to tell its progress.

    Raises UsageError for options that do not suit.
    """
    config = Path(options.ssh_config) if options.ssh_config else None
    if config and not config.is_file():
        raise UsageError(f"{config}: no such file; --ssh-config expects one like ~/.ssh/config")
    bundles, limit = tuple(subject.bundle for subject in subjects), float(options.time_limit)
    binary = _binary(options.via)
    job = Job(bundles, _travelling(options), limit, options.keep_on_device)
    phone = PhoneJob(bundles, plan.queries, options.delegate, limit, options.keep_on_device)
    if any(device.kind == "adb" for device in devices):
        for bundle in bundles:
            if bundle.manifest.runtime != "litert":
                raise UsageError(f"{bundle.folder}: for {bundle.manifest.target}; phones run bundles of target android")

    def by_ssh(device: Device) -> Measure:
        def measure(progress: Progress) -> Found:
            bench = measure_over_ssh(Ssh(device, options.remote_python, config), job, progress)
            return list(bench.rows), bench.machine

        return measure

    def by_adb(device: Device) -> Measure:
        def measure(progress: Progress) -> Found:
            adb = Adb(device)
            try:
                if binary:
                    rows = [subject.row for subject in subjects]
                    return time_by_benchmark_model(adb, binary, phone, rows, progress), describe_phone(adb)
                bench = measure_by_app(adb, phone, progress)
            except Lost as lost:
                raise JobError(f"lost: {lost}") from None
            return list(bench.rows), bench.machine

        return measure

    def by_browser(_: Device) -> Measure:
        def measure(progress: Progress) -> Found:
            bench = measure_in_chromium(bundles, plan, options.threads, limit, progress)
            return list(bench.rows), bench.machine

        return measure

    ways = {"ssh": by_ssh, "adb": by_adb, "web": by_browser}
    return {device.name: ways[device.kind](device) for device in devices if device.kind in ways}


def _binary(via: list[str] | None) -> Path | None:
    if via is None:
        return None
    name, path = via[0], Path(via[1])
    if name != "benchmark_model" or not path.is_file():
        raise UsageError(f"--via {name} {path}: expected benchmark_model and its file, built for the phone")
    return path


def _travelling(options: argparse.Namespace) -> tuple[str, ...]:
    """The options that mean the same on the device."""
    given = ["--threads", str(options.threads)]
    for name in ("--queries", "--seconds", "--set-power-mode"):
        if (value := getattr(options, name[2:].replace("-", "_"))) is not None:
            given += [name, str(value)]
    given += [part for streams in options.streams for part in ("--streams", str(streams))]
    given += [flag for flag in ("--quick", "--even-if-wrong") if getattr(options, flag[2:].replace("-", "_"))]
    return tuple(given)


def gather(
    found: Mapping[str, Found | JobError], unmeasured: Sequence[Row]
) -> tuple[list[Row], tuple[DeviceAnswer, ...]]:
    """The devices' rows under the desk's names for the bundles; `unmeasured` are those rows with nothing in them.

    A device without an answer has these rows too, failed for its reason.
    """
    rows: list[Row] = []
    answers = []
    for name, answer in found.items():
        if isinstance(answer, JobError):
            answers.append(DeviceAnswer(name, None, str(answer)))
            rows += [replace(row, device=name, failure=str(answer)) for row in unmeasured]
        else:
            measured, machine = answer
            answers.append(DeviceAnswer(name, machine, None))
            rows += [
                replace(row, device=name, name=mine.name, bundle=mine.bundle)
                for row, mine in zip(measured, unmeasured, strict=True)
            ]
    return rows, tuple(answers)
