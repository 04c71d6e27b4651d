"""What is measured where: each device's bundles, this machine's by each of their runtimes, and the trained model."""

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stlm_edge.bench.devices.device import Device
from stlm_edge.bench.match import assigned, is_for, runtimes_of, this_host
from stlm_edge.bench.measure import Subject, unmeasured
from stlm_edge.bench.result import Row
from stlm_edge.bundle import Bundle
from stlm_edge.errors import UsageError

Wanted = dict[str, list[Subject]]  # a device's name to what is measured there


def wanted_of(options: argparse.Namespace, devices: list[Device], bundles: list[Bundle]) -> Wanted:
    """What is measured where. Raises UsageError for a bundle, device or runtime that nothing is measured of."""
    if not bundles:
        if not options.others or options.checkpoint or options.device:
            raise UsageError("--bundle: missing; expected a bundle's folder, or --with alone to write a report anew")
        return {}
    names = [bundle.folder.resolve().name for bundle in bundles]
    unique = [name if names.count(name) == 1 else given for name, given in zip(names, options.bundle, strict=True)]
    numbers = assigned(devices, bundles)
    wanted: Wanted = {}
    host = this_host()
    for device in devices:
        mine = [(bundles[number], unique[number], options.bundle[number]) for number in numbers[device.name]]
        if device.kind != "local":
            wanted[device.name] = [_subject(*each, options.threads) for each in mine]
            continue
        if len(devices) > 1:
            mine = [each for each in mine if options.runtime or is_for(each[0].manifest, host)]
        wanted["local"] = [subject for each in mine for subject in _by_runtimes(*each, options)]
        wanted["local"] += _trained_model(options, bundles[0])
        if options.runtime and not wanted["local"]:
            targets = ", ".join(dict.fromkeys(bundle.manifest.artifact for bundle in bundles))
            raise UsageError(f"--runtime {' '.join(options.runtime)}: runs none of {targets} here")
    for number, bundle in enumerate(bundles):
        if not any(subject.bundle.folder == bundle.folder for subjects in wanted.values() for subject in subjects):
            raise UsageError(
                f"{options.bundle[number]}: for {bundle.manifest.target}; this machine is none or lacks "
                f"{bundle.manifest.runtime}, and no other --device here is for it"
            )
    return wanted


def _subject(bundle: Bundle, name: str, given: str, threads: int) -> Subject:
    row = unmeasured(bundle, threads, sum(file.bytes for file in bundle.manifest.artifact_files))
    return Subject(replace(row, name=name, bundle=given), bundle)


def _by_runtimes(bundle: Bundle, name: str, given: str, options: argparse.Namespace) -> list[Subject]:
    """The bundle on this machine, once for each of its runtimes."""
    usual = _subject(bundle, name, given, options.threads)
    runtimes = runtimes_of(options.runtime, bundle)
    return [
        Subject(
            replace(usual.row, runtime=runtime, name=name if len(runtimes) == 1 else f"{name} by {runtime}"),
            Bundle(bundle.folder, bundle.manifest, runtime, options.threads),
        )
        for runtime in runtimes
    ]


def _trained_model(options: argparse.Namespace, bundle: Bundle) -> list[Subject]:
    """The checkpoint's rows, on a bundle's golden images."""
    asked = [name for name in options.runtime if name.partition("/")[0] == "torch"]
    if not options.checkpoint:
        if asked:
            raise UsageError(f"--runtime {asked[0]}: runs the trained model; expected --checkpoint beside it")
        return []
    need_train_packages("--checkpoint", "torch", "safetensors")
    path = Path(options.checkpoint)
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint; expected the .safetensors file that stlm-train writes")
    if "all" in options.runtime:
        import torch

        asked += ["torch", *(["torch/cuda"] if torch.cuda.is_available() else [])]
    row = unmeasured(bundle, options.threads, path.stat().st_size)
    row = replace(row, bundle=options.checkpoint, target=None, precision="fp32")
    return [Subject(replace(row, name=name, runtime=name), bundle, path) for name in dict.fromkeys(asked or ["torch"])]


def rows_there(device: str, subjects: Sequence[Subject]) -> list[Row]:
    return [replace(subject.row, device=None if device == "local" else device) for subject in subjects]


def need_train_packages(option: str, *packages: str) -> None:
    """Raise UsageError where a package that only training installs is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UsageError(f'{option} needs {package}: pip install "stlm-edge[train]"')
