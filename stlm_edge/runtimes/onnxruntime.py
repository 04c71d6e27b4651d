"""Runs an ONNX artifact with onnxruntime, on the CPU unless another execution provider is asked for."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from stlm_edge.errors import JobError, UsageError
from stlm_edge.formats.onnx import check_self_contained
from stlm_edge.verdict import score_of_map

PROVIDER = "CPUExecutionProvider"
_SUFFIX = "ExecutionProvider"
_ELSEWHERE = {"AzureExecutionProvider"}  # asks a service, runs nothing here

TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}  # of an image


class OnnxRuntime:
    """An ONNX file whose input is `image`, 1×S×S×3, uint8 or float32 of the same values, and whose outputs are
    `anomaly_map`, float32 1×1×S×S, and, where the graph computes it, `score`, float32 of shape 1.

    `provider`: the execution provider that is asked for; nodes that it doesn't take run on the CPU, as `placement`
    tells. Raises UsageError when onnxruntime or the provider is missing, it cannot load the file, or the graph is
    another one.
    """

    name = "onnxruntime"

    def __init__(self, artifact: str | Path, threads: int | None = None, provider: str = PROVIDER) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UsageError(f"onnxruntime cannot be imported ({error}): pip install onnxruntime") from None
        check_self_contained(artifact)
        self.threads = threads
        self.provider = provider
        try:
            self.session = self._session(artifact)
        except Exception as error:  # onnxruntime's own exceptions have no common base
            problem = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{artifact}: onnxruntime {onnxruntime.__version__} cannot load it ({problem}); "
                "export anew or update onnxruntime"
            ) from None
        if provider not in (ready := self.session.get_providers()):  # onnxruntime goes on without it, in silence
            raise UsageError(
                f"{provider}: onnxruntime {onnxruntime.__version__} can't use it here, it has {', '.join(ready)}; "
                "install the package of onnxruntime, and the libraries, that it needs"
            )
        self.artifact = artifact
        self.size, self._dtype, self._outputs = self._check_graph()

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """uint8 RGB S×S×3 in; anomaly map float32 S×S and score out.

        Raises ValueError for another shape or type, JobError when an output isn't finite or onnxruntime fails.
        """
        if image.shape != (self.size, self.size, 3) or image.dtype != np.uint8:
            raise ValueError(f"expected uint8 {self.size}×{self.size}×3, found {image.dtype} {image.shape}")
        try:
            answer = self.session.run(self._outputs, {"image": image[None].astype(self._dtype, copy=False)})
        except Exception as error:  # as above
            raise JobError(f"{self.artifact}: onnxruntime failed ({error})") from None
        anomaly_map = answer[0][0, 0]
        score = float(answer[1][0]) if len(answer) == 2 else score_of_map(anomaly_map)
        if not (np.isfinite(anomaly_map).all() and np.isfinite(score)):
            raise JobError(f"{self.artifact}: the anomaly map or score is not finite (NaN or infinite)")
        return anomaly_map, score

    def placement(self) -> dict[str, int]:
        """Execution provider to the number of nodes that it ran, in one more session, which is profiled."""
        events = self.profile(np.zeros((self.size, self.size, 3), np.uint8), 1)
        ran = {
            event["args"]["node_index"]: event["args"]["provider"] for event in events if "provider" in event["args"]
        }
        return dict(Counter(ran.values()))

    def profile(self, image: np.ndarray, runs: int) -> list[dict[str, Any]]:
        """What onnxruntime's profiler says of that many runs on an image, uint8 S×S×3, in one more session."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._session(self.artifact, profile=f"{folder}/profile")
            for _ in range(runs):
                session.run(self._outputs, {"image": image[None].astype(self._dtype, copy=False)})
            return json.loads(Path(session.end_profiling()).read_text("utf-8"))

    def _session(self, artifact: str | Path, profile: str | None = None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = self.threads or 0  # 0: one per physical core
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what matters is raised
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        return onnxruntime.InferenceSession(
            str(artifact), options, providers=[*dict.fromkeys((self.provider, PROVIDER))]
        )

    def _check_graph(self) -> tuple[int, type, list[str]]:
        inputs = [(node.name, node.type, node.shape) for node in self.session.get_inputs()]
        shape = inputs[0][2] if inputs else []
        size = shape[1] if len(shape) == 4 and isinstance(shape[1], int) else 0
        outputs = [(node.name, node.type, node.shape) for node in self.session.get_outputs()]
        expected = [("anomaly_map", "tensor(float)", [1, 1, size, size]), ("score", "tensor(float)", [1])]
        kind = inputs[0][1] if inputs else ""
        if (
            inputs != [("image", kind, [1, size, size, 3])]
            or kind not in TYPES
            or outputs not in (expected, expected[:1])
        ):
            found = ", ".join(f"{name} {kind} {shape}" for name, kind, shape in inputs + outputs)[:200]
            raise UsageError(
                f"{self.artifact}: another graph: found {found}; expected image tensor(uint8) or "
                "tensor(float) [1, S, S, 3], anomaly_map tensor(float) [1, 1, S, S] and perhaps score tensor(float) [1]"
            )
        return size, TYPES[kind], [name for name, _, _ in outputs]


def runtime_names() -> list[str]:
    """What the bench calls each execution provider that is installed here: onnxruntime for the CPU's, else
    onnxruntime/cuda, onnxruntime/tensorrt, …; those that run nothing on this machine are left out."""
    import onnxruntime

    here = [name for name in onnxruntime.get_available_providers() if name not in _ELSEWHERE and name != PROVIDER]
    return ["onnxruntime", *(f"onnxruntime/{name.removesuffix(_SUFFIX).lower()}" for name in here)]


def provider_of(name: str) -> str:
    """The execution provider that such a name means. Raises UsageError for one that onnxruntime doesn't have here."""
    import onnxruntime

    short = name.partition("/")[2] or "cpu"
    known = {provider.removesuffix(_SUFFIX).lower(): provider for provider in onnxruntime.get_available_providers()}
    if short not in known:
        raise UsageError(f"{name}: onnxruntime {onnxruntime.__version__} here has {', '.join(known)}")
    return known[short]
