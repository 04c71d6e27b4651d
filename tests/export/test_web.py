"""stlm-export --target web: a bundle for WebGPU and one for WebAssembly, both proven by what can run them here."""

import shutil
from pathlib import Path

import onnx
import pytest
from damage import (
    Damage,
    convert_to,
    damage_what_is_saved_by,
    foreign_operator,
    infinite_map,
    missing_normalisation,
    rewrite,
    swapped_channels,
    threshold_off_by_five_percent,
    transposed_map,
)
from promises import WRONG_THRESHOLD, is_refused, predicts_and_is_benched, says_what_the_trained_model_says

import stlm_edge
from stlm_edge.converters import quantization, webgpu
from stlm_edge.errors import JobError, UsageError
from stlm_edge.export import targets
from stlm_edge.export.pipeline import Exported, export_all
from stlm_edge.formats.onnx import read_metadata


def test_an_export_that_names_no_precision_writes_both(exported_for_web: dict[str, Exported]) -> None:
    target, precision = targets.find("web")
    assert (target.precisions, precision) == (("fp16", "int8"), "fp16")
    assert list(exported_for_web) == ["fp16", "int8"]
    for name, done in exported_for_web.items():
        assert (done.folder.parent.name, done.folder.name, done.losses) == ("bundles", name, [])


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 5e-3), ("int8", 0.05)])
def test_a_bundle_says_what_the_trained_model_says(
    exported_for_web: dict[str, Exported], even_checkpoint: Path, precision: str, limit: float
) -> None:
    says_what_the_trained_model_says(stlm_edge.open(exported_for_web[precision].folder), even_checkpoint, limit)


def test_both_bundles_have_one_contract(exported_for_web: dict[str, Exported]) -> None:
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


def test_webgpu_runs_the_whole_fp16_file_and_webassembly_s_is_quantized(exported_for_web: dict[str, Exported]) -> None:
    fp16, int8 = (onnx.load(exported_for_web[name].folder / "model.onnx") for name in ("fp16", "int8"))
    assert webgpu.check(fp16) == []
    assert "MatMulInteger" in {node.op_type for node in int8.graph.node}
    assert any("MatMulInteger" in problem for problem in webgpu.check(int8))


# The gate


@pytest.mark.parametrize(
    ("damage", "precision", "reason"),
    [
        (swapped_channels, "int8", "before int8, fp32 map differs by .*, at most 0.0001 is allowed"),
        (missing_normalisation, "int8", "before int8, fp32 map differs by .*, at most 0.0001 is allowed"),
        (transposed_map, "int8", "before int8, fp32 map differs by .*, at most 0.0001 is allowed"),
        (infinite_map, "fp16", "the fp32 model fails on normal-00: .* not finite"),
        (foreign_operator, "fp16", "WebGPU could not run the whole file: Round round: WebGPU has no kernel for it"),
    ],
)
def test_a_damaged_converter_does_not_pass(
    damage: Damage,
    precision: str,
    reason: str,
    even_checkpoint: Path,
    even_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert_to(even_onnx, monkeypatch, damage)
    is_refused("web", reason, tmp_path, checkpoint=even_checkpoint, precision=precision)


def test_a_wrong_threshold_does_not_pass(
    even_checkpoint: Path, even_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_to(even_onnx, monkeypatch)
    damage_what_is_saved_by(webgpu, monkeypatch, threshold_off_by_five_percent)
    is_refused("web", WRONG_THRESHOLD, tmp_path, checkpoint=even_checkpoint, precision="fp16")


def test_where_one_of_both_fails_the_bundles_that_stood_there_stay(
    exported_for_web: dict[str, Exported],
    even_checkpoint: Path,
    even_onnx: Path,
    told_apart: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def to_fp16(proto: onnx.ModelProto, path: Path, *arguments: object) -> None:
        shutil.copyfile(exported_for_web["fp16"].folder / "model.onnx", path)

    def to_int8(model: object, source: Path, path: Path, *arguments: object) -> None:
        shutil.copyfile(source, path)
        rewrite(path, infinite_map)

    convert_to(even_onnx, monkeypatch)
    monkeypatch.setattr(webgpu, "to_fp16", to_fp16)
    monkeypatch.setattr(quantization, "to_int8", to_int8)
    folder = Path(shutil.copytree(exported_for_web["fp16"].folder.parent, tmp_path / "site"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for out, force in ((folder, True), (tmp_path / "new", False)):
        with pytest.raises(JobError, match="the int8 model fails on normal-00"):
            export_all("web", checkpoint=even_checkpoint, data=told_apart, out=out, force=force)
    assert list(tmp_path.iterdir()) == [folder]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_bundle_that_stands_in_the_way_of_either_is_seen_first(
    exported_for_web: dict[str, Exported], even_checkpoint: Path
) -> None:
    folder = exported_for_web["fp16"].folder.parent
    with pytest.raises(UsageError, match=r"fp16: exists; choose another folder or give --force"):
        export_all("web", checkpoint=even_checkpoint, out=folder)


# On this machine


def test_it_predicts_and_is_benched_by_onnxruntime(
    exported_for_web: dict[str, Exported], tiny_images: Path, tmp_path: Path
) -> None:
    image = tiny_images / "spot" / "305.png"
    predicts_and_is_benched(exported_for_web["int8"], "onnxruntime", image, tmp_path / "bench")


def test_its_metadata_holds_the_threshold(exported_for_web: dict[str, Exported]) -> None:
    for done in exported_for_web.values():
        metadata = read_metadata(done.folder / "model.onnx")
        assert float(metadata["stlm_edge.threshold"]) == done.manifest.decision_threshold.value
