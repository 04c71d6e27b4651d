"""What TensorRT from 10.3 on accepts of an ONNX file, checked without TensorRT.

Sources: onnx-tensorrt's operator table (docs/operators.md at 10.3 to 10.15), TensorRT's developer guide on strongly
typed networks and on explicit quantization. The rules are narrower than the parser where this package needs no more.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

OPSET = 20  # the highest that TensorRT 10.3 reads
LARGEST_K = 3839
MOST_DIMENSIONS = 8

_FLOAT: set[int] = {TensorProto.FLOAT, TensorProto.FLOAT16}
_INTEGER: set[int] = {TensorProto.INT32, TensorProto.INT64}
_ANY = _FLOAT | _INTEGER | {TensorProto.BOOL}
OPERATORS: dict[str, set[int]] = {  # and the types that their first input may have
    "Abs": _FLOAT,
    "Add": _FLOAT | _INTEGER,
    "Cast": _ANY | {TensorProto.UINT8},
    "Clip": _FLOAT,
    "Concat": _ANY,
    "Conv": _FLOAT,
    "DequantizeLinear": {TensorProto.INT8},
    "Div": _FLOAT | _INTEGER,
    "Erf": _FLOAT,
    "Exp": _FLOAT,
    "Expand": _ANY,
    "Flatten": _ANY,
    "Gather": _ANY,
    "Gelu": _FLOAT,
    "Gemm": _FLOAT,
    "GlobalAveragePool": _FLOAT,
    "Identity": _ANY,
    "LayerNormalization": _FLOAT,
    "MatMul": _FLOAT,
    "Max": _FLOAT | _INTEGER,
    "Mul": _FLOAT | _INTEGER,
    "Neg": _FLOAT | _INTEGER,
    "Pad": _FLOAT | _INTEGER,
    "Pow": _FLOAT,
    "QuantizeLinear": _FLOAT,
    "Reciprocal": _FLOAT,
    "ReduceL2": _FLOAT,
    "ReduceMean": _FLOAT,
    "ReduceSum": _FLOAT,
    "ReduceSumSquare": _FLOAT,
    "Relu": _FLOAT,
    "Reshape": _ANY,
    "Resize": _FLOAT,
    "Sigmoid": _FLOAT,
    "Slice": _ANY,
    "Softmax": _FLOAT,
    "Split": _ANY,
    "Sqrt": _FLOAT,
    "Squeeze": _ANY,
    "Sub": _FLOAT | _INTEGER,
    "Tanh": _FLOAT,
    "TopK": _FLOAT,
    "Transpose": _ANY,
    "Unsqueeze": _ANY,
}
_CONSTANT = {  # inputs, by position, that must be initializers
    "Expand": [1],
    "Pad": [1, 2, 3],
    "ReduceL2": [1],
    "ReduceMean": [1],
    "ReduceSum": [1],
    "ReduceSumSquare": [1],
    "Reshape": [1],
    "Resize": [2, 3],
    "Slice": [1, 2, 3, 4],
    "Split": [1],
    "Squeeze": [1],
    "TopK": [1],
    "Unsqueeze": [1],
}
_RESIZE = {"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"}
_QUANTIZED = {"Conv", "Gemm", "MatMul", "Add"}  # what may be fed dequantized values


class _Graph:
    """A graph and where each of its tensors comes from and goes to."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.graph = proto.graph
        self.weights = {weight.name: weight for weight in proto.graph.initializer}
        self.made = {name: node for node in proto.graph.node for name in node.output}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.types = {name: weight.data_type for name, weight in self.weights.items()}
        for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]:
            self.types[value.name] = value.type.tensor_type.elem_type

    def maker(self, name: str) -> str:
        node = self.made.get(name)
        return node.op_type if node is not None else "initializer" if name in self.weights else "input"


def check(proto: onnx.ModelProto) -> list[str]:
    """What TensorRT would refuse or compute otherwise, one line each; empty when nothing is found."""
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    problems = [] if opsets == {"": OPSET} else [f"opsets {opsets}, expected only ai.onnx {OPSET}"]
    inferred = onnx.ModelProto()
    inferred.CopyFrom(proto)
    del inferred.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(inferred, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # onnx raises several unrelated ones
        problems.append(f"types and shapes do not follow: {' '.join(str(error).split())[:200]}")
        inferred = onnx.shape_inference.infer_shapes(inferred)  # as far as they do
    view = _Graph(inferred)
    problems += _whole_graph(view)
    for node in view.graph.node:
        where = f"{node.op_type} {node.name}"
        if node.domain or node.op_type not in OPERATORS:
            problems.append(f"{where}: TensorRT has no such operator")
            continue
        problems += [f"{where}: {problem}" for rule in _RULES for problem in rule(node, view)]
    return problems


def _whole_graph(view: _Graph) -> Iterator[str]:
    for value in [*view.graph.input, *view.graph.output, *view.graph.value_info]:
        dims = value.type.tensor_type.shape.dim
        if any(not dim.HasField("dim_value") or dim.dim_value < 1 for dim in dims):
            yield f"{value.name}: its shape is not static"
        if len(dims) > MOST_DIMENSIONS:
            yield f"{value.name}: {len(dims)} dimensions, at most {MOST_DIMENSIONS}"
    for name, weight in view.weights.items():
        if weight.data_location == TensorProto.EXTERNAL:
            yield f"{name}: kept in another file"
        elif weight.data_type in _FLOAT and not np.isfinite(numpy_helper.to_array(weight)).all():
            yield f"{name}: holds values that are not finite"
        elif weight.data_type not in _ANY | {TensorProto.INT8}:
            yield f"{name}: type {_named(weight.data_type)}"
    for value in view.graph.output:
        if value.type.tensor_type.elem_type != TensorProto.FLOAT:
            yield f"output {value.name}: {_named(value.type.tensor_type.elem_type)}, expected FLOAT"


def _first_type(node: onnx.NodeProto, view: _Graph) -> Iterator[str]:
    kind = view.types.get(node.input[0], 0)
    if kind == TensorProto.UINT8 and not (node.op_type == "Cast" and view.maker(node.input[0]) == "input"):
        yield "takes UINT8, which TensorRT only casts, and only as the network's input"
    elif kind and kind not in OPERATORS[node.op_type]:  # 0: what has no type was reported with the types
        yield f"takes {_named(kind)}"
    if node.op_type == "Cast" and _attribute(node, "to", 0) not in _ANY:
        yield f"casts to {_named(_attribute(node, 'to', 0))}"
    if kind == TensorProto.UINT8 and node.op_type == "Cast" and _attribute(node, "to", 0) not in _FLOAT:
        yield "casts UINT8 to something else than FLOAT or FLOAT16"


def _one_type(node: onnx.NodeProto, view: _Graph) -> Iterator[str]:
    kinds = {view.types.get(name, 0) for name in node.input if name}
    if node.op_type != "Cast" and len(kinds & _FLOAT) > 1:
        yield "operands of FLOAT and FLOAT16: a strongly typed network casts by itself nowhere"


def _constants(node: onnx.NodeProto, view: _Graph) -> Iterator[str]:
    for index in _CONSTANT.get(node.op_type, []):
        if index < len(node.input) and node.input[index] and node.input[index] not in view.weights:
            yield f"input {index} is computed, expected an initializer"


def _convolution(node: onnx.NodeProto, view: _Graph) -> Iterator[str]:
    if node.op_type == "Conv":
        weight = view.made.get(node.input[1])
        name = weight.input[0] if weight is not None and weight.op_type == "DequantizeLinear" else node.input[1]
        if name not in view.weights:
            yield "its weight is computed, expected an initializer"
        elif len(view.weights[name].dims) not in (4, 5):
            yield f"{len(view.weights[name].dims) - 2} spatial dimensions, expected 2 or 3"


def _outputs(node: onnx.NodeProto, view: _Graph) -> Iterator[str]:
    if node.op_type == "LayerNormalization" and any(node.output[1:]):
        yield "gives mean or deviation too, TensorRT has the first output only"


def _topk(node: onnx.NodeProto, view: _Graph) -> Iterator[str]:
    if node.op_type == "TopK":
        if _attribute(node, "sorted", 1) != 1:
            yield "sorted is 0, expected 1"
        if node.input[1] in view.weights:
            k = int(numpy_helper.to_array(view.weights[node.input[1]]).item())
            if not 1 <= k <= LARGEST_K:
                yield f"K is {k}, expected 1 to {LARGEST_K}"


def _resize(node: onnx.NodeProto, view: _Graph) -> Iterator[str]:
    if node.op_type == "Resize":
        mode = _attribute(node, "mode", b"nearest").decode()
        transformation = _attribute(node, "coordinate_transformation_mode", b"half_pixel").decode()
        if mode not in ("nearest", "linear"):
            yield f"mode {mode}, expected nearest or linear"
        if _attribute(node, "antialias", 0):
            yield "antialias, which TensorRT lacks"
        if transformation not in _RESIZE:
            yield f"coordinates by {transformation}"


def _padding(node: onnx.NodeProto, view: _Graph) -> Iterator[str]:
    if node.op_type == "Pad" and _attribute(node, "mode", b"constant") not in (b"constant", b"reflect", b"edge"):
        yield "a mode that TensorRT lacks"


def _quantization(node: onnx.NodeProto, view: _Graph) -> Iterator[str]:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    if len(node.input) < 3 or node.input[2] not in view.weights:
        yield "no constant zero point, expected int8 zeros"
    else:
        zero = view.weights[node.input[2]]
        if zero.data_type != TensorProto.INT8:
            yield f"zero point of type {_named(zero.data_type)}, expected INT8"
        if numpy_helper.to_array(zero).any():
            yield "zero point other than 0"
    if node.input[1] not in view.weights:
        yield "its scale is computed, expected an initializer"
        return
    scale = numpy_helper.to_array(view.weights[node.input[1]])
    if not (scale > 0).all():
        yield "a scale that is not positive"
    if scale.size > 1 and node.input[0] not in view.weights:
        yield "a scale per channel for activations, expected one per tensor"
    if node.op_type == "QuantizeLinear":
        if any(user.op_type != "DequantizeLinear" for user in view.users.get(node.output[0], [])):
            yield "its result goes elsewhere than to DequantizeLinear"
    else:
        if view.maker(node.input[0]) not in ("QuantizeLinear", "initializer"):
            yield "takes something else than a QuantizeLinear's result or an int8 weight"
        for user in view.users.get(node.output[0], []):
            if user.op_type not in _QUANTIZED:
                yield f"feeds {user.op_type} {user.name}, expected {', '.join(sorted(_QUANTIZED))}"


def _quantized(node: onnx.NodeProto, view: _Graph) -> Iterator[str]:
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        dequantized = [view.maker(name) == "DequantizeLinear" for name in node.input if name]
        if any(dequantized[:2]) and not all(dequantized[:2]):
            yield "one of its two operands is quantized, expected both or none"
        if any(dequantized[2:]):
            yield "its bias is quantized, expected float"


_RULES: tuple[Callable[[onnx.NodeProto, _Graph], Iterator[str]], ...] = (
    _first_type,
    _one_type,
    _constants,
    _convolution,
    _outputs,
    _topk,
    _resize,
    _padding,
    _quantization,
    _quantized,
)


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((onnx.helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def _named(kind: int) -> str:
    return TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else f"type {kind}"
