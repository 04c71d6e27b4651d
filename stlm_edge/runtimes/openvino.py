"""Runs an OpenVINO IR, or an ONNX file of the same contract, on the CPU."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stlm_edge.errors import JobError, UsageError
from stlm_edge.formats.onnx import check_self_contained
from stlm_edge.formats.openvino import GRAPH, check_files


class OpenVINO:
    """A folder of `model.xml` and `model.bin` whose input is `image`, uint8 1×S×S×3, and whose outputs are
    `anomaly_map`, float32 1×1×S×S, and `score`, float32 of shape 1. What isn't int8 is computed in float32.

    Raises UsageError when openvino is missing, cannot load the files, or the graph is another one.
    """

    name = "openvino"
    provider = "CPU"

    def __init__(self, artifact: str | Path, threads: int | None = None) -> None:
        openvino = import_openvino()
        is_onnx = Path(artifact).suffix == ".onnx"
        (check_self_contained if is_onnx else check_files)(artifact)
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else bf16 where the processor has it: another map on every machine
            "INFERENCE_NUM_THREADS": threads or 0,  # 0: one per physical core
            "ENABLE_CPU_PINNING": False,
            "ENABLE_MMAP": False,
        }
        try:
            with _signal_stack_kept():
                self.model = openvino.Core().compile_model(
                    str(artifact if is_onnx else Path(artifact) / GRAPH), "CPU", options
                )
            self.artifact = artifact
            self.size = self._check_graph()
        except RuntimeError as error:
            problem = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{artifact}: openvino {openvino.__version__} cannot load it ({problem}); "
                "export anew or update openvino"
            ) from None

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """uint8 RGB S×S×3 in; anomaly map float32 S×S and score out.

        Raises ValueError for another shape or type, JobError when an output isn't finite or openvino fails.
        """
        if image.shape != (self.size, self.size, 3) or image.dtype != np.uint8:
            raise ValueError(f"expected uint8 {self.size}×{self.size}×3, found {image.dtype} {image.shape}")
        try:
            answer = self.model([np.ascontiguousarray(image)[None]])
        except RuntimeError as error:
            raise JobError(f"{self.artifact}: openvino failed ({' '.join(str(error).split())[:200]})") from None
        anomaly_map, score = answer["anomaly_map"][0, 0], float(answer["score"][0])
        if not (np.isfinite(anomaly_map).all() and np.isfinite(score)):
            raise JobError(f"{self.artifact}: the anomaly map or score is not finite (NaN or infinite)")
        return anomaly_map, score

    def placement(self) -> dict[str, int]:
        """OpenVINO's device to the nodes of the graph as it runs them; it tells of the whole graph alone."""
        (device,) = self.model.get_property("EXECUTION_DEVICES")
        return {device: len(self.model.get_runtime_model().get_ops())}

    def _check_graph(self) -> int:
        ports = [*self.model.inputs, *self.model.outputs]
        found = [
            (sorted(port.get_names()), port.element_type.get_type_name(), str(port.partial_shape)) for port in ports
        ]
        size = ports[0].shape[1] if ports[0].partial_shape.is_static and len(ports[0].shape) == 4 else 0
        expected = [
            (["image"], "u8", f"[1,{size},{size},3]"),
            (["anomaly_map"], "f32", f"[1,1,{size},{size}]"),
            (["score"], "f32", "[1]"),
        ]
        if size < 1 or found != expected:
            words = ", ".join(f"{'/'.join(names)} {kind} {shape}" for names, kind, shape in found)[:200]
            raise UsageError(
                f"{self.artifact}: another graph: found {words}; expected image u8 [1,S,S,3] in, anomaly_map f32 "
                "[1,1,S,S] and score f32 [1] out"
            )
        return size


class _SignalStack(ctypes.Structure):
    """Linux's stack_t."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("bytes", ctypes.c_size_t))


@contextlib.contextmanager
def _signal_stack_kept() -> Iterator[None]:
    """Set the thread's alternate signal stack back to what it was before a model was compiled.

    OpenVINO 2026.4 gives every model one of its own and, when that model goes, sets the one that it found: after two
    models that go in the order they came, that is freed memory, and the next signal ends the process.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


def import_openvino() -> Any:
    """The package; without its telemetry, by which it would report to its maker. Raises UsageError when missing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise UsageError(f"openvino cannot be imported ({error}): pip install openvino") from None
    return openvino
