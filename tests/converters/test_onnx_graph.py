"""Graphs that WebGPU and TensorRT run, and each change that makes them refuse one or run it elsewhere."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stlm_edge.converters import tensorrt, web
from stlm_edge.converters.onnx_graph import cast_image_first, drop_score

Change = Callable[[onnx.ModelProto], None]


def two_nodes() -> onnx.ModelProto:
    """Return a graph of two nodes that both runtimes run."""
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["image"], ["turned"], "turn", perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["turned", "weight"], ["anomaly_map"], "conv"),
        ],
        "two_nodes",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 8, 8, 3])],
        [helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [1, 1, 8, 8])],
        [numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def after_the_map(proto: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Append nodes that make the map from `before`."""
    proto.graph.node[1].output[0] = "before"
    proto.graph.node.extend(nodes)


def top_k(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.array([8]), "eight"))
    after_the_map(proto, helper.make_node("TopK", ["before", "eight"], ["anomaly_map", "places"], "top"))


def quantized(proto: onnx.ModelProto) -> None:
    for name, value in (("scale", np.float32(0.1)), ("zero", np.int8(0))):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    quantize = helper.make_node("QuantizeLinear", ["before", "scale", "zero"], ["steps"], "quantize")
    dequantize = helper.make_node("DequantizeLinear", ["steps", "scale", "zero"], ["again"], "dequantize")
    after_the_map(proto, quantize, dequantize, helper.make_node("Relu", ["again"], ["anomaly_map"], "relu"))


def double_precision(proto: onnx.ModelProto) -> None:
    widen = helper.make_node("Cast", ["before"], ["double"], "widen", to=TensorProto.DOUBLE)
    after_the_map(proto, widen, helper.make_node("Cast", ["double"], ["anomaly_map"], to=TensorProto.FLOAT))


def uint8_image(proto: onnx.ModelProto) -> None:
    """Let the image be uint8, and moved before it is cast, which neither runtime can do."""
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    proto.graph.node[0].output[0] = "turned_uint8"
    cast = helper.make_node("Cast", ["turned_uint8"], ["turned"], "cast", to=TensorProto.FLOAT)
    proto.graph.node.insert(1, cast)


def symbolic_batch(proto: onnx.ModelProto) -> None:
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def foreign_domain(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    after_the_map(proto, helper.make_node("FastGelu", ["before"], ["anomaly_map"], "fast", domain="com.microsoft"))


def mixed_types(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float16), "weight"))


def second_output_of_layer_norm(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "scale"))
    norm = helper.make_node("LayerNormalization", ["before", "scale"], ["anomaly_map", "mean"], "norm")
    after_the_map(proto, norm)


def test_valid_graph_has_no_problems() -> None:
    assert web.check(two_nodes()) == tensorrt.check(two_nodes()) == []


@pytest.mark.parametrize(
    ("change", "of_webgpu", "of_tensorrt"),
    [
        (top_k, "TopK top: no such operator", None),
        (quantized, "QuantizeLinear quantize: no such operator", "DequantizeLinear dequantize: feeds Relu"),
        (double_precision, "Cast widen: double is DOUBLE", "Cast widen: double is DOUBLE"),
        (uint8_image, "Transpose turn: turned_uint8 is UINT8", "Transpose turn: turned_uint8 is UINT8"),
        (symbolic_batch, "image: its shape is not static", "image: its shape is not static"),
        (foreign_domain, "FastGelu fast: no such operator", "FastGelu fast: no such operator"),
        (mixed_types, "types and shapes do not match", "types and shapes do not match"),
        (second_output_of_layer_norm, None, "LayerNormalization norm: has more outputs"),
    ],
)
def test_unsupported_graph_is_reported(change: Change, of_webgpu: str | None, of_tensorrt: str | None) -> None:
    proto = two_nodes()
    change(proto)
    for check, expected in ((web.check, of_webgpu), (tensorrt.check, of_tensorrt)):
        problems = check(proto)
        assert any(problem.startswith(expected) for problem in problems) if expected else problems == [], problems


def test_score_is_dropped_and_image_becomes_float() -> None:
    proto = two_nodes()
    uint8_image(proto)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([8]), "eight"))
    proto.graph.node.append(helper.make_node("TopK", ["anomaly_map", "eight"], ["score", "places"], "top"))
    proto.graph.output.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, [1, 1, 8, 8]))
    assert web.check(proto)
    changed = cast_image_first(drop_score(proto), as_input=True)
    assert web.check(changed) == []
    assert [node.op_type for node in changed.graph.node] == ["Transpose", "Conv"]
    assert [weight.name for weight in changed.graph.initializer] == ["weight"]
