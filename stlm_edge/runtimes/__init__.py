"""Runtimes: adapters that run an artifact, all with one method. A bundle's manifest names the one it needs."""

import sys
from pathlib import Path
from typing import Protocol

import numpy as np

from stlm_edge.errors import UsageError


class Runtime(Protocol):
    """Anything that runs the network: `name` as in manifests, `size` the side S of its square input in pixels."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """uint8 RGB S×S×3 in; anomaly map float32 S×S and score out. Raises JobError when they aren't finite."""
        ...


def name_here(name: str) -> str:
    """What runs the named runtime's artifacts on this machine: where there is no Core ML, the MIL evaluator; outside a
    browser, onnxruntime."""
    if name == "coreml" and sys.platform != "darwin":
        return "mil-evaluator"
    return "onnxruntime" if name == "onnxruntime-web" else name


def open_runtime(name: str, artifact: Path, threads: int | None = None) -> Runtime:
    """Load an artifact into the named runtime, on `threads` threads (None: one per physical core).

    Raises UsageError when this release has no such runtime, it isn't installed, or the artifact doesn't suit it.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads: found {threads}, expected at least 1")
    name = name_here(name)
    if name == "coreml":
        from stlm_edge.runtimes.coreml import CoreML

        return CoreML(artifact)
    if name == "mil-evaluator":
        try:
            from stlm_edge.runtimes.mil_evaluator import MilEvaluator
        except ImportError as error:
            raise UsageError(
                f"{artifact}: Core ML is on Apple's devices only, and what computes its programs elsewhere needs "
                f'{error.name}: pip install "stlm-edge[export]"'
            ) from None
        return MilEvaluator(artifact, threads)
    if name == "onnxruntime":
        from stlm_edge.runtimes.onnxruntime import OnnxRuntime

        return OnnxRuntime(artifact, threads)
    if name.startswith("onnxruntime/"):
        from stlm_edge.runtimes.onnxruntime import OnnxRuntime, provider_of

        return OnnxRuntime(artifact, threads, provider_of(name))
    if name == "litert":
        from stlm_edge.runtimes.litert import LiteRT

        return LiteRT(artifact, threads)
    if name == "openvino":
        from stlm_edge.runtimes.openvino import OpenVINO

        return OpenVINO(artifact, threads)
    if name == "tensorrt":
        from stlm_edge.runtimes.tensorrt import TensorRT

        return TensorRT(artifact, threads)
    raise UsageError(
        f"{artifact}: runtime {name!r} is not in this release, which runs onnxruntime, openvino, litert, coreml and "
        "tensorrt"
    )


def placement_of(runtime: Runtime) -> dict[str, int] | None:
    """Nodes of the graph by what ran them (an execution provider, a delegate); None where the runtime does not tell."""
    tell = getattr(runtime, "placement", None)
    return tell() if tell else None
