"""Run an OpenVINO IR, or an ONNX file with the same inputs and outputs, on the CPU."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stlm_edge.formats.onnx import check_self_contained
from stlm_edge.formats.openvino import GRAPH, check_files
from stlm_edge.runtimes import Runtime, cannot_load, check_tensors, import_package


class OpenVINO(Runtime):
    """A folder of `model.xml` and `model.bin`, or an ONNX file. What is not int8 is computed in float32.

    Raises UsageError when openvino is missing, or the files cannot be loaded or have other inputs or outputs.
    """

    name = "openvino"
    provider = "CPU"
    failures = (RuntimeError,)

    def __init__(self, artifact: str | Path, threads: int | None = None) -> None:
        openvino = import_openvino()
        is_onnx = Path(artifact).suffix == ".onnx"
        (check_self_contained if is_onnx else check_files)(artifact)
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # bf16 on some processors otherwise, which changes the map
            "INFERENCE_NUM_THREADS": threads or 0,  # 0: one per physical core
            "ENABLE_CPU_PINNING": False,
            "ENABLE_MMAP": False,
        }
        self.artifact = artifact
        graph = artifact if is_onnx else Path(artifact) / GRAPH
        try:
            with _signal_stack_kept():
                self.model = openvino.Core().compile_model(str(graph), "CPU", options)
        except RuntimeError as error:
            raise cannot_load(artifact, f"openvino {openvino.__version__}", error) from None
        tensors = []
        for port in [*self.model.inputs, *self.model.outputs]:
            shape = str(port.partial_shape).replace(",", ", ")
            tensors.append(("/".join(sorted(port.get_names())), port.element_type.get_type_name(), shape))
        contract = "image u8 [1, S, S, 3], anomaly_map f32 [1, 1, S, S], score f32 [1]"
        self.size = check_tensors(artifact, tensors, contract)

    def _infer(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        outputs = self.model([np.ascontiguousarray(image)[None]])
        return outputs["anomaly_map"][0, 0], outputs["score"][0]

    def placement(self) -> dict[str, int]:
        """Return the device that runs the whole graph, and the number of its nodes as OpenVINO runs them."""
        (device,) = self.model.get_property("EXECUTION_DEVICES")
        return {device: len(self.model.get_runtime_model().get_ops())}


class _SignalStack(ctypes.Structure):
    """Linux's stack_t."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("bytes", ctypes.c_size_t))


@contextlib.contextmanager
def _signal_stack_kept() -> Iterator[None]:
    """Restore the thread's alternate signal stack after a model was compiled.

    OpenVINO 2026.4 gives every model its own stack, and restores the previous one when the model is deleted. When two
    models are deleted in the order of their creation, that is freed memory: the next signal kills the process.
    """
    libc, before = ctypes.CDLL(None) if sys.platform == "linux" else None, _SignalStack()
    if libc:
        libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        if libc:
            libc.sigaltstack(ctypes.byref(before), None)


def import_openvino() -> Any:
    """Import openvino without its telemetry. Raises UsageError when it is missing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_package("openvino", "pip install openvino")
