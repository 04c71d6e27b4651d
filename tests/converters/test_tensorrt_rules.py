"""TensorRT's rules: our files keep them, and each deliberate breach is found and named."""

import re
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stlm_edge.converters.tensorrt_rules import check

FLOAT, FLOAT16, UINT8, INT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT8


def small_graph() -> onnx.ModelProto:
    """uint8 image → quantized linear layer, LayerNorm, resize and top-k; everything that has a rule of its own."""
    weights = {
        "shape": np.array([16, 12]),
        "x_scale": np.float16(0.5),
        "zero": np.int8(0),
        "weight": np.ones((12, 8), np.int8),
        "weight_scale": np.full(8, 0.25, np.float16),
        "weight_zero": np.zeros(8, np.int8),
        "bias": np.zeros(8, np.float16),
        "norm": np.ones(8, np.float32),
        "grid": np.array([1, 8, 4, 4]),
        "kernel": np.ones((1, 8, 3, 3), np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "flat": np.array([1, 64]),
        "k": np.array([5]),
        "axis": np.array([1]),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["pixels"], "cast", to=FLOAT16),
        node("Reshape", ["pixels", "shape"], ["x"], "reshape"),
        node("QuantizeLinear", ["x", "x_scale", "zero"], ["x_int8"], "quantize"),
        node("DequantizeLinear", ["x_int8", "x_scale", "zero"], ["x_again"], "dequantize"),
        node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], "dequantize_weight", axis=1),
        node("Gemm", ["x_again", "w", "bias"], ["y"], "gemm"),
        node("Cast", ["y"], ["y_fp32"], "cast_back", to=FLOAT),
        node("LayerNormalization", ["y_fp32", "norm"], ["normed"], "norm", axis=-1),
        node("Reshape", ["normed", "grid"], ["cells"], "to_grid"),
        node("Conv", ["cells", "kernel"], ["logits"], "conv", pads=[1, 1, 1, 1]),
        node("Resize", ["logits", "", "scales"], ["anomaly_map"], "resize", mode="linear"),
        node("Reshape", ["anomaly_map", "flat"], ["values"], "flatten"),
        node("TopK", ["values", "k"], ["highest", "where"], "topk"),
        node("ReduceMean", ["highest", "axis"], ["score"], "mean", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", UINT8, [1, 8, 8, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", FLOAT, [1, 1, 8, 8]),
            helper.make_tensor_value_info("score", FLOAT, [1]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def node_of(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    (found,) = (node for node in proto.graph.node if node.name == name)
    return found


def put(proto: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    (weight,) = (weight for weight in proto.graph.initializer if weight.name == name)
    weight.CopyFrom(numpy_helper.from_array(np.asarray(value), name))


def attribute(proto: onnx.ModelProto, name: str, key: str, value: object) -> None:
    node = node_of(proto, name)
    kept = [entry for entry in node.attribute if entry.name != key]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(key, value)])


def operand(proto: onnx.ModelProto, name: str, index: int, value: str) -> None:
    node_of(proto, name).input[index] = value


def insert(proto: onnx.ModelProto, before: str, node: onnx.NodeProto) -> None:
    index = [other.name for other in proto.graph.node].index(before)
    proto.graph.node.insert(index, node)


def uint8_moved_before_the_cast(proto: onnx.ModelProto) -> None:
    insert(proto, "cast", helper.make_node("Transpose", ["image"], ["turned"], "turn", perm=[0, 3, 1, 2]))
    operand(proto, "cast", 0, "turned")


def computed_scale(proto: onnx.ModelProto) -> None:
    insert(proto, "quantize", helper.make_node("Identity", ["x_scale"], ["scale_made"], "scale"))
    operand(proto, "quantize", 1, "scale_made")


def quantized_result_goes_on(proto: onnx.ModelProto) -> None:
    insert(proto, "gemm", helper.make_node("Relu", ["x_again"], ["x_relu"], "relu"))
    operand(proto, "gemm", 0, "x_relu")


def quantized_bias(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(8, np.int8), "bias_int8"))
    insert(
        proto,
        "gemm",
        helper.make_node("DequantizeLinear", ["bias_int8", "x_scale", "zero"], ["b"], "dequantize_bias"),
    )
    operand(proto, "gemm", 2, "b")


def dynamic_batch(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


def computed_kernel(proto: onnx.ModelProto) -> None:
    insert(proto, "conv", helper.make_node("Relu", ["kernel"], ["kernel_made"], "kernel_relu"))
    operand(proto, "conv", 1, "kernel_made")


def zero_points_of_uint8(proto: onnx.ModelProto) -> None:
    put(proto, "zero", np.uint8(0))


def another_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 21


def custom_domain(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    node_of(proto, "norm").domain = "com.microsoft"


def integer_product(proto: onnx.ModelProto) -> None:
    insert(proto, "gemm", helper.make_node("MatMulInteger", ["x_int8", "weight"], ["sums"], "integers"))


def external_weights(proto: onnx.ModelProto) -> None:
    (kernel,) = (weight for weight in proto.graph.initializer if weight.name == "kernel")
    kernel.data_location = TensorProto.EXTERNAL


BREACHES: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (another_opset, "opsets .*21.*, expected only ai.onnx 20"),
    (custom_domain, "LayerNormalization norm: TensorRT has no such operator"),
    (integer_product, "MatMulInteger integers: TensorRT has no such operator"),
    (dynamic_batch, "image: its shape is not static"),
    (uint8_moved_before_the_cast, "Transpose turn: takes UINT8"),
    (lambda p: attribute(p, "cast_back", "to", TensorProto.DOUBLE), "cast_back: casts to DOUBLE"),
    (lambda p: put(p, "bias", np.zeros(8, np.float32)), "Gemm gemm: operands of FLOAT and FLOAT16"),
    (lambda p: put(p, "norm", np.ones(8, np.float16)), "LayerNormalization norm: operands of FLOAT and FLOAT16"),
    (lambda p: node_of(p, "norm").output.extend(["", "deviation"]), "norm: gives mean or deviation too"),
    (lambda p: put(p, "k", np.array([4000])), "TopK topk: K is 4000, expected 1 to 3839"),
    (lambda p: attribute(p, "topk", "sorted", 0), "TopK topk: sorted is 0"),
    (lambda p: attribute(p, "resize", "mode", "cubic"), "Resize resize: mode cubic, expected nearest or linear"),
    (lambda p: attribute(p, "resize", "antialias", 1), "Resize resize: antialias"),
    (
        lambda p: attribute(p, "resize", "coordinate_transformation_mode", "half_pixel_symmetric"),
        "coordinates by half_pixel_symmetric",
    ),
    (computed_kernel, "Conv conv: its weight is computed"),
    (external_weights, "kernel: kept in another file"),
    (lambda p: put(p, "kernel", np.full((1, 8, 3, 3), np.inf, np.float32)), "kernel: holds values that are not finite"),
    (zero_points_of_uint8, "QuantizeLinear quantize: zero point of type UINT8"),
    (lambda p: put(p, "zero", np.int8(3)), "QuantizeLinear quantize: zero point other than 0"),
    (lambda p: node_of(p, "quantize").input.pop(), "QuantizeLinear quantize: no constant zero point"),
    (computed_scale, "QuantizeLinear quantize: its scale is computed"),
    (lambda p: put(p, "x_scale", np.float16(0)), "quantize: a scale that is not positive"),
    (
        lambda p: (put(p, "x_scale", np.ones(12, np.float16)), put(p, "zero", np.zeros(12, np.int8))),
        "quantize: a scale per channel for activations",
    ),
    (lambda p: operand(p, "gemm", 0, "x"), "Gemm gemm: one of its two operands is quantized"),
    (quantized_result_goes_on, "feeds Relu relu"),
    (quantized_bias, "Gemm gemm: its bias is quantized"),
]


def test_a_graph_that_keeps_the_rules_passes() -> None:
    proto = small_graph()
    onnx.checker.check_model(proto, full_check=True)
    assert check(proto) == []


@pytest.mark.parametrize(("breach", "said"), BREACHES, ids=[said[:40] for _, said in BREACHES])
def test_each_breach_is_found_and_named(breach: Callable[[onnx.ModelProto], None], said: str) -> None:
    proto = small_graph()
    breach(proto)
    found = check(proto)
    assert any(re.search(said, problem) for problem in found), found
