"""Run an ONNX artifact with onnxruntime, on the CPU unless another execution provider is requested."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from stlm_edge.errors import UsageError
from stlm_edge.formats.onnx import check_self_contained
from stlm_edge.runtimes import Runtime, cannot_load, check_tensors, import_package

PROVIDER = "CPUExecutionProvider"
_SUFFIX = "ExecutionProvider"
_REMOTE = {"AzureExecutionProvider"}  # runs nothing on this machine
_MAP = "anomaly_map tensor(float) [1, 1, S, S]"
_IMAGES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


class OnnxRuntime(Runtime):
    """An ONNX file, whose graph may leave the score to be computed from the map.

    `provider` is the execution provider, in short as "cuda"; nodes that it does not support run on the CPU. Raises
    UsageError when onnxruntime or the provider is missing, or the file cannot be loaded or has other inputs or outputs.
    """

    name = "onnxruntime"
    failures = (Exception,)  # onnxruntime's exceptions have no common base

    def __init__(self, artifact: str | Path, threads: int | None = None, provider: str = "cpu") -> None:
        onnxruntime = import_package("onnxruntime", "pip install onnxruntime")
        check_self_contained(artifact)
        package = f"onnxruntime {onnxruntime.__version__}"
        available = {name.removesuffix(_SUFFIX).lower(): name for name in onnxruntime.get_available_providers()}
        if provider not in available:
            raise UsageError(f"onnxruntime/{provider}: {package} on this machine has {', '.join(available)}")
        self.artifact = artifact
        self.threads = threads
        self.provider = available[provider]
        try:
            self.session = self._session()
        except Exception as error:  # as above
            raise cannot_load(artifact, package, error) from None
        if self.provider not in (loaded := self.session.get_providers()):  # onnxruntime silently continues without it
            raise UsageError(
                f"{self.provider}: {package} cannot load it, only {', '.join(loaded)}; install the libraries and the "
                "package of onnxruntime that it needs"
            )
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        tensors = [(node.name, node.type, node.shape) for node in [*inputs, *outputs]]
        score = ", score tensor(float) [1]"
        contracts = [f"image {kind} [1, S, S, 3], {_MAP}{optional}" for kind in _IMAGES for optional in (score, "")]
        self.size = check_tensors(artifact, tensors, *contracts)
        self._dtype = _IMAGES[inputs[0].type]

    def _infer(self, image: np.ndarray) -> tuple[np.ndarray, float | None]:
        outputs = self.session.run(None, self._inputs(image))
        return outputs[0][0, 0], outputs[1][0] if len(outputs) == 2 else None

    def placement(self) -> dict[str, int]:
        """Return the number of nodes that each execution provider ran, in a profiled session of its own."""
        events = self.profile(np.zeros((self.size, self.size, 3), np.uint8), 1)
        arguments = [event["args"] for event in events]
        providers = {each["node_index"]: each["provider"] for each in arguments if "provider" in each}
        return dict(Counter(providers.values()))

    def profile(self, image: np.ndarray, runs: int) -> list[dict[str, Any]]:
        """Return the events of onnxruntime's profiler for several runs on an image, uint8 S×S×3, in a new session."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._session(profile=f"{folder}/profile")
            for _ in range(runs):
                session.run(None, self._inputs(image))
            return json.loads(Path(session.end_profiling()).read_text("utf-8"))

    def _inputs(self, image: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": image[None].astype(self._dtype, copy=False)}

    def _session(self, profile: str | None = None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = self.threads or 0  # 0: one per physical core
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors are raised as exceptions
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        providers = [*dict.fromkeys((self.provider, PROVIDER))]
        return onnxruntime.InferenceSession(str(self.artifact), options, providers=providers)


def runtime_names() -> list[str]:
    """Return onnxruntime, for the CPU, and a name such as onnxruntime/cuda for each other provider of this machine."""
    import onnxruntime

    others = [name for name in onnxruntime.get_available_providers() if name not in _REMOTE | {PROVIDER}]
    return ["onnxruntime", *(f"onnxruntime/{name.removesuffix(_SUFFIX).lower()}" for name in others)]
