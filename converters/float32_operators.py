"""Choice of the operators that stay in float32 when an ONNX graph is converted to float16, and the reason for each.

These are kinds with sums or unbounded values; operators that overflow, or lose more than `MAX_ERROR`, on the
quantization set; and, where the map needs it, the convolutions whose float16 alone changes it most.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper
from torch import Tensor

from stlm_edge.converters.fp16_kernels import Attributes, compute
from stlm_edge.converters.fp16_simulation import Fp16Simulation, in_half
from stlm_edge.converters.onnx_graph import MOVES, producers_of, weights_of
from stlm_edge.progress import step

MAX_ERROR = 0.01  # of one operator alone, ‖in fp16 − in fp32‖ / ‖in fp32‖
MAX_VALUE = 2.0**14  # a quarter of float16's range: other images may give larger values
RANGE_IMAGES = 16  # of the quantization set, for ranges and errors
RANKING_IMAGES = 2  # of the quantization set, for the ranking of convolutions
CANDIDATES = (4, 12, 36)  # numbers of convolutions to keep in float32

_BY_KIND = {
    "Cast": "normalisation of the image",
    "LayerNormalization": "sum of squares in LayerNorm",
    "Softmax": "sum of exponentials in softmax",
    "ReduceL2": "sum of squares in a channel norm",
    "ReduceMean": "sum in a mean",
    "Sigmoid": "the anomaly map is float32",
    "Resize": "the anomaly map is float32",
    "TopK": "the score is float32",
}
_BOUNDED = {"LayerNormalization", "Softmax", "Div"}  # operators whose results are of moderate size
_ELEMENTWISE = {"Add", "Clip", "Concat", "Div", "Mul", "Sub"}


@dataclass(frozen=True)
class Float32Operator:
    """A node that stays in float32, its kind such as `Softmax`, and the reason."""

    node: str
    operator: str
    reason: str
    largest: float = 0.0  # magnitude of its inputs and result
    error: float = 0.0  # ‖in fp16 − in fp32‖ / ‖in fp32‖ on the worst image; infinite if it overflows
    map_change: float | None = None  # largest change of the map when only this operator is in float16, if measured


def names_of(operators: Iterable[Float32Operator]) -> set[str]:
    """Return the names of the operators' nodes."""
    return {operator.node for operator in operators}


def float32_operators(proto: onnx.ModelProto, images: Sequence[np.ndarray]) -> Iterator[list[Float32Operator]]:
    """Yield the operators of a float32 graph at risk in float16, then the same with more and more convolutions.

    `images` are the quantization set, uint8 S×S×3 each.
    """
    with step("measuring which operators float16 cannot compute"):
        at_risk = measured(proto, at_risk_by_kind(proto.graph), images)
    yield at_risk
    ranked = rank_convolutions(proto, at_risk, images)
    for count in CANDIDATES:
        yield [*at_risk, *ranked[:count]]


def at_risk_by_kind(graph: onnx.GraphProto) -> list[Float32Operator]:
    """Return the operators at risk because of their kind, whatever the weights, in the graph's order."""
    producers = producers_of(graph)
    image = helper.make_node("Cast", [], [graph.input[0].name], "a float32 image")
    producers[image.output[0]] = image
    reasons = {image.name: _BY_KIND["Cast"]}
    unbounded = {image.name}  # nodes in float32 whose results may be too large or too small for float16

    def source_of(name: str) -> onnx.NodeProto | None:
        node = producers.get(name)
        while node is not None and node.op_type in MOVES:
            node = producers.get(node.input[0])
        return node

    for node in graph.node:
        sources = [source for name in node.input if (source := source_of(name)) is not None]
        if node.op_type in _BY_KIND:
            reasons[node.name] = _BY_KIND[node.op_type]
        elif node.op_type in _ELEMENTWISE and sources:
            risky = [source for source in sources if source.name in unbounded]
            within = all(
                source.name in reasons and source.op_type not in ("LayerNormalization", "Softmax") for source in sources
            )
            if risky or within:
                reasons[node.name] = reasons[(risky or sources)[0].name]
                if node.op_type == "Mul" and len(sources) == 2 and not risky:
                    reasons[node.name] = "product of normalised maps, fed to FA"
        if node.name in reasons and node.op_type not in _BOUNDED:
            unbounded.add(node.name)
    return [Float32Operator(node.name, node.op_type, reasons[node.name]) for node in graph.node if node.name in reasons]


def measured(
    proto: onnx.ModelProto, by_kind: list[Float32Operator], images: Sequence[np.ndarray]
) -> list[Float32Operator]:
    """Return `by_kind` with ranges and errors on the images, and every other operator that exceeds the limits."""
    operators = {operator.node: operator for operator in by_kind}
    named_by_kind = names_of(by_kind)

    def watch(node: onnx.NodeProto, attributes: Attributes, operands: list[Any], results: tuple[Tensor, ...]) -> None:
        expected = results[0]
        if node.op_type in MOVES or node.op_type == "Cast" or not expected.is_floating_point():
            return
        difference = compute(node, attributes, in_half(operands))[0].float() - expected
        values = [x for x in [*operands, expected] if x is not None and x.is_floating_point()]
        norm = float(expected.norm())
        error = float(difference.norm()) / norm if norm else 0.0
        known = operators.get(node.name, Float32Operator(node.name, node.op_type, ""))
        largest = max(known.largest, *(float(x.abs().max()) for x in values))
        error = max(known.error, error if np.isfinite(error) else float("inf"))
        reason = known.reason
        if node.name not in named_by_kind and (largest > MAX_VALUE or error > MAX_ERROR):
            reason = f"measured: {'too large' if largest > MAX_VALUE else 'loses too much'}"
        operators[node.name] = replace(known, largest=largest, error=error, reason=reason)

    simulation = Fp16Simulation(proto)
    for image in evenly(images, RANGE_IMAGES):
        simulation.outputs(image, watch)
    return [operator for operator in operators.values() if operator.reason]


def rank_convolutions(
    proto: onnx.ModelProto, at_risk: list[Float32Operator], images: Sequence[np.ndarray]
) -> list[Float32Operator]:
    """Return the convolutions not in `at_risk`, ordered by how much float32 improves the map for its cost.

    The cost is the number of weights and results; the order is by the squared change of the map per cost. Linear layers
    are left out: none was among the first 35 of a trained network.
    """
    weights, known = weights_of(proto.graph), names_of(at_risk)
    layers = [node for node in proto.graph.node if node.op_type == "Conv" and node.name not in known]
    results_of: dict[str, int] = {}

    def watch(node: onnx.NodeProto, attributes: Attributes, operands: list[Any], results: tuple[Tensor, ...]) -> None:
        results_of[node.name] = results[0].numel()

    simulation = Fp16Simulation(proto)
    chosen = evenly(images, RANKING_IMAGES)
    expected = [simulation.outputs(image, watch)[0] for image in chosen]
    ranked = []
    with step("ranking convolutions by what float16 does to the map", len(layers)) as advance:
        for node in layers:
            maps = [simulation.outputs(image, halved=node.name)[0] for image in chosen]
            change = max(float((a - b).abs().max()) for a, b in zip(maps, expected, strict=True))
            cost = int(np.prod(weights[node.input[1]].dims)) + results_of[node.name]
            operator = Float32Operator(node.name, node.op_type, "measured: the map needs it", map_change=change)
            ranked.append((-(change**2) / cost, node.name, operator))
            advance()
    return [operator for _, _, operator in sorted(ranked, key=lambda entry: entry[:2])]


def evenly(images: Sequence[np.ndarray], number: int) -> list[np.ndarray]:
    """Return at most `number` of the images, evenly spaced."""
    return [images[index] for index in np.linspace(0, len(images) - 1, min(number, len(images))).astype(int)]


def describe(operators: Iterable[Float32Operator]) -> list[str]:
    """Return a line per kind and reason: how many operators, their largest value, and their error in fp16."""
    groups: dict[tuple[str, str], list[Float32Operator]] = {}
    for operator in operators:
        groups.setdefault((operator.operator, operator.reason), []).append(operator)
    lines = []
    for (kind, reason), group in groups.items():
        worst = max(operator.error for operator in group)
        error = "overflows" if np.isinf(worst) else f"off by {worst:.2g}"
        text = f"largest value {max(operator.largest for operator in group):.3g}, in fp16 {error}"
        if changes := [operator.map_change for operator in group if operator.map_change is not None]:
            text = f"each changes the map by up to {max(changes):.2g} in fp16"
        lines.append(f"in float32: {len(group)} {kind}: {reason} ({text})")
    return lines
