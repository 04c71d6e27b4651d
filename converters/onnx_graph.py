"""Edits of ONNX graphs that several converters share: input and outputs, float16, tables, unsupported operators."""

import copy

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stlm_edge.errors import JobError

MOVES = {"Gather", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}  # operators without sums
LARGE = 4096  # values; smaller weights stay as they are
TABLE = 256  # columns


def weights_of(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Return the initializers by name."""
    return {weight.name: weight for weight in graph.initializer}


def producers_of(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return the node that computes each value, by the value's name."""
    return {name: node for node in graph.node for name in node.output}


def users_of(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that take each value or initializer, by its name."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return users


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Let the graph consist of these nodes, and drop the initializers that none of them takes."""
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    users = users_of(graph)
    kept = [weight for weight in graph.initializer if weight.name in users]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def cast_image_first(proto: onnx.ModelProto, as_input: bool = False) -> onnx.ModelProto:
    """Cast the uint8 image to float32 before everything else, the only operator that TensorRT runs on uint8.

    With `as_input`, the graph takes the image as float32, values 0 to 255, instead.
    """
    graph = proto.graph
    (image,) = graph.input
    first = image.name if as_input else "image_float"
    nodes = [] if as_input else [helper.make_node("Cast", [image.name], [first], first, to=TensorProto.FLOAT)]
    if as_input:
        image.type.tensor_type.elem_type = TensorProto.FLOAT
    renamed, moved = {image.name: first}, {first}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if node.op_type == "Cast" and node.input[0] in moved:
            renamed[node.output[0]] = node.input[0]
            continue
        if node.op_type in MOVES and node.input[0] in moved:
            moved.update(node.output)
        nodes.append(node)
    replace_nodes(graph, nodes)
    return proto


def drop_score(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Keep the anomaly map as the only output, and only the nodes that it needs."""
    graph = proto.graph
    kept = [output for output in graph.output if output.name == "anomaly_map"]
    needed = {output.name for output in kept}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed.update(node.input)
            nodes.append(node)
    del graph.output[:]
    graph.output.extend(kept)
    replace_nodes(graph, nodes[::-1])
    return proto


def gather_from_tables(graph: onnx.GraphProto, kind: type[np.integer] = np.int32) -> None:
    """Store attention biases, heads×tokens×tokens with few distinct columns, as a table and indices, in place."""
    gathers = []
    index_names: dict[tuple[tuple[int, ...], bytes], str] = {}
    for weight in list(graph.initializer):
        values, name = numpy_helper.to_array(weight), weight.name
        if values.dtype != np.float32 or values.ndim != 3 or values.size <= LARGE:
            continue
        columns = values.reshape(len(values), -1)
        table, first, indices = np.unique(columns, axis=1, return_index=True, return_inverse=True)
        if table.shape[1] > TABLE:
            continue
        order = first.argsort()  # of appearance, so that windows of one size share their indices
        indices = order.argsort()[indices.ravel()].reshape(values.shape[1:]).astype(kind)
        key = indices.shape, indices.tobytes()
        if key not in index_names:
            index_names[key] = f"{name}_indices"
            graph.initializer.append(numpy_helper.from_array(indices, index_names[key]))
            if kind != np.int32:  # needs a Cast, which not every runtime can do
                cast = f"{name}_int32"
                gathers.append(
                    helper.make_node("Cast", [index_names[key]], [cast], f"{name}/Cast", to=TensorProto.INT32)
                )
                index_names[key] = cast
        graph.initializer.remove(weight)
        graph.initializer.append(numpy_helper.from_array(table[:, order], f"{name}_table"))
        gathers.append(
            helper.make_node("Gather", [f"{name}_table", index_names[key]], [name], f"{name}/Gather", axis=1)
        )
    replace_nodes(graph, [*gathers, *graph.node])


def in_float16(proto: onnx.ModelProto, float32: set[str]) -> onnx.ModelProto:
    """Return a copy whose float tensors are float16, but for the nodes named in `float32`, with the Casts needed."""
    typed_proto = copy.deepcopy(proto)
    graph = typed_proto.graph
    gather_from_tables(graph)
    weights = weights_of(graph)
    float32 = float32 | _moves_between(graph, float32)
    is_half = {value.name: False for value in graph.input}  # by the names of float tensors
    is_half |= {name: False for name, weight in weights.items() if weight.data_type == TensorProto.FLOAT}
    casts: dict[tuple[str, bool], str] = {}
    nodes: list[onnx.NodeProto] = []

    def typed(name: str, half: bool) -> str:
        if is_half.get(name, half) == half:
            return name
        if (name, half) not in casts:
            casts[name, half] = cast = f"{name}_{'fp16' if half else 'fp32'}"
            if name in weights:
                values = numpy_helper.to_array(weights[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(values, cast))
            else:
                kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
                nodes.append(helper.make_node("Cast", [name], [cast], cast, to=kind))
        return casts[name, half]

    for node in graph.node:
        half = node.name not in float32
        if node.op_type != "Cast":
            node.input[:] = [typed(name, half) for name in node.input]
        nodes.append(node)
        if node.op_type != "QuantizeLinear":
            is_half.update(dict.fromkeys(node.output[:1] if node.op_type == "TopK" else node.output, half))
    if halves := [value.name for value in graph.output if is_half[value.name]]:
        raise JobError(f"output {halves[0]} would be float16, expected float32; report this")
    replace_nodes(graph, nodes)
    return typed_proto


def _moves_between(graph: onnx.GraphProto, float32: set[str]) -> set[str]:
    """Return the nodes that only move or clip values on their way from a float32 node, or the input, to others."""
    producers, users = producers_of(graph), users_of(graph)
    inputs, outputs = ({value.name for value in values} for values in (graph.input, graph.output))
    between = MOVES | {"Relu"}

    def comes_from_float32(node: onnx.NodeProto) -> bool:
        source = producers.get(node.input[0])
        if source is None:
            return node.input[0] in inputs
        return source.name in float32 or (source.op_type in between and comes_from_float32(source))

    found: set[str] = set()
    for node in reversed(graph.node):
        following = [user.name for name in node.output for user in users.get(name, [])]
        continues = all(name in float32 | found for name in following) and (following or outputs & set(node.output))
        if node.op_type in between and continues and comes_from_float32(node):
            found.add(node.name)
    return found


def unsupported(proto: onnx.ModelProto, operators: set[str], types: set[int]) -> list[str]:
    """Return what a runtime of these ONNX operators and tensor types cannot run, one line each."""
    try:
        graph = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True).graph
    except Exception as error:  # onnx raises several unrelated types
        return [f"types and shapes do not match: {' '.join(str(error).split())[:200]}"]
    values = {value.name: value.type.tensor_type for value in [*graph.value_info, *graph.input, *graph.output]}
    problems = [
        f"{name}: its shape is not static"
        for name, value in values.items()
        if any(dim.dim_value < 1 for dim in value.shape.dim)
    ]
    for node in graph.node:
        if node.domain or node.op_type not in operators:
            problems.append(f"{node.op_type} {node.name}: no such operator")
        problems += [
            f"{node.op_type} {node.name}: {name} is {TensorProto.DataType.Name(values[name].elem_type)}"
            for name in node.output
            if name in values and values[name].elem_type not in types
        ]
    return problems
