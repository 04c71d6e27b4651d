"""What several devices answered, in one table: their rows, and for each device its machine or why there are no rows."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stlm_edge.bench.devices.adb import Adb
from stlm_edge.bench.devices.benchmark_model import describe_phone, time_by_benchmark_model
from stlm_edge.bench.devices.device import Device
from stlm_edge.bench.devices.remote import Job, Progress, host_of, measure_over_ssh
from stlm_edge.bench.devices.self_check import PhoneJob, measure_by_app
from stlm_edge.bench.devices.ssh import Lost, Ssh
from stlm_edge.bench.devices.web import measure_in_chromium
from stlm_edge.bench.machine.system import Machine
from stlm_edge.bench.match import Host, is_for
from stlm_edge.bench.measure import Plan, Subject
from stlm_edge.bench.result import DeviceAnswer, Row
from stlm_edge.data.sample import Sample
from stlm_edge.errors import JobError, UsageError

Found = tuple[list[Row], Machine]
Measure = Callable[[Progress], Found]


def measurements(
    devices: Sequence[Device],
    subjects: Mapping[str, Sequence[Subject]],
    plan: Plan,
    options: argparse.Namespace,
    samples: Sequence[Sample] = (),
) -> dict[str, Measure]:
    """For each device that isn't this machine, by name: what measures its subjects, given where to tell its progress.

    Beside other devices one by ssh is asked first what it is, and gets the bundles that are for it; it judges the
    samples too, if there are any. Raises UsageError for options that do not suit.
    """
    config = Path(options.ssh_config) if options.ssh_config else None
    if config and not config.is_file():
        raise UsageError(f"{config}: no such file; --ssh-config expects one like ~/.ssh/config")
    limit, binary = float(options.time_limit), Path(options.via[1]) if options.via else None

    def by_ssh(device: Device) -> Measure:
        def measure(progress: Progress) -> Found:
            ssh = Ssh(device, options.remote_python, config)
            mine = subjects[device.name]
            if len(devices) > 1:
                mine = _worth_a_try(mine, host_of(ssh, progress))
            bundles = tuple(subject.bundle for subject in mine)
            job = Job(bundles, _travelling(options), limit, options.keep_on_device, tuple(samples))
            bench = measure_over_ssh(ssh, job, progress)
            return named(bench.rows, mine), bench.machine

        return measure

    def by_adb(device: Device) -> Measure:
        def measure(progress: Progress) -> Found:
            adb, mine = Adb(device), subjects[device.name]
            bundles = tuple(subject.bundle for subject in mine)
            phone = PhoneJob(bundles, plan.queries, options.delegate, limit, options.keep_on_device)
            try:
                if binary:
                    rows = [subject.row for subject in mine]
                    return time_by_benchmark_model(adb, binary, phone, rows, progress), describe_phone(adb)
                bench = measure_by_app(adb, phone, progress)
            except Lost as lost:
                raise JobError(f"lost: {lost}") from None
            return named(bench.rows, mine), bench.machine

        return measure

    def by_browser(device: Device) -> Measure:
        def measure(progress: Progress) -> Found:
            mine = subjects[device.name]
            bundles = [subject.bundle for subject in mine]
            bench = measure_in_chromium(bundles, plan, options.threads, limit, progress)
            return named(bench.rows, mine), bench.machine

        return measure

    ways = {"ssh": by_ssh, "adb": by_adb, "web": by_browser}
    return {device.name: ways[device.kind](device) for device in devices if device.kind in ways}


def _worth_a_try(subjects: Sequence[Subject], host: Host) -> Sequence[Subject]:
    mine = [subject for subject in subjects if is_for(subject.bundle.manifest, host)]
    if not mine:
        raise JobError(
            f"none of these bundles is for it: it is {'a' if host.jetson else 'no'} Jetson, and its Python has "
            f"{', '.join(sorted(host.runtimes)) or 'no runtime'}"
        )
    return mine


def named(rows: Sequence[Row], subjects: Sequence[Subject]) -> list[Row]:
    """A device's rows under the desk's names for the bundles."""
    return [replace(row, name=mine.row.name, bundle=mine.row.bundle) for row, mine in zip(rows, subjects, strict=True)]


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
    found: Mapping[str, Found | JobError], subjects: Mapping[str, Sequence[Subject]]
) -> tuple[list[Row], tuple[DeviceAnswer, ...]]:
    """The devices' rows, and the devices. One without an answer has its subjects' rows too, failed for its reason."""
    rows: list[Row] = []
    answers = []
    for name, answer in found.items():
        if isinstance(answer, JobError):
            answers.append(DeviceAnswer(name, None, str(answer)))
            rows += [replace(subject.row, device=name, failure=str(answer)) for subject in subjects[name]]
        else:
            measured, machine = answer
            answers.append(DeviceAnswer(name, machine, None))
            rows += [replace(row, device=name) for row in measured]
    return rows, tuple(answers)


def unheeded(devices: Sequence[Device], options: argparse.Namespace) -> list[str]:
    """Lines on options that were given and that a device can't follow."""
    given = {
        "--seconds": options.seconds is not None,
        "--threads": options.threads > 1,
        "--streams": bool(options.streams),
        "--even-if-wrong": options.even_if_wrong,
        "--data": options.data is not None,
    }
    deaf = {"adb": set(given), "web": {"--streams", "--data"}}
    if options.via:
        deaf["adb"] -= {"--threads", "--even-if-wrong"}
    lines = []
    for device in devices:
        if names := [name for name in given if given[name] and name in deaf.get(device.kind, ())]:
            lines.append(f"{device.name}: {', '.join(names)} can't be followed there")
    return lines
