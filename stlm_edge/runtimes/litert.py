"""Run a TFLite artifact on the CPU with LiteRT, or with an older package of its interpreter if that is installed."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stlm_edge.errors import UsageError
from stlm_edge.formats.tflite import check_self_contained
from stlm_edge.runtimes import Runtime, cannot_load, check_tensors

PACKAGES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite")  # the first that imports


class LiteRT(Runtime):
    """A TFLite file, which computes the map only; its input takes the values 0 to 255 as float32.

    Raises UsageError when no interpreter is installed, or the file cannot be loaded or has other inputs or outputs.
    """

    name = "litert"
    provider = "XNNPACK"  # the delegate that the interpreter uses by itself where it can
    failures = (ValueError, RuntimeError)

    def __init__(self, artifact: str | Path, threads: int | None = None) -> None:
        package = _interpreter_package()
        check_self_contained(artifact)
        self.artifact = artifact
        try:
            with silenced_stderr():
                self.interpreter = package.Interpreter(str(artifact), num_threads=threads or os.cpu_count() or 1)
                self.interpreter.allocate_tensors()
            inputs, outputs = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        except (ValueError, RuntimeError) as error:
            raise cannot_load(artifact, package.__name__, error) from None
        tensors = [
            (role, tensor["dtype"].__name__, tensor["shape_signature"].tolist())
            for role, details in (("input", inputs), ("output", outputs))
            for tensor in details
        ]
        self.size = check_tensors(artifact, tensors, "input float32 [1, S, S, 3], output float32 [1, 1, S, S]")
        self._input, self._output = inputs[0]["index"], outputs[0]["index"]

    def _infer(self, image: np.ndarray) -> tuple[np.ndarray, None]:
        self.interpreter.set_tensor(self._input, image[None].astype(np.float32))
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self._output)[0, 0], None

    def placement(self) -> dict[str, int] | None:
        """Return the number of nodes run by XNNPACK and by the interpreter's own kernels, None where it is unknown.

        The interpreter lists the graph's nodes and the delegates, each of which replaced those between its inputs and
        its outputs.
        """
        try:
            listed = self.interpreter._get_ops_details()
        except AttributeError:
            return None
        nodes = [node for node in listed if node["op_name"] != "DELEGATE"]
        producer = {int(output): node for node in nodes for output in node["outputs"]}
        replaced: set[int] = set()
        for delegate in (node for node in listed if node["op_name"] == "DELEGATE"):
            inputs, pending = set(map(int, delegate["inputs"])), list(map(int, delegate["outputs"]))
            while pending:
                tensor = pending.pop()
                if tensor not in inputs and tensor in producer and producer[tensor]["index"] not in replaced:
                    replaced.add(producer[tensor]["index"])
                    pending += map(int, producer[tensor]["inputs"])
        counts = {"XNNPACK": len(replaced), "LiteRT's kernels": len(nodes) - len(replaced)}
        return {name: count for name, count in counts.items() if count}


def _interpreter_package() -> Any:
    problems = []
    for package in PACKAGES:
        try:
            return importlib.import_module(package)
        except ImportError as error:
            problems.append(str(error))
    raise UsageError(f"no TFLite interpreter can be imported ({problems[0]}): pip install ai-edge-litert")


@contextlib.contextmanager
def silenced_stderr() -> Iterator[None]:
    """Discard what C++ code writes to standard error; errors are raised as exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
