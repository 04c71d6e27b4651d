"""What several devices answered, in one table: their rows, and for each device its machine or why there are no rows."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stlm_edge.bench.device import Device
from stlm_edge.bench.measure import Plan
from stlm_edge.bench.remote import Job, measure_over_ssh
from stlm_edge.bench.result import Bench, DeviceAnswer, Row
from stlm_edge.bench.ssh import Ssh
from stlm_edge.bench.web import measure_in_chromium
from stlm_edge.bundle import Bundle
from stlm_edge.errors import JobError, UsageError

Measure = Callable[[Callable[[str], None]], Any]


def measurements(
    devices: Sequence[Device], bundles: tuple[Bundle, ...], plan: Plan, options: argparse.Namespace
) -> dict[str, Any]:
    """For each device that isn't this machine, by name: what measures it, given where to tell its progress.

    Raises UsageError for options that do not suit."""
    config = Path(options.ssh_config) if options.ssh_config else None
    if config and not config.is_file():
        raise UsageError(f"{config}: no such file; --ssh-config expects one like ~/.ssh/config")
    job = Job(bundles, _travelling(options), float(options.time_limit), options.keep_on_device)

    def by_ssh(device: Device) -> Measure:
        return lambda progress: measure_over_ssh(Ssh(device, options.remote_python, config), job, progress)

    def by_browser(_: Device) -> Measure:
        limit = float(options.time_limit)
        return lambda progress: measure_in_chromium(bundles, plan, options.threads, limit, progress)

    ways = {"ssh": by_ssh, "web": by_browser}
    return {device.name: ways[device.kind](device) for device in devices if device.kind in ways}


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
    found: Mapping[str, Bench | JobError], unmeasured: Sequence[Row]
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
            answers.append(DeviceAnswer(name, answer.machine, None))
            rows += [
                replace(row, device=name, name=mine.name, bundle=mine.bundle)
                for row, mine in zip(answer.rows, unmeasured, strict=True)
            ]
    return rows, tuple(answers)
