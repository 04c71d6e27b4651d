"""Exports for web: a bundle for WebGPU and one for WebAssembly."""

import shutil
from pathlib import Path

import onnx
import pytest
from damage import (
    Damage,
    convert_to,
    foreign_operator,
    infinite_map,
    missing_normalisation,
    rewrite,
    swapped_channels,
    transposed_map,
)
from promises import NOT_FINITE, WRONG_MAP, assert_refused

import stlm_edge
from stlm_edge.converters import onnx_int8, web
from stlm_edge.errors import JobError, UsageError
from stlm_edge.export import targets
from stlm_edge.export.pipeline import Exported, export_all


def test_export_without_precision_writes_both(exported_for_web: dict[str, Exported]) -> None:
    target, precision = targets.find("web")
    assert (target.precisions, precision) == (("fp16", "int8"), "fp16")
    assert list(exported_for_web) == ["fp16", "int8"]
    for name, done in exported_for_web.items():
        assert (done.folder.parent.name, done.folder.name, done.losses) == ("bundles", name, [])


def test_graphs_have_the_same_input_and_output(exported_for_web: dict[str, Exported]) -> None:
    for precision, done in exported_for_web.items():
        manifest = stlm_edge.open(done.folder).manifest
        assert (manifest.target, manifest.runtime, manifest.precision) == ("web", "onnxruntime-web", precision)
        assert (manifest.input.name, manifest.input.layout, manifest.input.dtype) == ("image", "NHWC", "float32")
        assert (manifest.outputs.anomaly_map.name, manifest.outputs.score) == ("anomaly_map", None)
        checked = ["fp16 simulation"] if precision == "fp16" else []
        assert manifest.provenance["checked_by"] == [*checked, "onnxruntime"]
        assert any("run here by onnxruntime on a CPU" in note for note in manifest.provenance["notes"])
        graph = onnx.load(done.folder / "model.onnx").graph
        assert [(value.name, value.type.tensor_type.elem_type) for value in [*graph.input, *graph.output]] == [
            ("image", onnx.TensorProto.FLOAT),
            ("anomaly_map", onnx.TensorProto.FLOAT),
        ]


def test_webgpu_can_run_whole_fp16_file_but_not_int8(exported_for_web: dict[str, Exported]) -> None:
    fp16, int8 = (onnx.load(exported_for_web[name].folder / "model.onnx") for name in ("fp16", "int8"))
    assert web.check(fp16) == []
    assert "MatMulInteger" in {node.op_type for node in int8.graph.node}
    assert any("MatMulInteger" in problem for problem in web.check(int8))


@pytest.mark.parametrize(
    ("damage", "precision", "reason"),
    [
        (swapped_channels, "int8", f"before int8, {WRONG_MAP}"),
        (missing_normalisation, "int8", f"before int8, {WRONG_MAP}"),
        (transposed_map, "int8", f"before int8, {WRONG_MAP}"),
        (infinite_map, "fp16", NOT_FINITE),
        (foreign_operator, "fp16", "WebGPU could not run .*: Round round: no such operator"),
    ],
)
def test_gate_refuses_wrong_conversion(
    damage: Damage,
    precision: str,
    reason: str,
    even_checkpoint: Path,
    even_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert_to(even_onnx, monkeypatch, damage)
    assert_refused("web", reason, tmp_path, checkpoint=even_checkpoint, precision=precision)


@pytest.mark.slow
def test_failure_of_one_keeps_both_earlier_bundles(
    exported_for_web: dict[str, Exported],
    even_checkpoint: Path,
    even_onnx: Path,
    told_apart: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def to_fp16(proto: onnx.ModelProto, path: Path, *arguments: object) -> None:
        shutil.copyfile(exported_for_web["fp16"].folder / "model.onnx", path)

    def to_int8(source: Path, path: Path, *arguments: object) -> None:
        shutil.copyfile(source, path)
        rewrite(path, infinite_map)

    convert_to(even_onnx, monkeypatch)
    monkeypatch.setattr("stlm_edge.converters.float32_operators.float32_operators", lambda *_: iter([[]]))
    monkeypatch.setattr(web, "to_fp16", to_fp16)
    monkeypatch.setattr(onnx_int8, "to_int8", to_int8)
    folder = Path(shutil.copytree(exported_for_web["fp16"].folder.parent, tmp_path / "site"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for out, force in ((folder, True), (tmp_path / "new", False)):
        with pytest.raises(JobError, match="the int8 model fails on normal-00"):
            export_all("web", checkpoint=even_checkpoint, data=told_apart, out=out, force=force)
    assert list(tmp_path.iterdir()) == [folder]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_existing_bundle_is_refused_before_conversion(
    exported_for_web: dict[str, Exported], even_checkpoint: Path
) -> None:
    folder = exported_for_web["fp16"].folder.parent
    with pytest.raises(UsageError, match=r"fp16: exists.*--force"):
        export_all("web", checkpoint=even_checkpoint, out=folder)
