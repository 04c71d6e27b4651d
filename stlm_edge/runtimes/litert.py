"""Runs a TFLite artifact on the CPU with LiteRT, or with whichever older package of its interpreter is installed."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stlm_edge.errors import JobError, UsageError
from stlm_edge.formats.tflite import check_self_contained
from stlm_edge.verdict import score_of_map

PACKAGES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite")  # the first that imports


class LiteRT:
    """A TFLite file whose input is float32 1×S×S×3, values 0 to 255, and whose output is the map, float32 1×1×S×S.

    The score is taken from the map. `threads` None: one per processor. Raises UsageError when no interpreter is
    installed, it cannot load the file, or the graph is another one.
    """

    name = "litert"
    provider = "XNNPACK"  # what is asked for: the interpreter takes it by itself where it can

    def __init__(self, artifact: str | Path, threads: int | None = None) -> None:
        package = _interpreter_package()
        check_self_contained(artifact)
        try:
            with hushed():
                self.interpreter = package.Interpreter(
                    model_path=str(artifact), num_threads=threads or os.cpu_count() or 1
                )
                self.interpreter.allocate_tensors()
            self.artifact = artifact
            self.size, self._input, self._output = self._check_graph()
        except (ValueError, RuntimeError) as error:
            problem = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{artifact}: {package.__name__} cannot load it ({problem}); export anew or update ai-edge-litert"
            ) from None

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """uint8 RGB S×S×3 in; anomaly map float32 S×S and score out.

        Raises ValueError for another shape or type, JobError when the map isn't finite or the interpreter fails.
        """
        if image.shape != (self.size, self.size, 3) or image.dtype != np.uint8:
            raise ValueError(f"expected uint8 {self.size}×{self.size}×3, found {image.dtype} {image.shape}")
        try:
            self.interpreter.set_tensor(self._input, image[None].astype(np.float32))
            self.interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise JobError(f"{self.artifact}: the interpreter failed ({error})") from None
        anomaly_map = self.interpreter.get_tensor(self._output)[0, 0]
        if not np.isfinite(anomaly_map).all():
            raise JobError(f"{self.artifact}: the anomaly map is not finite (NaN or infinite)")
        return anomaly_map, score_of_map(anomaly_map)

    def placement(self) -> dict[str, int] | None:
        """Nodes that XNNPACK took over, and those that the interpreter's own kernels run; None where none can tell.

        The interpreter lists the graph's nodes and then those that replaced them. What such a one replaced is what
        leads from its inputs to its outputs.
        """
        try:
            listed = self.interpreter._get_ops_details()
        except AttributeError:
            return None
        nodes = [node for node in listed if node["op_name"] != "DELEGATE"]
        maker = {int(output): node for node in nodes for output in node["outputs"]}
        replaced: set[int] = set()
        for delegate in (node for node in listed if node["op_name"] == "DELEGATE"):
            given, wanted = set(map(int, delegate["inputs"])), list(map(int, delegate["outputs"]))
            while wanted:
                tensor = wanted.pop()
                if tensor not in given and tensor in maker and maker[tensor]["index"] not in replaced:
                    replaced.add(maker[tensor]["index"])
                    wanted += map(int, maker[tensor]["inputs"])
        counts = {"XNNPACK": len(replaced), "LiteRT's kernels": len(nodes) - len(replaced)}
        return {name: count for name, count in counts.items() if count}

    def _check_graph(self) -> tuple[int, int, int]:
        inputs, outputs = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        found = [(tensor["dtype"], tensor["shape_signature"].tolist()) for tensor in [*inputs, *outputs]]
        size = found[0][1][1] if len(inputs) == 1 and len(found[0][1]) == 4 else 0
        if size < 1 or found != [(np.float32, [1, size, size, 3]), (np.float32, [1, 1, size, size])]:
            words = ", ".join(f"{dtype.__name__} {shape}" for dtype, shape in found)[:200]
            raise UsageError(
                f"{self.artifact}: another graph: found {words}; expected float32 [1, S, S, 3] in and "
                "float32 [1, 1, S, S] out"
            )
        return size, inputs[0]["index"], outputs[0]["index"]


def _interpreter_package() -> Any:
    problems = []
    for package in PACKAGES:
        try:
            return importlib.import_module(package)
        except ImportError as error:
            problems.append(str(error))
    raise UsageError(f"no TFLite interpreter can be imported ({problems[0]}): pip install ai-edge-litert")


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep what C++ writes to standard error from the user: what matters is raised."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
