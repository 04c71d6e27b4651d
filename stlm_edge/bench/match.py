"""Which bundle goes to which device, and by which runtimes an artifact can be run here."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stlm_edge.bench.devices.device import Device
from stlm_edge.bundle import Bundle
from stlm_edge.bundle.manifest import Manifest
from stlm_edge.errors import UsageError
from stlm_edge.runtimes import name_here

_MADE_FOR = {  # target to kinds of devices, which are served before others that could run it too
    "cpu": ("local", "ssh"),
    "jetson": ("local", "ssh"),
    "desktop-gpu": ("local", "ssh"),
    "android": ("adb",),
    "ios": ("local",),
    "web": ("web",),
}
_TAKE = {  # an artifact's ending to the runtimes that read it
    ".onnx": ("onnxruntime", "openvino", "tensorrt"),
    ".openvino": ("openvino",),
    ".tflite": ("litert",),
    ".mlpackage": ("coreml", "mil-evaluator"),
    ".engine": ("tensorrt",),
}
_PACKAGES = {  # of a runtime, where it isn't called the same; any of them will do
    "coreml": ("coremltools",),
    "litert": ("ai_edge_litert", "tflite_runtime", "tensorflow"),
    "mil-evaluator": ("coremltools",),
}
RUNTIMES = ("onnxruntime", "openvino", "litert", "tensorrt", "coreml", "torch")


@dataclass(frozen=True)
class Host:
    """A machine that bundles may be sent to."""

    runtimes: frozenset[str]
    jetson: bool


def this_host() -> Host:
    installed = (name for name in RUNTIMES if is_installed(name))
    return Host(frozenset(installed), Path("/etc/nv_tegra_release").exists())


def is_installed(runtime: str) -> bool:
    """Whether a package of it is there; whether it works is seen when it is run."""
    packages = _PACKAGES.get(runtime, (runtime,))
    return any(importlib.util.find_spec(package) is not None for package in packages)


def assigned(devices: Sequence[Device], bundles: Sequence[Bundle]) -> dict[str, list[int]]:
    """Each device's bundles, by number. Raises UsageError for a bundle or a device that would go without."""
    found: dict[str, list[int]] = {device.name: [] for device in devices}
    for number, bundle in enumerate(bundles):
        manifest = bundle.manifest
        able = [device for device in devices if _can(device, manifest)]
        meant = [device for device in able if device.kind in _MADE_FOR.get(manifest.target, ())]
        for device in meant or able:
            found[device.name].append(number)
        if not able:
            raise UsageError(
                f"{bundle.folder}: for {manifest.target}, and no device here runs {manifest.runtime}; "
                f"found --device {', '.join(found)}, expected {' or '.join(_MADE_FOR.get(manifest.target, ('local',)))}"
            )
    for name, numbers in found.items():
        if bundles and not numbers:
            targets = ", ".join(dict.fromkeys(bundle.manifest.target for bundle in bundles))
            raise UsageError(f"--device {name}: no bundle is for it, they are for {targets}")
    return found


def _can(device: Device, manifest: Manifest) -> bool:
    if device.kind == "adb":
        return manifest.runtime == "litert"
    if device.kind == "web":
        return manifest.runtime in ("onnxruntime", "onnxruntime-web")
    return device.kind == "local" or manifest.runtime != "coreml"


def is_for(manifest: Manifest, host: Host) -> bool:
    """Whether the bundle is worth a try there, where another device may have it instead."""
    runtime = name_here(manifest.runtime)
    if manifest.runtime == "tensorrt" and host.jetson != (manifest.target == "jetson"):
        return False
    return ("coreml" if runtime == "mil-evaluator" else runtime) in host.runtimes


def runtimes_of(asked: Sequence[str], bundle: Bundle) -> list[str]:
    """The runtimes that a bundle is to be run by here: its own where none is asked for.

    With `all`, those that are installed and are meant for such a graph; each asked for by name is tried. Raises
    UsageError for an unknown name.
    """
    manifest = bundle.manifest
    own = name_here(manifest.runtime)
    if not asked:
        return [own]
    for name in asked:
        if name.partition("/")[0] not in (*RUNTIMES, "mil-evaluator", "all"):
            raise UsageError(f"--runtime {name}: unknown; expected {', '.join(RUNTIMES)} or all")
    takes = _TAKE.get(PurePosixPath(manifest.artifact).suffix, (own,))
    named = [name for name in asked if name.partition("/")[0] in takes]
    if "all" not in asked:
        return named
    installed = []
    if "onnxruntime" in takes and is_installed("onnxruntime"):
        from stlm_edge.runtimes.onnxruntime import runtime_names

        installed += runtime_names()
    if "openvino" in takes and is_installed("openvino") and manifest.input.dtype == "uint8":
        installed.append("openvino")
    if "tensorrt" in takes and is_installed("tensorrt") and manifest.runtime == "tensorrt":
        installed.append("tensorrt")
    if own not in installed and is_installed(own) and own in takes and own != "tensorrt":
        installed.append(own)
    return list(dict.fromkeys([*installed, *named]))
