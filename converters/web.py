"""Conversion to ONNX for onnxruntime-web: float16 for WebGPU, and float32 as the source of WebAssembly's int8.

Both take a float32 image (values 0 to 255) and return the map alone, as WebGPU has neither a Cast from uint8 nor TopK.
onnxruntime would silently run operators without a WebGPU kernel on the CPU; `check` refuses such graphs. The files have
never run in a browser with WebGPU.
"""

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto

from stlm_edge.converters.float32_operators import Float32Operator, names_of
from stlm_edge.converters.fp16_kernels import KERNELS
from stlm_edge.converters.onnx import save
from stlm_edge.converters.onnx_graph import cast_image_first, drop_score, in_float16, unsupported
from stlm_edge.errors import JobError
from stlm_edge.threshold import DecisionThreshold

# Operators with WebGPU kernels: onnxruntime, core/providers/webgpu/webgpu_execution_provider.cc.
OPERATORS = set(KERNELS) - {"TopK", "QuantizeLinear", "DequantizeLinear"}
TYPES: set[int] = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32}


def to_fp32(source: Path, path: Path, threshold: DecisionThreshold) -> onnx.ModelProto:
    """Write the file of `to_onnx` with a float32 image and no score; return the graph. Raises JobError like `_save`."""
    proto = cast_image_first(drop_score(onnx.load(source)), as_input=True)
    _save(proto, path, threshold)
    return proto


def to_fp16(
    proto: onnx.ModelProto, path: Path, threshold: DecisionThreshold, float32: Sequence[Float32Operator]
) -> None:
    """Write the graph of `to_fp32` in float16 except for the operators in `float32`. Raises JobError like `_save`."""
    _save(in_float16(proto, names_of(float32)), path, threshold)


def check(proto: onnx.ModelProto) -> list[str]:
    """Return what WebGPU would refuse or leave to the CPU, one line each."""
    return unsupported(proto, OPERATORS, TYPES)


def _save(proto: onnx.ModelProto, path: Path, threshold: DecisionThreshold) -> None:
    """Write the graph. Raises JobError if WebGPU could not run all of it."""
    if problems := check(proto):
        raise JobError(f"WebGPU could not run all of {path.name}: {'; '.join(problems[:3])}; report this")
    save(proto, path, threshold)
