"""The typed files for TensorRT: what is float16, what is not and why, what is int8, and what TensorRT refuses."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_network import SMALL
from tiny import tiny_image

from stlm_edge.converters import tensorrt
from stlm_edge.converters.float32_operators import (
    Float32Operator,
    at_risk_by_kind,
    describe,
    float32_operators,
    measured,
    names_of,
    rank_convolutions,
)
from stlm_edge.converters.fp16_simulation import Fp16Simulation
from stlm_edge.converters.tensorrt import check
from stlm_edge.converters.tensorrt_int8 import activation_ranges, best_share
from stlm_edge.export.pipeline import Exported
from stlm_edge.formats import metadata_entries
from stlm_edge.images import load
from stlm_edge.runtimes.onnxruntime import OnnxRuntime

Typed = dict[str, tuple[Path, list[Float32Operator]]]
IMAGES = [load(tiny_image(seed, defect=seed > 100), SMALL.size) for seed in (100, 105)]

IN_FLOAT = ("plain.layers.3.", "denoising.layers.2.blocks.0.mlp.fc2")


@pytest.fixture(scope="module")
def typed_files(exported: dict[str, Exported], tmp_path_factory: pytest.TempPathFactory) -> Typed:
    folder, done = tmp_path_factory.mktemp("typed"), exported["fp32"]
    graph, decision_threshold = tensorrt.read(done.folder / "model.onnx"), done.manifest.decision_threshold
    kept = next(float32_operators(graph, IMAGES))
    tensorrt.to_fp32(graph, folder / "fp32.onnx", decision_threshold)
    tensorrt.to_fp16(graph, folder / "fp16.onnx", decision_threshold, kept)
    tensorrt.to_int8(graph, folder / "int8.onnx", decision_threshold, kept, activation_ranges(graph, IMAGES), IN_FLOAT)
    return {precision: (folder / f"{precision}.onnx", kept) for precision in ("fp32", "fp16", "int8")}


def types_of(proto: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    types = {weight.name: weight.data_type for weight in graph.initializer}
    return types | {
        value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input, *graph.output]
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_graph_has_documented_inputs_and_outputs(
    typed_files: Typed, exported: dict[str, Exported], precision: str
) -> None:
    proto = onnx.load(typed_files[precision][0])
    assert check(proto) == []
    (image,) = proto.graph.input
    assert image.type.tensor_type.elem_type == TensorProto.UINT8
    assert [node.op_type for node in proto.graph.node if image.name in node.input] == ["Cast"]
    assert [(output.name, output.type.tensor_type.elem_type) for output in proto.graph.output] == [
        ("anomaly_map", TensorProto.FLOAT),
        ("score", TensorProto.FLOAT),
    ]
    decision_threshold = exported["fp32"].manifest.decision_threshold
    assert {entry.key: entry.value for entry in proto.metadata_props} == metadata_entries(
        decision_threshold, SMALL.size
    )


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("fp16", 0.2), ("int8", 0.2)])
def test_onnxruntime_and_the_simulation_run_the_file(
    typed_files: Typed, exported: dict[str, Exported], precision: str, limit: float
) -> None:
    """Random weights magnify roundings a hundredfold: the limits hold graph errors only."""
    reference = OnnxRuntime(exported["fp32"].folder / "model.onnx", threads=1)
    path = typed_files[precision][0]
    for runtime in (OnnxRuntime(path, threads=1), Fp16Simulation(path)):
        for image in IMAGES:
            found, expected = runtime.run(image)[0], reference.run(image)[0]
            assert np.abs(found - expected).max() < limit, runtime.name
            assert np.abs(found - expected).mean() < limit / 10, runtime.name


def test_fp16_computes_in_float16_except_float32_operators(typed_files: Typed) -> None:
    path, kept = typed_files["fp16"]
    proto = onnx.load(path)
    types, within = types_of(proto), names_of(kept)
    for node in proto.graph.node:
        kinds = {types[name] for name in node.input if name} & {TensorProto.FLOAT, TensorProto.FLOAT16}
        if node.name in within and node.op_type != "Cast":
            assert kinds == {TensorProto.FLOAT}, node.name
        if node.op_type in ("Conv", "Gemm", "MatMul", "Gelu") and node.name not in within:
            assert kinds == {TensorProto.FLOAT16}, node.name
        if node.op_type in ("LayerNormalization", "Softmax", "ReduceL2", "ReduceMean", "Sqrt", "Pow"):
            assert kinds == {TensorProto.FLOAT}, node.name
    assert path.stat().st_size < 0.55 * typed_files["fp32"][0].stat().st_size


def test_the_products_fed_to_fa_stay_in_float32_up_to_its_convolutions(typed_files: Typed) -> None:
    path, kept = typed_files["fp16"]
    proto = onnx.load(path)
    made = {name: node for node in proto.graph.node for name in node.output}
    first = next(node for node in proto.graph.node if node.op_type == "Conv" and "fa.res.0.conv1" in node.input[1])
    cast = made[first.input[0]]
    while cast.op_type in ("Reshape", "Transpose"):
        cast = made[cast.input[0]]
    assert cast.op_type == "Cast"
    products = made[cast.input[0]]
    assert {products.op_type, *(made[name].op_type for name in products.input)} <= {"Concat", "Mul", "Neg"}
    assert "product of normalised maps, fed to FA" in {operator.reason for operator in kept}


def test_float32_operators_have_a_reason(typed_files: Typed) -> None:
    lines = describe(typed_files["fp16"][1])
    assert any(
        re.fullmatch(
            r"in float32: \d+ LayerNormalization: sum of squares in LayerNorm \(largest .*, in fp16 (off by|over).*\)",
            line,
        )
        for line in lines
    ), lines
    assert any("Softmax: sum of exponentials" in line for line in lines)
    overflowing = Float32Operator("n", "ReduceL2", "sum of squares in a channel norm", 1e5, float("inf"))
    assert describe([overflowing]) == [
        "in float32: 1 ReduceL2: sum of squares in a channel norm (largest value 1e+05, in fp16 overflows)"
    ]


def test_int8_quantizes_linear_layers_and_nothing_else(typed_files: Typed) -> None:
    proto = onnx.load(typed_files["int8"][0])
    made = {name: node for node in proto.graph.node for name in node.output}
    weights = {weight.name: weight for weight in proto.graph.initializer}
    quantized = [
        node
        for node in proto.graph.node
        if any(n in made and made[n].op_type == "DequantizeLinear" for n in node.input)
    ]
    assert {node.op_type for node in quantized} == {"Gemm"}
    names = [made[node.input[1]].input[0] for node in quantized]
    assert "plain.layers.1.blocks.0.attn.qkv.weight_transposed_int8" in names
    assert any("mask_decoder" in name for name in names)
    assert not [name for name in names if name.startswith(IN_FLOAT)]
    for name in names:
        steps = numpy_helper.to_array(weights[name])
        scale = numpy_helper.to_array(weights[name.removesuffix("_int8") + "_scale_fp16"])
        assert steps.dtype == np.int8
        assert scale.shape == (steps.shape[1],)
        assert np.abs(steps).max() <= 127
    assert typed_files["int8"][0].stat().st_size < typed_files["fp16"][0].stat().st_size


def test_outlier_does_not_widen_the_steps_of_other_activations() -> None:
    """Largest magnitudes as ranges cost a trained network half a point of pixel AUROC."""
    rng = np.random.default_rng(0)
    values = np.abs(rng.normal(size=100_000)).astype(np.float32)
    values[7] = 8
    share = best_share(values, 8)
    error = {
        name: np.square(np.rint(values / scale).clip(max=127) * scale - values).mean()
        for name, scale in (("least", share * 8 / 127), ("largest magnitude", 8 / 127))
    }
    assert share < 0.7, "the outlier is clipped"
    assert error["least"] < 0.8 * error["largest magnitude"]
    assert best_share(np.linspace(0, 8, 10_000, dtype=np.float32), 8) == 1, "where there are none, nothing is clipped"


def test_outliers_that_live_in_one_channel_are_seen() -> None:
    spread = np.full((3, 512), 0.01, np.float32)
    spread[:, 301] = 1
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["x"], "cast", to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["x", "spread"], ["y"], "spread_matmul"),
            helper.make_node("MatMul", ["y", "same"], ["anomaly_map"], "same_matmul"),
        ],
        "one_large_channel",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 64, 64, 3])],
        [helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [1, 64, 64, 512])],
        [
            numpy_helper.from_array(spread, "spread"),
            numpy_helper.from_array(np.eye(512, dtype=np.float32), "same"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    image = np.random.default_rng(0).integers(200, 256, (64, 64, 3), np.uint8)
    amax = activation_ranges(proto, [image])["y"]
    assert amax > 0.9 * image.sum(axis=2).max()


def test_repeated_export_gives_the_same_bytes(
    typed_files: Typed, exported: dict[str, Exported], tmp_path: Path
) -> None:
    done = exported["fp32"]
    graph = tensorrt.read(done.folder / "model.onnx")
    kept = next(float32_operators(graph, IMAGES))
    tensorrt.to_int8(
        graph,
        tmp_path / "again.onnx",
        done.manifest.decision_threshold,
        kept,
        activation_ranges(graph, IMAGES),
        IN_FLOAT,
    )
    assert (tmp_path / "again.onnx").read_bytes() == typed_files["int8"][0].read_bytes()


def test_operator_that_overflows_on_quantization_images_stays_in_float32() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["x"], "cast", to=TensorProto.FLOAT),
            helper.make_node("Conv", ["x", "large"], ["y"], "large_conv"),
            helper.make_node("Relu", ["y"], ["z"], "relu"),
            helper.make_node("Conv", ["z", "small"], ["anomaly_map"], "small_conv"),
        ],
        "overflowing",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 8, 8, 3])],
        [helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [1, 1, 8, 3])],
        [
            numpy_helper.from_array(np.full((1, 8, 1, 1), 100, np.float32), "large"),
            numpy_helper.from_array(np.full((1, 1, 1, 1), 1e-4, np.float32), "small"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    by_kind = at_risk_by_kind(proto.graph)
    assert [operator.node for operator in by_kind] == ["cast"]
    dark, bright = (np.full((8, 8, 3), value, np.uint8) for value in (20, 200))
    assert [operator.node for operator in measured(proto, by_kind, [dark])] == ["cast"]
    found = {operator.node: operator for operator in measured(proto, by_kind, [dark, bright])}
    assert found["large_conv"].reason == "measured: too large"
    assert found["large_conv"].largest == 160_000


def test_convolution_that_changes_the_map_most_for_its_size_comes_first() -> None:
    def layer(name: str, x: str, y: str) -> onnx.NodeProto:
        return helper.make_node("Conv", [x, f"{name}_weight"], [y], name)

    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], "cast", to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["float"], ["x"], "turn", perm=[0, 3, 1, 2]),
            layer("exact", "x", "y"),
            layer("cancels", "y", "z"),
            layer("rounds", "z", "anomaly_map"),
        ],
        "two_hazards",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 8, 8, 3])],
        [helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [1, 1, 8, 8])],
        [
            numpy_helper.from_array(np.eye(3, dtype=np.float32)[:, :, None, None], "exact_weight"),
            numpy_helper.from_array(np.float32([[100.03, -100, 0]])[:, :, None, None], "cancels_weight"),
            numpy_helper.from_array(np.full((1, 1, 1, 1), 0.0101, np.float32), "rounds_weight"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    ranked = rank_convolutions(proto, at_risk_by_kind(proto.graph), [np.full((8, 8, 3), 201, np.uint8)])
    assert [operator.node for operator in ranked] == ["cancels", "rounds", "exact"]
    assert [operator.map_change > 0 for operator in ranked] == [True, True, False]


def test_attention_biases_are_stored_as_tables(typed_files: Typed, exported: dict[str, Exported]) -> None:
    untyped = {weight.name: weight for weight in onnx.load(exported["fp32"].folder / "model.onnx").graph.initializer}
    for precision in ("fp16", "int8"):
        proto = onnx.load(typed_files[precision][0])
        weights = {weight.name: numpy_helper.to_array(weight) for weight in proto.graph.initializer}
        gathers = [node for node in proto.graph.node if "_table" in node.input[0]]
        assert gathers
        assert len({node.input[1] for node in gathers}) < len(gathers), "windows of one size share their places"
        for node in gathers:
            table, places = (weights[name] for name in node.input)
            assert (table.dtype, places.dtype) == (np.float16, np.int32)
            before = numpy_helper.to_array(untyped[node.name.removesuffix("/Gather")])
            assert np.array_equal(table[:, places], before.astype(np.float16))
