"""Where an ONNX graph can't be computed in float16: what is kept in float32, and why.

By kind these are LayerNorm and the channel norms, softmax, the reductions, the normalised products that FA is fed, the
image's normalisation, and the map and score. Beside them whatever overflows, or loses more than `LARGEST_ERROR`, on
quantization images in `fp16_simulation.py`; and, where the map needs it, the convolutions whose float16 alone moves it
most.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import Tensor

from stlm_edge.converters.fp16_kernels import Attributes, compute
from stlm_edge.converters.fp16_simulation import Fp16Simulation, in_half
from stlm_edge.converters.typed_onnx import MOVES
from stlm_edge.progress import step

LARGEST_ERROR = 0.01  # of one operator alone, ‖in fp16 − in fp32‖ / ‖in fp32‖
LARGEST_VALUE = 2.0**14  # a quarter of what float16 holds: other images may give larger ones
WATCHED = 16  # quantization images that ranges and errors are measured on
JUDGED = 2  # and those that each convolution's damage to the map is measured on
KEPT = (4, 12, 36)  # convolutions that stay in float32 because the map needs it: what an export tries in turn

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


@dataclass(frozen=True)
class Island:
    """An operator that stays in float32: why, the largest value at it, and what it would lose in float16.

    `error` is ‖in fp16 − in fp32‖ / ‖in fp32‖ on the image of the quantization set that showed most, infinite where
    it overflows;
    `moves` by how much the operator's float16 alone moves the map, where that was measured.
    """

    node: str
    operator: str
    reason: str
    largest: float = 0.0
    error: float = 0.0
    moves: float | None = None


def islands(proto: onnx.ModelProto, images: Sequence[np.ndarray]) -> Iterator[list[Island]]:
    """What to keep in float32: the hazards of a float32 graph, then, one after the other, ever more beside them.

    `images`, uint8 S×S×3 each, are what is measured on.
    """
    with step("looking for what float16 cannot hold"):
        hazards = measured(proto, islands_by_kind(proto.graph), images)
    yield hazards
    ranked = by_damage(proto, hazards, images)
    for kept in KEPT:
        yield [*hazards, *ranked[:kept]]


def islands_by_kind(graph: onnx.GraphProto) -> list[Island]:
    """What is hazardous in float16 by its kind, whatever the weights, in the graph's order."""
    made = {name: node for node in graph.node for name in node.output}
    image = helper.make_node("Cast", [], [graph.input[0].name], "the image, which may be float32 already")
    made[graph.input[0].name] = image
    reasons = {image.name: "normalisation of the image"}
    open_ends = {image.name}  # nodes in float32 whose results may still be too large or too small for float16

    def origin(name: str) -> onnx.NodeProto | None:
        node = made.get(name)
        while node is not None and node.op_type in MOVES:
            node = made.get(node.input[0])
        return node

    for node in graph.node:
        sources = [source for name in node.input if (source := origin(name)) is not None]
        if node.op_type in _BY_KIND:
            reasons[node.name] = _BY_KIND[node.op_type]
        elif node.op_type == "Cast":
            reasons[node.name] = "normalisation of the image"
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


def measured(proto: onnx.ModelProto, by_kind: list[Island], images: Sequence[np.ndarray]) -> list[Island]:
    """The islands with what fp16 would lose there, and every other operator that loses more than it may."""
    operators: dict[str, onnx.NodeProto] = {}
    largest: dict[str, float] = {}
    errors: dict[str, float] = {}

    def watch(node: onnx.NodeProto, attributes: Attributes, operands: list[Any], results: tuple[Tensor, ...]) -> None:
        if node.op_type in MOVES or node.op_type == "Cast" or not results[0].is_floating_point():
            return
        found = compute(node, attributes, in_half(operands))[0].float()
        expected = results[0]
        values = [x for x in operands if x is not None and x.is_floating_point()]
        operators[node.name] = node
        seen = max(float(x.abs().max()) for x in [*values, expected])
        largest[node.name] = max(largest.get(node.name, 0.0), seen)
        norm = float(expected.norm())
        error = float((found - expected).norm()) / norm if norm else 0.0
        errors[node.name] = max(errors.get(node.name, 0.0), error if np.isfinite(error) else float("inf"))

    simulation = Fp16Simulation(proto)
    for image in evenly(images, WATCHED):
        simulation.outputs(image, watch)
    known = {island.node for island in by_kind}
    more = [
        Island(name, node.op_type, f"measured: {'too large' if largest[name] > LARGEST_VALUE else 'loses too much'}")
        for name, node in operators.items()
        if name not in known and (errors[name] > LARGEST_ERROR or largest[name] > LARGEST_VALUE)
    ]
    return [
        replace(island, largest=largest.get(island.node, 0.0), error=errors.get(island.node, 0.0))
        for island in [*by_kind, *more]
    ]


def by_damage(proto: onnx.ModelProto, hazards: list[Island], images: Sequence[np.ndarray]) -> list[Island]:
    """The convolutions that are no hazards, those first that move the map most for what float32 costs them.

    Damage is the largest difference in the map when a layer alone is computed in float16, cost the bytes of weights and
    results that float32 adds; independent errors add up by their squares, so the order is by damage²/cost. Takes a
    pass of the whole graph for each. Linear layers are left out: none was among the first 35 of a trained network.
    """
    weights = {weight.name: weight for weight in proto.graph.initializer}
    known = {island.node for island in hazards}
    layers = [
        node
        for node in proto.graph.node
        if node.op_type == "Conv" and node.input[1] in weights and node.name not in known
    ]
    cost: dict[str, int] = {}

    def watch(node: onnx.NodeProto, attributes: Attributes, operands: list[Any], results: tuple[Tensor, ...]) -> None:
        cost[node.name] = results[0].numel()

    simulation = Fp16Simulation(proto)
    judged = evenly(images, JUDGED)
    expected = [simulation.outputs(image, watch)[0] for image in judged]
    found = []
    with step("measuring which convolutions the map needs in float32", len(layers)) as advance:
        for node in layers:
            maps = [simulation.outputs(image, halved=node.name)[0] for image in judged]
            damage = max(float((a - b).abs().max()) for a, b in zip(maps, expected, strict=True))
            size = numpy_helper.to_array(weights[node.input[1]]).size + cost[node.name]
            found.append(
                (damage**2 / size, Island(node.name, node.op_type, "measured: the map needs it", moves=damage))
            )
            advance()
    return [island for _, island in sorted(found, key=lambda pair: (-pair[0], pair[1].node))]


def evenly(images: Sequence[np.ndarray], number: int) -> list[np.ndarray]:
    """At most this many of the images, from all over the sequence."""
    return [images[index] for index in np.linspace(0, len(images) - 1, min(number, len(images))).astype(int)]


def describe(found: Iterable[Island]) -> list[str]:
    """A line for each reason and operator: how many islands, the largest value, and fp16's error there."""
    groups: dict[tuple[str, str], list[Island]] = {}
    for island in found:
        groups.setdefault((island.operator, island.reason), []).append(island)
    return [
        f"in float32: {len(group)} {operator}: {reason} ({_measured(group)})"
        for (operator, reason), group in groups.items()
    ]


def _measured(group: list[Island]) -> str:
    moves = [island.moves for island in group if island.moves is not None]
    if moves:
        return f"each moves the map by up to {max(moves):.2g} in fp16"
    worst = max(island.error for island in group)
    off = "overflows" if np.isinf(worst) else f"off by {worst:.2g}"
    return f"largest value {max(island.largest for island in group):.3g}, in fp16 {off}"
