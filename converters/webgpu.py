"""ONNX for onnxruntime-web: float16 for WebGPU, and float32 as what WebAssembly's int8 is made from.

Both take a float32 image (values 0 to 255) and give the map alone: WebGPU casts no uint8 and has no TopK, so the page
takes the score from the map. What WebGPU has no kernel for runs on the CPU, with a copy there and back, in silence:
`check` refuses it instead. It has not been run in a browser where this was written.

Sources: onnxruntime's list of WebGPU kernels (core/providers/webgpu/webgpu_execution_provider.cc), whose types are
float, float16, int32 and uint32, and js/web/docs/webgpu-operators.md.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto

from stlm_edge.converters.fp16_islands import Island
from stlm_edge.converters.onnx import OPSET, save
from stlm_edge.converters.quantization import into_tables
from stlm_edge.converters.typed_onnx import cast_first, float_input, typed, without_score
from stlm_edge.errors import JobError
from stlm_edge.threshold import DecisionThreshold

OPERATORS = {
    "Abs",
    "Add",
    "Cast",
    "Clip",
    "Concat",
    "Conv",
    "Div",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Gather",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "LayerNormalization",
    "MatMul",
    "Mul",
    "Neg",
    "Pad",
    "Pow",
    "Reciprocal",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
    "Relu",
    "Reshape",
    "Resize",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tanh",
    "Transpose",
    "Unsqueeze",
}
_TYPES: set[int] = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32}
_ON_THE_CPU = {"Clip", "Expand", "Pad", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Reshape", "Resize"}
_ON_THE_CPU |= {"Slice", "Split", "Squeeze", "Unsqueeze", "Gather"}  # their later inputs are sizes, read beforehand


def to_browser(source: Path, path: Path, decision_threshold: DecisionThreshold) -> onnx.ModelProto:
    """Write the float32 file `source`, which `to_onnx` wrote, with a float32 image and no score; returns the graph.

    Raises JobError when WebGPU could not run it whole.
    """
    proto = float_input(cast_first(without_score(onnx.load(source))))
    _save(proto, path, decision_threshold)
    return proto


def to_fp16(
    proto: onnx.ModelProto, path: Path, decision_threshold: DecisionThreshold, islands: Sequence[Island]
) -> None:
    """Write the graph of `to_browser` in float16 but for `islands`. Raises JobError likewise."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    into_tables(copy.graph)
    typed(copy, {island.node for island in islands})
    _save(copy, path, decision_threshold)


def check(proto: onnx.ModelProto) -> list[str]:
    """What WebGPU would leave to the CPU or refuse, one line each; empty when it runs the whole graph."""
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    problems = [] if opsets == {"": OPSET} else [f"opsets {opsets}, expected only ai.onnx {OPSET}"]
    try:
        graph = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True).graph
    except Exception as error:  # onnx raises several unrelated ones
        return [*problems, f"types and shapes do not follow: {' '.join(str(error).split())[:200]}"]
    return [*problems, *_contract(graph), *_nodes(graph)]


def _contract(graph: onnx.GraphProto) -> Iterator[str]:
    given = [(value.name, value.type.tensor_type.elem_type) for value in graph.input]
    if given != [("image", TensorProto.FLOAT)]:
        yield f"input {_named(given)}, expected image FLOAT: WebGPU casts no uint8"
    given = [(value.name, value.type.tensor_type.elem_type) for value in graph.output]
    if given != [("anomaly_map", TensorProto.FLOAT)]:
        yield f"output {_named(given)}, expected anomaly_map FLOAT alone"
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if any(not dim.HasField("dim_value") or dim.dim_value < 1 for dim in value.type.tensor_type.shape.dim):
            yield f"{value.name}: its shape is not static"


def _nodes(graph: onnx.GraphProto) -> Iterator[str]:
    types = {weight.name: weight.data_type for weight in graph.initializer}
    for value in [*graph.value_info, *graph.input, *graph.output]:
        types[value.name] = value.type.tensor_type.elem_type
    for node in graph.node:
        where = f"{node.op_type} {node.name}"
        if node.domain or node.op_type not in OPERATORS:
            yield f"{where}: WebGPU has no kernel for it"
            continue
        computed = node.input[:1] if node.op_type in _ON_THE_CPU else node.input
        for name in [*computed, *node.output]:
            if name and types.get(name, 0) not in _TYPES:
                yield f"{where}: {_named([(name, types.get(name, 0))])}, a type that WebGPU does not take"


def _named(values: list[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {TensorProto.DataType.Name(kind)}" for name, kind in values) or "none"


def _save(proto: onnx.ModelProto, path: Path, decision_threshold: DecisionThreshold) -> None:
    if problems := check(proto):
        raise JobError(f"WebGPU could not run the whole file: {'; '.join(problems[:3])}; report this")
    save(proto, path, decision_threshold, proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value)
