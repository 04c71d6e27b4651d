"""Conversion to strongly typed ONNX for TensorRT: the types in the file decide what is computed in which precision.

fp32: the graph as it is. fp16: float16, except operators that need float32 (`float32_operators.py`). int8: the same,
with explicitly quantized linear layers (`tensorrt_int8.py`). TensorRT is not needed, and has never run on these files.
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
    if problems := check(proto):
        raise JobError(f"TensorRT could not run {path.name}: {'; '.join(problems[:3])}; report this")
    save(proto, path, threshold)


def to_fp16(
    proto: onnx.ModelProto, path: Path, threshold: DecisionThreshold, float32: Sequence[Float32Operator]
) -> None:
    """Write the graph in float16 except for the operators in `float32`. Raises JobError like `to_fp32`."""
    to_fp32(in_float16(proto, names_of(float32)), path, threshold)


def to_int8(
    proto: onnx.ModelProto,
    path: Path,
    threshold: DecisionThreshold,
    float32: Sequence[Float32Operator],
    ranges: dict[str, float],
    in_float: Sequence[str] = (),
) -> None:
    """Write the graph with int8 linear layers, and the rest as `to_fp16` does. Raises JobError like `to_fp32`.

    `ranges` are those of `activation_ranges`. Linear layers whose names begin with one of `in_float` stay in float16.
    """
    names = names_of(float32)
    to_fp32(in_float16(quantize(proto, ranges, in_float, names), names), path, threshold)


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
