"""Subjects of each device: the bundles that it can run, and on the host the trained model."""

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from stlm_edge.bench.devices.device import Device
from stlm_edge.bench.measure import Subject, unmeasured
from stlm_edge.bundle import Bundle
from stlm_edge.bundle.manifest import Manifest
from stlm_edge.errors import UsageError
from stlm_edge.runtimes import name_here

Subjects = dict[str, list[Subject]]  # by name of the device

_MADE_FOR = {  # kinds of devices of a target, which come before others that could run it, too
    "cpu": ("local", "ssh"),
    "jetson": ("local", "ssh"),
    "desktop-gpu": ("local", "ssh"),
    "android": ("adb",),
    "ios": ("local",),
    "web": ("web",),
}
_READ_BY = {  # runtimes by the artifact's suffix
    ".onnx": ("onnxruntime", "openvino", "tensorrt"),
    ".openvino": ("openvino",),
    ".tflite": ("litert",),
    ".mlpackage": ("coreml", "mil-evaluator"),
    ".engine": ("tensorrt",),
}
_PACKAGES = {  # any of them provides the runtime; others have the runtime's own name
    "coreml": ("coremltools",),
    "litert": ("ai_edge_litert", "tflite_runtime", "tensorflow"),
    "mil-evaluator": ("coremltools",),
}
RUNTIMES = ("onnxruntime", "openvino", "litert", "tensorrt", "coreml", "torch")


@dataclass(frozen=True)
class Capabilities:
    """Installed runtimes of a machine, and if it is a Jetson."""

    runtimes: frozenset[str]
    jetson: bool


def capabilities() -> Capabilities:
    """Return those of this machine."""
    return Capabilities(frozenset(filter(is_installed, RUNTIMES)), Path("/etc/nv_tegra_release").exists())


def is_installed(runtime: str) -> bool:
    """Return True if a package of the runtime is installed; it is not imported."""
    packages = _PACKAGES.get(runtime, (runtime,))
    return any(importlib.util.find_spec(package) is not None for package in packages)


def is_for(manifest: Manifest, machine: Capabilities) -> bool:
    """Return True if the machine can run the bundle, and no other device suits it better."""
    runtime = name_here(manifest.runtime)
    if manifest.runtime == "tensorrt" and machine.jetson != (manifest.target == "jetson"):
        return False
    return ("coreml" if runtime == "mil-evaluator" else runtime) in machine.runtimes


def assigned(devices: Sequence[Device], bundles: Sequence[Bundle]) -> dict[str, list[int]]:
    """Return the bundles of each device, by index. Raises UsageError for a bundle or a device that would have none."""
    indices: dict[str, list[int]] = {device.name: [] for device in devices}
    for index, bundle in enumerate(bundles):
        manifest = bundle.manifest
        able = [device for device in devices if _can_run(device, manifest)]
        preferred = [device for device in able if device.kind in _MADE_FOR.get(manifest.target, ())]
        for device in preferred or able:
            indices[device.name].append(index)
        if not able:
            raise UsageError(
                f"{bundle.folder}: for {manifest.target}, and no device here runs {manifest.runtime}; found --device "
                f"{', '.join(indices)}, expected {' or '.join(_MADE_FOR.get(manifest.target, ('local',)))}"
            )
    for name, mine in indices.items():
        if bundles and not mine:
            targets = ", ".join(dict.fromkeys(bundle.manifest.target for bundle in bundles))
            raise UsageError(f"--device {name}: no bundle is for it, they are for {targets}")
    return indices


def _can_run(device: Device, manifest: Manifest) -> bool:
    if device.kind == "adb":
        return manifest.runtime == "litert"
    if device.kind == "web":
        return manifest.runtime in ("onnxruntime", "onnxruntime-web")
    return device.kind == "local" or manifest.runtime != "coreml"


def runtimes_of(requested: Sequence[str], bundle: Bundle) -> list[str]:
    """Return the runtimes that run a bundle here: its own one if none is requested.

    "all" means those that are installed and suit the graph; one that is requested by name is always included.

    Raises:
        UsageError: an unknown name.
    """
    manifest = bundle.manifest
    own = name_here(manifest.runtime)
    if not requested:
        return [own]
    for name in requested:
        if name.partition("/")[0] not in (*RUNTIMES, "mil-evaluator", "all"):
            raise UsageError(f"--runtime {name}: unknown; expected {', '.join(RUNTIMES)} or all")
    readers = _READ_BY.get(PurePosixPath(manifest.artifact).suffix, (own,))
    named = [name for name in requested if name.partition("/")[0] in readers]
    if "all" not in requested:
        return named
    suitable = {
        "onnxruntime": True,
        "openvino": own == "openvino" or manifest.input.dtype == "uint8",
        "tensorrt": own == "tensorrt",
        own: True,
    }
    installed = []
    for runtime in readers:
        if suitable.get(runtime) and is_installed(runtime):
            installed += _onnxruntime_names() if runtime == "onnxruntime" else [runtime]
    return list(dict.fromkeys([*installed, *named]))


def _onnxruntime_names() -> list[str]:
    from stlm_edge.runtimes.onnxruntime import runtime_names

    return runtime_names()


def subjects_of(options: argparse.Namespace, devices: list[Device], bundles: list[Bundle]) -> Subjects:
    """Return what is measured on each device. Raises UsageError for a bundle, device or runtime that has nothing."""
    if not bundles:
        if not options.others or options.checkpoint or options.device:
            raise UsageError("--bundle: missing; expected a bundle's folder, or --with alone to write a report again")
        return {}
    names = [bundle.folder.resolve().name for bundle in bundles]
    every = []
    for name, path, bundle in zip(names, options.bundle, bundles, strict=True):
        row = unmeasured(bundle, options.threads, sum(file.bytes for file in bundle.manifest.artifact_files))
        every.append(Subject(replace(row, name=name if names.count(name) == 1 else path, bundle=path), bundle))
    subjects = {name: [every[index] for index in indices] for name, indices in assigned(devices, bundles).items()}
    if "local" in subjects:
        local, here = subjects["local"], capabilities()
        if len(devices) > 1 and not options.runtime:
            local = [subject for subject in local if is_for(subject.bundle.manifest, here)]
        local = [by_runtime for subject in local for by_runtime in _by_runtimes(subject, options.runtime)]
        subjects["local"] = local + _trained_model(options, every[0])
        if options.runtime and not subjects["local"]:
            targets = ", ".join(dict.fromkeys(bundle.manifest.artifact for bundle in bundles))
            raise UsageError(f"--runtime {' '.join(options.runtime)}: runs none of {targets} here")
    measured = {subject.bundle.folder for of_device in subjects.values() for subject in of_device}
    for path, bundle in zip(options.bundle, bundles, strict=True):
        if bundle.folder not in measured:
            raise UsageError(
                f"{path}: for {bundle.manifest.target}; this machine is none or lacks {bundle.manifest.runtime}, "
                "and no other --device here is for it"
            )
    return subjects


def _by_runtimes(subject: Subject, requested: Sequence[str]) -> list[Subject]:
    """Return the bundle's subjects on this machine, one for each of its runtimes."""
    bundle, row = subject.bundle, subject.row
    runtimes = runtimes_of(requested, bundle)
    return [
        Subject(
            replace(row, runtime=runtime, name=row.name if len(runtimes) == 1 else f"{row.name} by {runtime}"),
            Bundle(bundle.folder, bundle.manifest, runtime, row.threads),
        )
        for runtime in runtimes
    ]


def _trained_model(options: argparse.Namespace, subject: Subject) -> list[Subject]:
    """Return the checkpoint's subjects, on this bundle's golden images."""
    requested = [name for name in options.runtime if name.partition("/")[0] == "torch"]
    if not options.checkpoint:
        if requested:
            raise UsageError(f"--runtime {requested[0]}: runs the trained model; expected --checkpoint as well")
        return []
    need_train_packages("--checkpoint", "torch", "safetensors")
    path = Path(options.checkpoint)
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint; expected the .safetensors file that stlm-train writes")
    if "all" in options.runtime:
        import torch

        requested += ["torch", *(["torch/cuda"] if torch.cuda.is_available() else [])]
    size_mb = round(path.stat().st_size / 1e6, 3)
    row = replace(subject.row, bundle=options.checkpoint, target=None, precision="fp32", size_mb=size_mb)
    names = dict.fromkeys(requested or ["torch"])
    return [Subject(replace(row, name=name, runtime=name), subject.bundle, path) for name in names]


def need_train_packages(option: str, *packages: str) -> None:
    """Raise UsageError if a package that only training installs is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UsageError(f'{option} needs {package}: pip install "stlm-edge[train]"')
