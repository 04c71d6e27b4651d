"""Types for the tensors of an ONNX graph: float16 but for named nodes, with a Cast wherever the type changes."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stlm_edge.errors import JobError

MOVES = {"Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
BETWEEN = MOVES | {"Relu"}


def cast_first(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its image cast to float32 before all else: TensorRT does nothing else with uint8."""
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
        if node.op_type in MOVES and node.input[0] in moved:
            moved.update(node.output)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return proto


def float_input(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph that `cast_first` gives, with a float32 image (values 0 to 255) as its input."""
    graph = proto.graph
    (image,) = graph.input
    image.type.tensor_type.elem_type = TensorProto.FLOAT
    first, *nodes = graph.node
    for node in nodes:
        node.input[:] = [image.name if name == first.output[0] else name for name in node.input]
    del graph.node[:]
    graph.node.extend(nodes)
    return proto


def without_score(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the map as its only output, and nothing computed that the map doesn't need."""
    graph = proto.graph
    kept = [output for output in graph.output if output.name == "anomaly_map"]
    needed = {output.name for output in kept}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed.update(node.input)
            nodes.append(node)
    del graph.output[:], graph.node[:], graph.value_info[:]
    graph.output.extend(kept)
    graph.node.extend(reversed(nodes))
    drop_unused(graph)
    return proto


def typed(proto: onnx.ModelProto, islands: set[str]) -> None:
    """Make every float tensor float16 but those at the islands, in place, with a Cast wherever the type changes."""
    graph = proto.graph
    weights = weights_of(graph)
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
    drop_unused(graph)


def _moves_between(graph: onnx.GraphProto, islands: set[str]) -> set[str]:
    """Nodes that only move values from one island, or the graph's input, to others, or cut off their negative part."""
    made = {name: node for node in graph.node for name in node.output}
    used: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            used.setdefault(name, []).append(node)
    inputs, outputs = ({value.name for value in values} for values in (graph.input, graph.output))

    def starts_within(node: onnx.NodeProto) -> bool:
        if node.input[0] in inputs:
            return True
        before = made.get(node.input[0])
        return before is not None and (before.name in islands or (before.op_type in BETWEEN and starts_within(before)))

    within: set[str] = set()
    for node in reversed(graph.node):
        after = [user.name for name in node.output for user in used.get(name, [])]
        goes_on = all(name in islands | within for name in after) and (after or outputs & set(node.output))
        if node.op_type in BETWEEN and goes_on and starts_within(node):
            within.add(node.name)
    return within


def weights_of(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    return {weight.name: weight for weight in graph.initializer}


def drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [weight for weight in graph.initializer if weight.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
