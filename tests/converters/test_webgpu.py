"""What WebGPU runs whole, and each thing that makes it fall back or refuse."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stlm_edge.converters.typed_onnx import cast_first, float_input, without_score
from stlm_edge.converters.webgpu import check


def sound() -> onnx.ModelProto:
    """A graph of two nodes that keeps every rule."""
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["image"], ["turned"], "turn", perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["turned", "weight"], ["anomaly_map"], "conv"),
        ],
        "sound",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 8, 8, 3])],
        [helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [1, 1, 8, 8])],
        [numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def after_the_map(proto: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Let the map go on as `before` into these nodes."""
    proto.graph.node[1].output[0] = "before"
    proto.graph.node.extend(nodes)


def top_k(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.array([8]), "eight"))
    after_the_map(proto, helper.make_node("TopK", ["before", "eight"], ["anomaly_map", "places"], "top"))


def quantized(proto: onnx.ModelProto) -> None:
    for name, value in (("scale", np.float32(0.1)), ("zero", np.int8(0))):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    quantize = helper.make_node("QuantizeLinear", ["before", "scale", "zero"], ["steps"], "quantize")
    after_the_map(proto, quantize, helper.make_node("DequantizeLinear", ["steps", "scale", "zero"], ["anomaly_map"]))


def double_precision(proto: onnx.ModelProto) -> None:
    twice = helper.make_node("Cast", ["before"], ["double"], "widen", to=TensorProto.DOUBLE)
    after_the_map(proto, twice, helper.make_node("Cast", ["double"], ["anomaly_map"], to=TensorProto.FLOAT))


def bytes_in(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    proto.graph.node.insert(0, helper.make_node("Cast", ["image"], ["float"], "cast", to=TensorProto.FLOAT))
    proto.graph.node[1].input[0] = "float"


def second_output(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("turned", TensorProto.FLOAT, [1, 3, 8, 8]))


def open_shape(proto: onnx.ModelProto) -> None:
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def newer_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 21


def foreign_domain(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    after_the_map(proto, helper.make_node("FastGelu", ["before"], ["anomaly_map"], "fast", domain="com.microsoft"))


def mixed_types(proto: onnx.ModelProto) -> None:
    weight = proto.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float16), "weight"))


def test_a_sound_graph_passes() -> None:
    assert check(sound()) == []


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (top_k, "TopK top: WebGPU has no kernel for it"),
        (quantized, "QuantizeLinear quantize: WebGPU has no kernel for it"),
        (double_precision, "Cast widen: double DOUBLE, a type that WebGPU does not take"),
        (bytes_in, "input image UINT8, expected image FLOAT"),
        (second_output, "output anomaly_map FLOAT, turned FLOAT, expected anomaly_map FLOAT alone"),
        (open_shape, "image: its shape is not static"),
        (newer_opset, "opsets {'': 21}, expected only ai.onnx 20"),
        (foreign_domain, "FastGelu fast: WebGPU has no kernel for it"),
        (mixed_types, "types and shapes do not follow"),
    ],
)
def test_what_webgpu_cannot_run_is_named(damage: Callable[[onnx.ModelProto], None], problem: str) -> None:
    proto = sound()
    damage(proto)
    assert any(problem in found for found in check(proto)), check(proto)


def test_a_score_is_dropped_with_all_that_only_it_needs_and_bytes_become_floats() -> None:
    proto = sound()
    bytes_in(proto)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([8]), "eight"))
    proto.graph.node.append(helper.make_node("TopK", ["anomaly_map", "eight"], ["score", "places"], "top"))
    proto.graph.output.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, [1, 1, 8, 8]))
    assert check(proto)
    found = float_input(cast_first(without_score(proto)))
    assert check(found) == []
    assert [node.op_type for node in found.graph.node] == ["Transpose", "Conv"]
    assert [weight.name for weight in found.graph.initializer] == ["weight"]
