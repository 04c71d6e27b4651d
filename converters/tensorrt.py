"""Strongly typed ONNX for TensorRT: the file's types, and no builder's flag, say what is computed in which precision.

fp16: float16 but for islands of float32. By kind these are LayerNorm and the channel norms, softmax, the reductions,
the normalised products that FA is fed, the picture's normalisation, and the map and score; beside them whatever
overflows, or loses more than `LARGEST_ERROR`, on calibration pictures in `fp16_simulation.py`. `Island` says which and
why. int8: the same, and its linear layers quantized explicitly: int8, symmetric, zero point 0, constant scales, one per
tensor for activations and one per output channel for weights, no bias quantized. fp32: the graph as it is.

All: opset 20, static shapes, uint8 cast before all else, the threshold in the metadata, `tensorrt_rules.check` passed.
TensorRT itself is not needed, and has not been run on these files where this was written.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from stlm_edge.converters.fp16_simulation import Attributes, Fp16Simulation, compute
from stlm_edge.converters.onnx import save
from stlm_edge.converters.tensorrt_rules import check
from stlm_edge.errors import JobError
from stlm_edge.manifest import Calibration

LARGEST_ERROR = 0.01  # of one operator alone, ‖in fp16 − in fp32‖ / ‖in fp32‖
SMALLEST_SCALE = 2.0**-14  # float16's smallest normal number

IN_FLOAT = (  # linear layers that int8 leaves in float16: what the export tries in turn
    r"\.layers\.3\.blocks\.\d+\.mlp\.fc2|mask_decoder",
    r"\.mlp\.fc2|\.layers\.3\.|mask_decoder",
)
IN_FP32 = (  # weights whose operators stay in float32, likewise
    r"$^",
    r"^fa\.|\.neck\.",
    r"^fa\.|\.neck\.|\.patch_embed\.|\.layers\.0\.|\.downsample\.",
)

_BY_KIND = {
    "LayerNormalization": "sum of squares in LayerNorm",
    "Softmax": "sum of exponentials in softmax",
    "Pow": "squares in a channel norm",
    "ReduceL2": "sum of squares in a channel norm",
    "ReduceMean": "sum in a mean",
    "ReduceSum": "sum",
    "ReduceSumSquare": "sum of squares in a channel norm",
    "GlobalAveragePool": "sum in a mean",
    "Reciprocal": "root of a channel norm",
    "Sqrt": "root of a channel norm",
    "Sigmoid": "the anomaly map is float32",
    "Resize": "the anomaly map is float32",
    "TopK": "the score is float32",
}
_CLOSED = {"LayerNormalization", "Softmax", "Div", "Neg"}  # what follows these is of moderate size again
_ELEMENTWISE = {"Abs", "Add", "Clip", "Concat", "Div", "Expand", "Max", "Mul", "Neg", "Sub"}
_MOVES = {"Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


@dataclass(frozen=True)
class Island:
    """An operator that stays in float32: why, the largest value at it, and what it would lose in float16.

    `error` is ‖in fp16 − in fp32‖ / ‖in fp32‖ on the calibration picture that showed most, infinite where it overflows.
    """

    node: str
    operator: str
    reason: str
    largest: float = 0.0
    error: float = 0.0


def to_tensorrt(
    source: Path,
    path: Path,
    calibration: Calibration,
    precision: str,
    pictures: Sequence[np.ndarray],
    *,
    in_fp32: str = IN_FP32[0],
    in_float: str = IN_FLOAT[0],
) -> list[Island]:
    """Type the float32 ONNX file `source`, which `to_onnx` wrote, into `path`; returns fp16's and int8's islands.

    `pictures`, uint8 S×S×3 each, show what is hazardous in float16 and which ranges int8 needs. `in_fp32` and
    `in_float` are regular expressions: operators whose weight's name they find stay in float32, or are not quantized.
    Raises JobError when the file breaks a rule of TensorRT's.
    """
    proto = cast_first(onnx.load(source))
    islands: list[Island] = []
    if precision != "fp32":
        found = measured(proto, islands_by_kind(proto.graph), pictures)
        named = [
            Island(node.name, node.op_type, "measured: the map needs it")
            for node in proto.graph.node
            if any(re.search(in_fp32, name) for name in node.input[1:2] if name in _weights(proto.graph))
        ]
        islands = [*found, *(island for island in named if island.node not in {other.node for other in found})]
        if precision == "int8":
            quantize(proto, pictures, in_float, {island.node for island in islands})
        typed(proto, {island.node for island in islands})
    size = proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    if problems := check(proto):
        raise JobError(f"the {precision} file breaks TensorRT's rules: {'; '.join(problems[:3])}; report this")
    save(proto, path, calibration, size)
    return islands


def choices(precision: str) -> list[dict[str, str]]:
    """What `to_tensorrt` takes for the fastest file, then for safer ones: the first that passes the gate is kept."""
    if precision == "int8":
        return [{"in_float": kept} for kept in IN_FLOAT]
    return [{"in_fp32": kept} for kept in IN_FP32] if precision == "fp16" else [{}]


def describe(islands: Iterable[Island]) -> list[str]:
    """A line for each reason and operator: how many islands, the largest value, and fp16's error there."""
    groups: dict[tuple[str, str], list[Island]] = {}
    for island in islands:
        groups.setdefault((island.operator, island.reason), []).append(island)
    return [
        f"{len(group)} {operator}: {reason} (largest value {max(i.largest for i in group):.3g}, in fp16 "
        + ("overflows" if np.isinf(worst := max(i.error for i in group)) else f"off by {worst:.2g}")
        + ")"
        for (operator, reason), group in groups.items()
    ]


def cast_first(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its picture cast to float32 before all else: TensorRT does nothing else with uint8."""
    graph = proto.graph
    (image,) = (value.name for value in graph.input)
    same = {image: "image_float"}  # names that stand for another: casts of what is float32 now
    nodes = [helper.make_node("Cast", [image], ["image_float"], "image_float", to=TensorProto.FLOAT)]
    moved = {"image_float"}
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type == "Cast" and node.input[0] in moved:
            same[node.output[0]] = node.input[0]
            continue
        if node.op_type in _MOVES and node.input[0] in moved:
            moved.update(node.output)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return proto


def islands_by_kind(graph: onnx.GraphProto) -> list[Island]:
    """What is hazardous in float16 by its kind, whatever the weights, in the graph's order."""
    made = {name: node for node in graph.node for name in node.output}
    reasons: dict[str, str] = {}
    open_ends = set()  # nodes in float32 whose results may still be too large or too small for float16

    def origin(name: str) -> onnx.NodeProto | None:
        node = made.get(name)
        while node is not None and node.op_type in _MOVES:
            node = made.get(node.input[0])
        return node

    for node in graph.node:
        sources = [source for name in node.input if (source := origin(name)) is not None]
        if node.op_type in _BY_KIND:
            reasons[node.name] = _BY_KIND[node.op_type]
        elif node.op_type == "Cast":
            reasons[node.name] = "normalisation of the picture"
        elif node.op_type in _ELEMENTWISE and sources:
            spoilt = [source for source in sources if source.name in open_ends]
            within = all(
                source.name in reasons and source.op_type not in ("LayerNormalization", "Softmax") for source in sources
            )
            if spoilt or within:
                reasons[node.name] = reasons[(spoilt or sources)[0].name]
                if node.op_type == "Mul" and len(sources) == 2 and not spoilt:
                    reasons[node.name] = "product of normalised maps, fed to FA"
        if node.name in reasons and node.op_type not in _CLOSED:
            open_ends.add(node.name)
    return [Island(node.name, node.op_type, reasons[node.name]) for node in graph.node if node.name in reasons]


def measured(proto: onnx.ModelProto, islands: list[Island], pictures: Sequence[np.ndarray]) -> list[Island]:
    """The islands with what fp16 would lose there, and every other operator that loses more than it may."""
    operators: dict[str, onnx.NodeProto] = {}
    largest: dict[str, float] = {}
    errors: dict[str, float] = {}

    def watch(node: onnx.NodeProto, attributes: Attributes, operands: list[Any], results: tuple[Tensor, ...]) -> None:
        if node.op_type in _MOVES or node.op_type == "Cast" or not results[0].is_floating_point():
            return
        halves = [x.half() if x is not None and x.dtype == torch.float32 else x for x in operands]
        found = compute(node, attributes, halves)[0].float()
        expected = results[0]
        values = [x for x in operands if x is not None and x.is_floating_point()]
        operators[node.name] = node
        seen = max(float(x.abs().max()) for x in [*values, expected])
        largest[node.name] = max(largest.get(node.name, 0.0), seen)
        norm = float(expected.norm())
        error = float((found - expected).norm()) / norm if norm else 0.0
        errors[node.name] = max(errors.get(node.name, 0.0), error if np.isfinite(error) else float("inf"))

    simulation = Fp16Simulation(proto)
    for picture in pictures:
        simulation.outputs(picture, watch)
    known = {island.node for island in islands}
    more = [
        Island(name, node.op_type, "measured: overflows" if np.isinf(errors[name]) else "measured: loses too much")
        for name, node in operators.items()
        if name not in known and errors[name] > LARGEST_ERROR
    ]
    return [
        replace(island, largest=largest.get(island.node, 0.0), error=errors.get(island.node, 0.0))
        for island in [*islands, *more]
    ]


def quantize(proto: onnx.ModelProto, pictures: Sequence[np.ndarray], in_float: str, islands: set[str]) -> None:
    """Put Q/DQ before the linear layers that are neither islands nor named by `in_float`, in place."""
    graph = proto.graph
    weights = _weights(graph)
    layers = {
        node.name: node
        for node in graph.node
        if node.op_type in ("Gemm", "MatMul")
        and node.input[1] in weights
        and len(weights[node.input[1]].dims) == 2
        and node.name not in islands
        and not re.search(in_float, node.input[1])
    }
    reach = _reach(proto, set(layers), pictures)
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.int8), "zero_point"))
    nodes, made = [], {}
    for node in graph.node:
        if node.name in layers:
            x, weight = node.input[:2]
            if x not in made:
                scale = _scales(np.array(reach[x]))
                graph.initializer.append(numpy_helper.from_array(scale, f"{x}_scale"))
                nodes += [
                    helper.make_node("QuantizeLinear", [x, f"{x}_scale", "zero_point"], [f"{x}_int8"], f"{x}_quantize"),
                    helper.make_node(
                        "DequantizeLinear",
                        [f"{x}_int8", f"{x}_scale", "zero_point"],
                        [f"{x}_dequantized"],
                        f"{x}_dequantize",
                    ),
                ]
                made[x] = f"{x}_dequantized"
            if weight not in made:
                axis = 0 if _attribute(node, "transB") else 1
                nodes.append(_quantized_weight(graph, weights[weight], axis))
                made[weight] = nodes[-1].output[0]
            node.input[0], node.input[1] = made[x], made[weight]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)


def typed(proto: onnx.ModelProto, islands: set[str]) -> None:
    """Make every float tensor float16 but those at the islands, in place, with a Cast wherever the type changes."""
    graph = proto.graph
    weights = _weights(graph)
    islands = islands | _moves_between(graph, islands)
    half = {value.name: False for value in graph.input}  # of each float tensor that a node made: is it float16?
    casts: dict[tuple[str, bool], str] = {}
    nodes: list[onnx.NodeProto] = []

    def as_type(name: str, to_half: bool) -> str:
        if name in weights and weights[name].data_type == TensorProto.FLOAT:
            if (name, to_half) not in casts:
                casts[name, to_half] = f"{name}_fp16" if to_half else name
                if to_half:
                    values = numpy_helper.to_array(weights[name]).astype(np.float16)
                    graph.initializer.append(numpy_helper.from_array(values, f"{name}_fp16"))
            return casts[name, to_half]
        if half.get(name, to_half) == to_half:
            return name
        if (name, to_half) not in casts:
            casts[name, to_half] = cast = f"{name}_{'fp16' if to_half else 'fp32'}"
            kind = TensorProto.FLOAT16 if to_half else TensorProto.FLOAT
            nodes.append(helper.make_node("Cast", [name], [cast], cast, to=kind))
        return casts[name, to_half]

    for node in graph.node:
        to_half = node.name not in islands
        if node.op_type != "Cast":
            node.input[:] = [as_type(name, to_half) if name else name for name in node.input]
        nodes.append(node)
        if node.op_type == "QuantizeLinear":
            continue
        half.update(dict.fromkeys(node.output[:1] if node.op_type == "TopK" else node.output, to_half))
    made = {name: node for node in nodes for name in node.output}
    for value in graph.output:
        if half[value.name]:
            raise JobError(f"output {value.name} would be float16, expected float32; report this")
        assert value.name in made
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)


def _moves_between(graph: onnx.GraphProto, islands: set[str]) -> set[str]:
    """Nodes that only move values from one island to others."""
    made = {name: node for node in graph.node for name in node.output}
    used: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            used.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}

    def starts_within(node: onnx.NodeProto) -> bool:
        before = made.get(node.input[0])
        return before is not None and (before.name in islands or (before.op_type in _MOVES and starts_within(before)))

    within: set[str] = set()
    for node in reversed(graph.node):
        after = [user.name for name in node.output for user in used.get(name, [])]
        goes_on = all(name in islands | within for name in after) and (after or outputs & set(node.output))
        if node.op_type in _MOVES and goes_on and starts_within(node):
            within.add(node.name)
    return within


def _reach(proto: onnx.ModelProto, layers: set[str], pictures: Sequence[np.ndarray]) -> dict[str, float]:
    """The largest magnitude of each of these layers' input, by the input's name."""
    reach: dict[str, float] = {}

    def watch(node: onnx.NodeProto, attributes: Attributes, operands: list[Any], results: tuple[Tensor, ...]) -> None:
        if node.name in layers and operands[0] is not None:
            reach[node.input[0]] = max(reach.get(node.input[0], 0.0), float(operands[0].abs().max()))

    simulation = Fp16Simulation(proto)
    for picture in pictures:
        simulation.outputs(picture, watch)
    return reach


def _scales(largest: np.ndarray) -> np.ndarray:
    """Scales that float16 holds exactly, and that reach the largest value with 127 steps."""
    scales = np.maximum(largest / 127, SMALLEST_SCALE)
    rounded = scales.astype(np.float16)
    up = np.nextafter(rounded, np.float16(np.inf))
    return np.where(rounded.astype(np.float32) < scales, up, rounded).astype(np.float32)


def _quantized_weight(graph: onnx.GraphProto, weight: TensorProto, axis: int) -> onnx.NodeProto:
    name = weight.name
    values = numpy_helper.to_array(weight)
    scales = _scales(np.abs(values).max(axis=1 - axis))
    steps = np.rint(values / np.expand_dims(scales, 1 - axis)).clip(-127, 127).astype(np.int8)
    graph.initializer.extend(
        [
            numpy_helper.from_array(steps, f"{name}_int8"),
            numpy_helper.from_array(scales, f"{name}_scale"),
            numpy_helper.from_array(np.zeros(scales.shape, np.int8), f"{name}_zero_point"),
        ]
    )
    inputs = [f"{name}_int8", f"{name}_scale", f"{name}_zero_point"]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}_dequantized"], f"{name}_dequantize", axis=axis)


def _weights(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    return {weight.name: weight for weight in graph.initializer}


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((entry.i for entry in node.attribute if entry.name == name), 0)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [weight for weight in graph.initializer if weight.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
