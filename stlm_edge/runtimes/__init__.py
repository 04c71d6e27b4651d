"""Runtimes: adapters that run an artifact, all with one method. A bundle's manifest names the one it needs."""

import abc
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stlm_edge.errors import JobError, UsageError
from stlm_edge.verdict import score_of_map

_ADAPTERS = {
    "coreml": "CoreML",
    "litert": "LiteRT",
    "mil-evaluator": "MilEvaluator",
    "onnxruntime": "OnnxRuntime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
}


class Runtime(abc.ABC):
    """Something that runs the network on one image."""

    name: str  # as in manifests
    artifact: Any  # the file or folder that it runs
    size: int  # side S of the square input, pixels
    provider: str | None = None  # the execution provider or delegate, if there is a choice
    failures: ClassVar[tuple[type[Exception], ...]] = ()  # what `_infer` raises when the runtime fails

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the anomaly map, float32 S×S, and the score of an RGB image, uint8 S×S×3.

        Raises JobError when the runtime fails, or its output is not finite.
        """
        if image.shape != (self.size, self.size, 3) or image.dtype != np.uint8:
            raise ValueError(f"expected uint8 {self.size}×{self.size}×3, found {image.dtype} {image.shape}")
        try:
            anomaly_map, score = self._infer(image)
        except self.failures as error:
            raise JobError(f"{self.artifact}: {self.name} failed ({one_line(error)})") from None
        score = score_of_map(anomaly_map) if score is None else float(score)
        if not (np.isfinite(anomaly_map).all() and np.isfinite(score)):
            raise JobError(f"{self.artifact}: the anomaly map or score is not finite (NaN or infinite)")
        return anomaly_map, score

    def placement(self) -> dict[str, int] | None:
        """Return the number of graph nodes run by each execution provider or delegate, None where it is unknown."""
        return None

    @abc.abstractmethod
    def _infer(self, image: np.ndarray) -> tuple[np.ndarray, float | None]:
        """Return the map and the score, None for a graph that does not compute it."""


def name_here(name: str) -> str:
    """Return what runs the named runtime's artifacts here, where there may be no Core ML and is no browser."""
    if name == "coreml" and sys.platform != "darwin":
        return "mil-evaluator"
    return "onnxruntime" if name == "onnxruntime-web" else name


def open_runtime(name: str, artifact: Path, threads: int | None = None) -> Runtime:
    """Load an artifact into the named runtime; "onnxruntime/cuda" names an execution provider, too.

    `threads` None is one per physical core. Raises UsageError when the runtime is unknown or not installed, or the
    artifact does not suit it.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads: found {threads}, expected at least 1")
    name, _, provider = name_here(name).partition("/")
    if name not in _ADAPTERS:
        raise UsageError(f"{artifact}: unknown runtime {name!r}, expected one of {', '.join(_ADAPTERS)}")
    module = importlib.import_module(f"stlm_edge.runtimes.{name.replace('-', '_')}")
    adapter = getattr(module, _ADAPTERS[name])
    return adapter(artifact, threads, provider) if provider else adapter(artifact, threads)


def check_tensors(artifact: str | Path, tensors: Sequence[tuple[str, str, Any]], *contracts: str) -> int:
    """Check the name, type and shape of a graph's inputs and outputs, and return the side S of its input in pixels.

    Raises UsageError if they match none of the contracts, such as "image uint8 [1, S, S, 3], score float32 [1]".
    """
    found = ", ".join(f"{name} {kind} {shape}" for name, kind, shape in tensors)
    side = re.search(r"\[1, ([1-9]\d*), \1, 3\]", found)
    if not side or found not in (contract.replace("S", side[1]) for contract in contracts):
        raise UsageError(f"{artifact}: unexpected inputs or outputs: found {found[:200]}; expected {contracts[0]}")
    return int(side[1])


def import_package(name: str, install: str) -> Any:
    """Import a runtime's package. Raises UsageError when it is missing, with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} cannot be imported ({error}): {install}") from None


def cannot_load(artifact: str | Path, package: str, error: Exception) -> UsageError:
    """Return the error for an artifact that a package of this name and version refuses."""
    return UsageError(f"{artifact}: {package} cannot load it ({one_line(error)}); export again or update {package}")


def one_line(error: Exception) -> str:
    """Return an error's message on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]
