"""Devices of stlm-bench: the names that `--device` accepts, and how the bundles are measured on each kind.

local                       the host itself
ssh:[USER@]HOST[:PORT]      a machine with Python, numpy, Pillow and the bundle's runtime; HOST may be an alias of ssh
adb[:SERIAL]                a phone with the demo app
web                         the web page in the host's Chromium
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stlm_edge.bench.measure import Plan, Subject
from stlm_edge.bench.result import DeviceResult, Row
from stlm_edge.bundle import Bundle
from stlm_edge.errors import JobError, UsageError

if TYPE_CHECKING:
    from stlm_edge.bench.machine.system import Machine
    from stlm_edge.bench.subjects import Capabilities
    from stlm_edge.data.sample import Sample

_USER = r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,63}"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9._\-]{0,252}[A-Za-z0-9])?|\[[0-9A-Fa-f:]{2,45}\]"
_SERIAL = r"[A-Za-z0-9][A-Za-z0-9._:\-]{0,127}"  # 127.0.0.1:5555 and mDNS names are serials, too
_NAME = re.compile(rf"local|web|adb(?::{_SERIAL})?|ssh:(?:{_USER}@)?(?:{_HOST})(?::(?P<port>[1-9][0-9]{{0,4}}))?")

Progress = Callable[[str], None]
Measured = tuple[list[Row], "Machine"]


@dataclass(frozen=True)
class Device:
    """Device that `--device` names. `address`: ssh's URI, or adb's serial, if the name has one."""

    name: str
    kind: str
    address: str = ""


@dataclass(frozen=True)
class Job:
    """Measurements requested from one device.

    Attributes:
        power_mode: nvpmodel's mode during the measurements; None leaves the device's own
        keep: leave bundles, engines and test images on the device for the next time
        samples: labelled images to measure accuracy on; without any, accuracy is not measured
    """

    bundles: tuple[Bundle, ...]
    plan: Plan
    threads: int = 1
    delegate: str = "cpu"
    power_mode: int | None = None
    keep: bool = False
    samples: "tuple[Sample, ...]" = ()


def parse_device(text: str) -> Device:
    """Read one `--device`. Its parts reach command lines, so anything but plain characters is a UsageError."""
    match = _NAME.fullmatch(text)
    if match is None or int(match["port"] or 0) > 65535:
        shown = "".join(character if character.isprintable() else "?" for character in text[:80])
        raise UsageError(
            f"--device: found {shown!r}, expected local, ssh:[USER@]HOST[:PORT], adb[:SERIAL] or web in letters, "
            "digits, '.', '_' and '-'"
        )
    kind, _, address = text.partition(":")
    return Device(text, kind, f"ssh://{address}" if kind == "ssh" else address)


def measurements(
    devices: Sequence[Device],
    subjects: Mapping[str, Sequence[Subject]],
    plan: Plan,
    options: argparse.Namespace,
    samples: "Sequence[Sample]" = (),
) -> dict[str, Callable[[Progress], Measured]]:
    """Return, by device name, the function that measures the device's subjects; `local` has none.

    With several devices, one behind ssh gets only the bundles whose runtime it reports. Raises UsageError for a
    missing file of `--ssh-config`.
    """
    from stlm_edge.bench.devices.adb import Adb, measure_by_app
    from stlm_edge.bench.devices.remote import capabilities_of, measure_over_ssh
    from stlm_edge.bench.devices.ssh import Lost, Ssh
    from stlm_edge.bench.devices.web import measure_in_chromium

    config = Path(options.ssh_config) if options.ssh_config else None
    if config and not config.is_file():
        raise UsageError(f"{config}: no such file; --ssh-config expects one like ~/.ssh/config")
    settings = (plan, options.threads, options.delegate, options.set_power_mode, options.keep_on_device)

    def measure(device: Device, progress: Progress) -> Measured:
        ssh = Ssh(device, options.remote_python, config) if device.kind == "ssh" else None
        suitable = subjects[device.name]
        try:
            if ssh and len(devices) > 1:
                suitable = _suitable(suitable, capabilities_of(ssh, progress))
            job = Job(tuple(subject.bundle for subject in suitable), *settings, tuple(samples))
            if ssh:
                bench = measure_over_ssh(ssh, job, progress)
            elif device.kind == "adb":
                bench = measure_by_app(Adb(device), job, progress)
            else:
                bench = measure_in_chromium(job, progress)
        except Lost as lost:
            raise JobError(f"connection lost: {lost}") from None
        return with_names_of(suitable, bench.rows), bench.machine

    return {device.name: partial(measure, device) for device in devices if device.kind != "local"}


def _suitable(subjects: Sequence[Subject], machine: "Capabilities") -> Sequence[Subject]:
    from stlm_edge.bench.subjects import is_for

    suitable = [subject for subject in subjects if is_for(subject.bundle.manifest, machine)]
    if not suitable:
        raise JobError(
            f"none of the bundles is for this device, {'a' if machine.jetson else 'no'} Jetson whose Python has "
            f"{', '.join(sorted(machine.runtimes)) or 'no runtime'}; install the bundle's runtime there"
        )
    return suitable


def with_names_of(subjects: Sequence[Subject], rows: Sequence[Row]) -> list[Row]:
    """Return a device's rows with the names that the host has for the bundles."""
    pairs = zip(rows, subjects, strict=True)
    return [replace(row, name=subject.row.name, bundle=subject.row.bundle) for row, subject in pairs]


def gather(
    results: Mapping[str, Measured | JobError], subjects: Mapping[str, Sequence[Subject]]
) -> tuple[list[Row], tuple[DeviceResult, ...]]:
    """Return the rows of all devices, and the devices. A device that failed gives failed rows with its reason."""
    rows: list[Row] = []
    answers = []
    for name, result in results.items():
        if isinstance(result, JobError):
            answers.append(DeviceResult(name, None, str(result)))
            rows += [replace(subject.row, device=name, failure=str(result)) for subject in subjects[name]]
        else:
            measured, machine = result
            answers.append(DeviceResult(name, machine, None))
            rows += [replace(row, device=name) for row in measured]
    return rows, tuple(answers)


def ignored_options(devices: Sequence[Device], options: argparse.Namespace) -> list[str]:
    """Return one line for each device that ignores options given on the command line."""
    given = {
        "--seconds": options.seconds is not None,
        "--threads": options.threads > 1,
        "--streams": bool(options.streams),
        "--even-if-wrong": options.even_if_wrong,
        "--data": options.data is not None,
    }
    ignored = {"adb": tuple(given), "web": ("--streams", "--data")}
    lines = []
    for device in devices:
        if names := [name for name in ignored.get(device.kind, ()) if given[name]]:
            lines.append(f"{device.name}: ignores {', '.join(names)}")
    return lines
