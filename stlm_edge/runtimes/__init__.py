"""Runtimes: adapters that run an artifact, all with one method. A bundle's manifest names the one it needs."""

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


def open_runtime(name: str, artifact: Path, threads: int | None = None) -> Runtime:
    """Load an artifact into the named runtime, on `threads` threads (None: one per physical core).

    Raises UsageError when this release has no such runtime, it isn't installed, or the artifact doesn't suit it.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads: found {threads}, expected at least 1")
    if name == "onnxruntime":
        from stlm_edge.runtimes.onnxruntime import OnnxRuntime

        return OnnxRuntime(artifact, threads)
    raise UsageError(f"{artifact}: runtime {name!r} is not in this release, which runs onnxruntime")
