"""The ONNX file that a user gets: its contract, what is not in it, and the same bytes again."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from stlm_edge.converters import onnx as converter
from stlm_edge.errors import JobError
from stlm_edge.export.pipeline import Exported
from stlm_edge.formats import metadata_entries
from stlm_edge.model import checkpoint


@pytest.fixture(scope="module")
def proto(exported: dict[str, Exported]) -> onnx.ModelProto:
    return onnx.load(exported["fp32"].folder / "model.onnx")


def test_graph_has_documented_inputs_and_outputs(proto: onnx.ModelProto) -> None:
    def described(value: onnx.ValueInfoProto) -> tuple[str, int, list[int]]:
        tensor = value.type.tensor_type
        return value.name, tensor.elem_type, [dim.dim_value for dim in tensor.shape.dim]

    assert [described(value) for value in proto.graph.input] == [("image", TensorProto.UINT8, [1, 64, 64, 3])]
    assert [described(value) for value in proto.graph.output] == [
        ("anomaly_map", TensorProto.FLOAT, [1, 1, 64, 64]),
        ("score", TensorProto.FLOAT, [1]),
    ]
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]
    assert proto.ir_version == 10
    assert {node.domain for node in proto.graph.node} == {""}
    onnx.checker.check_model(proto, full_check=True)


def test_one_file_holds_everything(exported: dict[str, Exported], proto: onnx.ModelProto) -> None:
    assert all(weight.data_location == TensorProto.DEFAULT for weight in proto.graph.initializer)
    names = {path.name for path in exported["fp32"].folder.iterdir()}
    assert names == {"model.onnx", "manifest.json", "golden", ".candidates.json"}


def test_weights_without_effect_on_the_map_are_not_exported(proto: onnx.ModelProto, small_checkpoint: Path) -> None:
    names = [weight.name for weight in proto.graph.initializer]
    assert any("cross_attn_image_to_token" in name for name in names)
    assert not [name for name in names if "final_attn" in name]
    final = [
        tensor
        for name, tensor in checkpoint.load(small_checkpoint).model.state_dict().items()
        if "final_attn" in name and name.endswith("weight")
    ]
    assert len(final) == 5
    shipped = [numpy_helper.to_array(weight) for weight in proto.graph.initializer]
    for tensor in final[:-1]:
        same = [array for array in shipped if array.size == tensor.numel()]
        assert not any((array.ravel() == tensor.numpy().ravel()).all() for array in same)
        assert not any((array.ravel() == tensor.T.numpy().ravel()).all() for array in same)


def test_constants_are_computed_at_export(proto: onnx.ModelProto) -> None:
    constant = {weight.name for weight in proto.graph.initializer}
    operators = {node.op_type for node in proto.graph.node}
    assert "Gelu" in operators
    assert not operators & {"BatchNormalization", "Constant", "Cos", "Erf", "GatherND", "Sin"}
    assert not [node.name for node in proto.graph.node if set(node.input) <= constant]


def test_file_holds_no_trace_of_the_machine(proto: onnx.ModelProto) -> None:
    without_weights = onnx.ModelProto()
    without_weights.CopyFrom(proto)
    for weight in without_weights.graph.initializer:
        weight.ClearField("raw_data")
    content = without_weights.SerializeToString()
    for trace in (b'File "', b".py", str(Path(torch.__file__).parent).encode(), str(Path.home()).encode() + b"/"):
        assert trace not in content


def test_the_metadata_holds_the_threshold(proto: onnx.ModelProto, exported: dict[str, Exported]) -> None:
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    decision_threshold = exported["fp32"].manifest.decision_threshold
    assert float(metadata["stlm_edge.threshold"]) == decision_threshold.value
    assert metadata == metadata_entries(decision_threshold, 64)


def test_linear_weights_are_named_by_their_modules(proto: onnx.ModelProto) -> None:
    linear = {node.input[1] for node in proto.graph.node if node.op_type == "Gemm"}
    assert "plain.layers.3.blocks.0.mlp.fc2.weight_transposed" in linear
    assert all(name.endswith(".weight_transposed") for name in linear)


def test_nodes_are_named_by_their_modules(proto: onnx.ModelProto) -> None:
    names = {node.name: node.op_type for node in proto.graph.node}
    assert len(names) == len(proto.graph.node)
    assert names["plain/layers/2/blocks/0/attn/Softmax"] == "Softmax"
    assert names["denoising/layers/3/blocks/0/mlp/fc1/Gemm"] == "Gemm"
    assert names["mask_decoder/transformer/layers/1/cross_attn_image_to_token/Softmax"] == "Softmax"
    assert names["fa/res/0/conv1/Conv"] == "Conv"
    for name, operator in names.items():
        parts = name.split("/")
        assert parts[-1].partition("_")[0] == operator
        assert len(parts) == 1 or parts[0] in ("plain", "denoising", "mask_decoder", "fa")
    outside = [name for name in names if "/" not in name]
    assert len(outside) < 20, "only what is before, between and after the modules"
    made = {value for node in proto.graph.node for value in node.output}
    assert made - {"anomaly_map", "score"} <= {f"{name}{end}" for name in names for end in ("", ":1", ":2")}


def test_repeated_export_gives_the_same_bytes(
    exported: dict[str, Exported], small_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    opened = checkpoint.load(small_checkpoint)
    converter.to_onnx(opened.model, tmp_path / "again.onnx", opened.decision_threshold)
    assert (tmp_path / "again.onnx").read_bytes() == (exported["fp32"].folder / "model.onnx").read_bytes()
    assert capfd.readouterr() == ("", ""), "the exporter printed something"


def test_another_opset_is_refused(proto: onnx.ModelProto, exported: dict[str, Exported], tmp_path: Path) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    changed.opset_import[0].version = 18
    with pytest.raises(JobError, match=r"opsets .*18.*, expected only ai.onnx 20"):
        converter.save(changed, tmp_path / "model.onnx", exported["fp32"].manifest.decision_threshold)
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_graph_is_refused(proto: onnx.ModelProto, exported: dict[str, Exported], tmp_path: Path) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    del changed.graph.node[3]
    with pytest.raises(JobError, match="not valid ONNX"):
        converter.save(changed, tmp_path / "model.onnx", exported["fp32"].manifest.decision_threshold)
    assert list(tmp_path.iterdir()) == []
