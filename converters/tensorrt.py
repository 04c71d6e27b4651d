"""Conversion to strongly typed ONNX for TensorRT: the types in the file decide what is computed in which precision.

fp32: the graph as it is. fp16: float16, except operators that need float32 (`float32_operators.py`). int8: the same,
with explicitly quantized linear layers (`tensorrt_int8.py`). Each file has opset 20, static shapes and a uint8 image,
which is cast first.

TensorRT is not needed, and has never run on these files. Its float16 matrix products may accumulate in no more than
float16's range (developer guide, "Control of Computational Precision"), so the simulation accumulates in float16. In
trained networks this changes the map a tenth as much as rounding FA's tensors does; therefore FA's layers are the
first to stay in float32 where the gate does not hold.
"""

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto

from stlm_edge.converters.float32_operators import Float32Operator, names_of
from stlm_edge.converters.fp16_kernels import KERNELS
from stlm_edge.converters.onnx import save
from stlm_edge.converters.onnx_graph import cast_image_first, in_float16, unsupported, users_of
from stlm_edge.converters.tensorrt_int8 import quantize
from stlm_edge.errors import JobError
from stlm_edge.threshold import DecisionThreshold

TYPES: set[int] = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64, TensorProto.INT8}


def read(source: Path) -> onnx.ModelProto:
    """Return the graph of the float32 file of `to_onnx`, with its image cast first."""
    return cast_image_first(onnx.load(source))


def to_fp32(proto: onnx.ModelProto, path: Path, threshold: DecisionThreshold) -> None:
    """Write the graph as it is. Raises JobError if TensorRT could not run it."""
    _save(proto, path, threshold)


def to_fp16(
    proto: onnx.ModelProto, path: Path, threshold: DecisionThreshold, float32: Sequence[Float32Operator]
) -> None:
    """Write the graph in float16 except for the operators in `float32`. Raises JobError like `to_fp32`."""
    _save(in_float16(proto, names_of(float32)), path, threshold)


def to_int8(
    proto: onnx.ModelProto,
    path: Path,
    threshold: DecisionThreshold,
    float32: Sequence[Float32Operator],
    ranges: dict[str, float],
    in_float: Sequence[str] = (),
) -> None:
    """Write the graph with int8 linear layers, and the rest as `to_fp16` does.

    Args:
        proto: The graph of `read`.
        path: The file to write.
        threshold: The decision threshold.
        float32: Operators that are computed in float32.
        ranges: The activations' ranges from `tensorrt_int8.activation_ranges`.
        in_float: Linear layers whose names begin with one of these stay in float16.

    Raises:
        JobError: TensorRT could not run the graph.
    """
    names = names_of(float32)
    _save(in_float16(quantize(proto, ranges, in_float, names), names), path, threshold)


def check(proto: onnx.ModelProto) -> list[str]:
    """Return what TensorRT would refuse, one line each, as far as another exporter could write it."""
    users = users_of(proto.graph)
    problems = unsupported(proto, set(KERNELS), TYPES)
    for node in proto.graph.node:
        where = f"{node.op_type} {node.name}"
        if node.op_type == "LayerNormalization" and any(node.output[1:]):
            problems.append(f"{where}: has more outputs than the normalised values")
        if node.op_type == "DequantizeLinear":
            following = {user.op_type for name in node.output for user in users.get(name, [])}
            if not following <= {"Gemm", "MatMul"}:
                problems.append(f"{where}: feeds {', '.join(sorted(following))}, expected Gemm or MatMul")
    return problems


def _save(proto: onnx.ModelProto, path: Path, threshold: DecisionThreshold) -> None:
    if problems := check(proto):
        raise JobError(f"TensorRT could not run {path.name}: {'; '.join(problems[:3])}; report this")
    save(proto, path, threshold)
