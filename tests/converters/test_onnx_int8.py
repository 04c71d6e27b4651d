"""The int8 file: which layers are int8, which stay in float, and that nothing but it is left behind."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stlm_edge.converters.onnx_int8 import to_int8
from stlm_edge.export.pipeline import Exported
from stlm_edge.formats import metadata_entries
from stlm_edge.model import checkpoint


@pytest.fixture(scope="module")
def proto(exported: dict[str, Exported]) -> onnx.ModelProto:
    return onnx.load(exported["int8"].folder / "model.onnx")


def test_only_linear_layers_are_int8(proto: onnx.ModelProto) -> None:
    int8 = {node.input[1].removesuffix("_quantized") for node in proto.graph.node if node.op_type == "MatMulInteger"}
    assert "plain.layers.1.blocks.0.attn.qkv.weight_transposed" in int8
    assert "plain.layers.3.blocks.0.mlp.fc2.weight_transposed" in int8
    assert any("mask_decoder" in name for name in int8)
    assert not {node.op_type for node in proto.graph.node} & {"ConvInteger", "QLinearConv", "DequantizeLinear"}


def test_named_layers_stay_in_float(exported: dict[str, Exported], small_checkpoint: Path, tmp_path: Path) -> None:
    opened = checkpoint.load(small_checkpoint)
    kept = ("plain.layers.3.", "mask_decoder.")
    source = exported["fp32"].folder / "model.onnx"
    to_int8(source, tmp_path / "int8.onnx", opened.decision_threshold, kept)
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    int8 = {node.input[1] for node in nodes if node.op_type == "MatMulInteger"}
    assert any(name.startswith("denoising.layers.3.") for name in int8)
    assert not any(name.startswith(kept) for name in int8)
    assert any(node.input[1].startswith("plain.layers.3.") for node in nodes if node.op_type in ("Gemm", "MatMul"))


def test_weights_leave_a_bit_for_processors_without_vnni(proto: onnx.ModelProto) -> None:
    """Pairs of u8×s8 products, which those add in 16 bits, saturate beyond 64 in the weights."""
    used = {node.input[1] for node in proto.graph.node if node.op_type == "MatMulInteger"}
    weights = [numpy_helper.to_array(weight) for weight in proto.graph.initializer if weight.name in used]
    assert len(weights) == len(used) > 20
    assert max(int(np.abs(weight.astype(np.int16)).max()) for weight in weights) == 64


def test_float_weights_are_stored_as_float16_and_attention_biases_as_tables(proto: onnx.ModelProto) -> None:
    weights = {weight.name: weight for weight in proto.graph.initializer}
    made = {node.output[0]: node for node in proto.graph.node if node.op_type in ("Cast", "Gather")}
    first = "plain.patch_embed.seq.0.c.weight"
    convolutions = {node.input[1] for node in proto.graph.node if node.op_type == "Conv"}
    assert weights[first].data_type == onnx.TensorProto.FLOAT
    assert weights[made["plain.neck.2.weight"].input[0]].data_type == onnx.TensorProto.FLOAT16
    assert {"plain.neck.2.weight", first} <= convolutions
    tables = [name for name in weights if name.endswith("_table")]
    assert tables
    for table in tables:
        assert weights[table].data_type == onnx.TensorProto.FLOAT
        assert numpy_helper.to_array(weights[table]).shape[1] <= 256


def test_weights_have_a_scale_per_output_channel(proto: onnx.ModelProto) -> None:
    weights = {weight.name: weight for weight in proto.graph.initializer}
    name = "plain.layers.1.blocks.0.attn.qkv.weight_transposed"
    assert weights[f"{name}_quantized"].data_type == onnx.TensorProto.INT8
    assert list(weights[f"{name}_scale"].dims) == list(weights[f"{name}_quantized"].dims)[1:]


def test_file_is_smaller_standard_and_has_the_threshold(proto: onnx.ModelProto, exported: dict[str, Exported]) -> None:
    sizes = {name: (done.folder / "model.onnx").stat().st_size for name, done in exported.items()}
    assert sizes["int8"] < 0.4 * sizes["fp32"]
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]
    onnx.checker.check_model(proto, full_check=True)
    assert {e.key: e.value for e in proto.metadata_props} == metadata_entries(
        exported["int8"].manifest.decision_threshold, 64
    )


def test_repeated_quantization_gives_the_same_bytes_and_leaves_no_other_file(
    exported: dict[str, Exported], small_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    opened = checkpoint.load(small_checkpoint)
    source = exported["fp32"].folder / "model.onnx"
    before = sorted(path.name for path in source.parent.iterdir())
    to_int8(source, tmp_path / "int8.onnx", opened.decision_threshold)
    assert (tmp_path / "int8.onnx").read_bytes() == (exported["int8"].folder / "model.onnx").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]
    assert sorted(path.name for path in source.parent.iterdir()) == before
    assert capfd.readouterr() == ("", "")
